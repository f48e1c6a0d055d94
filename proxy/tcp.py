"""A TCP connection of a client: an exchange of its own that is a tunnel from the start."""

from __future__ import annotations

import asyncio

from mesh.http.headers import Fields
from mesh.http.message import TCP, RequestHead
from proxy.exchange import Exchange
from proxy.tunnel import TunnelDownstream


class TcpDownstream(TunnelDownstream):
    """A client's TCP connection, of which nothing is known but where it came in."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected: its exchange begins at once, since the other side may be the one that speaks first."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        if peer:
            self.peer_address, self.peer_port = peer[0], peer[1]
        if not self._listener.admit(self):
            self.transport.abort()
            return
        request = RequestHead(b"-", b"-", b"", Fields())
        request.version = TCP
        exchange = self.exchange = Exchange(self._listener, self, request, None)
        exchange.begin()
        self._plane.trampoline.drain()
