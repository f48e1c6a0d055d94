"""A bug in any callback of an answer costs the exchange it was met in, and nothing else: no other call, no count.

Run by ``test_pure_python``: a method of a compiled class cannot be replaced by one that fails.
"""

import asyncio
import contextlib
from typing import Any

import pytest

from mesh.model.policy import AppProtocol
from proxy.attempt import Attempt
from proxy.http1.upstream import Http1Upstream
from proxy.request_body import RequestBody
from tests.support.mesh import Mesh, Request, mesh, name, read_body, speak
from tests.support.process import until

SECOND_HALF_S = 0.05


async def send(request: Request, writer: asyncio.StreamWriter, *pieces: bytes) -> None:
    """Read the body, then answer in pieces; a caller that has gone needs no answer."""
    await read_body(request.fields("content-length"), request.fields("transfer-encoding"), request.reader)
    with contextlib.suppress(RuntimeError, ConnectionError):  # uvloop's word for a closed transport, and asyncio's
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(SECOND_HALF_S)


async def in_pieces(request: Request, writer: asyncio.StreamWriter) -> None:
    """An answer whose end comes later than its head, after a 1xx, with trailers."""
    early = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n"
    await send(request, writer, early, head, b"3\r\nllo\r\n0\r\nx-sum: 1\r\n\r\n")


async def until_close(request: Request, writer: asyncio.StreamWriter) -> None:
    """An answer that ends with its connection."""
    await send(request, writer, b"HTTP/1.1 200 OK\r\n\r\nhe", b"llo")
    writer.close()


async def whole(request: Request, writer: asyncio.StreamWriter) -> None:
    """An answer that comes at once."""
    await send(request, writer, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")


CALLBACKS = [
    (Attempt, "on_stream", whole),
    (Attempt, "on_answer", whole),
    (Attempt, "on_informational", in_pieces),
    (Attempt, "on_head", in_pieces),
    (Attempt, "on_data", in_pieces),
    (Attempt, "on_end", in_pieces),
    (Attempt, "on_end", until_close),
    (Http1Upstream, "start", whole),
    (Http1Upstream, "send_data", whole),
    (Http1Upstream, "send_end", whole),
    (RequestBody, "on_data", whole),
    (RequestBody, "on_end", whole),
]


async def post(m: Mesh) -> tuple[int, bytes] | None:
    """A request whose body comes in two parts; None where its connection breaks off."""
    client = await m.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: pay\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n")
    await asyncio.sleep(SECOND_HALF_S)
    client.send(b"1\r\nc\r\n0\r\n\r\n")
    try:
        answer = await client.receive()
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    finally:
        client.close()
    return answer.status, answer.body


@pytest.mark.parametrize(("owner", "callback", "reply"), CALLBACKS)
async def test_a_bug_in_a_callback_costs_one_exchange_and_no_other(
    owner: type, callback: str, reply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh().service("pay", replies=[reply] * 3).start() as m:
        real, met = getattr(owner, callback), []

        def broken_once(*args: Any, **more: Any) -> Any:
            if not met:
                met.append(callback)
                raise ZeroDivisionError(callback)
            return real(*args, **more)

        monkeypatch.setattr(owner, callback, broken_once)
        async with asyncio.timeout(5):
            victim = await post(m)
            assert met, "the callback was never called"
            assert victim is None or victim[0] >= 400
            await until(lambda: not m.plane.exchanges, what="the exchange to be over", timeout_s=3)
            assert await post(m) == (200, b"hello")
        await until(lambda: not m.plane.exchanges, what="the other to be over", timeout_s=3)
        usage = m.plane.services[name("pay")].usage
        assert (usage.requests, usage.pending) == (0, 0)


async def test_a_bug_while_frames_are_read_ends_that_connection_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh().service("pay", replies=[whole] * 2).start() as m:
        speak(m, "pay", AppProtocol.HTTP)
        real, met = RequestBody.on_end, []

        def broken_once(*args: Any) -> Any:
            if not met:
                met.append(1)
                raise ZeroDivisionError
            return real(*args)

        monkeypatch.setattr(RequestBody, "on_end", broken_once)
        first = await curl(m)
        assert first != "200"
        assert met
        await until(lambda: not m.plane.exchanges, what="the exchange to be over", timeout_s=3)
        assert await curl(m) == "200"


async def curl(m: Mesh) -> str:
    """The status that curl, which speaks HTTP/2 here, got for a POST; 000 where it got none."""
    words = (
        "curl",
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "--http2-prior-knowledge",
        "-d",
        "abc",
        "--max-time",
        "5",
    )
    child = await asyncio.create_subprocess_exec(
        *words, "-H", "Host: pay", f"http://127.0.0.1:{m.port}/", stdout=asyncio.subprocess.PIPE
    )
    output, _ = await child.communicate()
    return output.decode()
