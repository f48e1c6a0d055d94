"""The listeners of one sidecar, built the same in a sidecar of one process and in each worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

from mesh.model.errors import InvalidError, Violation
from mesh.model.name import Name
from mesh.model.policy import AppProtocol, OutlierDetection, ServicePolicy
from mesh.model.route import BackendRef, Retry, Rule
from mesh.model.service import Endpoint
from proxy.config import SidecarConfig
from proxy.dataplane import DataPlane
from proxy.file_limit import connections_within_limit
from proxy.listener import InboundListener, Listener, OutboundListener
from proxy.recorder import LOCAL
from proxy.table import Backend, CompiledRule
from proxy.tls import HTTP1, HTTP2, ServerTls, TlsError

LAST_WORDS_S = 0.5
_POLL_S = 0.01
PROGRAM_IDLE_S = 3.0  # programs close idle connections early: gunicorn after 2 s, uvicorn and Node after 5 s

PROGRAM_SPEAKS = {
    "caller": None,
    "http1": AppProtocol.HTTP,
    "http2": AppProtocol.HTTP2,
    "tcp": AppProtocol.TCP,
    "detect": None,
}


@dataclass(frozen=True, slots=True)
class Listeners:
    """``inbound`` is None beside a program that only calls."""

    outbound: OutboundListener
    upstreams: dict[Name, OutboundListener]
    inbound: InboundListener | None

    def named(self) -> Iterator[tuple[str, Listener]]:
        """All of them, with the names that logs, metrics and ``addresses`` use."""
        yield "outbound", self.outbound
        for service, listener in self.upstreams.items():
            yield f"upstream {service}", listener
        if self.inbound is not None:
            yield "inbound", self.inbound

    async def close_connections(self) -> None:
        """Close every connection once its last bytes are out; who does not take them at once is cut off."""
        end = time.monotonic() + LAST_WORDS_S
        while left := [connection for _, listener in self.named() for connection in listener.connections]:
            is_over = time.monotonic() >= end
            for connection in left:  # also those whose handshake has ended only now
                if is_over:
                    connection.transport.abort()
                else:
                    connection.finish()
            if is_over:
                break
            await asyncio.sleep(_POLL_S)

    def unsent(self, *, inbound_only: bool) -> int:
        """Connections whose clients have yet to take what they were answered."""
        listeners = self.that_leave(inbound_only=inbound_only)
        return sum(connection.has_unsent for listener in listeners for connection in listener.connections)

    def that_leave(self, *, inbound_only: bool) -> list[Listener]:
        """Inbound, which leaves first in a drain, or all of them."""
        return [each for _, each in self.named() if each is self.inbound or not inbound_only]


def build_listeners(plane: DataPlane, config: SidecarConfig, token: str) -> Listeners:
    """Build them; ``token`` tells this sidecar from others in Via."""
    limits = config.limits
    listeners = 1 + len(config.upstreams) + (config.port is not None)
    most = connections_within_limit(max(1, config.max_connections // config.workers), listeners)
    outbound = f"sidemesh-out-{token}"
    inbound: InboundListener | None = None
    if config.port is not None:
        protocol = PROGRAM_SPEAKS[config.protocol]
        rule = program_rule(plane, config.service.name, config.port, protocol)
        inbound = InboundListener(plane, f"sidemesh-in-{token}", limits, rule, most, protocol=protocol)
        inbound.detects = config.protocol == "detect"
        inbound.tls = load_certificates(config)
        if inbound.tls is not None:
            plane.deadlines.each_second.append(lambda _: inbound.tls.refresh() if inbound.tls is not None else None)
    upstreams = {
        service: OutboundListener(plane, outbound, limits, most, service, is_tcp=service in config.tcp_upstreams)
        for service in config.upstreams
    }
    for service in config.detected_upstreams:
        upstreams[service].detects = True
    return Listeners(OutboundListener(plane, outbound, limits, most), upstreams, inbound)


def load_certificates(config: SidecarConfig) -> ServerTls | None:
    """What inbound clients are met with that begin with TLS; None where there is nothing. Raises InvalidError."""
    if config.server_tls is None:
        return None
    try:
        return ServerTls(config.server_tls, () if config.protocol == "tcp" else (HTTP2, HTTP1))
    except TlsError as error:
        raise InvalidError([Violation("tls-cert", str(error))]) from error


def program_rule(plane: DataPlane, label: str, port: int, protocol: AppProtocol | None = None) -> CompiledRule:
    """Everything to the local program; nothing is sent twice but what a stale connection never took."""
    name = Name(LOCAL, label)
    program = plane.service(name)
    never_ejected = OutlierDetection(consecutive_failures=0)
    program.set_policy(ServicePolicy(name, outlier_detection=never_ejected, app_protocol=protocol))
    program.idle_s = PROGRAM_IDLE_S
    program.apply([Endpoint("program", "127.0.0.1", port)])
    ref = BackendRef(name)
    return CompiledRule(Rule(backend_refs=(ref,), retry=Retry(attempts=0)), [Backend(ref, program.cluster())])
