"""Memory of many HTTP/2 streams that are open and idle, as callers have them who listen for news."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack

from tests.bench.cases import PEER, US
from tests.bench.control_plane import LineProcess, line_process
from tests.bench.fleet import Fleet, fleet
from tests.bench.load import BenchError
from tests.bench.machine import LOAD_CORE, family, pinned, rss_bytes
from tests.bench.memory import MIB, SETTLE_S, fixed_bar
from tests.bench.plan import Plan
from tests.bench.results import Result

NAME = "idle-streams"
BAR_MIB = 150.0
CONNECTIONS, STREAMS = 100, 100  # of each connection: what RFC 9113 §6.5.2 says a server should allow at least
COUNT = CONNECTIONS * STREAMS


async def run(plan: Plan) -> Result:
    """Both proxies, one after the other. Raises BenchError."""
    async with fleet(plan.only((US, PEER)), behind="grpc", holds_streams=True) as running:
        held = {name: await _hold(running, name) for name in running.proxies}
    return judge(held)


async def _hold(running: Fleet, name: str) -> tuple[int, int]:
    """RSS before and with the streams."""
    proxy = running.proxies[name]
    words = ("-m", "tests.bench.streams_client", str(proxy.port), str(CONNECTIONS), str(STREAMS))
    async with AsyncExitStack() as stack:
        before = sum(map(rss_bytes, family(proxy.pid)))
        client: LineProcess = await stack.enter_async_context(
            line_process(
                f"the client of {name}",
                *pinned(LOAD_CORE, sys.executable, *words),
                log=running.directory / f"client-{name}.log",
            )
        )
        said = await client.read()
        if said != {"open": COUNT}:
            raise BenchError(f"{NAME}, {name}: {said.get('failed', said)}")
        await asyncio.sleep(SETTLE_S)
        found = sum(map(rss_bytes, family(proxy.pid)))
        try:
            said = await client.read(timeout_s=0.1)
        except BenchError:
            return before, found  # it had nothing to say: all are still there
        raise BenchError(f"{NAME}, {name}: not all streams stayed: {said}")


def judge(held: dict[str, tuple[int, int]]) -> Result:
    """``held`` is RSS before and with the streams, by proxy."""
    mib = {name: found / MIB for name, (_, found) in held.items()}
    stream_kib = {name: (found - before) / COUNT / 1024 for name, (before, found) in held.items()}
    bars = [
        fixed_bar("resident memory with all of them", BAR_MIB, mib[US], "MiB"),
        fixed_bar("a stream", None, stream_kib[US], "KiB"),
    ]
    notes: tuple[str, ...] = ()
    figures = {"rss_mib": mib[US], "stream_kib": stream_kib[US]}
    if PEER in held:
        bars.insert(1, fixed_bar("the same, in Envoy's", None, mib[US] / mib[PEER], ""))
        notes = (f"Envoy: {mib[PEER]:.1f} MiB with all of them, a stream {stream_kib[PEER]:.1f} KiB",)
        figures |= {"peer_rss_mib": mib[PEER], "peer_stream_kib": stream_kib[PEER]}
    what = f"{COUNT} HTTP/2 streams open and idle, over {CONNECTIONS} connections"
    return Result(NAME, what, bars=tuple(bars), notes=notes, figures=figures)
