"""The parent's side of ``--workers N``: starts workers as fresh processes, tells them everything, sums what they count.

Never a fork: gRPC runs in the parent. The listening sockets are bound once, without SO_REUSEPORT, and handed down;
so a second sidecar on a port fails, and what a dead worker had not accepted is accepted by the others. A worker that
dies is started anew and told the present state before it opens its sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from mesh.child import Child
from mesh.model.errors import InvalidError, Violation
from mesh.model.name import Name
from mesh.model.service import Endpoint
from mesh.model.snapshot import Snapshot
from mesh.model.wire import push_from_snapshot
from mesh.tasks import Tasks
from proxy.clusters import States
from proxy.config import SidecarConfig
from proxy.recorder import LOCAL
from proxy.worker import add_cell
from proxy.worker_link import Link, Report

if TYPE_CHECKING:
    from proxy.dataplane import DataPlane
    from proxy.telemetry import Telemetry

logger = logging.getLogger(__name__)

APPLY_S = 5.0
ANSWER_S = 1.0
STOP_S = 5.0
FIRST_RESTART_S, MAX_RESTART_S = 0.1, 5.0
REPORT_EVERY_S = 1.0


class WorkerHandle:
    """One worker as the parent sees it."""

    def __init__(self, process: Child, link: Link) -> None:
        """A process that was just started."""
        self.process = process
        self.link = link
        self.is_open = asyncio.Event()
        self.gauges: dict[str, float] = {}
        self.ejected: set[tuple[Name, str]] = set()
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    def expect(self, number: int) -> asyncio.Future[Any]:
        """A future for the answer of that number."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        return future

    def answered(self, number: int, answer: Any) -> None:  # noqa: ANN401 - a reason or a report
        """The answer has come."""
        future = self._waiting.pop(number, None)
        if future is not None and not future.done():
            future.set_result(answer)

    def forget(self, number: int) -> None:
        """Nobody waits for that answer any more."""
        self._waiting.pop(number, None)

    def lost(self) -> None:
        """It died: whoever waits for it waits no more."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionError("the worker died"))
                future.exception()  # whoever asked may be gone as well, and then nobody looks at it
        self._waiting.clear()


class WorkerPool:
    """See the module. The parent's own ``plane`` carries no traffic; it holds the state that workers are told."""

    def __init__(self, config: SidecarConfig, plane: DataPlane, token: str, telemetry: Telemetry) -> None:
        """``telemetry`` is the parent's: its exporter sends what workers encode."""
        self._config = config
        self._plane = plane
        self._token = token
        self._telemetry = telemetry
        self._sockets: dict[str, socket.socket] = {}
        self._workers: dict[int, WorkerHandle] = {}
        self._tasks = Tasks("workers")
        self._number = 0
        self._stopping = asyncio.Event()
        self._is_draining = False
        self._table: bytes | None = None
        self.restarts = 0
        self.counted: Counter[str] = Counter()
        """What workers count beside their recorders: spans_dropped, log_lines, log_dropped."""

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self, sockets: dict[str, socket.socket]) -> None:
        """Start all workers and wait until they accept. ``sockets`` are bound, by the listener's name."""
        self._sockets = sockets
        for sock in sockets.values():
            sock.listen(1024)
        for index in range(self._config.workers):
            self._tasks.start(self._keep(index), f"worker {index}")
        while not self.is_whole:  # noqa: ASYNC110 - once
            await asyncio.sleep(0.01)
        self._tasks.start(self._collect(), "collect")

    async def close(self) -> None:
        """Stop all workers; SIGKILL for whoever does not within 5 s."""
        self._stopping.set()
        workers = list(self._workers.values())
        for worker in workers:
            worker.link.send("stop")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await asyncio.gather(*(w.process.wait() for w in workers))
                # Their last spans and counts are read to the end.
                while self._workers:  # noqa: ASYNC110 - once
                    await asyncio.sleep(0.01)
        for worker in workers:
            if worker.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    worker.process.kill()
                await worker.process.wait()
        await self._tasks.close()
        for sock in self._sockets.values():
            sock.close()

    @property
    def is_whole(self) -> bool:
        """All workers accept connections."""
        return sum(w.is_open.is_set() for w in self._workers.values()) == self._config.workers

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [w.process.pid for w in self._workers.values()]

    # --- what workers are told --------------------------------------------------------------------------------------

    async def apply_table(self, snapshot: Snapshot | None) -> None:
        """Have all workers run a table. Raises InvalidError where one cannot; the table before it then runs again."""
        before, body = self._table, None
        if snapshot is not None:
            body = push_from_snapshot(snapshot, "", 0.0).SerializeToString()
        self._table = body
        reasons = await self._tell_table(body)
        if reasons:
            self._table = before
            await self._tell_table(before)
            raise InvalidError([Violation("", f"{len(reasons)} workers cannot run it: {reasons[0]}")])

    async def _tell_table(self, body: bytes | None) -> list[str]:
        futures = []
        for worker in self._workers.values():
            self._number += 1
            futures.append(worker.expect(self._number))
            worker.link.send("table", self._number, body)
        answers = await asyncio.gather(*(asyncio.wait_for(f, APPLY_S) for f in futures), return_exceptions=True)
        # A worker that died meanwhile is told the table when it is started anew.
        return [
            "no answer within 5 s" if isinstance(a, TimeoutError) else str(a)
            for a in answers
            if a is not None and not isinstance(a, ConnectionError)
        ]

    def tell_endpoints(self, service: Name, endpoints: tuple[Endpoint, ...]) -> None:
        """Discovery told of a service."""
        self._broadcast("endpoints", service, endpoints)

    def drop_service(self, service: Name) -> None:
        """A service is watched no more."""
        self._broadcast("drop", service)

    def tell_program(self, state: str) -> None:
        """The program's health changed."""
        self._broadcast("program", state)

    def drain(self) -> None:
        """Inbound answers say ``Connection: close`` from now on."""
        self._is_draining = True
        self._broadcast("drain")

    def tell_websockets(self, *, inbound_only: bool) -> None:
        """See Sidecar."""
        self._broadcast("websockets", inbound_only)

    def reopen_logs(self) -> None:
        """Access logs were rotated."""
        self._broadcast("reopen")

    # --- what workers are asked -------------------------------------------------------------------------------------

    async def gather(self) -> dict[str, float]:
        """Have everything counted so far added to the parent's recorder; gives the sums of all gauges."""
        await self.count()
        return self.gauges

    async def count(self) -> list[str]:
        """Have everything counted so far added to the parent's recorder; names the workers that did not answer."""
        return self._silent(await self._ask("report"))

    async def service_states(self) -> tuple[list[States], list[str]]:
        """How each worker fares with its services, and the names of the workers that did not answer."""
        answers = await self._ask("states")
        return list(answers.values()), self._silent(answers)

    @property
    def names(self) -> list[str]:
        """What the workers are called: index and process id."""
        return [self._name(index) for index in range(self._config.workers)]

    @property
    def gauges(self) -> dict[str, float]:
        """The sums of all gauges as last told; of times (``…_s``) the least."""
        sums: dict[str, float] = {}
        for worker in self._workers.values():
            for name, value in worker.gauges.items():
                sums[name] = min(sums.get(name, value), value) if name.endswith("_s") else sums.get(name, 0) + value
        return sums

    @property
    def ejected(self) -> set[tuple[Name, str]]:
        """(service, endpoint id) of what at least one worker has ejected, as last told."""
        return set[tuple[Name, str]]().union(*(worker.ejected for worker in self._workers.values()))

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _ask(self, question: str) -> dict[int, Any]:
        """The workers' answers by index; whoever does not answer within 1 s is left out."""
        asked: list[tuple[int, WorkerHandle, int, asyncio.Future[Any]]] = []
        for index, worker in self._workers.items():
            self._number += 1
            asked.append((index, worker, self._number, worker.expect(self._number)))
            worker.link.send(question, self._number)
        if asked:
            await asyncio.wait([future for *_, future in asked], timeout=ANSWER_S)
        answers: dict[int, Any] = {}
        for index, worker, number, future in asked:
            if not future.done():
                worker.forget(number)
            elif future.exception() is None:
                answers[index] = future.result()
        return answers

    def _silent(self, answers: dict[int, Any]) -> list[str]:
        return [self._name(index) for index in range(self._config.workers) if index not in answers]

    def _name(self, index: int) -> str:
        worker = self._workers.get(index)
        return f"worker {index} " + ("(being started anew)" if worker is None else f"(pid {worker.process.pid})")

    def _broadcast(self, *message: Any) -> None:  # noqa: ANN401 - each kind has its own items
        for worker in self._workers.values():
            worker.link.send(*message)

    async def _keep(self, index: int) -> None:
        """Run worker ``index`` until the pool stops, starting it anew whenever it dies."""
        wait_s = FIRST_RESTART_S
        while not self._stopping.is_set():
            began = asyncio.get_running_loop().time()
            worker = await self._spawn(index)
            if self._stopping.is_set():
                worker.link.send("stop")  # ``close`` may have looked before it was there
            while (message := await worker.link.receive()) is not None:
                self._on_message(worker, *message)
            code = await worker.process.wait()
            worker.lost()
            await worker.link.close()
            self._workers.pop(index, None)
            if self._stopping.is_set():
                return
            self.restarts += 1
            if asyncio.get_running_loop().time() - began > MAX_RESTART_S:
                wait_s = FIRST_RESTART_S
            logger.error("worker %d (pid %d) ended with %d; starting it anew", index, worker.process.pid, code)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, MAX_RESTART_S)

    async def _spawn(self, index: int) -> WorkerHandle:
        ours, theirs = socket.socketpair()
        sockets = {name: sock.fileno() for name, sock in self._sockets.items()}
        command = (sys.executable, "-m", "proxy.worker", str(theirs.fileno()))
        process = Child.start(*command, pass_fds=(theirs.fileno(), *sockets.values()), quiet=True)
        theirs.close()
        worker = WorkerHandle(process, await Link.open(ours))
        level = logging.getLogger().getEffectiveLevel()
        worker.link.send("start", self._config, self._token, sockets, level)
        worker.link.send("program", self._plane.program_state)
        for service in self._plane.services.values():
            if service.is_known and service.name.namespace != LOCAL:
                worker.link.send("endpoints", service.name, tuple(e.model for e in service.endpoints.values()))
        if self._plane.table is not None:
            worker.link.send("table", 0, self._table)
        if self._is_draining:
            worker.link.send("drain")
        worker.link.send("open")
        self._workers[index] = worker
        return worker

    def _on_message(self, worker: WorkerHandle, kind: str, *items: Any) -> None:  # noqa: ANN401 - as sent
        if kind == "opened":
            worker.is_open.set()
        elif kind == "applied":
            worker.answered(items[0], items[1])
        elif kind == "report":
            self._add(worker, items[1])
            worker.answered(items[0], items[1])
        elif kind == "states":
            worker.answered(items[0], items[1])
        elif kind == "look_up":
            self._look_up(worker, *items)
        elif kind == "touch":
            self._plane.directory.touch(items[0])
        elif kind == "connect_failed":
            self._plane.directory.connect_failed(items[0], items[1])
        elif kind == "spans" and self._telemetry.exporter is not None:
            self._telemetry.exporter.forward(items[0])

    def _look_up(self, worker: WorkerHandle, number: int, service: Name) -> None:
        def answer(error: Any) -> None:  # noqa: ANN401 - ProxyError or None
            found = self._plane.services.get(service)
            if error is None and found is not None:
                self.tell_endpoints(service, tuple(e.model for e in found.endpoints.values()))
            worker.link.send("answer", number, error)

        self._plane.directory.look_up(service, answer)

    def _add(self, worker: WorkerHandle, report: Report) -> None:
        worker.gauges, worker.ejected = report.gauges, report.ejected
        recorder = self._plane.recorder
        for (service, subset, protocol, status, flag), numbers in report.cells.items():
            add_cell(recorder.series_for(service, subset, protocol).cell(status, flag), numbers)
        for (counter, key), count in report.counters.items():
            if counter == "retries":
                recorder.retries[key] += count
            elif counter == "ejections":
                recorder.ejections_of[key] += count
            elif counter == "budget_exhausted":
                recorder.budget_exhausted_of[key] += count
            elif counter == "health_answers":
                recorder.health_answers += count
            else:
                self.counted[counter] += count

    async def _collect(self) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            await self.gather()
