"""Which shell a client's connection gets, by the listener it came to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.http1.downstream import Http1Downstream
from proxy.tcp import TcpDownstream

if TYPE_CHECKING:
    from proxy.listener import Listener


def protocol_for(listener: Listener) -> asyncio.Protocol:
    """For a connection that is made now. HTTP/1.1 and HTTP/2 are told apart by what comes: see ``http1/downstream``."""
    return TcpDownstream(listener) if listener.takes_connections else Http1Downstream(listener)
