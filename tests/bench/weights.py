"""From a new weight to its effect: 100 control streams and four sidecars under traffic."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from mesh.client import MeshClient, Options
from mesh.model.gateway_api import read_documents
from mesh.model.name import Name
from tests.bench import upstream
from tests.bench.control_plane import LineProcess, control_server, line_process, table
from tests.bench.fleet import UPSTREAMS, answers
from tests.bench.load import BenchError
from tests.bench.peers import Site
from tests.bench.peers.sidemesh import endpoints, route
from tests.bench.plan import Plan
from tests.bench.results import Bar, Result
from tests.bench.stats import estimate, verdict
from tests.bench.traffic import SERVICE
from tests.support.ports import free_port, free_ports
from tests.support.process import Process

BAR_MS = 200.0
STREAMS, PROCESSES, SIDECARS = 100, 2, 4
OTHER_ROUTES_BYTES = 5_000  # some forty routes beside the one that changes: a mesh of that size
CALLS_PER_S = 250  # through each sidecar
QUIET_S = 0.3  # no sidecar may fall back in that time
EFFECT_S = 10.0
SWITCHES, QUICK_SWITCHES = 15, 5


async def run(plan: Plan) -> Result:
    """Switch all traffic from one version to the other and back. Raises BenchError."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-bench-")))
        ports = tuple(free_ports(UPSTREAMS))
        await stack.enter_async_context(
            Process.start(*upstream.command(directory, ports), log=directory / "upstream.log")
        )
        address, _ = await stack.enter_async_context(control_server(directory, core=None))
        mesh = await stack.enter_async_context(MeshClient(address, author="bench"))
        routes = read_documents([route(rules=1)]).values
        await mesh.apply([*routes, *table(OTHER_ROUTES_BYTES, 1.0)], Options(wait_s=0, force=True))
        await _switch(mesh, "v1")
        share = STREAMS // PROCESSES
        streams = [
            await stack.enter_async_context(
                line_process(
                    f"streams-{n}",
                    *(sys.executable, "-m", "tests.bench.streams", "full", address, str(n * share), str(share)),
                    log=directory / f"streams-{n}.log",
                )
            )
            for n in range(PROCESSES)
        ]
        for one in streams:
            await one.read()
        site = Site("sidecars", directory, 0, 0, ports, 0, 0)
        sidecars = [await _sidecar(stack, site, address, number) for number in range(SIDECARS)]
        second = ",".join(map(str, site.versions["v2"]))
        callers = await stack.enter_async_context(
            line_process(
                "callers",
                *(sys.executable, "-m", "tests.bench.callers", str(CALLS_PER_S), second, *map(str, sidecars)),
                log=directory / "callers.log",
            )
        )
        for _ in range(SIDECARS):
            await callers.read()  # the first answer of each
        compiled_ms, routed_ms = [], []
        for number in range(1 + (QUICK_SWITCHES if plan.is_quick else SWITCHES)):
            wanted = "v1" if number % 2 else "v2"
            begin_s, version = await _switch(mesh, wanted)
            last_stream_s = max([await _compiled(one, version) for one in streams])
            last_sidecar_s = await _routed(callers, wanted)
            await asyncio.sleep(QUIET_S)
            if number:  # the first warms up
                compiled_ms.append((last_stream_s - begin_s) * 1000)
                routed_ms.append((last_sidecar_s - begin_s) * 1000)
    both = [max(pair) for pair in zip(compiled_ms, routed_ms, strict=True)]
    found, streams_found, sidecars_found = map(estimate, (both, compiled_ms, routed_ms))
    return Result(
        "weight-to-effect",
        f"a weight is set, until the last of {STREAMS} streams has compiled it and {SIDECARS} sidecars route by it",
        bars=(
            Bar("until all", BAR_MS, found, verdict(found, BAR_MS), " ms"),
            Bar("until the streams have compiled it", None, streams_found, verdict(streams_found, None), " ms"),
            Bar("until the sidecars route by it", None, sidecars_found, verdict(sidecars_found, None), " ms"),
        ),
        notes=(f"longest of {len(both)}: {max(both):.0f} ms",),
        figures={"took_ms": [round(ms, 1) for ms in both]},
    )


async def _switch(mesh: MeshClient, to: str) -> tuple[float, int]:
    """Send everything to one version; when it was asked for, and the table's version."""
    weights = {"v1": 0, "v2": 0, to: 100}
    begin_s = time.monotonic()
    done = await mesh.set_weights(Name("default", SERVICE), weights, options=Options(wait_s=0, force=True))
    return begin_s, done.version


async def _sidecar(stack: AsyncExitStack, site: Site, control: str, number: int) -> int:
    """A sidecar; the port of its outbound listener."""
    services = site.directory / "services.json"
    services.write_text(json.dumps({"services": {SERVICE: endpoints(site)}}))
    port = free_port()
    process = await stack.enter_async_context(
        Process.start(
            *(sys.executable, "-m", "mesh.cli.main", "sidecar", "--service", "caller", "--control", control),
            *("--instance-id", f"caller-{number}", "--outbound", f"127.0.0.1:{port}", "--inbound", "127.0.0.1:0"),
            *("--admin", "127.0.0.1:0", "--services", services, "--log-level", "warning"),
            log=site.directory / f"sidecar-{number}.log",
        )
    )
    await process.until(lambda: answers(port, "/r0/items/1"), what="the sidecar to forward", timeout_s=30)
    return port


async def _compiled(streams: LineProcess, version: int) -> float:
    while (said := await streams.read(EFFECT_S))["version"] < version:
        pass
    return float(said["at"])


async def _routed(callers: LineProcess, wanted: str) -> float:
    """When the last of the sidecars changed over."""
    changed: dict[int, float] = {}
    while len(changed) < SIDECARS:
        said = await callers.read(EFFECT_S)
        if said["version"] != wanted or said["sidecar"] in changed:
            raise BenchError(f"sidecar {said['sidecar']} went back to {said['version']}")
        changed[said["sidecar"]] = float(said["at"])
    return max(changed.values())
