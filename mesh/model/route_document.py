"""The ``spec`` of a route in and out: HTTPRoute, GRPCRoute and TCPRoute, as the Gateway API writes them.

``timeouts`` and ``retry`` of a GRPCRoute's rules are ours, in the form they have in an HTTPRoute; ``retry.codes`` are
gRPC statuses there, by name or number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from mesh.http.grpc import Status
from mesh.model.documents import Node, each
from mesh.model.duration import format_duration
from mesh.model.name import Name
from mesh.model.route import (
    DEFAULT_WEIGHT,
    BackendRef,
    MethodMatch,
    Parent,
    PathMatch,
    PathType,
    Retry,
    Route,
    RouteKind,
    RouteMatch,
    Rule,
    Timeouts,
    ValueMatch,
    ValueType,
)

SUBSET_GROUP: Final = "mesh.sidemesh.dev"
SUBSET_KIND: Final = "Subset"
_SUBSET_FORM: Final = (
    f"{{type: ExtensionRef, extensionRef: {{group: {SUBSET_GROUP}, kind: {SUBSET_KIND}, name: NAME}}}}"
)


def read_route(spec: Node, name: Name, kind: RouteKind) -> Route:
    """The route of that name; problems are noted in ``spec``."""
    is_grpc = kind is RouteKind.GRPC
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
        everything = (_everything(is_grpc=is_grpc),)
        # The Gateway API's default: one rule that matches everything.
        return Route(name, parents, (Rule(matches=everything),), kind=kind)
    if kind is RouteKind.TCP:
        read = each(rules.items(), lambda node: _tcp_rule(node, name.namespace))
    else:
        read = each(rules.items(), lambda node: _rule(node, name.namespace, is_grpc=is_grpc))
    return Route(name, parents, read, kind=kind)


def _everything(*, is_grpc: bool) -> RouteMatch:
    return RouteMatch(grpc=MethodMatch() if is_grpc else None)


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


def _rule(node: Node, namespace: str, *, is_grpc: bool) -> Rule:
    node.fields(("name", "matches", "backendRefs", "timeouts", "retry"), ("filters", "sessionPersistence"))
    matches = each(node.at("matches").items(), _grpc_match if is_grpc else _match)
    name = node.at("name")
    return Rule(
        # An empty list means what an absent one does: everything.
        matches=matches or (_everything(is_grpc=is_grpc),),
        backend_refs=each(node.at("backendRefs").items(), lambda ref: _backend_ref(ref, namespace)),
        timeouts=_timeouts(node.at("timeouts")),
        retry=_retry(node.at("retry"), is_grpc=is_grpc) if node.at("retry").is_given else None,
        name=name.text() if name.is_given else None,
    )


def _tcp_rule(node: Node, namespace: str) -> Rule:
    node.fields(("name", "backendRefs"))
    name = node.at("name")
    return Rule(
        backend_refs=each(node.at("backendRefs").items(), lambda ref: _backend_ref(ref, namespace)),
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


def _grpc_match(node: Node) -> RouteMatch:
    node.fields(("method", "headers"))
    method = node.at("method").fields(("type", "service", "method"))
    service, name = method.at("service"), method.at("method")
    if method.is_given and not (service.is_given or name.is_given):
        method.complain("must name a service, a method or both")
    return RouteMatch(
        headers=each(node.at("headers").items(), lambda header: _value_match(header, is_header=True)),
        grpc=MethodMatch(
            service.text() if service.is_given else None,
            name.text() if name.is_given else None,
            method.at("type").word(ValueType, ValueType.EXACT),
        ),
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


def _retry(node: Node, *, is_grpc: bool) -> Retry:
    node.fields(("codes", "attempts", "backoff"))
    codes = node.at("codes").items()
    return Retry(
        codes=() if is_grpc else each(codes, lambda code: code.number(0)),
        grpc_codes=each(codes, _grpc_code) if is_grpc else (),
        attempts=node.at("attempts").number(1),
        backoff_s=node.at("backoff").seconds(None),
    )


def _grpc_code(node: Node) -> int:
    """A gRPC status, by its name or number."""
    if isinstance(node.value, str):
        if node.value in Status.__members__:
            return int(Status[node.value])
        node.complain(f"{node.value!r} is no gRPC status; there are {', '.join(Status.__members__)}")
        return int(Status.UNAVAILABLE)
    return node.number(0)


# --- out --------------------------------------------------------------------------------------------------------


def route_spec(route: Route) -> dict[str, Any]:
    """The ``spec`` of a route, every value written out."""
    namespace = route.name.namespace
    return {
        "parentRefs": [_parent_document(parent, namespace) for parent in route.parents],
        "rules": [_rule_document(rule, namespace, route.kind) for rule in route.rules],
    }


def _parent_document(parent: Parent, namespace: str) -> dict[str, Any]:
    document = {"group": "", "kind": "Service", **_name_document(parent.service, namespace)}
    return document if parent.port is None else {**document, "port": parent.port}


def _name_document(name: Name, namespace: str) -> dict[str, Any]:
    return {"name": name.name} if name.namespace == namespace else {"name": name.name, "namespace": name.namespace}


def _rule_document(rule: Rule, namespace: str, kind: RouteKind) -> dict[str, Any]:
    document: dict[str, Any] = {} if rule.name is None else {"name": rule.name}
    if kind is not RouteKind.TCP:
        document["matches"] = [_match_document(match) for match in rule.matches]
    document["backendRefs"] = [_backend_ref_document(ref, namespace) for ref in rule.backend_refs]
    timeouts = {"request": rule.timeouts.request_s, "backendRequest": rule.timeouts.backend_request_s}
    if any(timeouts.values()):
        document["timeouts"] = {key: format_duration(s) for key, s in timeouts.items() if s is not None}
    if rule.retry is not None:
        codes = [*rule.retry.codes, *(Status(code).name for code in rule.retry.grpc_codes)]
        document["retry"] = {"codes": codes, "attempts": rule.retry.attempts}
        if rule.retry.backoff_s is not None:
            document["retry"]["backoff"] = format_duration(rule.retry.backoff_s)
    return document


def _match_document(match: RouteMatch) -> dict[str, Any]:
    headers = [_value_document(header) for header in match.headers]
    if match.grpc is not None:
        called = {"service": match.grpc.service, "method": match.grpc.method}
        named: dict[str, Any] = {key: value for key, value in called.items() if value is not None}
        grpc = {"method": {"type": match.grpc.type.value, **named}} if named else {}
        return {**grpc, "headers": headers} if headers else grpc
    document: dict[str, Any] = {"path": {"type": match.path.type.value, "value": match.path.value}}
    if headers:
        document["headers"] = headers
    if match.query_params:
        document["queryParams"] = [_value_document(param) for param in match.query_params]
    return document if match.method is None else {**document, "method": match.method}


def _value_document(match: ValueMatch) -> dict[str, str]:
    return {"type": match.type.value, "name": match.name, "value": match.value}


def _backend_ref_document(ref: BackendRef, namespace: str) -> dict[str, Any]:
    document = _name_document(ref.service, namespace)
    if ref.port is not None:
        document["port"] = ref.port
    document["weight"] = ref.weight
    if ref.subset is not None:
        reference = {"group": SUBSET_GROUP, "kind": SUBSET_KIND, "name": ref.subset}
        document["filters"] = [{"type": "ExtensionRef", "extensionRef": reference}]
    return document
