"""Load, and what it cost: wrk, or our own gRPC or WebSocket client, drives one proxy at a time.

The proxy's processor time is read around it.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Sequence
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
    """Or messages, where the load is one stream of them."""
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


async def wrk(port: int, pid: int, script: Path, seconds: int, connections: int, *, is_tls: bool = False) -> Run:
    """Drive the proxy of that port and process. Raises BenchError when a request failed."""
    program = TOOLS["wrk"].find()
    if program is None:
        raise BenchError(f"wrk is absent: {TOOLS['wrk'].remedy}")
    url = f"{'https' if is_tls else 'http'}://127.0.0.1:{port}/"
    command = pinned(LOAD_CORE, program, "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script, url)
    output, used = await _drive("wrk", command, pid, seconds + GRACE_S)
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


async def calls(port: int, pid: int, words: Sequence[str], seconds: int) -> Run:
    """Drive the proxy with tests.bench.grpc_client, of which ``words`` follow the time. Raises BenchError.

    ``words`` begins with what it is to do.
    """
    kind, *more = words
    return await _ours("gRPC", pid, seconds, "tests.bench.grpc_client", kind, str(port), str(seconds), *more)


async def messages(port: int, pid: int, connections: int, seconds: int) -> Run:
    """Drive the proxy with tests.bench.websocket_client. Raises BenchError."""
    words = (str(port), str(seconds), str(connections))
    return await _ours("WebSocket", pid, seconds, "tests.bench.websocket_client", *words)


async def _ours(what: str, pid: int, seconds: int, *words: str) -> Run:
    command = pinned(LOAD_CORE, sys.executable, "-m", *words)
    output, used = await _drive(f"the {what} client", command, pid, seconds + GRACE_S)
    try:
        said = json.loads(output)
    except ValueError:
        raise BenchError(f"the {what} client said: {output.decode(errors='replace').strip()[-500:]}") from None
    if not said["count"]:
        raise BenchError("nothing was answered")
    return Run(said["count"], said["seconds"], said["p50_us"], said["p99_us"], used)


async def _drive(what: str, command: list[str | Path], pid: int, timeout_s: float) -> tuple[bytes, CpuTime]:
    """Run a load generator to its end: what it said, and the processor time of ``pid`` meanwhile."""
    before = cpu_time(pid)
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await child.communicate()
    except TimeoutError:
        child.kill()
        await child.wait()
        raise BenchError(f"{what} did not end within {timeout_s:g} s") from None
    await asyncio.sleep(SETTLE_S)
    return output, cpu_time(pid) - before
