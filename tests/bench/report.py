"""Results as text: on the terminal as they come, docs/benchmarks.md and build/bench.json at the end. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.bench.cases import PEER, TWIN, US
from tests.bench.plan import Plan
from tests.bench.results import Bar, Result, Row
from tests.bench.stats import Estimate

_NAMES = {US: "Sidemesh", PEER: "Envoy", TWIN: "Envoy (twin)", "nginx": "nginx", "haproxy": "HAProxy",
          "traefik": "Traefik", "aiohttp": "plain aiohttp", "direct": "no proxy"}  # fmt: skip
_COLUMNS = ("µs CPU", "program", "kernel", "requests/s", "core busy", "p50 µs", "p99 µs", "CPU to Envoy", "95 %",
            "p50 to Envoy", "p99 to Envoy")  # fmt: skip


def block(result: Result) -> str:
    """A case for the terminal."""
    lines = [f"{result.name}: {result.what}"]
    if result.not_run:
        return f"{lines[0]}\n  not run: {result.not_run}\n"
    if result.rows:
        cells = [("", *_COLUMNS), *((_NAMES[row.name], *_cells(row)) for row in result.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for name, *figures in cells:
            padded = "  ".join(figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True))
            lines.append(f"  {name.ljust(widths[0])}  {padded}")
    lines += [f"  {bar}" for bar in result.bars]
    lines += [f"  {note}" for note in result.notes]
    lines.append(f"  => {verdict_words(result)}")
    return "\n".join(lines) + "\n"


def verdict_words(result: Result) -> str:
    """The verdict, by how much a bar was missed, and whether the machine was quiet."""
    words = [result.verdict]
    words += [
        f"{bar.what} is {bar.found.median / bar.most - 1:+.0%} from the bar"
        for bar in result.bars
        if bar.most and bar.verdict in ("missed", "undecided") and bar.found.exists
    ]
    if result.is_disturbed:
        words.append("disturbed" + (" (also when repeated)" if result.was_repeated else ""))
    elif result.was_repeated:
        words.append("repeated, since the first run was disturbed")
    return ", ".join(words)


def as_json(results: Iterable[Result], machine: Mapping[str, str], plan: Plan) -> dict[str, Any]:
    """build/bench.json."""
    return {
        "machine": dict(machine),
        "quick": plan.is_quick,
        "rounds": plan.rounds,
        "seconds_per_run": plan.run_s,
        "cases": [result.as_json() for result in results],
    }


def markdown(results: Sequence[Result], machine: Mapping[str, str], plan: Plan) -> str:
    """docs/benchmarks.md."""
    parts = [
        "# Benchmarks\n",
        "Written by `make bench`; do not edit. Run it on your own machine: ratios travel better than microseconds.\n",
        _warning(plan),
        "## What stands\n",
        _table(
            ("case", "figure", "median", "95 %", "bar", "verdict"), (_bar_row(r, b) for r in results for b in r.bars)
        ),
        _not_run(results),
        "## Machine\n",
        _table(("", ""), machine.items()),
        _method(plan),
        "## All figures\n",
    ]
    for result in results:
        parts.append(
            f"### {result.name}\n\n{result.what[:1].upper()}{result.what[1:]}. Verdict: {verdict_words(result)}.\n"
        )
        if result.rows:
            parts.append(_table(("", *_COLUMNS), ((_NAMES[row.name], *_cells(row)) for row in result.rows)))
        if result.profile:
            parts.append(f"Where its time goes, by perf:\n\n```\n{result.profile}\n```\n")
        if result.notes:
            parts.append("\n".join(f"- {note}" for note in result.notes) + "\n")
    return "\n".join(part for part in parts if part)


def _cells(row: Row) -> tuple[str, ...]:
    has_cpu = row.cpu_us > 0
    return (
        f"{row.cpu_us:.1f}" if has_cpu else "",
        f"{row.user_us:.1f}" if has_cpu else "",
        f"{row.system_us:.1f}" if has_cpu else "",
        f"{row.requests_per_s:.0f}",
        f"{row.busy_ratio:.0%}" if has_cpu else "",
        f"{row.p50_us:.0f}" if row.p50_us else "",  # none where the load is one stream
        f"{row.p99_us:.0f}" if row.p99_us else "",
        _median(row.ratio),
        f"{row.ratio.low:.2f}–{row.ratio.high:.2f}" if row.ratio.exists else "",
        _median(row.p50_ratio),
        _median(row.p99_ratio),
    )


def _median(found: Estimate) -> str:
    return f"{found.median:.2f}" if found.exists else ""


def _bar_row(result: Result, bar: Bar) -> tuple[str, ...]:
    def figure(value: float) -> str:
        return f"{value:.3g}{bar.unit}" if bar.found.exists else ""

    varies = bar.found.exists and bar.found.low != bar.found.high
    interval = f"{bar.found.low:.3g}–{bar.found.high:.3g}" if varies else ""
    most = "" if bar.most is None else f"≤ {bar.most:g}{bar.unit}"
    mark = " (disturbed)" if result.is_disturbed else ""
    return result.name, bar.what, figure(bar.found.median), interval, most, bar.verdict + mark


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _not_run(results: Sequence[Result]) -> str:
    lines = [f"- {result.name}: {result.not_run}" for result in results if result.not_run]
    return "Not run:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _warning(plan: Plan) -> str:
    if not plan.is_quick:
        return ""
    return (
        "**A quick run: few rounds, some cases left out, nothing repeated, the twin in http1-full and at low load only. "
        "The figures are rough.**\n"
    )


def _method(plan: Plan) -> str:
    return f"""\
## Method

- Each proxy runs in one process with one worker, pinned to core 0; the load generator and the upstream (one nginx that
  listens on ten ports, answers of 66 bytes) share core 1. Everything is on loopback.
- Load: `wrk -t1 -c64` (16 connections for 1 MiB) with 1000 different requests made beforehand: ten routes, varying
  paths and queries, eight or nine header fields (about 480 bytes), a traceparent on each, a request id on half.
- gRPC: a client and a server of the benchmark's own, precomputed frames on uvloop, since h2load's requests are all alike
  but for the path. Unary calls: ten fields, which all go into the dynamic table, a traceparent of its own on each, a
  message of 20 bytes that is echoed, with gRPC's trailers. The stream: messages of 100 bytes, one DATA frame each, both
  ways at once; figures are for a message there and back, and there are no latencies. http1-to-http2: wrk's load as
  before, and the same nginx by HTTP/2 with prior knowledge.
- TLS: wrk with https, nginx with a certificate, ECDSA P-256, kept connections; both proxies verify it by its authority.
  A sidecar shows its certificate at its inbound listener and has its routes at its outbound one; to do all of it in one
  process, as one listener of Envoy does, the outbound listener is given the certificate here.
- WebSocket: a client and an echo of the benchmark's own, on uvloop: messages of 1 KiB, masked beforehand with keys of
  their own, one at a time on each of 64 connections, which are opened before the clock runs. Both ends compare what
  comes with what it should be.
- CPU is user and system time of the proxy's process with all threads and workers, out of /proc, divided by the
  requests answered. "Core busy" is how much of its core the proxy had.
- {plan.rounds} rounds or more of {plan.run_s:g} s for each proxy after {plan.warm_up_s:g} s of warming up, all proxies in each
  round, in an order that rotates; Sidemesh, Envoy and its twin go on alone to 11 rounds, or to 21 where the bar is
  near. Ratios are taken within a round; the median of the rounds stands, with its 95 %
  bootstrap interval. A bar is *met* or *missed* when the whole interval is on one side of it, else *undecided*.
- A second Envoy just like the first runs in each case. Where the two differ by more than 5 % (10 % for p99) the run
  counts as *disturbed* and is repeated once; of both runs the one in which they differed less stands.
- Envoy and Sidemesh have on: ten prefix routes, a split 90/10 between two versions of five endpoints each, least
  request of two choices, a timeout of 15 s, retries, request id, x-forwarded-for, via, metrics, and OTLP tracing to a
  real local backend: one span for 1 % of the requests by the proxy's own decision, in batches of 512 or each second.
  Traefik has the routes, the split, retries and metrics; nginx and HAProxy the routes, the split and the headers; none
  of them traces. Plain aiohttp only forwards.
- Low load: one connection, requests by the clock 500 times a second; the figure is what a proxy adds to the time
  without one.
- Memory: resident pages. At rest: with a control stream, a Consul client and the admin pages, after one table and one
  scrape. Idle connections: what 4000 of them (1000 in a quick run) add, after one request on each.
- Idle streams: resident memory while 100 connections hold 100 gRPC streams each, a message there and back on each of
  them, and no end; without timeouts, and with limits above that number.
- Push: the server on core 0, the streams on core 1; a table in which every route has changed. Weight to effect: the
  clock runs from the call that sets the weight until the last of 100 streams (the sidecar's own feed and table,
  in two processes) has compiled the table of 27 routes, and each of four sidecars has sent its first request to the
  other version, with 250 requests/s through each. All of them share this machine's cores.
"""
