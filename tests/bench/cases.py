"""The cases: what is sent, who is compared, and the bar each must reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.bench.traffic import Traffic

US, PEER, TWIN = "sidemesh", "envoy", "envoy-2"
PAIR = (US, PEER)
TRIO = (*PAIR, TWIN)
ALL = (*TRIO, "nginx", "haproxy", "traefik", "aiohttp")

_ORDINARY = Traffic()
LEAST_ROUNDS = 7
MAX_TWIN_DIFFERENCE = 0.05
MAX_TWIN_DIFFERENCE_P99 = 0.10


Load = Literal["wrk", "grpc-unary", "grpc-stream", "websocket"]
"""What drives a proxy: wrk speaks HTTP/1.1, our own gRPC client (unary calls, or one stream of messages) HTTP/2."""
Behind = Literal["http1", "http2", "grpc", "tcp", "tls", "websocket"]
"""What the upstreams are: nginx by either version, our own gRPC or WebSocket program, nginx of which only the bytes are
seen, or nginx with a certificate (then the proxy too shows one to its clients)."""


@dataclass(frozen=True, slots=True)
class HttpCase:
    """Load at full speed; the bar is on processor time for each request, as a ratio to Envoy's."""

    name: str
    what: str
    bar: float | None
    traffic: Traffic = _ORDINARY
    proxies: tuple[str, ...] = TRIO
    quick_proxies: tuple[str, ...] = PAIR
    connections: int = 64
    rounds: int = 11
    """Of us, Envoy and its twin, but in a quick run: more where the bar is near. Others have LEAST_ROUNDS."""
    in_quick: bool = True
    logs: bool = False
    trace_ratio: float = 0.01
    load: Load = "wrk"
    behind: Behind = "http1"
    streams: int = 1
    """Calls at a time on each connection."""

    @property
    def counted(self) -> str:
        """What the processor time is divided by."""
        return "message" if self.load in ("grpc-stream", "websocket") else "request"


@dataclass(frozen=True, slots=True)
class LowLoadCase:
    """One connection at a fixed rate; the bars are on latency above that without a proxy, as a ratio to Envoy's."""

    name: str = "http1-low-load"
    what: str = "one connection, 500 requests/s"
    p50_bar: float = 0.7
    p99_bar: float = 1.2
    rate_per_s: int = 500
    samples: int = 20_000
    quick_samples: int = 1_800


HTTP_CASES = (
    HttpCase("http1-full", "all features, keep-alive, tracing 1 %", 0.65, proxies=ALL, quick_proxies=ALL, rounds=21),
    HttpCase("http1-trace-100", "the same, every request traced", 0.75, trace_ratio=1.0, in_quick=False),
    HttpCase("http1-log-100", "the same, every request in a JSON log", 0.65, logs=True, rounds=21),
    HttpCase("http1-64kib", "bodies of 64 KiB", None, Traffic(body="64kib"), ALL, rounds=LEAST_ROUNDS, in_quick=False),
    HttpCase("http1-1mib", "bodies of 1 MiB", 1.1, Traffic(body="1mib"), ALL, connections=16),
    HttpCase("http1-new-connections", "a new connection for each request", 0.8, Traffic(closes=True), ALL),
)
HTTP2_CASES = (
    HttpCase(
        "grpc-unary",
        "gRPC calls of 20 bytes over HTTP/2, all features, 4 connections with 16 calls each at a time",
        0.75,
        load="grpc-unary",
        behind="grpc",
        connections=4,
        streams=16,
    ),
    HttpCase(
        "grpc-stream",
        "one gRPC stream both ways, messages of 100 bytes; all figures are for a message",
        0.8,
        load="grpc-stream",
        behind="grpc",
        connections=1,
    ),
    HttpCase("http1-to-http2", "as http1-full, but the upstreams speak HTTP/2", 0.8, behind="http2"),
    HttpCase(
        "tcp-bytes",
        "as http1-1mib, but only TCP is seen, on connections that stay",
        0.85,
        Traffic(body="1mib"),
        connections=16,
        behind="tcp",
    ),
    HttpCase(
        "tcp-connections",
        "a new TCP connection for each request",
        1.1,
        Traffic(closes=True),
        behind="tcp",
        in_quick=False,
    ),
)
EDGE_CASES = (
    HttpCase(
        "tls", "as http1-full, but with TLS from the client and to the upstreams", 0.85, behind="tls", in_quick=False
    ),
    HttpCase(
        "websocket",
        "WebSocket messages of 1 KiB there and back on 64 connections; all figures are for a message",
        0.8,
        load="websocket",
        behind="websocket",
        in_quick=False,
    ),
)
LOW_LOAD = LowLoadCase()
