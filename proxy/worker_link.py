"""How a sidecar and its workers speak: whole messages over a socketpair, in order.

A message is a tuple whose first item is its kind, pickled: both ends are the same program, started by one another,
and nobody else can reach the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import struct
from dataclasses import dataclass, field
from typing import Any, Self

from mesh.model.name import Name

_LENGTH = struct.Struct("!I")
MAX_BYTES = 256 * 1024 * 1024
CLOSE_S = 1.0


class Link:
    """One end. ``receive`` gives None when the other end is gone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Use ``open``."""
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> Self:
        """Take over a connected socket."""
        return cls(*await asyncio.open_connection(sock=sock))

    def send(self, *message: Any) -> None:  # noqa: ANN401 - each kind has its own items
        """Queue a message."""
        body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        self._writer.write(_LENGTH.pack(len(body)) + body)

    async def receive(self) -> tuple[Any, ...] | None:
        """The next message."""
        try:
            (size,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if size > MAX_BYTES:
                return None
            message: tuple[Any, ...] = pickle.loads(await self._reader.readexactly(size))  # noqa: S301 - see the module
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return message

    async def close(self) -> None:
        """Close this end, once the other has taken what was sent, or after 1 s."""
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._writer.wait_closed()


CellKey = tuple[Name | None, str | None, str, int, str]
"""(service, subset, protocol, status, flag) of a request cell."""


@dataclass(slots=True)
class Report:
    """What a worker counted since its last report (``cells``, ``counters``), and what it has now (the rest).

    ``ejected`` holds (service, endpoint id).
    """

    cells: dict[CellKey, list[Any]] = field(default_factory=dict)
    counters: dict[tuple[str, str], int] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    ejected: set[tuple[Name, str]] = field(default_factory=set)
