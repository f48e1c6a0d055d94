"""Bodies of HTTP/1.1 messages, cut out of the byte stream by length, by chunks or by the connection's end.

Pieces go to ``sink`` as they come, as large as they come; nothing is collected. All readers share one interface:
``feed(data, sink)`` gives back the bytes behind the body's end, ``ended`` says that the end was seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

from mesh.http.headers import Headers
from mesh.http.outcome import BadRequest, UpstreamProtocolError
from proxy.http1.fields import parse_trailers

Sink = Callable[[bytes], None]

MAX_CHUNK_LINE_BYTES: Final = 256  # chunk extensions carry nothing here; long ones are an attack (CVE-2023-39326)
MAX_TRAILER_BYTES: Final = 16 * 1024

# RFC 9112 §7.1: chunk-size [ chunk-ext ] CRLF. No blanks around the size: two readers differ there.
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")


class BodyReader(Protocol):
    """Cuts one body out of the stream."""

    ended: bool
    trailers: Headers

    def feed(self, data: bytes, sink: Sink) -> bytes:
        """Give the body's part of ``data`` to ``sink``; returns what follows the body. Raises the reader's error."""


class LengthReader:
    """A body of a known length."""

    __slots__ = ("ended", "remaining", "trailers")

    def __init__(self, length: int) -> None:
        """``length`` bytes follow."""
        self.remaining = length
        self.ended = length == 0
        self.trailers: Headers = []

    def feed(self, data: bytes, sink: Sink) -> bytes:
        """See BodyReader."""
        size = len(data)
        if size < self.remaining:
            self.remaining -= size
            sink(data)
            return b""
        piece = data if size == self.remaining else data[: self.remaining]
        rest = data[self.remaining :]
        self.remaining = 0
        self.ended = True
        if piece:
            sink(piece)
        return rest


class UntilCloseReader:
    """A response body that ends with its connection; whoever sees the end sets ``ended``."""

    __slots__ = ("ended", "trailers")

    def __init__(self) -> None:
        """The end is not in the bytes."""
        self.ended = False
        self.trailers: Headers = []

    def feed(self, data: bytes, sink: Sink) -> bytes:
        """See BodyReader."""
        sink(data)
        return b""


class _State(Enum):
    SIZE = 1
    DATA = 2
    DATA_END = 3
    TRAILERS = 4


class ChunkedReader:
    """A body in chunks (RFC 9112 §7.1). ``error`` is what malformed ones raise."""

    __slots__ = ("_carry", "_error", "_remaining", "_state", "ended", "trailers")

    def __init__(self, error: type[BadRequest | UpstreamProtocolError]) -> None:
        """Begin before the first chunk."""
        self._error = error
        self._state = _State.SIZE
        self._carry = b""
        self._remaining = 0
        self.ended = False
        self.trailers: Headers = []

    def feed(self, data: bytes, sink: Sink) -> bytes:
        """See BodyReader."""
        if self._carry:
            data = self._carry + data
            self._carry = b""
        position, size = 0, len(data)
        while position < size:
            if self._state is _State.DATA:
                end = min(size, position + self._remaining)
                sink(data[position:end] if position or end < size else data)
                self._remaining -= end - position
                position = end
                if not self._remaining:
                    self._state = _State.DATA_END
            elif self._state is _State.SIZE:
                line = self._line(data, position, MAX_CHUNK_LINE_BYTES)
                if line is None:
                    return b""
                self._start_chunk(line)
                position += len(line)
            elif self._state is _State.DATA_END:
                if size - position == 1 and data[position:] == b"\r":
                    self._carry = b"\r"
                    return b""
                if data[position : position + 2] != b"\r\n":
                    message = "a chunk is longer than its size says (RFC 9112 §7.1)"
                    raise self._error(message)
                position += 2
                self._state = _State.SIZE
            else:
                section_end = self._trailers_end(data, position)
                if section_end is None:
                    return b""
                self.trailers = parse_trailers(data[position : section_end - 2], self._error)
                self.ended = True
                return data[section_end:]
        return b""

    def _line(self, data: bytes, position: int, limit: int) -> bytes | None:
        end = data.find(b"\n", position)
        if end < 0:
            if len(data) - position > limit:
                message = f"a chunk line is longer than {limit} bytes"
                raise self._error(message)
            self._carry = data[position:]
            return None
        if end - position >= limit:
            message = f"a chunk line is longer than {limit} bytes"
            raise self._error(message)
        return data[position : end + 1]

    def _start_chunk(self, line: bytes) -> None:
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            message = f"malformed chunk size {line[:30]!r} (RFC 9112 §7.1)"
            raise self._error(message)
        self._remaining = int(match[1], 16)
        self._state = _State.DATA if self._remaining else _State.TRAILERS

    def _trailers_end(self, data: bytes, position: int) -> int | None:
        """The position behind the empty line that ends the trailer section; None while it has not come."""
        if data.startswith(b"\r\n", position):
            return position + 2
        end = data.find(b"\r\n\r\n", position)
        if (end if end >= 0 else len(data)) - position > MAX_TRAILER_BYTES:
            message = f"the trailer section is larger than {MAX_TRAILER_BYTES} bytes"
            raise self._error(message)
        if end < 0:
            self._carry = data[position:]
            return None
        return end + 4
