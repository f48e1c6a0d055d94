"""Sidecars' streams against a real control server: push, ACK, NACK, resuming, and clients that misbehave."""

import asyncio
import time
from random import Random

import grpc
import grpc.aio
import pytest

from control import sidecar_service
from control.ledger import Options
from control.planning import plan_apply
from mesh.client import MeshClient
from mesh.client import Options as ClientOptions
from mesh.model.name import Name
from mesh.model.snapshot import SnapshotId
from mesh.model.wire import decode_snapshot_id, encode_name
from protos.mesh.v1 import discovery_pb2, discovery_pb2_grpc
from proxy.feed import Feed, Identity
from tests.support.control import ANSWER_S, REVIEWS, FakeSidecar, background, control_server, register, sidecars, split
from tests.support.process import until


async def apply(server, *routes, wait_s=5.0):
    async def planner(current):
        return plan_apply(current, routes, time.time())

    return await server.ledger.change(planner, Options("test", wait_s=wait_s))


async def states(server):
    async with MeshClient(server.grpc_address) as mesh:
        return {s.node: s for s in (await mesh.status()).sidecars}


async def test_a_sidecar_gets_the_table_at_once_and_every_change_after():
    async with control_server() as server, FakeSidecar(server.grpc_address, "a") as sidecar:
        await sidecar.connect()
        assert (await sidecar.accept()).version == 1
        change = background(apply(server, split(v1=90, v2=10)))
        assert (await sidecar.accept()).version == 2
        assert sidecar.snapshot.routes[0].rules == split(v1=90, v2=10).rules
        (answer,) = (await change).answers
        assert (answer.node, answer.result.value) == ("a", "acked")
        assert 0 <= answer.took_s < ANSWER_S


async def test_a_nack_is_told_with_its_reason_and_leaves_the_sidecar_on_its_last_good_version():
    async with control_server() as server, FakeSidecar(server.grpc_address, "a", REVIEWS, "v1") as sidecar:
        await sidecar.connect()
        good = await sidecar.accept()
        change = background(apply(server, split(v1=1)))
        await sidecar.nack(await sidecar.push(), "rules[0]: not known here")
        (answer,) = (await change).answers
        assert (answer.result.value, answer.reason) == ("nacked", "rules[0]: not known here")
        status = (await states(server))["a"]
        assert (status.state, status.running, status.reason) == ("nacked", good, "rules[0]: not known here")
        assert (status.service, status.service_version) == (REVIEWS, "v1")
        # The next good table ends it.
        change = background(apply(server, split(v1=2)))
        await sidecar.accept()
        assert (await change).answers[0].result.value == "acked"


async def test_a_reconnecting_sidecar_is_not_sent_what_it_runs():
    async with control_server() as server:
        async with FakeSidecar(server.grpc_address, "a") as sidecar:
            running = await (await sidecar.connect()).accept()
        async with FakeSidecar(server.grpc_address, "a") as sidecar:
            push = await (await sidecar.connect(running)).push()
            assert push.unchanged
            assert not push.resources
            assert decode_snapshot_id(push.id) == running
            await sidecar.ack(push)
            assert await sidecar.no_push()
            assert (await states(server))["a"].state == "acked"


@pytest.mark.parametrize(
    "change", [{"version": 0}, {"version": 9}, {"epoch": "another"}, {"digest": "other"}], ids=lambda c: next(iter(c))
)
async def test_a_sidecar_that_runs_anything_else_is_sent_the_table(change):
    async with control_server() as server, FakeSidecar(server.grpc_address, "a") as sidecar:
        now = server.hub.current.snapshot.id
        other = {"epoch": now.epoch, "version": now.version, "digest": now.digest} | change
        push = await (await sidecar.connect(SnapshotId(**other))).push()
        assert not push.unchanged


async def test_200_streams_share_one_serialisation_and_all_answer():
    async with control_server() as server, sidecars(server.grpc_address, 200):
        taken = []
        take = server.hub.take

        def spy(stream):
            body = take(stream)
            taken.append(body)
            return body

        server.hub.take = spy
        outcome = await apply(server, *(split(name=f"r{i}", v1=i) for i in range(1, 50)), wait_s=20)
        assert [answer.result.value for answer in outcome.answers] == ["acked"] * 200
        assert len({id(body) for body in taken if body is not None}) == 1


async def test_a_sidecar_that_reads_nothing_delays_nobody_and_gets_only_the_newest():
    async with (
        control_server() as server,
        sidecars(server.grpc_address, 3),
        FakeSidecar(server.grpc_address, "stuck") as stuck,
    ):
        await stuck.connect()  # and reads nothing from here on
        await until(lambda: server.hub.connected == 4, what="four streams")
        filler = [split(name=f"r{i}", **{f"s{j}": 1 for j in range(16)}) for i in range(300)]
        versions = []
        for weight in range(1, 12):
            outcome = await apply(server, split(v1=weight), *filler[: 200 + weight], wait_s=0)
            versions.append(outcome.version)
        await until(
            lambda: all(s.running.version == versions[-1] for s in server.hub.sidecars() if s.info.node != "stuck"),
            what="the others to run the newest",
        )
        seen = []
        while not seen or seen[-1] != versions[-1]:
            seen.append((await stuck.push()).id.version)
        assert len(seen) < len(versions)  # some were never sent to it


async def test_an_answer_to_an_earlier_push_settles_nothing():
    async with control_server() as server, FakeSidecar(server.grpc_address, "a") as sidecar:
        old = await (await sidecar.connect()).push()
        change = background(apply(server, split(v1=1), wait_s=0.5))
        await sidecar.push()
        await sidecar.ack(old)
        (answer,) = (await change).answers
        assert answer.result.value == "silent"


async def test_a_sidecar_that_leaves_in_order_is_forgotten_and_one_that_breaks_off_is_shown():
    async with control_server() as server:
        async with FakeSidecar(server.grpc_address, "polite") as sidecar:
            await (await sidecar.connect()).accept()
            await sidecar.leave()
        async with FakeSidecar(server.grpc_address, "broken") as sidecar:
            await (await sidecar.connect()).accept()
        await until(lambda: server.hub.connected == 0, what="both streams to end")
        known = await states(server)
        assert list(known) == ["broken"]
        assert known["broken"].state == "disconnected"
        assert known["broken"].running.version == 1


async def test_a_sidecar_that_stops_says_goodbye():
    async def take(_snapshot):
        pass

    async with control_server() as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        feed = Feed(channel, Identity("stopping", REVIEWS, "v1", "r1"), take, Random(1))
        feed.start(None)
        await until(lambda: feed.is_synced, what="the control stream")
        assert list(await states(server)) == ["stopping"]
        await feed.close()
        await until(lambda: server.hub.connected == 0, what="the stream to end")
        assert await states(server) == {}
        # Nobody is waited for: the only sidecar is known not to come back.
        assert not (await apply(server, split(v1=1))).answers


async def test_a_newer_stream_of_a_node_ends_the_older():
    async with (
        control_server() as server,
        FakeSidecar(server.grpc_address, "a") as old,
        FakeSidecar(server.grpc_address, "a") as new,
    ):
        await (await old.connect()).accept()
        await (await new.connect()).accept()
        error = await old.ended()
        assert error.code() is grpc.StatusCode.ABORTED
        assert "newer stream" in error.details()
        assert (await states(server))["a"].state == "acked"


# ------------------------------------------------------------------------------------------------ who may still send


async def unseen(server, *, node="asker"):
    """The stream of AwaitUnseen for reviews' instance r1."""
    channel = grpc.aio.insecure_channel(server.grpc_address)
    stub = discovery_pb2_grpc.RoutingDiscoveryStub(channel)
    request = discovery_pb2.AwaitUnseenRequest(service=encode_name(REVIEWS), instance_id="r1", node=node)
    return channel, stub.AwaitUnseen(request)


async def test_a_drain_waits_for_every_sidecar_that_may_still_send():
    async with (
        control_server() as server,
        FakeSidecar(server.grpc_address, "a") as a,
        FakeSidecar(server.grpc_address, "b") as b,
    ):
        for sidecar in (a, b):
            await (await sidecar.connect()).accept()
            await sidecar.sees(REVIEWS, "r1", "r2")
        await until(lambda: len(server.hub.who_may_send_to(REVIEWS, "r1", "")) == 2, what="both reports")
        channel, answers = await unseen(server)
        assert list((await answers.read()).nodes) == ["a", "b"]
        await a.sees(REVIEWS, "r2")
        assert list((await answers.read()).nodes) == ["b"]
        await b.sees(REVIEWS, watching=False)
        assert list((await answers.read()).nodes) == []
        assert await answers.read() is grpc.aio.EOF
        await channel.close()


async def test_a_sidecar_that_leaves_no_longer_holds_up_a_drain():
    async with control_server() as server, FakeSidecar(server.grpc_address, "a") as a:
        await (await a.connect()).accept()
        await a.sees(REVIEWS, "r1")
        await until(lambda: server.hub.who_may_send_to(REVIEWS, "r1", ""), what="the report")
        channel, answers = await unseen(server)
        assert list((await answers.read()).nodes) == ["a"]
        await a.leave()
        assert list((await answers.read()).nodes) == []
        await channel.close()


async def test_the_asking_sidecar_itself_does_not_count():
    async with control_server() as server, FakeSidecar(server.grpc_address, "a") as a:
        await (await a.connect()).accept()
        await a.sees(REVIEWS, "r1")
        await until(lambda: server.hub.who_may_send_to(REVIEWS, "r1", ""), what="the report")
        channel, answers = await unseen(server, node="a")
        assert list((await answers.read()).nodes) == []
        await channel.close()


# -------------------------------------------------------------------------------------------------- hostile clients


async def refusal(server, *messages):
    """How a stream ends that begins with ``messages``."""
    async with FakeSidecar(server.grpc_address, "x") as sidecar:
        sidecar.stream = sidecar._stub.Stream()
        try:
            for message in messages:
                await sidecar.send(**message)
        except grpc.aio.AioRpcError as error:  # it may end before all is said
            return error
        return await sidecar.ended()


HELLO = {"hello": discovery_pb2.Hello(node="x")}


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"ack": discovery_pb2.Ack(nonce="1")}], "first message must be a Hello"),
        ([{}], "first message must be a Hello"),
        ([{"hello": discovery_pb2.Hello()}], "hello.node"),
        ([{"hello": discovery_pb2.Hello(node="x" * 300)}], "hello.node"),
        ([{"hello": discovery_pb2.Hello(node="x", service=encode_name(Name("default", "No Name")))}], "hello.service"),
        ([HELLO, HELLO], "second Hello"),
        ([HELLO, {}], "empty or unknown message"),
        (
            [HELLO, {"endpoint_state": discovery_pb2.EndpointState(service=encode_name(Name("", "")))}],
            "no service name",
        ),
    ],
)
async def test_what_the_protocol_does_not_allow_ends_the_stream_with_the_reason(messages, words):
    async with control_server() as server:
        error = await refusal(server, *messages)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in error.details()
        assert server.hub.connected == 0


async def test_a_stream_that_stays_silent_is_ended(monkeypatch):
    monkeypatch.setattr(
        sidecar_service.SidecarService.__init__, "__kwdefaults__", {"hello_timeout_s": 0.1, "max_streams": 5}
    )
    async with control_server() as server:
        assert (await refusal(server)).code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_streams_are_bounded(monkeypatch):
    monkeypatch.setattr(
        sidecar_service.SidecarService.__init__, "__kwdefaults__", {"hello_timeout_s": 5.0, "max_streams": 2}
    )
    async with control_server() as server, sidecars(server.grpc_address, 2):
        error = await refusal(server, {"hello": discovery_pb2.Hello(node="third")})
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_bytes_that_are_no_message_end_only_that_stream():
    async with control_server() as server, sidecars(server.grpc_address, 1):
        async with grpc.aio.insecure_channel(server.grpc_address) as channel:
            raw = channel.stream_stream("/mesh.v1.RoutingDiscovery/Stream")()
            await raw.write(b"\xff\xff\xff")
            assert await raw.code() is not grpc.StatusCode.OK
        outcome = await apply(server, split(v1=1))
        assert [answer.result.value for answer in outcome.answers] == ["acked"]


async def test_a_caller_that_goes_away_does_not_leave_a_stored_version_unpublished():
    async with control_server() as server, FakeSidecar(server.grpc_address, "a") as sidecar:
        await (await sidecar.connect()).accept()
        await register(server.grpc_address, REVIEWS, ["v1"])
        async with MeshClient(server.grpc_address) as mesh:
            asking = background(mesh.set_weights(REVIEWS, {"v1": 1}, options=ClientOptions(wait_s=30)))
            push = await sidecar.push()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        assert push.id.version == 2
        assert (await apply(server, split(v1=5), wait_s=0)).version == 3


async def test_stopping_ends_every_stream_at_once():
    async with control_server() as server, sidecars(server.grpc_address, 20) as fakes:
        started = time.monotonic()
        await server.stop()
        assert time.monotonic() - started < 2
        for fake in fakes:
            async with asyncio.timeout(ANSWER_S):
                (ended,) = await asyncio.gather(fake._answering, return_exceptions=True)
            assert isinstance(ended, grpc.aio.AioRpcError)
