"""A sidecar's settings: a frozen value, checked whole before anything starts.

Every wrong key is reported in one go, with its value and the accepted form. Durations are seconds.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.discovery.retention import DEFAULT_GRACE_S
from mesh.model.errors import InvalidError, Violation
from mesh.model.name import DEFAULT_NAMESPACE, DEFAULT_SUFFIXES, Name, is_label
from proxy.http1.limits import ConnectionLimits, HeadLimits
from proxy.tls import KeyPair, ServerSettings

LIMIT_KEYS = {
    "request-line-bytes": "line_bytes", "head-bytes": "head_bytes", "header-count": "count",
    **{key.replace("_", "-"): key for key in (
        "head_s", "first_byte_s", "peek_s", "idle_s", "stall_s", "tunnel_idle_s", "linger_s", "pipelined_bytes",
        "discard_bytes")},
}  # fmt: skip
"""The keys of ``limits`` in the file, and the fields of HeadLimits and ConnectionLimits that they set."""

_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]")


@dataclass(frozen=True, slots=True)
class Address:
    """HOST:PORT. Port 0 asks for a free one, which is reported."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Address:
        """Read ``HOST:PORT``, ``:PORT``, ``[IPv6]:PORT``, or ``HOST`` where a port is known. Raises ValueError."""
        host, colon, port = text.rpartition(":")
        if (not colon or text.endswith("]")) and default_port is not None:
            host, port = text, str(default_port)
        host = host or "127.0.0.1"
        if not port.isdigit() or int(port) > 65535 or not _HOST.fullmatch(host):
            message = f"{text!r} is not HOST:PORT (port 0 to 65535)"
            raise ValueError(message)
        return cls(host.strip("[]"), int(port))

    @property
    def is_loopback(self) -> bool:
        """Reached from this machine only."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_wildcard(self) -> bool:
        """Every address of this machine."""
        return self.host in {"0.0.0.0", "::"}

    def __str__(self) -> str:
        """HOST:PORT, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SidecarConfig:
    """Everything a sidecar is told. The defaults are those of the command line (DESIGN.md, Contracts)."""

    service: Name
    port: int | None = None
    """The program's port on loopback; None for a program that is only a client."""
    version: str = ""
    inbound: Address = Address("127.0.0.1", 15006)
    outbound: Address = Address("127.0.0.1", 15001)
    admin: Address = Address("127.0.0.1", 15000)
    control: Address | None = None
    consul: str | None = None
    upstreams: Mapping[Name, int] = field(default_factory=dict, hash=False)
    """A local port for each of these services, whatever Host says."""
    tcp_upstreams: frozenset[Name] = frozenset()
    """Those of them that speak something else than HTTP, whatever their policies say."""
    detected_upstreams: frozenset[Name] = frozenset()
    """Those of them whose callers' first bytes decide, where their policies say nothing."""
    advertise: Address | None = None
    instance_id: str = ""
    check: str = "tcp"
    """``tcp``, or a path of the program that answers 2xx or 3xx while it is well."""
    protocol: str = "caller"
    """What is spoken with the program: ``http1``, ``http2``, what each caller speaks (``caller``), ``tcp``, or what its
    first bytes tell (``detect``)."""
    tls_cert: Path | None = None
    """The certificate chain, PEM, that inbound clients who begin with TLS are shown; with ``tls_key``."""
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """Who speaks TLS has to show a certificate of this authority."""
    tls_certificates: tuple[KeyPair, ...] = ()
    """More of them, each with the names it is for (SNI)."""
    egress: bool = False
    egress_connect: tuple[int, ...] = ()
    """The ports that CONNECT may go to; none: it is not carried. Never to a service of the mesh."""
    workers: int = 1
    drain_s: float = 30.0
    grace_s: float = DEFAULT_GRACE_S
    """How long endpoints stay that discovery lost without a word."""
    data_dir: Path | None = None
    """Where the last good table and the last known endpoints are kept; None keeps none."""
    suffixes: tuple[str, ...] = DEFAULT_SUFFIXES
    trace_ratio: float = 0.01  # Istio's default of 1 %
    trace_formats: tuple[str, ...] = ("tracecontext",)
    trace_tcp: bool = False
    """A span for each TCP connection whose trace is sampled, told when it closes."""
    access_log: str = "off"
    """``off``, ``sampled`` (the exchanges whose trace is sampled, and all errors) or ``all``."""
    access_log_format: str = "json"
    access_log_path: str = "-"
    services: Mapping[str, Any] | None = field(default=None, hash=False)
    """Endpoints given in the configuration file itself."""
    services_file: Path | None = None
    routes: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    """HTTPRoute and ServicePolicy documents given in the configuration file itself."""
    max_connections: int = 20_000  # at 4 KiB each 80 MiB: a flood costs that much at most
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    check_interval_s: float = 1.0
    log_level: str = "info"

    @property
    def connect_ports(self) -> frozenset[int]:
        """Where CONNECT may go outside the mesh; empty: nowhere."""
        return frozenset(self.egress_connect)

    @property
    def server_tls(self) -> ServerSettings | None:
        """How inbound clients are met that begin with TLS; None: not at all."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return ServerSettings((KeyPair(self.tls_cert, self.tls_key), *self.tls_certificates), self.tls_client_ca)

    @property
    def node(self) -> str:
        """What this sidecar is called in ``mesh status``: stable over restarts."""
        return (
            f"{self.service}/{self.instance}"
            if self.service.namespace == DEFAULT_NAMESPACE
            else f"{self.service}.{self.instance}"
        )

    @property
    def instance(self) -> str:
        """The instance's id, unique within the service."""
        return self.instance_id or f"{self.service.name}-{os.uname().nodename}-{self.inbound.port}"

    @staticmethod
    def limits_of(given: Mapping[str, Any]) -> ConnectionLimits:
        """The limits that the file's mapping gives. Raises ValueError naming every wrong key."""
        wrong = [
            f"{key}: {value!r} is not a number above 0"
            if key in LIMIT_KEYS
            else f"{key} is none of {', '.join(LIMIT_KEYS)}"
            for key, value in given.items()
            if key not in LIMIT_KEYS
            or isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < math.inf
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        found = {LIMIT_KEYS[key]: value if key.endswith("-s") else int(value) for key, value in given.items()}
        head = {name: value for name, value in found.items() if name in HeadLimits.__slots__}
        rest: Any = {name: value for name, value in found.items() if name not in head}
        return ConnectionLimits(HeadLimits(**head), **rest)

    def validate(self) -> None:
        """Raise InvalidError with everything that is wrong."""
        wrong = [Violation(key, message) for key, message in self._problems()]
        if wrong:
            raise InvalidError(wrong)

    def _problems(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        if not is_label(self.service.name):
            found.append(("service", f"{self.service.name!r} is not a DNS label (a-z, 0-9, inner '-')"))
        if not is_label(self.service.namespace):
            found.append(("namespace", f"{self.service.namespace!r} is not a DNS label (a-z, 0-9, inner '-')"))
        if self.port is not None and not 1 <= self.port <= 65535:
            found.append(("port", f"{self.port} is not a port (1 to 65535)"))
        if self.check != "tcp" and not self.check.startswith("/"):
            found.append(("check", f"{self.check!r} is neither 'tcp' nor a path that starts with '/'"))
        if self.protocol not in {"caller", "http1", "http2", "tcp", "detect"}:
            found.append(("protocol", f"{self.protocol!r} is not one of caller, http1, http2, tcp, detect"))
        if self.protocol == "tcp" and self.check != "tcp":
            found.append(("check", f"{self.check!r} is a path, and the program speaks tcp"))
        if (self.tls_cert is None) is not (self.tls_key is None):
            found.append(("tls-cert", "and tls-key belong together"))
        if self.tls_cert is None and (self.tls_client_ca is not None or self.tls_certificates):
            found.append(("tls-cert", "is missing: it is shown to clients that name nobody"))
        if any(not 1 <= port <= 65535 for port in self.egress_connect):
            found.append(("egress-connect", f"{list(self.egress_connect)} are not ports (1 to 65535)"))
        if self.egress_connect and not self.egress:
            found.append(("egress-connect", "needs egress: allow"))
        if self.workers < 1:
            found.append(("workers", f"{self.workers} is not a number of workers (1 or more)"))
        if not 0.0 <= self.trace_ratio <= 1.0:
            found.append(("trace-ratio", f"{self.trace_ratio} is not a ratio (0 to 1)"))
        if self.drain_s < 0:
            found.append(("drain-s", f"{self.drain_s} is negative"))
        if self.grace_s < 0:
            found.append(("grace-s", f"{self.grace_s} is negative"))
        if self.max_connections < 1:
            found.append(("max-connections", f"{self.max_connections} is not a number of connections (1 or more)"))
        if self.access_log not in {"off", "sampled", "all"}:
            found.append(("access-log", f"{self.access_log!r} is not one of off, sampled, all"))
        if self.log_level not in {"debug", "info", "warning", "error"}:
            found.append(("log-level", f"{self.log_level!r} is not one of debug, info, warning, error"))
        if self.access_log_format not in {"json", "text"}:
            found.append(("access-log-format", f"{self.access_log_format!r} is not one of json, text"))
        unknown = [f for f in self.trace_formats if f not in {"tracecontext", "b3", "b3multi"}]
        if unknown or not self.trace_formats:
            found.append(("trace-formats", f"{unknown} are not among tracecontext, b3, b3multi"))
        if self.consul is not None and not self.consul.startswith(("http://", "https://")):
            found.append(("consul", f"{self.consul!r} is not a URL: http://HOST:PORT or https://HOST:PORT"))
        return found
