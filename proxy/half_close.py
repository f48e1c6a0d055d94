"""The end of one direction of a TCP connection (FIN), while the other goes on.

Not by ``write_eof()``: uvloop's dies with a double free when many connections churn (DESIGN.md).
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress


def half_close(transport: asyncio.Transport) -> None:
    """Send no more. What was written must have gone out: ask ``get_write_buffer_size()`` before."""
    own = transport.get_extra_info("socket")
    # Told what kind of socket it is, Python does not ask the kernel; the descriptor stays the transport's.
    borrowed = socket.socket(own.family, own.type, own.proto, own.fileno())
    try:
        with suppress(OSError):  # the other side may have closed it meanwhile
            borrowed.shutdown(socket.SHUT_WR)
    finally:
        borrowed.detach()
