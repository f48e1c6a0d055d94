"""The demo's load: a steady stream of GETs, and of POSTs with an Idempotency-Key, into frontend's sidecar.

A process of its own, so that measuring does not slow what it measures. It starts requests at a fixed rate whatever
the answers do (an open loop), and counts each in the window it was started in. Commands come as lines on standard
input: ``window NAME`` begins a new window. Reports go as lines of JSON to standard output, four a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import uvloop

REPORT_S = 0.25
TIMEOUT_S = 15.0
POST_EVERY = 5
MAX_TOLD_FAILURES = 20
MAX_OPEN = 500


@dataclass
class Window:
    """What came of the requests that were started in it."""

    name: str
    began_s: float
    sent: int = 0
    done: int = 0
    failed: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)


class Load:
    """See the module."""

    def __init__(self, url: str, rate: float) -> None:
        """``rate`` requests a second to ``url``."""
        self._url = url
        self._rate = rate
        self._windows = [Window("start", time.monotonic())]
        self._failures: list[dict[str, Any]] = []
        self._recent_ms: list[float] = []
        self._open: set[asyncio.Task[None]] = set()
        self._number = 0
        self._is_over = False

    async def run(self) -> None:
        """Until standard input ends; then wait for what is open and report once more."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session, asyncio.TaskGroup() as group:
            group.create_task(self._send(session, group))
            group.create_task(self._report())
            while line := (await reader.readline()).decode().strip():
                self._windows.append(Window(line.removeprefix("window "), time.monotonic()))
            self._is_over = True
        self._print(is_last=True)

    async def _send(self, session: aiohttp.ClientSession, group: asyncio.TaskGroup) -> None:
        due = time.monotonic()
        while not self._is_over:
            due = max(due + 1.0 / self._rate, time.monotonic() - 0.1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if len(self._open) >= MAX_OPEN:
                continue
            self._number += 1
            window = self._windows[-1]
            window.sent += 1
            task = group.create_task(self._one(session, window, self._number))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _one(self, session: aiohttp.ClientSession, window: Window, number: int) -> None:
        began = time.monotonic()
        is_post = number % POST_EVERY == 0
        headers = {"idempotency-key": str(uuid.uuid4())} if is_post else {}
        method, data = ("POST", b'{"stars": 5}') if is_post else ("GET", None)
        status, told = 0, ""
        path: list[dict[str, str]] = []
        try:
            async with session.request(method, f"{self._url}/products/{number}", headers=headers, data=data) as answer:
                status = answer.status
                text = await answer.text()
                told = answer.headers.get("proxy-status") or text[:200]
                path = json.loads(text)["path"] if 200 <= status < 300 else []
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            told, status = repr(error), 0
        took_ms = (time.monotonic() - began) * 1000.0
        window.done += 1
        window.latencies_ms.append(took_ms)
        self._recent_ms.append(took_ms)
        if not path:
            window.failed += 1
            if len(self._failures) < MAX_TOLD_FAILURES:
                self._failures.append({"request": f"{method} /products/{number}", "status": status, "told": told})
        for step in path:
            if step["service"] == "reviews":
                window.versions[step["version"]] = window.versions.get(step["version"], 0) + 1

    async def _report(self) -> None:
        while not self._is_over:
            await asyncio.sleep(REPORT_S)
            self._print(is_last=False)

    def _print(self, *, is_last: bool) -> None:
        recent, self._recent_ms = self._recent_ms, []
        report = {
            "is_last": is_last,
            "open": len(self._open),
            "recent": {"count": len(recent), "seconds": REPORT_S, **_percentiles(recent)},
            "windows": [
                {
                    "name": w.name,
                    "sent": w.sent,
                    "done": w.done,
                    "failed": w.failed,
                    "versions": w.versions,
                    **_percentiles(w.latencies_ms),
                }
                for w in self._windows
            ],
            "failures": self._failures,
        }
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {"p50_ms": 0.0, "p99_ms": 0.0}
    ordered = sorted(values)
    return {"p50_ms": ordered[len(ordered) // 2], "p99_ms": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]}


def main() -> None:
    """Entry point: ``python -m mesh.cli.demo.load URL RATE``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("rate", type=float)
    given = parser.parse_args()
    uvloop.run(Load(given.url, given.rate).run())


if __name__ == "__main__":
    main()
