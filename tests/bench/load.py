"""Load, and what it cost: wrk drives one proxy at a time, and the proxy's processor time is read around it."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

from tests.bench.machine import LOAD_CORE, CpuTime, cpu_time, pinned
from tests.support.needs import TOOLS

SETTLE_S = 0.1  # what a proxy still writes or sends after the last answer (log lines, spans) counts too
GRACE_S = 30.0
_RESULT = re.compile(rb"RESULT" + rb" (\d+)" * 9)


class BenchError(Exception):
    """Something that makes the figures worthless; the message says what."""


@dataclass(frozen=True, slots=True)
class Run:
    """One proxy under load once. Latencies in microseconds."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    cpu: CpuTime

    @property
    def cpu_us(self) -> float:
        """Processor time of the proxy for each request."""
        return self.cpu.total_s * 1e6 / self.requests

    @property
    def user_us(self) -> float:
        """The part of it spent in the program."""
        return self.cpu.user_s * 1e6 / self.requests

    @property
    def system_us(self) -> float:
        """The part of it spent in the kernel."""
        return self.cpu.system_s * 1e6 / self.requests

    @property
    def busy_ratio(self) -> float:
        """How much of its core the proxy had; well below 1.0 the load generator or a neighbour was the limit."""
        return self.cpu.total_s / self.seconds


async def wrk(port: int, pid: int, script: Path, seconds: int, connections: int) -> Run:
    """Drive the proxy of that port and process. Raises BenchError when a request failed."""
    program = TOOLS["wrk"].find()
    if program is None:
        raise BenchError(f"wrk is absent: {TOOLS['wrk'].remedy}")
    command = pinned(
        LOAD_CORE, program, "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script, f"http://127.0.0.1:{port}/"
    )
    before = cpu_time(pid)
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(seconds + GRACE_S):
            output, _ = await child.communicate()
    except TimeoutError:
        child.kill()
        await child.wait()
        raise BenchError(f"wrk did not end within {seconds + GRACE_S:g} s") from None
    await asyncio.sleep(SETTLE_S)
    used = cpu_time(pid) - before
    found = _RESULT.search(output)
    if found is None:
        raise BenchError(f"wrk said: {output.decode(errors='replace').strip()[:200]}")
    requests, duration_us, p50_us, p99_us, bad_status, *broken = map(int, found.groups())
    if bad_status or any(broken) or not requests:
        kinds = zip(("connecting", "reading", "writing", "timeout"), broken, strict=True)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds if count)
        raise BenchError(
            f"of {requests} requests {bad_status} were answered with an error; broken off: {told or 'none'}"
        )
    return Run(requests, duration_us / 1e6, p50_us, p99_us, used)
