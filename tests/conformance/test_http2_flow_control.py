"""Flow control of HTTP/2 (RFC 9113 §5.2, §6.9): credit both ways, and whose turn it is. No sockets."""

import struct

from proxy.http2.codec import CONNECTION_WINDOW
from proxy.http2.errors import ErrorCode
from proxy.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
)
from proxy.http2.stream import STREAM_WINDOW, Stream
from tests.support.http2 import OPEN, POST, START, frame, frames, head, settings
from tests.support.http2_peer import Peer


def answered(window: int = 65535, **more: int) -> tuple[Peer, Stream]:
    """A request with an answer begun, and the peer's initial window."""
    peer = Peer().feed(PREFACE + settings((4, window), *((int(k[1:]), v) for k, v in more.items())) + head(1))
    stream = peer.connection.streams[1]
    peer.connection.send_headers(stream, [(b":status", b"200")], ended=False)
    return peer, stream


def data_sent(peer: Peer) -> bytes:
    peer.sent += frames(peer.connection.take())
    return b"".join(payload for kind, _, _, payload in peer.sent if kind == DATA)


def test_a_body_waits_for_the_streams_window_and_its_source_is_told() -> None:
    peer, stream = answered(10)
    peer.connection.send_data(stream, b"x" * 100_000)
    assert len(data_sent(peer)) == 10
    assert peer.heard[-1] == ("writable", 1, False)
    peer.connection.send_last(stream, b"end", [])
    peer.feed(frame(WINDOW_UPDATE, 0, 1, struct.pack(">L", 60_000)))
    assert len(data_sent(peer)) == 60_010
    assert peer.heard[-1] == ("writable", 1, True)
    peer.feed(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", 100_000)))
    peer.feed(settings((4, 60_000)))  # the change holds for streams that are open (§6.9.2)
    assert data_sent(peer) == b"x" * 100_000 + b"end"
    assert [each for each in peer.sent if each[0] == DATA][-1][1] == END_STREAM
    assert not peer.connection.streams


def test_a_ping_comes_back_as_it_was() -> None:
    peer = Peer().feed(START + frame(PING, 0, 0, b"12345678") + frame(PING, ACK, 0, b"87654321"))
    assert [(flags, payload) for kind, flags, _, payload in peer.sent if kind == PING] == [(ACK, b"12345678")]


def test_what_a_setting_lets_out_goes_behind_its_ack() -> None:
    """§6.5.3: the ACK is due at once. gRPC's servers refuse DATA beyond the window that was acknowledged last."""
    peer, stream = answered(100)
    peer.connection.send_data(stream, b"x" * 300)
    before = len(peer.feed(b"").sent)
    peer.feed(settings((4, 200)))
    assert [(kind, len(payload)) for kind, _, _, payload in peer.sent[before:]] == [(SETTINGS, 0), (DATA, 100)]


def test_a_window_may_become_negative_and_is_paid_back_first() -> None:
    peer, stream = answered(100)
    peer.connection.send_data(stream, b"x" * 100)
    peer.feed(settings((4, 0)))
    assert stream.send_window == -100
    peer.connection.send_data(stream, b"y" * 10)
    peer.feed(frame(WINDOW_UPDATE, 0, 1, struct.pack(">L", 105)))
    assert data_sent(peer) == b"x" * 100 + b"y" * 5


def test_all_streams_share_the_connections_window_and_take_turns() -> None:
    peer = Peer().feed(PREFACE + settings((4, 2**20)) + head(1) + head(3))
    for number in (1, 3):
        stream = peer.connection.streams[number]
        peer.connection.send_headers(stream, [(b":status", b"200")], ended=False)
        peer.connection.send_data(stream, b"%d" % number * 50_000)
    assert len(data_sent(peer)) == 65_535
    peer.feed(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", 2**20)))
    sent = data_sent(peer)
    assert (sent.count(b"1"), sent.count(b"3")) == (50_000, 50_000)


def test_trailers_wait_for_the_body_before_them() -> None:
    peer, stream = answered(1)
    peer.connection.send_last(stream, b"abc", [(b"sum", b"9")])
    peer.feed(frame(WINDOW_UPDATE, 0, 1, struct.pack(">L", 2)))
    assert data_sent(peer) == b"abc"
    assert peer.sent[-1][:3] == (HEADERS, END_STREAM | END_HEADERS, 1)


def test_frames_are_no_larger_than_the_peer_takes_them() -> None:
    peer, stream = answered(2**20, s5=20_000)
    peer.feed(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", 2**20)))
    peer.connection.send_last(stream, b"x" * 50_000, [(b"x-long", b"y" * 50_000)])
    data_sent(peer)
    sizes = [(kind, len(payload)) for kind, _, _, payload in peer.sent if kind in (DATA, HEADERS, CONTINUATION)]
    assert sizes[1:4] == [(DATA, 20_000), (DATA, 20_000), (DATA, 10_000)]
    assert [kind for kind, _ in sizes[4:]] == [HEADERS, CONTINUATION, CONTINUATION]
    assert all(size <= 20_000 for _, size in sizes)


def test_credit_goes_back_only_when_the_other_side_takes_the_bytes() -> None:
    peer = Peer().feed(OPEN)
    stream = peer.connection.streams[1]
    peer.connection.pause(stream)
    for _ in range(STREAM_WINDOW // 16384):
        peer.feed(frame(DATA, 0, 1, b"x" * 16384))
    assert not [s for kind, _, s, _ in peer.sent if kind == WINDOW_UPDATE and s == 1]
    peer.feed(frame(DATA, 0, 1, b"x"))
    assert peer.resets == {1: ErrorCode.FLOW_CONTROL_ERROR}
    peer = Peer().feed(OPEN)
    stream = peer.connection.streams[1]
    peer.connection.pause(stream)
    peer.feed(b"".join(frame(DATA, 0, 1, b"x" * 16384) for _ in range(10)))
    peer.connection.resume(stream)
    peer.feed(b"")
    assert [int.from_bytes(p, "big") for kind, _, s, p in peer.sent if kind == WINDOW_UPDATE and s == 1] == [163_840]


def test_a_slow_stream_does_not_stall_its_siblings() -> None:
    """The connection's credit goes back also for what a paused stream holds."""
    peer = Peer().feed(OPEN + head(3, POST, END_HEADERS))
    peer.connection.pause(peer.connection.streams[1])
    peer.feed(b"".join(frame(DATA, 0, 1, b"x" * 16384) for _ in range(16)))
    for _ in range(CONNECTION_WINDOW // 16384):
        peer.feed(frame(DATA, 0, 3, b"y" * 16384))
    assert peer.fault is None
    assert ("data", 3, b"y" * CONNECTION_WINDOW) in peer.heard


def test_more_than_the_connections_window_is_an_error() -> None:
    peer = Peer()
    peer.connection._recv_window = 10
    peer.feed(OPEN + frame(DATA, 0, 1, b"x" * 11))
    assert peer.fault is not None
    assert peer.fault.code == ErrorCode.FLOW_CONTROL_ERROR
