"""HTTP/2 streams that are opened and then stay. A process of its own.

    python -m tests.bench.streams_client PORT CONNECTIONS STREAMS

On each connection so many gRPC streams, as a caller has who listens for news: one message there, its echo back, no end.
Prints ``{"open": streams}`` once all have their echo, and then holds them until it is ended; a stream or connection
that ends before prints ``{"failed": why}``.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from typing import Any

import uvloop
from hpack import Decoder

from tests.bench import http2
from tests.bench.grpc_traffic import STREAM_BYTES, blocks, calls, message
from tests.bench.http2 import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, Connection, Http2Error


class _Holder(Connection):
    def __init__(self, number: int, streams: int, failed: asyncio.Future[str]) -> None:
        super().__init__()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._number = number
        self._streams = streams
        self._failed = failed
        self._message = message(STREAM_BYTES)
        self._received: dict[int, int] = {}
        self._left = streams
        self._decoder = Decoder()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.out.append(PREFACE)
        super().connection_made(transport)
        for index, block in enumerate(blocks(calls(self._number, self._streams))):
            stream = 2 * index + 1
            self.out += (
                http2.frame(HEADERS, END_HEADERS, stream, block),
                http2.frame(DATA, 0, stream, self._message),
            )
        self.flush()

    def on_headers(self, stream: int, flags: int, block: bytes) -> None:
        fields = dict(self._decoder.decode(block, raw=True))
        if flags & END_STREAM or fields.get(b":status") != b"200":
            raise Http2Error(f"a stream was answered with {fields}")
        self._received[stream] = 0

    def on_data(self, stream: int, flags: int, payload: bytes) -> None:
        at = self._received[stream]
        if flags & END_STREAM or payload != self._message[at : at + len(payload)]:
            raise Http2Error(f"a message was {payload[:80]!r}")
        self._received[stream] = at + len(payload)
        self.take(len(payload))
        if self._received[stream] == len(self._message):
            self._left -= 1
            if not self._left:
                self.opened.set_result(None)

    def on_failure(self, why: str) -> None:
        if not self._failed.done():
            self._failed.set_result(why)


async def run(port: int, connections: int, streams: int) -> None:
    """Open them, and hold them until the process is ended."""
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[str] = loop.create_future()
    holders = [_Holder(number, streams, failed) for number in range(connections)]
    for holder in holders:
        await loop.create_connection(functools.partial(_as_is, holder), "127.0.0.1", port)
        either: list[asyncio.Future[Any]] = [holder.opened, failed]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            break
    else:
        print(json.dumps({"open": connections * streams}), flush=True)
    print(json.dumps({"failed": await failed}), flush=True)


def _as_is(holder: _Holder) -> _Holder:
    return holder


if __name__ == "__main__":
    uvloop.run(run(*map(int, sys.argv[1:4])))
