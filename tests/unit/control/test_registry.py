import pytest

from control.registry import (
    EXPIRE_EVERY_S,
    MAX_INSTANCES,
    MIN_LEASE_S,
    TOMBSTONE_S,
    FullError,
    Registry,
    UnknownInstanceError,
)
from mesh.model.errors import InvalidError
from mesh.model.name import Name
from mesh.model.service import Endpoint, Health, Instance
from tests.support.control import REVIEWS

START = 1000.0
LEASE_S = 10.0


def instance(id_="r1", **more):
    return Instance(REVIEWS, Endpoint(id_, "127.0.0.1", 8080, **more))


@pytest.fixture
def registry():
    return Registry("epoch", START, LEASE_S)


def ids(registry, now=START):
    state = registry.state(REVIEWS, now)
    return [endpoint.id for endpoint in state.endpoints] if state else None


def tick(registry, until, start=START):
    """Call expire in its rhythm until ``until``; the services that changed."""
    changed, now = set(), start
    while now < until:
        now += EXPIRE_EVERY_S
        changed |= registry.expire(now)
    return changed


def test_a_service_nobody_registered_is_unknown(registry):
    assert registry.state(REVIEWS, START) is None
    assert list(registry.services()) == []


def test_an_instance_is_in_until_its_lease_ends(registry):
    assert registry.register(instance(), START) == LEASE_S
    assert ids(registry) == ["r1"]
    assert tick(registry, START + 9.5) == set()
    assert tick(registry, START + 10, START + 9.5) == {REVIEWS}
    assert ids(registry) == []  # known, and empty


def test_a_renewed_lease_goes_on(registry):
    registry.register(instance(), START)
    tick(registry, START + 8)
    assert registry.renew(REVIEWS, "r1", Health.PASSING, START + 8) == LEASE_S
    assert tick(registry, START + 17.5, START + 8) == set()
    assert ids(registry) == ["r1"]


def test_a_lease_is_as_asked_within_bounds(registry):
    assert registry.register(instance(), START, 3.0) == 3.0
    assert registry.register(instance(), START, 0.01) == MIN_LEASE_S
    assert registry.register(instance(), START, 3600) == LEASE_S


def test_no_lease_ends_before_a_full_one_has_passed_since_the_start(registry):
    # What is missing after a restart may only be about to return.
    registry.register(instance(), START, 2.0)
    assert tick(registry, START + 9.5) == set()
    assert not registry.is_settled(START + 9.5)
    assert not registry.state(REVIEWS, START + 9.5).is_settled
    assert tick(registry, START + 10, START + 9.5) == {REVIEWS}
    assert registry.state(REVIEWS, START + 10).is_settled


def test_our_own_standstill_costs_nobody_the_lease(registry):
    registry.register(instance(), START)
    tick(registry, START + 5)
    # The machine was suspended for an hour; the sidecars renew right after.
    assert registry.expire(START + 3600) == set()
    assert ids(registry) == ["r1"]
    assert tick(registry, START + 3606, START + 3600) == {REVIEWS}


def test_a_standstill_within_the_first_lease_puts_settling_off(registry):
    registry.expire(START + 100)
    assert not registry.is_settled(START + 100)
    assert registry.is_settled(START + 110)


def test_a_renewal_carries_the_programs_state(registry):
    registry.register(instance(), START)
    before = registry.revision(REVIEWS)
    registry.renew(REVIEWS, "r1", Health.PASSING, START)
    assert registry.revision(REVIEWS) == before
    registry.renew(REVIEWS, "r1", Health.CRITICAL, START)
    assert registry.revision(REVIEWS) == before + 1
    assert registry.state(REVIEWS, START).endpoints[0].health is Health.CRITICAL


@pytest.mark.parametrize("id_", ["r1", "other"])
def test_an_unknown_instance_has_to_register_again(registry, id_):
    if id_ == "other":
        registry.register(instance(), START)
    with pytest.raises(UnknownInstanceError):
        registry.renew(REVIEWS, id_, Health.PASSING, START)


def test_registering_again_changes_nothing_unless_something_differs(registry):
    registry.register(instance(), START)
    registry.register(instance(), START + 1)
    assert registry.revision(REVIEWS) == 1
    registry.register(instance(metadata={"version": "v2"}), START + 2)
    assert registry.revision(REVIEWS) == 2
    assert len(registry) == 1


def test_a_deregistered_instance_is_told_as_leaving_for_a_while(registry):
    registry.register(instance(), START)
    assert registry.deregister(REVIEWS, "r1", START)
    (endpoint,) = registry.state(REVIEWS, START).endpoints
    assert endpoint.health is Health.LEAVING
    assert len(registry) == 0
    assert not registry.deregister(REVIEWS, "r1", START)
    with pytest.raises(UnknownInstanceError):
        registry.renew(REVIEWS, "r1", Health.PASSING, START)
    tick(registry, START + TOMBSTONE_S)
    assert ids(registry) == []


def test_an_instance_that_comes_back_from_leaving_is_in_again(registry):
    registry.register(instance(), START)
    registry.deregister(REVIEWS, "r1", START)
    registry.register(instance(), START)
    assert registry.state(REVIEWS, START).endpoints[0].health is Health.PASSING
    assert len(registry) == 1


def test_nobody_is_deregistered_by_an_unknown_id(registry):
    assert not registry.deregister(REVIEWS, "r1", START)
    assert registry.state(REVIEWS, START) is None


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (Instance(Name("default", "No"), Endpoint("i", "a", 1)), "service.name"),
        (Instance(REVIEWS, Endpoint("", "a", 1)), "endpoint.id"),
        (Instance(REVIEWS, Endpoint("i", "", 1)), "endpoint.address"),
        (Instance(REVIEWS, Endpoint("i", "a\n", 1)), "endpoint.address"),
        (Instance(REVIEWS, Endpoint("i", "a", 0)), "endpoint.port"),
        (Instance(REVIEWS, Endpoint("i", "a", 1, {"k" * 200: ""})), "endpoint.metadata." + "k" * 128),
        (Instance(REVIEWS, Endpoint("i", "a", 1, {str(i): "" for i in range(65)})), "endpoint.metadata"),
        (Instance(REVIEWS, Endpoint("i", "a", 1, tags=("x",) * 65)), "endpoint.tags"),
    ],
)
def test_what_cannot_be_an_endpoint_is_refused_by_field(registry, bad, field):
    with pytest.raises(InvalidError) as refused:
        registry.register(bad, START)
    assert [v.field for v in refused.value.violations] == [field]
    assert registry.state(bad.service, START) is None


def test_a_flood_of_registrations_is_bounded(registry):
    for i in range(MAX_INSTANCES):
        registry.register(instance(f"i{i}"), START)
    with pytest.raises(FullError):
        registry.register(instance("one-more"), START)
    registry.register(instance("i0"), START)  # those that are in stay in
    tick(registry, START + 11)
    registry.register(instance("one-more"), START + 11)
