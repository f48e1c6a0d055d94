from dataclasses import replace

import pytest

from mesh.model.errors import InvalidError
from mesh.model.name import Name
from mesh.model.policy import Limits, OutlierDetection, RetryBudgetPolicy, ServicePolicy
from mesh.model.route import (
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
from mesh.model.validate import check, check_table, is_subset_name, validate_table
from tests.support.control import REVIEWS, split


def route(**rule):
    return Route(REVIEWS, (Parent(REVIEWS),), (Rule(**rule),))


def matching(**match):
    return route(matches=(RouteMatch(**match),))


def exact(path):
    return matching(path=PathMatch(PathType.EXACT, path))


def header(name="x", value="1", type_=ValueType.EXACT):
    return matching(headers=(ValueMatch(name, value, type_),))


SOUND = [
    split(v1=90, v2=10),
    split(v1=0),
    route(),  # no backends: answers 500, and is sound
    exact("/a/b%2Ec;x=1"),
    header("x-canary", "a b\té"),
    matching(path=PathMatch(PathType.REGULAR_EXPRESSION, "/a|b//c"), method="PATCH"),
    matching(query_params=(ValueMatch("A", " x "), ValueMatch("a", "y"))),
    route(timeouts=Timeouts(1.0, 1.0), retry=Retry((), 0, 0.0)),
    route(name="a.b-c"),
    route(backend_refs=(BackendRef(Name("other", "x"), "1.2.0-rc1", 1_000_000, 80),)),
    ServicePolicy(REVIEWS, {"v2": {"version": "v2"}}),
    ServicePolicy(REVIEWS, outlier_detection=OutlierDetection(0, 0.001, 0, 0), retry_budget=RetryBudgetPolicy(0, 0)),
]

UNSOUND = [
    (Route(Name("default", "A"), (Parent(REVIEWS),), (Rule(),)), "metadata.name"),
    (Route(Name("", "a"), (Parent(REVIEWS),), (Rule(),)), "metadata.namespace"),
    (Route(REVIEWS, (), (Rule(),)), "parentRefs"),
    (Route(REVIEWS, (Parent(REVIEWS),), ()), "rules"),
    (Route(REVIEWS, (Parent(REVIEWS),), (Rule(),) * 17), "rules"),
    (Route(REVIEWS, (Parent(REVIEWS), Parent(REVIEWS)), (Rule(),)), "parentRefs[1]"),
    (Route(REVIEWS, (Parent(REVIEWS, 0),), (Rule(),)), "parentRefs[0].port"),
    (Route(REVIEWS, (Parent(Name("shop", "reviews")),), (Rule(),)), "parentRefs[0].namespace"),
    (Route(REVIEWS, (Parent(REVIEWS),), (Rule(name="a"), Rule(name="a"))), "rules[0].name"),
    (Route(REVIEWS, (Parent(REVIEWS),), (Rule((RouteMatch(),) * 43),) * 3), "rules"),
    (route(name="No Good"), "rules[0].name"),
    (route(matches=()), "rules[0].matches"),
    (route(matches=(RouteMatch(),) * 65), "rules[0].matches"),
    (route(backend_refs=(BackendRef(REVIEWS),) * 17), "rules[0].backendRefs"),
    (route(backend_refs=(BackendRef(REVIEWS, weight=-1),)), "rules[0].backendRefs[0].weight"),
    (
        route(backend_refs=(BackendRef(REVIEWS), BackendRef(REVIEWS, weight=1_000_001))),
        "rules[0].backendRefs[1].weight",
    ),
    (route(backend_refs=(BackendRef(REVIEWS, port=65_536),)), "rules[0].backendRefs[0].port"),
    (route(backend_refs=(BackendRef(Name("default", "a_b")),)), "rules[0].backendRefs[0].name"),
    (route(backend_refs=(BackendRef(REVIEWS, "-v"),)), "rules[0].backendRefs[0].filters[0].extensionRef.name"),
    (exact("a"), "rules[0].matches[0].path.value"),
    (exact("/a//b"), "rules[0].matches[0].path.value"),
    (exact("/a/../b"), "rules[0].matches[0].path.value"),
    (exact("/a/.."), "rules[0].matches[0].path.value"),
    (exact("/a%2Fb"), "rules[0].matches[0].path.value"),
    (exact("/a#b"), "rules[0].matches[0].path.value"),
    (exact("/a b"), "rules[0].matches[0].path.value"),
    (exact("/%zz"), "rules[0].matches[0].path.value"),
    (exact("/" + "a" * 1024), "rules[0].matches[0].path.value"),
    (matching(path=PathMatch(PathType.REGULAR_EXPRESSION, "(?!a)")), "rules[0].matches[0].path.value"),
    (matching(method="get"), "rules[0].matches[0].method"),
    (header("X-A"), "rules[0].matches[0].headers[0].name"),
    (header("a b"), "rules[0].matches[0].headers[0].name"),
    (header(""), "rules[0].matches[0].headers[0].name"),
    (header("a", ""), "rules[0].matches[0].headers[0].value"),
    (header("a", "x\r\ny"), "rules[0].matches[0].headers[0].value"),
    (header("a", " x"), "rules[0].matches[0].headers[0].value"),
    (header("a", "(", ValueType.REGULAR_EXPRESSION), "rules[0].matches[0].headers[0].value"),
    (matching(headers=(ValueMatch("a", "1"), ValueMatch("a", "2"))), "rules[0].matches[0].headers[0].name"),
    (matching(headers=tuple(ValueMatch(f"h{i}", "1") for i in range(17))), "rules[0].matches[0].headers"),
    (matching(query_params=(ValueMatch("a", "x" * 1025),)), "rules[0].matches[0].queryParams[0].value"),
    (route(timeouts=Timeouts(0.0)), "rules[0].timeouts.request"),
    (route(timeouts=Timeouts(float("inf"))), "rules[0].timeouts.request"),
    (route(timeouts=Timeouts(0.0005)), "rules[0].timeouts.request"),
    (route(timeouts=Timeouts(1.0, 2.0)), "rules[0].timeouts.backendRequest"),
    (route(retry=Retry((399,))), "rules[0].retry.codes[0]"),
    (route(retry=Retry((500, 600))), "rules[0].retry.codes[1]"),
    (route(retry=Retry((500, 500))), "rules[0].retry.codes[1]"),
    (route(retry=Retry((500,), 11)), "rules[0].retry.attempts"),
    (route(retry=Retry((500,), 1, -1.0)), "rules[0].retry.backoff"),
    (ServicePolicy(Name("default", "-")), "metadata.name"),
    (ServicePolicy(REVIEWS, {"a b": {"v": "1"}}), "subsets[a b]"),
    (ServicePolicy(REVIEWS, {"a": {}}), "subsets[a].metadata"),
    (ServicePolicy(REVIEWS, {"a": {"": "1"}}), "subsets[a].metadata"),
    (ServicePolicy(REVIEWS, {"a": {"k": "x" * 513}}), "subsets[a].metadata.k"),
    (ServicePolicy(REVIEWS, {f"s{i}": {"k": "v"} for i in range(65)}), "subsets"),
    (ServicePolicy(REVIEWS, outlier_detection=OutlierDetection(-1)), "outlierDetection.consecutiveFailures"),
    (ServicePolicy(REVIEWS, outlier_detection=OutlierDetection(5, 0)), "outlierDetection.baseEjection"),
    (ServicePolicy(REVIEWS, outlier_detection=OutlierDetection(5, 1, 101)), "outlierDetection.maxEjectionPercent"),
    (ServicePolicy(REVIEWS, outlier_detection=OutlierDetection(5, 1, 1, -1)), "outlierDetection.panicPercent"),
    (ServicePolicy(REVIEWS, limits=Limits(0)), "limits.maxConnections"),
    (ServicePolicy(REVIEWS, limits=Limits(1, 0)), "limits.maxPendingRequests"),
    (ServicePolicy(REVIEWS, limits=Limits(1, 1, 0)), "limits.maxRequests"),
    (ServicePolicy(REVIEWS, retry_budget=RetryBudgetPolicy(101)), "retryBudget.percent"),
    (ServicePolicy(REVIEWS, retry_budget=RetryBudgetPolicy(1, -1)), "retryBudget.minPerSecond"),
    (ServicePolicy(REVIEWS, connect_timeout_s=61), "connectTimeout"),
    (ServicePolicy(REVIEWS, connect_timeout_s=float("nan")), "connectTimeout"),
]


@pytest.mark.parametrize("value", SOUND)
def test_what_is_sound_is_taken(value):
    assert check(value) == []


@pytest.mark.parametrize(("value", "field"), UNSOUND)
def test_what_is_wrong_is_named_by_its_path(value, field):
    assert field in [violation.field for violation in check(value)]


def test_everything_wrong_stands_in_one_report():
    bad = replace(route(timeouts=Timeouts(1, 2), backend_refs=(BackendRef(REVIEWS, weight=-1),)), name=Name("x", "Y"))
    with pytest.raises(InvalidError) as refused:
        validate_table([bad, ServicePolicy(REVIEWS, connect_timeout_s=0)])
    assert str(refused.value).splitlines() == [
        "HTTPRoute/x/Y.metadata.name: 'Y' is not a DNS label (a-z, 0-9 and inner '-', at most 63 characters)",
        (
            "HTTPRoute/x/Y.parentRefs[0].namespace: is 'default', the route's is 'x': routes for the clients of one "
            "namespace (consumer routes) are not built; put the route into the namespace of the service"
        ),
        "HTTPRoute/x/Y.rules[0].backendRefs[0].weight: -1 is not within 0 to 1000000",
        "HTTPRoute/x/Y.rules[0].timeouts.backendRequest: 2 s is longer than request, 1 s",
        "ServicePolicy/reviews.connectTimeout: 0 s is not within 0 s (exclusive) to 60 s",
    ]


def test_a_name_that_stands_there_three_times_is_told_once():
    problems = check_table([split(v1=1)] * 3)
    assert [(p.field, p.message) for p in problems] == [("HTTPRoute/reviews", "is there more than once")]


def test_a_route_and_a_policy_may_share_a_name():
    assert check_table([split(v1=1), ServicePolicy(REVIEWS)]) == []


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("v2", True), ("1.2.0_a-b", True), ("a" * 63, True), ("a" * 64, False), ("", False), ("v=1", False)],
)
def test_subset_names(name, is_one):
    assert is_subset_name(name) is is_one
