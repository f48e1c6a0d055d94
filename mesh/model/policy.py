"""ServicePolicy: all about a destination that is not routing. Every default has its reason beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from mesh.model.name import Name


class AppProtocol(Enum):
    """What a service's endpoints speak, in Kubernetes' words (Service.spec.ports[].appProtocol)."""

    HTTP = "http"
    HTTP2 = "http2"
    H2C = "kubernetes.io/h2c"
    GRPC = "grpc"
    TCP = "tcp"

    @property
    def is_http2(self) -> bool:
        """HTTP/2, by prior knowledge (RFC 9113 §3.3)."""
        return self not in (AppProtocol.HTTP, AppProtocol.TCP)


@dataclass(frozen=True, slots=True)
class OutlierDetection:
    """Ejects endpoints that keep failing. Percents are 0 to 100.

    At least one endpoint may always be ejected and the last one never is; below ``panic_percent`` of usable
    endpoints ejections are ignored, since then the cause is likelier ours than theirs.
    """

    consecutive_failures: int = 5  # Envoy's consecutive_5xx; 0 switches ejection off
    base_ejection_s: float = 30.0  # Envoy's base_ejection_time
    max_ejection_percent: int = 10  # Envoy's max_ejection_percent, but never less than one endpoint
    panic_percent: int = 50  # Envoy's healthy_panic_threshold


@dataclass(frozen=True, slots=True)
class Limits:
    """Circuit breakers of a cluster, counted per sidecar; beyond them a request gets 503 UO."""

    max_connections: int = 1024  # Envoy's circuit breaker default
    max_pending_requests: int = 1024  # likewise
    max_requests: int = 1024  # likewise


@dataclass(frozen=True, slots=True)
class RetryBudgetPolicy:
    """How many retries a cluster allows: ``percent`` of the requests of the last 10 s, and ``min_per_s`` besides."""

    percent: int = 20  # GEP-3388
    min_per_s: int = 10  # GEP-3388


@dataclass(frozen=True, slots=True)
class TlsPolicy:
    """How sidecars speak TLS to a service's endpoints. Files, PEM, are those of each sidecar's own machine.

    ``server_name`` is what a certificate must hold for, and is asked for (SNI): the service's name where it is empty.
    ``ca_file`` empty: the authorities that the system trusts. ``certificate_file`` and ``key_file`` are a client's.
    """

    server_name: str = ""
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""


@dataclass(frozen=True, slots=True)
class ServicePolicy:
    """The policy of the service ``name``. ``subsets`` maps a subset's name to the metadata its endpoints carry.

    ``app_protocol`` None leaves it to what an endpoint's metadata says, else to what the caller speaks.
    """

    name: Name
    subsets: Mapping[str, Mapping[str, str]] = field(default_factory=dict, hash=False)
    outlier_detection: OutlierDetection = OutlierDetection()
    limits: Limits = Limits()
    retry_budget: RetryBudgetPolicy = RetryBudgetPolicy()
    connect_timeout_s: float = (
        1.0  # Linkerd's outbound connect timeout; a mesh hop that takes longer is as good as dead
    )
    app_protocol: AppProtocol | None = None  # as with Kubernetes' appProtocol, nothing is guessed
    tls: TlsPolicy | None = None  # whoever wants it has to say which authority is trusted
    upgrades: tuple[str, ...] = ()  # besides websocket; any other is a protocol that the mesh knows nothing of
