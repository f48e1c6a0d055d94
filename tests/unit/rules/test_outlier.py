"""Ejection, its limits, and panic."""

from dataclasses import dataclass, field

from mesh.model.policy import Limits, OutlierDetection
from mesh.rules.limits import Usage
from mesh.rules.outlier import OutlierState, record_failure, uneject_due, without_ejected

RULE = OutlierDetection(consecutive_failures=3, base_ejection_s=30)


@dataclass(eq=False)
class Peer:
    outlier: OutlierState = field(default_factory=OutlierState)


def fail(state: OutlierState, times: int, *, known: int = 5, ejected: int = 0, now: float = 100.0) -> list[bool]:
    return [record_failure(state, RULE, known, ejected, now) for _ in range(times)]


def test_failures_in_a_row_eject() -> None:
    state = OutlierState()
    assert fail(state, 3) == [False, False, True]
    assert state.ejected_until_s == 130.0


def test_a_success_in_between_starts_the_count_anew() -> None:
    state = OutlierState()
    fail(state, 2)
    state.consecutive_failures = 0
    assert fail(state, 2) == [False, False]


def test_the_last_endpoint_is_never_ejected() -> None:
    assert not any(fail(OutlierState(), 10, known=1))
    assert not any(fail(OutlierState(), 10, known=2, ejected=1))


def test_one_may_always_go_and_more_only_within_the_share() -> None:
    assert any(fail(OutlierState(), 3, known=3))
    assert not any(fail(OutlierState(), 10, known=10, ejected=1))
    assert any(fail(OutlierState(), 3, known=20, ejected=1))


def test_each_ejection_in_a_row_lasts_longer() -> None:
    state = OutlierState()
    fail(state, 3, now=100.0)
    assert uneject_due([state], RULE, 130.0)
    assert not state.is_ejected
    fail(state, 3, now=155.0)
    assert state.ejected_until_s == 215.0


def test_each_base_time_without_an_ejection_takes_one_back() -> None:
    state = OutlierState()
    fail(state, 3, now=100.0)
    uneject_due([state], RULE, 130.0)
    fail(state, 3, now=140.0)
    uneject_due([state], RULE, 200.0)
    assert state.times_ejected == 2
    assert [(uneject_due([state], RULE, now), state.times_ejected) for now in (229.0, 230.0, 259.0, 260.0, 300.0)] == [
        (False, 2), (False, 1), (False, 1), (False, 0), (False, 0),
    ]  # fmt: skip


def test_the_last_of_a_subset_is_never_ejected() -> None:
    state = OutlierState()
    assert not any(record_failure(state, RULE, 10, 0, 100.0, is_last=True) for _ in range(10))
    assert record_failure(state, RULE, 10, 0, 100.0)


def test_zero_switches_ejection_off() -> None:
    off = OutlierDetection(consecutive_failures=0)
    state = OutlierState()
    assert not any(record_failure(state, off, 5, 0, 1.0) for _ in range(100))


def test_below_half_of_the_known_ejections_are_ignored() -> None:
    peers = [Peer() for _ in range(4)]
    peers[0].outlier.ejected_until_s = 1.0
    assert without_ejected(peers, 4, RULE) == peers[1:]
    assert without_ejected(peers[:2], 4, RULE) == peers[:2]
    assert without_ejected(peers[:1], 1, RULE) == peers[:1]


def test_limits_are_shared_by_workers_and_never_nothing() -> None:
    usage = Usage(Limits(max_requests=3, max_pending_requests=1, max_connections=1), shares=2)
    assert usage.max_requests == 1
    usage.limits = Limits(max_requests=8, max_pending_requests=1, max_connections=1)
    assert usage.max_requests == 4
    usage.pending = 1
    assert usage.pending_refusal() is not None
    assert usage.may_connect
    usage.connections = 1
    assert not usage.may_connect
