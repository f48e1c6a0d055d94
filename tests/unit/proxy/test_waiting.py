"""The line for connections: who is in it, who gets the next one, and what the service counts."""

import pytest

from mesh.http.outcome import Overflow
from mesh.model.name import Name
from mesh.model.policy import Limits
from mesh.rules.limits import Usage
from proxy.upstream.waiting import WaitingLine
from tests.support.dialogue import make_attempt, make_plane


def service(**limits):
    pay = make_plane().service(Name("default", "pay"))
    pay.usage = Usage(Limits(**limits))
    return pay


def waiters(line, count, *, has_connections=False):
    some = [make_attempt(line._service.plane) for _ in range(count)]
    for waiter in some:
        line.join(waiter, has_connections=has_connections)
    return some


def test_first_come_first_served_and_whoever_gives_up_is_passed_over():
    pay = service()
    line = WaitingLine(pay)
    first, second, third = waiters(line, 3)
    assert (pay.usage.pending, first.line) == (3, line)
    second.line.leave(second)
    assert [line.next(), line.next(), line.next()] == [first, third, None]
    assert (pay.usage.pending, len(line), first.line, second.line) == (0, 0, None, None)


def test_a_used_connection_passes_over_those_who_want_a_fresh_one():
    line = WaitingLine(service())
    first, second, third = waiters(line, 3)
    first.wants_fresh = third.wants_fresh = True
    assert [line.next(is_used=True), line.next(is_used=True)] == [second, None]
    assert [line.next(), line.next(), line.next()] == [first, third, None]


def test_one_who_gives_up_at_one_endpoint_makes_room_at_another():
    pay = service(max_pending_requests=2)
    one, other = WaitingLine(pay), WaitingLine(pay)
    gone, _ = waiters(one, 2)
    with pytest.raises(Overflow, match="maxPendingRequests is 2") as error:
        waiters(other, 1)
    assert error.value.not_sent
    assert (pay.usage.pending, len(other)) == (2, 0)
    one.leave(gone)
    waiters(other, 1)
    assert (len(one), len(other), pay.usage.pending) == (1, 1, 2)


def test_without_a_connection_and_without_leave_to_make_one_nobody_may_wait():
    pay = service(max_connections=1)
    pay.usage.connections = 1  # another endpoint's
    with pytest.raises(Overflow, match="maxConnections is 1"):
        waiters(WaitingLine(pay), 1)
    line = WaitingLine(pay)
    waiters(line, 1, has_connections=True)  # a turn on the one it has
    assert len(line) == 1


def test_disbanded_all_leave_in_order():
    pay = service()
    line = WaitingLine(pay)
    some = waiters(line, 3)
    assert line.disband() == some
    assert (pay.usage.pending, len(line), [each.line for each in some]) == (0, 0, [None] * 3)
