"""The proxies that are compared, one file each: how it is configured and started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.cases import Behind


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files: a chain and its key, for the service's name, and the authority that they are of."""

    chain: Path
    key: Path
    authority: Path


@dataclass(frozen=True, slots=True)
class Site:
    """Where a proxy is to stand. The first half of ``upstreams`` is version v1, the second v2."""

    name: str
    """What its spans say it is."""
    directory: Path
    """For its files; its own."""
    port: int
    admin_port: int
    upstreams: tuple[int, ...]
    otlp_http: int
    otlp_grpc: int
    trace_ratio: float = 0.01
    """The share of requests that is recorded, by the proxy's own decision."""
    access_log: Path | None = None
    """Where every request is logged; None logs none."""
    behind: Behind = "http1"
    """What the upstreams speak. Where it is gRPC the callers speak HTTP/2, else HTTP/1.1."""
    certificate: Certificate | None = None
    """Shown to clients, and its authority trusted with the upstreams; None: clear text."""
    holds_streams: bool = False
    """Requests stay open for ever, 10 000 at a time: no timeouts, and limits above that."""

    @property
    def versions(self) -> dict[str, tuple[int, ...]]:
        """The upstream ports by version."""
        half = len(self.upstreams) // 2
        return {"v1": self.upstreams[:half], "v2": self.upstreams[half:]}


WEIGHTS = {"v1": 90, "v2": 10}
TIMEOUT_S = 15
RETRIES = 2
HELD_REQUESTS = 20_000
"""The limits where streams are held."""
SPANS_EVERY_MS = 1000
SPANS_PER_BATCH = 512
"""For every proxy that traces: what OpenTelemetry's SDKs have as default."""


@dataclass(frozen=True, slots=True)
class Command:
    """What starts a proxy."""

    words: list[str | Path]
    env: Mapping[str, str] = field(default_factory=dict)


Peer = Callable[[Site], Command]


def peers() -> dict[str, Peer]:
    """All proxies by name. envoy-2 is a second Envoy just like the first: the control pair."""
    from tests.bench.peers import envoy, haproxy, nginx, plain_aiohttp, sidemesh, traefik

    return {
        "sidemesh": sidemesh.command,
        "envoy": envoy.command,
        "envoy-2": envoy.command,
        "nginx": nginx.command,
        "haproxy": haproxy.command,
        "traefik": traefik.command,
        "aiohttp": plain_aiohttp.command,
    }
