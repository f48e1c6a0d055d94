"""What of a connection's answers has not been taken by its client, as far as that can be known. Linux."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
from typing import Final

UNANSWERED: Final = 5  # times in a row, within about five seconds


def holds_unsent(transport: asyncio.Transport, *, is_tls: bool) -> bool:
    """Tell whether some is left that would be lost if the connection were cut off now.

    TLS hands its records to the transport below, which shows nothing of what it holds. There the kernel is asked: its
    queue is not empty as long as anything waits before it. A client that has vanished is not waited for.
    """
    return transport.get_write_buffer_size() > 0 or (is_tls and _queued_bytes(transport) > 0)


def _is_gone(own: socket.socket) -> bool:
    """Tell whether the peer's kernel leaves everything unanswered, sent again or asked (tcpi_retransmits, _probes)."""
    _, _, sent_again, asked = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 4)
    return max(sent_again, asked) >= UNANSWERED


def _queued_bytes(transport: asyncio.Transport) -> int:
    """What the peer's kernel has not acknowledged (SIOCOUTQ, tcp(7)); 0 of a connection that is gone."""
    try:
        own = transport.get_extra_info("socket")
        if own is None:  # lost below TLS, whose transport tells of it a turn later
            return 0
        queued = int.from_bytes(fcntl.ioctl(own.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        return 0 if queued and _is_gone(own) else queued
    except (OSError, ValueError):
        return 0
