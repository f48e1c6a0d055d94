"""What a peer can break in HTTP/2, on raw frames: RFC 9113 and RFC 7541, with the section beside each row.

Every row is also fed in pieces of 1, 2, 3 and 7 bytes: what comes of it may not depend on how the bytes were cut.
"""

import struct
from dataclasses import dataclass, field

import pytest

from mesh.http.headers import Headers
from mesh.http.outcome import ProxyError
from proxy.http2 import octets
from proxy.http2.codec import CONCURRENT, CONNECTION_WINDOW, STREAM_WINDOW, Connection, Stream
from proxy.http2.errors import ConnectionFault, ErrorCode, StreamFault
from proxy.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    LAST_STREAM,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from proxy.http2.messages import request_head, response_head
from tests.support.http2 import BOMB, BOMB_FIELD, FLOODS, GET, OPEN, POST, START, credit, frame, frames, head, settings

CUTS = (0, 1, 2, 3, 7)


@dataclass
class Peer:
    """A server's or client's end under test, and all that its owner heard."""

    is_server: bool = True
    heard: list[tuple[object, ...]] = field(default_factory=list)
    fault: ConnectionFault | None = None
    sent: list[tuple[int, int, int, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connection = Connection(self, is_server=self.is_server)
        self.connection.out.clear()

    def feed(self, data: bytes, cut: int = 0) -> "Peer":
        pieces = [data] if not cut else [data[i : i + cut] for i in range(0, len(data), cut)]
        try:
            for piece in pieces:
                is_more = self.connection.feed(piece)
                while is_more:
                    is_more = self.connection.feed(b"")
        except ConnectionFault as fault:
            self.fault = fault
        self.sent += frames(self.connection.take())
        return self

    @property
    def resets(self) -> dict[int, ErrorCode]:
        return {s: ErrorCode(int.from_bytes(p, "big")) for kind, _, s, p in self.sent if kind == RST_STREAM}

    def on_stream(self, stream: Stream, fields: Headers, *, ended: bool) -> None:
        try:
            request = request_head(fields, ended=ended)
        except ProxyError as error:
            self.heard.append(("refused", stream.id, error.http_status))
            return
        stream.expected = request.content_length
        stream.owner = Owner(self, stream.id)
        self.heard.append(("request", stream.id, request.method, request.target, ended))

    def on_settings(self) -> None: ...

    def on_stream_over(self) -> None: ...

    def on_goaway(self, code: int, message: bytes) -> None:
        self.heard.append(("goaway", code))


@dataclass
class Owner:
    peer: Peer
    id: int

    def on_headers(self, fields: Headers, *, ended: bool) -> None:
        self.peer.heard.append(("headers", self.id, tuple(fields), ended))

    def on_data(self, piece: bytes) -> None:
        last = self.peer.heard[-1]
        if last[:2] == ("data", self.id):  # how it was cut into frames is of no interest
            self.peer.heard[-1] = ("data", self.id, last[2] + piece)  # type: ignore[operator]
        else:
            self.peer.heard.append(("data", self.id, piece))

    def on_end(self) -> None:
        self.peer.heard.append(("end", self.id))

    def on_reset(self, code: int, *, is_unprocessed: bool) -> None:
        self.peer.heard.append(("reset", self.id, code, is_unprocessed))

    def on_writable(self, *, writable: bool) -> None:
        self.peer.heard.append(("writable", self.id, writable))


PROTOCOL, FLOW, SIZE, CLOSED = (
    ErrorCode.PROTOCOL_ERROR, ErrorCode.FLOW_CONTROL_ERROR, ErrorCode.FRAME_SIZE_ERROR, ErrorCode.STREAM_CLOSED,
)  # fmt: skip
CONNECT: Headers = [(b":method", b"CONNECT"), (b":authority", b"a.b:443")]
BROKEN_CONNECTIONS = [
    ("3.4", "no preface", b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n", PROTOCOL),
    ("3.4", "a preface that goes wrong at its end", PREFACE[:-1] + b"x" + settings(), PROTOCOL),
    ("3.4", "no SETTINGS first", PREFACE + frame(PING, 0, 0, b"12345678"), PROTOCOL),
    ("3.4", "a SETTINGS ACK first", PREFACE + frame(SETTINGS, ACK, 0), PROTOCOL),
    ("4.2", "a frame larger than we take", START + frame(DATA, 0, 1, b"", length=16385), SIZE),
    ("4.3", "a header block that cannot be decoded", START + frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
    ("RFC 7541 2.3.3", "an index beyond both tables", START + frame(HEADERS, END_HEADERS, 1, b"\xfe"), ErrorCode.COMPRESSION_ERROR),
    ("RFC 7541 4.2", "a table larger than we allow", START + frame(HEADERS, END_HEADERS, 1, b"\x3f\xe2\x1f" + octets.encode(GET)), ErrorCode.COMPRESSION_ERROR),
    ("RFC 7541 5.2", "a string longer than its block", START + frame(HEADERS, END_HEADERS, 1, b"\x00\x0aab"), ErrorCode.COMPRESSION_ERROR),
    ("5.1", "DATA on an idle stream", START + frame(DATA, 0, 1, b"x"), PROTOCOL),
    ("5.1", "RST_STREAM on an idle stream", START + frame(RST_STREAM, 0, 1, b"\0\0\0\0"), PROTOCOL),
    ("5.1", "WINDOW_UPDATE on an idle stream", START + frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1"), PROTOCOL),
    ("5.1", "CONTINUATION on an idle stream", START + frame(CONTINUATION, END_HEADERS, 1, b""), PROTOCOL),
    ("5.1.1", "a stream with an even number", START + head(2), PROTOCOL),
    ("5.1.1", "a stream with a smaller number", START + head(5) + head(3), CLOSED),
    ("6.1", "DATA on stream 0", START + frame(DATA, 0, 0, b"x"), PROTOCOL),
    ("6.1", "padding as long as the payload", OPEN + frame(DATA, PADDED, 1, b"\x06hello"), PROTOCOL),
    ("6.1", "padded without a length of the padding", OPEN + frame(DATA, PADDED, 1, b""), PROTOCOL),
    ("6.2", "HEADERS on stream 0", START + head(0), PROTOCOL),
    ("6.2", "HEADERS of nothing but padding", START + frame(HEADERS, PADDED | END_HEADERS, 1, b"\x09abc"), PROTOCOL),
    ("6.2", "HEADERS too short for their priority", START + frame(HEADERS, HAS_PRIORITY | END_HEADERS, 1, b"abc"), SIZE),
    ("6.3", "PRIORITY on stream 0", START + frame(PRIORITY, 0, 0, b"\0" * 5), PROTOCOL),
    ("6.4", "RST_STREAM on stream 0", START + frame(RST_STREAM, 0, 0, b"\0\0\0\0"), PROTOCOL),
    ("6.4", "RST_STREAM of 3 bytes", OPEN + frame(RST_STREAM, 0, 1, b"\0\0\0"), SIZE),
    ("6.5", "SETTINGS on a stream", START + frame(SETTINGS, 0, 1), PROTOCOL),
    ("6.5", "SETTINGS of 5 bytes", START + frame(SETTINGS, 0, 0, b"\0" * 5), SIZE),
    ("6.5", "a SETTINGS ACK with a payload", START + frame(SETTINGS, ACK, 0, b"\0" * 6), SIZE),
    ("6.5.2", "ENABLE_PUSH 2", START + settings((2, 2)), PROTOCOL),
    ("6.5.2", "INITIAL_WINDOW_SIZE 2^31", START + settings((4, 2**31)), FLOW),
    ("6.5.2", "MAX_FRAME_SIZE 16383", START + settings((5, 16383)), PROTOCOL),
    ("6.5.2", "MAX_FRAME_SIZE 2^24", START + settings((5, 2**24)), PROTOCOL),
    ("6.6", "PUSH_PROMISE by a client", OPEN + frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2"), PROTOCOL),
    ("6.7", "PING on a stream", OPEN + frame(PING, 0, 1, b"12345678"), PROTOCOL),
    ("6.7", "PING of 7 bytes", START + frame(PING, 0, 0, b"1234567"), SIZE),
    ("6.8", "GOAWAY on a stream", OPEN + frame(GOAWAY, 0, 1, b"\0" * 8), PROTOCOL),
    ("6.8", "GOAWAY of 7 bytes", START + frame(GOAWAY, 0, 0, b"\0" * 7), SIZE),
    ("6.9", "WINDOW_UPDATE of 0 on the connection", START + frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\0"), PROTOCOL),
    ("6.9", "WINDOW_UPDATE of 3 bytes", START + frame(WINDOW_UPDATE, 0, 0, b"\0\0\1"), SIZE),
    ("6.9.1", "the connection's window beyond 2^31-1", START + frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), FLOW),
    ("6.9.2", "a stream's window beyond 2^31-1 by SETTINGS", OPEN + frame(WINDOW_UPDATE, 0, 1, struct.pack(">L", 2**31 - 65536)) + settings((4, 65537)), FLOW),
    ("6.10", "another frame within a header block", START + frame(HEADERS, 0, 1, b"") + frame(PING, 0, 0, b"12345678"), PROTOCOL),
    ("6.10", "CONTINUATION of another stream", START + frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, END_HEADERS, 3, b""), PROTOCOL),
    ("6.10", "HEADERS within a header block", START + frame(HEADERS, 0, 1, b"") + head(1), PROTOCOL),
]  # fmt: skip

BROKEN_STREAMS = [
    ("5.1", "DATA after the end", OPEN + frame(DATA, END_STREAM, 1, b"x") + frame(DATA, 0, 1, b"y"), CLOSED),
    ("5.1", "HEADERS after the end", OPEN + frame(DATA, END_STREAM, 1, b"x") + head(1), CLOSED),
    ("6.3", "PRIORITY of 4 bytes", OPEN + frame(PRIORITY, 0, 1, b"\0" * 4), SIZE),
    ("6.9", "WINDOW_UPDATE of 0", OPEN + frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\0"), PROTOCOL),
    ("6.9.1", "the stream's window beyond 2^31-1", OPEN + frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"), FLOW),
    ("8.1", "trailers that do not end the stream", OPEN + head(1, [(b"x", b"1")], END_HEADERS), PROTOCOL),
    ("8.1", "a pseudo field in the trailers", OPEN + head(1, [(b":path", b"/")]), PROTOCOL),
    ("8.1.1", "more body than content-length", START + head(1, [*POST, (b"content-length", b"1")], END_HEADERS) + frame(DATA, 0, 1, b"ab"), PROTOCOL),
    ("8.1.1", "less body than content-length", START + head(1, [*POST, (b"content-length", b"3")], END_HEADERS) + frame(DATA, END_STREAM, 1, b"ab"), PROTOCOL),
    ("8.1.1", "trailers before content-length is reached", START + head(1, [*POST, (b"content-length", b"3")], END_HEADERS) + head(1, [(b"x", b"1")]), PROTOCOL),
    ("8.1.1", "no body where content-length says there is", START + head(1, [*POST, (b"content-length", b"3")]), PROTOCOL),
    ("8.1.1", "two content-lengths", START + head(1, [*POST, (b"content-length", b"3"), (b"content-length", b"3")], END_HEADERS), PROTOCOL),
    ("8.2.1", "an upper-case name", START + head(1, [*GET, (b"X-A", b"1")]), PROTOCOL),
    ("8.2.1", "an empty name", START + head(1, [*GET, (b"", b"1")]), PROTOCOL),
    ("8.2.1", "a name with a space", START + head(1, [*GET, (b"x a", b"1")]), PROTOCOL),
    ("8.2.1", "a colon within a name", START + head(1, [*GET, (b"x:a", b"1")]), PROTOCOL),
    ("8.2.1", "NUL in a value", START + head(1, [*GET, (b"x", b"a\0b")]), PROTOCOL),
    ("8.2.1", "CR in a value", START + head(1, [*GET, (b"x", b"a\rb")]), PROTOCOL),
    ("8.2.1", "LF in a value", START + head(1, [*GET, (b"x", b"a\nb: c")]), PROTOCOL),
    ("8.2.1", "a value that begins with a space", START + head(1, [*GET, (b"x", b" a")]), PROTOCOL),
    ("8.2.1", "a value that ends with a tab", START + head(1, [*GET, (b"x", b"a\t")]), PROTOCOL),
    ("8.2.2", "connection", START + head(1, [*GET, (b"connection", b"close")]), PROTOCOL),
    ("8.2.2", "transfer-encoding", START + head(1, [*POST, (b"transfer-encoding", b"chunked")]), PROTOCOL),
    ("8.2.2", "upgrade", START + head(1, [*GET, (b"upgrade", b"h2c")]), PROTOCOL),
    ("8.2.2", "keep-alive", START + head(1, [*GET, (b"keep-alive", b"1")]), PROTOCOL),
    ("8.2.2", "te other than trailers", START + head(1, [*GET, (b"te", b"gzip")]), PROTOCOL),
    ("8.3", "a pseudo field after others", START + head(1, [*GET[:3], (b"x", b"1"), GET[3]]), PROTOCOL),
    ("8.3", "an unknown pseudo field", START + head(1, [*GET, (b":x", b"1")]), PROTOCOL),
    ("8.3", "a pseudo field of answers", START + head(1, [*GET, (b":status", b"200")]), PROTOCOL),
    ("8.3.1", "two :path", START + head(1, [*GET, (b":path", b"/b")]), PROTOCOL),
    ("8.3.1", "no :method", START + head(1, GET[1:]), PROTOCOL),
    ("8.3.1", "no :scheme", START + head(1, [GET[0], *GET[2:]]), PROTOCOL),
    ("8.3.1", "no :path", START + head(1, [*GET[:2], GET[3]]), PROTOCOL),
    ("8.3.1", "an empty :path", START + head(1, [*GET[:2], (b":path", b""), GET[3]]), PROTOCOL),
    ("8.3.1", "a :path that is no path", START + head(1, [*GET[:2], (b":path", b"http://x/"), GET[3]]), PROTOCOL),
    ("8.3.1", "a :path with a space", START + head(1, [*GET[:2], (b":path", b"/a b"), GET[3]]), PROTOCOL),
    ("8.3.1", "a :path with a fragment", START + head(1, [*GET[:2], (b":path", b"/a#b"), GET[3]]), PROTOCOL),
    ("8.3.1", "neither :authority nor host", START + head(1, GET[:3]), PROTOCOL),
    ("8.3.1", "host other than :authority", START + head(1, [*GET, (b"host", b"other")]), PROTOCOL),
    ("8.5", "CONNECT with a :path", START + head(1, [*CONNECT, (b":path", b"/")]), PROTOCOL),
    ("8.5", "CONNECT with a :scheme", START + head(1, [*CONNECT, (b":scheme", b"https")]), PROTOCOL),
    ("8.5", "CONNECT without :authority", START + head(1, [CONNECT[0], (b"host", b"a.b:443")]), PROTOCOL),
    ("8.5", "CONNECT without a port", START + head(1, [CONNECT[0], (b":authority", b"a.b")]), PROTOCOL),
    ("8.5", "CONNECT with a length", START + head(1, [*CONNECT, (b"content-length", b"4")], END_HEADERS), PROTOCOL),
    ("8.5", "CONNECT with another host", START + head(1, [*CONNECT, (b"host", b"a.c:443")]), PROTOCOL),
    ("8.3.1", ":authority with a path", START + head(1, [*GET[:3], (b":authority", b"pay/x")]), PROTOCOL),
]  # fmt: skip

TAKEN = [
    ("3.4", "GET", START + head(1), [("request", 1, b"GET", b"/", True)]),
    ("4.1", "a frame of an unknown kind", START + frame(0xFA, 0xFF, 7, b"what") + head(1), [("request", 1, b"GET", b"/", True)]),
    ("5.1", "PRIORITY on an idle stream", START + frame(PRIORITY, 0, 9, b"\0" * 5) + head(1), [("request", 1, b"GET", b"/", True)]),
    ("5.1.1", "numbers that are passed over", START + head(1) + head(7), [("request", 1, b"GET", b"/", True), ("request", 7, b"GET", b"/", True)]),
    ("6.1", "padding", OPEN + frame(DATA, PADDED | END_STREAM, 1, b"\x03hello\0\0\0"), [("request", 1, b"POST", b"/", False), ("data", 1, b"hello"), ("end", 1)]),
    ("6.1", "nothing but padding", OPEN + frame(DATA, PADDED | END_STREAM, 1, b"\x03\0\0\0"), [("request", 1, b"POST", b"/", False), ("end", 1)]),
    ("6.2", "padding and priority", START + frame(HEADERS, PADDED | HAS_PRIORITY | END_HEADERS | END_STREAM, 1, b"\x02" + b"\0\0\0\0\x10" + octets.encode(GET) + b"\0\0"), [("request", 1, b"GET", b"/", True)]),
    ("6.5.2", "an unknown setting", START + settings((0x99, 7)) + head(1), [("request", 1, b"GET", b"/", True)]),
    ("6.10", "a head in pieces", START + frame(HEADERS, END_STREAM, 1, octets.encode(GET)[:3]) + frame(CONTINUATION, 0, 1, octets.encode(GET)[3:5]) + frame(CONTINUATION, END_HEADERS, 1, octets.encode(GET)[5:]), [("request", 1, b"GET", b"/", True)]),
    ("8.1", "trailers", OPEN + frame(DATA, 0, 1, b"x") + head(1, [(b"sum", b"9")]), [("request", 1, b"POST", b"/", False), ("data", 1, b"x"), ("headers", 1, ((b"sum", b"9"),), True)]),
    ("8.3.1", "host instead of :authority", START + head(1, [*GET[:3], (b"host", b"pay")]), [("request", 1, b"GET", b"/", True)]),
    ("8.3.1", "OPTIONS *", START + head(1, [(b":method", b"OPTIONS"), (b":scheme", b"http"), (b":path", b"*"), GET[3]]), [("request", 1, b"OPTIONS", b"*", True)]),
    ("8.5", "CONNECT", START + head(1, CONNECT, END_HEADERS), [("request", 1, b"CONNECT", b"a.b:443", False)]),
]  # fmt: skip


def named(rows):
    return [pytest.param(*row[2:], id=f"{row[0]} {row[1]}") for row in rows]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("data", "code"), named(BROKEN_CONNECTIONS))
def test_what_breaks_the_connection(data: bytes, code: ErrorCode, cut: int) -> None:
    peer = Peer().feed(data, cut)
    assert peer.fault is not None
    assert peer.fault.code == code, peer.fault.message


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("data", "code"), named(BROKEN_STREAMS))
def test_what_breaks_one_stream_leaves_the_others(data: bytes, code: ErrorCode, cut: int) -> None:
    peer = Peer().feed(data, cut)
    assert peer.fault is None
    assert peer.resets == {1: code}
    peer.feed(head(3), cut)
    assert peer.heard[-1] == ("request", 3, b"GET", b"/", True)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("data", "heard"), named(TAKEN))
def test_what_is_taken(data: bytes, heard: list[tuple[object, ...]], cut: int) -> None:
    peer = Peer().feed(data, cut)
    assert (peer.fault, peer.heard) == (None, heard)


# --- flow control ---------------------------------------------------------------------------------------------------


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
    assert peer.resets == {1: FLOW}
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
    assert peer.fault.code == FLOW


# --- floods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("piece", "start"), [pytest.param(*row[2:], id=f"{row[0]} {row[1]}") for row in FLOODS])
def test_a_flood_ends_with_enhance_your_calm(piece, start: bytes) -> None:
    peer = Peer().feed(start)
    for number in range(20_000):
        peer.feed(piece(number))
        if peer.fault:
            break
    assert peer.fault is not None
    assert peer.fault.code == ErrorCode.ENHANCE_YOUR_CALM
    assert len(peer.connection.streams) <= CONCURRENT


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_a_header_block_without_end_is_cut_off(size: int) -> None:
    """CVE-2024-27316: many CONTINUATION frames, empty or not."""
    peer = Peer().feed(START + frame(HEADERS, 0, 1, b""))
    for _ in range(1000):
        peer.feed(frame(CONTINUATION, 0, 1, b"\x00" * size))
        if peer.fault:
            break
    assert peer.fault is not None
    assert peer.fault.code == ErrorCode.ENHANCE_YOUR_CALM


def test_a_header_bomb_is_not_unpacked() -> None:
    """CVE-2016-6581: a large field put into the table once and referred to many times."""
    peer = Peer().feed(START + frame(HEADERS, END_HEADERS | END_STREAM, 1, BOMB + BOMB_FIELD * 5000))
    assert peer.fault is not None
    assert peer.fault.code == ErrorCode.ENHANCE_YOUR_CALM


def test_a_bomb_below_the_limit_is_refused_as_a_head_and_the_table_stays_in_step() -> None:
    peer = Peer().feed(START + frame(HEADERS, END_HEADERS | END_STREAM, 1, BOMB))
    for number in range(3, 103, 2):
        peer.feed(frame(HEADERS, END_HEADERS | END_STREAM, number, octets.encode(GET) + BOMB_FIELD * 40))
    peer.feed(head(103))
    assert peer.fault is None
    assert {each[0] for each in peer.heard[1:-1]} == {"refused"}
    assert peer.heard[-1][:2] == ("request", 103)


# --- credit in crumbs (CVE-2019-9517): each crumb makes as little work as it is worth ---------------------------------


def starved() -> Peer:
    """A hundred streams, of whose answers the peer has let out nothing."""
    peer = Peer().feed(PREFACE + settings((4, 0)) + b"".join(head(2 * n + 1) for n in range(CONCURRENT)))
    peer.connection.send_window = 0
    for stream in tuple(peer.connection.streams.values()):
        peer.connection.send_headers(stream, [(b":status", b"200")], ended=False)
        peer.connection.send_data(stream, b"x" * 50_000)
    peer.sent.clear()
    peer.connection.take()
    return peer


def test_credit_for_the_connection_lets_out_once_what_a_read_brought() -> None:
    peer = starved()
    peer.connection.send_window = 0
    peer.feed(b"".join(credit(2 * n + 1, 1000) for n in range(CONCURRENT)) + credit(0, 1) * 300)
    sent = [len(payload) for kind, _, _, payload in peer.sent if kind == DATA]
    assert sent == [300]


def test_credit_for_streams_lets_out_each_once_for_what_a_read_brought() -> None:
    peer = starved()
    peer.connection.send_window = 1 << 20
    peer.feed((credit(1, 1) + credit(5, 2)) * 10)
    assert [(stream, len(payload)) for kind, _, stream, payload in peer.sent if kind == DATA] == [(1, 10), (5, 20)]
    assert not any(stream.is_paused for stream in peer.connection.streams.values())


def test_settings_that_raise_the_window_by_crumbs_let_out_once_behind_their_acknowledgements() -> None:
    peer = starved()
    peer.connection.send_window = 1 << 20
    peer.feed(b"".join(settings((4, n)) for n in range(1, 201)))
    assert [kind for kind, *_ in peer.sent] == [SETTINGS] * 200 + [DATA] * CONCURRENT
    assert {len(payload) for kind, _, _, payload in peer.sent if kind == DATA} == {200}


def test_a_turn_reads_so_many_frames_and_the_next_goes_on() -> None:
    peer = Peer().feed(START)
    data = b"".join(head(2 * n + 1, POST, END_HEADERS) + frame(DATA, PADDED, 2 * n + 1, b"\0x") * 20 for n in range(50))
    assert peer.connection.feed(data + data[:5]) is True
    assert len(peer.connection.streams) < 50
    assert peer.connection.feed(b"") is True
    assert peer.connection.feed(b"") is False
    assert len(peer.connection.streams) == 50
    assert sum(len(each[2]) for each in peer.heard if each[0] == "data") == 1000  # type: ignore[arg-type]


def test_credit_for_the_connection_in_crumbs_ends_with_enhance_your_calm() -> None:
    peer = starved()
    peer.feed(b"".join(credit(2 * n + 1, 1 << 20) for n in range(CONCURRENT)))
    for _ in range(100):
        peer.feed(credit(0, 1) * 500)
        if peer.fault:
            break
    assert peer.fault is not None
    assert peer.fault.code == ErrorCode.ENHANCE_YOUR_CALM


def test_a_peer_that_takes_byte_by_byte_is_served() -> None:
    """Nghttp -w1 -W1: silly, but it takes what it asks for."""
    peer = starved()
    peer.connection.send_window = 0
    for _ in range(5000):
        peer.feed(credit(0, 1) + credit(1, 1))
    assert peer.fault is None
    assert sum(len(payload) for kind, _, stream, payload in peer.sent if kind == DATA and stream == 1) == 5000


def test_what_is_on_its_way_of_streams_that_we_reset_is_no_flood() -> None:
    """Uploads that are refused early: the windows of them may be under way."""
    peer = Peer().feed(START)
    for number in range(1, 10_001, 2):
        peer.feed(head(number, POST, END_HEADERS))
        stream = peer.connection.streams[number]
        peer.connection.reset(stream, ErrorCode.NO_ERROR)
        peer.feed(frame(DATA, 0, number, b"x" * 16384) * 15 + frame(DATA, END_STREAM, number, b"x"))
    assert peer.fault is None


@pytest.mark.parametrize("size", [5, 64, 100, 1000])
def test_small_messages_on_their_way_of_many_streams_that_we_reset_are_no_flood(size: int) -> None:
    """A client that gives up its streaming calls costs those of others nothing, though its messages come in turns."""
    peer = Peer(is_server=False).feed(settings())
    streams = [peer.connection.open() for _ in range(CONCURRENT)]
    for stream in streams:
        stream.owner = Owner(peer, stream.id)
        peer.connection.send_headers(stream, GET, ended=True)
    for stream in streams[1:]:
        peer.feed(head(stream.id, [(b":status", b"200")], END_HEADERS))
        peer.connection.reset(stream, ErrorCode.CANCEL)
    for _ in range(50):
        for stream in streams[1:]:
            peer.feed(frame(DATA, 0, stream.id, b"x" * size))
    peer.feed(head(1, [(b":status", b"200")], END_HEADERS) + frame(DATA, END_STREAM, 1, b"whole"))
    assert peer.fault is None
    assert peer.heard[-2:] == [("data", 1, b"whole"), ("end", 1)]


@pytest.mark.parametrize("step", [256, 512, 1024, 4096])
def test_a_body_may_be_credited_in_small_steps(step: int) -> None:
    """On the stream and on the connection, all that a read brought at once."""
    size = 4 << 20
    peer = Peer().feed(START + head(1))
    stream = peer.connection.streams[1]
    peer.connection.send_headers(stream, [(b":status", b"200")], ended=False)
    peer.connection.send_last(stream, b"x" * size, [])
    taken = owed = 0
    while True:
        owed += sum(len(payload) for kind, _, _, payload in frames(peer.connection.take()) if kind == DATA)
        if owed < step:
            break
        taken += owed // step * step
        is_more = peer.connection.feed((credit(1, step) + credit(0, step)) * (owed // step))
        while is_more:
            is_more = peer.connection.feed(b"")
        owed %= step
    assert taken + owed == size


def test_a_large_window_may_be_credited_in_small_steps_after_all_was_sent() -> None:
    size = 8 << 20
    peer = Peer().feed(PREFACE + settings((4, size)) + credit(0, size) + head(1))
    stream = peer.connection.streams[1]
    peer.connection.send_headers(stream, [(b":status", b"200")], ended=False)
    peer.connection.send_data(stream, b"x" * size)
    for _ in range(size // 4096):
        peer.feed(credit(1, 4096) + credit(0, 4096))
    assert peer.fault is None


def test_a_full_transport_holds_bodies_back_whatever_credit_comes_and_nothing_else() -> None:
    peer = Peer().feed(PREFACE + settings((4, 1000)) + head(1) + head(3))
    first, second = (peer.connection.streams[number] for number in (1, 3))
    for stream in (first, second):
        peer.connection.send_headers(stream, [(b":status", b"200")], ended=False)
    peer.connection.send_data(first, b"a" * 1001)
    peer.connection.take()
    peer.sent.clear()
    peer.connection.hold()
    peer.feed(credit(1, 1) + credit(0, 1) + frame(PING, 0, 0, b"12345678"))
    peer.connection.send_data(second, b"b")
    peer.connection.send_last(second, b"b", [])
    peer.feed(b"")
    assert [kind for kind, *_ in peer.sent] == [PING]
    peer.connection.let_go()
    sent = [(stream, flags, payload) for kind, flags, stream, payload in frames(peer.connection.take()) if kind == DATA]
    assert sent == [(1, 0, b"a"), (3, 0, b"b"), (3, END_STREAM, b"b")]
    assert list(peer.connection.streams) == [1]


def test_ordinary_traffic_earns_its_pings_and_window_updates() -> None:
    peer = Peer().feed(START)
    for number in range(1, 20_001, 2):
        peer.feed(head(number, POST, END_HEADERS) + frame(DATA, END_STREAM, number, b"x"))
        peer.feed(frame(PING, 0, 0, b"12345678") + frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"))
        stream = peer.connection.streams[number]
        peer.connection.send_headers(stream, [(b":status", b"200")], ended=True)
    assert peer.fault is None
    assert not peer.connection.streams


def test_more_streams_than_allowed_are_refused_and_the_rest_goes_on() -> None:
    peer = Peer().feed(START + b"".join(head(2 * n + 1, POST, END_HEADERS) for n in range(CONCURRENT + 5)))
    assert peer.resets == {2 * n + 1: ErrorCode.REFUSED_STREAM for n in range(CONCURRENT, CONCURRENT + 5)}
    peer.feed(frame(DATA, END_STREAM, 2 * CONCURRENT + 1, b"on its way"))  # before it heard of the reset
    assert peer.fault is None


# --- the client's side ----------------------------------------------------------------------------------------------


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
    ("6.6", "PUSH_PROMISE though it is off", frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2"), PROTOCOL),
    ("6.5.2", "ENABLE_PUSH 1 by a server", settings((2, 1)), PROTOCOL),
    ("5.1.1", "a stream that the server begins", head(2, [(b":status", b"200")]), PROTOCOL),
    ("5.1", "an answer on an idle stream", head(5, [(b":status", b"200")]), PROTOCOL),
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
    assert peer.resets == {1: PROTOCOL}
    assert peer.heard[-1] == ("reset", 1, PROTOCOL, False)


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


# --- heads ----------------------------------------------------------------------------------------------------------


def test_cookies_become_one_and_te_is_remembered() -> None:
    request = request_head([*GET, (b"cookie", b"a=1"), (b"te", b"trailers"), (b"cookie", b"b=2")], ended=True)
    assert request.headers == [(b"cookie", b"a=1; b=2")]
    assert request.wants_trailers


@pytest.mark.parametrize("status", [b"99", b"600", b"2000", b"abc", b"", b"101"])
def test_a_status_that_is_none_is_refused(status: bytes) -> None:
    with pytest.raises(ProxyError):
        response_head([(b":status", status)], ended=True)


def test_credentials_are_never_to_be_indexed() -> None:
    """RFC 7541 §7.1.3: the first byte of a literal that no hop may put into a table is 0001xxxx."""
    for name in (b"authorization", b"proxy-authorization", b"cookie", b"set-cookie"):
        assert octets.encode([(name, b"secret")])[0] >> 4 == 0b0001
    assert octets.encode([(b"x", b"1")])[0] >> 4 == 0b0000


def test_malformed_is_no_reason_to_lose_step_with_the_table() -> None:
    """The second head refers to what the first, which is refused, has put into the table."""
    indexed = b"\x40\x01x\x01y"  # x: y, with incremental indexing
    bad = octets.encode([*GET, (b"X", b"1")]) + indexed
    peer = Peer().feed(START + frame(HEADERS, END_HEADERS | END_STREAM, 1, bad))
    peer.feed(frame(HEADERS, END_HEADERS | END_STREAM, 3, octets.encode(GET) + b"\xbe"))
    assert peer.heard == [("request", 3, b"GET", b"/", True)]


assert StreamFault  # what Events may raise
