import pytest

from control.subscription import (
    MAX_ENDPOINT_IDS,
    MAX_WATCHED_SERVICES,
    RECONNECT_GRACE_S,
    ProtocolError,
    SidecarInfo,
    State,
    Subscription,
)
from mesh.model.name import Name
from mesh.model.snapshot import NO_SNAPSHOT, SnapshotId
from tests.support.control import REVIEWS

ONE, TWO = SnapshotId("e", 1, "a"), SnapshotId("e", 2, "b")


@pytest.fixture
def sidecar():
    return Subscription(SidecarInfo("node"))


def test_an_ack_makes_what_was_sent_what_runs(sidecar):
    sidecar.pushed(ONE, "n1", 10)
    assert (sidecar.state, sidecar.running, sidecar.since) == (State.PENDING, NO_SNAPSHOT, 10)
    assert sidecar.acked("n1", 11)
    assert (sidecar.state, sidecar.running, sidecar.since) == (State.ACKED, ONE, 11)


def test_a_nack_leaves_the_sidecar_on_its_last_good_version(sidecar):
    sidecar.pushed(ONE, "n1", 10)
    sidecar.acked("n1", 11)
    sidecar.pushed(TWO, "n2", 12)
    assert sidecar.nacked("n2", "bad regex", ONE, 13)
    assert (sidecar.state, sidecar.running, sidecar.reason) == (State.NACKED, ONE, "bad regex")


def test_a_nack_without_a_reason_still_says_something(sidecar):
    sidecar.pushed(ONE, "n1", 10)
    sidecar.nacked("n1", "", NO_SNAPSHOT, 11)
    assert sidecar.reason


def test_a_later_push_that_is_taken_ends_the_refusal(sidecar):
    sidecar.pushed(ONE, "n1", 10)
    sidecar.nacked("n1", "no", NO_SNAPSHOT, 11)
    sidecar.pushed(TWO, "n2", 12)
    assert (sidecar.state, sidecar.reason) == (State.PENDING, "")
    sidecar.acked("n2", 13)
    assert (sidecar.state, sidecar.running) == (State.ACKED, TWO)


@pytest.mark.parametrize("nonce", ["n1", "", "made up"])
def test_an_answer_with_a_stale_nonce_says_nothing(sidecar, nonce):
    sidecar.pushed(ONE, "n1", 10)
    sidecar.pushed(TWO, "n2", 11)
    assert not sidecar.acked(nonce, 12)
    assert not sidecar.nacked(nonce, "x", ONE, 12)
    assert (sidecar.state, sidecar.running) == (State.PENDING, NO_SNAPSHOT)


def test_nothing_is_acked_before_the_first_push(sidecar):
    assert not sidecar.acked("", 1)


def test_who_already_runs_the_snapshot_needs_no_answer():
    sidecar = Subscription(SidecarInfo("node"), running=ONE)
    sidecar.pushed(ONE, "n1", 10)
    assert (sidecar.state, sidecar.since) == (State.ACKED, 10)


def test_an_endpoint_that_was_reported_may_be_sent_to_until_it_no_longer_is(sidecar):
    assert not sidecar.may_send_to(REVIEWS, "r1", 0)
    sidecar.saw_endpoints(REVIEWS, frozenset({"r1", "r2"}))
    assert sidecar.may_send_to(REVIEWS, "r1", 0)
    sidecar.saw_endpoints(REVIEWS, frozenset({"r2"}))
    assert not sidecar.may_send_to(REVIEWS, "r1", 0)
    sidecar.saw_endpoints(REVIEWS, None)
    assert sidecar.endpoints == {}


def test_a_broken_stream_still_counts_for_a_while(sidecar):
    sidecar.saw_endpoints(REVIEWS, frozenset({"r1"}))
    sidecar.disconnected("broke", 100)
    assert sidecar.may_send_to(REVIEWS, "r1", 100 + RECONNECT_GRACE_S)
    assert not sidecar.may_send_to(REVIEWS, "r1", 100.1 + RECONNECT_GRACE_S)


def test_a_sidecar_cannot_make_us_keep_without_bound(sidecar):
    with pytest.raises(ProtocolError, match="endpoints"):
        sidecar.saw_endpoints(REVIEWS, frozenset(map(str, range(MAX_ENDPOINT_IDS + 1))))
    for i in range(MAX_WATCHED_SERVICES):
        sidecar.saw_endpoints(Name("default", f"s{i}"), frozenset())
    sidecar.saw_endpoints(Name("default", "s0"), frozenset({"x"}))
    with pytest.raises(ProtocolError, match="services"):
        sidecar.saw_endpoints(REVIEWS, frozenset())
