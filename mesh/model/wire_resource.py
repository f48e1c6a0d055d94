"""Routes and policies between the model and protobuf. Import them from ``wire``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from google.protobuf.message import Message

from mesh.model.errors import InvalidError, Violation
from mesh.model.policy import AppProtocol, Limits, OutlierDetection, RetryBudgetPolicy, ServicePolicy, TlsPolicy
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
from mesh.model.wire_values import (
    decode_duration,
    decode_name,
    decode_timestamp,
    encode_duration,
    encode_name,
    encode_timestamp,
    unknown_enum,
    unknown_fields,
)
from protos.mesh.v1 import resource_pb2

_PATH_TYPES: Final = {
    PathType.EXACT: resource_pb2.PathMatch.TYPE_EXACT,
    PathType.PREFIX: resource_pb2.PathMatch.TYPE_PREFIX,
    PathType.REGULAR_EXPRESSION: resource_pb2.PathMatch.TYPE_REGULAR_EXPRESSION,
}
_VALUE_TYPES: Final = {
    ValueType.EXACT: resource_pb2.ValueMatch.TYPE_EXACT,
    ValueType.REGULAR_EXPRESSION: resource_pb2.ValueMatch.TYPE_REGULAR_EXPRESSION,
}
_PATH_TYPES_BACK: Final = {number: value for value, number in _PATH_TYPES.items()}
_ROUTE_KINDS: Final = {
    RouteKind.HTTP: resource_pb2.Route.KIND_HTTP,
    RouteKind.GRPC: resource_pb2.Route.KIND_GRPC,
    RouteKind.TCP: resource_pb2.Route.KIND_TCP,
}
_ROUTE_KINDS_BACK: Final = {number: kind for kind, number in _ROUTE_KINDS.items()}
_VALUE_TYPES_BACK: Final = {number: value for value, number in _VALUE_TYPES.items()}


def encode_route(route: Route) -> resource_pb2.Route:
    """A Route message."""
    message = resource_pb2.Route(
        name=encode_name(route.name),
        parents=[encode_name(parent.service) for parent in route.parents],
        rules=[_encode_rule(rule) for rule in route.rules],
    )
    if any(parent.port is not None for parent in route.parents):
        message.parent_ports.extend(parent.port or 0 for parent in route.parents)
    message.kind = _ROUTE_KINDS[route.kind]
    if route.created_unix_s:
        message.created.CopyFrom(encode_timestamp(route.created_unix_s))
    return message


def _encode_rule(rule: Rule) -> resource_pb2.Rule:
    message = resource_pb2.Rule(
        name=rule.name or "",
        matches=[_encode_match(match) for match in rule.matches],
        backend_refs=[encode_backend_ref(ref) for ref in rule.backend_refs],
    )
    if rule.timeouts.request_s is not None:
        message.timeouts.request.CopyFrom(encode_duration(rule.timeouts.request_s))
    if rule.timeouts.backend_request_s is not None:
        message.timeouts.backend_request.CopyFrom(encode_duration(rule.timeouts.backend_request_s))
    if rule.retry is not None:
        message.retry.codes.extend(rule.retry.codes)
        message.retry.grpc_codes.extend(rule.retry.grpc_codes)
        message.retry.attempts = rule.retry.attempts
        if rule.retry.backoff_s is not None:
            message.retry.backoff.CopyFrom(encode_duration(rule.retry.backoff_s))
    return message


def _encode_match(match: RouteMatch) -> resource_pb2.RouteMatch:
    headers = [_encode_value_match(header) for header in match.headers]
    if match.grpc is not None:
        called = match.grpc
        return resource_pb2.RouteMatch(
            headers=headers,
            grpc=resource_pb2.GrpcMethodMatch(
                type=_VALUE_TYPES[called.type], service=called.service or "", method=called.method or ""
            ),
        )
    return resource_pb2.RouteMatch(
        path=resource_pb2.PathMatch(type=_PATH_TYPES[match.path.type], value=match.path.value),
        headers=headers,
        query_params=[_encode_value_match(param) for param in match.query_params],
        method=match.method or "",
    )


def _encode_value_match(match: ValueMatch) -> resource_pb2.ValueMatch:
    return resource_pb2.ValueMatch(type=_VALUE_TYPES[match.type], name=match.name, value=match.value)


def encode_backend_ref(ref: BackendRef) -> resource_pb2.BackendRef:
    """A BackendRef message."""
    return resource_pb2.BackendRef(
        service=encode_name(ref.service), subset=ref.subset or "", weight=ref.weight, port=ref.port or 0
    )


def decode_backend_ref(message: resource_pb2.BackendRef) -> BackendRef:
    """A BackendRef; an absent weight is 1, as the Gateway API has it."""
    return BackendRef(
        service=decode_name(message.service),
        subset=message.subset or None,
        weight=message.weight if message.HasField("weight") else DEFAULT_WEIGHT,
        port=message.port or None,
    )


def decode_route(message: resource_pb2.Route) -> Route:
    """A Route, its values not yet checked. Raises InvalidError for unknown fields and enum values."""
    problems = unknown_fields(message)
    ports: Sequence[int] = message.parent_ports or [0] * len(message.parents)
    if len(ports) != len(message.parents):
        problems.append(Violation("parentPorts", f"has {len(ports)} entries for {len(message.parents)} parents"))
        ports = [0] * len(message.parents)
    kind = _ROUTE_KINDS_BACK.get(message.kind)
    if kind is None:
        problems.append(Violation("kind", unknown_enum(message.kind, RouteKind)))
    route = Route(
        name=decode_name(message.name),
        parents=tuple(
            Parent(decode_name(name), port or None) for name, port in zip(message.parents, ports, strict=True)
        ),
        rules=tuple(
            _decode_rule(rule, f"rules[{i}]", problems, is_grpc=kind is RouteKind.GRPC)
            for i, rule in enumerate(message.rules)
        ),
        created_unix_s=decode_timestamp(message.created),
        kind=kind or RouteKind.HTTP,
    )
    if problems:
        raise InvalidError(problems)
    return route


def _decode_rule(message: resource_pb2.Rule, at: str, problems: list[Violation], *, is_grpc: bool) -> Rule:
    matches = tuple(_decode_match(m, f"{at}.matches[{i}]", problems) for i, m in enumerate(message.matches))
    retry = message.retry
    return Rule(
        matches=matches or (RouteMatch(grpc=MethodMatch() if is_grpc else None),),
        backend_refs=tuple(decode_backend_ref(ref) for ref in message.backend_refs),
        timeouts=Timeouts(
            # Zero switches a timeout off (GEP-1742), as leaving it out does.
            decode_duration(message.timeouts.request) or None,
            decode_duration(message.timeouts.backend_request) or None,
        ),
        retry=Retry(
            codes=tuple(retry.codes),
            attempts=retry.attempts if retry.HasField("attempts") else 1,
            backoff_s=decode_duration(retry.backoff) if retry.HasField("backoff") else None,
            grpc_codes=tuple(retry.grpc_codes),
        )
        if message.HasField("retry")
        else None,
        name=message.name or None,
    )


def _decode_match(message: resource_pb2.RouteMatch, at: str, problems: list[Violation]) -> RouteMatch:
    path = PathMatch()
    if message.HasField("path"):
        type_ = _PATH_TYPES_BACK.get(message.path.type)
        if type_ is None:
            problems.append(Violation(f"{at}.path.type", unknown_enum(message.path.type, PathType)))
        path = PathMatch(type_ or PathType.PREFIX, message.path.value)
    return RouteMatch(
        path=path,
        # RFC 9110 §5.1: field names are case-insensitive; the model has them in lower case.
        headers=tuple(
            _decode_value_match(m, m.name.lower(), f"{at}.headers[{i}]", problems)
            for i, m in enumerate(message.headers)
        ),
        query_params=tuple(
            _decode_value_match(m, m.name, f"{at}.queryParams[{i}]", problems)
            for i, m in enumerate(message.query_params)
        ),
        method=message.method or None,
        grpc=_decode_method_match(message.grpc, f"{at}.method", problems) if message.HasField("grpc") else None,
    )


def _decode_method_match(message: resource_pb2.GrpcMethodMatch, at: str, problems: list[Violation]) -> MethodMatch:
    type_ = _VALUE_TYPES_BACK.get(message.type, None if message.type else ValueType.EXACT)
    if type_ is None:
        problems.append(Violation(f"{at}.type", unknown_enum(message.type, ValueType)))
    return MethodMatch(message.service or None, message.method or None, type_ or ValueType.EXACT)


def _decode_value_match(message: resource_pb2.ValueMatch, name: str, at: str, problems: list[Violation]) -> ValueMatch:
    type_ = _VALUE_TYPES_BACK.get(message.type)
    if type_ is None:
        problems.append(Violation(f"{at}.type", unknown_enum(message.type, ValueType)))
    return ValueMatch(name, message.value, type_ or ValueType.EXACT)


def encode_policy(policy: ServicePolicy) -> resource_pb2.ServicePolicy:
    """A ServicePolicy message with every value written out, so that a stored policy outlives changed defaults."""
    outlier, limits, budget = policy.outlier_detection, policy.limits, policy.retry_budget
    return resource_pb2.ServicePolicy(
        name=encode_name(policy.name),
        subsets=[
            resource_pb2.Subset(name=name, metadata=dict(metadata))
            for name, metadata in sorted(policy.subsets.items(), key=lambda item: item[0])
        ],
        outlier_detection=resource_pb2.OutlierDetection(
            consecutive_failures=outlier.consecutive_failures,
            base_ejection=encode_duration(outlier.base_ejection_s),
            max_ejection_percent=outlier.max_ejection_percent,
            panic_percent=outlier.panic_percent,
        ),
        limits=resource_pb2.Limits(
            max_connections=limits.max_connections,
            max_pending_requests=limits.max_pending_requests,
            max_requests=limits.max_requests,
        ),
        retry_budget=resource_pb2.RetryBudget(percent=budget.percent, min_per_second=budget.min_per_s),
        connect_timeout=encode_duration(policy.connect_timeout_s),
        app_protocol="" if policy.app_protocol is None else policy.app_protocol.value,
        upgrades=policy.upgrades,
        tls=None
        if policy.tls is None
        else resource_pb2.Tls(
            server_name=policy.tls.server_name,
            ca_file=policy.tls.ca_file,
            certificate_file=policy.tls.certificate_file,
            key_file=policy.tls.key_file,
        ),
    )


def decode_policy(message: resource_pb2.ServicePolicy) -> ServicePolicy:
    """A ServicePolicy, absent values at their defaults, not yet checked. Raises InvalidError for unknown fields."""
    problems = unknown_fields(message)
    subsets: dict[str, dict[str, str]] = {}
    for i, subset in enumerate(message.subsets):
        if subset.name in subsets:
            problems.append(Violation(f"subsets[{i}].name", f"{subset.name!r} is defined twice"))
        subsets[subset.name] = dict(subset.metadata)
    known = [protocol.value for protocol in AppProtocol]
    if message.app_protocol and message.app_protocol not in known:
        problems.append(Violation("app_protocol", f"{message.app_protocol!r} is none of {', '.join(known)}"))
    if problems:
        raise InvalidError(problems)
    policy = ServicePolicy(decode_name(message.name))
    outlier = message.outlier_detection
    return ServicePolicy(
        name=policy.name,
        subsets=subsets,
        outlier_detection=OutlierDetection(
            _given(outlier, "consecutive_failures", policy.outlier_detection.consecutive_failures),
            decode_duration(outlier.base_ejection)
            if outlier.HasField("base_ejection")
            else policy.outlier_detection.base_ejection_s,
            _given(outlier, "max_ejection_percent", policy.outlier_detection.max_ejection_percent),
            _given(outlier, "panic_percent", policy.outlier_detection.panic_percent),
        ),
        limits=Limits(
            _given(message.limits, "max_connections", policy.limits.max_connections),
            _given(message.limits, "max_pending_requests", policy.limits.max_pending_requests),
            _given(message.limits, "max_requests", policy.limits.max_requests),
        ),
        retry_budget=RetryBudgetPolicy(
            _given(message.retry_budget, "percent", policy.retry_budget.percent),
            _given(message.retry_budget, "min_per_second", policy.retry_budget.min_per_s),
        ),
        connect_timeout_s=decode_duration(message.connect_timeout)
        if message.HasField("connect_timeout")
        else policy.connect_timeout_s,
        app_protocol=AppProtocol(message.app_protocol) if message.app_protocol else None,
        tls=TlsPolicy(message.tls.server_name, message.tls.ca_file, message.tls.certificate_file, message.tls.key_file)
        if message.HasField("tls")
        else None,
        upgrades=tuple(message.upgrades),
    )


def _given(message: Message, field: str, default: int) -> int:
    """The optional integer ``field``, or ``default`` where it is absent."""
    return int(getattr(message, field)) if message.HasField(field) else default
