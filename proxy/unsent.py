"""What of a connection's answers has not been taken by its client, as far as that can be known."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios


def holds_unsent(transport: asyncio.Transport, *, is_tls: bool) -> bool:
    """Tell whether some is left that would be lost if the connection were cut off now.

    TLS hands its records to the transport below, which shows nothing of what it holds. There the kernel is asked: its
    queue is not empty as long as anything waits before it.
    """
    return transport.get_write_buffer_size() > 0 or (is_tls and _queued_bytes(transport) > 0)


def _queued_bytes(transport: asyncio.Transport) -> int:
    """What the peer's kernel has not acknowledged (SIOCOUTQ, tcp(7)); 0 of a connection that is gone."""
    try:
        descriptor = transport.get_extra_info("socket").fileno()
        return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):
        return 0
