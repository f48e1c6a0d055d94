"""An endpoint of a service as this sidecar sees it: its connections, its load and how it has been doing.

Pools belong to endpoints and survive every change of the routing table. Idle connections are taken last in, first
out, so that few stay warm and the rest age out. Whoever finds none waits in line while one is being made, and gets
whichever comes first: the new one, or one that another request gave back.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast

from mesh.http.outcome import ConnectFailed, NoCommonProtocol, Overflow
from mesh.model.policy import AppProtocol
from mesh.model.service import Endpoint
from mesh.rules.outlier import OutlierState
from proxy.http1.upstream import Http1Upstream
from proxy.tls import HTTP1
from proxy.upstream.connect import connect
from proxy.upstream.http2_pool import Http2Pool
from proxy.upstream.waiting import WaitingLine

if TYPE_CHECKING:
    from proxy.attempt import Attempt
    from proxy.ports import UpstreamStream
    from proxy.upstream.service import UpstreamService

logger = logging.getLogger(__name__)


class UpstreamEndpoint:
    """See the module. ``active`` counts attempts under way; ``is_known`` False: discovery no longer tells of it."""

    __slots__ = (
        "_connecting",
        "_declared",
        "_idle",
        "_waiting",
        "active",
        "address",
        "connections",
        "generation",
        "http2_pool",
        "is_known",
        "label",
        "model",
        "outlier",
        "requests",
        "service",
        "speaks_http2",
    )

    def __init__(self, service: UpstreamService, model: Endpoint) -> None:
        """An endpoint without connections; they are made as requests come."""
        self.service = service
        self.model = model
        self.label = f"{service.name} endpoint {model}"
        self.address = f"{model.address}:{model.port}"
        self.active = 0
        self.requests = 0
        self.outlier = OutlierState()
        self.is_known = True
        self.connections: set[Http1Upstream] = set()
        self._idle: list[Http1Upstream] = []
        self._waiting = WaitingLine(service)
        self._connecting = 0
        self.generation = 0
        """Of connections: those of an earlier one were made under an older TLS policy, and serve no more requests."""
        self.http2_pool = Http2Pool(self)
        self.speaks_http2: bool | None = None
        """None: it was not said. With TLS it is agreed on then (ALPN), else spoken to it is as the caller spoke."""
        self._declared: bool | None = None

    def refresh(self) -> None:
        """Look again at what the policy and its own metadata say; what ALPN told stands until they say otherwise."""
        policy = self.service.policy.app_protocol
        declared = self.model.speaks_http2 if policy is None else policy.is_http2
        if declared is not self._declared:
            self._declared = self.speaks_http2 = declared

    def renew(self) -> None:
        """Connections are made otherwise from now on: what is idle is closed, what is busy is not used again."""
        self.generation += 1
        self.speaks_http2 = self._declared
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        self.http2_pool.close()

    # --- for attempts -----------------------------------------------------------------------------------------------

    def take(self, *, certain: bool = False, http2: bool = False) -> UpstreamStream | None:
        """An idle connection, or a stream of a shared one; or None. ``certain``: none that was closed under us."""
        if http2:
            return self.http2_pool.take()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_closed:
                continue
            if certain and connection.is_stale():
                connection.close()
                continue
            return connection
        return None

    def connect_for(self, attempt: Attempt) -> None:
        """Get ``attempt`` a connection; it is resumed with one or with an error. Raises Overflow at a limit."""
        if attempt.http2:
            self.http2_pool.connect_for(attempt)
            return
        self._waiting.join(attempt, has_connections=bool(self.connections or self._connecting))
        self._connect_for_waiting()

    def take_over(self, transport: asyncio.Transport, generation: int, attempts: list[Attempt]) -> None:
        """Take a connection, counted already, that was offered HTTP/2 and agreed to HTTP/1.1, and who waited for it."""
        for attempt in attempts:
            attempt.http2 = False
            try:
                self._waiting.join(attempt, has_connections=True)
            except Overflow as error:
                attempt.on_error(error)
        connection = Http1Upstream(self, self.service.plane.trampoline)
        transport.set_protocol(cast("asyncio.Protocol", connection))
        connection.connection_made(transport)
        self._add(connection, generation)
        self._connect_for_waiting()

    def line_up_again(self, attempts: list[Attempt]) -> None:
        """How the endpoint is to be met has changed while they waited: decide anew in what they are spoken."""
        for attempt in attempts:
            http2 = self.speaks_http2
            attempt.http2 = attempt.exchange.prefers_http2(self.service) if http2 is None else http2
            try:
                self.connect_for(attempt)
            except Overflow as error:
                attempt.on_error(error)

    def release(self, connection: Http1Upstream) -> None:
        """Take a connection back that may serve another request."""
        if connection.generation != self.generation:
            connection.close()
            self._connect_for_waiting()
            return
        if self._waiting.serve(connection, is_used=connection.served > 0):
            return
        if not self.is_known:
            connection.close()
            return
        connection.idle_since_s = self.service.plane.now_s
        self._idle.append(connection)

    def lost(self, connection: Http1Upstream) -> None:
        """A connection has closed."""
        if connection in self.connections:
            self.connections.discard(connection)
            self.service.usage.connections -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        self._connect_for_waiting()

    # --- for the service --------------------------------------------------------------------------------------------

    def close_idle(self, before_s: float) -> None:
        """Close connections that have been idle since before then."""
        while self._idle and self._idle[0].idle_since_s < before_s:
            self._idle.pop(0).close()
        self.http2_pool.close_idle(before_s)

    def close(self) -> None:
        """Close idle connections; busy ones close when they are given back."""
        self.is_known = False
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        self.http2_pool.close()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _connect_for_waiting(self) -> None:
        """Begin a connection for each who waits and has none under way, within the limits."""
        usage = self.service.usage
        while self._connecting < len(self._waiting) and usage.may_connect:
            usage.connections += 1
            self._connecting += 1
            self.service.plane.tasks.start(self._connect(), f"connect {self.address}")

    async def _connect(self) -> None:
        plane, generation = self.service.plane, self.generation
        try:
            is_tcp = self.service.app_protocol is AppProtocol.TCP
            offered = () if is_tcp else (HTTP1,)
            connection = await connect(self, lambda: Http1Upstream(self, plane.trampoline), offered)
        except ConnectFailed as error:
            if isinstance(error, NoCommonProtocol) and not self.connections:
                self.speaks_http2 = self._declared  # what ALPN told holds no more: the next one asks again
            self._connect_failed(error)
        except asyncio.CancelledError:
            message = f"the sidecar stopped while connecting to {self.label}"
            self._connect_failed(ConnectFailed(message, not_sent=True))
            raise
        else:
            self._connecting -= 1
            self._add(connection, generation)
        plane.trampoline.drain()

    def _add(self, connection: Http1Upstream, generation: int) -> None:
        connection.generation = generation
        self.connections.add(connection)
        self.release(connection)

    def _connect_failed(self, error: ConnectFailed) -> None:
        """One connection failed, so one waiter fails with it, the others still have theirs under way."""
        self._connecting -= 1
        self.service.usage.connections -= 1
        self.service.connect_failed(self)
        while len(self._waiting) > self._connecting and (attempt := self._waiting.next()) is not None:
            attempt.on_error(type(error)(error.message, not_sent=True))

    def __str__(self) -> str:
        """For messages: service, id and address."""
        return self.label

    def __repr__(self) -> str:
        """For debugging."""
        return f"<UpstreamEndpoint {self.label} active={self.active} connections={len(self.connections)}>"
