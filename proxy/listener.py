"""What differs between the sidecar's listeners: which rule takes a request, and what the mesh adds to it.

Outbound (loopback): the local program's calls to other services, routed by Host, by an absolute target, or by the
port they came in on. Inbound: other sidecars' calls to the local program.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Protocol

from mesh.http.connect import METHOD as CONNECT
from mesh.http.headers import Headers
from mesh.http.message import HTTP2, NOT_SENT, TCP, RequestHead, ResponseHead
from mesh.http.outcome import (
    BadRequest,
    ConnectDenied,
    LoopDetected,
    NoRoute,
    NoTable,
    NotImplementedMethod,
    ProxyError,
    proxy_status,
)
from mesh.model.name import Name
from mesh.model.policy import AppProtocol
from proxy.dataplane import EGRESS, declared_in
from proxy.first_bytes import Spoken, likely
from proxy.http1.limits import ConnectionLimits
from proxy.local_answer import LocalAnswer, grpc_answer, text_answer

if TYPE_CHECKING:
    from mesh.model.snapshot import Snapshot
    from proxy.attempt import Attempt
    from proxy.dataplane import DataPlane
    from proxy.exchange import Exchange
    from proxy.table import CompiledRule
    from proxy.tls import ServerTls

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 20_000  # at 4 KiB each 80 MiB: a flood costs that much at most
FORWARDED_HTTP: Final = b"x-forwarded-proto: http"
FORWARDED_HTTPS: Final = b"x-forwarded-proto: https"
NONE_KNOWN: Final[dict[bytes, bytes]] = {}
_PASSED_ON: Final[tuple[bytes, ...]] = (b"x-forwarded-for", b"x-forwarded-host", b"proxy")
COUNTED_METHODS: Final = frozenset((b"OPTIONS", b"TRACE"))
SPECIAL_METHODS: Final = COUNTED_METHODS | {CONNECT}
MAX_FORWARDS: Final = 1000
FOREIGN_TOLD_S: Final = 10.0  # whoever scans ports must not fill the log
SHOWN_BYTES: Final = 4  # enough to know it by, and no password of an AUTH or USER
HEALTH_PATH: Final = b"/.well-known/sidemesh/health"


class ClientConnection(Protocol):
    """A client's connection, whatever protocol it speaks."""

    transport: asyncio.Transport

    def check_time(self, now: float) -> None:
        """Close it if it took too long; called once a second."""

    @property
    def has_unsent(self) -> bool:
        """Tell whether there is something of its answers that the client has not taken yet."""

    def finish(self) -> None:
        """Close it, nothing being under way any more, once that is sent. Called again and again until it is closed."""


class Refusable(Protocol):
    """Somebody who is answered without an exchange."""

    peer_address: str
    peer_port: int

    def respond(self, head: ResponseHead, pieces: list[bytes], trailers: Headers, *, ended: bool) -> None:
        """See ports.DownstreamStream."""


class Listener(ABC):
    """One listening socket's rules. ``is_draining``: answers say ``Connection: close``."""

    name = "listener"

    def __init__(self, plane: DataPlane, marker: str, limits: ConnectionLimits, max_connections: int) -> None:
        """``marker`` is this listener's pseudonym in Via, unique in the mesh (RFC 9110 §7.6.3)."""
        self.plane = plane
        self.limits = limits
        self.is_draining = False
        self.tells_websockets = False
        """It drains so far that WebSockets are told to go elsewhere."""
        self.connections: set[ClientConnection] = set()
        self.port = 0
        """Where its clients connect to; known once it is open."""
        self.service: Name | None = None
        """Whom everything is for, where that is known from the port."""
        self.tls: ServerTls | None = None
        """Clients may begin with TLS; set before the listener is opened."""
        self.detects = False
        """Its clients may speak anything, and their first bytes decide; set before the listener is opened."""
        self.failed_handshakes = 0
        self.max_connections = max_connections
        self._marker = marker.encode()
        self._via = b"1.1 " + self._marker
        self._via2 = b"2.0 " + self._marker
        self.via_line = b"via: " + self._via
        self.via_line2 = b"via: " + self._via2
        self.refused_connections = 0
        self._told_of_foreign_s = -FOREIGN_TOLD_S
        self.last_request_s = 0.0

    def admit(self, connection: ClientConnection) -> bool:
        """Take a connection, or not where there are too many."""
        if len(self.connections) >= self.max_connections:
            self.refused_connections += 1
            return False
        self.connections.add(connection)
        self.plane.deadlines.connections.add(connection)
        return True

    def replace(self, before: ClientConnection, after: ClientConnection) -> None:
        """An admitted connection turned out to speak another protocol."""
        self.forget(before)
        self.connections.add(after)
        self.plane.deadlines.connections.add(after)

    def forget(self, connection: ClientConnection) -> None:
        """A connection has closed."""
        self.connections.discard(connection)
        self.plane.deadlines.connections.discard(connection)

    @property
    def takes_connections(self) -> bool:
        """Its clients speak a protocol that only they and the endpoints know: bytes are relayed as they are."""
        return False

    @property
    def peeks(self) -> bool:
        """What a new connection speaks is told by its first bytes, since nobody has declared it."""
        return self.detects and not self.takes_connections

    @abstractmethod
    def route(self, exchange: Exchange) -> CompiledRule | Name:
        """The rule for a request, or the service to look up first. Raises ProxyError or LocalAnswer."""

    @abstractmethod
    def added_fields(self, exchange: Exchange, attempt: Attempt) -> list[bytes]:
        """The fields the mesh sends with an attempt, as lines without CRLF."""

    def finish_head(self, exchange: Exchange, attempt: Attempt, head: ResponseHead) -> None:
        """Add what the mesh adds to an endpoint's answer."""
        del exchange
        head.fields.append_line(self.via_line2 if attempt.http2 else self.via_line)

    def caller_spoke_http2(self, request: RequestHead) -> bool:
        """Tell of a request that came over HTTP/2 whether its first sender made it so."""
        return True

    def refuse(self, exchange: Exchange, error: ProxyError) -> None:
        """Answer in the mesh's name: status, Proxy-Status with the response flag, and one line what to do."""
        if exchange.request.grpc is not None:
            head, pieces = grpc_answer(error)
            head.fields.append(b"proxy-status", proxy_status(error))
        else:
            head, pieces = _refusal(error)
        self.finish_refusal(exchange, error, head)
        if error.closes:
            exchange.downstream.close_after()
        exchange.downstream.respond(head, pieces, [], ended=True)

    @abstractmethod
    def finish_refusal(self, exchange: Exchange, error: ProxyError, head: ResponseHead) -> None:
        """Add what this listener tells besides."""

    def refuse_unread(self, connection: Refusable, error: ProxyError) -> None:
        """Answer what could not be understood as a request."""
        head, pieces = _refusal(error)
        connection.respond(head, pieces, [], ended=True)
        self.plane.record_unread(self, connection, error)

    def tell_of_foreign(self, connection: Refusable, data: bytes) -> None:
        """A client's first bytes were refused: where they are no HTTP at all, say in the log where they might pass."""
        now = self.plane.clock()
        if likely(data) is Spoken.BYTES and now - self._told_of_foreign_s > FOREIGN_TOLD_S:
            self._told_of_foreign_s = now
            logger.warning(
                "%s: %s:%d was refused, for it speaks no HTTP (it begins with %r); %s",
                self.name, connection.peer_address, connection.peer_port, data[:SHOWN_BYTES], self.foreign_advice,
            )  # fmt: skip

    @property
    @abstractmethod
    def foreign_advice(self) -> str:
        """Where a protocol that is no HTTP would pass."""

    def _check_loop(self, exchange: Exchange) -> None:
        via = exchange.request.known.get(b"via")
        if via is not None and self._marker in via:
            message = "the request came back to the sidecar that sent it (Via): an endpoint is this sidecar's own port"
            raise LoopDetected(message)

    def _take_forward(self, request: RequestHead) -> None:
        """Count Max-Forwards down; at 0 the request ends here (RFC 9110 §7.6.2: for OPTIONS and TRACE)."""
        value = request.fields.get(b"max-forwards")
        if value is None or not value.isdigit():
            return
        left = min(int(value[:18]), MAX_FORWARDS)
        if not left:
            status = 200 if request.method == b"OPTIONS" else 405  # TRACE would tell what a page's script may not see
            raise LocalAnswer(status, f"sidemesh {self.name}: the request ends here (Max-Forwards: 0)\n")
        request.fields.remove((b"max-forwards",))
        request.fields.append(b"max-forwards", b"%d" % (left - 1))

    def _via_after(self, via: bytes, version: bytes) -> bytes:
        return b"via: %b, %b" % (via, self._via2 if version == HTTP2 else self._via)


class OutboundListener(Listener):
    """The local program's calls. ``service``: every request is for that service, whatever its Host says."""

    name = "outbound"

    def __init__(
        self,
        plane: DataPlane,
        marker: str,
        limits: ConnectionLimits,
        max_connections: int = MAX_CONNECTIONS,
        service: Name | None = None,
        *,
        is_tcp: bool = False,
    ) -> None:
        """See Listener. ``is_tcp``: its service speaks something else than HTTP, whatever its policy says."""
        super().__init__(plane, marker, limits, max_connections)
        self.service = service
        self._is_tcp = is_tcp

    @property
    def takes_connections(self) -> bool:
        """See Listener: as told, else as the service's policy says (or its endpoints), or a TCPRoute of it."""
        plane, service = self.plane, self.service
        if service is None or self._is_tcp or plane.table is None:
            return self._is_tcp
        return plane.service(service).app_protocol is AppProtocol.TCP or plane.entry(service).connections is not None

    @property
    def peeks(self) -> bool:
        """See Listener: only as long as nothing is said of the service."""
        plane, service = self.plane, self.service
        if not self.detects or service is None or self.takes_connections:
            return False
        return plane.table is None or plane.service(service).app_protocol is None

    def _route_connection(self, service: Name) -> CompiledRule | Name:
        rule = self.plane.entry(service).connection_rule()
        return service if rule.passes_to is not None and rule.passes_to.is_known is not True else rule

    def route_connect(self, authority: bytes) -> CompiledRule | Name:
        """A tunnel to a host that is no service, where the settings say so (``egress-connect``).

        To services it would be a way round their routes, retries and policies. Raises NotImplementedMethod 501,
        NoTable 503 NR, ConnectDenied 403 NR.
        """
        plane = self.plane
        ports = plane.settings.connect_ports
        if not ports or self.service is not None:
            raise _no_connect(self.name)
        if plane.table is None:
            raise _no_table()
        port = int(authority.rpartition(b":")[2])
        if port not in ports:
            allowed = ", ".join(map(str, sorted(ports)))
            raise ConnectDenied(f"CONNECT to port {port} is not allowed, only to {allowed} (--egress-connect)")
        found = plane.table.hosts.get(authority) or plane.find_entry(authority)
        if isinstance(found, Name):
            return found
        entry, _ = found
        if entry.name.namespace != EGRESS:
            what = f"{entry.name} is a service of the mesh, and CONNECT goes to other hosts only"
            raise ConnectDenied(f"{what}: call http://{entry.name} through the sidecar (http_proxy)")
        rule = entry.passthrough
        assert rule is not None  # noqa: S101 - a host outside has no routes
        return entry.name if rule.passes_to is None or rule.passes_to.is_known is not True else rule

    def route(self, exchange: Exchange) -> CompiledRule | Name:
        """See Listener."""
        request, plane = exchange.request, self.plane
        if b"via" in request.known:
            self._check_loop(exchange)
        if request.method in SPECIAL_METHODS:
            if request.method == CONNECT:
                return self.route_connect(request.authority)
            self._take_forward(request)
        table = plane.table
        if table is None:
            raise _no_table()
        if self.service is not None:
            if request.version == TCP:
                return self._route_connection(self.service)
            entry, port = plane.entry(self.service), None
        else:
            found = table.hosts.get(request.authority) or plane.find_entry(request.authority)
            if isinstance(found, Name):
                return found
            entry, port = found
        rule = entry.match(request, port)
        if rule is None:
            message = (
                f"no rule of the routes of {entry.name} takes {_shown(request.method, request.target)}; ask: mesh why"
            )
            raise NoRoute(message)
        if rule.passes_to is not None and rule.passes_to.is_known is not True:
            return entry.name
        return rule

    @property
    def foreign_advice(self) -> str:
        """See Listener."""
        if self.service is None:
            return "nothing here says which service it wants: give that a port of its own, --upstream NAME=PORT/tcp"
        return f"if {self.service} speaks something else, say so: --upstream NAME=PORT/tcp, or /detect, or its policy"

    def added_fields(self, exchange: Exchange, attempt: Attempt) -> list[bytes]:
        """Via, X-Request-Id, X-Forwarded-Proto and trace context; the client is on loopback: no X-Forwarded-For."""
        known, plane, trace = exchange.request.known, self.plane, exchange.trace
        attempt.span_id = span_id = plane.propagation.outgoing_span_id(trace)
        request_id = known.get(b"x-request-id")
        others = len(known) - (request_id is not None) - (b"traceparent" in known)
        request_id = exchange.request_id = request_id or exchange.request_id or plane.new_request_id()
        lines = plane.propagation.inject(trace, span_id, known if others else NONE_KNOWN)
        version = exchange.request.version
        via_line = self.via_line2 if version == HTTP2 else self.via_line
        lines += (via_line, b"x-request-id: " + request_id, FORWARDED_HTTP)
        if others:
            if b"via" in known:
                lines[-3] = self._via_after(known[b"via"], version)
            if b"x-forwarded-proto" in known:
                lines[-1] = _line(known, b"x-forwarded-proto")
            lines += [_line(known, name) for name in _PASSED_ON if name in known]
        return lines

    def finish_head(self, exchange: Exchange, attempt: Attempt, head: ResponseHead) -> None:
        """See Listener; with ``x-mesh-explain`` the decision record as well."""
        head.fields.append_line(self.via_line2 if attempt.http2 else self.via_line)
        if b"x-mesh-explain" in exchange.request.known:
            head.fields.append(b"x-mesh-explain", self.plane.decision_record(exchange))

    def finish_refusal(self, exchange: Exchange, error: ProxyError, head: ResponseHead) -> None:
        """See Listener."""
        if b"x-mesh-explain" in exchange.request.known:
            head.fields.append(b"x-mesh-explain", self.plane.decision_record(exchange))


class InboundListener(Listener):
    """Calls to the local program, from any Host and path. Its cluster is that program and nothing else."""

    name = "inbound"

    def __init__(
        self,
        plane: DataPlane,
        marker: str,
        limits: ConnectionLimits,
        rule: CompiledRule,
        max_connections: int = MAX_CONNECTIONS,
        *,
        protocol: AppProtocol | None = None,
    ) -> None:
        """``rule`` sends everything to the local program and retries nothing but stale connections.

        ``protocol`` is what that speaks, as this sidecar was told; None: as the policy of its service says, if it does.
        """
        super().__init__(plane, marker, limits, max_connections)
        self._rule = rule
        self._protocol = protocol

    @property
    def takes_connections(self) -> bool:
        """See Listener."""
        return (self._protocol or self.plane.declared) is AppProtocol.TCP

    def would_take_connections(self, snapshot: Snapshot | None) -> bool:
        """Tell the same of a table that is not in force yet."""
        return (self._protocol or declared_in(snapshot, self.plane.settings.service)) is AppProtocol.TCP

    @property
    def peeks(self) -> bool:
        """See Listener: only as long as nothing is said of the program."""
        return self.detects and (self._protocol or self.plane.declared) is None

    def route(self, exchange: Exchange) -> CompiledRule | Name:
        """See Listener. The reserved path answers with the program's state, for whoever checks this sidecar."""
        request = exchange.request
        if b"via" in request.known:
            self._check_loop(exchange)
        if request.target == HEALTH_PATH:
            raise self._health()
        if request.method in SPECIAL_METHODS:
            if request.method == CONNECT:
                raise _no_connect(self.name)
            self._take_forward(request)
        self.last_request_s = self.plane.now_s
        return self._rule

    def added_fields(self, exchange: Exchange, attempt: Attempt) -> list[bytes]:
        """Via, X-Forwarded-*, X-Request-Id, and the trace context with our SERVER span as the parent."""
        known, plane, request = exchange.request.known, self.plane, exchange.request
        if not exchange.span_id:
            exchange.span_id = plane.propagation.outgoing_span_id(exchange.trace)
        lines = plane.propagation.inject(exchange.trace, exchange.span_id, known)
        if b"via" in known:
            lines.append(self._via_after(known[b"via"], request.version))
        else:
            lines.append(self.via_line2 if request.version == HTTP2 else self.via_line)
        request_id = exchange.request_id = known.get(b"x-request-id") or exchange.request_id or plane.new_request_id()
        lines.append(b"x-request-id: " + request_id)
        peer = exchange.downstream.peer_address.encode()
        forwarded = known.get(b"x-forwarded-for")
        lines.append(b"x-forwarded-for: " + (peer if forwarded is None else forwarded + b", " + peer))
        if b"x-forwarded-proto" in known:
            lines.append(_line(known, b"x-forwarded-proto"))
        else:
            lines.append(FORWARDED_HTTPS if exchange.downstream.is_tls else FORWARDED_HTTP)
        lines.append(b"x-forwarded-host: " + known.get(b"x-forwarded-host", request.authority))
        return lines

    @property
    def foreign_advice(self) -> str:
        """See Listener."""
        return "if the program speaks something else, say so: --protocol tcp, or detect, or its service's policy"

    def caller_spoke_http2(self, request: RequestHead) -> bool:
        """See Listener: a caller's sidecar says in Via how it was spoken to (RFC 9110 §7.6.3)."""
        last = request.known.get(b"via", b"").rpartition(b",")[2].strip()
        return not (last.startswith(b"1.") and b" sidemesh-out-" in last)

    def finish_refusal(self, exchange: Exchange, error: ProxyError, head: ResponseHead) -> None:
        """Tell the caller's sidecar when the program cannot have seen the request."""
        if error.not_sent:
            head.fields.append(NOT_SENT, b"1")

    def _health(self) -> LocalAnswer:
        state = self.plane.program_state
        return LocalAnswer(200 if state == "passing" else 503, f"{state}\n")


def _refusal(error: ProxyError) -> tuple[ResponseHead, list[bytes]]:
    kind = type(error).__name__ if isinstance(error, BadRequest) else error.flag
    head, pieces = text_answer(error.http_status, f"sidemesh: {kind}: {error.message}\n")
    head.fields.append(b"proxy-status", proxy_status(error))
    return head, pieces


def _no_table() -> NoTable:
    return NoTable("this sidecar never had a routing table: its control server cannot be reached (see /config_dump)")


def _no_connect(listener: str) -> NotImplementedMethod:
    what = f"CONNECT is not carried by the {listener} listener"
    return NotImplementedMethod(f"{what}; outbound takes it to the ports of --egress-connect")


def _line(known: dict[bytes, bytes], name: bytes) -> bytes:
    return b"%b: %b" % (name, known[name])


def _shown(method: bytes, target: bytes) -> str:
    return f"{method.decode('latin-1')} {target[:100].decode('latin-1')}"
