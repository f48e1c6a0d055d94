"""A real Envoy before one upstream, as another vendor's HTTP/2 client and server.

    async with envoy(tmp_path / "envoy", m.port, speaks=HTTP2) as peer:
        answer = await m.get(..., port=peer.port)

It tells HTTP/1.1 from HTTP/2 on its listener by itself (in clear text by the preface, with TLS by ALPN), routes
everything to its one upstream, and adds no timeouts of its own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.needs import require
from tests.support.ports import free_ports
from tests.support.process import Process

V3 = "type.googleapis.com/envoy"
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
HTTP1: dict[str, Any] = {"http_protocol_options": {"enable_trailers": True}}
HTTP2: dict[str, Any] = {"http2_protocol_options": {"allow_connect": True}}
START_S = 30.0  # it loads 100 MB, on a machine where other tests may run beside this one


@dataclass(frozen=True, slots=True)
class Certificates:
    """Where Envoy shows a certificate, or trusts an authority (then with the name it asks for)."""

    pair: tuple[Path, Path] | None = None
    authority: Path | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Envoy:
    """One that runs."""

    process: Process
    port: int
    admin_port: int

    async def ask(self, path: str, method: str = "GET") -> str:
        """What its admin page answers."""
        url = f"http://127.0.0.1:{self.admin_port}{path}"
        async with aiohttp.ClientSession() as session, session.request(method, url) as answer:
            return await answer.text()

    async def count(self, *names: str) -> int:
        """The sum of some of its counters and gauges."""
        lines = dict(line.split(": ") for line in (await self.ask("/stats?type=Counters")).splitlines())
        lines |= dict(line.split(": ") for line in (await self.ask("/stats?type=Gauges")).splitlines())
        return sum(int(lines.get(name, 0)) for name in names)

    async def is_live(self) -> bool:
        """It has read its configuration and serves."""
        try:
            return (await self.ask("/ready")).strip() == "LIVE"
        except aiohttp.ClientError:
            return False


@asynccontextmanager
async def envoy(
    directory: Path,
    upstream: int,
    *,
    speaks: dict[str, Any] = HTTP1,
    max_streams: int | None = None,
    shows: Certificates | None = None,
    trusts: Certificates | None = None,
    retry_on: str = "",
) -> AsyncIterator[Envoy]:
    """Run it before the upstream's port.

    ``speaks``: HTTP1 or HTTP2 to its upstream, with TLS where it ``trusts`` somebody. ``shows``: TLS to its clients.
    ``max_streams``: how many each of their HTTP/2 connections may have. ``retry_on``: what it sends again.
    """
    port, admin_port = free_ports(2)
    config = _write(directory, {
        "admin": {"address": _address(admin_port)},
        "static_resources": {
            "listeners": [_listener(port, max_streams, shows, retry_on)],
            "clusters": [_cluster(upstream, speaks, trusts)],
        },
    })  # fmt: skip
    options = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "warn")
    drain = ("--drain-time-s", "1", "--drain-strategy", "immediate")
    words = (require("envoy"), "-c", config, *options, *drain)
    async with Process.start(*words, log=directory / "envoy.log") as process:
        running = Envoy(process, port, admin_port)
        await process.until(running.is_live, what="Envoy", timeout_s=START_S)
        yield running


def _write(directory: Path, bootstrap: dict[str, Any]) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / "envoy.json"
    path.write_text(json.dumps(bootstrap))
    return path


def _listener(port: int, max_streams: int | None, shows: Certificates | None, retry_on: str) -> dict[str, Any]:
    http2: dict[str, Any] = {"allow_connect": True}
    if max_streams is not None:
        http2["max_concurrent_streams"] = max_streams
    action: dict[str, Any] = {"cluster": "upstream", "timeout": "0s"}
    if retry_on:
        action["retry_policy"] = {"retry_on": retry_on, "num_retries": 3}
    route = {"match": {"prefix": "/"}, "route": action}
    manager = {
        "@type": f"{V3}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "web",
        "codec_type": "AUTO",
        "http_protocol_options": {"enable_trailers": True},
        "http2_protocol_options": http2,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "envoy.filters.http.router",
                          "typed_config": {"@type": f"{V3}.extensions.filters.http.router.v3.Router"}}],
    }  # fmt: skip
    chain: dict[str, Any] = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    }
    if shows is not None and shows.pair is not None:
        certificate, key = ({"filename": str(path)} for path in shows.pair)
        common = {"tls_certificates": [{"certificate_chain": certificate, "private_key": key}]}
        chain["transport_socket"] = _tls("Downstream", common)
    return {"address": _address(port), "filter_chains": [chain]}


def _cluster(port: int, speaks: dict[str, Any], trusts: Certificates | None) -> dict[str, Any]:
    hosts = [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}]
    options = {"@type": f"{V3}.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": speaks}
    cluster = {
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{"max_retries": 1024}]},  # 3 at a time, else
        "load_assignment": {"cluster_name": "upstream", "endpoints": hosts},
        "typed_extension_protocol_options": {OPTIONS: options},
    }
    if trusts is not None:
        common = {"validation_context": {"trusted_ca": {"filename": str(trusts.authority)}}}
        cluster["transport_socket"] = _tls("Upstream", common, sni=trusts.name)
    return cluster


def _tls(side: str, common: dict[str, Any], **more: str) -> dict[str, Any]:
    context = f"{V3}.extensions.transport_sockets.tls.v3.{side}TlsContext"
    common = {**common, "alpn_protocols": ["h2"]}
    return {"name": "tls", "typed_config": {"@type": context, "common_tls_context": common, **more}}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
