"""The WebSocket program behind the proxies: it echoes each message. A process of its own.

python -m tests.bench.websocket_upstream PORT …

Every message must be the one that the client sends; any other ends the connection.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

import uvloop

from tests.bench.machine import LOAD_CORE, pinned
from tests.bench.websocket import (
    CLIENT_FRAME_BYTES,
    FROM_SERVER,
    WebSocketError,
    answer_to,
    check_from_client,
    known_frames,
)


def command(ports: tuple[int, ...]) -> list[str | Path]:
    """The program is this module itself."""
    return pinned(LOAD_CORE, sys.executable, "-m", "tests.bench.websocket_upstream", *map(str, ports))


KNOWN = known_frames(64)


class _Echo(asyncio.Protocol):
    def __init__(self) -> None:
        self._rest = b""
        self._is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        if data in KNOWN and not self._rest:
            self._transport.write(FROM_SERVER)
            return
        data = self._rest + data if self._rest else data
        try:
            self._rest = self._echo(data) if self._is_open else self._answer(data)
        except WebSocketError as error:
            print(error, file=sys.stderr, flush=True)
            self._transport.abort()

    def _answer(self, data: bytes) -> bytes:
        while not self._is_open and (end := data.find(b"\r\n\r\n") + 4) >= 4:
            answer = answer_to(data[:end])
            self._is_open = answer.startswith(b"HTTP/1.1 101 ")
            self._transport.write(answer)
            data = data[end:]
        return self._echo(data) if self._is_open else data

    def _echo(self, data: bytes) -> bytes:
        """Answer the whole messages that have come; what is left of them."""
        count = len(data) // CLIENT_FRAME_BYTES
        for begin in range(0, count * CLIENT_FRAME_BYTES, CLIENT_FRAME_BYTES):
            check_from_client(data[begin : begin + CLIENT_FRAME_BYTES])
        if count:
            self._transport.write(FROM_SERVER * count)
        return data[count * CLIENT_FRAME_BYTES :]


async def main(ports: list[int]) -> None:
    """Serve until the process is ended."""
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(_Echo, "127.0.0.1", port, backlog=4096)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main([int(port) for port in sys.argv[1:]]))
