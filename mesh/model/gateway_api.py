"""Documents in and out: HTTPRoute as the Gateway API writes it, and our ServicePolicy.

What is read is kept or refused, never quietly dropped. The exceptions are what a cluster adds by itself (``status``,
``metadata.uid`` and the like, as ``kubectl get -o yaml`` prints them) and ``metadata.labels`` and ``annotations``,
which are not kept: a note says so. ``hostnames`` may repeat the service's own names, which says nothing new (a mesh
matches the service, not the Host header: MeshFrontendHostname).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

import yaml

from mesh.model.documents import Node, each
from mesh.model.duration import format_duration
from mesh.model.errors import InvalidError, Violation
from mesh.model.name import DEFAULT_NAMESPACE, Name
from mesh.model.policy import ServicePolicy
from mesh.model.policy_document import POLICY_API_VERSION, POLICY_KIND, policy_spec, read_policy
from mesh.model.route import (
    DEFAULT_WEIGHT,
    BackendRef,
    Parent,
    PathMatch,
    PathType,
    Retry,
    Route,
    RouteMatch,
    Rule,
    Timeouts,
    ValueMatch,
    ValueType,
)
from mesh.model.validate import check, resource_label

GATEWAY_API_VERSION: Final = "gateway.networking.k8s.io/v1"
ROUTE_KIND: Final = "HTTPRoute"
SUBSET_GROUP: Final = "mesh.sidemesh.dev"
SUBSET_KIND: Final = "Subset"

_API_VERSIONS: Final = {
    ROUTE_KIND: (GATEWAY_API_VERSION, "gateway.networking.k8s.io/v1beta1"),
    POLICY_KIND: (POLICY_API_VERSION,),
}
_OF_THE_CLUSTER: Final = ("creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid")
_SUBSET_FORM: Final = (
    f"{{type: ExtensionRef, extensionRef: {{group: {SUBSET_GROUP}, kind: {SUBSET_KIND}, name: NAME}}}}"
)
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
    try:
        documents = [document for document in yaml.load_all(text, _Loader) if document is not None]
    except yaml.YAMLError as error:
        raise InvalidError([Violation("", f"not YAML: {error}")]) from error
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
            # Of a value with gaps only the gaps are told, else each would be told twice.
            found += [] if found else check(value)
            values.append(value)
        notes += [f"{label}: {note}" for note in said]
        problems += [Violation(".".join(filter(None, (label, v.field))), v.message) for v in found]
    if problems:
        raise InvalidError(problems)
    return Documents(tuple(values), tuple(notes))


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
    if not isinstance(spec.value, dict) and (kind == ROUTE_KIND or spec.is_given):
        node.at("spec").complain("must be a mapping")
        spec = Node({}, "", node.problems)
    value = _route(spec, name) if kind == ROUTE_KIND else read_policy(spec, name)
    return (value if name.name else None), notes


# --- HTTPRoute --------------------------------------------------------------------------------------------------


def _route(spec: Node, name: Name) -> Route:
    spec.fields(("parentRefs", "hostnames", "rules"), ("useDefaultGateways",))
    parents = each(spec.at("parentRefs").items(), lambda node: _parent(node, name.namespace))
    own = {own for parent in parents for own in _own_names(parent.service)}
    for hostname in spec.at("hostnames").items():
        if hostname.text().lower() not in own:
            hostname.complain(
                f"{hostname.value!r} is no name of the parent services; other hostnames are not built yet"
            )
    rules = spec.at("rules")
    if not rules.is_given:
        return Route(name, parents, (Rule(),))  # the Gateway API's default: one rule that matches everything
    return Route(name, parents, each(rules.items(), lambda node: _rule(node, name.namespace)))


def _own_names(service: Name) -> Iterator[str]:
    """The names by which callers may know a service."""
    yield service.name
    for suffix in ("", ".svc", ".svc.cluster.local"):
        yield f"{service.name}.{service.namespace}{suffix}"
    yield f"{service.name}.service.consul"


def _parent(node: Node, namespace: str) -> Parent:
    node.fields(("group", "kind", "namespace", "name", "port"), ("sectionName",), is_required=True)
    node.at("kind").must_be(("Service",), "routes steer what is sent to a service: kind must be Service")
    node.at("group").must_be((None, "", "core"), 'a Service is of the group ""')
    return Parent(Name(node.at("namespace").text(namespace), node.at("name").text()), node.at("port").optional_number())


def _rule(node: Node, namespace: str) -> Rule:
    node.fields(("name", "matches", "backendRefs", "timeouts", "retry"), ("filters", "sessionPersistence"))
    matches = each(node.at("matches").items(), _match)
    name = node.at("name")
    return Rule(
        # An empty list means what an absent one does: everything.
        matches=matches or (RouteMatch(),),
        backend_refs=each(node.at("backendRefs").items(), lambda ref: _backend_ref(ref, namespace)),
        timeouts=_timeouts(node.at("timeouts")),
        retry=_retry(node.at("retry")) if node.at("retry").is_given else None,
        name=name.text() if name.is_given else None,
    )


def _match(node: Node) -> RouteMatch:
    node.fields(("path", "headers", "queryParams", "method"))
    path = node.at("path").fields(("type", "value"))
    method = node.at("method")
    return RouteMatch(
        path=PathMatch(path.at("type").word(PathType, PathType.PREFIX), path.at("value").text("/")),
        headers=each(node.at("headers").items(), lambda header: _value_match(header, is_header=True)),
        query_params=each(node.at("queryParams").items(), lambda param: _value_match(param, is_header=False)),
        method=method.text() if method.is_given else None,
    )


def _value_match(node: Node, *, is_header: bool) -> ValueMatch:
    node.fields(("type", "name", "value"), is_required=True)
    name = node.at("name").text()
    return ValueMatch(
        name.lower() if is_header else name,  # RFC 9110 §5.1: field names are case-insensitive
        node.at("value").text(),
        node.at("type").word(ValueType, ValueType.EXACT),
    )


def _backend_ref(node: Node, namespace: str) -> BackendRef:
    node.fields(("group", "kind", "namespace", "name", "port", "weight", "filters"), is_required=True)
    node.at("kind").must_be((None, "Service"), "only Service is built")
    node.at("group").must_be((None, "", "core"), 'a Service is of the group ""')
    return BackendRef(
        service=Name(node.at("namespace").text(namespace), node.at("name").text()),
        subset=_subset(node.at("filters")),
        weight=node.at("weight").number(DEFAULT_WEIGHT),
        port=node.at("port").optional_number(),
    )


def _subset(filters: Node) -> str | None:
    """The subset that a backendRef's one filter names, if it has one."""
    names = []
    for node in filters.items():
        type_ = node.at("type")
        if type_.value != "ExtensionRef":
            type_.complain(f"{type_.value!r} is not built yet; the one filter of a backendRef is {_SUBSET_FORM}")
            continue
        node.fields(("type", "extensionRef"))
        reference = node.at("extensionRef").fields(("group", "kind", "name"), is_required=True)
        reference.at("group").must_be((SUBSET_GROUP,), f"the one filter of a backendRef is {_SUBSET_FORM}")
        reference.at("kind").must_be((SUBSET_KIND,), f"the one filter of a backendRef is {_SUBSET_FORM}")
        names.append(reference.at("name").text())
    if len(names) > 1:
        filters.complain("names more than one subset")
    return names[0] if names else None


def _timeouts(node: Node) -> Timeouts:
    node.fields(("request", "backendRequest"))
    # GEP-1742: a zero switches the timeout off.
    return Timeouts(node.at("request").seconds(None) or None, node.at("backendRequest").seconds(None) or None)


def _retry(node: Node) -> Retry:
    node.fields(("codes", "attempts", "backoff"))
    return Retry(
        codes=each(node.at("codes").items(), lambda code: code.number(0)),
        attempts=node.at("attempts").number(1),
        backoff_s=node.at("backoff").seconds(None),
    )


# --- out --------------------------------------------------------------------------------------------------------


def to_yaml(values: Iterable[Route | ServicePolicy]) -> str:
    """Documents that ``parse`` reads back to the same values (creation times aside, which the server sets)."""
    documents = [to_document(value) for value in values]
    # ASCII only: in clear text U+0085 and U+2028 would come back as the line breaks that YAML takes them for.
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=False)


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
        "kind": ROUTE_KIND,
        "metadata": metadata,
        "spec": {
            "parentRefs": [_parent_document(parent, value.name.namespace) for parent in value.parents],
            "rules": [_rule_document(rule, value.name.namespace) for rule in value.rules],
        },
    }


def _parent_document(parent: Parent, namespace: str) -> dict[str, Any]:
    document = {"group": "", "kind": "Service", **_name_document(parent.service, namespace)}
    return document if parent.port is None else {**document, "port": parent.port}


def _name_document(name: Name, namespace: str) -> dict[str, Any]:
    return {"name": name.name} if name.namespace == namespace else {"name": name.name, "namespace": name.namespace}


def _rule_document(rule: Rule, namespace: str) -> dict[str, Any]:
    document: dict[str, Any] = {} if rule.name is None else {"name": rule.name}
    document["matches"] = [_match_document(match) for match in rule.matches]
    document["backendRefs"] = [_backend_ref_document(ref, namespace) for ref in rule.backend_refs]
    timeouts = {"request": rule.timeouts.request_s, "backendRequest": rule.timeouts.backend_request_s}
    if any(timeouts.values()):
        document["timeouts"] = {key: format_duration(s) for key, s in timeouts.items() if s is not None}
    if rule.retry is not None:
        document["retry"] = {"codes": list(rule.retry.codes), "attempts": rule.retry.attempts}
        if rule.retry.backoff_s is not None:
            document["retry"]["backoff"] = format_duration(rule.retry.backoff_s)
    return document


def _match_document(match: RouteMatch) -> dict[str, Any]:
    document: dict[str, Any] = {"path": {"type": match.path.type.value, "value": match.path.value}}
    for key, conditions in (("headers", match.headers), ("queryParams", match.query_params)):
        if conditions:
            document[key] = [{"type": c.type.value, "name": c.name, "value": c.value} for c in conditions]
    return document if match.method is None else {**document, "method": match.method}


def _backend_ref_document(ref: BackendRef, namespace: str) -> dict[str, Any]:
    document = _name_document(ref.service, namespace)
    if ref.port is not None:
        document["port"] = ref.port
    document["weight"] = ref.weight
    if ref.subset is not None:
        reference = {"group": SUBSET_GROUP, "kind": SUBSET_KIND, "name": ref.subset}
        document["filters"] = [{"type": "ExtensionRef", "extensionRef": reference}]
    return document


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, where YAML libraries silently take the last.

    Plain scalars are read as YAML 1.2's core schema has them: a header value ``yes``, ``on`` or ``22:22`` is the
    string that stands there, not a boolean or 1342.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc] # as in yaml


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?([0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|\.[0-9]+|[0-9]+[eE][-+]?[0-9]+)", "-+0123456789."),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"\Z"), [""])


class _Dumper(yaml.SafeDumper):
    """A SafeDumper that also quotes what only newer YAML takes for a number, such as ``1e3`` and ``0o17``."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"(?:[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+|0o[0-7]+)\Z"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Mapping[object, object]:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (str, int)) and key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
