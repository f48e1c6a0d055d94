"""What the sidecars answered to one change, for the operator who waits for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum

from mesh.model.snapshot import SnapshotId


class Result(Enum):
    """What a sidecar answered to a change."""

    ACKED = "acked"
    NACKED = "nacked"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Answer:
    """One sidecar's answer; ``took_s`` is from publishing to the answer, or to the end of waiting."""

    node: str
    result: Result
    reason: str
    took_s: float


@dataclass(eq=False, slots=True)
class Waiting:
    """Somebody who waits for the answers to one snapshot."""

    snapshot: SnapshotId
    published_unix_s: float
    open: set[str]
    answers: dict[str, Answer] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """Nobody to wait for is done at once."""
        if not self.open:
            self.done.set()

    def record(self, node: str, result: Result, reason: str, now: float) -> None:
        """Take the first answer of ``node``; ``now`` is Unix seconds. Others than those waited for are left out."""
        if node in self.open:
            self.open.discard(node)
            self.answers[node] = Answer(node, result, reason, max(0.0, now - self.published_unix_s))
            if not self.open:
                self.done.set()
