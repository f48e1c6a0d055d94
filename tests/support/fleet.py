"""A mesh of real processes: `mesh control`, sidecars, programs, and a steady load that remembers every answer.

async with Fleet(tmp_path) as fleet:
control = await fleet.control()
pay = await fleet.instance("pay")
caller = await fleet.sidecar("caller")
await caller.until_usable("pay", 1)
async with fleet.load(caller, "pay") as load:
await control.kill()
await load.until_done(200)
assert not load.failures
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp

from mesh.client import ChangeResult, MeshClient, MeshError, Options, RefusedError
from mesh.model.name import Name
from mesh.tasks import Tasks
from tests.support.ports import free_port, free_ports
from tests.support.process import Process, until

START_S = 20.0
ANSWER_S = 15.0
MAX_OPEN = 200

MESH = (sys.executable, "-m", "mesh.cli.main")
PROGRAM = (sys.executable, "-m", "tests.support.program")
RATE = 60.0
"""Requests a second: enough to hit a gap of 50 ms, little enough for two shared cores."""


@dataclass
class Control:
    """A control server that can be killed and started anew on its ports, with its store."""

    fleet: "Fleet"
    port: int
    http: int
    command: tuple[str | Path, ...]
    process: Process

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def kill(self) -> None:
        await self.process.kill()

    async def restart(self) -> None:
        self.process = self.fleet.start("control", *self.command)
        await self.until_serving()

    async def until_serving(self) -> None:
        await self.process.until(self._answers, what="the control server", timeout_s=START_S)

    async def _answers(self) -> bool:
        with contextlib.suppress(MeshError):
            await self.status()
            return True
        return False

    async def status(self) -> dict[str, Any]:
        """Connected sidecars by node."""
        async with MeshClient(self.address) as client:
            return {s.node: s for s in (await client.status()).sidecars}

    async def set_weights(self, service: str, **weights: int) -> ChangeResult:
        async with MeshClient(self.address) as client:
            while True:
                try:
                    return await client.set_weights(Name("default", service), weights, options=Options(reason="test"))
                except RefusedError as error:
                    # A registry that has just started knows all instances after one lease; operators wait as well.
                    if "has just started" not in str(error):
                        raise
                    await asyncio.sleep(0.2)

    async def until_acked(self, *nodes: str) -> None:
        """Until all of these run the newest table."""

        async def acked() -> bool:
            status = await self.status()
            return all(node in status and status[node].state == "acked" for node in nodes)

        await self.process.until(acked, what=f"ACKs of {nodes}", timeout_s=START_S)


@dataclass
class SidecarProcess:
    """A sidecar, or a `mesh run` with its program; ``node`` is its name in `mesh status`."""

    node: str
    process: Process
    outbound: int
    inbound: int
    admin: int
    command: tuple[str | Path, ...]

    def url(self, path: str = "/") -> str:
        """Where a local program calls out."""
        return f"http://127.0.0.1:{self.outbound}{path}"

    async def page(self, name: str) -> Any:
        """An admin page as JSON."""
        return json.loads((await get(f"http://127.0.0.1:{self.admin}/{name}?format=json")).body)

    async def metric(self, name: str) -> float:
        """The sum of a family's samples."""
        text = (await get(f"http://127.0.0.1:{self.admin}/metrics")).body.decode()
        lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    async def is_ready(self) -> bool:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            return (await get(f"http://127.0.0.1:{self.admin}/ready")).status == 200
        return False

    async def until_ready(self) -> Self:
        await self.process.until(self.is_ready, what=f"{self.node} to be ready", timeout_s=START_S)
        return self

    async def until_listening(self) -> Self:
        await self.process.until_logged("outbound listens on", timeout_s=START_S)
        return self

    async def endpoints(self, service: str) -> dict[str, str]:
        """What it knows of a service: endpoint id to health."""
        pages = await self.page("clusters")
        return {e["id"]: e["health"] for page in pages if page["service"] == service for e in page["endpoints"]}

    async def until_usable(self, service: str, count: int) -> None:
        """Until it may send to exactly that many endpoints of a service, which a request makes it watch."""

        async def enough() -> bool:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                await get(self.url("/warm-up"), {"host": service})
                found = await self.endpoints(service)
                return sum(health in {"passing", "warning", "unknown"} for health in found.values()) == count
            return False

        await self.process.until(enough, what=f"{count} usable endpoints of {service}", timeout_s=START_S)

    def rss_bytes(self) -> int:
        statm = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(statm.split()[1]) * 4096


@dataclass
class Instance:
    """A program and its sidecar, as two processes."""

    program: Process
    sidecar: SidecarProcess
    port: int

    async def kill(self) -> None:
        """Both at once, as a machine dies."""
        await asyncio.gather(self.sidecar.process.kill(), self.program.kill())


@dataclass(slots=True)
class Answer:
    """What came back; ``status`` 0: nothing whole, ``error`` says what."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: str = ""
    method: str = "GET"
    began_s: float = 0.0
    took_s: float = 0.0

    @property
    def told(self) -> Any:
        """The program's JSON."""
        return json.loads(self.body)

    @property
    def flag(self) -> str:
        """The response flag out of Proxy-Status; "" where an endpoint answered."""
        _, found, rest = self.headers.get("proxy-status", "").partition('details="')
        return rest.split(" ", 1)[0] if found else ""

    @property
    def connection(self) -> str:
        return self.headers.get("connection", "").lower()

    def __str__(self) -> str:
        status = f"{self.status} {self.headers.get('proxy-status', '')} {self.body[:200]!r} {self.error}"
        return f"{self.method} at {self.began_s:.3f} for {self.took_s * 1000:.0f} ms: {status}"


async def get(
    url: str, headers: Mapping[str, str] | None = None, method: str = "GET", data: bytes | None = None
) -> Answer:
    """One request on a connection of its own; raises what aiohttp raises for an answer that is not whole."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.request(method, url, headers=headers, data=data) as answer,
    ):
        lower = {name.lower(): value for name, value in answer.headers.items()}
        return Answer(answer.status, lower, await answer.read(), method=method)


class Load:
    """An open loop: requests start at a fixed rate whatever the answers do. GETs, and every third a POST without key."""

    def __init__(self, url: str, service: str, rate: float, methods: tuple[str, ...], *, is_spread: bool) -> None:
        """``is_spread``: a connection for each request, so that all workers get some."""
        self._url = url
        self._headers = {"host": service}
        self._rate = rate
        self._methods = methods
        self._is_spread = is_spread
        self._tasks = Tasks("load")
        self._open = 0
        self.answers: list[Answer] = []

    @property
    def failures(self) -> list[str]:
        return [str(answer) for answer in self.answers if answer.status != 200]

    def failed(self, *, but: Callable[[Answer], bool]) -> list[str]:
        """The failures that are not as ``but`` allows."""
        return [str(answer) for answer in self.answers if answer.status != 200 and not but(answer)]

    def shares(self, since: int = 0) -> dict[str, float]:
        """The share of each version among the answers from the ``since``-th on."""
        found = Counter(answer.told["version"] for answer in self.answers[since:] if answer.status == 200)
        return {version: count / found.total() for version, count in found.items()}

    def latency_s(self, quantile: float) -> float:
        ordered = sorted(answer.took_s for answer in self.answers)
        return ordered[min(len(ordered) - 1, int(len(ordered) * quantile))]

    async def more(self, count: int) -> int:
        """Wait until ``count`` more answers have come; gives how many there were before."""
        before = len(self.answers)
        await until(lambda: len(self.answers) >= before + count, what=f"{count} more answers", timeout_s=60)
        return before

    async def run_for(self, seconds: float) -> None:
        """Load is what is waited for here: as many answers as come in that time."""
        await self.more(int(seconds * self._rate * 0.9))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        connector = aiohttp.TCPConnector(limit=0, force_close=self._is_spread)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            sending = self._tasks.start(self._send(session), "send")
            try:
                yield self
            finally:
                sending.cancel()
                await until(lambda: not self._open, what="open requests to end", timeout_s=ANSWER_S + 1)
                await self._tasks.close()

    async def _send(self, session: aiohttp.ClientSession) -> None:
        due = time.monotonic()
        number = 0
        while True:
            due = max(due + 1.0 / self._rate, time.monotonic() - 0.2)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self._open < MAX_OPEN:
                self._open += 1
                self._tasks.start(self._one(session, self._methods[number % len(self._methods)]), "request")
                number += 1

    async def _one(self, session: aiohttp.ClientSession, method: str) -> None:
        began = time.monotonic()
        data = b"12345" if method == "POST" else None
        try:
            async with session.request(method, self._url, headers=self._headers, data=data) as got:
                headers = {name.lower(): value for name, value in got.headers.items()}
                answer = Answer(got.status, headers, await got.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            answer = Answer(0, error=repr(error))
        finally:
            self._open -= 1
        answer.method, answer.began_s, answer.took_s = method, began, time.monotonic() - began
        self.answers.append(answer)


def patched(statement: str) -> tuple[str, ...]:
    """How to start a `mesh` that differs in what ``statement`` sets."""
    return (sys.executable, "-c", f"import sys; {statement}; from mesh.cli.main import main; main()")


class Fleet:
    """See the module. Everything it started is ended on the way out, newest first, by pid."""

    def __init__(self, directory: Path, *, workers: int = 1) -> None:
        """``workers``: of every sidecar."""
        self._directory = directory
        self._workers = workers
        self._processes: list[Process] = []
        self.control_address: str | None = None
        self.consul_url: str | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        # All at once, and not in order: what matters here has been tested by now. Each leads its own group, which
        # also holds the program of a `mesh run`.
        running = [process for process in self._processes if process.is_running]
        for process in running:
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.gather(*(process.wait() for process in running))

    def start(self, name: str, *command: str | Path, env: Mapping[str, str] | None = None) -> Process:
        """Start a program with its log; tests/support is importable for it."""
        process = Process.start(*command, log=self._directory / f"{name}.log", env=env)
        self._processes.append(process)
        return process

    async def control(self, *options: str, entry: Iterable[str] = MESH) -> Control:
        """A control server with its store on disk; ``entry`` is another way to start `mesh`."""
        port, http = free_ports(2)
        self.control_address = f"127.0.0.1:{port}"
        if self.consul_url:
            options = (*options, "--consul", self.consul_url)
        command = (*entry, "control", "--listen", self.control_address, "--http", f"127.0.0.1:{http}",
                   "--data", self._directory / "control", *options)  # fmt: skip
        control = Control(self, port, http, command, self.start("control", *command))
        await control.until_serving()
        return control

    async def program(self, service: str, version: str = "v1", port: int = 0, label: str = "") -> tuple[Process, int]:
        """A program that serves on its port."""
        port = port or free_port()
        process = self.start(f"{label or service}-{port}-program", *PROGRAM, str(port), service, version)
        await process.until_logged(f"serving on {port}", timeout_s=START_S)
        return process, port

    def launch(
        self,
        service: str,
        *options: str,
        label: str = "",
        verb: str = "sidecar",
        program: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        discovery: bool = True,
        entry: Iterable[str] = MESH,
    ) -> SidecarProcess:
        """Start a sidecar, or `mesh run`, and wait for nothing. Given options win over those it is given here."""
        label = label or service
        inbound, outbound, admin = free_ports(3)
        settings = {
            "--service": service, "--instance-id": label, "--inbound": f"127.0.0.1:{inbound}",
            "--outbound": f"127.0.0.1:{outbound}", "--admin": f"127.0.0.1:{admin}",
        }  # fmt: skip
        if discovery and self.control_address:
            settings["--control"] = self.control_address
        if discovery and self.consul_url:
            settings["--consul"] = self.consul_url
        if self._workers > 1:
            settings["--workers"] = str(self._workers)
        settings.update(zip(options[::2], options[1::2], strict=True))
        flat = [part for pair in settings.items() for part in pair]
        command = (*entry, verb, *flat, *(("--", *program) if program else ()))
        process = self.start(f"{label}-sidecar", *command, env=env)
        ports = [int(settings[key].rpartition(":")[2]) for key in ("--outbound", "--inbound", "--admin")]
        return SidecarProcess(f"{service}/{label}", process, *ports, command)

    def again(self, sidecar: SidecarProcess) -> SidecarProcess:
        """Start one that has ended anew, as it was."""
        label = sidecar.node.partition("/")[2]
        sidecar.process = self.start(f"{label}-sidecar", *sidecar.command)
        return sidecar

    def run(self, service: str, *options: str, version: str = "v1", label: str = "", **more: Any) -> SidecarProcess:
        """Start `mesh run` around the test program, and wait for nothing."""
        port = free_port()
        options = ("--port", str(port), "--version", version, *options)
        return self.launch(
            service, *options, label=label, verb="run", program=(*PROGRAM, str(port), service, version), **more
        )

    def services_file(self, **ports: int) -> Path:
        """Endpoints for `--services`: one on that port of loopback for each service."""
        path = self._directory / "services.yaml"
        found = {name: [{"id": name, "address": "127.0.0.1", "port": port}] for name, port in ports.items()}
        path.write_text(json.dumps({"services": found}))
        return path

    async def sidecar(self, service: str, *options: str, **more: Any) -> SidecarProcess:
        """A sidecar that is ready."""
        return await self.launch(service, *options, **more).until_ready()

    async def instance(self, service: str, *options: str, version: str = "v1", label: str = "") -> Instance:
        """A program with its sidecar, ready."""
        program, port = await self.program(service, version, label=label)
        options = ("--port", str(port), "--version", version, *options)
        return Instance(program, await self.sidecar(service, *options, label=label or service), port)

    def load(
        self,
        caller: SidecarProcess,
        service: str,
        *,
        path: str = "/",
        rate: float = RATE,
        methods: tuple[str, ...] = ("GET", "GET", "POST"),
    ) -> contextlib.AbstractAsyncContextManager[Load]:
        """Steady load into a sidecar's outbound side."""
        return Load(caller.url(path), service, rate, methods, is_spread=self._workers > 1).running()
