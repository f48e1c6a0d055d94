"""The last good table and the last known endpoints on disk, for a cold start while their source is dead.

Each is written whole to a new file that then takes the old one's place, so a crash or a full disk leaves the old one.
A disk that cannot be written to costs the cold start and nothing else: it is logged and counted. What is read is
checked whole; a file that is not as it was written counts as none.

Endpoints change by themselves, tables only by an operator: so endpoints are written at most once a second, only when
they differ from what is there, and what does not fit into ``MAX_ENDPOINTS_BYTES`` is left out.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from mesh.discovery.file_format import read_services
from mesh.model.errors import InvalidError
from mesh.model.name import Name
from mesh.model.service import Endpoint
from mesh.model.snapshot import Snapshot
from mesh.model.wire import push_from_snapshot, snapshot_from_push
from mesh.tasks import Tasks
from protos.mesh.v1 import discovery_pb2

logger = logging.getLogger(__name__)

MAX_ENDPOINTS_BYTES = 8 << 20  # as much as a table: about 40 000 endpoints
WRITE_EVERY_S = 1.0

Endpoints = Mapping[Name, tuple[Endpoint, ...]]


@dataclass(frozen=True, slots=True)
class KnownEndpoints:
    """What was read. It was true until ``age_s`` seconds ago at least, by the machine's clock: then it was written."""

    services: Endpoints
    age_s: float


class LastGood:
    """The files of one sidecar. Its methods block: call them in a thread; it writes one file at a time."""

    def __init__(self, directory: Path, node: str) -> None:
        """``node`` names the files, so that sidecars may share a directory."""
        safe = "".join(c if c.isalnum() or c in "-." else "_" for c in node)
        self.path = directory / f"{safe}.table"
        self.endpoints_path = directory / f"{safe}.endpoints"
        self.write_failures = 0
        self._writing = threading.Lock()
        self._is_told: set[str] = set()  # what was logged and has not passed
        self._kept: bytes | None = None  # the endpoints as the file has them

    # --- the table --------------------------------------------------------------------------------------------------

    def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot; failing is logged, never raised."""
        body = push_from_snapshot(snapshot, "", 0.0).SerializeToString(deterministic=True)
        with self._writing:
            try:
                _replace(self.path, self.path.with_suffix(".new"), body)
            except OSError as error:
                self.write_failures += 1
                logger.warning(
                    "the last good table could not be kept in %s (%s): a restart without control server lacks it",
                    self.path,
                    error.strerror,
                )

    def load(self) -> Snapshot | None:
        """The kept snapshot; None where there is none that can be read."""
        try:
            return snapshot_from_push(discovery_pb2.SnapshotPush.FromString(self.path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, DecodeError, InvalidError) as error:
            logger.warning("the last good table in %s cannot be read: %s", self.path, error)
            return None

    # --- the endpoints ----------------------------------------------------------------------------------------------

    def save_endpoints(self, source: str, services: Endpoints) -> None:
        """Keep what ``source`` told, the first services where not all fit; failing is logged once, never raised."""
        with self._writing:
            body, left_out = _encode(source, services.items())
            if left_out:
                self._warn(
                    "size", "%d services do not fit into %s: a restart lacks them", left_out, self.endpoints_path
                )
            if body == self._kept:
                return
            try:
                _replace(self.endpoints_path, self.endpoints_path.with_suffix(".endpoints-new"), body)
            except OSError as error:
                self.write_failures += 1
                self._warn(
                    "write",
                    "the last known endpoints could not be kept in %s (%s): a restart while %s is silent lacks them",
                    self.endpoints_path,
                    error.strerror,
                    source,
                )
            else:
                self._kept = body
                self._is_told.discard("write")

    def load_endpoints(self, source: str) -> KnownEndpoints | None:
        """What was kept of what ``source`` told; None where there is nothing that can be read."""
        path = self.endpoints_path
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                body = file.read(MAX_ENDPOINTS_BYTES + 1)
            services = _decode(source, body)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("the last known endpoints in %s cannot be read: %s", path, error)
            return None
        if services is None:
            logger.info("the endpoints in %s were told by another source than %s and are left alone", path, source)
            return None
        self._kept = body
        return KnownEndpoints(services, max(0.0, time.time() - status.st_mtime))

    def _warn(self, what: str, message: str, *arguments: object) -> None:
        """Warn once, until it has passed: endpoints may change every second."""
        if what not in self._is_told:
            self._is_told.add(what)
            logger.warning(message, *arguments)


def _replace(path: Path, fresh: Path, body: bytes) -> None:
    """Write ``fresh`` whole, then put it in the place of ``path``. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with fresh.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _encode(source: str, services: Iterable[tuple[Name, tuple[Endpoint, ...]]]) -> tuple[bytes, int]:
    """The file's bytes, and how many services did not fit.

    A line that says whose they are and the digest of what follows: the ``services`` of a discovery file, as JSON.
    """
    room = MAX_ENDPOINTS_BYTES - 1024  # the first line
    lines: list[str] = []
    left_out = 0
    for name, endpoints in services:
        line = f"{json.dumps(str(name))}: {json.dumps([_document(endpoint) for endpoint in endpoints])}"
        if len(line) + 2 > room:  # JSON in ASCII: a character is a byte
            left_out += 1
            continue
        room -= len(line) + 2
        lines.append(line)
    body = ("{" + ",\n".join(lines) + "}").encode()
    head = json.dumps({"source": source, "sha256": hashlib.sha256(body).hexdigest()})
    return head.encode() + b"\n" + body, left_out


def _document(endpoint: Endpoint) -> dict[str, object]:
    return {
        "id": endpoint.id,
        "address": endpoint.address,
        "port": endpoint.port,
        "metadata": dict(endpoint.metadata),
        "tags": list(endpoint.tags),
        "health": endpoint.health.value,
    }


def _decode(source: str, data: bytes) -> Endpoints | None:
    """What ``_encode`` wrote; None where another source told it. Raises ValueError."""
    if len(data) > MAX_ENDPOINTS_BYTES:
        raise ValueError(f"it has more than {MAX_ENDPOINTS_BYTES} bytes")
    first, _, body = data.partition(b"\n")
    head = json.loads(first)
    if not isinstance(head, dict) or head.get("sha256") != hashlib.sha256(body).hexdigest():
        raise ValueError("it is not as it was written")
    if head.get("source") != source:
        return None
    services: dict[Name, tuple[Endpoint, ...]] = {}
    for name, endpoints in json.loads(body).items():
        try:
            services.update(read_services({name: endpoints}))
        except InvalidError as error:  # a source may let through what a file may not say; the others stand
            logger.warning("the last known endpoints of %s are of no use: %s", name, error)
    return services


class EndpointsKeeper:
    """Has the endpoints written when they change, one write at a time and each second at most."""

    def __init__(self, last_good: LastGood, source: str, knowledge: Callable[[], Endpoints]) -> None:
        """``knowledge`` gives what is known now; it is called in the loop."""
        self._last_good = last_good
        self._source = source
        self._knowledge = knowledge
        self._tasks = Tasks("last known endpoints")
        self._is_due = False
        self._is_writing = False
        self._is_closed = False

    def changed(self) -> None:
        """Something became known, or is known no more."""
        self._is_due = True
        if not self._is_writing and not self._is_closed:
            self._is_writing = True
            self._tasks.start(self._write(), "write")

    async def close(self) -> None:
        """Write what is due, then nothing more."""
        self._is_closed = True
        await self._tasks.close()
        if self._is_due:
            await self._save()

    async def _write(self) -> None:
        try:
            while self._is_due:
                await asyncio.sleep(WRITE_EVERY_S)  # first: changes come in bursts, as at the start
                await self._save()
        finally:
            self._is_writing = False

    async def _save(self) -> None:
        self._is_due = False  # before the write: what changes meanwhile is due again
        try:
            await asyncio.to_thread(self._last_good.save_endpoints, self._source, self._knowledge())
        except asyncio.CancelledError:
            self._is_due = True  # nobody waits for that write: ``close`` does it again, after it
            raise
