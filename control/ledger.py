"""The one writer of the table: plans a change, stores it, publishes it, and collects the sidecars' answers.

A change is stored before any sidecar hears of it, so that no sidecar ever runs a version that a crash could undo.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from control.answers import Answer, Waiting
from control.errors import ConflictError, NotFoundError
from control.hub import Hub
from control.planning import Plan, plan_rollback
from control.store.base import Revision, Store
from mesh.model.snapshot import Snapshot
from mesh.tasks import Tasks

log = logging.getLogger(__name__)

DEFAULT_WAIT_S = 5.0
MAX_WAIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Options:
    """How a change is to be made; see ChangeOptions in operator.proto."""

    author: str
    reason: str = ""
    expect_version: int | None = None
    is_dry_run: bool = False
    wait_s: float = DEFAULT_WAIT_S
    is_forced: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """A change as made (or, in a dry run, as it would be made)."""

    previous_version: int
    version: int
    plan: Plan
    answers: tuple[Answer, ...] = ()


Planner = Callable[[Snapshot], Awaitable[Plan]]
"""Makes the plan from the table as it is when the change's turn has come."""


class Ledger:
    """Table, history and their publication. ``clock`` gives Unix seconds."""

    def __init__(self, store: Store, hub: Hub, newest: Revision, clock: Callable[[], float]) -> None:
        """``newest`` is the revision of the hub's snapshot."""
        self._store = store
        self._hub = hub
        self._clock = clock
        self._turn = asyncio.Lock()
        self._tasks = Tasks("ledger")
        self._observers: set[Callable[[Revision], None]] = set()
        self.newest = newest

    @property
    def snapshot(self) -> Snapshot:
        """The newest table."""
        return self._hub.current.snapshot

    async def change(self, planner: Planner, options: Options) -> Outcome:
        """Make one change. Raises what ``planner`` raises, ConflictError and StoreError; then nothing has changed."""
        async with self._turn:
            current = self.snapshot
            if options.expect_version is not None and options.expect_version != current.id.version:
                raise ConflictError(options.expect_version, current.id.version)
            plan = await planner(current)
            if options.is_dry_run or not plan.effective:
                return Outcome(current.id.version, current.id.version, plan)
            revision = Revision(plan.snapshot.id.version, self._clock(), options.author, options.reason, plan.effective)
            waiting = await self._finish(
                self._store_and_publish(plan.snapshot, revision), f"version {revision.version}"
            )
        log.info(
            "version %d by %s: %s%s",
            revision.version,
            revision.author,
            ", ".join(f"{c.kind.value} {c.name} {c.action.value}" for c in revision.changes),
            f" ({revision.reason})" if revision.reason else "",
        )
        answers = await self._hub.answers(waiting, min(options.wait_s, MAX_WAIT_S))
        return Outcome(current.id.version, revision.version, plan, tuple(answers))

    async def rollback(self, to_version: int, options: Options) -> Outcome:
        """Make the table of ``to_version`` (0: the one before the newest) the newest. Raises NotFoundError besides."""

        async def planner(current: Snapshot) -> Plan:
            wanted = to_version or current.id.version - 1
            earlier = await self._store.snapshot_at(wanted) if wanted > 0 else None
            if earlier is None:
                message = f"there is no version {wanted} to go back to"
                raise NotFoundError(message)
            return plan_rollback(current, earlier)

        return await self.change(planner, options)

    async def snapshot_at(self, version: int) -> Snapshot:
        """The table at ``version``; 0 means the newest. Raises NotFoundError and StoreError."""
        if version in (0, self.snapshot.id.version):
            return self.snapshot
        snapshot = await self._store.snapshot_at(version)
        if snapshot is None:
            message = f"there is no version {version}; the newest is {self.snapshot.id.version}"
            raise NotFoundError(message)
        return snapshot

    async def revisions(self, limit: int, before: int | None) -> list[Revision]:
        """See ``Store.revisions``."""
        return await self._store.revisions(limit, before)

    @contextmanager
    def observing(self, observer: Callable[[Revision], None]) -> Iterator[None]:
        """Call ``observer`` with each new revision, once it is published."""
        self._observers.add(observer)
        try:
            yield
        finally:
            self._observers.discard(observer)

    async def close(self) -> None:
        """Wait for a change that is being stored."""
        async with self._turn:
            await self._tasks.close()

    async def _store_and_publish(self, snapshot: Snapshot, revision: Revision) -> Waiting:
        await self._store.append(snapshot, revision)
        self.newest = revision
        waiting = self._hub.publish(snapshot, revision.when_unix_s)
        for observer in tuple(self._observers):
            observer(revision)
        return waiting

    async def _finish(self, work: Coroutine[None, None, Waiting], name: str) -> Waiting:
        """Carry ``work`` to its end even if the caller goes away: a stored version must not stay unpublished."""
        result: asyncio.Future[Waiting] = asyncio.get_running_loop().create_future()

        async def carry() -> None:
            try:
                result.set_result(await work)
            except Exception as error:  # noqa: BLE001 - handed to the caller
                result.set_exception(error)

        self._tasks.start(carry(), name)
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            await asyncio.wait((result,))
            result.exception()  # nobody is left to hear of it but the log of the store
            raise
