"""What a peer can break in HTTP/2, on raw frames: RFC 9113 and RFC 7541, with the section beside each row.

Every row is also fed in pieces of 1, 2, 3 and 7 bytes: what comes of it may not depend on how the bytes were cut.
"""

import struct

import pytest

from mesh.http.headers import Headers
from mesh.http.outcome import ProxyError
from proxy.http2 import octets
from proxy.http2.errors import ErrorCode, StreamFault
from proxy.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
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
from tests.support.http2 import GET, OPEN, POST, START, frame, head, settings
from tests.support.http2_peer import Peer

CUTS = (0, 1, 2, 3, 7)

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
    ("5.1", "HEADERS on a stream that the peer reset", OPEN + frame(RST_STREAM, 0, 1, b"\0\0\0\x08") + head(1), CLOSED),
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
    ("5.1", "DATA on a stream that the peer reset", OPEN + frame(RST_STREAM, 0, 1, b"\0\0\0\x08") + frame(DATA, 0, 1, b"x"), CLOSED),
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
    ("5.1", "WINDOW_UPDATE, RST_STREAM and PRIORITY on a stream that the peer reset", OPEN + frame(RST_STREAM, 0, 1, b"\0\0\0\x08") + frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1") + frame(RST_STREAM, 0, 1, b"\0\0\0\x08") + frame(PRIORITY, 0, 1, b"\0" * 5) + head(3), [("request", 1, b"POST", b"/", False), ("reset", 1, 8, False), ("request", 3, b"GET", b"/", True)]),
    ("5.1", "the same on one that we reset", START + head(1, [*POST, (b"X", b"1")], END_HEADERS) + frame(DATA, END_STREAM, 1, b"x") + frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1") + frame(RST_STREAM, 0, 1, b"\0\0\0\x08") + head(3), [("request", 3, b"GET", b"/", True)]),
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
