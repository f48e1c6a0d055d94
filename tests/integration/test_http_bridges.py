"""What crosses between HTTP/1.1 and HTTP/2, each way: trailers and who takes them, informational answers, authorities."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from mesh.http.headers import Headers
from mesh.model.name import Name
from mesh.model.policy import AppProtocol, ServicePolicy
from mesh.model.service import Endpoint
from proxy.http2 import hpack
from proxy.http2.frames import DATA, END_HEADERS, END_STREAM, HEADERS, INITIAL_WINDOW_SIZE, PREFACE
from proxy.recorder import LOCAL
from tests.support.http2 import GET, POST, START, credit, frame, frames, head, settings
from tests.support.http2_server import OK, Handler, Talk, http2_endpoint
from tests.support.http2_server import head as answer_head
from tests.support.mesh import Client, Mesh, Program, Reply, Request, mesh, name, speak
from tests.support.process import until
from tests.support.telemetry import sidecar

TE: tuple[bytes, bytes] = (b"te", b"trailers")
Sees = list[Headers]


async def over_http2(m: Mesh, *sent: bytes) -> tuple[list[Headers], bytes]:
    """Call on stream 1; gives the heads that came (1xx, the answer's, trailers) and the body."""
    return await over_connection(await m.connect(), *sent)


async def over_connection(client: Client, *sent: bytes) -> tuple[list[Headers], bytes]:
    """The same on a connection that is there."""
    client.send(START + b"".join(sent))
    data, decoder, heads, body, ended = b"", hpack.Decoder(1 << 16), list[Headers](), b"", False
    async with asyncio.timeout(10):
        while not ended:
            data += await client.reader.read(1 << 16)
            whole = 0
            while len(data) - whole >= 9 and len(data) - whole >= 9 + int.from_bytes(data[whole : whole + 3], "big"):
                whole += 9 + int.from_bytes(data[whole : whole + 3], "big")
            for kind, flags, stream, payload in frames(data[:whole]):
                if stream != 1:
                    continue
                if kind == HEADERS:
                    heads.append(decoder.decode(payload))
                elif kind == DATA:
                    body += payload
                ended = ended or bool(flags & END_STREAM)
            data = data[whole:]
    client.writer.transport.abort()
    return heads, body


@asynccontextmanager
async def http2_service(handler: Handler) -> AsyncIterator[tuple[Mesh, Sees]]:
    """A service that speaks HTTP/2 to every caller, and the heads it is sent."""
    sees: Sees = []
    decoder = hpack.Decoder(1 << 16)

    async def noting(talk: Talk, stream: int, ended: bool) -> None:  # noqa: FBT001 - a handler
        sees.append(decoder.decode(talk.received[-1][3]))
        await handler(talk, stream, ended)

    async with mesh().start() as m, http2_endpoint(noting) as endpoint:
        m.plane.apply_endpoints(name("pay"), (Endpoint("raw", "127.0.0.1", endpoint.port, {"http2": "true"}),))
        yield m, sees


@asynccontextmanager
async def http1_service(reply: Reply = 200) -> AsyncIterator[Mesh]:
    """A service that speaks HTTP/1.1 to every caller."""
    async with mesh().service("pay", replies=[reply]).start() as m:
        speak(m, "pay", AppProtocol.HTTP)
        yield m


async def answers(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
    talk.answer(stream)


# --- who takes trailers (RFC 9110 §10.1.4, RFC 9113 §8.2.2) -----------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("te: trailers", [b"trailers"]),
        ("TE: Trailers, deflate;q=0.5", [b"trailers"]),
        ("te: deflate", []),
        ("x-te: trailers", []),
    ],
)
async def test_te_from_an_http1_caller_says_trailers_or_nothing(field: str, expected: list[bytes]) -> None:
    async with http2_service(answers) as (m, sees):
        assert (await m.get("pay", headers=[field, "connection: te"])).status == 200
        assert [value for name, value in sees[0] if name == b"te"] == expected


async def test_te_from_an_http2_caller_is_said_of_the_connection_in_http1() -> None:
    async with http1_service() as m:
        heads, _ = await over_http2(m, head(1, [*GET, TE]))
        assert heads[0][0] == (b":status", b"200")
        seen = m.programs["pay"][0].requests[0]
        assert (seen.fields("te"), seen.fields("connection")) == (["trailers"], ["te"])


async def test_te_is_said_anew_on_each_http1_connection() -> None:
    async with http1_service() as m:
        assert (await m.get("pay", headers=["TE: trailers", "Connection: TE"])).status == 200
        assert (await m.get("pay")).status == 200
        first, second = m.programs["pay"][0].requests
        assert (first.fields("te"), first.fields("connection")) == (["trailers"], ["te"])
        assert (second.fields("te"), second.fields("connection")) == ([], [])


# --- trailers of a body whose length is known: HTTP/2 has both, HTTP/1.1 either ---------------------------------------


async def chunked(request: Request, writer: asyncio.StreamWriter) -> None:
    request.body = await request.reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


async def test_announced_trailers_of_a_request_with_a_length_reach_an_http1_program() -> None:
    async with http1_service(chunked) as m:
        fields = [*POST, (b"content-length", b"3"), (b"trailer", b"x-sum")]
        heads, body = await over_http2(
            m, head(1, fields, END_HEADERS), frame(DATA, 0, 1, b"abc"), head(1, [(b"x-sum", b"9")])
        )
        assert (heads[0][0], body) == ((b":status", b"200"), b"ok")
        seen = m.programs["pay"][0].requests[0]
        assert (seen.fields("content-length"), seen.fields("transfer-encoding")) == ([], ["chunked"])
        assert seen.fields("trailer") == ["x-sum"]
        assert seen.body == b"3\r\nabc\r\n0\r\nx-sum: 9\r\n\r\n"


async def with_length_and_trailers(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
    fields = [*OK, (b"content-length", b"3"), (b"trailer", b"x-sum")]
    talk.answer(stream, b"abc", fields, trailers=[(b"x-sum", b"9")])


async def test_announced_trailers_of_an_answer_with_a_length_reach_an_http1_client() -> None:
    async with http2_service(with_length_and_trailers) as (m, _):
        client = await m.connect()
        for _again in range(2):
            client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
            answer = await client.receive()
            assert (answer.status, answer.body, answer.trailers) == (200, b"abc", [("x-sum", "9")])
            assert (answer.get("content-length"), answer.get("transfer-encoding")) == (None, "chunked")


async def test_an_http1_0_client_gets_the_length_and_no_trailers() -> None:
    async with http2_service(with_length_and_trailers) as (m, _):
        client = await m.connect()
        client.send(b"GET / HTTP/1.0\r\nhost: pay\r\n\r\n")
        assert (await client.reader.read()).endswith(b"content-length: 3\r\nconnection: close\r\n\r\nabc")


async def test_the_answer_to_a_head_keeps_its_length() -> None:
    async def bodiless(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        talk.send(answer_head(stream, [*OK, (b"content-length", b"3"), (b"trailer", b"x-sum")], ended=True))

    async with http2_service(bodiless) as (m, _):
        answer = await m.get("pay", method="HEAD")
        assert (answer.status, answer.get("content-length"), answer.get("transfer-encoding")) == (200, "3", None)


async def test_between_http2_peers_length_and_trailers_stay_as_they_are() -> None:
    async with http2_service(with_length_and_trailers) as (m, sees):
        fields = [*POST, (b"content-length", b"3"), (b"trailer", b"x-sum")]
        heads, body = await over_http2(
            m, head(1, fields, END_HEADERS), frame(DATA, 0, 1, b"abc"), head(1, [(b"x-sum", b"9")])
        )
        assert (b"content-length", b"3") in sees[0]
        assert (b"content-length", b"3") in heads[0]
        assert (body, heads[-1]) == (b"abc", [(b"x-sum", b"9")])


# --- informational answers (RFC 9110 §15.2) ---------------------------------------------------------------------------


async def test_informational_answers_of_an_http1_program_reach_an_http2_client() -> None:
    async def hints(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with http1_service(hints) as m:
        heads, body = await over_http2(m, head(1))
        assert [fields[0][1] for fields in heads] == [b"103", b"200"]
        assert (b"link", b"</a.css>") in heads[0]
        assert body == b"ok"


async def test_informational_answers_of_an_http2_endpoint_reach_an_http1_client() -> None:
    async def hints(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        talk.send(answer_head(stream, [(b":status", b"103"), (b"link", b"</a.css>")]))
        talk.answer(stream, b"ok", [*OK, (b"content-length", b"2")])

    async with http2_service(hints) as (m, _):
        client = await m.connect()
        client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n"
        assert (await client.receive()).body == b"ok"


# --- authorities and cookies (RFC 9113 §8.2.3, §8.3.1) ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("authority", "host", "expected"),
    [
        (b"pay", b"pay", b"200"),
        (b"pay", b"PAY", b"200"),
        (b"pay:80", b"pay", b"200"),
        (b"pay", b"other", None),
        (b"pay", b"pay:81", None),
    ],
)
async def test_a_host_beside_the_authority_has_to_name_the_same(
    authority: bytes, host: bytes, expected: bytes | None
) -> None:
    async with http1_service() as m:
        request = head(1, [*GET[:3], (b":authority", authority), (b"host", host)])
        if expected is None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(over_http2(m, request), 0.3)
            assert not m.programs["pay"][0].requests
            return
        heads, _ = await over_http2(m, request)
        assert heads[0][0] == (b":status", expected)
        assert m.programs["pay"][0].requests[0].fields("host") == [authority.decode()]


async def test_cookie_crumbs_are_one_cookie_to_an_http1_program() -> None:
    async with http1_service() as m:
        await over_http2(m, head(1, [*GET, (b"cookie", b"a=1"), (b"cookie", b"b=2")]))
        assert m.programs["pay"][0].requests[0].fields("cookie") == ["a=1; b=2"]


async def test_fields_of_a_connection_do_not_reach_a_client_over_http2() -> None:
    """RFC 9113 §8.2.2: a client that sees one takes the answer for malformed."""
    answer = (
        b"HTTP/1.1 200 OK\r\nconnection: keep-alive, X-Private\r\nx-private: 1\r\nkeep-alive: timeout=5\r\n"
        b"proxy-connection: keep-alive\r\nupgrade: h2c\r\ntransfer-encoding: chunked\r\nX-Kept: 1\r\n\r\n"
        b"2\r\nok\r\n0\r\n\r\n"
    )
    async with http1_service(answer) as m:
        heads, body = await over_http2(m, head(1))
        assert body == b"ok"
        assert [name for name, _ in heads[0]] == [b":status", b"x-kept", b"via"]


async def test_a_compressed_message_passes_as_it_is() -> None:
    """Its flag, its length and its bytes are between the two ends of a call; so is the field that names the coding."""
    message = gzip.compress(b"x" * 10_000)
    framed = b"\x01" + len(message).to_bytes(4, "big") + message

    async def compressed(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        fields: Headers = [*OK, (b"content-type", b"application/grpc"), (b"grpc-encoding", b"gzip")]
        talk.answer(stream, framed, fields, trailers=[(b"grpc-status", b"0")])

    call: Headers = [*POST, (b"content-type", b"application/grpc"), (b"grpc-encoding", b"gzip"), TE]
    async with http2_service(compressed) as (m, sees):
        heads, body = await over_http2(m, head(1, call, END_HEADERS), frame(DATA, END_STREAM, 1, framed))
        assert body == framed
        assert (b"grpc-encoding", b"gzip") in heads[0]
        assert (b"grpc-encoding", b"gzip") in sees[0]


@pytest.mark.parametrize("between", [AppProtocol.HTTP, AppProtocol.HTTP2])
async def test_100_continue_crosses_two_sidecars_before_the_body_is_sent(between: AppProtocol) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        assert request.fields("expect") == ["100-continue"]
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.body = await request.reader.readexactly(5)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with mesh().service("pay", replies=[reply], sidecar=True).start() as m:
        speak(m, "pay", between)
        local = Name(LOCAL, "pay-0")
        m.plane.services[local].set_policy(ServicePolicy(local, app_protocol=AppProtocol.HTTP))
        client = await m.connect()
        client.send(b"POST / HTTP/1.1\r\nhost: pay\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n")
        assert (await client.receive_head()).status == 100
        client.send(b"12345")
        assert (await client.receive()).body == b"ok"
        assert m.programs["pay"][0].requests[0].body == b"12345"


# --- which version an endpoint is spoken to in ------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["http2", "kubernetes.io/h2c", "grpc"])
async def test_metadata_of_discovery_say_what_is_spoken_as_a_policy_does(said: str) -> None:
    async with mesh().start() as m, http2_endpoint(answers) as endpoint:
        raw = Endpoint("raw", "127.0.0.1", endpoint.port, {"appProtocol": said})
        m.plane.apply_endpoints(name("pay"), (raw,))
        assert (await m.get("pay")).body == b"ok"
        m.plane.services[name("pay")].set_policy(ServicePolicy(name("pay"), app_protocol=AppProtocol.HTTP))
        assert (await m.get("pay")).status in (502, 503)  # the policy's word counts for more


@pytest.mark.parametrize(
    ("metadata", "status"),
    [
        ({"http2": "false"}, b"200"),
        ({"appProtocol": "http"}, b"200"),
        ({"http2": "false", "appProtocol": "grpc"}, b"200"),  # ``http2`` is asked first
        ({}, b"502"),  # spoken to as the caller spoke
    ],
)
async def test_metadata_say_that_an_endpoint_speaks_http1_only_to_callers_over_http2_too(
    metadata: dict[str, str], status: bytes
) -> None:
    async with mesh().service("pay", replies=[200]).start() as m:
        port = m.programs["pay"][0].port
        m.plane.apply_endpoints(name("pay"), (Endpoint("e", "127.0.0.1", port, metadata),))
        heads, _ = await over_http2(m, head(1))
        assert heads[0][0] == (b":status", status)


@pytest.mark.parametrize("caller", ["http1", "http2"])
@pytest.mark.parametrize("protocol", ["http1", "http2"])
async def test_a_sidecar_speaks_to_its_program_as_it_was_told_whatever_its_callers_speak(
    protocol: str, caller: str
) -> None:
    async with AsyncExitStack() as stack:
        if protocol == "http2":
            port = (await stack.enter_async_context(http2_endpoint(answers))).port
        else:
            program = Program([200])
            await program.start()
            stack.push_async_callback(program.stop)
            port = program.port
        running = await stack.enter_async_context(sidecar("pay", port=port, protocol=protocol))
        async with asyncio.timeout(10):
            client = Client(*await asyncio.open_connection("127.0.0.1", running.inbound))
            stack.callback(client.writer.transport.abort)
            if caller == "http1":
                client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
                assert (await client.receive()).status == 200
            else:
                heads, _ = await over_connection(client, head(1))
                assert heads[0][0] == (b":status", b"200")


# --- a slow client ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [50_000, 70_000, 100_000, 120_000])
async def test_an_answer_that_ends_while_its_client_is_slow_leaves_a_connection_that_others_can_use(size: int) -> None:
    """The last piece was too much for the client, so the endpoint was paused; what comes next on it must be read."""

    async def in_two_halves(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _half in range(2):
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.write(b"x" * (size // 2))

    async with http1_service(in_two_halves) as m:
        m.programs["pay"][0]._replies.append(200)
        client = await m.connect()
        client.send(PREFACE + settings((INITIAL_WINDOW_SIZE, 0)) + head(1))
        (pay,) = m.plane.services[name("pay")].endpoints.values()
        await until(
            lambda: all(c.attempt is None for c in pay.connections) and pay.connections, what="the whole answer"
        )
        client.send(credit(1, 1 << 20) + credit(0, 1 << 20))
        assert (await m.get("pay")).status == 200
        assert m.programs["pay"][0].connections == 1
        client.writer.transport.abort()
