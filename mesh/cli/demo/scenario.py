"""The demo's story: a canary goes from 0 to 100 % while programs and instances die, and no request fails."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

from mesh.cli.demo.display import Display, View, trace_tree
from mesh.cli.demo.processes import Children, free_ports, mesh, module
from mesh.cli.demo.program import GRPC
from mesh.client import ChangeResult, MeshClient, MeshError, Options
from mesh.model.gateway_api import parse
from mesh.model.name import DEFAULT_NAMESPACE, Name

REVIEWS = Name(DEFAULT_NAMESPACE, "reviews")
START_TIMEOUT_S = 30.0
STANDARD_ERRORS = 4.0
"""An observed share may be so far off the set one: once in 16 000 windows by chance."""


class DemoError(Exception):
    """The demo could not go on; the message says why and where the logs are."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds for each part; the whole stays within 60 s."""

    step_s: float = 6.0
    rate: float = 100.0
    program_away_s: float = 4.0
    """Between killing a program and starting it anew: long enough for its sidecar's check to notice."""


@dataclass(frozen=True, slots=True)
class Member:
    """One instance of a service: a program and its sidecar."""

    name: str
    service: str
    version: str
    program: int
    inbound: int
    outbound: int
    admin: int

    @property
    def sidecar(self) -> str:
        """The name of its sidecar process."""
        return f"{self.name}-sidecar"


RATINGS_ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: ratings}
spec:
  parentRefs: [{kind: Service, group: "", name: ratings}]
  rules:
    - backendRefs: [{name: ratings}]
      retry: {codes: [UNAVAILABLE], attempts: 2, backoff: 10ms}
"""
"""Rating reads: whoever did not answer may be asked again, which nobody else can know of a gRPC call."""


class Demo:
    """See the module. ``run`` gives the exit code."""

    def __init__(self, console: Console, timing: Timing, *, consul: bool, keep: bool) -> None:
        """``consul``: discovery is a real Consul agent; ``keep``: stay when the story is told."""
        self._console = console
        self._timing = timing
        self._consul = consul
        self._keep = keep
        self._home = Path(tempfile.mkdtemp(prefix="sidemesh-demo-"))
        self._children = Children(self._home)
        self._view = View()
        self._display = Display(self._view, console)
        names = [("frontend", "frontend", "v1"), ("reviews-v1", "reviews", "v1"), ("reviews-v2", "reviews", "v2"),
                 ("ratings-1", "ratings", "v1"), ("ratings-2", "ratings", "v1")]  # fmt: skip
        ports = free_ports(4 * len(names) + 4)
        self._control_port, self._http_port, self._collector_port, self._consul_port = ports[:4]
        self._members = {n: Member(n, s, v, *ports[4 + 4 * i : 8 + 4 * i]) for i, (n, s, v) in enumerate(names)}
        self._report: dict[str, Any] = {}
        self._problems: list[str] = []
        self._load: asyncio.subprocess.Process | None = None

    async def run(self) -> int:
        """Start everything, tell the story, stop everything; 0 only if no request failed and every share held."""
        try:
            async with asyncio.TaskGroup() as group, aiohttp.ClientSession() as session:
                with self._display:
                    await self._start(session)
                    followers = [group.create_task(self._follow_load()), group.create_task(self._follow_sidecars())]
                    await self._story(session)
                    await self._end_load()
                    for follower in followers:
                        follower.cancel()
                await self._conclude(session)
                if self._keep:
                    await self._stay()
        except* DemoError as errors:
            for error in errors.exceptions:
                self._problems.append(str(error))
        finally:
            await self._children.stop_all()
        for problem in self._problems:
            self._console.print(f"[bold red]FAILED[/]: {problem}", highlight=False)
        if self._problems:
            self._console.print(f"logs: {self._home}", highlight=False)
            return 1
        shutil.rmtree(self._home, ignore_errors=True)
        self._console.print("Not one request failed, and every share held.", style="bold green")
        return 0

    # --- start ------------------------------------------------------------------------------------------------------

    async def _start(self, session: aiohttp.ClientSession) -> None:
        say, control = self._display.say, f"127.0.0.1:{self._control_port}"
        say("starting the control server, a trace collector and five services, each with its sidecar")
        consul = await self._start_consul() if self._consul else []
        http, data = f"127.0.0.1:{self._http_port}", str(self._home / "control")
        command = mesh("control", "--listen", control, "--http", http, "--data", data, *consul)
        await self._children.start("control", command)
        await self._children.start("collector", module("mesh.cli.demo.collector", str(self._collector_port)))
        for member in self._members.values():
            await self._start_program(member)
            await self._start_sidecar(member, control, consul)
        for member in self._members.values():
            await self._wait_for(session, f"http://127.0.0.1:{member.admin}/ready", f"{member.name}'s sidecar")
        await self._set_weights({"v1": 100, "v2": 0}, patient=True)
        async with MeshClient(control) as client:
            await client.apply(parse(RATINGS_ROUTE).values, options=Options(reason="ratings may be asked again"))
        await self._wait_for(session, f"{self._front}/products/0", "an answer through the whole mesh")
        self._load = await self._children.start(
            "load", module("mesh.cli.demo.load", self._front, str(self._timing.rate)), piped=True
        )
        say(f"everything is up; {self._timing.rate:.0f} requests a second go into frontend's sidecar")

    @property
    def _front(self) -> str:
        return f"http://127.0.0.1:{self._members['frontend'].inbound}"

    async def _start_consul(self) -> list[str]:
        binary = os.environ.get("MESH_CONSUL_BIN") or shutil.which("consul")
        if not binary:
            message = "no consul: put one on PATH or name it in MESH_CONSUL_BIN (make demo CONSUL=1 fetches one)"
            raise DemoError(message)
        dns, server, serf, grpc = free_ports(4)
        await self._children.start(
            "consul",
            [binary, "agent", "-dev", "-bind=127.0.0.1", "-client=127.0.0.1", f"-http-port={self._consul_port}",
             f"-dns-port={dns}", f"-server-port={server}", f"-serf-lan-port={serf}", "-serf-wan-port=-1",
             f"-grpc-port={grpc}", "-node=demo"],
        )  # fmt: skip
        return ["--consul", f"http://127.0.0.1:{self._consul_port}"]

    async def _start_program(self, member: Member) -> None:
        words = [member.version, str(member.program)]
        is_grpc = member.service in GRPC
        await self._children.start(
            member.name,
            module("mesh.cli.demo.ratings", *words)
            if is_grpc
            else module("mesh.cli.demo.program", member.service, *words),
            {"http_proxy": f"http://127.0.0.1:{member.outbound}", "no_proxy": "127.0.0.1"},
        )

    async def _start_sidecar(self, member: Member, control: str, consul: list[str]) -> None:
        options = {
            "service": member.service,
            "version": member.version,
            "instance-id": member.name,
            "port": member.program,
            "inbound": f"127.0.0.1:{member.inbound}",
            "outbound": f"127.0.0.1:{member.outbound}",
            "admin": f"127.0.0.1:{member.admin}",
            "control": control,
            "check": "tcp" if member.service in GRPC else "/healthz",
            "trace-ratio": 1,
            "drain-s": 3,
        }
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        collector = f"http://127.0.0.1:{self._collector_port}"
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_BSP_SCHEDULE_DELAY": "500"}
        await self._children.start(member.sidecar, mesh("sidecar", *flags, *consul), env)

    async def _wait_for(self, session: aiohttp.ClientSession, url: str, what: str) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + START_TIMEOUT_S
        last = "nothing listens yet"
        while loop.time() < end:
            self._check_children()
            try:
                async with session.get(url, timeout=aiohttp.ClientTimeout(total=2.0)) as answer:
                    if answer.status == 200:
                        return
                    last = f"{answer.status} {(await answer.text())[:200]}"
            except (aiohttp.ClientError, TimeoutError) as error:
                last = repr(error)
            await asyncio.sleep(0.1)
        message = f"{what} did not come within {START_TIMEOUT_S:g} s ({last})"
        raise DemoError(message)

    def _check_children(self) -> None:
        dead = self._children.first_dead()
        if dead is not None:
            log = (self._home / f"{dead}.log").read_text(errors="replace").splitlines()[-8:]
            message = f"the process {dead} ended by itself:\n  " + "\n  ".join(log)
            raise DemoError(message)

    # --- story ------------------------------------------------------------------------------------------------------

    async def _story(self, session: aiohttp.ClientSession) -> None:
        await self._step("reviews v2 at 0 %", {"v1": 100, "v2": 0})
        await self._step("reviews v2 at 10 %", {"v1": 90, "v2": 10}, self._kill_program())
        await self._step("reviews v2 at 50 %", {"v1": 50, "v2": 50}, self._kill_instance(session))
        await self._step("reviews v2 at 100 %", {"v1": 0, "v2": 100})
        self._display.say("the canary is the service now")

    async def _step(
        self, name: str, weights: dict[str, int], accident: Coroutine[Any, Any, None] | None = None
    ) -> None:
        self._window("between")
        took_ms, count = await self._set_weights(weights)
        self._view.step, self._view.weights = name, weights
        told = f"acknowledged by all {count} sidecars after {took_ms:.0f} ms" if count else "as it is already"
        self._display.say(f"{name}: {told}")
        self._window(name)
        began = asyncio.get_running_loop().time()
        if accident is not None:
            await asyncio.sleep(self._timing.step_s / 4)
            await accident
        await asyncio.sleep(max(0.0, began + self._timing.step_s - asyncio.get_running_loop().time()))
        self._check_children()

    async def _kill_program(self) -> None:
        self._display.say("SIGKILL to the program of ratings-1; its sidecar lives")
        await self._children.kill("ratings-1")
        await asyncio.sleep(self._timing.program_away_s)
        await self._start_program(self._members["ratings-1"])
        self._display.say("the program of ratings-1 is started again")

    async def _kill_instance(self, session: aiohttp.ClientSession) -> None:
        # On a slow machine ratings-1 may not be back yet, and without both nobody could answer.
        for member in self._members.values():
            if member.service == "reviews":
                await self._until_known_well(session, member, "ratings-1")
        self._display.say("SIGKILL to the whole instance ratings-2, sidecar and program")
        await asyncio.gather(self._children.kill("ratings-2-sidecar"), self._children.kill("ratings-2"))

    async def _until_known_well(self, session: aiohttp.ClientSession, caller: Member, instance: str) -> None:
        """Wait until the caller's sidecar would send to an instance."""
        loop = asyncio.get_running_loop()
        end = loop.time() + START_TIMEOUT_S
        while loop.time() < end:
            async with session.get(f"http://127.0.0.1:{caller.admin}/clusters?format=json") as answer:
                services = await answer.json()
            if any(instance in cluster["usable"] for service in services for cluster in service["clusters"]):
                return
            await asyncio.sleep(0.1)
        message = f"{instance} did not come back for {caller.name} within {START_TIMEOUT_S:g} s"
        raise DemoError(message)

    async def _set_weights(self, weights: dict[str, int], *, patient: bool = False) -> tuple[float, int]:
        """Set them through the operator API; gives the time until the last ACK in ms, and how many there were."""
        loop = asyncio.get_running_loop()
        end = loop.time() + (START_TIMEOUT_S if patient else 0.0)
        options = Options(reason=self._view.step)
        result: ChangeResult | None = None
        async with MeshClient(f"127.0.0.1:{self._control_port}") as client:
            while result is None:
                try:
                    result = await client.set_weights(REVIEWS, weights, options=options)
                except MeshError as error:
                    self._check_children()
                    if loop.time() >= end:
                        message = f"the weights could not be set: {error}"
                        raise DemoError(message) from error
                    await asyncio.sleep(0.2)
        if not result.is_acked_by_all and not patient:
            told = ", ".join(f"{a.node}: {a.result}" for a in result.answers if a.result != "acked")
            self._problems.append(f"table v{result.version} was not acknowledged by all: {told}")
        return max((a.took_s for a in result.answers), default=0.0) * 1000.0, len(result.answers)

    def _window(self, name: str) -> None:
        if self._load is not None and self._load.stdin is not None:
            self._load.stdin.write(f"window {name}\n".encode())

    # --- watching ---------------------------------------------------------------------------------------------------

    async def _follow_load(self) -> None:
        assert self._load is not None and self._load.stdout is not None  # noqa: S101, PT018 - started before
        async for line in self._load.stdout:
            self._report = report = json.loads(line)
            view = self._view
            view.window = report["windows"][-1]
            if report["recent"]["count"]:
                view.rate = report["recent"]["count"] / report["recent"]["seconds"]
                view.recent = report["recent"]
            view.failed = sum(w["failed"] for w in report["windows"])
            self._display.update()

    async def _follow_sidecars(self) -> None:
        async with MeshClient(f"127.0.0.1:{self._control_port}") as client:
            while True:
                status = await client.status()
                self._view.sidecars = [
                    (s.node, f"v{s.running.version}", s.state) for s in status.sidecars if s.state != "disconnected"
                ]
                await asyncio.sleep(0.5)

    async def _end_load(self) -> None:
        load = self._load
        assert load is not None and load.stdin is not None  # noqa: S101, PT018 - started before
        load.stdin.close()
        await asyncio.wait_for(load.wait(), 20.0)
        while not self._report.get("is_last"):  # noqa: ASYNC110 - the last line is in the pipe
            await asyncio.sleep(0.02)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _conclude(self, session: aiohttp.ClientSession) -> None:
        await self._show_trace(session)
        sent = sum(w["sent"] for w in self._report["windows"])
        failed = sum(w["failed"] for w in self._report["windows"])
        self._console.print()
        for window in self._report["windows"]:
            if window["name"].startswith("reviews"):
                self._check_share(window)
        self._console.print(f"{sent} requests, {failed} failed", highlight=False)
        if failed:
            told = "; ".join(f"{f['request']}: {f['status']} {f['told']}" for f in self._report["failures"])
            self._problems.append(f"{failed} requests failed: {told}")

    def _check_share(self, window: dict[str, Any]) -> None:
        expected = int(window["name"].split(" at ")[1].split(" ")[0]) / 100.0
        seen = sum(window["versions"].values())
        observed = window["versions"].get("v2", 0) / seen if seen else 0.0
        error = math.sqrt(expected * (1.0 - expected) / seen) if seen else 0.0
        holds = bool(seen) and abs(observed - expected) <= STANDARD_ERRORS * error + 1e-9
        self._console.print(
            f"  {window['name']:22} observed {100 * observed:6.2f} %  of {seen} requests, "
            f"p50 {window['p50_ms']:.1f} ms, p99 {window['p99_ms']:.1f} ms  {'ok' if holds else 'OFF'}",
            highlight=False,
        )
        if not holds:
            self._problems.append(f"{window['name']}: {100 * observed:.2f} % of {seen} requests went to v2")

    async def _show_trace(self, session: aiohttp.ClientSession) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + 5.0
        trace: dict[str, Any] = {"spans": []}
        while loop.time() < end:
            async with session.get(f"http://127.0.0.1:{self._collector_port}/traces/widest") as answer:
                trace = await answer.json()
            if {s["service"] for s in trace["spans"]} >= {"frontend", "reviews", "ratings"}:
                break
            await asyncio.sleep(0.2)
        if not trace["spans"]:
            self._problems.append("no span reached the collector")
            return
        self._console.print()
        self._console.print(trace_tree(trace), highlight=False)  # wraps within the tree
        missing = {"frontend", "reviews", "ratings"} - {s["service"] for s in trace["spans"]}
        if missing:
            self._problems.append(f"no trace goes over all services: {', '.join(sorted(missing))} missing")

    async def _stay(self) -> None:
        front = self._members["frontend"]
        self._console.print(
            f"\nThe mesh stays up; Ctrl-C ends it. Try:\n"
            f"  export MESH_CONTROL=127.0.0.1:{self._control_port}\n"
            f"  mesh status\n"
            f"  mesh weights set reviews v1=50 v2=50\n"
            f"  mesh why --admin 127.0.0.1:{front.admin} GET http://reviews/products/1\n"
            f"  curl -H 'Host: reviews' http://127.0.0.1:{front.outbound}/products/1\n"
            f"  curl -H 'Host: reviews' -H 'x-mesh-explain: 1' -si http://127.0.0.1:{front.outbound}/products/1\n"
            f"  xdg-open http://127.0.0.1:{front.admin}/",
            highlight=False,
            soft_wrap=True,
        )
        sys.stdout.flush()
        await asyncio.Event().wait()
