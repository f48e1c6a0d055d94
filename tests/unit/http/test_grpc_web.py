"""gRPC-Web's heads and bytes, by rows and as dialogues; the laws of it stand in tests/property."""

import base64

import pytest

from mesh.http.grpc import GrpcCall, call_of, read_web_type, web_call
from mesh.http.grpc_web import AnswerEncoder, FrameCursor, RequestDecoder, is_grpc_answer, to_grpc, to_web
from mesh.http.headers import Fields, Headers
from mesh.http.message import HTTP2, RequestHead, ResponseHead
from mesh.http.outcome import BadRequest
from proxy.http1.codec import parse_request
from proxy.http2.messages import request_head

HELLO = b"\0\0\0\0\5hello"


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (b"application/grpc-web", (False, b"")), (b"application/grpc-web+proto", (False, b"+proto")),
        (b"application/grpc-web+json", (False, b"+json")), (b"application/grpc-web-text", (True, b"")),
        (b"application/grpc-web-text+proto", (True, b"+proto")),
        (b"application/grpc-web-text; charset=utf-8", (True, b"")), (b"application/grpc", None),
        (b"application/grpc+proto", None), (b"application/grpc-webs", None), (b"application/grpc-web-texts", None),
        (b"application/grpc-web+", None), (b"application/json", None), (b"", None),
    ],
)  # fmt: skip
def test_a_content_type_says_which_form_it_is(value: bytes, form: tuple[bool, bytes] | None) -> None:
    assert read_web_type(value) == form


def test_only_a_post_is_a_call() -> None:
    assert web_call(b"POST", b"application/grpc-web", []) == GrpcCall(web=b"application/grpc-web")
    for method in (b"GET", b"HEAD", b"OPTIONS", b"PUT"):
        assert call_of(method, b"application/grpc-web", []) is None
    assert call_of(b"POST", b"application/grpc", []) == GrpcCall()
    assert web_call(b"POST", b"application/grpc", []) is None  # in HTTP/1.1 it is nobody's


def h1(*lines: bytes, method: bytes = b"POST") -> RequestHead:
    head = b"\r\n".join([method + b" /a.B/C HTTP/1.1", b"host: a", b"content-length: 20", *lines, b"", b""])
    return parse_request(head)[0]


def test_both_codecs_find_a_call_and_what_it_says_of_itself() -> None:
    lines = [b"Content-Type: application/grpc-web+proto", b"Grpc-Timeout: 2S", b"x: application/grpc-web"]
    pairs: Headers = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a.B/C"), (b":authority", b"a"),
        (b"content-type", b"application/grpc-web+proto"), (b"grpc-timeout", b"2S"), (b"content-length", b"20"),
    ]  # fmt: skip
    for request in (h1(*lines), request_head(pairs, ended=False)):
        assert request.grpc == GrpcCall(2.0, 0, b"application/grpc-web+proto")
        assert request.fields.get(b"grpc-timeout") is None
        assert request.content_length == 20  # still the client's


def test_a_head_that_names_the_type_elsewhere_is_no_call() -> None:
    for request in (
        h1(b"x: application/grpc-web", b"content-type: text/plain", b"grpc-timeout: 2S"),
        h1(b"content-type: application/grpc-web", b"content-type: text/plain"),
        h1(b"content-type: application/grpc-web", b"grpc-timeout: soon", method=b"PUT"),
        h1(b"content-type: application/grpc"),
    ):
        assert request.grpc is None
    assert h1(b"content-type: text/plain", b"grpc-timeout: 2S").fields.get(b"grpc-timeout") == b"2S"


def test_a_deadline_that_is_none_is_refused() -> None:
    with pytest.raises(BadRequest, match="grpc-timeout b'soon' is none"):
        h1(b"content-type: application/grpc-web", b"grpc-timeout: soon")


@pytest.mark.parametrize(
    ("content_type", "accept", "texts"),
    [
        (b"application/grpc-web", b"", (False, False)),
        (b"application/grpc-web", b"*/*", (False, False)),
        (b"application/grpc-web-text", b"*/*", (True, True)),
        (b"application/grpc-web", b"application/grpc-web-text", (False, True)),
        (b"application/grpc-web-text", b"application/grpc-web+proto", (True, False)),
        (b"application/grpc-web", b"text/html, application/grpc-web-text+proto, application/grpc-web", (False, True)),
    ],
)
def test_accept_says_what_the_answer_is_to_be(content_type: bytes, accept: bytes, texts: tuple[bool, bool]) -> None:
    request = h1(b"content-type: " + content_type, *([b"accept: " + accept] if accept else []))
    assert to_grpc(request) == texts


def test_a_call_becomes_what_grpc_sends_and_what_it_said_otherwise_stays() -> None:
    request = h1(
        b"content-type: application/grpc-web-text+proto", b"accept: application/grpc-web-text", b"x-user-agent: js",
        b"accept-encoding: gzip, br", b"authorization: Bearer x", b"x-bin: AAEC",
    )  # fmt: skip
    to_grpc(request)
    assert request.fields.pairs == [
        (b"x-user-agent", b"js"), (b"authorization", b"Bearer x"), (b"x-bin", b"AAEC"),
        (b"content-type", b"application/grpc+proto"),
    ]  # fmt: skip
    assert (request.content_length, request.has_body) == (None, True)
    assert (request.version, request.wants_trailers, request.upgrade) == (HTTP2, True, None)


def test_an_answer_that_is_no_grpc_is_not_taken_for_one() -> None:
    def answer(status: int, *pairs: tuple[bytes, bytes]) -> ResponseHead:
        return ResponseHead(status, Fields(list(pairs)), 7)

    assert is_grpc_answer(answer(200, (b"content-type", b"application/grpc+proto")))
    assert not is_grpc_answer(answer(503, (b"content-type", b"application/grpc")))
    assert not is_grpc_answer(answer(200, (b"content-type", b"text/html")))
    assert not is_grpc_answer(answer(200))
    head = answer(200, (b"content-type", b"application/grpc+proto"), (b"trailer", b"grpc-status"), (b"a", b"b"))
    to_web(head, is_text=True)
    assert head.fields.pairs == [(b"a", b"b"), (b"content-type", b"application/grpc-web-text+proto")]
    assert head.content_length is None


def test_a_cursor_knows_where_frames_end() -> None:
    cursor = FrameCursor()
    assert cursor.advance(b"") == []
    assert cursor.advance(HELLO + b"\1\0\0\0\0" + b"\0\0") == [10, 15]
    assert not cursor.is_between_frames
    assert cursor.advance(b"\0\0\1") == []
    assert not cursor.is_between_frames
    assert cursor.advance(b"x") == [1]
    assert cursor.is_between_frames
    assert cursor.flags == 1


def test_a_long_frame_costs_nothing_while_it_comes() -> None:
    decoder = RequestDecoder(is_text=False)
    assert decoder.feed(b"\0\xff\xff\xff\xff") == b"\0\xff\xff\xff\xff"
    for _ in range(100):
        assert decoder.feed(b"x" * 65536) == b"x" * 65536
    with pytest.raises(BadRequest, match="within a frame"):
        decoder.end()


@pytest.mark.parametrize("flags", [0x80, 0x81, 0x02, 0x40, 0xFF])
@pytest.mark.parametrize("is_text", [False, True])
def test_a_request_has_messages_only(flags: int, is_text: bool) -> None:  # noqa: FBT001 - a row
    body = HELLO + bytes((flags, 0, 0, 0, 0))
    with pytest.raises(BadRequest, match="trailers" if flags & 0x80 else "unknown flags"):
        RequestDecoder(is_text=is_text).feed(base64.b64encode(body) if is_text else body)


def test_a_compressed_message_passes() -> None:
    decoder = RequestDecoder(is_text=False)
    assert decoder.feed(b"\1" + HELLO[1:]) == b"\1" + HELLO[1:]
    decoder.end()


@pytest.mark.parametrize(
    "text",
    [
        b"AAAAAAVoZWxsb", b"AAAAAAVoZWxsbw", b"AAAAAAVoZWxsbw=", b"A===", b"====", b"=AAA", b"AA=A", b"A=AA",
        b"AAA\n", b"AA AAAAA", b"AA-_AAAA", b"\xff\xff\xff\xff", b"AA==\n", b"AAAAA\0AA",
    ],
)  # fmt: skip
def test_what_is_no_base64_is_refused_in_any_cut(text: bytes) -> None:
    def read(size: int) -> None:
        decoder = RequestDecoder(is_text=True)
        for at in range(0, len(text), size):
            decoder.feed(text[at : at + size])
        decoder.end()

    for size in (1, 3, len(text)):
        with pytest.raises(BadRequest, match=r"base64|frame"):
            read(size)


def test_parts_may_be_padded_wherever_the_client_flushed() -> None:
    decoder = RequestDecoder(is_text=True)
    text = b"".join(base64.b64encode(HELLO[at : at + 1]) for at in range(10))
    assert decoder.feed(text[:7]) + decoder.feed(text[7:]) == HELLO
    decoder.end()


def test_a_frame_of_text_is_told_whole_once_it_is_there() -> None:
    encoder = AnswerEncoder(is_text=True)
    assert encoder.feed(HELLO) == base64.b64encode(HELLO)
    assert encoder.feed(HELLO[:1]) == b""
    assert encoder.feed(HELLO[1:7]) == base64.b64encode(HELLO[:6])
    assert not encoder.may_end
    assert encoder.feed(HELLO[7:] + HELLO) == base64.b64encode(HELLO[6:]) + base64.b64encode(HELLO)
    assert encoder.may_end
    assert encoder.end([(b"grpc-status", b"0")]) == base64.b64encode(b"\x80\0\0\0\x10grpc-status: 0\r\n")


def test_trailers_are_a_frame_of_lines() -> None:
    encoder = AnswerEncoder(is_text=False)
    assert encoder.feed(HELLO) == HELLO
    assert encoder.end([(b"grpc-status", b"0"), (b"x-bin", b"AA")]) == b"\x80\0\0\0\x1bgrpc-status: 0\r\nx-bin: AA\r\n"
    assert AnswerEncoder(is_text=False).end([]) == b"\x80\0\0\0\0"


def test_a_head_that_is_no_call_is_not_translated() -> None:
    with pytest.raises(ValueError, match="no gRPC-Web call"):
        to_grpc(h1())
