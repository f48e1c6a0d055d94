"""Which rule takes a request: the Gateway API's matching and precedence, compiled once per table.

Precedence over all rules of all routes of a service (Gateway API, HTTPRouteMatch): Exact path, then regular
expression (its place is ours to choose: it is more deliberate than a prefix), then the longest prefix; then a
match with a method, then more headers, then more query parameters, then the older route, then the smaller
namespace/name, then the earlier rule and match. A gRPC call is first held against the matches of GRPCRoutes: exact
names, then regular expressions; then the longer service, the longer method, more headers, and so on as above.

Paths are compared as sent, undecoded; dot segments are resolved for the comparison only (RFC 3986 §5.2.4).
What each choice misses: ``/%61`` does not match ``/a``. A service with routes of which none matches takes nothing:
the request is refused, not passed through.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

from mesh.http.message import RequestHead
from mesh.model.regex import compile_regex
from mesh.model.route import MethodMatch, PathMatch, PathType, Route, RouteMatch, ValueMatch, ValueType

T = TypeVar("T")

Condition = Callable[[RequestHead], bool]


class Candidate(Generic[T]):
    """One match of one rule, ready to be tried. ``conditions`` are all but the path."""

    __slots__ = ("conditions", "match", "order", "path_matches", "route", "rule_index", "value")

    def __init__(
        self,
        origin: tuple[Route, int, RouteMatch],
        value: T,
        conditions: tuple[Condition, ...],
        path_matches: Callable[[bytes], bool],
        order: tuple[object, ...],
    ) -> None:
        """``origin``: whose match it is, of its rule of which index; ``order`` is that of precedence."""
        self.route, self.rule_index, self.match = origin
        self.value = value
        self.conditions = conditions
        self.path_matches = path_matches
        self.order = order

    @property
    def takes_everything(self) -> bool:
        """There is no HTTP request it does not take."""
        match = self.match
        return match.grpc is None and match.path == PathMatch() and not self.conditions

    def refusal(self, request: RequestHead, path: bytes) -> str | None:
        """Why this candidate does not take the request, in words; None where it does."""
        called = self.match.grpc
        if called is not None:
            if request.grpc is None:
                return "is no gRPC call (HTTP/2 with content-type application/grpc)"
            if not self.path_matches(path):
                return f"call is not {called.type.value} {called.service or '*'}/{called.method or '*'}"
        elif not self.path_matches(path):
            return f"path is not {self.match.path.type.value} {self.match.path.value}"
        if self.match.method is not None and request.method != self.match.method.encode():
            return f"method is not {self.match.method}"
        for kind, wanted, actual in (
            *(("header", h, _header(request, h.name)) for h in self.match.headers),
            *(("query parameter", q, _query_value(request.target, q.name)) for q in self.match.query_params),
        ):
            if not _value_test(wanted)(actual):
                said = "absent" if actual is None else f"{actual.decode('latin-1')!r}"
                return f"{kind} {wanted.name} is {said}, not {wanted.type.value} {wanted.value!r}"
        return None


class Matcher(Generic[T]):
    """All candidates of one service, in order of precedence. ``match`` is on the request path."""

    __slots__ = (
        "_by_exact_call",
        "_by_exact_path",
        "_calls",
        "_catch_all",
        "_prefix_groups",
        "_prefix_pattern",
        "_regexes",
        "candidates",
    )

    def __init__(self, rules: Iterable[tuple[Route, int, T]]) -> None:
        """``rules``: (route, index of one of its rules, what to return when that rule takes a request)."""
        self.candidates: list[Candidate[T]] = sorted(
            (_candidate(route, index, number, match, value) for route, index, value in rules
             for number, match in enumerate(route.rules[index].matches)),
            key=lambda c: c.order,
        )  # fmt: skip
        self._by_exact_path: dict[bytes, list[Candidate[T]]] = {}
        self._regexes: list[Candidate[T]] = []
        self._by_exact_call: dict[bytes, list[Candidate[T]]] = {}
        self._calls: list[Candidate[T]] = []
        prefixes: dict[bytes, list[Candidate[T]]] = {}
        for candidate in self.candidates:
            path, call = candidate.match.path, candidate.match.grpc
            if call is not None:
                if call.service is not None and call.method is not None and call.type is ValueType.EXACT:
                    self._by_exact_call.setdefault(f"/{call.service}/{call.method}".encode(), []).append(candidate)
                else:
                    self._calls.append(candidate)
            elif path.type is PathType.EXACT:
                self._by_exact_path.setdefault(path.value.encode(), []).append(candidate)
            elif path.type is PathType.REGULAR_EXPRESSION:
                self._regexes.append(candidate)
            else:
                prefixes.setdefault(_trimmed(path.value), []).append(candidate)
        # Longest first, so that the alternation finds the longest prefix; only literals, so it cannot backtrack.
        ordered = sorted(prefixes.items(), key=lambda item: (-len(item[0]), item[0]))
        self._prefix_groups = [candidates for _, candidates in ordered]
        self._prefix_pattern = re.compile(b"|".join(b"(%b)(?=/|$)" % re.escape(p) for p, _ in ordered) or b"(?!)")
        only = self.candidates[0] if len(self.candidates) == 1 else None
        self._catch_all = only if only and only.takes_everything else None

    def match(self, request: RequestHead) -> T | None:
        """The value of the rule that takes ``request``; None where no rule does."""
        if self._catch_all is not None:
            return self._catch_all.value
        path = comparable_path(request.target)
        if request.grpc is not None:
            call = _first(self._by_exact_call.get(path, ()), request) or self._first_call(path, request)
            if call is not None:
                return call.value
        if self._by_exact_path:
            found = _first(self._by_exact_path.get(path, ()), request)
            if found is not None:
                return found.value
        for candidate in self._regexes:
            if candidate.path_matches(path) and all(test(request) for test in candidate.conditions):
                return candidate.value
        hit = self._prefix_pattern.match(path)
        if hit is None or hit.lastindex is None:
            return None
        group = self._prefix_groups[hit.lastindex - 1]
        first = group[0]
        if not first.conditions:
            return first.value
        found = _first(group, request)
        if found is None:
            # Shorter prefixes come after all matches of the longest one; rare, so the plain order is good enough.
            for group in self._prefix_groups[hit.lastindex :]:
                if group[0].path_matches(path):
                    found = _first(group, request)
                    if found is not None:
                        break
        return None if found is None else found.value

    def _first_call(self, path: bytes, request: RequestHead) -> Candidate[T] | None:
        for candidate in self._calls:
            if candidate.path_matches(path) and all(test(request) for test in candidate.conditions):
                return candidate
        return None


def comparable_path(target: bytes) -> bytes:
    """The path of ``target`` without its query, dot segments resolved."""
    path = target.partition(b"?")[0]
    return _without_dot_segments(path) if path.find(b"/.") >= 0 else path


def _without_dot_segments(path: bytes) -> bytes:
    """RFC 3986 §5.2.4 for a path that starts with a slash."""
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)


def _first(candidates: Sequence[Candidate[T]], request: RequestHead) -> Candidate[T] | None:
    for candidate in candidates:
        for test in candidate.conditions:
            if not test(request):
                break
        else:
            return candidate
    return None


def _trimmed(prefix: str) -> bytes:
    """``/abc/`` and ``/abc`` are one prefix; ``/`` is the empty one, before any element (Gateway API)."""
    return prefix.rstrip("/").encode()


def _candidate(route: Route, index: int, number: int, match: RouteMatch, value: T) -> Candidate[T]:
    conditions: list[Condition] = []
    if match.method is not None:
        conditions.append(_method_condition(match.method.encode()))
    conditions.extend(_header_condition(h) for h in match.headers)
    conditions.extend(_query_condition(q) for q in match.query_params)
    path, call = match.path, match.grpc
    origin = (route.created_unix_s, route.name.namespace, route.name.name, index, number)
    if call is not None:
        lengths = (-len(call.service or ""), -len(call.method or ""))
        order: tuple[object, ...] = (-1, call.type is not ValueType.EXACT, *lengths, -len(match.headers), *origin)
        return Candidate((route, index, match), value, tuple(conditions), _call_test(call), order)
    kinds = {PathType.EXACT: 0, PathType.REGULAR_EXPRESSION: 1, PathType.PREFIX: 2}
    order = (
        kinds[path.type],
        -len(_trimmed(path.value)) if path.type is PathType.PREFIX else 0,
        match.method is None,
        -len(match.headers),
        -len(match.query_params),
        *origin,
    )
    return Candidate((route, index, match), value, tuple(conditions), _path_test(match), order)


def _call_test(call: MethodMatch) -> Callable[[bytes], bool]:
    """Both parts of ``/package.Service/Method``."""
    service, method = _name_test(call.service, call.type), _name_test(call.method, call.type)

    def matches(path: bytes) -> bool:
        before, slash, name = path[1:].rpartition(b"/")
        return bool(slash) and service(before) and method(name)

    return (lambda _: True) if call.service is call.method is None else matches


def _name_test(wanted: str | None, kind: ValueType) -> Callable[[bytes], bool]:
    if wanted is None:
        return lambda _: True
    if kind is ValueType.REGULAR_EXPRESSION:
        return compile_regex(wanted).fullmatch
    exact = wanted.encode()
    return lambda actual: actual == exact


def _path_test(match: RouteMatch) -> Callable[[bytes], bool]:
    path = match.path
    if path.type is PathType.EXACT:
        exact = path.value.encode()
        return lambda actual: actual == exact
    if path.type is PathType.REGULAR_EXPRESSION:
        pattern = compile_regex(path.value)
        return pattern.fullmatch
    prefix = _trimmed(path.value)
    return lambda actual: actual.startswith(prefix) and actual[len(prefix) : len(prefix) + 1] in (b"", b"/")


def _value_test(wanted: ValueMatch) -> Callable[[bytes | None], bool]:
    if wanted.type is ValueType.EXACT:
        exact = wanted.value.encode()
        return lambda actual: actual == exact
    pattern = compile_regex(wanted.value)
    return lambda actual: actual is not None and pattern.fullmatch(actual)


def _method_condition(method: bytes) -> Condition:
    return lambda request: request.method == method


def _header(request: RequestHead, name: str) -> bytes | None:
    return request.authority if name == "host" else request.header(name.encode())


def _header_condition(wanted: ValueMatch) -> Condition:
    test, name = _value_test(wanted), wanted.name
    return lambda request: test(_header(request, name))


def _query_condition(wanted: ValueMatch) -> Condition:
    test, name = _value_test(wanted), wanted.name
    return lambda request: test(_query_value(request.target, name))


def _query_value(target: bytes, name: str) -> bytes | None:
    """The first value of the query parameter ``name``, percent-decoded, "+" as a space (WHATWG URL, form decoding)."""
    wanted = name.encode()
    for pair in target.partition(b"?")[2].split(b"&"):
        key, _, value = pair.partition(b"=")
        if unquote_to_bytes(key.replace(b"+", b" ")) == wanted:
            return unquote_to_bytes(value.replace(b"+", b" "))
    return None
