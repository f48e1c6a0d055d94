"""Pushing a table to many sidecars: the control server on one core, the streams in two processes on the other."""

from __future__ import annotations

import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from mesh.client import MeshClient, Options
from tests.bench.control_plane import control_server, line_process, table
from tests.bench.load import BenchError
from tests.bench.machine import LOAD_CORE, cpu_time, pinned, rss_bytes
from tests.bench.plan import Plan
from tests.bench.results import Bar, Result
from tests.bench.stats import REPORTED, Estimate, estimate

TABLE_BYTES = 50_000
PROCESSES = 2
WAIT_S = 30.0


async def run(streams: int, plan: Plan) -> Result:
    """Push another whole table some times. Raises BenchError."""
    pushes = plan.rounds if plan.is_quick else max(plan.rounds, 7)
    took_ms: list[float] = []
    cpu_us: list[float] = []
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-bench-")))
        address, control = await stack.enter_async_context(control_server(directory))
        mesh = await stack.enter_async_context(MeshClient(address, author="bench"))
        before_bytes = rss_bytes(control.pid)
        await mesh.apply(table(TABLE_BYTES, 1.0), Options(wait_s=0))
        share = streams // PROCESSES
        clients = [
            await stack.enter_async_context(
                line_process(
                    f"streams-{n}",
                    *pinned(LOAD_CORE, sys.executable, "-m", "tests.bench.streams"),
                    *("light", address, str(n * share), str(share)),
                    log=directory / f"streams-{n}.log",
                )
            )
            for n in range(PROCESSES)
        ]
        for client in clients:
            await client.read()
        connected_bytes = rss_bytes(control.pid)
        for number in range(pushes + 1):
            used = cpu_time(control.pid)
            done = await mesh.apply(table(TABLE_BYTES, number + 2.0), Options(wait_s=WAIT_S))
            if len(done.answers) != share * PROCESSES or not done.is_acked_by_all:
                raise BenchError(f"{len(done.answers)} of {streams} streams answered, not all with an ACK")
            if number:  # the first warms up
                took_ms.append(max(answer.took_s for answer in done.answers) * 1000)
                cpu_us.append((cpu_time(control.pid) - used).total_s * 1e6 / streams)
    cpu = estimate(cpu_us)
    stream_kib = (connected_bytes - before_bytes) / 1024 / streams
    return Result(
        f"push-{streams}",
        f"a table of {TABLE_BYTES // 1000} KB to {streams} streams, until the last ACK",
        bars=(
            Bar("until all have ACKed", None, estimate(took_ms), REPORTED, " ms"),
            Bar("CPU of the server, with checking and storing the table, for each stream", None, cpu, REPORTED, " µs"),
            Bar("memory of the server for each stream", None, Estimate(*[stream_kib] * 3), REPORTED, " KiB"),
        ),
        figures={"took_ms": [round(ms, 1) for ms in took_ms]},
    )
