"""Leaving without losing a request: in which order, what is waited for, and for how long at most."""

import asyncio
import contextlib
import signal
import time
from functools import partial
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest

from mesh.model.name import Name
from proxy.http2.frames import HEADERS, INITIAL_WINDOW_SIZE, PREFACE
from tests.support.chat import chat_server
from tests.support.control import FakeSidecar
from tests.support.fleet import Answer, Fleet, SidecarProcess, get
from tests.support.grpc_echo import echo_server
from tests.support.http2 import frames, head, settings
from tests.support.process import until

pytestmark = pytest.mark.e2e

PAY = Name("default", "pay")


async def test_a_leaving_instance_is_told_of_first_and_stops_last(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        control = await fleet.control()
        pay = fleet.run("pay", label="pay-1")
        caller = await fleet.sidecar("caller")
        await caller.until_usable("pay", 1)
        assert (await ask(pay)).connection != "close"
        async with FakeSidecar(control.address, "watcher") as watcher, asyncio.TaskGroup() as group:
            await watcher.connect()
            await watcher.accept()
            await watcher.sees(PAY, "pay-1")
            held = group.create_task(get(caller.url("/hold"), {"host": "pay"}))
            await until(partial(under_way, pay, 1), what="the held request")

            # (1) marked as leaving: callers take it out at once ...
            pay.process.signal(signal.SIGTERM)
            await until(partial(usable, caller, 0), what="the caller to take note")
            refused = await get(caller.url(), {"host": "pay"})
            assert (refused.status, refused.flag) == (503, "UH")
            # ... (2) it still takes what comes, and asks to close; (3) as long as somebody may still send here.
            await pay.process.until_logged("1 sidecars may still send here")
            answer = await ask(pay)
            assert (answer.status, answer.connection) == (200, "close")
            await watcher.sees(PAY)

            # (4) what is in flight is finished, before (5) the program is told.
            assert (await ask(pay)).status == 200
            assert "SIGTERM" not in pay.process.output()
            assert not held.done()
            assert (await ask(pay, "/release")).status == 200
            assert (await held).status == 200
        assert await pay.process.wait() == 0
        assert "ended in order" in pay.process.output()
        assert "draining: 0 exchanges" not in pay.process.output()
        # (6) deregistered: nobody is left.
        await until(partial(usable, caller, 0), what="nothing to be left")


async def test_a_watcher_that_never_answers_holds_a_drain_no_longer_than_drain_s(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        control = await fleet.control()
        pay = await fleet.instance("pay", "--drain-s", "1.5", label="pay-1")
        await until(lambda: "registered as" in pay.sidecar.process.output(), what="registration")
        async with FakeSidecar(control.address, "silent") as silent:
            await silent.connect()
            await silent.accept()
            await silent.sees(PAY, "pay-1")
            began = time.monotonic()
            pay.sidecar.process.signal(signal.SIGTERM)
            assert await pay.sidecar.process.wait() == 0
            assert 1.4 < time.monotonic() - began < 5
        assert "not everybody has taken note within 1.5 s" in pay.sidecar.process.output()


async def test_a_control_server_that_hangs_is_as_good_as_none_and_calls_in_flight_have_a_time_of_their_own(
    tmp_path: Path,
) -> None:
    """The wait before uses up all of ``drain-s``, and the call that is held then is finished all the same."""
    async with Fleet(tmp_path) as fleet:
        control = await fleet.control()
        pay = fleet.run("pay", "--drain-s", "5", label="pay-1")
        caller = await fleet.sidecar("caller")
        await caller.until_usable("pay", 1)
        async with asyncio.TaskGroup() as group:
            held = group.create_task(get(caller.url("/hold"), {"host": "pay"}))
            await until(partial(under_way, pay, 1), what="the held request")
            control.process.signal(signal.SIGSTOP)
            try:
                pay.process.signal(signal.SIGTERM)
                await pay.process.until_logged("does not say who may still send here")
                await pay.process.until_logged("not everybody has taken note within 5 s")
                await asyncio.sleep(1)
                assert (await ask(pay, "/release")).status == 200
                assert (await held).status == 200
                assert await pay.process.wait() == 0
            finally:
                control.process.signal(signal.SIGCONT)
        assert "are given up" not in pay.process.output()


async def test_without_a_control_server_quiet_is_waited_for_and_calls_in_flight_are_finished(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        program, port = await fleet.program("pay")
        alone = await fleet.sidecar("pay", "--port", str(port))
        services = str(fleet.services_file(pay=alone.inbound))
        caller = await fleet.sidecar("caller", "--services", services)
        async with asyncio.TaskGroup() as group:
            # A mere caller finishes its calls, too.
            held = group.create_task(get(caller.url("/hold"), {"host": "pay"}))
            await until(partial(under_way, alone, 1), what="the held request")
            caller.process.signal(signal.SIGTERM)
            alone.process.signal(signal.SIGTERM)
            await alone.process.until_logged("draining")
            answer = await ask(alone)
            assert (answer.status, answer.connection) == (200, "close")
            asked_s = time.monotonic()
            assert (await ask(alone, "/release")).status == 200
            assert (await held).status == 200
        assert await alone.process.wait() == 0
        assert time.monotonic() - asked_s > 1.9  # nobody came for 2 s
        assert await caller.process.wait() == 0
        assert program.is_running


async def test_without_a_control_server_whoever_still_comes_is_served(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        _, own = await fleet.program("pay")
        pay = await fleet.sidecar("pay", "--port", str(own))
        pay.process.signal(signal.SIGTERM)
        await pay.process.until_logged("draining")
        for _ in range(10):  # a request each half second: it is never quiet for 2 s
            assert (await ask(pay)).status == 200
            await asyncio.sleep(0.5)
        assert pay.process.is_running
        assert await pay.process.wait() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_beside_a_program_that_goes_on_its_calls_under_way_are_finished(tmp_path: Path, workers: str) -> None:
    async with Fleet(tmp_path) as fleet:
        _, port = await fleet.program("other")
        other = await fleet.sidecar("other", "--port", str(port))
        program, own = await fleet.program("pay")
        services = str(fleet.services_file(other=other.inbound))
        pay = await fleet.sidecar("pay", "--port", str(own), "--services", services, "--workers", workers)
        async with asyncio.TaskGroup() as group:
            held = group.create_task(get(pay.url("/hold"), {"host": "other"}))
            await until(partial(under_way, other, 1), what="the held request")
            pay.process.signal(signal.SIGTERM)
            await pay.process.until_logged("draining")
            await asyncio.sleep(2.5)  # nobody came for 2 s, so that inbound is done
            assert not held.done()
            assert pay.process.is_running
            assert (await ask(other, "/release")).status == 200
            assert (await held).status == 200
        assert await pay.process.wait() == 0
        assert program.is_running


async def ask(sidecar: SidecarProcess, path: str = "/") -> Answer:
    """A call to the program, as another sidecar makes it."""
    return await get(f"http://127.0.0.1:{sidecar.inbound}{path}")


async def under_way(sidecar: SidecarProcess, count: int) -> bool:
    return await sidecar.metric("mesh_exchanges_under_way") >= count


async def usable(caller: SidecarProcess, count: int) -> bool:
    found = await caller.endpoints("pay")
    return sum(health == "passing" for health in found.values()) == count


@pytest.mark.parametrize("workers", [1, 2])
async def test_websockets_are_told_to_go_elsewhere_once_nobody_comes_any_more(tmp_path: Path, workers: int) -> None:
    """At the sidecar of the server, then at that of another client, which leaves without the server's."""
    async with (
        Fleet(tmp_path, workers=workers) as fleet,
        chat_server() as (chat, port),
        aiohttp.ClientSession() as session,
    ):
        pay = await fleet.sidecar("pay", "--port", str(port))
        services = str(fleet.services_file(pay=pay.inbound, chat=port))
        caller = await fleet.sidecar("caller", "--services", services)

        async def connect(service: str) -> aiohttp.ClientWebSocketResponse:
            return await session.ws_connect(caller.url("/chat"), headers={"host": service})

        one, other = await connect("pay"), await connect("chat")
        for socket in (one, other):
            await socket.send_str("hello")
            assert await socket.receive_str() == "hello!"
        began_s = time.monotonic()
        pay.process.signal(signal.SIGTERM)
        await pay.process.until_logged("draining")
        await one.send_str("still here")  # as long as somebody may come, nobody is sent away
        assert await one.receive_str() == "still here!"
        message = await one.receive(timeout=10)
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
        assert time.monotonic() - began_s > 1.9
        assert await pay.process.wait() == 0
        assert "given up" not in pay.process.output()
        assert chat.closed == [1001]

        await other.send_str("and I")
        assert await other.receive_str() == "and I!"
        caller.process.signal(signal.SIGTERM)
        message = await other.receive(timeout=10)
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
        assert await caller.process.wait() == 0
        assert chat.closed == [1001, 1001]


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_grpc_stream_that_outlasts_the_drain_ends_with_a_status(tmp_path: Path, workers: int) -> None:
    async with Fleet(tmp_path) as fleet, echo_server() as (_, port):
        options = ("--port", str(port), "--drain-s", "2.5", "--workers", str(workers))
        pay = await fleet.sidecar("pay", *options)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{pay.inbound}") as channel:
            call = channel.stream_stream("/test.Echo/Both")()
            await call.write(b"hello")
            assert await call.read() == b"hellohello"
            pay.process.signal(signal.SIGTERM)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call.read()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "the sidecar stops" in (ended.value.details() or "")
        assert await pay.process.wait() == 0
        assert pay.process.output().count("exchanges are given up") == 1


async def test_who_does_not_go_holds_a_drain_no_longer_than_drain_s(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet, chat_server() as (chat, port):
        pay = await fleet.sidecar("pay", "--port", str(port), "--drain-s", "2.5")
        reader, writer = await asyncio.open_connection("127.0.0.1", pay.inbound)
        with contextlib.closing(writer):
            writer.write(
                b"GET /chat HTTP/1.1\r\nhost: pay\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
                b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            await reader.readuntil(b"\r\n\r\n")
            pay.process.signal(signal.SIGTERM)
            head = await reader.readexactly(2)
            assert head[0] == 0x88
            assert await pay.process.wait() == 0
            await until(lambda: chat.closed == [1001], what="the server to be told")
        assert "draining: 1 exchanges are given up" in pay.process.output()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_an_answer_that_its_client_has_not_taken_is_waited_for_as_long_as_calls_are(
    tmp_path: Path, workers: str
) -> None:
    """The exchange is over: what is left of the answer waits for the client's credit."""
    async with Fleet(tmp_path) as fleet:
        _, port = await fleet.program("pay")
        alone = await fleet.sidecar("pay", "--port", str(port), "--drain-s", "1", "--workers", workers)
        reader, writer = await asyncio.open_connection("127.0.0.1", alone.inbound)
        writer.write(PREFACE + settings((INITIAL_WINDOW_SIZE, 0)) + head(1))
        data = b""
        async with asyncio.timeout(10):
            while not any(kind == HEADERS for kind, *_ in frames(data)):
                data += await reader.read(1 << 16)
        alone.process.signal(signal.SIGTERM)
        assert await alone.process.wait() == 0
        assert "draining: 1 exchanges are given up" in alone.process.output()
        writer.close()
