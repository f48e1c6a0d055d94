"""The HTTP/2 connections of one endpoint: few, shared by all attempts, and more only where those are full."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from mesh.http.outcome import ConnectFailed, Overflow
from proxy.http2.upstream import Http2Upstream, UpstreamStream

if TYPE_CHECKING:
    from proxy.attempt import Attempt
    from proxy.upstream.endpoint import UpstreamEndpoint


class Http2Pool:
    """See the module. Attempts that find no room wait in line for a connection or for a stream to end."""

    __slots__ = ("_connecting", "_connections", "_waiting", "endpoint")

    def __init__(self, endpoint: UpstreamEndpoint) -> None:
        """No connection yet."""
        self.endpoint = endpoint
        self._connections: list[Http2Upstream] = []
        self._waiting: deque[Attempt] = deque()
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
        usage = self.endpoint.service.usage
        refusal = usage.pending_refusal()
        if refusal is None and not usage.may_connect and not self._connections and not self._connecting:
            refusal = f"{usage.connections} connections, limits.maxConnections is {usage.limits.max_connections}"
        if refusal is not None:
            message = f"{self.endpoint.service.name}: {refusal}"
            raise Overflow(message, not_sent=True)
        usage.pending += 1
        self._waiting.append(attempt)
        self._serve()

    def freed(self, connection: Http2Upstream) -> None:
        """A stream has ended."""
        if not connection.codec.streams:
            connection.idle_since_s = self.endpoint.service.plane.now_s
            if connection.is_retired and not connection.is_closed:
                connection.end()  # this was its last stream
        self._serve()

    def lost(self, connection: Http2Upstream) -> None:
        """A connection has closed."""
        if connection in self._connections:
            self._connections.remove(connection)
        self.endpoint.service.usage.connections -= 1
        self._connect_for_waiting()

    def retire(self, connection: Http2Upstream) -> None:
        """It takes no more streams; those under way are finished."""
        connection.is_retired = True
        if connection in self._connections:
            self._connections.remove(connection)
        if not connection.codec.streams:
            connection.end()
        self._connect_for_waiting()

    def close_idle(self, before_s: float) -> None:
        """Close connections without a stream since before then."""
        for connection in tuple(self._connections):
            connection.codec.tick()
            if not connection.codec.streams and connection.idle_since_s < before_s:
                self._connections.remove(connection)
                connection.end()

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
        usage = self.endpoint.service.usage
        while self._waiting:
            if self._waiting[0].is_detached:
                self._waiting.popleft()
                usage.pending -= 1
                continue
            connection = next((each for each in self._connections if each.room > 0), None)
            if connection is None:
                break
            attempt = self._waiting.popleft()
            usage.pending -= 1
            attempt.on_stream(connection.open())
        self._connect_for_waiting()

    def _connect_for_waiting(self) -> None:
        usage = self.endpoint.service.usage
        if self._waiting and not self._connecting and usage.may_connect:
            if any(connection.room > 0 for connection in self._connections):
                return
            usage.connections += 1
            self._connecting = True
            self.endpoint.service.plane.tasks.start(self._connect(), f"connect {self.endpoint.address}")

    async def _connect(self) -> None:
        endpoint = self.endpoint
        plane, model = endpoint.service.plane, endpoint.model
        timeout_s = endpoint.service.policy.connect_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Http2Upstream(self, plane.trampoline), model.address, model.port
                )
        except TimeoutError:
            self._failed(f"no connection to {endpoint} within {timeout_s:g} s")
        except OSError as error:
            self._failed(f"cannot connect to {endpoint}: {error.strerror or error}")
        except asyncio.CancelledError:
            self._failed(f"the sidecar stopped while connecting to {endpoint}")
            raise
        else:
            self._connecting = False
            if not (connection.is_closed or connection.is_retired):
                connection.idle_since_s = plane.now_s
                self._connections.append(connection)
            self._serve()
        plane.trampoline.drain()

    def _failed(self, message: str) -> None:
        """Whoever waits fails with it: there is no other connection to wait for."""
        self._connecting = False
        usage = self.endpoint.service.usage
        usage.connections -= 1
        self.endpoint.service.connect_failed(self.endpoint)
        waiting, self._waiting = self._waiting, deque()
        for attempt in waiting:
            usage.pending -= 1
            if not attempt.is_detached:
                attempt.on_error(ConnectFailed(message, not_sent=True))
