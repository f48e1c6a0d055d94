"""What /metrics says of one sidecar. Families of few lines are made whole, requests a series at a time."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from mesh.telemetry import names
from mesh.telemetry.exposition import OTHER_LABELS, Sample, connection_families, family, request_families
from mesh.telemetry.metrics import RequestCell, escape
from mesh.telemetry.names import Metric
from mesh.version import VERSION
from proxy.recorder import OPENED, TCP_PROTOCOL

if TYPE_CHECKING:
    from proxy.sidecar import Sidecar

CHUNK_CHARS = 64 * 1024  # about 0.1 ms of making, then the loop runs

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


async def chunks(sidecar: Sidecar) -> AsyncIterator[bytes]:
    """The exposition; between two chunks the loop runs."""
    if sidecar.pool is not None:
        await sidecar.pool.gather()
    held: list[str] = []
    size = 0
    for piece in pieces(sidecar):
        held.append(piece)
        size += len(piece)
        if size >= CHUNK_CHARS:
            yield "".join(held).encode()
            held.clear()
            size = 0
            await asyncio.sleep(0)
    yield "".join(held).encode()


def pieces(sidecar: Sidecar) -> Iterator[str]:
    """The exposition, a family or a series of one at a time."""
    yield from request_families(_request_cells(sidecar))
    yield from connection_families(*_connection_cells(sidecar))
    for metric, samples in _samples(sidecar):
        yield family(metric, samples)


def _request_cells(sidecar: Sidecar) -> list[tuple[str, RequestCell]]:
    recorder = sidecar.recorder
    cells = [
        (f'{series.text},{_outcome(status)},response_flags="{escape(flag) or "-"}"', cell)
        for series, status, flag, cell in recorder.cells()
        if series.protocol != TCP_PROTOCOL
    ]
    if recorder.budget.other is not None:
        cells.append((OTHER_LABELS, recorder.budget.other))
    return cells


def _connection_cells(sidecar: Sidecar) -> tuple[list[tuple[str, RequestCell]], list[tuple[str, RequestCell]]]:
    """Of TCP connections: those opened, and those that are over with their flags."""
    opened: list[tuple[str, RequestCell]] = []
    closed: list[tuple[str, RequestCell]] = []
    for series, status, flag, cell in sidecar.recorder.cells():
        if series.protocol == TCP_PROTOCOL:
            labels = f'{series.text},response_flags="{escape(flag) or "-"}"'
            (opened if status == OPENED else closed).append((labels, cell))
    return opened, closed


def _outcome(status: int) -> str:
    """The labels of an HTTP status, or of a gRPC one, which is below 100 and travels with 200."""
    return f'response_code="{status}"' if status >= 100 else f'response_code="200",grpc_response_status="{status}"'


def _samples(sidecar: Sidecar) -> Iterator[tuple[Metric, list[Sample]]]:
    yield from _requests(sidecar)
    yield from _upstreams(sidecar)
    yield from _listeners(sidecar)
    yield from _control(sidecar)
    yield from _sinks(sidecar)
    yield from _process(sidecar)


def _requests(sidecar: Sidecar) -> Iterator[tuple[Metric, list[Sample]]]:
    recorder = sidecar.recorder
    yield names.RETRIES, [((reason,), count) for reason, count in sorted(recorder.retries.items())]
    yield names.BUDGET_EXHAUSTED, [((s,), count) for s, count in sorted(recorder.budget_exhausted_of.items())]
    yield names.EJECTIONS, [((service,), count) for service, count in sorted(recorder.ejections_of.items())]
    yield names.EXCHANGES, [((), _now(sidecar, "exchanges", len(sidecar.plane.exchanges)))]
    yield names.HEALTH_ANSWERS, [((), recorder.health_answers)]
    yield names.CAPPED, [(("requests",), recorder.is_capped)]


def _upstreams(sidecar: Sidecar) -> Iterator[tuple[Metric, list[Sample]]]:
    services = [(str(name), service) for name, service in sorted(sidecar.plane.services.items())]
    yield (
        names.UPSTREAM_CONNECTIONS,
        [((name,), _now(sidecar, f"upstream {name}", s.usage.connections)) for name, s in services],
    )
    yield names.UPSTREAM_ACTIVE, [((name,), _now(sidecar, f"active {name}", s.usage.requests)) for name, s in services]
    yield names.UPSTREAM_PENDING, [((name,), _now(sidecar, f"pending {name}", s.usage.pending)) for name, s in services]
    ejected_by_workers = set() if sidecar.pool is None else sidecar.pool.ejected
    endpoints: list[Sample] = []
    for name, service in services:
        known = service.endpoints.values()
        out = [e.outlier.is_ejected or (service.name, e.model.id) in ejected_by_workers for e in known]
        usable = sum(e.model.health.is_usable and not is_out for e, is_out in zip(known, out, strict=True))
        endpoints += [((name, "known"), len(known)), ((name, "usable"), usable), ((name, "ejected"), sum(out))]
    yield names.ENDPOINTS, endpoints
    if sidecar.catalog is not None:
        reports = sidecar.catalog.report()
        yield names.ENDPOINTS_AGE, [((str(r.service),), r.age_s) for r in reports if r.age_s is not None]
        yield names.DISCOVERY_SERVICES, [((state,), count) for state, count in sidecar.catalog.counts.items()]


def _listeners(sidecar: Sidecar) -> Iterator[tuple[Metric, list[Sample]]]:
    opened = list(sidecar.listeners.named())
    yield (
        names.LISTENER_CONNECTIONS,
        [((name,), _now(sidecar, f"connections {name}", len(lst.connections))) for name, lst in opened],
    )
    yield (
        names.REFUSED_CONNECTIONS,
        [((name,), _now(sidecar, f"refused {name}", lst.refused_connections)) for name, lst in opened],
    )
    yield (
        names.FAILED_HANDSHAKES,
        [((name,), _now(sidecar, f"handshakes {name}", lst.failed_handshakes)) for name, lst in opened],
    )


def _now(sidecar: Sidecar, gauge: str, own: int) -> float:
    """A gauge: our own, or the sum over the workers where they carry the traffic."""
    return own if sidecar.pool is None else sidecar.pool.gauges.get(gauge, 0)


def _control(sidecar: Sidecar) -> Iterator[tuple[Metric, list[Sample]]]:
    table, feed, last_good = sidecar.plane.table, sidecar.feed, sidecar.last_good
    yield names.READY, [((), sidecar.is_ready)]
    yield names.TABLE_VERSION, [((), table.id.version if table else 0)]
    if feed is not None:
        yield names.CONTROL_CONNECTED, [((), feed.is_connected)]
        yield names.TABLE_ACKS, [((), feed.acks)]
        yield names.TABLE_NACKS, [((), feed.nacks)]
    if last_good is not None:
        yield names.LAST_GOOD_FAILURES, [((), last_good.write_failures)]


def _sinks(sidecar: Sidecar) -> Iterator[tuple[Metric, list[Sample]]]:
    exporter, log = sidecar.telemetry.exporter, sidecar.telemetry.log
    if exporter is not None:
        yield names.SPANS_EXPORTED, [((), exporter.exported)]
        yield names.SPANS_DROPPED, [((), exporter.dropped + _counted(sidecar, "spans_dropped"))]
        yield names.SPANS_QUEUED, [((), _now(sidecar, "spans_queued", 0) + exporter.queued)]
    if log is not None:
        yield names.LOG_LINES, [((), log.lines + _counted(sidecar, "log_lines"))]
        yield names.LOG_DROPPED, [((), log.dropped + _counted(sidecar, "log_dropped"))]


def _counted(sidecar: Sidecar, counter: str) -> int:
    """What workers counted, to be added to our own."""
    return 0 if sidecar.pool is None else sidecar.pool.counted[counter]


def _process(sidecar: Sidecar) -> Iterator[tuple[Metric, list[Sample]]]:
    service = str(sidecar.config.service)
    yield names.BUILD, [((VERSION, platform.python_version(), service), 1)]
    used = os.times()
    yield names.CPU, [((), used.user + used.system)]
    # proc(5): not there, on another system or under a strict sandbox, means that these are not told.
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - read at every scrape
            resident = int(file.read().split()[1])
        with open("/proc/self/stat", "rb") as file:  # noqa: PTH123
            started = int(file.read().rpartition(b")")[2].split()[19])
        opened = os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))  # noqa: PTH116, PTH208 - the size is their number since Linux 6.2
    except (OSError, ValueError, IndexError):
        return
    yield names.RSS, [((), resident * _PAGE_BYTES)]
    yield names.OPEN_FDS, [((), opened)]
    boot_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    yield names.START_TIME, [((), round(boot_s + started / _TICKS_A_SECOND, 2))]
