"""Browsers' calls through a sidecar: gRPC-Web over HTTP/1.1 and HTTP/2, text and binary, to real gRPC servers."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
import yaml

from mesh.http.headers import Headers
from mesh.model.policy import AppProtocol
from mesh.model.service import Endpoint
from proxy.http1.limits import ConnectionLimits
from proxy.http2.frames import DATA, END_STREAM, HEADERS, RST_STREAM, WINDOW_UPDATE
from tests.support.control import background
from tests.support.grpc_echo import GRPC, RETRIED, echo_server
from tests.support.grpc_web import (
    BINARY,
    COLLECT,
    MANY,
    TEXT,
    UNARY,
    Answer,
    Http1Call,
    as_sent,
    call,
    connected,
    message,
)
from tests.support.http2 import frame
from tests.support.http2_server import Talk, head, http2_endpoint
from tests.support.mesh import Mesh, inbound_listener, mesh, name, serve, speak
from tests.support.process import until
from tests.support.telemetry import ask, endpoints, otlp_backend, sidecar

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:h2")

FORMS = [(protocol, form) for protocol in ("http1", "http2") for form in (BINARY, TEXT)]
each_form = pytest.mark.parametrize(("protocol", "form"), FORMS, ids=[f"{p} {f.rpartition('/')[2]}" for p, f in FORMS])
each_protocol = pytest.mark.parametrize("protocol", ["http1", "http2"])

BY_METHOD = """
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: echo}
spec:
  parentRefs: [{group: "", kind: Service, name: echo}]
  rules:
  - matches: [{method: {service: test.Echo, method: Unary}}]
    backendRefs: [{name: echo}]
"""


def at(m: Mesh, *ports: int, service: str = GRPC) -> None:
    """Make these the service's endpoints."""
    m.plane.apply_endpoints(name(service), tuple(Endpoint(f"e{port}", "127.0.0.1", port) for port in ports))


@asynccontextmanager
async def serving(**methods: Any) -> AsyncIterator[int]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


# --- calls ----------------------------------------------------------------------------------------------------------


@each_form
async def test_a_unary_call_and_a_stream_of_answers(protocol: str, form: str) -> None:
    async with mesh().start() as m, echo_server() as (server, port):
        at(m, port)
        answer = await call(m, protocol, form, UNARY, b"hello", fields=[("user", "ada"), ("x-bin", "AAEC")])
        assert (answer.status, answer.headers["content-type"]) == (200, form)
        assert answer.messages == [b"hello"]
        assert answer.trailers == {"grpc-status": "0", "sum": "5"} or answer.trailers["sum"] == "5"
        assert answer.http_trailers == []
        seen = dict(server.metadata)
        assert (seen["user"], seen["x-bin"]) == ("ada", b"\0\1\2")
        assert "accept" not in seen
        assert "content-length" not in seen
        assert "via" in seen

        many = await call(m, protocol, form, MANY, b"200")
        assert many.messages == [b"%d" % number for number in range(200)]
        assert many.code == 0
        assert m.cells() == {(GRPC, 0, ""): 2}


@each_form
async def test_large_messages_pass_whole(protocol: str, form: str) -> None:
    sent = bytes(range(256)) * 4096  # 1 MiB: many reads, and no multiple of three
    async with mesh().start() as m, echo_server() as (_, port):
        at(m, port)
        answer = await call(m, protocol, form, COLLECT, sent, b"", sent[:1000])
        assert answer.messages == [sent + sent[:1000]]
        assert answer.code == 0


@each_form
async def test_a_failing_call_has_its_status_and_nothing_else(protocol: str, form: str) -> None:
    async with mesh().start() as m, echo_server() as (_, port):
        at(m, port)
        answer = await call(m, protocol, form, UNARY, b"fail")
        assert (answer.status, answer.headers["content-type"], answer.messages) == (200, form, [])
        assert answer.code == 9
        assert answer.trailers["grpc-message"] == "no, caf%C3%A9"
        assert m.cells() == {(GRPC, 9, ""): 1}


@each_form
async def test_a_status_after_messages_stands_in_the_last_frame(protocol: str, form: str) -> None:
    async def stream(_: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        await context.abort(grpc.StatusCode.DATA_LOSS, "lost", (("why", "disk"),))

    async with mesh().start() as m, serving(Many=grpc.unary_stream_rpc_method_handler(stream)) as port:
        at(m, port)
        answer = await call(m, protocol, form, MANY, b"")
        assert answer.messages == [b"one"]
        assert (answer.code, answer.trailers["grpc-message"], answer.trailers["why"]) == (15, "lost", "disk")


@each_form
async def test_messages_come_as_they_are_sent(protocol: str, form: str) -> None:
    go_on = asyncio.Event()

    async def stream(_: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        await go_on.wait()
        yield b"two"

    async with mesh().start() as m, serving(Many=grpc.unary_stream_rpc_method_handler(stream)) as port:
        at(m, port)
        async with connected(m, protocol) as client:
            client.start(MANY, [("content-type", form)], GRPC)
            await client.send(as_sent(form, b""))
            client.end()
            answer = await client.head()
            while len(answer.body) < len(as_sent(form, b"one")):
                assert await client.read(answer)
            assert answer.messages == [b"one"]  # whole, though no trailer has come
            go_on.set()
            while await client.read(answer):
                pass
            assert answer.messages == [b"one", b"two"]


async def test_the_form_is_what_accept_says_else_the_request_s() -> None:
    async with mesh().start() as m, echo_server() as (_, port):
        at(m, port)
        for form, accept, expected in (
            (BINARY, TEXT, TEXT), (TEXT, BINARY, BINARY), (TEXT, "*/*", TEXT), (TEXT + "+proto", TEXT + "+proto", TEXT),
        ):  # fmt: skip
            answer = await call(m, "http1", form, UNARY, b"hello", fields=[("accept", accept)])
            assert answer.headers["content-type"] == expected
            assert (answer.messages, answer.code) == ([b"hello"], 0)


async def test_on_one_connection_calls_and_other_requests_follow_each_other() -> None:
    """A length in the request is that of its text; a whole answer has one of its own."""
    text = base64.b64encode(message(b"hello"))
    request = (
        b"POST %b HTTP/1.1\r\nhost: echo\r\ncontent-type: application/grpc-web-text\r\ncontent-length: %d\r\n\r\n%b"
        % (UNARY.encode(), len(text), text)
    )
    async with mesh().service("pay").start() as m, echo_server() as (_, port):
        at(m, port)
        client = await m.connect()
        client.send(request + b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n" + request)
        for expected in (text, b"hello", text):
            answer = await client.receive()
            assert answer.body.startswith(expected)
            assert answer.get("content-length") == str(len(answer.body))
        assert answer.get("transfer-encoding") is None


async def test_an_http10_client_reads_to_the_end() -> None:
    async with mesh().start() as m, echo_server() as (_, port):
        at(m, port)
        client = await m.connect()
        body = message(b"3")
        client.send(
            b"POST %b HTTP/1.0\r\nhost: echo\r\ncontent-type: application/grpc-web\r\ncontent-length: %d\r\n\r\n%b"
            % (MANY.encode(), len(body), body)
        )
        answer = await client.receive()
        assert Answer(200, {"content-type": BINARY}, bytearray(answer.body)).messages == [b"0", b"1", b"2"]
        assert await client.ended()


# --- what gRPC asks for besides -------------------------------------------------------------------------------------


@each_form
async def test_a_deadline_is_kept(protocol: str, form: str) -> None:
    async with mesh().start() as m, echo_server() as (server, port):
        at(m, port)
        answer = await call(m, protocol, form, UNARY, b"hang", fields=[("grpc-timeout", "300m")])
        assert (answer.status, answer.code) == (200, 4)
        assert "grpc-timeout" in answer.trailers["grpc-message"]
        await asyncio.wait_for(server.cancelled.wait(), 5)
        assert m.cells() == {(GRPC, 4, "UT"): 1}


async def test_the_server_is_told_what_is_left_of_a_deadline() -> None:
    remaining: list[float | None] = []

    async def unary(request: bytes, context: Any) -> bytes:
        remaining.append(context.time_remaining())
        return request

    async with mesh().start() as m, serving(Unary=grpc.unary_unary_rpc_method_handler(unary)) as port:
        at(m, port)
        await call(m, "http1", TEXT, UNARY, b"", fields=[("grpc-timeout", "30S")])
        await call(m, "http2", BINARY, UNARY, b"")
    assert remaining[0] is not None
    assert 20 < remaining[0] <= 30
    assert remaining[1] is None


@each_form
async def test_a_status_is_retried(protocol: str, form: str) -> None:
    calls: list[dict[str, Any]] = []

    async def unary(request: bytes, context: Any) -> bytes:
        calls.append(dict(context.invocation_metadata()))
        if len(calls) < 3:
            await context.send_initial_metadata((("hello", "first"),))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return request

    async with mesh().routes(RETRIED).start() as m, serving(Unary=grpc.unary_unary_rpc_method_handler(unary)) as port:
        at(m, port)
        answer = await call(m, protocol, form, UNARY, b"again")
        assert (answer.messages, answer.code) == ([b"again"], 0)
        assert [seen.get("grpc-previous-rpc-attempts") for seen in calls] == [None, "1", "2"]
        assert m.recorder.retries == {"UNAVAILABLE": 2}
        assert m.cells() == {(GRPC, 0, ""): 1}


async def test_a_grpcroute_takes_it() -> None:
    async with mesh().routes(BY_METHOD).start() as m, echo_server() as (_, port):
        at(m, port)
        assert (await call(m, "http1", TEXT, UNARY, b"hello")).messages == [b"hello"]
        assert (await call(m, "http1", TEXT, MANY, b"3")).code == 12
        assert (await m.get(GRPC, UNARY, method="POST")).status == 404


async def test_both_sidecars_and_the_program_speak_http2_with_it() -> None:
    async with mesh().start() as m, echo_server() as (server, port), AsyncExitStack() as stack:
        inbound = await serve(stack, inbound_listener(m.plane, "echo-0", port, ConnectionLimits()))
        at(m, inbound)
        answer = await call(m, "http1", TEXT, UNARY, b"hello")
        assert answer.messages == [b"hello"]
        assert [part[:4] for part in dict(server.metadata)["via"].split(", ")] == ["2.0 ", "2.0 "]
        direct = await call(m, "http1", BINARY, UNARY, b"hello", port=inbound)  # as a gateway before the mesh would
        assert direct.messages == [b"hello"]
        unknown = await call(m, "http2", BINARY, "/test.Echo/None", b"hello", port=inbound)
        assert unknown.code == 12


async def test_its_spans_are_those_of_grpc() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with otlp_backend() as backend, echo_server() as (_, port), AsyncExitStack() as stack:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": backend.http, "OTEL_BSP_SCHEDULE_DELAY": "20"}
        behind = await stack.enter_async_context(sidecar(GRPC, port=port, env=env))
        before = await stack.enter_async_context(sidecar("shop", services={GRPC: endpoints(behind.inbound)}, env=env))
        reader, writer = await asyncio.open_connection("127.0.0.1", before.outbound)
        client = Http1Call(reader, writer)
        client.start(UNARY, [("content-type", TEXT), ("traceparent", f"00-{trace}-b7ad6b7169203331-01")], GRPC)
        await client.send(as_sent(TEXT, b"fail"))
        client.end()
        assert (await client.head()).headers["grpc-status"] == "9"
        spans = {span.kind: span for span in await backend.until(2)}
        writer.close()
    for kind in ("CLIENT", "SERVER"):
        attributes = spans[kind].attributes
        assert spans[kind].trace_id == trace
        assert (attributes["rpc.system"], attributes["rpc.grpc.status_code"]) == ("grpc", 9)
        assert attributes["network.protocol.version"] == "2"


async def test_mesh_why_takes_it_for_a_call() -> None:
    async with sidecar("shop", services={GRPC: endpoints(1)}, routes=tuple(yaml.safe_load_all(BY_METHOD))) as running:
        for path, takes in ((UNARY, True), (MANY, False)):
            url = f"{running.admin}/why?method=POST&url=http://{GRPC}{path}&header=content-type:{TEXT}"
            _, _, text = await ask(url, {})
            assert ("404 NR" not in text) is takes, text


# --- the mesh's own answers -----------------------------------------------------------------------------------------


@each_form
async def test_the_mesh_answers_as_grpc_web_does(protocol: str, form: str) -> None:
    async with mesh().start() as m:
        for service, endpoints_, code, flag in (("nobody", None, 12, "NR"), (GRPC, (), 14, "UH")):
            if endpoints_ is not None:
                at(m)
            answer = await call(m, protocol, form, UNARY, b"hello", authority=service)
            assert (answer.status, answer.headers["content-type"], answer.body) == (200, form, b"")
            assert answer.code == code
            assert answer.trailers["grpc-message"].startswith(f"sidemesh: {flag}: ")
            assert f'details="{flag} ' in answer.headers["proxy-status"]
        assert m.recorder.series_for(None, None, "grpc").cells[12, "NR"].count == 1


@each_form
async def test_an_answer_that_is_no_grpc_passes_as_it_is(protocol: str, form: str) -> None:
    page = b"HTTP/1.1 502 X\r\ncontent-type: text/html\r\ncontent-length: 9\r\n\r\n<p>no</p>"
    async with mesh().service(GRPC, replies=[page]).start() as m:
        speak(m, GRPC, AppProtocol.HTTP)
        answer = await call(m, protocol, form, UNARY, b"hello")
        assert (answer.status, answer.headers["content-type"], answer.body) == (502, "text/html", b"<p>no</p>")


@asynccontextmanager
async def breaking(m: Mesh, fields: Headers, *bodies: bytes) -> AsyncIterator[asyncio.Event]:
    """An endpoint that sends a head and these pieces, and resets the stream once the event is set."""
    go_on = asyncio.Event()

    async def answer(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        talk.send(head(stream, [(b":status", b"200"), *fields]), *[frame(DATA, 0, stream, body) for body in bodies])
        await go_on.wait()
        talk.send(frame(RST_STREAM, 0, stream, b"\0\0\0\2"))

    async with http2_endpoint(answer) as running:
        at(m, running.port)
        speak(m, GRPC, AppProtocol.HTTP2)
        yield go_on


OF_GRPC: Headers = [(b"content-type", b"application/grpc")]
BROKEN: list[tuple[Headers, tuple[bytes, ...], bool]] = [
    (OF_GRPC, (message(b"one"),), False),
    (OF_GRPC, (message(b"one"), message(b"two")[:-1]), True),
    (OF_GRPC, (b"\0\0",), True),
    ([(b"content-type", b"text/html")], (b"<p>",), True),
    ([(b"content-type", b"text/html"), (b"content-length", b"100")], (b"<p>",), True),
]


@each_form
@pytest.mark.parametrize(
    ("fields", "bodies", "is_broken"), BROKEN, ids=["between", "in a message", "in a prefix", "a page", "by length"]
)
async def test_an_answer_that_breaks_off_is_never_taken_for_whole(
    protocol: str,
    form: str,
    fields: Headers,
    bodies: tuple[bytes, ...],
    is_broken: bool,  # noqa: FBT001 - a row
) -> None:
    async with mesh().start() as m, breaking(m, fields, *bodies) as go_on, connected(m, protocol) as client:
        client.start(UNARY, [("content-type", form)], GRPC)
        await client.send(as_sent(form, b"hello"))
        client.end()
        answer = await client.head()
        length = answer.headers.pop("content-length", None)
        go_on.set()
        if length and protocol == "http1":
            with pytest.raises(asyncio.IncompleteReadError):
                await client.reader.readexactly(int(length))
            return
        while await client.read(answer):
            pass
        assert answer.is_broken is is_broken
        if not is_broken:
            assert answer.messages == [b"one"]
            assert answer.code == 13  # what a reset with INTERNAL_ERROR stands for
            assert answer.trailers["grpc-message"].startswith("sidemesh: UC: ")
        await until(lambda: m.cells() == {(GRPC, 13, "UC"): 1}, what="it to be counted")


@each_form
async def test_a_server_that_ends_within_a_message_is_not_taken_for_whole(protocol: str, form: str) -> None:
    async def answer(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        talk.answer(stream, message(b"hello")[:-1], [(b":status", b"200"), *OF_GRPC], [(b"grpc-status", b"0")])

    async with mesh().start() as m, http2_endpoint(answer) as running:
        at(m, running.port)
        speak(m, GRPC, AppProtocol.HTTP2)
        answered = await call(m, protocol, form, UNARY, b"hello")
        assert answered.is_broken


async def test_a_server_that_gives_no_trailers_is_not_given_a_status() -> None:
    async def answer(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        talk.answer(stream, message(b"hello"), [(b":status", b"200"), *OF_GRPC, (b"content-length", b"10")])

    async with mesh().start() as m, http2_endpoint(answer) as running:
        at(m, running.port)
        speak(m, GRPC, AppProtocol.HTTP2)
        answered = await call(m, "http2", BINARY, UNARY, b"hello")
        assert answered.frames == [(0, b"hello"), (0x80, b"")]
        assert m.cells() == {(GRPC, 2, ""): 1}  # as a gRPC caller has to see it


# --- what clients do ------------------------------------------------------------------------------------------------


HELLO = message(b"hello")
WRONG: list[tuple[str, str, bytes]] = [
    ("no base64", TEXT, b"!!!!"), ("url-safe base64", TEXT, b"AAAAAAT-____"), ("lines", TEXT, b"AAAA\nAAA"),
    ("padding missing", TEXT, base64.b64encode(HELLO).rstrip(b"=") + b"AA"), ("binary in text", TEXT, HELLO),
    ("half a message", BINARY, HELLO[:-1]), ("half a prefix", BINARY, b"\0\0"), ("half of text", TEXT, b"AAAA"),
    ("more than it says", BINARY, HELLO + b"\0"), ("trailers", BINARY, HELLO + message(b"a: b\r\n", 0x80)),
    ("trailers first", TEXT, base64.b64encode(message(b"", 0x80))), ("text in binary", BINARY, base64.b64encode(HELLO)),
    ("a flag that is none", BINARY, message(b"hello", 4)),
]  # fmt: skip


@each_protocol
@pytest.mark.parametrize(("form", "body"), [pytest.param(*row[1:], id=row[0]) for row in WRONG])
@pytest.mark.parametrize("is_cut", [False, True], ids=["at once", "byte by byte"])
async def test_a_malformed_body_is_refused_and_no_server_takes_it(
    protocol: str,
    form: str,
    body: bytes,
    is_cut: bool,  # noqa: FBT001 - a row
) -> None:
    async def never(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        del talk, stream

    async with mesh().start() as m, http2_endpoint(never) as server:
        at(m, server.port)
        async with connected(m, protocol) as client:
            client.start(COLLECT, [("content-type", form)], GRPC)
            for piece in [body[i : i + 1] for i in range(len(body))] if is_cut else [body]:
                await client.send(piece)
                await asyncio.sleep(0)
            client.end()
            answer = await client.head()
            assert (answer.status, answer.headers["content-type"]) == (200, form)
            assert (answer.headers["grpc-status"], "gRPC-Web" in answer.headers["grpc-message"]) == ("3", True)
            assert m.cells() == {(GRPC, 3, "DPE"): 1}
            if protocol == "http1":
                while await client.read(answer):
                    pass
                assert await client.reader.read() == b""  # and the connection is over
        assert m.plane.exchanges == set()
        received = [frame_ for talk in server.talks for frame_ in talk.received]
        assert not [kind for kind, flags, _, _ in received if kind in (HEADERS, DATA) and flags & END_STREAM]
        if server.heads:
            await until(lambda: any(seen[0] == RST_STREAM for seen in server.talks[0].received), what="the reset")


@each_form
async def test_a_message_longer_than_the_server_takes_is_refused_by_the_server(protocol: str, form: str) -> None:
    """The mesh keeps nothing of a message, so that its length is the server's affair: as with gRPC."""
    data = b"\0\x7f\xff\xff\xff" + b"x" * 70
    async with mesh().start() as m, echo_server() as (server, port):
        at(m, port)
        async with connected(m, protocol) as client:
            client.start(UNARY, [("content-type", form)], GRPC)
            await client.send(base64.b64encode(data) if form == TEXT else data)
            answer = await client.head()
            assert answer.headers["grpc-status"] == "8"
        assert server.calls == 0
        assert m.cells() == {(GRPC, 8, ""): 1}


@each_protocol
async def test_parts_of_base64_may_come_in_any_cut(protocol: str) -> None:
    data = message(b"hello") + message(b"") + message(b"world!")
    body = b"".join(base64.b64encode(data[i : i + 4]) for i in range(0, len(data), 4))
    async with mesh().start() as m, echo_server() as (_, port):
        at(m, port)
        async with connected(m, protocol) as client:
            client.start(COLLECT, [("content-type", TEXT)], GRPC)
            for index in range(0, len(body), 3):
                await client.send(body[index : index + 3])
                await asyncio.sleep(0)
            client.end()
            answer = await client.head()
            while await client.read(answer):
                pass
            assert answer.messages == [b"helloworld!"]


@each_protocol
async def test_a_call_without_a_message_is_the_server_s_to_judge(protocol: str) -> None:
    async with mesh().start() as m, echo_server() as (_, port):
        at(m, port)
        assert (await call(m, protocol, TEXT, COLLECT)).messages == [b""]
        answer = await m.get(GRPC, COLLECT, method="POST", headers=[f"content-type: {BINARY}", "content-length: 0"])
        assert Answer(200, {"content-type": BINARY}, bytearray(answer.body)).messages == [b""]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT"])
async def test_only_a_post_is_a_call(method: str) -> None:
    """So a preflight of CORS goes to the service as it is."""
    async with mesh().service(GRPC).start() as m:
        lines = [f"content-type: {BINARY}", "access-control-request-method: POST", "grpc-timeout: 1S"]
        answer = await m.get(GRPC, UNARY, method=method, headers=lines)
        assert (answer.status, answer.get("content-type")) == (200, None)
        (request,) = m.programs[GRPC][0].requests
        assert request.line == f"{method} {UNARY} HTTP/1.1"
        assert (request.fields("content-type"), request.fields("grpc-timeout")) == ([BINARY], ["1S"])


@each_protocol
async def test_a_deadline_that_is_none_is_refused(protocol: str) -> None:
    async with mesh().start() as m, echo_server() as (server, port), connected(m, protocol) as client:
        at(m, port)
        client.start(UNARY, [("content-type", BINARY), ("grpc-timeout", "soon")], GRPC)
        if protocol == "http1":
            assert (await client.head()).status == 400
        else:
            with pytest.raises(AssertionError, match="StreamReset"):  # as for gRPC
                await client.head()
        assert server.calls == 0


@each_form
async def test_a_client_that_leaves_cancels_its_call(protocol: str, form: str) -> None:
    async with mesh().start() as m, echo_server() as (server, port):
        at(m, port)
        async with connected(m, protocol) as client:
            client.start(UNARY, [("content-type", form)], GRPC)
            await client.send(as_sent(form, b"hang"))
            client.end()
            await until(lambda: server.calls, what="the call")
        await asyncio.wait_for(server.cancelled.wait(), 5)
        await until(lambda: m.cells() == {(GRPC, 1, "DC"): 1}, what="it to be counted")


# --- backpressure ---------------------------------------------------------------------------------------------------

PIECE = b"x" * 65536
MAY_HOLD = 24 << 20  # what the kernel's buffers on loopback take, see test_streaming_memory


async def until_still(count: Callable[[], int]) -> int:
    """Wait until it grows no more."""
    before = -1
    async with asyncio.timeout(20):
        while count() != before or not before:
            before = count()
            await asyncio.sleep(0.3)
    return before


@each_form
async def test_a_slow_page_stops_the_server(protocol: str, form: str) -> None:
    sent = 0

    async def stream(_: bytes, context: Any) -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(600):
            yield PIECE
            sent += len(PIECE)

    async with mesh().start() as m, serving(Many=grpc.unary_stream_rpc_method_handler(stream)) as port:
        at(m, port)
        async with connected(m, protocol) as client:
            client.start(MANY, [("content-type", form)], GRPC)
            await client.send(as_sent(form, b""))
            client.end()
            answer = await client.head()
            assert await until_still(lambda: sent) < MAY_HOLD
            while await client.read(answer):
                pass
            assert len(answer.messages) == 600
            assert answer.code == 0


@each_form
async def test_a_slow_server_stops_the_page(protocol: str, form: str) -> None:
    """A server that gives no credit until it is told to: 64 KiB come to it, then all."""
    count, sent = 600, 0

    async def begin(talk: Talk, stream: int, _: bool) -> None:  # noqa: FBT001 - a handler
        del talk, stream

    async with mesh().start() as m, http2_endpoint(begin) as server, connected(m, protocol) as client:
        at(m, server.port)

        async def send() -> None:
            nonlocal sent
            for _ in range(count):
                await client.send(as_sent(form, PIECE))
                sent += len(PIECE)
            client.end()

        def taken() -> bytes:
            return b"".join(seen[3] for seen in server.talks[0].received if seen[0] == DATA)

        client.start(COLLECT, [("content-type", form)], GRPC)
        sending = background(send())
        assert await until_still(lambda: sent) < MAY_HOLD
        assert len(taken()) == 65535
        server.talks[0].send(*[frame(WINDOW_UPDATE, 0, stream, b"\x40\0\0\0") for stream in (0, 1)])
        await sending
        await until(lambda: server.talks[0].received[-1][:2] == (DATA, END_STREAM), what="the end of it")
        assert taken() == message(PIECE) * count


async def test_a_grpc_server_that_reads_late_gets_all() -> None:
    """It enlarges its windows on the way (SETTINGS), as its estimate of the bandwidth grows."""
    count, go_on, sent = 400, asyncio.Event(), 0

    async def collect(requests: AsyncIterator[bytes], _: Any) -> bytes:
        await go_on.wait()
        return b"%d" % sum([len(request) async for request in requests])

    async with mesh().start() as m, serving(Collect=grpc.stream_unary_rpc_method_handler(collect)) as port:
        at(m, port)
        async with connected(m, "http1") as client:

            async def send() -> None:
                nonlocal sent
                for _ in range(count):
                    await client.send(message(PIECE))
                    sent += len(PIECE)
                client.end()

            client.start(COLLECT, [("content-type", BINARY)], GRPC)
            sending = background(send())
            assert await until_still(lambda: sent) < MAY_HOLD
            go_on.set()
            await sending
            answer = await client.head()
            while await client.read(answer):
                pass
            assert answer.messages == [b"%d" % (count * len(PIECE))]
            assert answer.code == 0
