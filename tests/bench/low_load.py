"""Latency at low load: what a proxy adds to a request when nothing else waits for it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.cases import MAX_TWIN_DIFFERENCE, MAX_TWIN_DIFFERENCE_P99, PEER, TRIO, TWIN, US, LowLoadCase
from tests.bench.fleet import Fleet, fleet
from tests.bench.load import GRACE_S, BenchError
from tests.bench.machine import LOAD_CORE, cpu_time, pinned
from tests.bench.plan import Plan
from tests.bench.results import Bar, Result, Row
from tests.bench.stats import estimate, is_disturbed, percentile, ratios, rotated, verdict

DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class Round:
    """One proxy's round. Microseconds."""

    p50_us: float
    p99_us: float
    cpu_us: float
    user_us: float
    system_us: float


async def run(case: LowLoadCase, plan: Plan) -> Result:
    """One measurement of the case. Raises BenchError."""
    count = -(-(case.quick_samples if plan.is_quick else case.samples) // plan.rounds)
    names = (DIRECT, *plan.only(TRIO))
    rounds: dict[str, list[Round]] = {name: [] for name in names}
    async with fleet(names[1:]) as running:
        for name in names:
            await _one(running, name, case.rate_per_s, case.rate_per_s // 2)
        for number in range(plan.rounds):
            for name in rotated(names, number):
                rounds[name].append(await _one(running, name, case.rate_per_s, count))
    return judge(case, rounds)


async def _one(running: Fleet, name: str, rate_per_s: int, count: int) -> Round:
    proxy = running.proxies.get(name)
    port = proxy.port if proxy else running.upstreams[0]
    words = (sys.executable, "-m", "tests.bench.open_loop", str(port), str(rate_per_s), str(count))
    before = cpu_time(proxy.pid) if proxy else None
    child = await asyncio.create_subprocess_exec(
        *pinned(LOAD_CORE, *words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, limit=1 << 20
    )
    try:
        async with asyncio.timeout(count / rate_per_s + GRACE_S):
            output, errors = await child.communicate()
    except TimeoutError:
        child.kill()
        await child.wait()
        raise BenchError(f"the client of {name} did not end") from None
    if child.returncode:
        raise BenchError(f"the client of {name} failed: {errors.decode(errors='replace')[-1000:]}")
    latencies = [ns / 1000 for ns in json.loads(output)]
    user_us = system_us = 0.0
    if proxy and before:
        used = cpu_time(proxy.pid) - before
        user_us, system_us = used.user_s * 1e6 / count, used.system_s * 1e6 / count
    return Round(percentile(latencies, 0.5), percentile(latencies, 0.99), user_us + system_us, user_us, system_us)


def judge(case: LowLoadCase, rounds: Mapping[str, Sequence[Round]]) -> Result:
    """What the rounds say; latency ratios are of what each proxy adds to the direct way."""

    def each(name: str, figure: str) -> list[float]:
        return [getattr(one, figure) for one in rounds[name]]

    def to_peer(name: str, figure: str) -> list[float]:
        if PEER not in rounds or name in (PEER, DIRECT):
            return []
        base = None if figure == "cpu_us" else each(DIRECT, figure)
        return ratios(each(name, figure), each(PEER, figure), base)

    rows = tuple(
        Row(
            name,
            cpu_us=median(each(name, "cpu_us")),
            user_us=median(each(name, "user_us")),
            system_us=median(each(name, "system_us")),
            requests_per_s=case.rate_per_s,
            busy_ratio=median(each(name, "cpu_us")) * case.rate_per_s / 1e6,
            p50_us=median(each(name, "p50_us")),
            p99_us=median(each(name, "p99_us")),
            ratio=estimate(to_peer(name, "cpu_us")),
            p50_ratio=estimate(to_peer(name, "p50_us")),
            p99_ratio=estimate(to_peer(name, "p99_us")),
        )
        for name in rounds
    )
    ours = next(row for row in rows if row.name == US)
    twin = next((row for row in rows if row.name == TWIN), None)
    return Result(
        case.name,
        case.what,
        rows,
        bars=(
            Bar("p50 added, ratio to Envoy", case.p50_bar, ours.p50_ratio, verdict(ours.p50_ratio, case.p50_bar)),
            Bar("p99 added, ratio to Envoy", case.p99_bar, ours.p99_ratio, verdict(ours.p99_ratio, case.p99_bar)),
        ),
        is_disturbed=twin is not None
        and (
            is_disturbed(twin.p50_ratio.median, MAX_TWIN_DIFFERENCE)
            or is_disturbed(twin.p99_ratio.median, MAX_TWIN_DIFFERENCE_P99)
        ),
        twin_difference=0.0 if twin is None else abs(twin.p50_ratio.median - 1.0),
        notes=()
        if twin is None
        else (f"Envoy to its twin: p50 {twin.p50_ratio.median:.3f}, p99 {twin.p99_ratio.median:.3f}",),
    )
