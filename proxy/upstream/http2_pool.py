"""The HTTP/2 connections of one endpoint: few, shared by all attempts, and more only where those are full."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mesh.http.outcome import ConnectFailed, NoCommonProtocol
from proxy.http2.upstream import Http2Upstream, UpstreamStream
from proxy.tls import HTTP1, HTTP2
from proxy.upstream.connect import connect, has_declined_http2
from proxy.upstream.waiting import WaitingLine

if TYPE_CHECKING:
    from proxy.attempt import Attempt
    from proxy.upstream.endpoint import UpstreamEndpoint


class Http2Pool:
    """See the module. Attempts that find no room wait in line for a connection or for a stream to end."""

    __slots__ = ("_connecting", "_connections", "_counted", "_waiting", "endpoint")

    def __init__(self, endpoint: UpstreamEndpoint) -> None:
        """No connection yet."""
        self.endpoint = endpoint
        self._connections: list[Http2Upstream] = []
        self._counted: set[Http2Upstream] = set()
        """All that are open, also those that take no more streams."""
        self._waiting = WaitingLine(endpoint.service)
        self._connecting = False

    def take(self) -> UpstreamStream | None:
        """A stream on a connection that has room, or None."""
        if self._waiting:
            return None  # others came before
        for connection in self._connections:
            if connection.room > 0:
                return connection.open()
        return None

    def connect_for(self, attempt: Attempt) -> None:
        """Get ``attempt`` a stream; it is resumed with one or with an error. Raises Overflow at a limit."""
        self._waiting.join(attempt, has_connections=bool(self._counted or self._connecting))
        self._serve()

    def freed(self, connection: Http2Upstream) -> None:
        """A stream has ended."""
        if not connection.codec.streams:
            connection.idle_since_s = self.endpoint.service.plane.now_s
            if connection.is_retired:
                self._end_if_empty(connection)
        self._serve()

    def lost(self, connection: Http2Upstream) -> None:
        """A connection has closed."""
        if connection in self._connections:
            self._connections.remove(connection)
        if connection in self._counted:
            self._counted.discard(connection)
            self.endpoint.service.usage.connections -= 1
        self._connect_for_waiting()

    def retire(self, connection: Http2Upstream) -> None:
        """It takes no more streams; those under way are finished."""
        connection.is_retired = True
        if connection in self._connections:
            self._connections.remove(connection)
        self._end_if_empty(connection)
        self._connect_for_waiting()

    def _end_if_empty(self, connection: Http2Upstream) -> None:
        """Close a retired connection after its last stream."""
        if not (connection.codec.streams or connection.reserved or connection.is_closed):
            connection.end()

    def close_idle(self, before_s: float) -> None:
        """Close connections without a stream since before then."""
        for connection in tuple(self._connections):
            is_idle = not (connection.codec.streams or connection.reserved)
            if is_idle and connection.idle_since_s < before_s:
                self.retire(connection)
        for connection in tuple(self._counted):
            connection.check_time(self.endpoint.service.plane.now_s)
            if connection.is_retired:
                self._end_if_empty(connection)

    def close(self) -> None:
        """Finish what is under way, and no more."""
        for connection in tuple(self._connections):
            self.retire(connection)

    @property
    def count(self) -> int:
        """Connections."""
        return len(self._connections)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while self._waiting:
            connection = next((each for each in self._connections if each.room > 0), None)
            if connection is None:
                break
            self._waiting.serve(connection.open())
        self._connect_for_waiting()

    def _connect_for_waiting(self) -> None:
        usage = self.endpoint.service.usage
        if self._waiting and not self._connecting and usage.may_connect:
            if any(each.room > 0 or each.codec.awaits_settings for each in self._connections):
                return  # its settings may say that there is room for all
            if any(not each.codec.peer_concurrent for each in self._connections):
                return  # it takes none for now (RFC 9113 §6.5.2), on whatever connection
            usage.connections += 1
            self._connecting = True
            self.endpoint.service.plane.tasks.start(self._connect(), f"connect {self.endpoint.address}")

    async def _connect(self) -> None:
        endpoint = self.endpoint
        plane = endpoint.service.plane
        offered = (HTTP2,) if endpoint.speaks_http2 else (HTTP2, HTTP1)
        generation = endpoint.generation
        try:
            connection = await connect(endpoint, lambda: Http2Upstream(self, plane.trampoline), offered)
        except ConnectFailed as error:
            self._failed(error)
        except asyncio.CancelledError:
            self._failed(ConnectFailed(f"the sidecar stopped while connecting to {endpoint}", not_sent=True))
            raise
        else:
            if has_declined_http2(connection.transport):
                self._speaks_http1_only(connection.transport, generation)
                plane.trampoline.drain()
                return
            self._connecting = False
            if connection.is_closed:
                endpoint.service.usage.connections -= 1
            else:
                self._counted.add(connection)
                connection.idle_since_s = plane.now_s
                if generation != endpoint.generation:  # how it is to be met has changed meanwhile
                    waiting = self._waiting.disband()
                    self.retire(connection)
                    endpoint.line_up_again(waiting)
                elif not connection.is_retired:
                    self._connections.append(connection)
            self._serve()
            if not endpoint.is_known and not connection.is_closed:
                self.retire(connection)  # discovery took it away while we were connecting
        plane.trampoline.drain()

    def _speaks_http1_only(self, transport: asyncio.Transport, generation: int) -> None:
        """ALPN says so (RFC 9113 §3.2): who was told otherwise is refused, who left it open goes on in HTTP/1.1."""
        endpoint = self.endpoint
        if transport.is_closing():  # who takes it over would not hear of its end
            self._failed(ConnectFailed(f"{endpoint} closed the connection behind its handshake", not_sent=True))
            return
        if generation != endpoint.generation:  # how it is to be met has changed meanwhile: it says nothing of that
            transport.abort()
            self._connecting = False
            endpoint.service.usage.connections -= 1
            endpoint.line_up_again(self._waiting.disband())
            return
        if endpoint.speaks_http2:
            transport.abort()
            message = f"{endpoint} does not agree to HTTP/2 (ALPN); see appProtocol"
            self._failed(NoCommonProtocol(message, not_sent=True))
            return
        self._connecting = False
        endpoint.speaks_http2 = False
        endpoint.take_over(transport, generation, self._waiting.disband())

    def _failed(self, error: ConnectFailed) -> None:
        """Whoever waits fails with it, unless there is another connection on which there may be room."""
        self._connecting = False
        self.endpoint.service.usage.connections -= 1
        self.endpoint.service.connect_failed(self.endpoint)
        if self._connections:
            return
        for attempt in self._waiting.disband():
            attempt.on_error(type(error)(error.message, not_sent=True))
