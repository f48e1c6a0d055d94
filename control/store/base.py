"""What a store does: it keeps every version of the table, whole, with who made it, when and why.

There is one writer (``control.ledger``), so a store decides nothing. It only promises that a version it said it took
is still there after a crash, and that ``epoch`` names the history it holds: a store that was put back to an earlier
state answers with another epoch, since its version numbers would otherwise name two different tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from mesh.model.name import Name
from mesh.model.snapshot import Kind, Snapshot


class Action(Enum):
    """What happened to a resource in one version."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"
    UNCHANGED = "unchanged"
    """Named by a request but already so; never part of a stored revision."""


@dataclass(frozen=True, slots=True)
class Change:
    """One resource's part in a revision."""

    kind: Kind
    name: Name
    action: Action


@dataclass(frozen=True, slots=True)
class Revision:
    """Who made a version, when and why, and what it changed against the one before."""

    version: int
    when_unix_s: float
    author: str
    reason: str
    changes: tuple[Change, ...]


class Store(Protocol):
    """A durable, append-only list of table versions, numbered 1, 2, 3 … Methods raise ``StoreError``."""

    async def open(self) -> tuple[Snapshot, Revision]:
        """Make ready, creating an empty version 1 where there is nothing yet; returns the newest version."""

    async def append(self, snapshot: Snapshot, revision: Revision) -> None:
        """Keep the next version, durably: it is on disk when this returns. All or nothing."""

    async def revisions(self, limit: int, before: int | None = None) -> list[Revision]:
        """The newest ``limit`` revisions below version ``before``, newest first."""

    async def snapshot_at(self, version: int) -> Snapshot | None:
        """The table as it was at ``version``; None where there is no such version."""

    async def close(self) -> None:
        """Let go of the files. Safe to call twice."""
