"""Who the spans are of: the OpenTelemetry resource of a sidecar.

The SDK reads OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME, and what stands there wins; below it lie the sidecar's
own settings and what Kubernetes tells through the downward API.
"""

from __future__ import annotations

from collections.abc import Mapping

from mesh.telemetry.spans import AttributeValue

# The names that the downward API's variables bear in Istio's and Linkerd's injected containers.
_DOWNWARD = {
    "POD_NAME": "k8s.pod.name",
    "POD_NAMESPACE": "k8s.namespace.name",
    "POD_UID": "k8s.pod.uid",
    "NODE_NAME": "k8s.node.name",
}


def resource_attributes(
    environ: Mapping[str, str], *, service: str, namespace: str, instance: str, version: str, sdk_version: str
) -> dict[str, AttributeValue]:
    """The attributes of this process; ``version`` is the service's and may be empty."""
    # Only a sidecar with a backend for spans pays for the SDK's import: 0.1 s and some MB.
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415

    own: dict[str, AttributeValue] = {
        "service.name": service,
        "service.namespace": namespace,
        "service.instance.id": instance,
        "telemetry.sdk.name": "sidemesh",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": sdk_version,
    }
    if version:
        own["service.version"] = version
    own.update({key: environ[variable] for variable, key in _DOWNWARD.items() if environ.get(variable)})
    merged = Resource(own).merge(OTELResourceDetector().detect())
    return {key: value for key, value in merged.attributes.items() if isinstance(value, str | bool | int | float)}
