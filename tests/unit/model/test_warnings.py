from dataclasses import replace

import pytest

from mesh.model.name import Name
from mesh.model.policy import ServicePolicy
from mesh.model.route import BackendRef, Parent, PathMatch, Retry, Route, RouteMatch, Rule
from mesh.model.snapshot import Kind
from mesh.model.warnings import table_warnings
from tests.support.control import REVIEWS, split

TO_REVIEWS = (BackendRef(REVIEWS),)


def route(*rules, name=REVIEWS):
    return Route(name, (Parent(REVIEWS),), rules)


def warnings(*values):
    return table_warnings(values, [(Kind.ROUTE, REVIEWS)])


def test_a_plain_split_gives_no_warning():
    assert warnings(split(v1=1, v2=0)) == []


@pytest.mark.parametrize(
    ("method", "words"), [(None, "POST and PATCH"), ("POST", "repeats POST too"), ("PATCH", "repeats PATCH too")]
)
def test_a_retry_stanza_that_repeats_unsafe_methods_is_told(method, words):
    (said,) = warnings(route(Rule((RouteMatch(method=method),), TO_REVIEWS, retry=Retry((503,), 2))))
    assert words in said


@pytest.mark.parametrize(
    ("method", "retry"), [("GET", Retry((503,), 2)), (None, Retry((503,), 0)), (None, Retry((), 2)), (None, None)]
)
def test_a_retry_that_repeats_no_unsafe_method_by_its_codes_is_not(method, retry):
    assert warnings(route(Rule((RouteMatch(method=method),), TO_REVIEWS, retry=retry))) == []


def test_rules_that_can_only_fail_are_told():
    assert "answers 500" in warnings(route(Rule()))[0]
    assert "answers 503" in warnings(split(v1=0, v2=0))[0]


def test_a_subset_that_the_policy_does_not_define_is_told():
    (said,) = warnings(split(v1=1, v3=1), ServicePolicy(REVIEWS, {"v1": {"version": "1"}, "v2": {"version": "2"}}))
    assert "subset v3 is not among those the ServicePolicy of reviews defines (v1, v2)" in said


def test_a_rule_behind_one_with_the_same_match_is_told():
    (said,) = warnings(route(Rule(backend_refs=TO_REVIEWS), Rule(name="late", backend_refs=TO_REVIEWS)))
    assert (
        said == "HTTPRoute/reviews rule late: never sees some requests, rule 0 has the same match and stands before it"
    )


def test_two_routes_with_the_same_match_are_told_with_the_one_that_wins():
    mine = replace(split(v1=1), created_unix_s=2.0)
    older = replace(split(name="other", v1=1), created_unix_s=1.0)
    (said,) = warnings(mine, older)
    assert "the older route, other, takes them" in said


def test_routes_of_other_paths_or_services_are_not_in_the_way():
    api = route(Rule((RouteMatch(PathMatch(value="/api")),), TO_REVIEWS), name=Name("default", "api"))
    assert warnings(split(v1=1), api, split(Name("default", "ratings"), v1=1)) == []


def test_only_what_changed_is_looked_at():
    assert table_warnings([split(v1=0)], []) == []
