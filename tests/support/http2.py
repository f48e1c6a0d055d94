"""Frames of HTTP/2 written and read by hand, and the floods that a hostile client is made of."""

import struct

from mesh.http.headers import Headers
from proxy.http2 import octets
from proxy.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)

GET: Headers = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"pay")]
POST: Headers = [(b":method", b"POST"), *GET[1:]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def head(stream: int, fields: Headers = GET, flags: int = END_STREAM | END_HEADERS) -> bytes:
    return frame(HEADERS, flags, stream, octets.encode(fields))


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HL", *pair) for pair in pairs))


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(kind, flags, stream, payload) of what was sent."""
    found = []
    while data:
        size = int.from_bytes(data[:3], "big")
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        data = data[9 + size :]
    return found


def credit(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">L", increment))


START = PREFACE + settings()
OPEN = START + head(1, POST, END_HEADERS)
RESET = START + head(1, [*POST, (b"X", b"1")], END_HEADERS)
"""A stream that we reset for its upper case; what the peer sends on it may have been on its way."""
BOMB = octets.encode(GET) + b"\x40\x01a" + b"\x7f\x81\x1e" + b"v" * 3968
"""A head that puts a field of 4000 bytes into the table; each byte ``BOMB_FIELD`` behind it is that field again."""
BOMB_FIELD = b"\xbe"

FLOODS = [
    ("CVE-2019-9512", "PING", lambda _: frame(PING, 0, 0, b"12345678"), START),
    ("CVE-2019-9515", "SETTINGS", lambda _: settings(), START),
    ("CVE-2019-9513", "PRIORITY", lambda n: frame(PRIORITY, 0, 2 * n + 1, b"\0" * 5), START),
    ("CVE-2019-9518", "empty DATA", lambda _: frame(DATA, 0, 1, b""), OPEN),
    ("CVE-2019-9517", "WINDOW_UPDATE", lambda _: frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"), START),
    ("CVE-2023-44487", "rapid reset", lambda n: head(2 * n + 3, POST, END_HEADERS) + frame(RST_STREAM, 0, 2 * n + 3, b"\0\0\0\x08"), START),
    ("CVE-2025-8671", "MadeYouReset", lambda n: head(2 * n + 3) + frame(WINDOW_UPDATE, 0, 2 * n + 3, b"\0\0\0\0"), START),
    ("CVE-2019-9514", "HEADERS that are refused", lambda n: head(2 * n + 3, [*GET, (b"X", b"1")]), START),
    ("CVE-2019-9516", "fields without a name", lambda n: head(2 * n + 3, [*GET, (b"", b"")]), START),
    ("CVE-2024-27316", "CONTINUATION", lambda _: frame(CONTINUATION, 0, 1, b""), START + frame(HEADERS, 0, 1, b"")),
    ("4.1", "frames of unknown kinds", lambda _: frame(0xBB, 0, 0, b""), START),
    ("6.5", "SETTINGS ACK", lambda _: frame(SETTINGS, ACK, 0), START),
    ("6.7", "PING ACK", lambda _: frame(PING, ACK, 0, b"12345678"), START),
    ("6.8", "GOAWAY", lambda _: frame(GOAWAY, 0, 0, b"\0" * 8), START),
    ("5.1", "HEADERS on a stream we reset", lambda _: head(1), RESET),
    ("5.1", "DATA on a stream we reset", lambda _: frame(DATA, PADDED, 1, b"\0x"), RESET),
    ("5.1", "WINDOW_UPDATE on a stream we reset", lambda _: frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1"), RESET),
]  # fmt: skip
