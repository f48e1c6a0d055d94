"""Runs an HttpCase: warm up, then rounds in rotated order, then what the rounds say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from tests.bench.cases import LEAST_ROUNDS, MAX_TWIN_DIFFERENCE, PEER, TRIO, TWIN, US, HttpCase
from tests.bench.fleet import Fleet, Proxy, fleet
from tests.bench.load import BenchError, Run, calls, messages, wrk
from tests.bench.plan import Plan
from tests.bench.results import Bar, Result, Row
from tests.bench.stats import estimate, is_disturbed, ratios, rotated, verdict
from tests.bench.traffic import wrk_script

SPANS_WITHIN_S = 3.0  # both send what they have every second
LEAST_BUSY_RATIO = 0.5  # a proxy that mostly waits, or a load generator that is the limit
LEAST_SPANS_RATIO = 0.5  # queues may overflow while the sink shares its core with the load

Runs = Mapping[str, Sequence[Run]]


async def run(case: HttpCase, plan: Plan) -> Result:
    """One measurement of the case. Raises BenchError."""
    wanted = plan.only(case.quick_proxies if plan.is_quick else case.proxies)
    async with fleet(wanted, logs=case.logs, trace_ratio=case.trace_ratio, behind=case.behind) as running:
        names = list(running.proxies)
        runs: dict[str, list[Run]] = {name: [] for name in names}
        for name in names:
            await _one(running, name, case, plan.warm_up_s)
        for number in range(plan.rounds_of(case.rounds)):
            # The others need no narrow interval, and time is short.
            due = names if number < LEAST_ROUNDS else [name for name in names if name in TRIO]
            for name in rotated(due, number):
                runs[name].append(await _one(running, name, case, plan.run_s))
        # A stream is one request in each round, by chance none of them recorded; TCP has no spans.
        if case.load not in ("grpc-stream", "websocket") and case.behind != "tcp":
            await _check_spans(running, runs, case.trace_ratio)
    return judge(case, runs)


async def drive(proxy: Proxy, case: HttpCase, directory: Path, seconds: int) -> Run:
    """The case's load on one proxy. Raises BenchError."""
    if case.load == "grpc-stream":
        return await calls(proxy.port, proxy.pid, ("stream",), seconds)
    if case.load == "websocket":
        return await messages(proxy.port, proxy.pid, case.connections, seconds)
    if case.load == "grpc-unary":
        words = ("unary", str(case.connections), str(case.streams))
        return await calls(proxy.port, proxy.pid, words, seconds)
    script = directory / "requests.lua"
    if not script.exists():
        script.write_text(wrk_script(case.traffic.requests()))
    return await wrk(proxy.port, proxy.pid, script, seconds, case.connections, is_tls=case.behind == "tls")


async def _one(running: Fleet, name: str, case: HttpCase, seconds: int) -> Run:
    try:
        return await drive(running.proxies[name], case, running.directory, seconds)
    except BenchError as error:
        raise BenchError(f"{case.name}, {name}: {error}") from error


async def _check_spans(running: Fleet, runs: Runs, trace_ratio: float) -> None:
    """A proxy that should have traced and did not was measured without its tracing. Raises BenchError."""
    due = {name: sum(run.requests for run in runs.get(name, ())) * trace_ratio for name in (US, PEER)}
    deadline_s = time.monotonic() + SPANS_WITHIN_S
    while True:
        spans = await running.spans()
        silent = [name for name in due if spans.get(name, 0) < due[name] * LEAST_SPANS_RATIO]
        if not silent:
            return
        if time.monotonic() > deadline_s:
            told = ", ".join(f"{name} sent {spans.get(name, 0)} spans of {due[name]:.0f}" for name in silent)
            raise BenchError(f"tracing was not on: {told}")
        await asyncio.sleep(0.2)


def judge(case: HttpCase, runs: Runs) -> Result:
    """What the rounds say."""

    def each(name: str, figure: str) -> list[float]:
        return [getattr(run, figure) for run in runs[name]]

    def to_peer(name: str, figure: str) -> list[float]:
        ours = each(name, figure)
        return ratios(ours, each(PEER, figure)[: len(ours)])

    rows = []
    for name, rounds in runs.items():
        has_peer = PEER in runs and name != PEER
        row = Row(
            name,
            cpu_us=median(each(name, "cpu_us")),
            user_us=median(each(name, "user_us")),
            system_us=median(each(name, "system_us")),
            requests_per_s=median(run.requests / run.seconds for run in rounds),
            busy_ratio=median(each(name, "busy_ratio")),
            p50_us=median(each(name, "p50_us")),
            p99_us=median(each(name, "p99_us")),
            ratio=estimate(to_peer(name, "cpu_us") if has_peer else ()),
            p50_ratio=estimate(to_peer(name, "p50_us") if has_peer else ()),
            p99_ratio=estimate(to_peer(name, "p99_us") if has_peer else ()),
        )
        rows.append(row)
    ours = next(row for row in rows if row.name == US)
    twin = next((row for row in rows if row.name == TWIN), None)
    notes = [] if twin is None else [f"Envoy to its twin: {twin.ratio.median:.3f}"]
    notes += (
        f"{row.name} had only {row.busy_ratio:.0%} of its core: it waited for something else than its own work"
        for row in rows
        if row.name in (US, PEER) and row.busy_ratio < LEAST_BUSY_RATIO
    )
    return Result(
        case.name,
        case.what,
        tuple(rows),
        bars=(Bar(f"CPU per {case.counted}, ratio to Envoy", case.bar, ours.ratio, verdict(ours.ratio, case.bar)),),
        is_disturbed=twin is not None and is_disturbed(twin.ratio.median, MAX_TWIN_DIFFERENCE),
        twin_difference=0.0 if twin is None else abs(twin.ratio.median - 1.0),
        notes=tuple(notes),
    )
