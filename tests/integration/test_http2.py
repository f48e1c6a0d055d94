"""HTTP/2 and gRPC through the request path on real sockets, with real clients and servers: grpcio, curl, nghttp2's."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import grpc.aio
import pytest

from mesh.model.policy import AppProtocol, ServicePolicy
from mesh.model.service import Endpoint
from proxy.http1.limits import ConnectionLimits
from proxy.http2.frames import ACK, DATA, END_STREAM, GOAWAY, LAST_STREAM, PING
from tests.support.grpc_echo import GRPC, LARGE, echo_server, through
from tests.support.http2 import START, frame, frames, head
from tests.support.mesh import Mesh, Request, inbound_listener, mesh, name, serve, speak
from tests.support.needs import require
from tests.support.ports import free_port, is_open
from tests.support.process import Process, until


async def test_a_unary_call_with_its_metadata_and_trailers() -> None:
    async with mesh().start() as m, echo_server() as (echo, port), through(m, port) as channel:
        call = channel.unary_unary("/test.Echo/Unary")(b"hello", metadata=(("x-user", "ada"), ("x-bin", b"\0\xff")))
        assert await call == b"hello"
        assert ("sum", "5") in list(await call.trailing_metadata())
        seen = dict(echo.metadata)
        assert (seen["x-user"], seen["x-bin"]) == ("ada", b"\0\xff")
        assert seen["via"].startswith("2.0 sidemesh-out")
        assert "traceparent" in seen
        assert m.cells() == {(GRPC, 0, ""): 1}


async def test_an_error_keeps_its_status_and_message() -> None:
    async with mesh().start() as m, echo_server() as (_, port), through(m, port) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary("/test.Echo/Unary")(b"fail")
        assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "no, caf\u00e9")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary("/test.Echo/Nothing")(b"")
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_streams_of_all_kinds() -> None:
    async with mesh().start() as m, echo_server() as (_, port), through(m, port) as channel:
        many = channel.unary_stream("/test.Echo/Many")(b"1000")
        assert [message async for message in many] == [b"%d" % number for number in range(1000)]

        async def pieces() -> AsyncIterator[bytes]:
            for number in range(100):
                yield b"%d," % number

        assert await channel.stream_unary("/test.Echo/Collect")(pieces()) == b"".join([b"%d," % n for n in range(100)])
        both = channel.stream_stream("/test.Echo/Both")()
        assert ("hello", "first") in list(await both.initial_metadata())  # the answer begins before the request ends
        for number in range(20):
            await both.write(b"%d" % number)
            assert await both.read() == b"%d" % number * 2
        await both.done_writing()
        assert await both.read() is grpc.aio.EOF


async def test_large_messages_both_ways_and_compression_untouched() -> None:
    async with mesh().start() as m, echo_server() as (_, port), through(m, port) as channel:
        unary = channel.unary_unary("/test.Echo/Unary")
        message = bytes(range(256)) * (LARGE // 256)
        assert await unary(message) == message
        assert await unary(message, compression=grpc.Compression.Gzip) == message
        assert await asyncio.gather(*(unary(message[: 2**20]) for _ in range(8))) == [message[: 2**20]] * 8


async def test_a_deadline_and_a_cancellation_reach_the_server() -> None:
    async with mesh().start() as m, echo_server() as (echo, port), through(m, port) as channel:
        unary = channel.unary_unary("/test.Echo/Unary")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await unary(b"hang", timeout=0.3)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(echo.cancelled.wait(), 5)
        echo.cancelled.clear()
        call = unary(b"hang")
        await until(lambda: echo.calls == 2, what="the call")
        call.cancel()
        await asyncio.wait_for(echo.cancelled.wait(), 5)
        await until(lambda: not m.plane.exchanges, what="the exchanges to end")
        assert await unary(b"still there") == b"still there"


async def test_what_the_mesh_answers_is_a_grpc_status_to_a_grpc_caller() -> None:
    async with mesh().start() as m, echo_server() as (_, port), through(m, port) as channel:
        unary = channel.unary_unary("/test.Echo/Unary")
        m.plane.apply_endpoints(name(GRPC), ())
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await unary(b"x")
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert failed.value.details().startswith("sidemesh: UH: no healthy endpoint in echo")
        m.plane.apply_endpoints(name(GRPC), (Endpoint("gone", "127.0.0.1", free_port()),))
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await unary(b"x")
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "UF" in failed.value.details()


async def test_load_is_balanced_by_call_and_a_dead_endpoint_is_passed_over() -> None:
    async with (
        mesh().start() as m,
        echo_server() as (one, a),
        echo_server() as (two, b),
        through(m, a, b, free_port()) as channel,
    ):
        unary = channel.unary_unary("/test.Echo/Unary")
        for _ in range(30):  # one by one, so that the retries stay within their budget until the dead one is ejected
            assert await unary(b"x") == b"x"
        assert await asyncio.gather(*(unary(b"x") for _ in range(90))) == [b"x"] * 90
        assert min(one.calls, two.calls) > 20


async def test_many_calls_at_once_share_few_connections() -> None:
    async with mesh().start() as m, echo_server() as (_, port), through(m, port) as channel:
        unary = channel.unary_unary("/test.Echo/Unary")
        for _ in range(5):
            assert await asyncio.gather(*(unary(b"%d" % n) for n in range(200))) == [b"%d" % n for n in range(200)]
        (endpoint,) = m.plane.services[name(GRPC)].endpoints.values()
        assert 1 <= endpoint.http2_pool.count <= 4
        assert m.cells() == {(GRPC, 0, ""): 1000}


async def test_through_both_sidecars() -> None:
    """Outbound and inbound: the inbound listener tells HTTP/2 by its preface, and speaks it to the program."""
    async with mesh().start() as m, echo_server() as (_, port), AsyncExitStack() as stack:
        listener = inbound_listener(m.plane, "echo-0", port, ConnectionLimits())
        inbound = await serve(stack, listener)
        channel = await stack.enter_async_context(through(m, inbound))
        unary = channel.unary_unary("/test.Echo/Unary")
        assert await asyncio.gather(*(unary(b"%d" % n) for n in range(50))) == [b"%d" % n for n in range(50)]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await unary(b"fail")
        assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION


# --- bridges --------------------------------------------------------------------------------------------------------


async def curl(m: Mesh, *options: str, path: str = "/") -> subprocess.CompletedProcess[str]:
    command = [
        require("curl"),
        "-sS",
        "-i",
        "--http2-prior-knowledge",
        "-H",
        "host: pay",
        *options,
        f"http://127.0.0.1:{m.port}{path}",
    ]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True, timeout=20)


async def test_an_http2_client_of_an_http1_program() -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        request.body = await request.reader.readexactly(5)
        writer.write(
            b"HTTP/1.1 201 Yes\r\ntransfer-encoding: chunked\r\nx-a: 1\r\nx-a: 2\r\n\r\n3\r\nabc\r\n0\r\nx-end: yes\r\n\r\n"
        )

    async with mesh().service("pay", replies=[reply, 200, 204]).start() as m:
        speak(m, "pay", AppProtocol.HTTP)
        done = await curl(m, "-X", "POST", "-d", "hello", "-b", "a=1; b=2", path="/x?y=%2F")
        assert done.stdout.startswith("HTTP/2 201")
        assert done.stdout.count("x-a: ") == 2
        assert done.stdout.split("abc")[1].split() == ["x-end:", "yes"]
        seen = m.programs["pay"][0].requests[0]
        assert (seen.line, seen.body) == ("POST /x?y=%2F HTTP/1.1", b"hello")
        assert (seen.fields("host"), seen.fields("cookie")) == (["pay"], ["a=1; b=2"])
        assert "hello" in (await curl(m)).stdout
        done = await curl(m, "-I")
        assert done.stdout.startswith("HTTP/2 204")


async def test_an_http1_client_of_an_http2_program(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("from nghttpd")
    (tmp_path / "large").write_bytes(b"x" * 3_000_000)
    port = free_port()
    command = (require("nghttpd"), "--no-tls", "-d", tmp_path, "--echo-upload", "-a", "127.0.0.1", str(port))
    async with mesh().start() as m, Process.start(*command, log=tmp_path / "log") as server:
        m.plane.apply_endpoints(name("pay"), (Endpoint("n", "127.0.0.1", port),))
        speak(m, "pay", AppProtocol.HTTP2)
        await server.until(lambda: is_open(port), what="nghttpd")
        assert (await m.get("pay", "/index.html")).body == b"from nghttpd"
        assert len((await m.get("pay", "/large")).body) == 3_000_000
        assert (await m.get("pay", "/", method="POST", body=b"y" * 500_000)).body == b"y" * 500_000
        assert (await m.get("pay", "/none")).status == 404
        assert (await m.get("pay", "/index.html", method="HEAD")).get("content-length") == "12"


async def test_a_request_goes_out_at_once_and_not_with_the_next_event(tmp_path: Path) -> None:
    """An HTTP/1.1 request on an HTTP/2 connection that is there already: the sweep every 100 ms must not be its ride."""
    (tmp_path / "index.html").write_text("x")
    port = free_port()
    command = (require("nghttpd"), "--no-tls", "-d", tmp_path, "-a", "127.0.0.1", str(port))
    async with mesh().start() as m, Process.start(*command, log=tmp_path / "log") as server:
        m.plane.deadlines.close()  # no sweep
        m.plane.apply_endpoints(name("pay"), (Endpoint("n", "127.0.0.1", port, {"http2": "true"}),))
        await server.until(lambda: is_open(port), what="nghttpd")
        client = await m.connect()
        for _ in range(20):
            client.send(b"GET /index.html HTTP/1.1\r\nhost: pay\r\n\r\n")
            assert (await client.receive()).status == 200


async def test_nghttp_gets_several_answers_with_its_priorities() -> None:
    """It sends PRIORITY frames for streams that are never begun, and streams that depend on them (RFC 7540 §5.3)."""
    async with mesh().service("pay", replies=[200]).start() as m:
        speak(m, "pay", AppProtocol.HTTP)
        urls = (f"http://127.0.0.1:{m.port}/{n}" for n in range(3))
        command = [require("nghttp"), "-v", "-n", "-H", ":authority: pay", *urls]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True, timeout=30)
        assert "send PRIORITY frame" in done.stdout
        assert done.stdout.count(":status: 200") == 3
        assert m.cells() == {("pay", 200, ""): 3}


async def test_h2load_loses_no_request(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("x" * 100)
    port = free_port()
    command = (require("nghttpd"), "--no-tls", "-d", tmp_path, "-a", "127.0.0.1", str(port))
    async with mesh().start() as m, Process.start(*command, log=tmp_path / "log") as server:
        m.plane.apply_endpoints(name("pay"), (Endpoint("n", "127.0.0.1", port),))
        await server.until(lambda: is_open(port), what="nghttpd")
        load = [
            require("h2load"),
            "-n",
            "5000",
            "-c",
            "5",
            "-m",
            "50",
            "-H",
            ":authority: pay",
            f"http://127.0.0.1:{m.port}/index.html",
        ]
        done = await asyncio.to_thread(subprocess.run, load, capture_output=True, text=True, check=True, timeout=60)
        assert "5000 succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout
        assert m.cells() == {("pay", 200, ""): 5000}


async def test_a_draining_listener_tells_its_http2_clients_and_loses_no_call() -> None:
    async with mesh().start() as m, echo_server() as (_, port), through(m, port) as channel:
        unary = channel.unary_unary("/test.Echo/Unary")
        assert await unary(b"x") == b"x"
        before = set(m.outbound.connections)
        held = channel.stream_stream("/test.Echo/Both")()
        await held.write(b"a")
        assert await held.read() == b"aa"
        m.outbound.is_draining = True

        async def goes_on() -> bool:
            assert await unary(b"y") == b"y"
            return bool(set(m.outbound.connections) - before)

        await until(goes_on, what="a new connection after GOAWAY")
        await held.write(b"b")  # what was under way is finished
        assert await held.read() == b"bb"
        await held.done_writing()
        assert await held.read() is grpc.aio.EOF
        await until(lambda: not before & m.outbound.connections, what="the old connection to close")


# --- who speaks what ------------------------------------------------------------------------------------------------


async def test_an_endpoint_says_in_its_metadata_what_it_speaks_and_a_policy_overrules_it() -> None:
    async with mesh().service("pay").start() as m:
        (program,) = m.programs["pay"]
        for said, protocol, status in (
            ("true", None, 502),  # it speaks HTTP/1.1 in truth: whoever declares HTTP/2 is taken at their word
            ("true", AppProtocol.HTTP, 200),
            ("false", None, 200),
            ("false", AppProtocol.GRPC, 502),
        ):
            m.plane.apply_endpoints(name("pay"), (Endpoint("p", "127.0.0.1", program.port, {"http2": said}),))
            service = m.plane.services[name("pay")]
            service.set_policy(ServicePolicy(name("pay"), app_protocol=protocol))
            answer = await m.get("pay", method="POST")
            assert answer.status == status, (said, protocol, answer.body)


async def test_a_program_that_speaks_http1_only_is_told_from_one_that_is_broken() -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with mesh().start() as m, server:
        m.plane.apply_endpoints(name("old"), (Endpoint("p", "127.0.0.1", port, {"http2": "true"}),))
        answer = await m.get("old", method="POST")
        assert answer.status == 502
        assert b"it speaks HTTP/1.1 only" in answer.body


async def test_the_program_is_spoken_to_as_the_caller_spoke_whatever_lies_between() -> None:
    async with mesh().service("shop").start() as m, AsyncExitStack() as stack:
        (program,) = m.programs["shop"]
        inbound = await serve(stack, inbound_listener(m.plane, "shop-0", program.port, ConnectionLimits()))
        m.plane.apply_endpoints(name("shop"), (Endpoint("s", "127.0.0.1", inbound, {"http2": "true"}),))
        assert (await m.get("shop")).status == 200
        via = ",".join(program.requests[-1].fields("via"))
        assert [hop.split()[0] for hop in via.split(",")] == ["1.1", "2.0"]  # as each sidecar was spoken to


async def test_a_drain_goes_away_in_two_steps_and_serves_what_was_begun_between_them() -> None:
    """RFC 9113 §6.8: the first GOAWAY names no stream, the second the last one that was taken; then it ends."""
    done = asyncio.Event()

    async def held(_: Request, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with mesh().service("pay", replies=[held]).start() as m:
        speak(m, "pay", AppProtocol.HTTP)
        client = await m.connect()
        data = b""

        async def read_until(kind: int, count: int) -> list[tuple[int, int, int, bytes]]:
            nonlocal data
            while True:
                found = [each for each in frames(data) if each[0] == kind and not each[1] & ACK]
                if len(found) >= count:
                    return found
                piece = await client.reader.read(65536)
                assert piece, "it ended"
                data += piece

        async with asyncio.timeout(15):
            client.send(START + head(1))
            await until(lambda: len(m.programs["pay"][0].requests) == 1, what="the first request")
            m.outbound.is_draining = True
            (first,) = await read_until(GOAWAY, 1)
            (ping,) = await read_until(PING, 1)
            assert int.from_bytes(first[3][:4], "big") == LAST_STREAM
            client.send(head(3) + frame(PING, ACK, 0, ping[3]))
            second = (await read_until(GOAWAY, 2))[1]
            assert second[3] == (3).to_bytes(4, "big") + bytes(4)
            client.send(head(5))  # too late: it is to be sent elsewhere
            done.set()
            while piece := await client.reader.read(65536):
                data += piece
        ended = {stream for kind, flags, stream, _ in frames(data) if kind == DATA and flags & END_STREAM}
        assert ended == {1, 3}
        assert len(m.programs["pay"][0].requests) == 2
