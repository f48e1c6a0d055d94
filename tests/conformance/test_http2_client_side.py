"""The client's side of an HTTP/2 connection: what a server may do, and what it may not (RFC 9113). No sockets."""

import struct

import pytest

from proxy.http2.errors import ErrorCode
from proxy.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    LAST_STREAM,
    PUSH_PROMISE,
    RST_STREAM,
)
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


CLIENT_FAULTS = [
    (
        "6.6",
        "PUSH_PROMISE though it is off",
        frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    ("6.5.2", "ENABLE_PUSH 1 by a server", settings((2, 1)), ErrorCode.PROTOCOL_ERROR),
    ("5.1.1", "a stream that the server begins", head(2, [(b":status", b"200")]), ErrorCode.PROTOCOL_ERROR),
    ("5.1", "an answer on an idle stream", head(5, [(b":status", b"200")]), ErrorCode.PROTOCOL_ERROR),
]


@pytest.mark.parametrize(("data", "code"), [pytest.param(*row[2:], id=f"{row[0]} {row[1]}") for row in CLIENT_FAULTS])
def test_what_a_server_may_not_do(data: bytes, code: ErrorCode) -> None:
    peer = asked(data)
    assert peer.fault is not None
    assert peer.fault.code == code


@pytest.mark.parametrize(
    "data",
    [
        frame(DATA, END_STREAM, 1, b"x"),
        head(1, [(b"x", b"1")]),
        head(1, [(b":status", b"100")]),
    ],
    ids=["8.1 DATA before the head", "8.3.2 no :status", "8.1 an informational answer at the end"],
)
def test_an_answer_that_is_malformed_is_reset(data: bytes) -> None:
    peer = asked(data)
    assert peer.resets == {1: ErrorCode.PROTOCOL_ERROR}
    assert peer.heard[-1] == ("reset", 1, ErrorCode.PROTOCOL_ERROR, False)


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
