"""One end of an HTTP/2 connection (RFC 9113), for the bench's own gRPC client and server. Trusts its peer.

Fast rather than complete: both share a core with each other, and the proxy on the other core must be what is waited
for. Frames of one message that repeat are recognised many at a time; no header block is decoded here. What a peer may
send and ours never do (padding, CONTINUATION, a smaller header table) is an error, so that nothing is measured that was
not understood.
"""

from __future__ import annotations

import asyncio
import struct
from typing import cast

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 0x1, 0x4
TABLE_BYTES = 4096  # RFC 9113 §6.5.2: what an encoder may use until its peer says otherwise
DEFAULT_WINDOW = 65_535  # RFC 9113 §6.9.2
WINDOW = 1 << 20  # for a stream and for the connection: what grpc-go's estimate comes to on a fast path
HEAD_BYTES = 9
MANY = 64
MOST_BYTES = 16_384  # RFC 9113 §4.2: a frame's payload where the settings say nothing

HEAD = struct.Struct(">HBBBI")  # the length in two parts: there is no format of three bytes
LONG = struct.Struct(">I")
_SETTING = struct.Struct(">HI")


class Http2Error(Exception):
    """The peer said something that it should not have said here."""


def head(kind: int, flags: int, length: int) -> bytes:
    """A frame's head without its last four bytes, the stream."""
    return HEAD.pack(length >> 8, length & 0xFF, kind, flags, 0)[:5]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return head(kind, flags, len(payload)) + LONG.pack(stream) + payload


HELLO = frame(SETTINGS, 0, 0, _SETTING.pack(INITIAL_WINDOW_SIZE, WINDOW)) + frame(
    WINDOW_UPDATE, 0, 0, LONG.pack(WINDOW - DEFAULT_WINDOW)
)


class Connection(asyncio.Protocol):
    """Frames in, frames out. A subclass has the ``on_…`` methods; it appends to ``out`` what is to be sent.

    ``send_window`` is the connection's. A stream may have sent ``initial_window`` bytes and what WINDOW_UPDATE added.
    """

    transport: asyncio.WriteTransport

    def __init__(self) -> None:
        self.out: list[bytes] = []
        self.send_window = DEFAULT_WINDOW
        self.initial_window = DEFAULT_WINDOW
        self.is_paused = False
        self._rest = b""
        self._connection_taken_bytes = 0
        self._one = self._many = b""

    def on_headers(self, stream: int, flags: int, block: bytes) -> None:
        """A header block, undecoded."""
        raise NotImplementedError

    def on_data(self, stream: int, flags: int, payload: bytes) -> None:
        """A part of a body."""
        raise NotImplementedError

    def on_messages(self, count: int) -> None:
        """So many of the frames that were expected."""
        raise NotImplementedError

    def on_window(self, stream: int, more_bytes: int) -> None:
        """There is more room: of a stream, of all of them where ``stream`` is 0, or in the socket (0, 0)."""

    def on_failure(self, why: str) -> None:
        """The connection is of no more use."""
        raise NotImplementedError

    def expect(self, data_frame: bytes) -> None:
        """From now on this frame comes again and again: tell of many at once by ``on_messages``."""
        self._one, self._many = data_frame, data_frame * MANY

    def take(self, count_bytes: int) -> None:
        """Give the peer credit for body bytes that were dealt with; in large portions, on the connection."""
        self._connection_taken_bytes += count_bytes
        if self._connection_taken_bytes >= WINDOW // 2:
            self.out.append(frame(WINDOW_UPDATE, 0, 0, LONG.pack(self._connection_taken_bytes)))
            self._connection_taken_bytes = 0

    def flush(self) -> None:
        """Send what is in ``out``."""
        if self.out:
            self.transport.write(b"".join(self.out))
            self.out.clear()

    # --- called by the loop -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's is not derived from it
        self.out.append(HELLO)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.on_failure(f"the connection was closed ({exc or 'in order'})")

    def data_received(self, data: bytes) -> None:
        try:
            self._read(self._rest + data if self._rest else data)
        except Http2Error as error:
            self.on_failure(str(error))
            self.transport.abort()
            return
        self.flush()

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self.on_window(0, 0)
        self.flush()

    def _read(self, data: bytes) -> None:
        at, size = 0, len(data)
        while True:
            if self._one:
                begin = at
                while data.startswith(self._many, at):
                    at += len(self._many)
                while data.startswith(self._one, at):
                    at += len(self._one)
                if at > begin:
                    self.on_messages((at - begin) // len(self._one))
            if size - at < HEAD_BYTES:
                break
            high, low, kind, flags, stream = HEAD.unpack_from(data, at)
            end = at + HEAD_BYTES + (high << 8 | low)
            if end > size:
                break
            payload = data[at + HEAD_BYTES : end]
            at = end
            if kind == DATA and not flags & PADDED:
                self.on_data(stream, flags, payload)
            elif kind == HEADERS and flags & (END_HEADERS | PADDED | HAS_PRIORITY) == END_HEADERS:
                self.on_headers(stream, flags, payload)
            else:
                self._other(kind, flags, stream, payload)
        self._rest = data[at:]

    def _other(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            (more_bytes,) = LONG.unpack(payload)
            if not stream:
                self.send_window += more_bytes
            self.on_window(stream, more_bytes)
        elif kind == SETTINGS:
            if not flags & ACK:
                for key, value in _SETTING.iter_unpack(payload):
                    self._set(key, value)
                self.out.append(frame(SETTINGS, ACK, 0))
        elif kind == PING:
            if not flags & ACK:
                self.out.append(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            raise Http2Error(f"stream {stream} was reset with error {LONG.unpack(payload)[0]}")
        elif kind == GOAWAY:
            raise Http2Error(f"GOAWAY with error {LONG.unpack_from(payload, 4)[0]} {payload[8:]!r}")
        elif kind != PRIORITY:
            raise Http2Error(f"an unexpected frame of type {kind} with flags {flags:#x}")

    def _set(self, key: int, value: int) -> None:
        if key == INITIAL_WINDOW_SIZE:
            self.initial_window = value
            self.on_window(0, 0)
        elif key == HEADER_TABLE_SIZE and value < TABLE_BYTES:
            raise Http2Error(f"a header table of {value} bytes: our header blocks need {TABLE_BYTES}")
