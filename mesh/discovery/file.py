"""Discovery from a file (or a parsed section of a configuration): for one machine, for tests, for no dependencies."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mesh.discovery.base import Contact, FailureObserver, HealthCheck, Observation, Observer, SourceError
from mesh.discovery.file_format import Services, read_document, read_services
from mesh.model.errors import InvalidError
from mesh.model.name import Name
from mesh.model.service import Health, Instance
from mesh.tasks import Tasks

_log = logging.getLogger(__name__)

POLL_S: Final = 1.0
SETTLE_S: Final = 0.1  # a file that changed is read when it stood still so long: editors write in pieces
MAX_BYTES: Final = 16 * 1024 * 1024

_Stamp = tuple[int, int, int]  # inode, mtime in ns, size


class FileSource:
    """Endpoints from a YAML or JSON file that is watched, or from a mapping that never changes.

    A bad or missing file leaves the last good one in force; what is wrong is logged once for each state of the file.
    """

    name = "file"

    def __init__(self, path: str | Path | None, services: Services | None = None, poll_s: float = POLL_S) -> None:
        """Either a ``path``, or ``services`` as read already. ``poll_s``: how often the file is looked at."""
        self.path = None if path is None else Path(path)
        self.error: SourceError | None = None
        """What is wrong with the file now, None while it is good."""
        self._services = services
        self._poll_s = poll_s
        self._stamp: _Stamp | None = None
        self._watches: set[FileWatch] = set()
        self._tasks = Tasks("file")

    @classmethod
    def of(cls, section: Mapping[str, object], at: str = "services") -> FileSource:
        """A source of a parsed ``services:`` section. Raises InvalidError with everything wrong in it."""
        return cls(None, read_services(section, at))

    async def start(self) -> None:
        """Read the file and begin to look at it."""
        if self.path is not None:
            await self._look()
            self._tasks.start(self._poll(), f"poll {self.path}")

    async def close(self) -> None:
        """End all watches."""
        self._watches.clear()
        await self._tasks.close()

    async def lookup(self, service: Name) -> Observation | None:
        """What the file says; SourceError if no good one was ever read."""
        if self._services is None:
            raise self.error or SourceError("the file source was not started")
        endpoints = self._services.get(service)
        return None if endpoints is None else Observation(service, endpoints, Contact.RESUMED)

    def watch(self, service: Name, observer: Observer, failed: FailureObserver) -> FileWatch:
        """Watch; the first observation comes in the next loop turn."""
        watch = FileWatch(self, service, observer, failed)
        self._watches.add(watch)
        asyncio.get_running_loop().call_soon(watch.tell)
        return watch

    async def register(self, instance: Instance, health: Health, check: HealthCheck | None = None) -> FileRegistration:
        """Nothing is written: who edits the file decides what is in it."""
        del instance, health, check
        return FileRegistration()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self._look()

    async def _look(self) -> None:
        """Read the file if it changed since the last look, and tell the watches."""
        path = self.path
        if path is None:
            return
        stamp: _Stamp | None = None
        try:
            # In threads: on a network file system that hangs, only discovery may; and YAML of megabytes takes seconds.
            stamp = await asyncio.to_thread(_stamp, path)
            if stamp == self._stamp:
                return
            if self._services is not None:
                stamp = await self._until_still(path, stamp)
            services = await asyncio.to_thread(_read, path)
        except OSError as error:
            self._reject(SourceError(f"{path}: {error.strerror or error}"), None)
        except (InvalidError, UnicodeDecodeError) as error:
            self._reject(SourceError(f"{path} is not valid; what was read before stays in force:\n{error}"), stamp)
        else:
            if self.error is not None:
                _log.info("%s is good again", path)
            self._services, self._stamp, self.error = services, stamp, None
            self._tell()

    async def _until_still(self, path: Path, stamp: _Stamp) -> _Stamp:
        while True:
            await asyncio.sleep(SETTLE_S)
            again = await asyncio.to_thread(_stamp, path)
            if again == stamp:
                return stamp
            stamp = again

    def _reject(self, error: SourceError, stamp: _Stamp | None) -> None:
        self._stamp = stamp
        if self.error is not None and str(self.error) == str(error):
            return  # said already
        self.error = error
        _log.error("%s", error)
        self._tell()

    def _tell(self) -> None:
        for watch in list(self._watches):
            watch.tell()

    @property
    def in_force(self) -> tuple[Services | None, SourceError | None]:
        """For watches: what was read last that was good, and what is wrong with the file now."""
        return self._services, self.error

    def forget(self, watch: FileWatch) -> None:
        """For watches: this one has ended."""
        self._watches.discard(watch)


class FileWatch:
    """Reports one service at each good reading of the file."""

    def __init__(self, source: FileSource, service: Name, observer: Observer, failed: FailureObserver) -> None:
        """Told by its source."""
        self.service = service
        self._source = source
        self._observer = observer
        self._failed = failed
        self._is_closed = False
        self._contact = Contact.RESUMED
        self._has_reported = False

    def tell(self) -> None:
        """Report what is in force, and what is wrong."""
        if self._is_closed:
            return
        services, error = self._source.in_force
        if services is not None and (error is None or not self._has_reported):
            self._observer(Observation(self.service, services.get(self.service, ()), self._contact))
            self._contact = Contact.CONTINUOUS
            self._has_reported = True
        if error is not None:
            self._contact = Contact.RESUMED
            self._failed(self.service, error)

    async def close(self) -> None:
        """End it. Safe to call twice."""
        self._is_closed = True
        self._source.forget(self)


class FileRegistration:
    """A registration that does nothing."""

    def set_health(self, health: Health) -> None:
        """Nothing."""

    async def change_check(self, check: HealthCheck | None) -> None:
        """Nothing."""

    async def announce_leaving(self) -> None:
        """Nothing: without a source that others watch there is nobody to tell."""

    async def close(self) -> None:
        """Nothing."""


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> Services:
    with path.open("rb") as file:
        body = file.read(MAX_BYTES + 1)
    if len(body) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"is longer than {MAX_BYTES} bytes")
    return read_document(body.decode("utf-8"), is_json=path.suffix == ".json")
