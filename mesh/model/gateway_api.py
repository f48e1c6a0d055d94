"""Documents in and out: HTTPRoute, GRPCRoute and TCPRoute as the Gateway API writes them, and our ServicePolicy.

What is read is kept or refused, never quietly dropped. The exceptions are what a cluster adds by itself (``status``,
``metadata.uid`` and the like, as ``kubectl get -o yaml`` prints them) and ``metadata.labels`` and ``annotations``,
which are not kept: a note says so. ``hostnames`` may repeat the service's own names, which says nothing new (a mesh
matches the service, not the Host header: MeshFrontendHostname).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from mesh.model.documents import Node
from mesh.model.errors import InvalidError, Violation
from mesh.model.name import DEFAULT_NAMESPACE, Name
from mesh.model.policy import ServicePolicy
from mesh.model.policy_document import POLICY_API_VERSION, POLICY_KIND, policy_spec, read_policy
from mesh.model.route import Route, RouteKind
from mesh.model.route_document import read_route, route_spec
from mesh.model.validate import check, resource_label

GATEWAY_API_VERSION: Final = "gateway.networking.k8s.io/v1"
ROUTE_KIND: Final = "HTTPRoute"

_API_VERSIONS: Final = {
    ROUTE_KIND: (GATEWAY_API_VERSION, "gateway.networking.k8s.io/v1beta1"),
    RouteKind.GRPC.value: (GATEWAY_API_VERSION, "gateway.networking.k8s.io/v1alpha2"),
    RouteKind.TCP.value: (GATEWAY_API_VERSION, "gateway.networking.k8s.io/v1alpha2"),
    POLICY_KIND: (POLICY_API_VERSION,),
}
_OF_THE_CLUSTER: Final = ("creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid")
_MAX_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Documents:
    """What a text held. ``notes`` are for the reader: things accepted and not kept."""

    values: tuple[Route | ServicePolicy, ...]
    notes: tuple[str, ...] = ()


def parse(text: str, namespace: str = DEFAULT_NAMESPACE) -> Documents:
    """Read YAML with one or more documents; ``namespace`` is theirs where they name none.

    Raises InvalidError with everything wrong in all of them.
    """
    if len(text) > _MAX_BYTES:
        raise InvalidError([Violation("", f"the text has more than {_MAX_BYTES} characters")])
    from mesh.model.document_text import load_all  # noqa: PLC0415 - YAML is 1.6 MiB, for those who read files

    documents = load_all(text)
    if not documents:
        raise InvalidError([Violation("", "there is no document in it")])
    return read_documents(documents, namespace)


def read_documents(documents: Iterable[object], namespace: str = DEFAULT_NAMESPACE) -> Documents:
    """Read documents that YAML or JSON gave. Raises InvalidError with everything wrong in all of them."""
    problems: list[Violation] = []
    notes: list[str] = []
    values: list[Route | ServicePolicy] = []
    seen: set[str] = set()
    flat = list(_flatten(documents))
    for i, document in enumerate(flat):
        found: list[Violation] = []
        value, said = _read(Node(document, "", found), namespace)
        label = f"documents[{i}]" if len(flat) > 1 else ""
        if value is not None:
            label = resource_label(value)
            if label in seen:
                found.append(Violation("", "stands there more than once"))
            seen.add(label)
            # Where a gap was told, what is wrong with what stands in for it is not told too.
            gaps = [violation.field for violation in found]
            found += [v for v in check(value) if not any(_overlap(v.field, gap) for gap in gaps)]
            values.append(value)
        notes += [f"{label}: {note}" for note in said]
        problems += [Violation(".".join(filter(None, (label, v.field))), v.message) for v in found]
    if problems:
        raise InvalidError(problems)
    return Documents(tuple(values), tuple(notes))


def _overlap(field: str, other: str) -> bool:
    """Tell whether one of two paths stands within the other."""
    shorter, longer = sorted((field, other), key=len)
    return longer.startswith(shorter) and longer[len(shorter) : len(shorter) + 1] in ("", ".", "[")


def _flatten(documents: Iterable[object]) -> Iterator[object]:
    """The documents themselves, also those in a ``kind: List``, as kubectl prints several."""
    for document in documents:
        if isinstance(document, dict) and document.get("kind") == "List" and isinstance(document.get("items"), list):
            yield from document["items"]
        else:
            yield document


def _read(node: Node, namespace: str) -> tuple[Route | ServicePolicy | None, list[str]]:
    """One document. None where it is not even clear what it is about."""
    node.fields(("apiVersion", "kind", "metadata", "spec", "status"), is_required=True)
    kind = node.at("kind").text()
    if kind not in _API_VERSIONS:
        if kind:
            node.at("kind").complain(f"{kind!r} is none of {', '.join(_API_VERSIONS)}")
        return None, []
    accepted = _API_VERSIONS[kind]
    node.at("apiVersion").must_be(accepted, f"of a {kind} it must be {' or '.join(accepted)}")
    metadata = node.at("metadata").fields(
        ("name", "namespace", "labels", "annotations", *_OF_THE_CLUSTER), is_required=True
    )
    notes = [
        f"metadata.{key} are not kept"
        for key in ("labels", "annotations")
        if any(not name.startswith("kubectl.kubernetes.io/") for name, _ in metadata.at(key).pairs())
    ]
    name = Name(metadata.at("namespace").text(namespace), metadata.at("name").text())
    spec = Node(node.at("spec").value, "", node.problems)
    if not isinstance(spec.value, dict) and (kind != POLICY_KIND or spec.is_given):
        node.at("spec").complain("must be a mapping")
        spec = Node({}, "", node.problems)
    value = read_policy(spec, name) if kind == POLICY_KIND else read_route(spec, name, RouteKind(kind))
    return (value if name.name else None), notes


# --- out --------------------------------------------------------------------------------------------------------


def to_yaml(values: Iterable[Route | ServicePolicy]) -> str:
    """Documents that ``parse`` reads back to the same values (creation times aside, which the server sets)."""
    from mesh.model.document_text import dump_all  # noqa: PLC0415 - see ``parse``

    return dump_all([to_document(value) for value in values])


def to_document(value: Route | ServicePolicy) -> dict[str, Any]:
    """The document of one resource, as plain dicts and lists."""
    metadata: dict[str, Any] = {"name": value.name.name, "namespace": value.name.namespace}
    if isinstance(value, ServicePolicy):
        return {
            "apiVersion": POLICY_API_VERSION,
            "kind": POLICY_KIND,
            "metadata": metadata,
            "spec": policy_spec(value),
        }
    if value.created_unix_s:
        created = datetime.fromtimestamp(value.created_unix_s, UTC)
        metadata["creationTimestamp"] = created.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": GATEWAY_API_VERSION,
        "kind": value.kind.value,
        "metadata": metadata,
        "spec": route_spec(value),
    }
