from dataclasses import replace

import pytest

from control.errors import NotFoundError, PreconditionError
from control.weights import rules_on, set_weights
from mesh.model.errors import InvalidError
from mesh.model.name import Name
from mesh.model.route import BackendRef, Parent, PathMatch, Route, RouteKind, RouteMatch, Rule
from mesh.model.snapshot import make_snapshot
from mesh.model.wire import encode_resource
from tests.support.control import REVIEWS, split

RATINGS = Name("default", "ratings")


def table(*routes):
    return make_snapshot("e", 1, [encode_resource(route) for route in routes])


def rule(name=None, path="/", **weights):
    refs = tuple(BackendRef(REVIEWS, subset, weight) for subset, weight in weights.items())
    return Rule((RouteMatch(PathMatch(value=path)),), refs, name=name)


def route(*rules, name="reviews"):
    return Route(Name("default", name), (Parent(REVIEWS),), rules)


def weights_of(route, index=0):
    return {str(ref): ref.weight for ref in route.rules[index].backend_refs}


def refused(*args, **more):
    with pytest.raises(PreconditionError) as error:
        set_weights(*args, **more)
    return error.value


def test_the_one_rule_with_exactly_these_subsets_is_changed_and_nothing_else():
    before = route(rule("api", "/api", v1=5), rule("all", v1=90, v2=10))
    after = set_weights(table(before), REVIEWS, {"v2": 30, "v1": 70})
    assert weights_of(after, 1) == {"reviews:v1": 70, "reviews:v2": 30}
    assert after == replace(before, rules=(before.rules[0], after.rules[1]))


def test_a_service_without_a_route_gets_one_that_takes_everything():
    made = set_weights(table(), REVIEWS, {"v1": 90, "v2": 10})
    assert made == split(v1=90, v2=10)
    assert made.rules[0].matches == (RouteMatch(PathMatch(value="/")),)


def test_a_route_of_another_service_keeps_its_name():
    taken = Route(REVIEWS, (Parent(RATINGS),), (Rule(),))
    assert set_weights(table(taken), REVIEWS, {"v1": 1}).name == Name("default", "reviews-weights")
    both = table(taken, replace(taken, name=Name("default", "reviews-weights")))
    assert refused(both, REVIEWS, {"v1": 1}).reason == "NAME_TAKEN"


def test_several_such_rules_are_listed():
    snapshot = table(route(rule("api", "/api", v1=1, v2=1), rule(None, v1=9, v2=1)))
    error = refused(snapshot, REVIEWS, {"v1": 1, "v2": 1})
    assert error.reason == "SEVERAL_RULES"
    assert "reviews/api (v1=1 v2=1); reviews/1 (v1=9 v2=1)" in str(error)


@pytest.mark.parametrize("target", ["reviews/api", "reviews/0", "default/reviews/api"])
def test_a_rule_is_named_by_its_name_or_index(target):
    snapshot = table(route(rule("api", "/api", v1=1, v2=1), rule(None, v1=9, v2=1)))
    after = set_weights(snapshot, REVIEWS, {"v1": 3, "v2": 4}, target)
    assert weights_of(after, 0) == {"reviews:v1": 3, "reviews:v2": 4}
    assert weights_of(after, 1) == {"reviews:v1": 9, "reviews:v2": 1}


def test_routes_of_two_kinds_with_one_name_are_told_apart_by_their_kind():
    http = route(rule(v1=9, v2=1))
    snapshot = table(http, replace(route(Rule(backend_refs=http.rules[0].backend_refs)), kind=RouteKind.GRPC))
    error = refused(snapshot, REVIEWS, {"v1": 1, "v2": 1}, "reviews")
    assert "GRPCRoute/reviews/0 (v1=9 v2=1); reviews/0 (v1=9 v2=1)" in str(error)
    for target in ("grpcroute/reviews", "GRPCRoute/reviews/0", "GRPCRoute/default/reviews/0"):
        assert set_weights(snapshot, REVIEWS, {"v1": 1, "v2": 1}, target).kind is RouteKind.GRPC
    assert set_weights(snapshot, REVIEWS, {"v1": 1, "v2": 1}, "HTTPRoute/reviews").kind is RouteKind.HTTP
    with pytest.raises(NotFoundError, match="there is: GRPCRoute/reviews/0"):
        set_weights(snapshot, REVIEWS, {"v1": 1, "v2": 1}, "TCPRoute/reviews")


def test_a_rules_own_name_comes_before_an_index():
    snapshot = table(route(rule("1", v1=1), rule(None, "/x", v1=2)))
    assert weights_of(set_weights(snapshot, REVIEWS, {"v1": 7}, "reviews/1"), 0) == {"reviews:v1": 7}


def test_a_route_alone_names_its_one_rule_with_these_subsets():
    snapshot = table(route(rule(v1=1)), route(rule("x", v1=1), rule(None, "/y", v2=1), name="other"))
    assert set_weights(snapshot, REVIEWS, {"v1": 2}, "other").name.name == "other"


@pytest.mark.parametrize("target", ["nope", "reviews/9", "reviews/nope", "a/b/c/d", "shop/reviews"])
def test_a_target_that_is_not_there_is_told_with_what_is(target):
    with pytest.raises(NotFoundError, match=r"there is: reviews/0 \(v1=1\)"):
        set_weights(table(route(rule(v1=1))), REVIEWS, {"v1": 2}, target)


def test_other_subsets_than_a_rule_has_are_not_guessed():
    error = refused(table(route(rule(v1=100))), REVIEWS, {"v1": 90, "v2": 10})
    assert error.reason == "NO_SUCH_RULE"
    assert "--route" in str(error)


def test_a_named_rule_takes_a_new_subset():
    after = set_weights(table(route(rule(v1=100))), REVIEWS, {"v1": 90, "v2": 10}, "reviews/0")
    assert weights_of(after) == {"reviews:v1": 90, "reviews:v2": 10}


def test_a_named_rule_drops_a_subset_only_when_forced():
    snapshot = table(route(rule(v1=50, v2=30, v3=20)))
    error = refused(snapshot, REVIEWS, {"v1": 90, "v2": 10}, "reviews/0")
    assert (error.reason, error.details) == ("OTHER_BACKENDS", {"backends": "reviews:v3"})
    after = set_weights(snapshot, REVIEWS, {"v1": 90, "v2": 10}, "reviews/0", force=True)
    assert weights_of(after) == {"reviews:v1": 90, "reviews:v2": 10}


def test_a_backend_of_another_service_is_not_one_of_these_subsets():
    mixed = route(Rule(backend_refs=(BackendRef(REVIEWS, "v1"), BackendRef(RATINGS, "v2"))))
    assert refused(table(mixed), REVIEWS, {"v1": 1, "v2": 1}).reason == "NO_SUCH_RULE"


def test_a_backends_port_is_kept():
    before = route(Rule(backend_refs=(BackendRef(REVIEWS, "v1", 1, 8080),)))
    assert set_weights(table(before), REVIEWS, {"v1": 5}).rules[0].backend_refs[0] == BackendRef(REVIEWS, "v1", 5, 8080)


@pytest.mark.parametrize(
    ("service", "weights", "field"),
    [
        (REVIEWS, {}, "weights"),
        (REVIEWS, {"v 1": 1}, "weights[0].subset"),
        (REVIEWS, {"v1": 1, "v2": 1_000_001}, "weights[1].weight"),
        (Name("default", ""), {"v1": 1}, "service.name"),
    ],
)
def test_weights_that_cannot_be_are_refused_by_field(service, weights, field):
    with pytest.raises(InvalidError) as error:
        set_weights(table(), service, weights)
    assert [v.field for v in error.value.violations] == [field]


def test_rules_are_listed_in_order():
    snapshot = table(route(rule("a", v1=1), rule(None, v2=1)), split(RATINGS, v9=1))
    assert [str(r) for r in rules_on(snapshot, REVIEWS)] == ["reviews/a (v1=1)", "reviews/1 (v2=1)"]
    assert len(list(rules_on(snapshot))) == 3
