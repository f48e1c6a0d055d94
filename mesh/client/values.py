"""What goes into the calls of a client and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mesh.model.name import Name
from mesh.model.policy import ServicePolicy
from mesh.model.route import BackendRef, Route
from mesh.model.snapshot import Kind, SnapshotId

DEFAULT_WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """How a change is made. ``wait_s`` is how long to wait for the sidecars' answers; 0 does not wait."""

    expect_version: int | None = None
    dry_run: bool = False
    reason: str = ""
    wait_s: float = DEFAULT_WAIT_S
    force: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One resource's part in a change; ``action`` is created, updated, deleted or unchanged."""

    kind: Kind
    name: Name
    action: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One sidecar's answer; ``result`` is acked, nacked or silent. ``took_s`` counts from publishing."""

    node: str
    result: str
    reason: str
    took_s: float


@dataclass(frozen=True, slots=True)
class ChangeResult:
    """A change as made. Equal versions: nothing changed, or it was a dry run."""

    previous_version: int
    version: int
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    answers: tuple[Answer, ...]

    @property
    def is_acked_by_all(self) -> bool:
        """Every sidecar that was connected took it."""
        return all(answer.result == "acked" for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Table:
    """Resources at one version."""

    version: int
    values: tuple[Route | ServicePolicy, ...]


@dataclass(frozen=True, slots=True)
class RuleWeights:
    """The backends of one rule on ``service``; ``rule`` is its name, or its index from 0; ``kind`` its route's."""

    service: Name
    route: Name
    rule: str
    backend_refs: tuple[BackendRef, ...]
    kind: str = "HTTPRoute"


@dataclass(frozen=True, slots=True)
class Revision:
    """One version in the history."""

    version: int
    when_unix_s: float
    author: str
    reason: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class SidecarStatus:
    """One sidecar; ``state`` is acked, nacked, pending or disconnected, since ``since_unix_s``."""

    node: str
    service: Name | None
    service_version: str
    instance_id: str
    sidecar_version: str
    state: str
    running: SnapshotId
    reason: str
    since_unix_s: float
    peer: str


@dataclass(frozen=True, slots=True)
class Status:
    """The newest table and all sidecars, in order of node."""

    current: SnapshotId
    sidecars: tuple[SidecarStatus, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: a new revision, or a sidecar in a new state."""

    when_unix_s: float
    revision: Revision | None = None
    sidecar: SidecarStatus | None = None
