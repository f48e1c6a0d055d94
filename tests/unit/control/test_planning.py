from dataclasses import replace

import pytest

from control import planning
from control.errors import NotFoundError
from control.planning import plan_apply, plan_delete, plan_rollback
from control.store.base import Action, Change
from mesh.model.errors import InvalidError
from mesh.model.policy import ServicePolicy
from mesh.model.snapshot import Kind, make_snapshot
from tests.support.control import REVIEWS, split

EMPTY = make_snapshot("e", 1, ())
NOW = 1_700_000_000.0


def applied(*values, on=EMPTY, now=NOW):
    return plan_apply(on, values, now).snapshot


def actions(plan):
    return {(change.kind, change.name.name): change.action for change in plan.changes}


def test_an_apply_makes_the_next_version_of_the_same_epoch():
    plan = plan_apply(EMPTY, [split(v1=1)], NOW)
    assert (plan.snapshot.id.epoch, plan.snapshot.id.version) == ("e", 2)
    assert plan.changes == (Change(Kind.ROUTE, REVIEWS, Action.CREATED),)
    assert EMPTY.resources == ()


def test_a_route_keeps_the_time_of_its_first_apply():
    first = applied(replace(split(v1=1), created_unix_s=5.0))
    assert first.routes[0].created_unix_s == NOW
    again = applied(split(v1=2), on=first, now=NOW + 100)
    assert again.routes[0].created_unix_s == NOW


def test_what_is_already_so_is_unchanged():
    plan = plan_apply(applied(split(v1=1)), [split(v1=1), ServicePolicy(REVIEWS)], NOW + 1)
    assert actions(plan) == {
        (Kind.ROUTE, "reviews"): Action.UNCHANGED,
        (Kind.SERVICE_POLICY, "reviews"): Action.CREATED,
    }
    assert [change.action for change in plan.effective] == [Action.CREATED]


def test_the_whole_table_is_checked_and_nothing_made_of_a_bad_one():
    with pytest.raises(InvalidError, match=r"HTTPRoute/bad\.rules\[0\]\.backendRefs\[0\]\.weight"):
        plan_apply(EMPTY, [split(v1=1), split(name="bad", v1=-1)], NOW)


def test_one_request_cannot_say_two_things_of_a_resource():
    with pytest.raises(InvalidError, match="more than once"):
        plan_apply(EMPTY, [split(v1=1), split(v1=2)], NOW)


def test_a_table_that_every_sidecar_would_choke_on_is_refused(monkeypatch):
    monkeypatch.setattr(planning, "MAX_TABLE_BYTES", 100)
    with pytest.raises(InvalidError, match="at most 100"):
        plan_apply(EMPTY, [split(name=f"r{i}", v1=1) for i in range(5)], NOW)


def test_a_delete_takes_one_resource_out():
    table = applied(split(v1=1), ServicePolicy(REVIEWS))
    plan = plan_delete(table, Kind.ROUTE, REVIEWS)
    assert plan.snapshot.routes == ()
    assert plan.snapshot.policies == (ServicePolicy(REVIEWS),)
    assert plan.changes == (Change(Kind.ROUTE, REVIEWS, Action.DELETED),)


def test_what_is_not_there_cannot_be_deleted():
    with pytest.raises(NotFoundError, match="no HTTPRoute reviews"):
        plan_delete(EMPTY, Kind.ROUTE, REVIEWS)


def test_a_rollback_gives_back_the_earlier_table_byte_for_byte():
    one = applied(split(v1=1))
    two = applied(split(v1=2), split(name="more", v1=1), on=one)
    three = plan_delete(two, Kind.ROUTE, REVIEWS).snapshot
    plan = plan_rollback(three, one)
    assert plan.snapshot.id.version == 5
    assert plan.snapshot.id.digest == one.id.digest
    assert actions(plan) == {(Kind.ROUTE, "reviews"): Action.CREATED, (Kind.ROUTE, "more"): Action.DELETED}


def test_a_rollback_to_the_same_table_changes_nothing():
    one = applied(split(v1=1))
    assert plan_rollback(one, one).effective == ()


def test_warnings_come_with_the_plan():
    assert "answers 503" in plan_apply(EMPTY, [split(v1=0)], NOW).warnings[0]
