"""What gRPC asks of a proxy beyond HTTP/2: retries by status, pushback, deadlines, statuses for what breaks."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from mesh.http.headers import Headers
from mesh.model.name import Name
from mesh.model.service import Endpoint
from proxy.dataplane import Answer
from proxy.http1.limits import ConnectionLimits
from proxy.http2 import hpack, octets
from proxy.http2.frames import DATA, END_HEADERS, END_STREAM, HEADERS
from tests.support.grpc_echo import GRPC, RETRIED, echo_server, through
from tests.support.http2 import PREFACE, frame, frames, settings
from tests.support.mesh import HandMadeDirectory, inbound_listener, mesh, name, serve
from tests.support.process import until

Handler = Callable[[bytes, Any], Awaitable[bytes]]
UNAVAILABLE, INTERNAL = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL


class Script:
    """A unary method that does what the next of ``steps`` says, the last one for ever; keeps what it was sent."""

    def __init__(self, *steps: Handler) -> None:
        self.steps = list(steps)
        self.metadata: list[dict[str, Any]] = []
        self.remaining_s: list[float | None] = []
        self.times_s: list[float] = []

    @property
    def calls(self) -> int:
        return len(self.metadata)

    async def unary(self, request: bytes, context: Any) -> bytes:
        self.metadata.append(dict(context.invocation_metadata()))
        self.remaining_s.append(context.time_remaining())
        self.times_s.append(time.monotonic())
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        return await step(request, context)


async def echo(request: bytes, _: Any) -> bytes:
    return request


def fails(code: grpc.StatusCode, *, after_head: bool = False, **trailing: str) -> Handler:
    async def fail(_: bytes, context: Any) -> bytes:
        if after_head:
            await context.send_initial_metadata((("hello", "first"),))
        pairs = tuple((key.replace("_", "-"), value) for key, value in trailing.items())
        await context.abort(code, "not now", pairs)
        return b""

    return fail


@asynccontextmanager
async def scripted(*steps: Handler) -> AsyncIterator[tuple[Script, int]]:
    script, server = Script(*steps), grpc.aio.server()
    handlers = {"Unary": grpc.unary_unary_rpc_method_handler(script.unary)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield script, port
    finally:
        await server.stop(0)


# --- retries by status ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_head", [False, True], ids=["trailers only", "in trailers after a head"])
async def test_a_status_is_retried_wherever_it_stands(after_head: bool) -> None:  # noqa: FBT001 - a row
    failing = fails(UNAVAILABLE, after_head=after_head)
    async with (
        mesh().routes(RETRIED).start() as m,
        scripted(failing, failing, echo) as (script, port),
        through(m, port) as channel,
    ):
        assert await channel.unary_unary("/test.Echo/Unary")(b"x") == b"x"
        assert [seen.get("grpc-previous-rpc-attempts") for seen in script.metadata] == [None, "1", "2"]
        assert m.recorder.retries == {"UNAVAILABLE": 2}
        assert m.cells() == {(GRPC, 0, ""): 1}


async def test_when_tries_are_used_up_the_last_status_stands() -> None:
    async with (
        mesh().routes(RETRIED).start() as m,
        scripted(fails(UNAVAILABLE)) as (script, port),
        through(m, port) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary("/test.Echo/Unary")(b"x")
        assert (failed.value.code(), failed.value.details()) == (UNAVAILABLE, "not now")
        assert script.calls == 3
        assert m.cells() == {(GRPC, 14, "URX"): 1}


async def test_another_status_and_a_call_without_a_stanza_are_not_retried() -> None:
    async with (
        mesh().routes(RETRIED).start() as m,
        scripted(fails(INTERNAL, after_head=True)) as (script, port),
        through(m, port) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/test.Echo/Unary")(b"x")
        assert script.calls == 1
    async with mesh().start() as m, scripted(fails(UNAVAILABLE)) as (script, port), through(m, port) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/test.Echo/Unary")(b"x")
        assert script.calls == 1


async def test_once_a_message_came_the_answer_is_committed() -> None:
    async def stream(_: bytes, context: Any) -> AsyncIterator[bytes]:
        calls.append(1)
        yield b"first"
        await context.abort(UNAVAILABLE, "later")

    calls: list[int] = []
    server = grpc.aio.server()
    handlers = {"Many": grpc.unary_stream_rpc_method_handler(stream)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with mesh().routes(RETRIED).start() as m, through(m, port) as channel:
        call = channel.unary_stream("/test.Echo/Many")(b"")
        assert await call.read() == b"first"
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()
        assert failed.value.code() is UNAVAILABLE
        assert len(calls) == 1
    await server.stop(0)


async def test_a_server_that_sends_its_head_and_then_waits_is_not_held_for_long() -> None:
    release = asyncio.Event()

    async def slow(request: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("hello", "first"),))
        await release.wait()
        if request == b"fail":
            await context.abort(UNAVAILABLE, "too late to be retried")
        return request

    async with mesh().routes(RETRIED).start() as m, scripted(slow) as (script, port), through(m, port) as channel:
        for request in (b"x", b"fail"):
            release.clear()
            call = channel.unary_stream("/test.Echo/Unary")(request)  # grpcio tells a unary call's head at its end only
            async with asyncio.timeout(5):  # the message never comes before this
                assert ("hello", "first") in list(await call.initial_metadata())
            release.set()
            if request == b"fail":
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await call.read()
                assert failed.value.details() == "too late to be retried"
            else:
                assert await call.read() == b"x"
        assert script.calls == 2


async def test_a_call_whose_client_is_still_sending_is_not_held() -> None:
    """A server that answers first and listens later must not wait for us, nor we for it."""

    async def both(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await context.send_initial_metadata((("hello", "first"),))
        async for request in requests:
            yield request

    server = grpc.aio.server()
    handlers = {"Both": grpc.stream_stream_rpc_method_handler(both)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with mesh().routes(RETRIED).start() as m, through(m, port) as channel:
        call = channel.stream_stream("/test.Echo/Both")()
        await call.write(b"1")
        assert ("hello", "first") in list(await call.initial_metadata())
        assert await call.read() == b"1"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    await server.stop(0)


@pytest.mark.parametrize(
    ("routes", "request_bytes"),
    [
        pytest.param(RETRIED.replace("    retry:", "#"), 1, id="no route retries by status"),
        pytest.param(RETRIED, 200_000, id="too much to send again"),
    ],
)
async def test_a_call_that_could_not_be_made_again_is_not_held(routes: str, request_bytes: int) -> None:
    release = asyncio.Event()

    async def slow(request: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("hello", "first"),))
        await release.wait()
        return request

    async with mesh().routes(routes).start() as m, scripted(slow) as (_, port), through(m, port) as channel:
        call = channel.unary_unary("/test.Echo/Unary")(b"x" * request_bytes)
        attempt = None

        def is_head_here() -> bool:
            nonlocal attempt
            attempt = next((exchange.attempt for exchange in m.plane.exchanges), None)
            return attempt is not None and attempt.head is not None

        await until(is_head_here, what="the head")
        assert attempt is not None
        assert not attempt.is_held
        release.set()
        assert len(await call) == request_bytes


async def test_a_server_says_when_to_come_back_or_not_at_all() -> None:
    """GRPC's proposal A6: grpc-retry-pushback-ms."""
    for said, calls in (("-1", 1), ("soon", 1), ("300", 2)):
        failing = fails(UNAVAILABLE, grpc_retry_pushback_ms=said)
        async with (
            mesh().routes(RETRIED).start() as m,
            scripted(failing, echo) as (script, port),
            through(m, port) as channel,
        ):
            unary = channel.unary_unary("/test.Echo/Unary")
            if calls == 1:
                with pytest.raises(grpc.aio.AioRpcError):
                    await unary(b"x")
            else:
                assert await unary(b"x") == b"x"
                assert script.times_s[1] - script.times_s[0] >= 0.3
            assert script.calls == calls, said


async def test_endpoints_that_fail_by_status_are_ejected() -> None:
    async with (
        mesh().start() as m,
        scripted(fails(INTERNAL)) as (bad, a),
        scripted(fails(grpc.StatusCode.NOT_FOUND)) as (good, b),
        through(m, a, b) as channel,
    ):
        unary = channel.unary_unary("/test.Echo/Unary")
        for _ in range(60):
            with pytest.raises(grpc.aio.AioRpcError):
                await unary(b"x")
        assert bad.calls == 5
        assert good.calls == 55  # a caller's own mistake says nothing of the server


# --- deadlines ------------------------------------------------------------------------------------------------------


async def test_a_deadline_shrinks_with_each_hop_and_each_try() -> None:
    failing = fails(UNAVAILABLE, grpc_retry_pushback_ms="300")
    async with (
        mesh().routes(RETRIED).start() as m,
        scripted(failing, echo) as (script, port),
        AsyncExitStack() as stack,
    ):
        inbound = await serve(stack, inbound_listener(m.plane, "echo-0", port, ConnectionLimits()))
        channel = await stack.enter_async_context(through(m, inbound))
        assert await channel.unary_unary("/test.Echo/Unary")(b"x", timeout=30) == b"x"
        first, second = script.remaining_s
        assert first is not None
        assert second is not None
        assert 20 < second <= first - 0.29
        assert first <= 31  # grpcio rounds up what it sends


async def test_what_a_hop_takes_before_its_first_try_is_off_the_deadline() -> None:
    """Here the endpoints have to be looked up first."""
    took_s = 0.3

    class Late(HandMadeDirectory):
        def look_up(self, service: Name, answer: Answer) -> None:
            def found() -> None:
                m.plane.apply_endpoints(service, (Endpoint("e", "127.0.0.1", port),))
                answer(None)

            asyncio.get_running_loop().call_later(took_s, found)

    async with mesh().start() as m, scripted(echo) as (script, port):
        m.plane.directory = Late()
        fields: Headers = [
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/test.Echo/Unary"), (b":authority", b"echo"),
            (b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"grpc-timeout", b"30S"),
        ]  # fmt: skip
        client = await m.connect()
        client.send(PREFACE + settings() + frame(HEADERS, END_HEADERS, 1, octets.encode(fields)))
        client.send(frame(DATA, END_STREAM, 1, b"\0\0\0\0\1x"))
        assert (await answer_on(client.reader))[0] == (b":status", b"200")
        (remaining_s,) = script.remaining_s
        assert remaining_s is not None
        assert 10 < remaining_s <= 30 - took_s
        client.writer.transport.abort()


async def test_a_client_that_forgets_its_deadline_is_answered_by_the_sidecar() -> None:
    async with mesh().start() as m, echo_server() as (server, port), through(m, port):
        fields: Headers = [
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/test.Echo/Unary"), (b":authority", b"echo"),
            (b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"grpc-timeout", b"300m"),
        ]  # fmt: skip
        client = await m.connect()
        client.send(PREFACE + settings() + frame(HEADERS, END_HEADERS, 1, octets.encode(fields)))
        client.send(frame(DATA, END_STREAM, 1, b"\0\0\0\0\4hang"))
        answer = await answer_on(client.reader)
        assert answer[0] == (b":status", b"200")
        assert (b"grpc-status", b"4") in answer
        assert b"grpc-timeout" in dict(answer)[b"grpc-message"]
        await asyncio.wait_for(server.cancelled.wait(), 5)
        client.writer.transport.abort()
        assert m.cells() == {(GRPC, 4, "UT"): 1}


async def answer_on(reader: asyncio.StreamReader) -> Headers:
    """The head of the first answer."""
    decoder, data = hpack.Decoder(1 << 16), b""
    async with asyncio.timeout(5):
        while True:
            data += await reader.read(1 << 16)
            for kind, _, _, payload in frames(data):
                if kind == HEADERS:
                    return decoder.decode(payload)


# --- what breaks ----------------------------------------------------------------------------------------------------


async def test_an_answer_that_breaks_off_ends_with_a_status() -> None:
    head = hpack.NO_TABLE + octets.encode([(b":status", b"200"), (b"content-type", b"application/grpc")])
    message = b"\0\0\0\0\5first"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(settings())
        data = b""
        while b"end of it" not in data:
            data += await reader.read(1 << 16)
        writer.write(frame(HEADERS, END_HEADERS, 1, head) + frame(DATA, 0, 1, message))
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with mesh().start() as m, server, through(m, server.sockets[0].getsockname()[1]) as channel:
        call = channel.unary_stream("/test.Echo/Many")(b"end of it")
        assert await call.read() == b"first"
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()
        assert failed.value.code() is UNAVAILABLE
        assert failed.value.details().startswith("sidemesh: UC: ")
        await until(lambda: m.cells() == {(GRPC, 14, "UC"): 1}, what="it to be counted")


# --- routes ---------------------------------------------------------------------------------------------------------


async def test_calls_are_routed_by_service_method_and_header_and_other_requests_are_not() -> None:
    route = """
    apiVersion: gateway.networking.k8s.io/v1
    kind: GRPCRoute
    metadata: {name: echo}
    spec:
      parentRefs: [{group: "", kind: Service, name: echo}]
      rules:
      - matches: [{method: {service: test.Echo, method: Unary}, headers: [{name: user, value: ada}]}]
        backendRefs: [{name: canary}]
      - matches: [{method: {service: test.Echo}}]
        backendRefs: [{name: echo}]
    """
    async with (
        mesh().routes(route).start() as m,
        scripted(echo) as (stable, a),
        scripted(echo) as (canary, b),
        through(m, a) as channel,
    ):
        m.plane.apply_endpoints(name("canary"), (Endpoint("c", "127.0.0.1", b),))
        unary = channel.unary_unary("/test.Echo/Unary")
        await unary(b"x")
        await unary(b"x", metadata=(("user", "ada"),))
        assert (stable.calls, canary.calls) == (1, 1)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary("/other.Service/Method")(b"")
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED  # as gRPC says of what nobody serves
        assert "NR" in failed.value.details()
        assert (await m.get(GRPC, "/test.Echo/Unary", method="POST")).status == 404


async def test_calls_are_split_by_the_weights_of_a_grpcroute_not_by_connections() -> None:
    route = """
    apiVersion: gateway.networking.k8s.io/v1
    kind: GRPCRoute
    metadata: {name: echo}
    spec:
      parentRefs: [{group: "", kind: Service, name: echo}]
      rules:
      - backendRefs: [{name: echo, weight: 3}, {name: canary, weight: 1}, {name: none, weight: 0}]
    """
    async with (
        mesh().routes(route).start() as m,
        scripted(echo) as (stable, a),
        scripted(echo) as (canary, b),
        scripted(echo) as (none, c),
        through(m, a) as channel,
    ):
        m.plane.apply_endpoints(name("canary"), (Endpoint("c", "127.0.0.1", b),))
        m.plane.apply_endpoints(name("none"), (Endpoint("n", "127.0.0.1", c),))
        unary = channel.unary_unary("/test.Echo/Unary")
        for _ in range(20):
            await asyncio.gather(*(unary(b"x") for _ in range(20)))
        assert stable.calls + canary.calls == 400
        assert 60 <= canary.calls <= 140  # 4.6 standard deviations around 100, with a seed of the mesh's own
        assert none.calls == 0


async def test_a_stream_in_which_both_sides_wait_is_left_alone_and_ended_with_a_status() -> None:
    """The server's head comes with its first message, as most send it; the client has said what it wants."""
    went_on = asyncio.Event()

    async def both(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        wanted = await anext(requests)
        await went_on.wait()
        yield wanted
        async for request in requests:
            yield request

    handlers = {"Both": grpc.stream_stream_rpc_method_handler(both)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    limits = ConnectionLimits(stall_s=1.0, tunnel_idle_s=4.0)
    async with mesh().limits(limits).start() as m, through(m, port) as channel:
        call = channel.stream_stream("/test.Echo/Both")()
        await call.write(b"news")
        await asyncio.sleep(2.5)
        went_on.set()
        assert await call.read() == b"news"
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK

        went_on.clear()
        call = channel.stream_stream("/test.Echo/Both")()
        await call.write(b"news")
        assert await call.code() is UNAVAILABLE
        assert "nothing passed" in await call.details()
    await server.stop(0)
