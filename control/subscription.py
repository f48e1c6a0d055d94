"""What one sidecar asked for, was sent, and answered. Pure; ``now`` is Unix seconds, as people read it.

The rules are xDS's: every push has a nonce, an answer with another nonce than the last push's is stale and says
nothing about it; a NACK leaves the sidecar on what it ran before. A Hello that names the current snapshot is an
answer too: that sidecar already runs it, so nothing is sent again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from mesh.model.name import Name
from mesh.model.snapshot import NO_SNAPSHOT, SnapshotId

RECONNECT_GRACE_S: Final = 5.0
"""How long a sidecar whose stream broke still counts as possibly sending: it does send, and is about to return."""

MAX_WATCHED_SERVICES: Final = 1024
MAX_ENDPOINT_IDS: Final = 20_000
MAX_REASON: Final = 4096


class State(Enum):
    """Where a sidecar stands with the current table."""

    PENDING = "pending"
    ACKED = "acked"
    NACKED = "nacked"
    DISCONNECTED = "disconnected"


class ProtocolError(Exception):
    """The sidecar sent what the protocol does not allow; its stream ends."""


@dataclass(frozen=True, slots=True)
class SidecarInfo:
    """Who a sidecar says it is."""

    node: str
    service: Name | None = None
    service_version: str = ""
    instance_id: str = ""
    sidecar_version: str = ""
    capabilities: tuple[str, ...] = ()
    wanted_services: tuple[Name, ...] = ()
    peer: str = ""


@dataclass(slots=True)
class Subscription:
    """One sidecar's side of the story; it outlives the stream for a while, so that ``mesh status`` can tell."""

    info: SidecarInfo
    running: SnapshotId = NO_SNAPSHOT
    state: State = State.PENDING
    reason: str = ""
    since: float = 0.0
    """When ``state`` was entered."""
    sent: SnapshotId = NO_SNAPSHOT
    sent_at: float = 0.0
    nonce: str = ""
    endpoints: dict[Name, frozenset[str]] = field(default_factory=dict)
    """Per watched service, the endpoints this sidecar may send new requests to."""
    is_recalled: bool = False
    """Known from before this server started; what it runs and sees has not been heard yet."""

    @classmethod
    def recalled(cls, info: SidecarInfo, now: float) -> Subscription:
        """A sidecar that the server before this one knew, and that has not come back yet."""
        subscription = cls(info, is_recalled=True)
        subscription.disconnected("not back since this control server started", now)
        return subscription

    def pushed(self, snapshot: SnapshotId, nonce: str, now: float) -> None:
        """Note that ``snapshot`` is on its way (or, where it already runs it, that we said so)."""
        self.sent, self.nonce, self.sent_at = snapshot, nonce, now
        if self.running == snapshot:
            self._enter(State.ACKED, "", now)
        else:
            self._enter(State.PENDING, "", now)

    def acked(self, nonce: str, now: float) -> bool:
        """Take an ACK; False if it is stale and says nothing about the last push."""
        if not nonce or nonce != self.nonce:
            return False
        self.running = self.sent
        self._enter(State.ACKED, "", now)
        return True

    def nacked(self, nonce: str, reason: str, running: SnapshotId, now: float) -> bool:
        """Take a NACK; False if it is stale. ``running`` is what the sidecar goes on with."""
        if not nonce or nonce != self.nonce:
            return False
        self.running = running
        self._enter(State.NACKED, reason[:MAX_REASON] or "no reason given", now)
        return True

    def saw_endpoints(self, service: Name, ids: frozenset[str] | None) -> None:
        """Note which endpoints it may send to; None: it no longer watches ``service``. Raises ProtocolError."""
        if ids is None:
            self.endpoints.pop(service, None)
            return
        if service not in self.endpoints and len(self.endpoints) >= MAX_WATCHED_SERVICES:
            message = f"more than {MAX_WATCHED_SERVICES} services watched"
            raise ProtocolError(message)
        if len(ids) > MAX_ENDPOINT_IDS:
            message = f"more than {MAX_ENDPOINT_IDS} endpoints of {service}"
            raise ProtocolError(message)
        self.endpoints[service] = ids

    def disconnected(self, why: str, now: float) -> None:
        """The stream is gone; what it ran and saw last stays known."""
        self._enter(State.DISCONNECTED, why, now)

    def may_send_to(self, service: Name, instance_id: str, now: float) -> bool:
        """Tell whether it may still send new requests to that instance, as far as we were told; if in doubt, it may."""
        if self.state is State.DISCONNECTED and now - self.since > RECONNECT_GRACE_S:
            return False
        return self.is_recalled or instance_id in self.endpoints.get(service, frozenset())

    def _enter(self, state: State, reason: str, now: float) -> None:
        if state is not self.state or reason != self.reason or not self.since:
            self.since = now
        self.state, self.reason = state, reason
