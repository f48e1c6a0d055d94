import asyncio

import pytest

from control.answers import Result
from control.hub import FORGET_DISCONNECTED_S, MAX_DISCONNECTED, Hub
from control.subscription import RECONNECT_GRACE_S, SidecarInfo, State
from mesh.model.snapshot import NO_SNAPSHOT, make_snapshot
from mesh.model.wire import encode_resource, snapshot_from_push
from protos.mesh.v1.discovery_pb2 import SnapshotPush
from tests.support.control import REVIEWS, split

ONE = make_snapshot("e", 1, ())
TWO = make_snapshot("e", 2, [encode_resource(split(v1=1))])
THREE = make_snapshot("e", 3, [encode_resource(split(v1=2))])


class Clock:
    now = 1_700_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def hub(clock):
    return Hub(ONE, clock.now, clock)


def connect(hub, node="a", running=NO_SNAPSHOT):
    return hub.connect(SidecarInfo(node, peer=f"peer of {node}"), running)


def take(hub, stream):
    body = hub.take(stream)
    return SnapshotPush.FromString(body) if body is not None else None


def accept(hub, stream):
    push = take(hub, stream)
    hub.acked(stream, push.nonce)
    return push


def test_a_new_sidecar_gets_the_whole_table_at_once(hub):
    stream = connect(hub)
    assert stream.bell.is_set()
    assert snapshot_from_push(take(hub, stream)) == ONE
    assert not stream.bell.is_set()
    assert take(hub, stream) is None


def test_all_streams_write_the_same_bytes(hub):
    hub.publish(TWO, 0)
    bodies = {id(hub.take(connect(hub, str(i)))) for i in range(50)}
    assert len(bodies) == 1


def test_a_sidecar_that_runs_the_table_is_told_so_and_sent_nothing(hub):
    stream = connect(hub, running=ONE.id)
    push = take(hub, stream)
    assert push.unchanged
    assert list(push.resources) == []
    assert stream.subscription.state is State.ACKED


@pytest.mark.parametrize("running", [TWO.id, make_snapshot("other", 1, ()).id, NO_SNAPSHOT])
def test_a_sidecar_that_runs_anything_else_gets_the_table(hub, running):
    assert not take(hub, connect(hub, running=running)).unchanged


def test_a_slow_stream_gets_only_the_newest(hub):
    stream = connect(hub)
    hub.publish(TWO, 0)
    hub.publish(THREE, 0)
    assert take(hub, stream).id.version == 3
    assert take(hub, stream) is None


def test_publishing_wakes_every_stream(hub):
    streams = [connect(hub, str(i)) for i in range(3)]
    for stream in streams:
        accept(hub, stream)
    hub.publish(TWO, 0)
    assert all(stream.bell.is_set() for stream in streams)


async def test_answers_are_told_per_sidecar_with_the_time_they_took(hub, clock):
    acks, nacks, silent = (connect(hub, node) for node in ("acks", "nacks", "silent"))
    for stream in (acks, nacks, silent):
        accept(hub, stream)
    waiting = hub.publish(TWO, clock.now)
    clock.now += 0.25
    accept(hub, acks)
    hub.nacked(nacks, take(hub, nacks).nonce, "no such regex", ONE.id)
    answers = await hub.answers(waiting, 0.01)
    assert [(a.node, a.result, a.took_s) for a in answers] == [
        ("acks", Result.ACKED, 0.25),
        ("nacks", Result.NACKED, 0.25),
        ("silent", Result.SILENT, 0.25),
    ]
    assert answers[1].reason == "no such regex"
    assert "0.01 s" in answers[2].reason


async def test_nobody_connected_is_nobody_to_wait_for(hub):
    async with asyncio.timeout(1):
        assert await hub.answers(hub.publish(TWO, 0), 60) == []


async def test_an_answer_that_came_before_anybody_waited_counts(hub):
    stream = connect(hub)
    waiting = hub.publish(TWO, 0)
    accept(hub, stream)
    assert [a.result for a in await hub.answers(waiting, 60)] == [Result.ACKED]


async def test_a_sidecar_that_goes_while_we_wait_is_silent(hub):
    stream = connect(hub)
    waiting = hub.publish(TWO, 0)
    hub.disconnect(stream, why="broke", is_goodbye=False)
    assert [(a.result, a.reason) for a in await hub.answers(waiting, 60)] == [(Result.SILENT, "disconnected")]


async def test_taking_a_later_version_answers_the_one_it_replaced(hub):
    stream = connect(hub)
    first, second = hub.publish(TWO, 0), hub.publish(THREE, 0)
    accept(hub, stream)
    ((a,), (b,)) = (await hub.answers(first, 60), await hub.answers(second, 60))
    assert (a.result, a.reason) == (Result.ACKED, "answered version 3, which replaced it")
    assert (b.result, b.reason) == (Result.ACKED, "")


async def test_the_ack_of_an_earlier_push_answers_nothing(hub):
    stream = connect(hub)
    nonce = take(hub, stream).nonce
    waiting = hub.publish(TWO, 0)
    take(hub, stream)
    hub.acked(stream, nonce)
    hub.nacked(stream, nonce, "x", NO_SNAPSHOT)
    assert [a.result for a in await hub.answers(waiting, 0.01)] == [Result.SILENT]
    assert hub.counters.stale_answers == 2


def test_a_newer_stream_of_a_node_replaces_the_older(hub):
    old = connect(hub)
    hub.saw_endpoints(old, REVIEWS, frozenset({"r1"}))
    new = connect(hub)
    assert old.replaced_by == "peer of a"
    assert old.bell.is_set()
    hub.disconnect(old, why="replaced", is_goodbye=False)
    assert hub.connected == 1
    assert [s.state for s in hub.sidecars()] == [State.PENDING]
    # Until it speaks, what it saw last holds: somebody may be draining on it.
    assert hub.who_may_send_to(REVIEWS, "r1", "") == ["a"]
    hub.saw_endpoints(new, REVIEWS, frozenset())
    assert hub.who_may_send_to(REVIEWS, "r1", "") == []


def test_the_asking_sidecar_does_not_count(hub):
    hub.saw_endpoints(connect(hub, "a"), REVIEWS, frozenset({"r1"}))
    hub.saw_endpoints(connect(hub, "b"), REVIEWS, frozenset({"r1"}))
    assert hub.who_may_send_to(REVIEWS, "r1", "a") == ["b"]


def test_endpoint_reports_and_departures_ring_the_bell(hub):
    stream = connect(hub)
    with hub.endpoint_bell() as bell:
        hub.saw_endpoints(stream, REVIEWS, frozenset())
        assert bell.is_set()
        bell.clear()
        hub.disconnect(stream, why="", is_goodbye=True)
        assert bell.is_set()


def test_a_goodbye_is_forgotten_and_a_break_remembered(hub, clock):
    hub.disconnect(connect(hub, "polite"), why="", is_goodbye=True)
    hub.disconnect(connect(hub, "broken"), why="the stream broke", is_goodbye=False)
    assert [(s.info.node, s.state, s.reason) for s in hub.sidecars()] == [
        ("broken", State.DISCONNECTED, "the stream broke")
    ]
    clock.now += FORGET_DISCONNECTED_S + 1
    assert hub.sidecars() == []


def test_lost_sidecars_are_remembered_within_bounds(hub):
    for i in range(MAX_DISCONNECTED + 10):
        hub.disconnect(connect(hub, f"{i:05}"), why="", is_goodbye=False)
    nodes = [s.info.node for s in hub.sidecars()]
    assert len(nodes) == MAX_DISCONNECTED
    assert nodes[0] == "00010"


def test_observers_hear_of_every_change_of_state(hub):
    heard = []
    with hub.observing(lambda s: heard.append((s.info.node, s.state))):
        stream = connect(hub)
        accept(hub, stream)
        hub.publish(TWO, 0)
        hub.nacked(stream, take(hub, stream).nonce, "no", ONE.id)
        hub.disconnect(stream, why="", is_goodbye=True)
    connect(hub)
    assert [state for _, state in heard] == [
        State.PENDING,
        State.ACKED,
        State.PENDING,
        State.NACKED,
        State.DISCONNECTED,
    ]


def test_everything_is_counted(hub):
    stream = connect(hub)
    accept(hub, stream)
    take(hub, connect(hub, "b", ONE.id))
    counters = hub.counters
    assert (counters.hellos, counters.pushes, counters.acks, counters.resumed) == (2, 2, 1, 1)
    assert counters.pushed_bytes == len(hub.current.whole) + len(hub.current.unchanged)
    assert counters.push_seconds_count == 1  # who runs it already, was pushed nothing


async def test_a_sidecar_that_has_just_lost_its_stream_is_asked_all_the_same_and_one_long_gone_is_not(hub, clock):
    gone = connect(hub, "gone")
    accept(hub, gone)
    hub.disconnect(gone, why="killed", is_goodbye=False)
    clock.now += 10
    lost = connect(hub, "lost")
    accept(hub, lost)
    hub.disconnect(lost, why="broken", is_goodbye=False)
    waiting = hub.publish(TWO, clock.now)
    (answer,) = await hub.answers(waiting, 0.01)
    assert (answer.node, answer.result) == ("lost", Result.SILENT)
    assert "control stream is broken" in answer.reason
    waiting = hub.publish(THREE, clock.now)
    accept(hub, connect(hub, "lost"))
    (answer,) = await hub.answers(waiting, 1)
    assert (answer.node, answer.result) == ("lost", Result.ACKED)


async def test_a_sidecar_known_from_before_the_start_is_waited_for_and_named_if_it_stays_away(hub, clock):
    hub.expect([SidecarInfo("back"), SidecarInfo("away")])
    waiting = hub.publish(TWO, clock.now)
    accept(hub, connect(hub, "back", ONE.id))
    accept(hub, connect(hub, "new"))  # nobody asked it for this version; it gets it all the same
    answers = await hub.answers(waiting, 0.01)
    assert [(a.node, a.result) for a in answers] == [("away", Result.SILENT), ("back", Result.ACKED)]
    assert "not back since this control server started" in answers[0].reason
    states = {s.info.node: s.state for s in hub.sidecars()}
    assert states == {"away": State.DISCONNECTED, "back": State.ACKED, "new": State.ACKED}


async def test_a_sidecar_that_did_not_come_back_in_time_is_no_longer_waited_for_but_still_told_of(hub, clock):
    hub.expect([SidecarInfo("away")])
    clock.now += RECONNECT_GRACE_S + 0.1
    assert await hub.answers(hub.publish(TWO, clock.now), 5) == []
    assert [s.info.node for s in hub.sidecars()] == ["away"]
    clock.now += FORGET_DISCONNECTED_S
    assert hub.sidecars() == []


def test_a_drain_reckons_with_sidecars_that_are_not_back_yet_for_as_long_as_they_may_take(hub, clock):
    hub.expect([SidecarInfo("away"), SidecarInfo("leaving")])
    assert hub.who_may_send_to(REVIEWS, "reviews-1", "leaving") == ["away"]
    connect(hub, "away")  # sees nothing of it, or says so next
    assert hub.who_may_send_to(REVIEWS, "reviews-1", "leaving") == []
    hub.expect([SidecarInfo("other")])
    clock.now += RECONNECT_GRACE_S + 0.1
    assert hub.who_may_send_to(REVIEWS, "reviews-1", "leaving") == []
