"""A small TCP proxy that does to connections what networks do: delay, reset, slow down, cut in half, swallow."""

import asyncio
import contextlib
import os
import socket
import struct
from typing import Self

from mesh.tasks import Tasks

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close with RST


def half_close(writer: asyncio.StreamWriter) -> None:
    """Say that no more will be sent, at once. Not with write_eof(), which can end the process on uvloop."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as twin:
        twin.shutdown(socket.SHUT_WR)


class FaultyLink:
    """Passes bytes between clients and ``target`` (a port on loopback); None for a target that never answers.

    Set the faults at any time; they hold for all connections:

    * ``latency_s``: every piece waits that long, in each direction
    * ``bytes_per_s``: no faster than that, in each direction
    * ``is_blackhole``: connections are taken, what they send is swallowed, nothing ever comes back
    * ``half_close_after``: of the answer, that many bytes pass; then the sending side is closed and the rest swallowed
    """

    def __init__(self, target: int | None) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks = Tasks("faulty link")
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.latency_s = 0.0
        self.bytes_per_s = 0.0
        self.is_blackhole = target is None
        self.half_close_after: int | None = None
        self.connections = 0
        self.swallowed_bytes = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()
        await self._tasks.close()
        await self._server.wait_closed()

    def reset(self) -> None:
        """Break all connections with RST, as a crashed peer or a firewall does."""
        for writer in tuple(self._writers):
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            if self._target is None:
                await self._swallow(reader)
                return
            back, other = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(other)
            out = self._tasks.start(self._pass_on(reader, other, is_answer=False), "out")
            await self._pass_on(back, writer, is_answer=True)
            await out
        except OSError:
            pass
        finally:
            for end in (writer, other):
                if end is not None:
                    self._writers.discard(end)
                    end.close()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                self.swallowed_bytes += len(piece)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                if self.latency_s or self.bytes_per_s:
                    await asyncio.sleep(self.latency_s + (len(piece) / self.bytes_per_s if self.bytes_per_s else 0.0))
                if self.is_blackhole:
                    self.swallowed_bytes += len(piece)
                    continue
                if is_answer and self.half_close_after is not None and passed + len(piece) > self.half_close_after:
                    writer.write(piece[: self.half_close_after - passed])
                    half_close(writer)
                    await self._swallow(reader)
                    return
                passed += len(piece)
                writer.write(piece)
                await writer.drain()
        half_close(writer)
