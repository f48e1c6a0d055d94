"""``python -m tests.bench``: measures, prints as it goes, writes build/bench.json and docs/benchmarks.md.

python -m tests.bench                                      everything, 20 minutes at most
python -m tests.bench --quick                              a rough answer in three
python -m tests.bench --case http1-full --rounds 3 --proxies envoy
                                                           one case, us and Envoy; writes no files
python -m tests.bench --case http1-full --profile          where the time goes, by perf
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import uvloop

from tests.bench import http_case, idle_streams, low_load, memory, push, weights
from tests.bench.cases import EDGE_CASES, HTTP2_CASES, HTTP_CASES, LOW_LOAD, PEER, US, HttpCase
from tests.bench.fleet import absent
from tests.bench.load import BenchError
from tests.bench.machine import cores, description, raise_file_limit
from tests.bench.plan import Plan
from tests.bench.profile import profile
from tests.bench.report import as_json, block, markdown
from tests.bench.results import Result
from tests.bench.stats import MISSED, REPORTED
from tests.bench.versions import versions
from tests.support.needs import REPO

Measure = Callable[[Plan], Awaitable[Result]]
PROFILE_S = 20.0  # what a profile takes, and a little more
SPARE_S = 10.0  # what a repeat may take longer than the first time

_DRIVEN = (*HTTP_CASES, *HTTP2_CASES, *EDGE_CASES)
CASES: dict[str, Measure] = {
    **{case.name: functools.partial(http_case.run, case) for case in _DRIVEN},
    LOW_LOAD.name: functools.partial(low_load.run, LOW_LOAD),
    "memory": memory.run,
    idle_streams.NAME: idle_streams.run,
    "push-200": functools.partial(push.run, 200),
    "push-1000": functools.partial(push.run, 1000),
    "weight-to-effect": weights.run,
}
NOT_QUICK = {case.name for case in _DRIVEN if not case.in_quick} | {idle_streams.NAME, "push-1000"}


def main() -> int:
    """The exit status: 1 when a case could not be run."""
    arguments = _arguments()
    plan = Plan.quick() if arguments.quick else Plan.full()
    plan = replace(
        plan,
        rounds=arguments.rounds or plan.rounds,
        is_exact=plan.is_exact or arguments.rounds is not None,
        run_s=arguments.seconds or plan.run_s,
        proxies=tuple(arguments.proxies.split(",")) if arguments.proxies else (),
    )
    names = arguments.case or [name for name in CASES if not (plan.is_quick and name in NOT_QUICK)]
    if arguments.profile:
        return uvloop.run(_profile(names))
    if missing := [remedy for name, remedy in absent().items() if name in ("wrk", "nginx", PEER)]:
        print("\n".join(missing), file=sys.stderr)
        return 1
    if cores() < 2:
        print("one core: the proxy and the load would share it, and every figure would be wrong", file=sys.stderr)
        return 1
    raise_file_limit()
    machine = description() | {"versions": ", ".join(f"{name} {number}" for name, number in versions().items())}
    machine |= {f"not run: {name}": remedy for name, remedy in absent().items()}
    for key, value in machine.items():
        print(f"{key}: {value}")
    print(flush=True)
    results = uvloop.run(_measure(names, plan))
    if not arguments.case:
        _write(list(results.values()), machine, plan)
    return 1 if any(result.not_run for result in results.values()) else 0


async def _measure(names: list[str], plan: Plan) -> dict[str, Result]:
    results: dict[str, Result] = {}
    took_s: dict[str, float] = {}
    for name in names:
        begun = time.monotonic()
        results[name] = await _one(name, plan)
        took_s[name] = time.monotonic() - begun
    if not plan.is_quick:
        # Those with a bar come first: should the time end, they are what counts.
        disturbed = [name for name, result in results.items() if result.is_disturbed]
        for name in sorted(disturbed, key=lambda name: results[name].verdict == REPORTED):
            results[name] = await _again(results[name], plan, took_s[name] + SPARE_S)
        for case in _DRIVEN:
            if case.name in results and results[case.name].verdict == MISSED and plan.left_s > PROFILE_S:
                results[case.name] = replace(results[case.name], profile=await _where_time_goes(case))
    return results


async def _one(name: str, plan: Plan) -> Result:
    if plan.left_s < 0:
        result = Result(name, "", not_run="the time was up")
    else:
        try:
            result = await CASES[name](plan)
        except (BenchError, OSError, RuntimeError, TimeoutError) as error:
            first, _, more = str(error).partition("\n")
            print(more, file=sys.stderr, flush=True)  # a program's own last words, which may name places
            result = Result(name, "", not_run=first)
    print(block(result), flush=True)
    return result


async def _again(first: Result, plan: Plan, needs_s: float) -> Result:
    """Repeat a disturbed case, once; of both the one in which the twins differed less stands.

    One that would not end in time is not begun.
    """
    if plan.left_s < needs_s:
        return replace(first, notes=(*first.notes, "not repeated: the time was up"))
    print(f"{first.name} was disturbed and is repeated.")
    second = await _one(first.name, plan)
    if second.not_run or second.twin_difference > first.twin_difference:
        return replace(first, was_repeated=True)
    return replace(second, was_repeated=True)


async def _where_time_goes(case: HttpCase) -> str:
    print(f"{case.name} missed its bar: where its time goes")
    try:
        found = await profile(case)
    except BenchError as error:
        found = f"no profile: {error}"
    print(found, flush=True)
    return found


async def _profile(names: list[str]) -> int:
    case = next((case for case in _DRIVEN if case.name in names), HTTP_CASES[0])
    try:
        print(f"{case.name}, {US}\n\n{await profile(case)}")
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _write(results: list[Result], machine: dict[str, str], plan: Plan) -> None:
    (REPO / "build").mkdir(exist_ok=True)
    (REPO / "build/bench.json").write_text(json.dumps(as_json(results, machine, plan), indent=1) + "\n")
    page = REPO / "docs/benchmarks.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(markdown(results, machine, plan))
    print("written: build/bench.json, docs/benchmarks.md")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, fewer cases: three minutes")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this case; repeatable; no files")
    parser.add_argument("--rounds", type=int, help="rounds of each case")
    parser.add_argument("--seconds", type=int, help="of load in each round")
    parser.add_argument("--proxies", metavar="NAME,…", help="compare with these only, such as envoy,envoy-2")
    parser.add_argument("--profile", action="store_true", help="no figures: where the sidecar's time goes, by perf")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
