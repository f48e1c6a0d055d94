"""Where a sidecar's time goes: perf, while it is driven. Needs perf and the right to use it."""

from __future__ import annotations

import asyncio
import shutil

from tests.bench.cases import US, HttpCase
from tests.bench.fleet import fleet
from tests.bench.http_case import drive
from tests.bench.load import BenchError

SECONDS = 5
LINES = 40


async def profile(case: HttpCase) -> str:
    """The report of ``perf``: shares of processor time by program part. Raises BenchError."""
    perf = shutil.which("perf")
    if perf is None:
        raise BenchError("perf is absent: sudo apt-get install linux-perf")
    async with fleet((US,), logs=case.logs, trace_ratio=case.trace_ratio, behind=case.behind) as running:
        proxy = running.proxies[US]
        await drive(proxy, case, running.directory, 1)
        data = running.directory / "perf.data"
        options = ("-q", "-e", "cpu-clock", "-F", "997", "-o", data, "-p", str(proxy.pid))
        recorder = await asyncio.create_subprocess_exec(
            perf, "record", *options, "--", "sleep", str(SECONDS), stderr=asyncio.subprocess.PIPE
        )
        await drive(proxy, case, running.directory, SECONDS)
        _, errors = await recorder.communicate()
        if recorder.returncode:
            raise BenchError(f"perf record failed: {errors.decode(errors='replace')[-500:]}")
        parts = []
        for sort in ("dso", "dso,symbol"):
            child = await asyncio.create_subprocess_exec(
                *(perf, "report", "--stdio", "-i", data, "--sort", sort, "--percent-limit", "0.5"),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            output, _ = await child.communicate()
            # perf pads with blanks, and ends with columns that are empty here.
            lines = [
                line.rstrip(" -") for line in output.decode(errors="replace").splitlines() if line and line[0] != "#"
            ]
            parts.append("\n".join(lines[:LINES]))
    return "\n\n".join(parts)
