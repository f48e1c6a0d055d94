"""Memory: of a sidecar at rest, of a further worker, of an idle connection."""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from mesh.client import MeshClient, Options
from mesh.model.gateway_api import read_documents
from tests.bench.cases import PEER, US
from tests.bench.control_plane import control_server
from tests.bench.fleet import Proxy, answers, fleet, get
from tests.bench.load import BenchError
from tests.bench.machine import family, rss_bytes
from tests.bench.peers.sidemesh import route
from tests.bench.plan import Plan
from tests.bench.results import Bar, Result
from tests.bench.stats import Estimate, verdict
from tests.bench.traffic import Traffic
from tests.support.consul import ConsulAgent
from tests.support.needs import TOOLS
from tests.support.ports import free_port
from tests.support.process import Process

BASE_BAR_MIB, WORKER_BAR_MIB, IDLE_BAR_KIB = 64.0, 35.0, 4.0
WORKERS = 3
IDLE, QUICK_IDLE = 4000, 1000
WARM_CONNECTIONS, WARM_REQUESTS = 64, 2000
SETTLE_S = 2.0
MIB = 1 << 20


async def run(plan: Plan) -> Result:
    """All three. Raises BenchError."""
    consul = TOOLS["consul"].find()
    if consul is None:
        return Result("memory", "resident memory", not_run=f"Consul is absent: {TOOLS['consul'].remedy}")
    base, workers = await _at_rest(consul)
    async with fleet((US, PEER)) as running:
        envoy = running.proxies[PEER]
        await get(envoy.site.admin_port, "/stats/prometheus")
        await asyncio.sleep(SETTLE_S)
        envoy_base = rss_bytes(envoy.pid)
        count = QUICK_IDLE if plan.is_quick else IDLE
        idle = {name: await _idle_connections(running.proxies[name], count) for name in (US, PEER)}
    worker_mib = max(workers[1:]) / MIB
    return Result(
        "memory",
        "resident memory (RSS, shared pages counted in full)",
        bars=(
            fixed_bar("a sidecar at rest", BASE_BAR_MIB, sum(base) / MIB, "MiB"),
            fixed_bar("the same, in Envoy's", 1.0, sum(base) / envoy_base, ""),
            fixed_bar("a further worker", WORKER_BAR_MIB, worker_mib, "MiB"),
            fixed_bar("an idle connection", IDLE_BAR_KIB, idle[US] / 1024, "KiB"),
        ),
        notes=(
            f"Envoy: at rest {envoy_base / MIB:.1f} MiB, an idle connection {idle[PEER] / 1024:.1f} KiB",
            f"{WORKERS} workers: parent {workers[0] / MIB:.1f} MiB, all together {sum(workers) / MIB:.1f} MiB",
            f"{count} idle connections, one request on each",
        ),
        figures={"rss_mib": sum(base) / MIB, "peer_rss_mib": envoy_base / MIB, "worker_rss_mib": worker_mib,
                 "idle_connection_kib": idle[US] / 1024, "peer_idle_connection_kib": idle[PEER] / 1024},
    )  # fmt: skip


def fixed_bar(what: str, most: float | None, found: float, unit: str) -> Bar:
    """A figure that does not vary from round to round."""
    figure = Estimate(found, found, found)
    return Bar(what, most, figure, verdict(figure, most), f" {unit}" if unit else "")


async def _at_rest(consul: Path) -> tuple[list[int], list[int]]:
    """RSS of each process of a sidecar of one process, and of one with workers: the parent, then the workers."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-bench-")))
        agent = await stack.enter_async_context(ConsulAgent(consul, directory))
        address, _ = await stack.enter_async_context(control_server(directory, core=None))
        mesh = await stack.enter_async_context(MeshClient(address, author="bench"))
        await mesh.apply(read_documents([route()]).values, Options(wait_s=0, force=True))
        words = [sys.executable, "-m", "mesh.cli.main", "sidecar", "--service", "caller", "--control", address]
        words += ["--consul", agent.url, "--outbound", "127.0.0.1:0", "--inbound", "127.0.0.1:0"]
        words += ["--log-level", "warning"]
        return await _sidecar(words, 1, directory), await _sidecar(words, WORKERS, directory)


async def _sidecar(words: list[str], workers: int, directory: Path) -> list[int]:
    """After one table and one scrape."""
    admin = free_port()
    more = ("--admin", f"127.0.0.1:{admin}", "--workers", str(workers), "--instance-id", f"caller-{workers}")
    async with Process.start(*words, *more, log=directory / f"sidecar-{workers}.log") as process:
        await process.until(lambda: answers(admin, "/ready"), what="the sidecar to be ready", timeout_s=30)
        status, _ = await get(admin, "/metrics")
        if status != 200:
            raise BenchError(f"/metrics answered {status}")
        await asyncio.sleep(SETTLE_S)
        return [rss_bytes(pid) for pid in family(process.pid)]


async def _idle_connections(proxy: Proxy, count: int) -> float:
    """Bytes of RSS for each connection that has had one request and now waits."""
    socks: list[socket.socket] = []
    requests = Traffic().requests()

    def connect(number: int) -> None:
        for index in range(number):
            sock = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
            socks.append(sock)
            _ask(sock, requests[index % len(requests)])

    def warm_up() -> None:
        connect(WARM_CONNECTIONS)
        for index in range(WARM_REQUESTS):
            _ask(socks[index % len(socks)], requests[index % len(requests)])

    try:
        await asyncio.to_thread(warm_up)
        await asyncio.sleep(SETTLE_S)
        before = sum(map(rss_bytes, family(proxy.pid)))
        await asyncio.to_thread(connect, count)
        await asyncio.sleep(SETTLE_S)
        return (sum(map(rss_bytes, family(proxy.pid))) - before) / count
    finally:
        for sock in socks:
            sock.close()


def _ask(sock: socket.socket, request: bytes) -> None:
    sock.sendall(request)
    if not sock.recv(65536).startswith(b"HTTP/1.1 200"):
        raise BenchError("an idle connection's one request was not answered with 200")
