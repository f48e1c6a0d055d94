"""A worker: one process that carries a sidecar's traffic, told everything by its parent over a link.

It imports neither gRPC nor aiohttp, so that each costs little memory. Started by ``worker_pool.py`` as
``python -m proxy.worker FD``; it ends when its parent says so or is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from random import Random, SystemRandom
from typing import Any

import uvloop

from mesh.http.outcome import DiscoveryUnavailable, ProxyError
from mesh.model.name import Name
from mesh.model.wire import snapshot_from_push
from mesh.telemetry.exporter import Batch, Sent
from mesh.telemetry.metrics import CELL_NUMBERS, RequestCell
from protos.mesh.v1 import discovery_pb2
from proxy.accept import Closable, open_server
from proxy.clusters import states
from proxy.config import SidecarConfig
from proxy.dataplane import Answer, DataPlane, PlaneSettings
from proxy.listeners import Listeners, build_listeners
from proxy.memory import settle_memory
from proxy.table import Names
from proxy.telemetry import Telemetry
from proxy.websocket_relay import tell_websockets
from proxy.worker_link import Link, Report

logger = logging.getLogger(__name__)

LOOK_UP_S = 5.0  # the parent answers within its own bounds; this is for one that hangs
REPORT_S = 1.0


class LinkDirectory:
    """Asks the parent for services. See ``dataplane.Directory``."""

    def __init__(self, link: Link) -> None:
        """``link`` is the worker's."""
        self._link = link
        self._waiting: dict[int, tuple[Answer, asyncio.TimerHandle]] = {}
        self._number = 0

    def look_up(self, service: Name, answer: Answer) -> None:
        """See Directory."""
        self._number += 1
        number = self._number
        error = DiscoveryUnavailable("the sidecar's main process does not answer; try again")
        timer = asyncio.get_running_loop().call_later(LOOK_UP_S, self.answered, number, error)
        self._waiting[number] = answer, timer
        self._link.send("look_up", number, service)

    def answered(self, number: int, error: ProxyError | None) -> None:
        """The parent has answered."""
        found = self._waiting.pop(number, None)
        if found is not None:
            found[1].cancel()
            found[0](error)

    def touch(self, services: set[Name]) -> None:
        """See Directory."""
        if services:
            self._link.send("touch", services)

    def connect_failed(self, service: Name, endpoint_id: str) -> None:
        """See Directory."""
        self._link.send("connect_failed", service, endpoint_id)


class LinkTransport:
    """Hands encoded batches of spans to the parent, which exports for all workers."""

    def __init__(self, link: Link) -> None:
        """``link`` is the worker's."""
        self._link = link

    async def send(self, batch: Batch) -> Sent:
        """See SpanTransport. What becomes of the spans from here on, the parent counts."""
        self._link.send("spans", batch)
        return Sent(None)

    async def close(self) -> None:
        """See SpanTransport."""


class Deltas:
    """What a worker's telemetry counted since the last time it was asked."""

    def __init__(self, telemetry: Telemetry) -> None:
        """Everything counted so far will be in the first report."""
        self._telemetry = telemetry
        self._recorder = telemetry.recorder
        self._told_cells: dict[tuple[int, int, str], list[Any]] = {}
        self._told: dict[tuple[str, str], int] = {}

    def take(self) -> Report:
        """The report; gauges are the caller's to add."""
        report, recorder = Report(), self._recorder
        for (service, subset, protocol), series in recorder.series.items():
            for (status, flag), cell in series.cells.items():
                now = _numbers(cell)
                key = (id(series), status, flag)
                before = self._told_cells.get(key)
                if before is None or before[0] != now[0]:
                    report.cells[service, subset, protocol, status, flag] = _minus(now, before)
                    self._told_cells[key] = now
        totals = {("retries", reason): n for reason, n in recorder.retries.items()}
        totals |= {("ejections", service): n for service, n in recorder.ejections_of.items()}
        totals |= {("budget_exhausted", service): n for service, n in recorder.budget_exhausted_of.items()}
        totals["health_answers", ""] = recorder.health_answers
        exporter, log = self._telemetry.exporter, self._telemetry.log
        if exporter is not None:
            totals["spans_dropped", ""] = exporter.dropped
        if log is not None:
            totals |= {("log_lines", ""): log.lines, ("log_dropped", ""): log.dropped}
        for counter, total in totals.items():
            if total != self._told.get(counter, 0):
                report.counters[counter] = total - self._told.get(counter, 0)
                self._told[counter] = total
        return report


def _numbers(cell: RequestCell) -> list[Any]:
    return [list(v) if isinstance(v := getattr(cell, name), list) else v for name in CELL_NUMBERS]


def _minus(now: list[Any], before: list[Any] | None) -> list[Any]:
    if before is None:
        return now
    return [
        [a - b for a, b in zip(n, o, strict=True)] if isinstance(n, list) else n - o
        for n, o in zip(now, before, strict=True)
    ]


def add_cell(cell: RequestCell, numbers: list[Any]) -> None:
    """Add a delta to a cell."""
    for name, delta in zip(CELL_NUMBERS, numbers, strict=True):
        value = getattr(cell, name)
        if isinstance(value, list):
            value[:] = [a + b for a, b in zip(value, delta, strict=True)]
        else:
            setattr(cell, name, value + delta)


class Worker:
    """See the module."""

    def __init__(self, link: Link, config: SidecarConfig, token: str, sockets: dict[str, int]) -> None:
        """``sockets``: the file descriptor of each listener's bound socket, by the listener's name."""
        self._link = link
        self._sockets = sockets
        rng = Random(SystemRandom().getrandbits(128))
        self._telemetry = Telemetry(config, os.environ, rng, lambda _: LinkTransport(link))
        self._directory = LinkDirectory(link)
        names = Names(config.service.namespace, config.suffixes)
        settings = PlaneSettings(config.service, names, config.egress, config.connect_ports, shares=config.workers)
        recorder = self._telemetry.recorder
        self._plane = DataPlane(settings, self._directory, recorder, self._telemetry.propagation, rng)
        self._listeners: Listeners = build_listeners(self._plane, config, token)
        self._deltas = Deltas(self._telemetry)
        self._servers: list[Closable] = []
        self._handlers: dict[str, Callable[..., None]] = {
            "table": self._on_table,
            "endpoints": self._plane.apply_endpoints,
            "drop": self._plane.drop_service,
            "answer": self._directory.answered,
            "program": self._on_program,
            "drain": self._on_drain,
            "websockets": self._on_websockets,
            "report": self._on_report,
            "states": self._on_states,
            "reopen": self._telemetry.reopen,
        }

    async def run(self) -> None:
        """Follow the parent until it says stop or is gone."""
        self._plane.start()
        self._telemetry.start()
        while (message := await self._link.receive()) is not None:
            kind, *items = message
            if kind == "stop":
                break
            if kind == "open":
                await self._open()
            else:
                self._handlers[kind](*items)
        for server in self._servers:
            server.close()
        self._plane.give_up()
        await self._listeners.close_connections()
        await self._plane.close()
        await self._telemetry.close()
        self._on_report(0)
        await self._link.close()

    async def _open(self) -> None:
        for name, listener in self._listeners.named():
            sock = socket.socket(fileno=self._sockets[name])
            sock.setblocking(False)
            self._servers.append(await open_server(listener, sock, is_shared=True))
        settle_memory()
        self._link.send("opened")

    def _on_table(self, number: int, body: bytes | None) -> None:
        """Run a table; the answer says why not, where it cannot be."""
        reason: str | None = None
        try:
            snapshot = None
            if body is not None:
                snapshot = snapshot_from_push(discovery_pb2.SnapshotPush.FromString(body))
            self._plane.apply_table(snapshot)
        except Exception as error:  # the parent decides what becomes of it
            logger.exception("a worker cannot run table %d", number)
            reason = f"{type(error).__name__}: {error}"
        self._link.send("applied", number, reason)

    def _on_program(self, state: str) -> None:
        self._plane.program_state = state

    def _on_drain(self) -> None:
        if self._listeners.inbound is not None:
            self._listeners.inbound.is_draining = True

    def _on_websockets(self, inbound_only: bool) -> None:  # noqa: FBT001 - as it came over the link
        tell_websockets(self._plane, self._listeners.that_leave(inbound_only=inbound_only))

    def _on_report(self, number: int) -> None:
        report = self._deltas.take()
        inbound = self._listeners.inbound
        report.gauges = {
            "exchanges": len(self._plane.exchanges),
            "inbound_exchanges": sum(e.listener is inbound for e in self._plane.exchanges),
            "unsent": self._listeners.unsent(inbound_only=False),
            "inbound_unsent": self._listeners.unsent(inbound_only=True),
            "inbound_quiet_s": self._plane.clock() - inbound.last_request_s if inbound else float("inf"),
        }
        for name, listener in self._listeners.named():
            report.gauges[f"connections {name}"] = len(listener.connections)
            report.gauges[f"refused {name}"] = listener.refused_connections
            report.gauges[f"handshakes {name}"] = listener.failed_handshakes
        for service in self._plane.services.values():
            report.gauges[f"active {service.name}"] = service.usage.requests
            report.gauges[f"pending {service.name}"] = service.usage.pending
            report.gauges[f"upstream {service.name}"] = service.usage.connections
            report.ejected |= {(service.name, key) for key, e in service.endpoints.items() if e.outlier.is_ejected}
        if self._telemetry.exporter is not None:
            report.gauges["spans_queued"] = self._telemetry.exporter.queued
        self._link.send("report", number, report)

    def _on_states(self, number: int) -> None:
        self._plane.tasks.start(self._tell_states(number), "tell states")

    async def _tell_states(self, number: int) -> None:
        self._link.send("states", number, await states(self._plane.services.values()))


async def main(descriptor: int) -> None:
    """Take over the link, hear who we are, and work."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Signals to the process group are the parent's to act upon.
        asyncio.get_running_loop().add_signal_handler(number, lambda: None)
    link = await Link.open(socket.socket(fileno=descriptor))
    message = await link.receive()
    if message is None:
        return
    _, config, token, sockets, level = message
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    with contextlib.suppress(ConnectionError):
        await Worker(link, config, token, sockets).run()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
