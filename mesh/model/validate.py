"""What a resource and a whole table may be. Everything wrong is said in one report.

Field paths are those of the document an operator writes (``rules[0].backendRefs[1].weight``), whichever way the value
came in. Limits are the Gateway API's (``apis/v1/httproute_types.go``) unless a line says otherwise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Final

from mesh.http.grpc import Status
from mesh.model.errors import InvalidError, Violation
from mesh.model.name import Name, is_label
from mesh.model.policy import ServicePolicy, TlsPolicy
from mesh.model.regex import RegexError, compile_regex
from mesh.model.route import (
    MAX_WEIGHT,
    BackendRef,
    MethodMatch,
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
from mesh.model.snapshot import kind_of

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")

MAX_PARENTS: Final = 32
MAX_RULES: Final = 16
MAX_MATCHES_PER_RULE: Final = 64
MAX_MATCHES: Final = 128
MAX_BACKEND_REFS: Final = 16
MAX_VALUE_MATCHES: Final = 16
MAX_PATH: Final = 1024
MAX_HEADER_NAME: Final = 256
MAX_HEADER_VALUE: Final = 4096
MAX_QUERY_VALUE: Final = 1024
MAX_PORT: Final = 65535
MAX_RETRY_ATTEMPTS: Final = 10  # ours: an attempt per endpoint of a cluster is plenty, and retries multiply load
MAX_DURATION_S: Final = 4 * 99_999 * 3600.0  # the longest that GEP-2257 can write
MAX_SUBSETS: Final = 64  # ours
MAX_METADATA: Final = 64  # Consul's limit on pairs of one service's metadata
MAX_METADATA_KEY: Final = 128  # likewise
MAX_METADATA_VALUE: Final = 512  # likewise
MAX_CONNECT_TIMEOUT_S: Final = 60.0  # ours
MAX_UPGRADES: Final = 16  # ours
MAX_LIMIT: Final = 1_000_000  # ours
MAX_EJECTION_S: Final = 86_400.0  # ours

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 §5.6.2
_PATH: Final = re.compile(r"(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})+")  # HTTPPathMatch's own pattern
# GRPCMethodMatch's own patterns; a service's name has its package before it.
_GRPC_SERVICE: Final = re.compile(r"(?i)\.?[a-z_][a-z_0-9]*(\.[a-z_][a-z_0-9]*)*")
_GRPC_METHOD: Final = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_SECTION_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
# Ours: wide enough for versions such as 1.2.0-rc1, narrow enough for command lines and metric labels.
_SUBSET: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
# RFC 9110 §5.5: visible characters, spaces and tabs within; a value is compared stripped, so no space at an end.
_FIELD_VALUE: Final = re.compile(r"[^\x00-\x20\x7f](?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?")
_SERVER_NAME: Final = re.compile(r"(?!.{254})[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_LABEL_RULE: Final = "is not a DNS label (a-z, 0-9 and inner '-', at most 63 characters)"


def is_subset_name(text: str) -> bool:
    """Tell whether ``text`` may name a subset: 1 to 63 letters, digits, ``.``, ``_`` and ``-`` within."""
    return _SUBSET.fullmatch(text) is not None


def check(value: Route | ServicePolicy) -> list[Violation]:
    """All that is wrong with one resource, paths relative to it; empty if it is sound."""
    return list(_route(value) if isinstance(value, Route) else _policy(value))


def check_table(
    values: Iterable[Route | ServicePolicy], good: Mapping[int, Route | ServicePolicy] | None = None
) -> list[Violation]:
    """All that is wrong with a whole table; each path starts with the resource (``HTTPRoute/reviews.rules[0]``).

    ``good`` holds, by identity, values that were checked before and are only looked at beside the others.
    """
    problems: list[Violation] = []
    seen: Counter[str] = Counter()
    for value in values:
        label = resource_label(value)
        seen[label] += 1
        if seen[label] == 2:
            problems.append(Violation(label, "is there more than once"))
        if good is None or id(value) not in good:
            problems += [Violation(f"{label}.{v.field}", v.message) for v in check(value)]
    return problems


def validate_table(values: Iterable[Route | ServicePolicy]) -> None:
    """Raise InvalidError with all that is wrong with the table, if anything is."""
    problems = check_table(values)
    if problems:
        raise InvalidError(problems)


def resource_label(value: Route | ServicePolicy) -> str:
    """``HTTPRoute/reviews``, as reports name a resource."""
    return f"{kind_of(value).value}/{value.name}"


# --- routes -----------------------------------------------------------------------------------------------------


def _route(route: Route) -> Iterator[Violation]:
    yield from check_name(route.name, "metadata")
    yield from _count(route.parents, "parentRefs", 1, MAX_PARENTS)
    yield from _count(route.rules, "rules", 1, MAX_RULES)
    for i, parent in enumerate(route.parents):
        at = f"parentRefs[{i}]"
        yield from check_name(parent.service, at)
        if parent.port is not None:
            yield from _range(parent.port, f"{at}.port", 1, MAX_PORT)
        if parent in route.parents[:i]:
            yield Violation(at, f"names {parent.service} a second time")
        if parent.service.namespace != route.name.namespace:
            yield Violation(
                f"{at}.namespace",
                f"is {parent.service.namespace!r}, the route's is {route.name.namespace!r}: routes for the clients of "
                "one namespace (consumer routes) are not built; put the route into the namespace of the service",
            )
    total = sum(len(rule.matches) for rule in route.rules)
    if total > MAX_MATCHES:
        yield Violation("rules", f"have {total} matches in all, at most {MAX_MATCHES} are taken")
    names = Counter(rule.name for rule in route.rules if rule.name)
    for i, rule in enumerate(route.rules):
        if rule.name and names[rule.name] > 1:
            yield Violation(f"rules[{i}].name", f"{rule.name!r} names another rule of this route too")
        yield from _rule(rule, f"rules[{i}]")
        yield from _of_one_kind(rule, f"rules[{i}]", is_grpc=route.kind is RouteKind.GRPC)
    if route.kind is RouteKind.TCP:
        yield from _tcp(route)


def _tcp(route: Route) -> Iterator[Violation]:
    """A connection says nothing by which to match it (TCPRoute: exactly one rule)."""
    yield from _count(route.rules, "rules", 1, 1)
    for rule in route.rules:
        if rule.matches != (RouteMatch(),) or rule.timeouts != Timeouts() or rule.retry is not None:
            yield Violation("rules[0]", "has what a TCPRoute cannot have; it has a name and backendRefs")


def _of_one_kind(rule: Rule, at: str, *, is_grpc: bool) -> Iterator[Violation]:
    """What the two kinds of routes do not share; no document can say it, a message can."""
    for i, match in enumerate(rule.matches):
        if (match.grpc is not None) is not is_grpc:
            yield Violation(f"{at}.matches[{i}]", f"is no match of {'a GRPCRoute' if is_grpc else 'an HTTPRoute'}")
        elif is_grpc and (match.path != PathMatch() or match.query_params or match.method is not None):
            yield Violation(f"{at}.matches[{i}]", "has what a GRPCRoute cannot match by; it has method and headers")
    if rule.retry is not None and (rule.retry.codes if is_grpc else rule.retry.grpc_codes):
        yield Violation(f"{at}.retry.codes", f"are {'HTTP codes in a GRPCRoute' if is_grpc else 'gRPC statuses'}")


def _rule(rule: Rule, at: str) -> Iterator[Violation]:
    if rule.name is not None and (len(rule.name) > 253 or not _SECTION_NAME.fullmatch(rule.name)):
        yield Violation(f"{at}.name", f"{rule.name!r} is not a name (a-z, 0-9, inner '-' and '.')")
    yield from _count(rule.matches, f"{at}.matches", 1, MAX_MATCHES_PER_RULE)
    for i, match in enumerate(rule.matches):
        yield from _match(match, f"{at}.matches[{i}]")
    # None at all is sound: such a rule answers 500 (Gateway API, HTTPRouteNoBackendRefs).
    yield from _count(rule.backend_refs, f"{at}.backendRefs", 0, MAX_BACKEND_REFS)
    for i, ref in enumerate(rule.backend_refs):
        yield from _backend_ref(ref, f"{at}.backendRefs[{i}]")
    yield from _timeouts(rule.timeouts, f"{at}.timeouts")
    if rule.retry is not None:
        yield from _retry(rule.retry, f"{at}.retry")


def _match(match: RouteMatch, at: str) -> Iterator[Violation]:
    if match.grpc is not None:
        yield from _grpc_method(match.grpc, f"{at}.method")
    yield from _path(match.path, f"{at}.path.value")
    if match.method is not None and match.method not in METHODS:
        yield Violation(f"{at}.method", f"{match.method!r} is none of {', '.join(METHODS)}")
    for key, conditions, longest in (
        ("headers", match.headers, MAX_HEADER_VALUE),
        ("queryParams", match.query_params, MAX_QUERY_VALUE),
    ):
        yield from _count(conditions, f"{at}.{key}", 0, MAX_VALUE_MATCHES)
        names = Counter(condition.name for condition in conditions)
        for i, condition in enumerate(conditions):
            here = f"{at}.{key}[{i}]"
            yield from _value_match(condition, here, longest)
            if key == "headers" and condition.name != condition.name.lower():
                yield Violation(f"{here}.name", f"{condition.name!r} is not in lower case")
            if names[condition.name] > 1:
                yield Violation(f"{here}.name", f"{condition.name!r} stands here twice; only the first would count")
            if key == "headers" and condition.type is ValueType.EXACT and not _FIELD_VALUE.fullmatch(condition.value):
                yield Violation(f"{here}.value", f"{condition.value!r} is no header value; no request can carry it")


def _grpc_method(match: MethodMatch, at: str) -> Iterator[Violation]:
    for key, value, pattern in (
        ("service", match.service, _GRPC_SERVICE),
        ("method", match.method, _GRPC_METHOD),
    ):
        if value is None:
            continue
        if match.type is ValueType.REGULAR_EXPRESSION:
            yield from _regex(value, f"{at}.{key}")
        elif len(value) > MAX_PATH or not pattern.fullmatch(value):
            yield Violation(f"{at}.{key}", f"{value!r} is no name of a gRPC {key}")


def _path(path: PathMatch, at: str) -> Iterator[Violation]:
    value = path.value
    if path.type is PathType.REGULAR_EXPRESSION:
        yield from _regex(value, at)
        return
    if len(value) > MAX_PATH:
        yield Violation(at, f"has {len(value)} characters, at most {MAX_PATH} are taken")
    if not value.startswith("/"):
        yield Violation(at, f"{value!r} does not start with '/'")
    for part in ("//", "/./", "/../", "%2f", "%2F", "#"):
        if part in value:
            yield Violation(at, f"{value!r} must not contain {part!r}")
    if value.endswith(("/.", "/..")):
        yield Violation(at, f"{value!r} must not end with '/.' or '/..'")
    if "#" not in value and not _PATH.fullmatch(value):
        yield Violation(at, f"{value!r} has characters that a path cannot have; write them %XX")


def _value_match(match: ValueMatch, at: str, longest: int) -> Iterator[Violation]:
    if len(match.name) > MAX_HEADER_NAME or not _TOKEN.fullmatch(match.name):
        yield Violation(f"{at}.name", f"{match.name!r} is not a name (letters, digits and !#$%&'*+-.^_`|~)")
    if not 1 <= len(match.value) <= longest:
        yield Violation(f"{at}.value", f"has {len(match.value)} characters, 1 to {longest} are taken")
    elif match.type is ValueType.REGULAR_EXPRESSION:
        yield from _regex(match.value, f"{at}.value")


def _regex(pattern: str, at: str) -> Iterator[Violation]:
    try:
        compile_regex(pattern)
    except RegexError as error:
        yield Violation(at, str(error))


def _backend_ref(ref: BackendRef, at: str) -> Iterator[Violation]:
    yield from check_name(ref.service, at)
    if ref.subset is not None and not is_subset_name(ref.subset):
        yield Violation(f"{at}.filters[0].extensionRef.name", _not_a_subset(ref.subset))
    yield from _range(ref.weight, f"{at}.weight", 0, MAX_WEIGHT)
    if ref.port is not None:
        yield from _range(ref.port, f"{at}.port", 1, MAX_PORT)


def _timeouts(timeouts: Timeouts, at: str) -> Iterator[Violation]:
    request, backend = timeouts.request_s, timeouts.backend_request_s
    if request is not None:
        yield from _seconds(request, f"{at}.request", MAX_DURATION_S)
    if backend is not None:
        yield from _seconds(backend, f"{at}.backendRequest", MAX_DURATION_S)
    # GEP-1742: backendRequest must be <= request.
    if request is not None and backend is not None and backend > request:
        yield Violation(f"{at}.backendRequest", f"{backend:g} s is longer than request, {request:g} s")


def _retry(retry: Retry, at: str) -> Iterator[Violation]:
    for i, code in enumerate(retry.codes):
        yield from _range(code, f"{at}.codes[{i}]", 400, 599)
        if code in retry.codes[:i]:
            yield Violation(f"{at}.codes[{i}]", f"{code} stands here twice")
    for i, code in enumerate(retry.grpc_codes):
        yield from _range(code, f"{at}.codes[{i}]", 1, max(Status))
        if code in retry.grpc_codes[:i]:
            yield Violation(f"{at}.codes[{i}]", f"{code} stands here twice")
    yield from _range(retry.attempts, f"{at}.attempts", 0, MAX_RETRY_ATTEMPTS)
    if retry.backoff_s:  # zero is sound: repeat at once
        yield from _seconds(retry.backoff_s, f"{at}.backoff", MAX_DURATION_S)


# --- policies ---------------------------------------------------------------------------------------------------


def _policy(policy: ServicePolicy) -> Iterator[Violation]:
    yield from check_name(policy.name, "metadata")
    if len(policy.subsets) > MAX_SUBSETS:
        yield Violation("subsets", f"are {len(policy.subsets)}, at most {MAX_SUBSETS} are taken")
    for name, metadata in policy.subsets.items():
        at = f"subsets[{name}]"
        if not is_subset_name(name):
            yield Violation(at, _not_a_subset(name))
        if not 1 <= len(metadata) <= MAX_METADATA:
            yield Violation(f"{at}.metadata", f"has {len(metadata)} pairs, 1 to {MAX_METADATA} are taken")
        for key, value in metadata.items():
            if not 1 <= len(key) <= MAX_METADATA_KEY:
                yield Violation(f"{at}.metadata", f"key {key!r} does not have 1 to {MAX_METADATA_KEY} characters")
            if len(value) > MAX_METADATA_VALUE:
                yield Violation(f"{at}.metadata.{key}", f"has more than {MAX_METADATA_VALUE} characters")
    outlier, limits, budget = policy.outlier_detection, policy.limits, policy.retry_budget
    yield from _range(outlier.consecutive_failures, "outlierDetection.consecutiveFailures", 0, MAX_LIMIT)
    yield from _seconds(outlier.base_ejection_s, "outlierDetection.baseEjection", MAX_EJECTION_S)
    yield from _range(outlier.max_ejection_percent, "outlierDetection.maxEjectionPercent", 0, 100)
    yield from _range(outlier.panic_percent, "outlierDetection.panicPercent", 0, 100)
    yield from _range(limits.max_connections, "limits.maxConnections", 1, MAX_LIMIT)
    yield from _range(limits.max_pending_requests, "limits.maxPendingRequests", 1, MAX_LIMIT)
    yield from _range(limits.max_requests, "limits.maxRequests", 1, MAX_LIMIT)
    yield from _range(budget.percent, "retryBudget.percent", 0, 100)
    yield from _range(budget.min_per_s, "retryBudget.minPerSecond", 0, MAX_LIMIT)
    yield from _seconds(policy.connect_timeout_s, "connectTimeout", MAX_CONNECT_TIMEOUT_S)
    if policy.tls is not None:
        yield from _tls(policy.tls)
    yield from _count(policy.upgrades, "upgrades", 0, MAX_UPGRADES)
    for i, token in enumerate(policy.upgrades):
        if not all(map(_TOKEN.fullmatch, token.split("/", 1))) or token != token.lower() or token in ("h2c", "tls"):
            yield Violation(f"upgrades[{i}]", f"{token!r} is no protocol in lower case that may follow in a tunnel")


def _tls(tls: TlsPolicy) -> Iterator[Violation]:
    if tls.server_name and not _SERVER_NAME.fullmatch(tls.server_name):
        yield Violation("tls.serverName", f"{tls.server_name!r} is no host name in lower case")
    if bool(tls.certificate_file) is not bool(tls.key_file):
        yield Violation("tls", "certificateFile and keyFile belong together")
    for key, path in (("caFile", tls.ca_file), ("certificateFile", tls.certificate_file), ("keyFile", tls.key_file)):
        if path and (not path.startswith("/") or len(path) > MAX_PATH or "\0" in path):
            yield Violation(f"tls.{key}", f"{path!r} is no absolute path")


# --- what all share ---------------------------------------------------------------------------------------------


def check_name(name: Name, at: str) -> Iterator[Violation]:
    """What is wrong with a name that stands at the path ``at``; nothing if both parts are DNS labels."""
    for part, value in (("namespace", name.namespace), ("name", name.name)):
        if not is_label(value):
            yield Violation(f"{at}.{part}", f"{value!r} {_LABEL_RULE}")


def _not_a_subset(name: str) -> str:
    return f"{name!r} is not a subset's name (letters, digits and inner '.', '_', '-', at most 63 characters)"


def _count(items: Sequence[object], at: str, low: int, high: int) -> Iterator[Violation]:
    if len(items) < low:
        yield Violation(at, f"must have at least {low} entr{'y' if low == 1 else 'ies'}")
    if len(items) > high:
        yield Violation(at, f"has {len(items)} entries, at most {high} are taken")


def _range(value: int, at: str, low: int, high: int) -> Iterator[Violation]:
    if not low <= value <= high:
        yield Violation(at, f"{value} is not within {low} to {high}")


def _seconds(value: float, at: str, high: float) -> Iterator[Violation]:
    """A time that is not zero. Milliseconds are the smallest that a document can write (GEP-2257)."""
    if isfinite(value) and round(value * 1000) / 1000 != value:
        yield Violation(at, f"{value!r} s is not a whole number of milliseconds")
    if not (isfinite(value) and 0 < value <= high):
        yield Violation(at, f"{value:g} s is not within 0 s (exclusive) to {high:g} s")
