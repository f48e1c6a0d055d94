"""A control server, tables for it, and processes that hold many control streams."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.model.name import Name
from mesh.model.route import BackendRef, Parent, PathMatch, PathType, Route, RouteMatch, Rule, Timeouts
from mesh.model.wire import encode_push_resource, encode_resource
from tests.bench.load import BenchError
from tests.bench.machine import PROXY_CORE, pinned
from tests.support.process import Process

START_S = 60.0
_READY = re.compile(r"ready grpc=(\S+)")


@asynccontextmanager
async def control_server(directory: Path, *, core: int | None = PROXY_CORE) -> AsyncIterator[tuple[str, Process]]:
    """``mesh control`` on free ports, its table in memory: the address, and the process."""
    words: list[str | Path] = [sys.executable, "-m", "mesh.cli.main", "control", "--data", ":memory:"]
    words += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-level", "warning"]
    if core is not None:
        words = pinned(core, *words)
    async with Process.start(*words, log=directory / "control.log") as process:
        await process.until(lambda: _READY.search(process.output()), what="the control server", timeout_s=START_S)
        found = _READY.search(process.output())
        assert found
        yield found[1], process


def table(wanted_bytes: int, timeout_s: float) -> list[Route]:
    """Routes of services s0000, s0001 …, one rule each, that together take about ``wanted_bytes`` on the wire.

    Another ``timeout_s`` makes another table of every one of them.
    """
    routes: list[Route] = []
    total = 0
    while total < wanted_bytes:
        service = Name("default", f"s{len(routes):04}")
        refs = (BackendRef(service, "v1", 90), BackendRef(service, "v2", 10))
        match = RouteMatch(path=PathMatch(PathType.PREFIX, "/api"))
        rule = Rule(matches=(match,), backend_refs=refs, timeouts=Timeouts(request_s=timeout_s))
        routes.append(Route(service, (Parent(service),), (rule,)))
        total += encode_push_resource(encode_resource(routes[-1])).ByteSize()
    return routes


@dataclass(frozen=True, slots=True)
class LineProcess:
    """A process that prints one JSON value a line."""

    name: str
    child: asyncio.subprocess.Process

    async def read(self, timeout_s: float = START_S) -> Any:
        """The next value. Raises BenchError where none comes."""
        assert self.child.stdout
        try:
            async with asyncio.timeout(timeout_s):
                line = await self.child.stdout.readline()
        except TimeoutError:
            raise BenchError(f"{self.name} said nothing for {timeout_s:g} s") from None
        if not line:
            raise BenchError(f"{self.name} ended")
        return json.loads(line)


@asynccontextmanager
async def line_process(name: str, *words: str | Path, log: Path) -> AsyncIterator[LineProcess]:
    """Run it; ended on the way out by its pid. What it says on standard error goes to ``log``."""
    with log.open("ab") as errors:
        child = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors
        )
    try:
        yield LineProcess(name, child)
    finally:
        if child.returncode is None:
            child.terminate()
            try:
                async with asyncio.timeout(10):
                    await child.wait()
            except TimeoutError:
                child.kill()
                await child.wait()
