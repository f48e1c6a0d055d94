"""Gateway API matching and precedence (HTTPRouteMatch, HTTPRouteRule), as a table."""

import time

import pytest

from mesh.http.grpc import GrpcCall
from mesh.http.headers import Fields
from mesh.http.message import RequestHead
from mesh.model.name import Name
from mesh.model.route import (
    BackendRef,
    MethodMatch,
    Parent,
    PathMatch,
    PathType,
    Route,
    RouteMatch,
    Rule,
    ValueMatch,
    ValueType,
)
from mesh.rules.explain import explain_match
from mesh.rules.match import Matcher, comparable_path

PAY = Name("default", "pay")


def request(target: str = "/", method: str = "GET", **headers: str) -> RequestHead:
    pairs = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    return RequestHead(method.encode(), target.encode(), b"pay", Fields(pairs))


def call(target: str, **headers: str) -> RequestHead:
    head = request(target, "POST", **headers)
    head.grpc = GrpcCall()
    return head


def grpc(service: str | None = None, method: str | None = None, kind: ValueType = ValueType.EXACT, **headers: str):
    conditions = tuple(ValueMatch(name.replace("_", "-"), value) for name, value in headers.items())
    return RouteMatch(headers=conditions, grpc=MethodMatch(service, method, kind))


def prefix(value: str) -> PathMatch:
    return PathMatch(PathType.PREFIX, value)


def exact(value: str) -> PathMatch:
    return PathMatch(PathType.EXACT, value)


def regex(value: str) -> PathMatch:
    return PathMatch(PathType.REGULAR_EXPRESSION, value)


def matcher(*matches: RouteMatch) -> Matcher[int]:
    """One rule for each match, in one route; its value is its position."""
    rules = tuple(Rule(matches=(m,), backend_refs=(BackendRef(PAY),)) for m in matches)
    route = Route(PAY, (Parent(PAY),), rules)
    return Matcher([(route, index, index) for index in range(len(rules))])


# Each row: a match, a request, and whether it is taken.
SINGLE = [
    (RouteMatch(), request("/any/thing?x"), True),
    (RouteMatch(prefix("/abc")), request("/abc"), True),
    (RouteMatch(prefix("/abc")), request("/abc/"), True),
    (RouteMatch(prefix("/abc")), request("/abc/d"), True),
    (RouteMatch(prefix("/abc")), request("/abc?d"), True),
    (RouteMatch(prefix("/abc")), request("/abcd"), False),
    (RouteMatch(prefix("/abc/")), request("/abc"), True),
    (RouteMatch(prefix("/abc/")), request("/abcd"), False),
    (RouteMatch(prefix("/ABC")), request("/abc"), False),
    (RouteMatch(prefix("/a")), request("/%61"), False),
    (RouteMatch(prefix("/a")), request("/b/../a/x"), True),
    (RouteMatch(prefix("/b")), request("/b/../a/x"), False),
    (RouteMatch(prefix("/a.b")), request("/axb"), False),
    (RouteMatch(exact("/abc")), request("/abc"), True),
    (RouteMatch(exact("/abc")), request("/abc/"), False),
    (RouteMatch(exact("/abc")), request("/abc?x=1"), True),
    (RouteMatch(regex("/v[0-9]+/.*")), request("/v12/x"), True),
    (RouteMatch(regex("/v[0-9]+")), request("/v12/x"), False),
    (RouteMatch(method="POST"), request(method="POST"), True),
    (RouteMatch(method="POST"), request(method="GET"), False),
    (RouteMatch(headers=(ValueMatch("x-a", "1"),)), request(x_a="1"), True),
    (RouteMatch(headers=(ValueMatch("x-a", "1"),)), request(x_a="2"), False),
    (RouteMatch(headers=(ValueMatch("x-a", "1"),)), request(), False),
    (RouteMatch(headers=(ValueMatch("x-a", "1"), ValueMatch("x-b", "2"))), request(x_a="1"), False),
    (RouteMatch(headers=(ValueMatch("x-a", "[0-9]+", ValueType.REGULAR_EXPRESSION),)), request(x_a="12"), True),
    (RouteMatch(headers=(ValueMatch("x-a", "[0-9]+", ValueType.REGULAR_EXPRESSION),)), request(x_a="12a"), False),
    (RouteMatch(query_params=(ValueMatch("q", "a b"),)), request("/?q=a+b"), True),
    (RouteMatch(query_params=(ValueMatch("q", "a b"),)), request("/?q=a%20b"), True),
    (RouteMatch(query_params=(ValueMatch("q", "1"),)), request("/?q=1&q=2"), True),
    (RouteMatch(query_params=(ValueMatch("q", "2"),)), request("/?q=1&q=2"), False),
    (RouteMatch(query_params=(ValueMatch("q", "1"),)), request("/?qq=1"), False),
]


@pytest.mark.parametrize(("match", "asked", "taken"), SINGLE)
def test_a_match_takes_what_it_says(match: RouteMatch, asked: RequestHead, *, taken: bool) -> None:
    rules = matcher(match)
    assert (rules.match(asked) == 0) is taken
    assert (explain_match(rules, asked)[0].reason is None) is taken


# (matches in the order of their rules, request, which rule takes it)
PRECEDENCE = [
    ((RouteMatch(prefix("/")), RouteMatch(exact("/a"))), request("/a"), 1),
    ((RouteMatch(regex("/a")), RouteMatch(exact("/a"))), request("/a"), 1),
    ((RouteMatch(prefix("/a")), RouteMatch(regex("/a"))), request("/a"), 1),
    ((RouteMatch(prefix("/a")), RouteMatch(prefix("/a/b"))), request("/a/b/c"), 1),
    ((RouteMatch(prefix("/a/b"), method="POST"), RouteMatch(prefix("/a"))), request("/a/b"), 1),
    ((RouteMatch(prefix("/a")), RouteMatch(prefix("/a"), method="GET")), request("/a"), 1),
    (
        (RouteMatch(method="GET"), RouteMatch(headers=(ValueMatch("x-a", "1"), ValueMatch("x-b", "1")))),
        request(x_a="1", x_b="1"),
        0,
    ),
    (
        (
            RouteMatch(headers=(ValueMatch("x-a", "1"),)),
            RouteMatch(headers=(ValueMatch("x-a", "1"), ValueMatch("x-b", "1"))),
        ),
        request(x_a="1", x_b="1"),
        1,
    ),
    ((RouteMatch(), RouteMatch(query_params=(ValueMatch("q", "1"),))), request("/?q=1"), 1),
    (
        (
            RouteMatch(query_params=(ValueMatch("q", "1"), ValueMatch("r", "1"))),
            RouteMatch(headers=(ValueMatch("x-a", "1"),)),
        ),
        request("/?q=1&r=1", x_a="1"),
        1,
    ),
    ((RouteMatch(prefix("/a")), RouteMatch(prefix("/a"))), request("/a"), 0),
]


@pytest.mark.parametrize(("matches", "asked", "winner"), PRECEDENCE)
def test_precedence(matches: tuple[RouteMatch, ...], asked: RequestHead, winner: int) -> None:
    rules = matcher(*matches)
    assert rules.match(asked) == winner
    assert [v.value for v in explain_match(rules, asked) if v.reason is None] == [winner]


def test_the_older_route_wins_then_the_smaller_name() -> None:
    def of(name: str, created: float) -> Route:
        return Route(Name("default", name), (Parent(PAY),), (Rule(),), created)

    old, new = of("z", 1.0), of("a", 2.0)
    assert Matcher([(new, 0, "new"), (old, 0, "old")]).match(request()) == "old"
    first, second = of("a", 1.0), of("b", 1.0)
    assert Matcher([(second, 0, "b"), (first, 0, "a")]).match(request()) == "a"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/../../a", "/a"),
        ("/a/..", "/"),
        ("/a/.", "/a/"),
        ("/a/.b", "/a/.b"),
        ("/a?/../b", "/a"),
    ],
)
def test_dot_segments_are_resolved_for_matching(target: str, path: str) -> None:
    assert comparable_path(target.encode()) == path.encode()


def test_a_pathological_pattern_and_path_do_not_stop_the_loop() -> None:
    rules = matcher(RouteMatch(regex("/(a*)*(a|aa)+b")))
    began = time.process_time()
    assert rules.match(request("/" + "a" * 8000)) is None
    assert time.process_time() - began < 1.0  # Python's own re would need longer than the universe has had


# --- GRPCRoute (GRPCMethodMatch, GRPCRouteRule) ---------------------------------------------------------------------

REGEX = ValueType.REGULAR_EXPRESSION
CALLS = [
    (grpc(), call("/shop.Cart/Add"), True),
    (grpc(), request("/shop.Cart/Add", "POST"), False),
    (RouteMatch(exact("/shop.Cart/Add")), call("/shop.Cart/Add"), True),  # an HTTPRoute takes calls too
    (grpc("shop.Cart"), call("/shop.Cart/Add"), True),
    (grpc("shop.Cart"), call("/shop.Cart2/Add"), False),
    (grpc("shop.cart"), call("/shop.Cart/Add"), False),
    (grpc(method="Add"), call("/shop.Cart/Add"), True),
    (grpc(method="Add"), call("/shop.Cart/add"), False),
    (grpc("shop.Cart", "Add"), call("/shop.Cart/Add"), True),
    (grpc("shop.Cart", "Add"), call("/shop.Cart/Remove"), False),
    (grpc("shop.*", kind=REGEX), call("/shop.Cart/Add"), True),
    (grpc("shop", kind=REGEX), call("/shop.Cart/Add"), False),
    (grpc("shop.*", "A[a-z]+", REGEX), call("/shop.Cart/Add"), True),
    (grpc("shop.Cart"), call("/Add"), False),
    (grpc(method="Add"), call("Add"), False),
    (grpc("shop.Cart", user="ada"), call("/shop.Cart/Add", user="ada"), True),
    (grpc("shop.Cart", user="ada"), call("/shop.Cart/Add"), False),
]


@pytest.mark.parametrize(("match", "head", "taken"), CALLS)
def test_a_call_is_taken_or_not(match: RouteMatch, head: RequestHead, taken: bool) -> None:  # noqa: FBT001 - a row
    found = matcher(match)
    assert (found.match(head) == 0) is taken
    (verdict,) = explain_match(found, head)
    assert (verdict.reason is None) is taken


CALL_PRECEDENCE = [  # the first wins
    (grpc("shop.Cart", "Add"), grpc("shop.Cart")),
    (grpc("shop.Cart"), grpc(method="Add")),
    (grpc("shop.Cart", "Add"), grpc("shop.*", "Add", REGEX)),
    (grpc("shop.Cart", user="ada"), grpc("shop.Cart")),
    (grpc(), RouteMatch(exact("/shop.Cart/Add"))),  # a GRPCRoute says more of a call than an HTTPRoute
    (grpc("shop.Car.", kind=REGEX), grpc("s.*", kind=REGEX)),
]


@pytest.mark.parametrize(("first", "second"), CALL_PRECEDENCE)
def test_of_two_that_take_a_call_the_more_specific_wins(first: RouteMatch, second: RouteMatch) -> None:
    head = call("/shop.Cart/Add", user="ada")
    assert matcher(first, second).match(head) == 0
    assert matcher(second, first).match(head) == 1
