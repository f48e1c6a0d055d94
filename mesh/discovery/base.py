"""The one interface that every discovery source implements, and what it reports.

A source only *observes*: it says what it saw and how sure it is. What is served from that (grace times,
removals, emptiness) is decided once for all sources in ``retention.py``; which services are watched at all
is decided in ``catalog.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from mesh.model.name import Name
from mesh.model.service import Endpoint, Health, Instance


class Contact(Enum):
    """How an observation joins the one before it, which decides whether what is missing is believed gone."""

    CONTINUOUS = "continuous"
    """The source has been in contact since the last observation and knew everything then."""

    RESUMED = "resumed"
    """First observation, or first after a transport error, an index reset or a restart of the source: what is
    missing may only be forgotten."""


@dataclass(frozen=True, slots=True)
class Observation:
    """All instances of ``service`` that the source knows now, healthy or not.

    ``lease_s``: whoever lives says so again within that time; 0.0 where the source has no leases.
    """

    service: Name
    endpoints: tuple[Endpoint, ...]
    contact: Contact
    lease_s: float = 0.0


class SourceError(Exception):
    """The source could not be asked or refused; the message says why and what to do."""

    silent_s: float = 0.0
    """For how long nothing had been heard from it by then."""


class SourceRefused(SourceError):
    """The source was reached and said no (token, malformed request): asking again as before will not help."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A check that the source itself runs against ``url`` over HTTP: any 2xx is passing, 429 is warning.

    Sources that cannot probe (the registry, a file) ignore it: there the health travels with ``set_health``.
    """

    url: str
    interval_s: float = 1.0  # as often as the sidecar checks its program, so that either's death shows as fast
    timeout_s: float = 1.0  # a loopback-or-LAN answer that takes longer than the interval is as good as none
    deregister_after_s: float = 600.0  # forget what was critical so long; Consul's least is 60 s


Observer = Callable[[Observation], None]
"""Called in the event loop with each observation, in order."""

FailureObserver = Callable[[Name, SourceError], None]
"""Called when a watch lost contact; it goes on trying by itself. The next observation is RESUMED."""


class Watch(Protocol):
    """A running watch of one service."""

    async def close(self) -> None:
        """End it; no observer is called after this was called. Safe to call twice."""


class Registration(Protocol):
    """An instance that this process registered and keeps registered."""

    def set_health(self, health: Health) -> None:
        """Tell the source the program's state from now on; takes effect in the background.

        A source that runs a ``HealthCheck`` of its own finds it out by that check instead.
        """

    async def change_check(self, check: HealthCheck | None) -> None:
        """Be checked in this way from now on, as ``Source.register`` says.

        Raises SourceError where the source could not be told; it will be, in the background.
        """

    async def announce_leaving(self) -> None:
        """Mark the instance as leaving (maintenance), so that nobody sends it new requests. Raises SourceError."""

    async def close(self) -> None:
        """Deregister. Best effort with a deadline of its own; never raises for a source that is gone."""


class Source(Protocol):
    """Where endpoints come from."""

    @property
    def name(self) -> str:
        """``consul``, ``registry`` or ``file``, for metrics and pages."""

    async def start(self) -> None:
        """Make ready (a client session, a file watch). Does not need the source to be reachable."""

    async def lookup(self, service: Name) -> Observation | None:
        """Ask once. None: the source answered and has never heard of the service. Raises SourceError."""

    def watch(self, service: Name, observer: Observer, failed: FailureObserver) -> Watch:
        """Watch ``service`` until the watch is closed, through every outage of the source."""

    async def register(self, instance: Instance, health: Health, check: HealthCheck | None = None) -> Registration:
        """Register and keep registered, also when the source forgets, with ``health`` as the first status.

        Raises SourceRefused if it refuses outright; a source that cannot be reached is retried in the background.
        """

    async def close(self) -> None:
        """End all watches and connections (registrations are closed by their owners)."""
