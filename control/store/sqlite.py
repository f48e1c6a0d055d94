"""The embedded store: one SQLite file.

Every call runs in one thread of its own, since a commit waits for the disk (WAL, ``synchronous=FULL``: a version is
on disk before an operator hears of it). Bodies are kept once by digest, a version is a list of digests.

The file may be put back from a backup while sidecars already run later versions. Then version numbers would name two
tables, so the epoch must change. Two marks tell: the file's inode, kept within it (a copied file has another), and a
small file beside it with the last version written (a file restored in place is behind it). Wrong alarms (a moved
volume) only cost one push of a table every sidecar already has.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from control.errors import StoreError
from control.store.base import Action, Change, Revision
from mesh.model.errors import InvalidError
from mesh.model.name import Name
from mesh.model.snapshot import Kind, Resource, Snapshot, make_snapshot
from mesh.model.wire import decode_resource

_T = TypeVar("_T")

_SCHEMA_VERSION: Final = 1
_BUSY_TIMEOUT_S: Final = 5.0  # a backup tool may hold the file for a moment
_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE body (digest TEXT PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE revision (
    version INTEGER PRIMARY KEY,
    when_unix_s REAL NOT NULL,
    author TEXT NOT NULL,
    reason TEXT NOT NULL,
    changes TEXT NOT NULL,   -- JSON: [[kind, namespace, name, action], ...]
    resources TEXT NOT NULL  -- JSON: [digest, ...]
);
"""


class SqliteStore:
    """The ``Store`` in the directory ``directory``, or in memory for as long as it is open where that is None."""

    def __init__(self, directory: Path | None, clock: Callable[[], float]) -> None:
        """``clock`` gives Unix seconds, for the first revision of a new store. Opens nothing yet."""
        self._directory = directory
        self._clock = clock
        self._executor: ThreadPoolExecutor | None = None
        self._db: sqlite3.Connection | None = None
        self._lock_fd: int | None = None
        self._epoch = ""

    async def open(self) -> tuple[Snapshot, Revision]:
        """See ``Store``. Also raises StoreError where another process has the directory open."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="store")
        try:
            return await self._run(self._open)
        except BaseException:
            await self.close()
            raise

    async def append(self, snapshot: Snapshot, revision: Revision) -> None:
        """See ``Store``."""
        await self._run(lambda: self._append(snapshot, revision))

    async def revisions(self, limit: int, before: int | None = None) -> list[Revision]:
        """See ``Store``."""
        return await self._run(lambda: self._revisions(limit, before))

    async def snapshot_at(self, version: int) -> Snapshot | None:
        """See ``Store``."""
        return await self._run(lambda: self._snapshot_at(version))

    async def close(self) -> None:
        """See ``Store``."""
        if self._executor is None:
            return
        executor, self._executor = self._executor, None
        await asyncio.get_running_loop().run_in_executor(executor, self._close)
        executor.shutdown()

    async def _run(self, work: Callable[[], _T]) -> _T:
        """Run ``work`` in the store's thread; foreign errors become StoreError."""
        if self._executor is None:
            message = "the store is closed"
            raise StoreError(message)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except (sqlite3.Error, OSError) as error:
            message = f"the store {self._directory or '(in memory)'} failed: {error}"
            raise StoreError(message) from error
        except InvalidError as error:
            message = f"the store {self._directory or '(in memory)'} holds what this version cannot read: {error}"
            raise StoreError(message) from error

    # Everything below runs in the store's thread.

    def _open(self) -> tuple[Snapshot, Revision]:
        target = ":memory:"
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock(self._directory / "lock")
            target = str(self._directory / "control.db")
        db = sqlite3.connect(target, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        self._db = db
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            self._create(db)
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found != _SCHEMA_VERSION:
            message = f"{target} has schema {found}, this version reads {_SCHEMA_VERSION}"
            raise StoreError(message)
        self._epoch = self._check_epoch(db)
        revision = self._revisions(1, None)[0]
        snapshot = self._snapshot_at(revision.version)
        assert snapshot is not None  # noqa: S101 - the version was just read
        self._write_mark(revision.version)
        return snapshot, revision

    def _take_lock(self, path: Path) -> None:
        """Keep other control servers out: two writers would each publish a version of the same number."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            message = f"{path.parent} is in use by another control server; stop it or give this one its own --data"
            raise StoreError(message) from error
        self._lock_fd = fd

    def _create(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        try:
            for statement in _SCHEMA.split(";\n"):
                db.execute(statement)
            db.execute("INSERT INTO meta VALUES ('epoch', ?), ('inode', ?)", (secrets.token_hex(8), self._inode()))
            self._insert_revision(db, Revision(1, self._clock(), "control", "store created", ()), ())
            db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise

    def _check_epoch(self, db: sqlite3.Connection) -> str:
        """The store's epoch; a new one if the file is not where, or behind what, it was last written."""
        meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
        newest = db.execute("SELECT max(version) FROM revision").fetchone()[0]
        if meta["inode"] == self._inode() and not self._is_behind_mark(meta["epoch"], newest):
            return str(meta["epoch"])
        epoch = secrets.token_hex(8)
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (epoch,))
        db.execute("UPDATE meta SET value = ? WHERE key = 'inode'", (self._inode(),))
        db.execute("COMMIT")
        return epoch

    def _inode(self) -> str:
        return "" if self._directory is None else str((self._directory / "control.db").stat().st_ino)

    def _is_behind_mark(self, epoch: str, newest: int) -> bool:
        if self._directory is None:
            return False
        try:
            mark = (self._directory / "newest").read_text().split()
            return mark[0] == epoch and int(mark[1]) > newest
        except (OSError, ValueError, IndexError):
            return False

    def _write_mark(self, version: int) -> None:
        """Best effort, after the commit: a mark that is behind raises no alarm."""
        if self._directory is None:
            return
        fresh = self._directory / "newest.tmp"
        try:
            fresh.write_text(f"{self._epoch} {version}\n")
            fresh.replace(self._directory / "newest")
        except OSError:
            return

    def _append(self, snapshot: Snapshot, revision: Revision) -> None:
        db = self._connection()
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany(
                "INSERT OR IGNORE INTO body VALUES (?, ?, ?)",
                [(r.digest, r.kind.value, r.body) for r in snapshot.resources],
            )
            self._insert_revision(db, revision, snapshot.resources)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._write_mark(revision.version)

    @staticmethod
    def _insert_revision(db: sqlite3.Connection, revision: Revision, resources: tuple[Resource, ...]) -> None:
        changes = [[c.kind.value, c.name.namespace, c.name.name, c.action.value] for c in revision.changes]
        db.execute(
            "INSERT INTO revision VALUES (?, ?, ?, ?, ?, ?)",
            (
                revision.version,
                revision.when_unix_s,
                revision.author,
                revision.reason,
                json.dumps(changes),
                json.dumps([r.digest for r in resources]),
            ),
        )

    def _revisions(self, limit: int, before: int | None) -> list[Revision]:
        rows = self._connection().execute(
            "SELECT version, when_unix_s, author, reason, changes FROM revision"
            " WHERE version < ? ORDER BY version DESC LIMIT ?",
            (before if before is not None else 2**62, limit),
        )
        return [
            Revision(
                version,
                when,
                author,
                reason,
                tuple(Change(Kind(k), Name(ns, n), Action(a)) for k, ns, n, a in json.loads(changes)),
            )
            for version, when, author, reason, changes in rows
        ]

    def _snapshot_at(self, version: int) -> Snapshot | None:
        db = self._connection()
        row = db.execute("SELECT resources FROM revision WHERE version = ?", (version,)).fetchone()
        if row is None:
            return None
        resources = []
        for digest in json.loads(row[0]):
            kind, body = db.execute("SELECT kind, body FROM body WHERE digest = ?", (digest,)).fetchone()
            resources.append(decode_resource(Kind(kind), body))
        return make_snapshot(self._epoch, version, resources)

    def _connection(self) -> sqlite3.Connection:
        assert self._db is not None  # noqa: S101 - _run refuses a closed store
        return self._db

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None
