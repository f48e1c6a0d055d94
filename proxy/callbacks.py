"""What a transport calls on the shell of its connection.

The methods are those of ``asyncio.Protocol``. The shells do not inherit from it: event loops ask for the methods only,
and a class with a base class of the interpreter's cannot be compiled to a native one.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast


class Callbacks(Protocol):
    """See the module. Nothing they raise may reach the transport."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""

    def data_received(self, data: bytes) -> None:
        """Bytes came."""

    def eof_received(self) -> bool | None:
        """The other side sends no more; True keeps our side open."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by either side."""

    def pause_writing(self) -> None:
        """The other side reads slowly."""

    def resume_writing(self) -> None:
        """It has caught up."""


def set_callbacks(transport: asyncio.Transport, shell: Callbacks) -> None:
    """Hand a connection over to another shell, which is called from now on."""
    transport.set_protocol(cast("asyncio.Protocol", shell))
