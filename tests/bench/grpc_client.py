"""gRPC calls as fast as they are answered. A process of its own.

    python -m tests.bench.grpc_client unary PORT SECONDS CONNECTIONS STREAMS
    python -m tests.bench.grpc_client stream PORT SECONDS

``unary``: on each connection so many calls at a time; a new one as soon as one is answered. ``stream``: one call that
sends messages as fast as flow control lets it, and reads their echo.

Prints ``{"count": calls or messages answered, "seconds": …, "p50_us": …, "p99_us": …}``; latencies are 0 for a stream,
where they would only tell how long its queue is. Ends with status 1 and says why when anything is not as it should be:
each answer must have the status, the message and the trailers in that order, of the right size, and the first answer of
each connection is decoded and looked at in full.

Why not h2load: it sends the same header fields with every request, but for the path, so that a proxy may remember what
they mean; in real traffic at least the traceparent is another each time. The price is that this client is slower: it
takes what it sends from a list and looks only at the shape of what comes, some microseconds for each call.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import json
import sys
import time
from typing import Any

import uvloop
from hpack import Decoder

from tests.bench import http2
from tests.bench.grpc_traffic import STREAM_BYTES, UNARY_BYTES, blocks, calls, message
from tests.bench.http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    LONG,
    PREFACE,
    WINDOW,
    WINDOW_UPDATE,
    Connection,
    Http2Error,
)
from tests.bench.stats import percentile

STATUS_200 = 0x88  # RFC 7541 appendix A, entry 8: what every encoder makes of ``:status: 200``
BATCH = 150  # messages, about one frame's worth: the transport says in between when it has enough
GRACE_S = 10.0


class _Outcome:
    """Of all connections: ``future`` is done when all have finished or one has failed."""

    def __init__(self, connections: int) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = connections

    def finish(self) -> None:
        """One connection has all its answers."""
        self._left -= 1
        if not self._left and not self.future.done():
            self.future.set_result(None)

    def fail(self, why: str) -> None:
        """The first failure is the one that is told."""
        if not self.future.done():
            self.future.set_exception(Http2Error(why))


class _Client(Connection):
    def __init__(self, outcome: _Outcome) -> None:
        super().__init__()
        self._outcome = outcome
        self._decoder: Decoder | None = Decoder()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.out.append(PREFACE)
        super().connection_made(transport)

    def on_failure(self, why: str) -> None:
        self._outcome.fail(why)

    def check(self, flags: int, block: bytes) -> None:
        """Look at a header block: the first answer in full, later ones only as to whether they are errors."""
        if self._decoder is None:
            if not flags & END_STREAM and block[0] != STATUS_200:
                raise Http2Error(f"an answer is no 200: its header block is {block!r}")
            return
        fields = dict(self._decoder.decode(block, raw=True))
        if flags & END_STREAM:
            if fields.get(b"grpc-status") != b"0":
                raise Http2Error(f"a call failed: {fields}")
            self._decoder = None
        elif fields.get(b":status") != b"200" or fields.get(b"content-type") != b"application/grpc":
            raise Http2Error(f"an answer is {fields}")


class _Unary(_Client):
    def __init__(self, outcome: _Outcome, number: int, streams: int, latencies_ns: list[int]) -> None:
        super().__init__(outcome)
        self._message = message(UNARY_BYTES)
        self._requests = itertools.cycle(map(self._request, blocks(calls(number))))
        self._streams = streams
        self._latencies_ns = latencies_ns
        self._next = 1
        self._free = streams
        self._calls: dict[int, list[int]] = {}
        """By stream: when it was sent, and how much of the message has come (-1: not even a status)."""
        self._is_sending = False

    def _request(self, block: bytes) -> tuple[bytes, bytes]:
        """A call, in the parts that stand before the stream's number."""
        begin = http2.head(HEADERS, END_HEADERS, len(block))
        return begin, block + http2.head(DATA, END_STREAM, len(self._message))

    def begin(self) -> None:
        """Send the first calls."""
        self._is_sending = True
        self._send()
        self.flush()

    def end(self) -> None:
        """Send no more."""
        self._is_sending = False
        if not self._calls:
            self._outcome.finish()

    def on_headers(self, stream: int, flags: int, block: bytes) -> None:
        self.check(flags, block)
        call = self._calls[stream]
        if not flags & END_STREAM and call[1] < 0:
            call[1] = 0
        elif flags & END_STREAM and call[1] == len(self._message):
            del self._calls[stream]
            self._latencies_ns.append(time.perf_counter_ns() - call[0])
            self._free += 1
            if self._is_sending:
                self._send()
            elif not self._calls:
                self._outcome.finish()
        else:
            raise Http2Error(f"a call ended after {call[1]} bytes of its answer: {block!r}")

    def on_data(self, stream: int, flags: int, payload: bytes) -> None:
        call = self._calls[stream]
        if flags & END_STREAM or call[1] < 0 or payload != self._message[call[1] : call[1] + len(payload)]:
            raise Http2Error(f"a message was {payload!r}")
        call[1] += len(payload)
        self.take(len(payload))

    def on_window(self, stream: int, more_bytes: int) -> None:
        if self._is_sending:
            self._send()

    def _send(self) -> None:
        while self._free and self.send_window >= len(self._message):
            self._free -= 1
            self.send_window -= len(self._message)
            begin, middle = next(self._requests)
            number = LONG.pack(self._next)
            self.out += (begin, number, middle, number, self._message)
            self._calls[self._next] = [time.perf_counter_ns(), -1]
            self._next += 2


class _Stream(_Client):
    def __init__(self, outcome: _Outcome) -> None:
        super().__init__(outcome)
        self.echoed = 0
        self._message = message(STREAM_BYTES)
        self._pattern = self._message * (http2.MOST_BYTES // len(self._message) + 2)
        self._frame = http2.frame(DATA, 0, 1, self._message)
        self._sent = 0
        self._received_bytes = 0
        self._taken_bytes = 0
        self._added_bytes = 0  # to the stream's window, less what was sent
        self._is_sending = False
        self.expect(self._frame)

    def begin(self) -> None:
        """Open the stream."""
        self.out.append(http2.frame(HEADERS, END_HEADERS, 1, blocks(calls(0, 1))[0]))
        self._is_sending = True
        self._send()
        self.flush()

    def end(self) -> None:
        """Send no more; what was sent is yet to come back."""
        self._is_sending = False
        self.out.append(http2.frame(DATA, END_STREAM, 1))
        self.flush()

    def on_headers(self, stream: int, flags: int, block: bytes) -> None:
        self.check(flags, block)
        if flags & END_STREAM:
            if self._is_sending or self.echoed != self._sent:
                raise Http2Error(f"the stream ended when {self.echoed} of {self._sent} messages had come back")
            self._outcome.finish()

    def on_data(self, stream: int, flags: int, payload: bytes) -> None:
        at = self._received_bytes % len(self._message)
        if flags & END_STREAM or payload != self._pattern[at : at + len(payload)]:
            raise Http2Error(f"a message is not the one that was sent: {payload[:200]!r}")
        self._take(len(payload))

    def on_messages(self, count: int) -> None:
        if self._received_bytes % len(self._message):
            raise Http2Error("a message is not the one that was sent: it begins within another")
        self._take(count * len(self._message))

    def on_window(self, stream: int, more_bytes: int) -> None:
        if stream:
            self._added_bytes += more_bytes
        self._send()

    def _take(self, count_bytes: int) -> None:
        self._received_bytes += count_bytes
        self.echoed = self._received_bytes // len(self._message)
        self.take(count_bytes)
        self._taken_bytes += count_bytes
        if self._taken_bytes >= WINDOW // 2:
            self.out.append(http2.frame(WINDOW_UPDATE, 0, 1, LONG.pack(self._taken_bytes)))
            self._taken_bytes = 0

    def _send(self) -> None:
        self.flush()  # what came before the messages
        while self._is_sending and not self.is_paused:
            room_bytes = min(self.send_window, self.initial_window + self._added_bytes)
            count = min(BATCH, room_bytes // len(self._message))
            if count <= 0:
                return
            self.send_window -= count * len(self._message)
            self._added_bytes -= count * len(self._message)
            self._sent += count
            self.transport.write(self._frame * count)


async def unary(port: int, seconds: float, connections: int, streams: int) -> dict[str, Any]:
    """Many calls. Raises Http2Error and OSError."""
    latencies_ns: list[int] = []
    outcome = _Outcome(connections)
    clients = [_Unary(outcome, number, streams, latencies_ns) for number in range(connections)]
    took_s = await _run(port, seconds, clients, outcome)
    p50, p99 = (percentile(latencies_ns, share) / 1000 for share in (0.5, 0.99))
    return {"count": len(latencies_ns), "seconds": took_s, "p50_us": p50, "p99_us": p99}


async def stream(port: int, seconds: float) -> dict[str, Any]:
    """One call of many messages. Raises Http2Error and OSError."""
    outcome = _Outcome(1)
    client = _Stream(outcome)
    took_s = await _run(port, seconds, [client], outcome)
    return {"count": client.echoed, "seconds": took_s, "p50_us": 0.0, "p99_us": 0.0}


async def _run(port: int, seconds: float, clients: list[_Unary] | list[_Stream], outcome: _Outcome) -> float:
    """Seconds from the first call to the last answer."""
    loop = asyncio.get_running_loop()
    for client in clients:
        await loop.create_connection(functools.partial(_as_is, client), "127.0.0.1", port)
    gc.collect()
    gc.disable()
    begin_s = time.monotonic()
    for client in clients:
        client.begin()
    await asyncio.wait([outcome.future], timeout=seconds)
    if outcome.future.done():
        outcome.future.result()
    for client in clients:
        client.end()
    async with asyncio.timeout(GRACE_S):
        await outcome.future
    return time.monotonic() - begin_s


def _as_is(client: Connection) -> Connection:
    return client


def main(kind: str, port: int, *more: int) -> int:
    """The exit status."""
    try:
        found = uvloop.run(unary(port, *more) if kind == "unary" else stream(port, *more))
    except (Http2Error, OSError, TimeoutError) as error:
        print(str(error) or "answers are missing", file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
