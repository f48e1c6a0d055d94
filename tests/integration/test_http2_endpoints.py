"""HTTP/2 endpoints that do what few do: each costs at most its own requests, and nobody hangs."""

import asyncio
import io
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from mesh.http.headers import Headers
from mesh.model.policy import AppProtocol, Limits, ServicePolicy
from mesh.model.service import Endpoint
from proxy.http2.frames import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    LAST_STREAM,
    MAX_CONCURRENT_STREAMS,
    RST_STREAM,
    WINDOW_UPDATE,
)
from tests.support.control import background
from tests.support.http2 import frame, settings
from tests.support.http2_server import OK, Handler, Talk, head, http2_endpoint
from tests.support.http2_server import Endpoint as RawEndpoint
from tests.support.mesh import Mesh, mesh, name
from tests.support.process import until


@asynccontextmanager
async def calling(
    handler: Handler, *offered: tuple[int, int], limits: Limits | None = None
) -> AsyncIterator[tuple[Mesh, RawEndpoint]]:
    """A mesh whose service ``pay`` is such an endpoint, spoken to in HTTP/2 whatever the caller speaks."""
    async with mesh().start() as m, http2_endpoint(handler, *offered) as endpoint:
        m.plane.apply_endpoints(name("pay"), (Endpoint("raw", "127.0.0.1", endpoint.port),))
        service = m.plane.services[name("pay")]
        service.set_policy(ServicePolicy(name("pay"), app_protocol=AppProtocol.HTTP2, limits=limits or Limits()))
        yield m, endpoint


async def over(m: Mesh) -> None:
    """Nothing is under way, and nothing is counted that is not there."""
    await until(lambda: not m.plane.exchanges, what="the exchanges to end")
    usage = m.plane.services[name("pay")].usage
    assert (usage.requests, usage.pending) == (0, 0)


async def answers(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
    talk.answer(stream)


@pytest.mark.parametrize("messages", [0, 15])
async def test_who_waits_is_not_sent_on_a_connection_that_says_goaway_with_its_last_answers(messages: int) -> None:
    """As nginx does at its ``keepalive_requests``; a POST, which would not be sent twice.

    With ``messages`` of each answer so many frames come at once that they are read in two turns.
    """
    count, first = 30, list[int]()

    async def answer_and_go(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        if talk is not endpoint.talks[0]:
            talk.answer(stream)
            return
        first.append(stream)
        if len(first) == count:
            await until(lambda: m.plane.services[name("pay")].usage.pending == count, what="others to wait")
            heads = b"".join(head(each, OK, ended=not messages) for each in first)
            bodies = b"".join(frame(DATA, 0, each, b"message") for _ in range(messages) for each in first)
            ends = b"".join(frame(DATA, END_STREAM, each, b"last") for each in first) if messages else b""
            talk.send(heads + bodies + ends + frame(GOAWAY, 0, 0, struct.pack(">LL", max(first), 0)))

    limits = Limits(max_connections=1)
    async with calling(answer_and_go, (MAX_CONCURRENT_STREAMS, count), limits=limits) as (m, endpoint):
        async with asyncio.timeout(10):
            said = await asyncio.gather(*(m.get("pay", "/", "POST", body=b"x") for _ in range(2 * count)))
        assert {each.status for each in said} == {200}
        assert len(endpoint.talks) == 2
        await over(m)


@pytest.mark.parametrize("code", [2, 7, 8])
async def test_a_reset_is_retried_a_few_times_and_not_without_end(code: int) -> None:
    async def reset_but_the_first(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        if stream == 1:
            talk.answer(stream)
        else:
            talk.send(frame(RST_STREAM, 0, stream, struct.pack(">L", code)))

    async with calling(reset_but_the_first) as (m, endpoint):
        assert (await m.get("pay")).status == 200
        assert (await m.get("pay")).status == 503
        assert endpoint.heads <= 4
        await over(m)


async def test_an_endpoint_that_takes_no_streams_is_waited_for_and_not_connected_to_again() -> None:
    """RFC 9113 §6.5.2: it may say 0 for a short while."""
    async with calling(answers, (MAX_CONCURRENT_STREAMS, 0)) as (m, endpoint):
        service = m.plane.services[name("pay")]
        calls = [background(m.get("pay")) for _ in range(5)]
        await until(lambda: bool(endpoint.talks), what="a connection")
        await until(lambda: service.usage.pending >= 4, what="them to wait")  # one may come before the settings
        await asyncio.sleep(0.1)
        assert len(endpoint.talks) == 1
        endpoint.talks[0].send(settings((MAX_CONCURRENT_STREAMS, 10)))
        assert [answer.status for answer in await asyncio.gather(*calls)] == [200] * 5
        await over(m)


async def test_a_connection_whose_numbers_have_run_out_is_followed_by_another() -> None:
    """RFC 9113 §5.1.1: they are not used again."""
    async with calling(answers) as (m, endpoint):
        assert (await m.get("pay")).status == 200
        (pay,) = m.plane.services[name("pay")].endpoints.values()
        (connection,) = pay.http2_pool._connections
        connection.codec.next_stream = LAST_STREAM
        assert [(await m.get("pay")).status for _ in range(3)] == [200] * 3
        assert [len(talk.received) > 0 for talk in endpoint.talks] == [True, True]
        assert [stream for kind, _, stream, _ in endpoint.talks[0].received if kind == HEADERS] == [1, LAST_STREAM]
        assert [stream for kind, _, stream, _ in endpoint.talks[1].received if kind == HEADERS] == [1, 3]
        await over(m)


async def test_trailers_pass_and_bad_ones_end_the_request() -> None:
    said: list[Headers] = [
        [(b"grpc-status", b"0"), (b"x-request-id", b"abc"), (b"traceparent", b"x"), (b"via", b"1.1 other")],
        [(b"Upper", b"case")],
    ]

    async def with_trailers(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        talk.answer(stream, trailers=said.pop(0))

    async with calling(with_trailers) as (m, _):
        answer = await m.get("pay")
        assert answer.trailers == [
            ("grpc-status", "0"),
            ("x-request-id", "abc"),
            ("traceparent", "x"),
            ("via", "1.1 other"),
        ]
        assert (await m.get("pay")).status == 502
        await over(m)


FRAMINGS = [
    ("204 with an empty end", [(b":status", b"204")], b"", 204),
    ("304 with a length", [(b":status", b"304"), (b"content-length", b"5")], b"", 304),
    ("304 with a body", [(b":status", b"304")], b"abc", 502),
    ("204 with a body", [(b":status", b"204")], b"abc", 502),
    ("too short", [(b":status", b"200"), (b"content-length", b"5")], b"abc", 502),
]


@pytest.mark.parametrize(("fields", "body", "status"), [pytest.param(*row[1:], id=row[0]) for row in FRAMINGS])
async def test_an_answer_never_runs_into_the_next(fields: Headers, body: bytes, status: int) -> None:
    """On one HTTP/1.1 connection: either the answer is whole as its client reads it, or the connection ends."""

    async def odd_then_good(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        if len(talk.received) < 6 and stream == 1:
            talk.answer(stream, body, fields)
        else:
            talk.answer(stream, b"second", [*OK, (b"content-length", b"6")])

    async with calling(odd_then_good) as (m, _):
        client = await m.connect()
        client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        first = await client.receive()
        assert (first.status, b"second" in first.body) == (status, False)
        client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        assert (await client.receive()).body == b"second"


MALFORMED: list[tuple[str, str, Headers]] = [
    ("8.2.1", "a name in upper case", [*OK, (b"X-Up", b"1")]),
    ("8.2.1", "a line feed in a value", [*OK, (b"x", b"a\nb")]),
    ("8.2.2", "connection", [*OK, (b"connection", b"close")]),
    ("8.2.2", "transfer-encoding", [*OK, (b"transfer-encoding", b"chunked")]),
    ("8.3.2", "a second :status", [*OK, (b":status", b"201")]),
    ("8.3", "a pseudo field of requests", [*OK, (b":path", b"/")]),
    ("8.1.1", "two lengths", [*OK, (b"content-length", b"2"), (b"content-length", b"3")]),
]


@pytest.mark.parametrize("fields", [pytest.param(row[2], id=f"{row[0]} {row[1]}") for row in MALFORMED])
async def test_a_malformed_answer_is_not_passed_on(fields: Headers) -> None:
    """RFC 9113 §8.1.1: in HTTP/1.1 it might be read as two."""

    async def malformed(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        talk.answer(stream, b"ok", fields)

    async with calling(malformed) as (m, _):
        assert (await m.get("pay")).status == 502
        await over(m)


async def test_no_body_where_the_length_says_one() -> None:
    async def ends_at_once(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        talk.send(head(stream, [*OK, (b"content-length", b"5")], ended=True))

    async with calling(ends_at_once) as (m, _):
        assert (await m.get("pay")).status == 502
        assert (await m.get("pay", method="HEAD")).get("content-length") == "5"


async def test_an_answer_that_is_its_head_ends_there_for_an_http1_client() -> None:
    async def head_only(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        talk.send(head(stream, [(b":status", b"204" if stream == 3 else b"404")], ended=True))

    async with calling(head_only) as (m, _):
        client = await m.connect()
        for status, length in ((404, "0"), (204, None), (404, "0")):
            client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
            answer = await client.receive_head()
            assert (answer.status, answer.get("content-length")) == (status, length)
            assert answer.get("transfer-encoding") is None
        client.send(b"HEAD / HTTP/1.1\r\nhost: pay\r\n\r\n")
        assert (await client.receive_head()).get("content-length") is None


async def test_who_waits_for_a_stream_gets_it_when_one_ends() -> None:
    async def slowly(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        asyncio.get_running_loop().call_later(0.02, talk.answer, stream)

    async with calling(slowly, (3, 1), limits=Limits(max_connections=1)) as (m, endpoint):
        found = await asyncio.gather(*(m.get("pay") for _ in range(20)))
        assert [answer.status for answer in found] == [200] * 20
        assert len(endpoint.talks) == 1
        await over(m)


async def test_a_connection_that_goes_away_is_left_and_closed() -> None:
    async def last_one(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        talk.send(frame(GOAWAY, 0, 0, struct.pack(">LL", stream, 0)))
        talk.answer(stream)

    async with calling(last_one) as (m, endpoint):
        for _ in range(5):
            assert (await m.get("pay")).status == 200
        assert len(endpoint.talks) == 5
        await until(lambda: m.plane.services[name("pay")].usage.connections == 0, what="all five to be closed")


async def test_credit_in_small_pieces_is_no_flood() -> None:
    """As a server gives it that reads a file's worth 4 KiB at a time."""
    size = 16 * 1024 * 1024

    async def take(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        taken = 0
        while taken < size:
            start = await talk.reader.readexactly(9)
            payload = await talk.reader.readexactly(int.from_bytes(start[:3], "big"))
            if start[3] != DATA:
                continue
            taken += len(payload)
            for begin in range(0, len(payload), 4096):
                credit = struct.pack(">L", min(4096, len(payload) - begin))
                talk.send(frame(WINDOW_UPDATE, 0, stream, credit), frame(WINDOW_UPDATE, 0, 0, credit))
            await talk.writer.drain()
        talk.answer(stream)

    async with calling(take) as (m, _), aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{m.port}/"
        async with (
            asyncio.timeout(30),
            session.post(url, data=io.BytesIO(b"x" * size), headers={"host": "pay"}) as answer,
        ):
            assert answer.status == 200
        await over(m)


async def test_an_endpoint_that_is_gone_without_a_word_is_found_out() -> None:
    """Its connection stays and nothing comes: after a timeout it is asked whether anybody is there (PING)."""

    async def silent_after_the_first(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        if stream == 1:
            talk.answer(stream)
        else:
            await asyncio.Event().wait()  # it reads no more, PING neither

    async with calling(silent_after_the_first) as (m, endpoint):
        assert (await m.get("pay")).status == 200

        async def asked_again() -> bool:
            client = await m.connect()
            client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
            try:
                async with asyncio.timeout(0.3):
                    return (await client.receive()).status == 200
            except TimeoutError:
                client.writer.transport.abort()  # as its caller gives up
                return False

        await until(asked_again, what="another connection", timeout_s=15)
        assert len(endpoint.talks) == 2


async def test_a_large_head_is_refused_before_it_breaks_its_siblings() -> None:
    async def slowly(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        asyncio.get_running_loop().call_later(0.3, talk.answer, stream)

    async with calling(slowly, (6, 8192)) as (m, _):
        assert (await m.get("pay")).status == 200
        siblings = asyncio.gather(*(m.get("pay") for _ in range(5)))
        await asyncio.sleep(0.05)
        assert (await m.get("pay", headers=["x-large: " + "a" * 10_000])).status == 431
        assert [answer.status for answer in await siblings] == [200] * 5
        await over(m)


async def test_an_endpoint_that_breaks_a_rule_and_reads_nothing_holds_nobody_up() -> None:
    async def break_it(talk: Talk, stream: int, ended: bool) -> None:  # noqa: FBT001 - a handler
        if ended:
            return  # never answered
        talk.send(frame(HEADERS, 4, 2, b""))  # a stream of its own: never allowed
        await asyncio.Event().wait()

    async with calling(break_it) as (m, _):
        sibling = asyncio.gather(m.get("pay", method="DELETE"))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(5):
            client = await m.connect()
            client.send(b"POST / HTTP/1.1\r\nhost: pay\r\ncontent-length: 10000000\r\n\r\n" + b"x" * 500_000)
            assert (await client.receive()).status == 502
            assert (await sibling)[0].status in (502, 503)
        client.writer.transport.abort()
        await until(lambda: m.plane.services[name("pay")].usage.connections == 0, what="the connection to end")
