"""WebSocket messages as fast as they come back. A process of its own.

    python -m tests.bench.websocket_client PORT SECONDS CONNECTIONS

On each connection one message at a time; the next as soon as its echo has come. The connections are opened before the
clock runs. Prints ``{"count": messages echoed, "seconds": …, "p50_us": …, "p99_us": …}``, or ends with status 1 and
says why when anything is not as it should be.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import json
import sys
import time
from typing import Any, cast

import uvloop

from tests.bench.stats import percentile
from tests.bench.websocket import FROM_SERVER, WebSocketError, client_frames, upgrade_request

GRACE_S = 10.0


class _Client(asyncio.Protocol):
    def __init__(self, number: int, latencies_ns: list[int], failed: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.finished: asyncio.Future[None] = loop.create_future()
        self.is_sending = True
        self._number = number
        self._frames = itertools.cycle(client_frames(number))
        self._latencies_ns = latencies_ns
        self._failed = failed
        self._received = b""
        self._sent_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._transport.write(upgrade_request(self._number))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"a connection was closed ({exc or 'in order'})")

    def data_received(self, data: bytes) -> None:
        if data == FROM_SERVER and not self._received:
            self._take()
            return
        self._received += data
        if not self.opened.done():
            if b"\r\n\r\n" not in self._received:
                return
            if not self._received.startswith(b"HTTP/1.1 101 ") or not self._received.endswith(b"\r\n\r\n"):
                self._fail(f"a handshake was answered with {self._received[:80]!r}")
                return
            self._received = b""
            self.opened.set_result(None)
        elif self._received == FROM_SERVER:
            self._received = b""
            self._take()
        elif not FROM_SERVER.startswith(self._received):
            self._fail(f"an echo was {self._received[:80]!r}")

    def send(self) -> None:
        """The next message."""
        self._sent_ns = time.perf_counter_ns()
        self._transport.write(next(self._frames))

    def _take(self) -> None:
        self._latencies_ns.append(time.perf_counter_ns() - self._sent_ns)
        if self.is_sending:
            self.send()
        elif not self.finished.done():
            self.finished.set_result(None)

    def _fail(self, why: str) -> None:
        if not self._failed.done():
            self._failed.set_exception(WebSocketError(why))


async def run(port: int, seconds: float, connections: int) -> dict[str, float]:
    """Drive the port. Raises WebSocketError, OSError and TimeoutError."""
    loop = asyncio.get_running_loop()
    latencies_ns: list[int] = []
    failed: asyncio.Future[None] = loop.create_future()
    clients = [_Client(number, latencies_ns, failed) for number in range(connections)]
    for client in clients:
        await loop.create_connection(functools.partial(_as_is, client), "127.0.0.1", port)
    await _all([client.opened for client in clients], failed)
    gc.collect()
    gc.disable()
    begin_s = time.monotonic()
    for client in clients:
        client.send()
    await asyncio.wait([failed], timeout=seconds)
    for client in clients:
        client.is_sending = False
    await _all([client.finished for client in clients], failed)
    took_s = time.monotonic() - begin_s
    p50, p99 = (percentile(latencies_ns, share) / 1000 for share in (0.5, 0.99))
    return {"count": len(latencies_ns), "seconds": took_s, "p50_us": p50, "p99_us": p99}


async def _all(wanted: list[asyncio.Future[None]], failed: asyncio.Future[None]) -> None:
    """Wait for all of them, or the first failure."""
    done = asyncio.gather(*wanted)
    either: list[asyncio.Future[Any]] = [done, failed]
    await asyncio.wait(either, timeout=GRACE_S, return_when=asyncio.FIRST_COMPLETED)
    if failed.done():
        failed.result()
    if not done.done():
        raise WebSocketError("answers are missing")


def _as_is(client: _Client) -> _Client:
    return client


def main(port: int, seconds: float, connections: int) -> int:
    """The exit status."""
    try:
        found = uvloop.run(run(port, seconds, connections))
    except (WebSocketError, OSError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
