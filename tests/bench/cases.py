"""The cases: what is sent, who is compared, and the bar each must reach."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.traffic import Traffic

US, PEER, TWIN = "sidemesh", "envoy", "envoy-2"
TRIO = (US, PEER, TWIN)
ALL = (*TRIO, "nginx", "haproxy", "traefik", "aiohttp")

_ORDINARY = Traffic()
MAX_TWIN_DIFFERENCE = 0.05
MAX_TWIN_DIFFERENCE_P99 = 0.10


@dataclass(frozen=True, slots=True)
class HttpCase:
    """wrk at full speed; the bar is on processor time for each request, as a ratio to Envoy's."""

    name: str
    what: str
    bar: float | None
    traffic: Traffic = _ORDINARY
    proxies: tuple[str, ...] = TRIO
    quick_proxies: tuple[str, ...] = TRIO
    connections: int = 64
    rounds: int = 7
    """At least so many, but in a quick run: more where three proxies leave time for a narrower interval."""
    logs: bool = False
    trace_ratio: float = 0.01


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
    HttpCase("http1-full", "all features, keep-alive, tracing 1 %", 0.65, proxies=ALL, quick_proxies=ALL),
    HttpCase("http1-trace-100", "the same, every request traced", 0.75, trace_ratio=1.0, rounds=11),
    HttpCase("http1-log-100", "the same, every request in a JSON log", 0.65, logs=True, rounds=11),
    HttpCase("http1-64kib", "bodies of 64 KiB", None, Traffic(body="64kib"), ALL),
    HttpCase("http1-1mib", "bodies of 1 MiB", 1.1, Traffic(body="1mib"), ALL, connections=16),
    HttpCase("http1-new-connections", "a new connection for each request", 0.8, Traffic(closes=True), ALL),
)
LOW_LOAD = LowLoadCase()
