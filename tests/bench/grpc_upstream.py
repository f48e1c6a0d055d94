"""The gRPC program behind the proxies: it echoes each message as soon as it has come. A process of its own.

    python -m tests.bench.grpc_upstream PORT …

A unary call is a stream of one message. Each message goes back in a DATA frame of its own, as gRPC libraries send it,
also where a proxy has put several into one. Credit goes back when the echo has gone out, so that a slow caller slows
down the other direction too. All messages of a call are ``grpc_traffic.message`` of the size that the first one says
it has; any other ends the connection.

Why not nghttpd: its ``--echo-upload`` answers only when the whole body has come.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop
from hpack import Encoder

from tests.bench import http2
from tests.bench.grpc_traffic import PREFIX_BYTES, message
from tests.bench.http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    LONG,
    MOST_BYTES,
    PREFACE,
    WINDOW,
    WINDOW_UPDATE,
    Connection,
    Http2Error,
)
from tests.bench.machine import LOAD_CORE, pinned

Fields = tuple[tuple[str, str], ...]

_HEAD: Fields = ((":status", "200"), ("content-type", "application/grpc"))
_TRAILERS: Fields = (("grpc-status", "0"), ("grpc-message", ""))
_ENTRIES = 3  # of the two in the dynamic table; :status 200 is in the static one


def command(ports: tuple[int, ...]) -> list[str | Path]:
    """The program is this module itself."""
    return pinned(LOAD_CORE, sys.executable, "-m", "tests.bench.grpc_upstream", *map(str, ports))


class _Call:
    """A call of which the request has not come all at once."""

    __slots__ = (
        *("stream", "message_bytes", "pattern", "frame"),
        *("received_bytes", "echoed", "added_bytes", "taken_bytes", "has_ended"),
    )

    def __init__(self, stream: int, sent: bytes) -> None:
        """``sent`` is the message that comes again and again."""
        self.stream = stream
        self.message_bytes = len(sent)
        self.pattern = sent * (MOST_BYTES // len(sent) + 2)
        self.frame = http2.frame(DATA, 0, stream, sent)
        self.received_bytes = 0
        self.echoed = 0
        self.added_bytes = 0  # to its window, less what was sent
        self.taken_bytes = 0
        self.has_ended = False


class _Server(Connection):
    def __init__(self) -> None:
        super().__init__()
        self._encoder = Encoder()
        self._blocks: dict[Fields, bytes] = {}
        self._calls: dict[int, _Call] = {}
        self._expected: _Call | None = None
        self._preface = PREFACE

    def data_received(self, data: bytes) -> None:
        if self._preface:
            count = min(len(self._preface), len(data))
            if data[:count] != self._preface[:count]:
                self.transport.abort()
                return
            self._preface, data = self._preface[count:], data[count:]
        super().data_received(data)

    def on_headers(self, stream: int, flags: int, block: bytes) -> None:
        if flags & END_STREAM:  # asked with GET, to see whether the proxy forwards
            self._begin(stream)
            self._end(stream)

    def on_data(self, stream: int, flags: int, payload: bytes) -> None:
        call = self._calls.get(stream)
        if call is None:
            if len(payload) < PREFIX_BYTES:
                raise Http2Error(f"stream {stream}: a message begins with {payload!r}")
            sent = message(int.from_bytes(payload[1:PREFIX_BYTES], "big"))
            self._begin(stream)
            if flags & END_STREAM and payload == sent and len(payload) <= self.send_window:  # a unary call at once
                self.out.append(http2.frame(DATA, 0, stream, payload))
                self.send_window -= len(payload)
                self._end(stream)
                self.take(len(payload))
                return
            call = self._calls[stream] = self._expected = _Call(stream, sent)
            self.expect(call.frame)
        at = call.received_bytes % call.message_bytes
        if payload != call.pattern[at : at + len(payload)]:
            raise Http2Error(f"stream {stream}: a message is not what the client sends")
        call.received_bytes += len(payload)
        call.has_ended = flags & END_STREAM != 0
        self._echo(call)

    def on_messages(self, count: int) -> None:
        call = self._expected
        if call is None or call.has_ended or call.received_bytes % call.message_bytes:
            raise Http2Error("a message is not what the client sends: it begins within another")
        call.received_bytes += count * call.message_bytes
        self._echo(call)

    def on_window(self, stream: int, more_bytes: int) -> None:
        if stream in self._calls:
            self._calls[stream].added_bytes += more_bytes
        for call in list(self._calls.values()):
            self._echo(call)

    def on_failure(self, why: str) -> None:
        if self._calls:
            print(why, file=sys.stderr, flush=True)

    def _begin(self, stream: int) -> None:
        self._headers(stream, 0, _HEAD)

    def _end(self, stream: int) -> None:
        self._headers(stream, END_STREAM, _TRAILERS)

    def _headers(self, stream: int, flags: int, fields: Fields) -> None:
        block = self._blocks.get(fields)
        if block is None:
            has_all = len(self._encoder.header_table.dynamic_entries) == _ENTRIES
            block = self._encoder.encode(fields)
            if has_all:  # nothing more is put in, and the block stays the same
                self._blocks[fields] = block
        self.out += (http2.head(HEADERS, flags | END_HEADERS, len(block)), LONG.pack(stream), block)

    def _echo(self, call: _Call) -> None:
        """Send back the whole messages that have come, as far as there is room."""
        size = call.message_bytes
        owed = call.received_bytes // size - call.echoed
        room_bytes = 0 if self.is_paused else min(self.send_window, self.initial_window + call.added_bytes)
        if count := max(0, min(owed, room_bytes // size)):
            self.out.append(call.frame * count)
            call.echoed += count
            self.send_window -= count * size
            call.added_bytes -= count * size
            self.take(count * size)
            call.taken_bytes += count * size
            if call.taken_bytes >= WINDOW // 2 and not call.has_ended:
                self.out.append(http2.frame(WINDOW_UPDATE, 0, call.stream, LONG.pack(call.taken_bytes)))
                call.taken_bytes = 0
        if call.has_ended and call.echoed * size == call.received_bytes:
            self._end(call.stream)
            del self._calls[call.stream]


async def main(ports: list[int]) -> None:
    """Serve until the process is ended."""
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(_Server, "127.0.0.1", port, backlog=4096)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main([int(port) for port in sys.argv[1:]]))
