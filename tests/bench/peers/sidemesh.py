"""Our sidecar, with the same features on as Envoy has, from one configuration file: caller's side, one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.bench.peers import HELD_REQUESTS, RETRIES, SPANS_EVERY_MS, SPANS_PER_BATCH, TIMEOUT_S, WEIGHTS, Command, Site
from tests.bench.traffic import ROUTES, SERVICE


def command(site: Site) -> Command:
    """Write its configuration."""
    path = site.directory / "sidecar.yaml"
    settings: dict[str, Any] = {
        "service": "caller",
        "outbound": f"127.0.0.1:{site.port}",
        "inbound": "127.0.0.1:0",
        "admin": f"127.0.0.1:{site.admin_port}",
        "services": {SERVICE: endpoints(site)},
        "routes": [route(timeout_s=None if site.holds_streams else TIMEOUT_S), *policies(site)],
    }
    if site.behind == "tcp":
        settings |= {
            "outbound": "127.0.0.1:0",
            "upstreams": {SERVICE: f"{site.port}/tcp"},
            "routes": [tcp_route()],
        }
    if site.certificate is not None:
        settings |= {"tls-cert": str(site.certificate.chain), "tls-key": str(site.certificate.key)}
    if site.access_log is not None:
        settings |= {"access-log": "all", "access-log-format": "json", "access-log-path": str(site.access_log)}
    path.write_text(json.dumps(settings))  # JSON is YAML
    env = {
        "OTEL_SERVICE_NAME": site.name,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{site.otlp_http}",
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": str(site.trace_ratio),
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": str(SPANS_PER_BATCH),
        "OTEL_BSP_SCHEDULE_DELAY": str(SPANS_EVERY_MS),
    }
    words: list[str | Path] = [
        sys.executable,
        "-m",
        "tests.bench.peers.tls_sidecar" if site.certificate else "mesh.cli.main",
        "sidecar",
        "--config",
        path,
        "--log-level",
        "warning",
    ]
    return Command(words, env)


def endpoints(site: Site) -> list[dict[str, Any]]:
    """All upstreams, with their versions."""
    return [
        {"id": f"{version}-{port}", "address": "127.0.0.1", "port": port, "version": version}
        for version, ports in site.versions.items()
        for port in ports
    ]


def policies(site: Site) -> list[dict[str, Any]]:
    """A ServicePolicy that says what the upstreams speak, where it is not HTTP/1.1 in clear text."""
    spec: dict[str, Any] = {}
    if site.behind in ("http2", "grpc"):
        spec["appProtocol"] = site.behind
    if site.certificate is not None:
        spec["tls"] = {"caFile": str(site.certificate.authority)}
    if site.holds_streams:
        spec["limits"] = {"maxRequests": HELD_REQUESTS, "maxPendingRequests": HELD_REQUESTS}
    policy = {"apiVersion": "mesh.sidemesh.dev/v1", "kind": "ServicePolicy", "metadata": {"name": SERVICE}}
    return [policy | {"spec": spec}] if spec else []


def tcp_route() -> dict[str, Any]:
    """A TCPRoute that splits connections between the versions."""
    return {
        "apiVersion": "gateway.networking.k8s.io/v1alpha2",
        "kind": "TCPRoute",
        "metadata": {"name": SERVICE},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": SERVICE}],
            "rules": [{"backendRefs": [_backend(SERVICE, version, weight) for version, weight in WEIGHTS.items()]}],
        },
    }


def route(
    service: str = SERVICE, name: str = SERVICE, rules: int = ROUTES, timeout_s: int | None = TIMEOUT_S
) -> dict[str, Any]:
    """An HTTPRoute with a rule for each prefix, each of them split between the versions."""
    timeouts = {} if timeout_s is None else {"timeouts": {"request": f"{timeout_s}s"}}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name},
        "spec": {
            "parentRefs": [{"kind": "Service", "group": "", "name": service}],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": f"/r{i}"}}],
                    "backendRefs": [_backend(service, version, weight) for version, weight in WEIGHTS.items()],
                    **timeouts,
                    "retry": {"codes": [502, 503, 504], "attempts": RETRIES},
                }
                for i in range(rules)
            ],
        },
    }


def _backend(service: str, version: str, weight: int) -> dict[str, Any]:
    subset = {"group": "mesh.sidemesh.dev", "kind": "Subset", "name": version}
    return {"name": service, "weight": weight, "filters": [{"type": "ExtensionRef", "extensionRef": subset}]}
