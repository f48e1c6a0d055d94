"""The client's side of an HTTP/2 connection: what a server may do, and what it may not (RFC 9113). No sockets."""

import struct

import pytest

from mesh.http.headers import Headers
from mesh.http.outcome import UpstreamProtocolError
from proxy.http2.errors import ErrorCode, StreamFault
from proxy.http2.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    LAST_STREAM,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from proxy.http2.messages import response_head, trailers
from tests.support.http2 import GET, START, frame, head, settings
from tests.support.http2_peer import Owner, Peer


def asked(*more: bytes) -> Peer:
    """A client that has sent a request, and has fed what the server sends."""
    peer = Peer(is_server=False)
    peer.feed(settings())
    stream = peer.connection.open()
    stream.owner = Owner(peer, stream.id)
    peer.connection.send_headers(stream, GET, ended=True)
    return peer.feed(b"".join(more))


def test_a_client_hears_heads_bodies_and_trailers() -> None:
    peer = asked(
        head(1, [(b":status", b"103")], END_HEADERS), head(1, [(b":status", b"200")], END_HEADERS),
        frame(DATA, 0, 1, b"abc"), head(1, [(b"grpc-status", b"0")]),
    )  # fmt: skip
    assert peer.heard == [
        ("headers", 1, ((b":status", b"103"),), False),
        ("headers", 1, ((b":status", b"200"),), False),
        ("data", 1, b"abc"),
        ("headers", 1, ((b"grpc-status", b"0"),), True),
    ]
    assert not peer.connection.streams


OK: Headers = [(b":status", b"200")]
BEGUN = head(1, OK, END_HEADERS)
"""An answer whose body is to come."""
PROTOCOL, FLOW, SIZE, CLOSED = (
    ErrorCode.PROTOCOL_ERROR, ErrorCode.FLOW_CONTROL_ERROR, ErrorCode.FRAME_SIZE_ERROR, ErrorCode.STREAM_CLOSED,
)  # fmt: skip

CLIENT_FAULTS = [
    ("4.2", "a frame larger than we take", frame(DATA, 0, 1, b"", length=16385), SIZE),
    ("4.3", "a header block that cannot be decoded", frame(HEADERS, END_HEADERS, 1, b"\xff" * 7), ErrorCode.COMPRESSION_ERROR),
    ("5.1", "an answer on an idle stream", head(5, OK), PROTOCOL),
    ("5.1", "DATA on an idle stream", frame(DATA, 0, 5, b"x"), PROTOCOL),
    ("5.1", "RST_STREAM on an idle stream", frame(RST_STREAM, 0, 5, b"\0\0\0\0"), PROTOCOL),
    ("5.1", "WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 5, b"\0\0\0\1"), PROTOCOL),
    ("5.1.1", "a stream that the server begins", head(2, OK), PROTOCOL),
    ("6.1", "DATA on stream 0", frame(DATA, 0, 0, b"x"), PROTOCOL),
    ("6.1", "padding as long as the payload", BEGUN + frame(DATA, PADDED, 1, b"\x06hello"), PROTOCOL),
    ("6.2", "HEADERS on stream 0", head(0, OK), PROTOCOL),
    ("6.3", "PRIORITY on stream 0", frame(PRIORITY, 0, 0, b"\0" * 5), PROTOCOL),
    ("6.4", "RST_STREAM of 3 bytes", frame(RST_STREAM, 0, 1, b"\0\0\0"), SIZE),
    ("6.5", "SETTINGS on a stream", frame(SETTINGS, 0, 1), PROTOCOL),
    ("6.5", "SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, b"\0" * 5), SIZE),
    ("6.5.2", "ENABLE_PUSH 1 by a server", settings((2, 1)), PROTOCOL),
    ("6.5.2", "INITIAL_WINDOW_SIZE 2^31", settings((4, 2**31)), FLOW),
    ("6.5.2", "MAX_FRAME_SIZE 16383", settings((5, 16383)), PROTOCOL),
    ("6.6", "PUSH_PROMISE though it is off", frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2"), PROTOCOL),
    ("6.7", "PING of 7 bytes", frame(PING, 0, 0, b"1234567"), SIZE),
    ("6.7", "PING on a stream", frame(PING, 0, 1, b"12345678"), PROTOCOL),
    ("6.8", "GOAWAY on a stream", frame(GOAWAY, 0, 1, b"\0" * 8), PROTOCOL),
    ("6.8", "GOAWAY of 7 bytes", frame(GOAWAY, 0, 0, b"\0" * 7), SIZE),
    ("6.9", "WINDOW_UPDATE of 0 on the connection", frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\0"), PROTOCOL),
    ("6.9", "WINDOW_UPDATE of 3 bytes", frame(WINDOW_UPDATE, 0, 0, b"\0\0\1"), SIZE),
    ("6.9.1", "the connection's window beyond 2^31-1", frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), FLOW),
    ("6.10", "another frame within a header block", frame(HEADERS, 0, 1, b"") + frame(PING, 0, 0, b"12345678"), PROTOCOL),
    ("6.10", "CONTINUATION of another stream", frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, END_HEADERS, 3, b""), PROTOCOL),
]  # fmt: skip

MALFORMED = [
    ("6.9", "WINDOW_UPDATE of 0", BEGUN + frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\0"), PROTOCOL),
    ("6.9.1", "the stream's window beyond 2^31-1", BEGUN + frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"), FLOW),
    ("8.1", "DATA before the head", frame(DATA, END_STREAM, 1, b"x"), PROTOCOL),
    ("8.1", "an informational answer at the end", head(1, [(b":status", b"100")]), PROTOCOL),
    ("8.1", "DATA behind an informational answer", head(1, [(b":status", b"103")], END_HEADERS) + frame(DATA, 0, 1, b"x"), PROTOCOL),
    ("8.1", "trailers that do not end the stream", BEGUN + head(1, [(b"x", b"1")], END_HEADERS), PROTOCOL),
    ("8.1", "a second head", BEGUN + head(1, OK, END_HEADERS), PROTOCOL),
    ("8.3", "a pseudo field after others", head(1, [(b"x", b"1"), *OK]), PROTOCOL),
    ("8.3", "a pseudo field in trailers", BEGUN + head(1, OK), PROTOCOL),
    ("8.3.2", "no :status", head(1, [(b"x", b"1")]), PROTOCOL),
]  # fmt: skip
"""Answers that end their stream alone."""

HEADS: list[tuple[str, str, Headers]] = [
    ("8.2.1", "an upper-case name", [*OK, (b"X-A", b"1")]),
    ("8.2.1", "an empty name", [*OK, (b"", b"1")]),
    ("8.2.1", "a name with a space", [*OK, (b"x a", b"1")]),
    ("8.2.1", "LF in a value", [*OK, (b"x", b"a\nb: c")]),
    ("8.2.1", "a value that ends with a space", [*OK, (b"x", b"a ")]),
    ("8.2.2", "connection", [*OK, (b"connection", b"close")]),
    ("8.2.2", "transfer-encoding", [*OK, (b"transfer-encoding", b"chunked")]),
    ("8.3", "a pseudo field of requests", [*OK, (b":path", b"/")]),
    ("8.3", "a pseudo field that nobody knows", [*OK, (b":x", b"1")]),
    ("8.3.2", "two :status", [*OK, *OK]),
    ("8.1.1", "two lengths", [*OK, (b"content-length", b"1"), (b"content-length", b"1")]),
    ("8.1.1", "a length that is no number", [*OK, (b"content-length", b"+1")]),
]

TRAILERS: list[tuple[str, str, Headers]] = [
    ("8.1", "a pseudo field", [(b":status", b"200")]),
    ("8.2.1", "an upper-case name", [(b"X-A", b"1")]),
    ("8.2.1", "CR in a value", [(b"x", b"a\rb")]),
    ("8.2.2", "connection", [(b"connection", b"close")]),
]


@pytest.mark.parametrize(("data", "code"), [pytest.param(*row[2:], id=f"{row[0]} {row[1]}") for row in CLIENT_FAULTS])
def test_what_a_server_may_not_do(data: bytes, code: ErrorCode) -> None:
    peer = asked(data)
    assert peer.fault is not None
    assert peer.fault.code == code


@pytest.mark.parametrize(("data", "code"), [pytest.param(*row[2:], id=f"{row[0]} {row[1]}") for row in MALFORMED])
def test_an_answer_that_is_malformed_ends_its_stream_alone(data: bytes, code: ErrorCode) -> None:
    peer = asked(data)
    assert peer.fault is None
    assert peer.resets == {1: code}
    assert peer.heard[-1] == ("reset", 1, code, False)


@pytest.mark.parametrize("fields", [pytest.param(row[2], id=f"{row[0]} {row[1]}") for row in HEADS])
@pytest.mark.parametrize("ended", [True, False])
def test_a_head_that_is_malformed_is_none(fields: Headers, *, ended: bool) -> None:
    with pytest.raises(UpstreamProtocolError):
        response_head(fields, ended=ended)


@pytest.mark.parametrize("fields", [pytest.param(row[2], id=f"{row[0]} {row[1]}") for row in TRAILERS])
def test_trailers_that_are_malformed_are_none(fields: Headers) -> None:
    with pytest.raises(StreamFault):
        trailers(fields)


@pytest.mark.parametrize("late", [frame(DATA, 0, 1, b"x"), frame(DATA, END_STREAM, 1, b"x"), head(1, [(b"x", b"1")])])
@pytest.mark.parametrize("ended_by", ["its end", "our reset"])
def test_what_comes_behind_the_end_of_a_stream_is_nobodys(late: bytes, ended_by: str) -> None:
    """RFC 9113 §5.1: it may have been sent before our reset was there. Its bytes go back to the connection's window."""
    if ended_by == "its end":
        peer = asked(head(1, OK))
    else:
        peer = asked(BEGUN)
        peer.connection.reset(peer.connection.streams[1], ErrorCode.CANCEL)
    before = list(peer.heard)
    window = peer.connection._recv_window + peer.connection._credit
    peer.feed(late)
    assert (peer.fault, peer.heard) == (None, before)
    assert peer.connection._recv_window + peer.connection._credit == window
    stream = peer.connection.open()
    stream.owner = Owner(peer, stream.id)
    peer.connection.send_headers(stream, GET, ended=True)
    peer.feed(head(3, OK))
    assert peer.heard[-1] == ("headers", 3, tuple(OK), True)


def test_goaway_gives_back_what_was_not_begun() -> None:
    peer = Peer(is_server=False)
    peer.feed(settings())
    for _ in range(3):
        stream = peer.connection.open()
        stream.owner = Owner(peer, stream.id)
        peer.connection.send_headers(stream, GET, ended=True)
    peer.feed(frame(GOAWAY, 0, 0, struct.pack(">LL", 3, 0)))
    assert peer.heard == [("reset", 5, 0, True), ("goaway", 0)]
    assert peer.connection.room == 0
    peer.feed(head(1, [(b":status", b"200")]) + head(3, [(b":status", b"200")]))
    assert not peer.connection.streams


def test_a_refused_stream_was_not_processed() -> None:
    assert asked(frame(RST_STREAM, 0, 1, struct.pack(">L", 7))).heard == [("reset", 1, 7, True)]
    assert asked(frame(RST_STREAM, 0, 1, struct.pack(">L", 8))).heard == [("reset", 1, 8, False)]


def test_a_client_keeps_to_the_servers_number_of_streams_and_stops_before_numbers_run_out() -> None:
    peer = Peer(is_server=False)
    peer.feed(settings((3, 2)))
    assert peer.connection.room == 2
    peer.connection.open()
    assert peer.connection.room == 1
    peer.connection.next_stream = LAST_STREAM + 2
    assert peer.connection.room == 0


def test_a_graceful_end_takes_what_was_under_way() -> None:
    peer = Peer().feed(START + head(1))
    peer.connection.goaway(LAST_STREAM)
    peer.feed(head(3))
    peer.connection.goaway(peer.connection.last_peer_stream)
    peer.feed(head(5))
    assert [each[1] for each in peer.heard] == [1, 3]
    assert peer.fault is None
