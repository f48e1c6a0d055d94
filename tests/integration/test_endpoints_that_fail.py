"""What counts against an endpoint besides the status it answers, and what its resets say to a gRPC caller."""

import asyncio
import contextlib

import grpc
import grpc.aio
import pytest

from mesh.model.policy import OutlierDetection, ServicePolicy
from proxy.http2.errors import ErrorCode
from proxy.http2.frames import DATA, RST_STREAM
from tests.support.grpc_echo import RETRIED, echo_server, through
from tests.support.http2 import frame
from tests.support.http2_server import Talk, head, http2_endpoint
from tests.support.mesh import Reply, Request, mesh, name
from tests.support.ports import free_port

GRPC_HEAD = [(b":status", b"200"), (b"content-type", b"application/grpc")]


async def break_off(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart")
    await writer.drain()
    writer.close()


async def hang(_: Request, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while not writer.is_closing():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("bad", [break_off, hang])
async def test_an_answer_that_breaks_off_or_never_comes_counts_against_its_endpoint(bad: Reply) -> None:
    policy = ServicePolicy(name("pay"), outlier_detection=OutlierDetection(consecutive_failures=2, base_ejection_s=60))
    async with mesh().programs("pay", [bad], [200], [200]).policy(policy).rule("pay", request_s=0.1).start() as m:
        for _ in range(40):
            with contextlib.suppress(asyncio.IncompleteReadError):
                await m.get("pay")
        assert len(m.programs["pay"][0].requests) == 2
        assert m.recorder.ejections == 1


async def test_a_client_that_sends_slowly_says_nothing_of_the_endpoint() -> None:
    policy = ServicePolicy(name("pay"), outlier_detection=OutlierDetection(consecutive_failures=1, base_ejection_s=60))
    async with mesh().programs("pay", [hang], [hang]).policy(policy).rule("pay", request_s=0.1).start() as m:
        client = await m.connect()
        client.send(b"POST / HTTP/1.1\r\nhost: pay\r\ncontent-length: 10\r\n\r\nhalf")
        assert (await client.receive()).status == 504
        assert m.recorder.ejections == 0


async def test_a_stream_of_messages_that_breaks_off_counts_against_its_endpoint() -> None:
    async def one_message(talk: Talk, stream: int, *_: object) -> None:
        talk.send(head(stream, GRPC_HEAD), frame(DATA, 0, stream, b"\0\0\0\0\1x"))
        await talk.writer.drain()
        talk.writer.close()

    async with mesh().start() as m, http2_endpoint(one_message) as bad, echo_server() as (good, port):
        async with through(m, bad.port, port) as channel:
            failed = 0
            for _ in range(40):
                try:
                    await channel.unary_unary("/test.Echo/Unary")(b"x")
                except grpc.aio.AioRpcError:
                    failed += 1
        assert (failed, good.calls, m.recorder.ejections) == (5, 35, 1)


async def test_a_deadline_of_the_callers_own_says_nothing_of_the_endpoint() -> None:
    async with mesh().start() as m, echo_server() as (_, port), echo_server() as (_, other):
        async with through(m, port, other) as channel:
            for _ in range(12):
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await channel.unary_unary("/test.Echo/Unary")(b"hang", timeout=0.03)
                assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert m.recorder.ejections == 0


@pytest.mark.parametrize("has_head", [False, True], ids=["before the head", "after it"])
@pytest.mark.parametrize(
    ("code", "status", "tries"),
    [
        (ErrorCode.CANCEL, grpc.StatusCode.CANCELLED, 1),
        (ErrorCode.ENHANCE_YOUR_CALM, grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
        (ErrorCode.INADEQUATE_SECURITY, grpc.StatusCode.PERMISSION_DENIED, 1),
        (ErrorCode.INTERNAL_ERROR, grpc.StatusCode.INTERNAL, 1),
        (ErrorCode.PROTOCOL_ERROR, grpc.StatusCode.INTERNAL, 1),
        (ErrorCode.REFUSED_STREAM, grpc.StatusCode.UNAVAILABLE, 3),
    ],
)
async def test_a_reset_is_the_status_that_its_code_stands_for(
    code: ErrorCode, status: grpc.StatusCode, tries: int, *, has_head: bool
) -> None:
    async def give_up(talk: Talk, stream: int, *_: object) -> None:
        if has_head:
            talk.send(head(stream, GRPC_HEAD))
        talk.send(frame(RST_STREAM, 0, stream, code.to_bytes(4, "big")))

    async with mesh().routes(RETRIED).start() as m, http2_endpoint(give_up) as endpoint:
        async with through(m, endpoint.port) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await channel.unary_unary("/test.Echo/Unary")(b"x")
        assert (failed.value.code(), endpoint.heads) == (status, tries)


async def test_attempts_that_no_server_can_have_seen_are_not_told_of() -> None:
    async with mesh().routes(RETRIED).start() as m, echo_server() as (server, port):
        async with through(m, free_port(), port) as channel:
            for _ in range(20):
                assert await channel.unary_unary("/test.Echo/Unary")(b"x") == b"x"
                assert "grpc-previous-rpc-attempts" not in dict(server.metadata)
        assert m.recorder.retries.total() > 0
