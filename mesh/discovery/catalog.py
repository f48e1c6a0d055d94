"""What a sidecar knows of services: which are watched, what is served of each, and the answer to a first request.

The choices:

- Declared services (upstreams, services that routes name) are watched for as long as they are declared, also while
  they do not exist. Others are looked up once at their first request and watched from then on, at most 128 of them,
  until nobody has asked for 10 min.
- A name that does not exist is never watched; it is answered from a negative cache for 5 s. Names come from a
  ``Host`` header, so a flood of them must cost nothing that grows: invalid ones are refused unasked, at most 16
  lookups run at one time (above it the answer is "unavailable", since nobody knows), and the cache is bounded.
- That a source is out of reach is another answer than "no such service": 503, not 404.
- What an earlier process knew (``remember``) is served until the source answers. Declared services begin with it;
  others have it in place of "unavailable" and "unknown"; what nobody asked for in 10 min is forgotten.

``get`` is for the hot path: one dict lookup. Subscribers are called in the loop, in order of subscription.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from mesh.discovery.base import Contact, Observation, Source, SourceError, Watch
from mesh.discovery.resolution import NegativeCache, Resolution, Unresolved, Why
from mesh.discovery.retention import DEFAULT_GRACE_S, Retention, ServedEndpoints, Subsets
from mesh.model.name import Name, is_label
from mesh.model.service import Endpoint
from mesh.tasks import Tasks

__all__ = ["Catalog", "CatalogSettings", "Resolution", "ServedEndpoints", "ServiceReport", "Unresolved", "Why"]

_log = logging.getLogger(__name__)

_SHUTTING_DOWN = "the sidecar is shutting down"


@dataclass(frozen=True, slots=True)
class CatalogSettings:
    """Bounds and times of a catalog; times in seconds."""

    grace_s: float = DEFAULT_GRACE_S
    lookup_timeout_s: float = 2.0  # what a first request waits at most
    max_lookups: int = 16  # at one time; Consul's short connections are as many
    negative_s: float = 5.0
    max_negative: int = 1024
    max_on_demand: int = 128  # together with declared ones below Consul's 150 blocking queries in most meshes
    idle_s: float = 600.0
    sweep_s: float = 30.0  # how exactly idleness is measured


Subscriber = Callable[[Name, ServedEndpoints], None]


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """One watched service, for metrics and the admin page. ``age_s``: see Retention; None while nothing is known."""

    service: Name
    source: str
    is_declared: bool
    contact: Contact | None
    age_s: float | None
    error: str | None
    """Why the source is out of contact now; None while it is in contact."""
    usable: int
    known: int
    missing: int


class _Entry:
    """One watched service."""

    __slots__ = (
        "contact",
        "error",
        "is_declared",
        "is_touched",
        "retention",
        "service",
        "timer",
        "touched_at",
        "waiters",
        "watch",
    )

    def __init__(self, service: Name, grace_s: float, now: float, *, is_declared: bool) -> None:
        self.service = service
        self.retention = Retention(service, grace_s)
        self.is_declared = is_declared
        self.is_touched = False  # since the last sweep; a flag, so that get() reads no clock
        self.touched_at = now
        self.contact: Contact | None = None
        self.error: SourceError | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.watch: Watch | None = None
        self.waiters: set[asyncio.Future[None]] = set()  # of resolve(), before the first answer


class Catalog:
    """The watches of one sidecar over one source. Owns its tasks; the source is started and closed by its owner."""

    def __init__(self, source: Source, settings: CatalogSettings | None = None) -> None:
        """Nothing runs before ``start``."""
        self.source = source
        self.settings = settings or CatalogSettings()
        self._entries: dict[Name, _Entry] = {}
        self._subsets: Mapping[Name, Subsets] = {}
        self._negative = NegativeCache(self.settings.negative_s, self.settings.max_negative)
        self._lookups: dict[Name, asyncio.Future[Resolution]] = {}
        self._subscribers: list[Subscriber] = []
        self._tasks = Tasks("catalog")
        self._remembered: dict[Name, tuple[Endpoint, ...]] = {}  # nobody has asked for these yet
        self._remembered_at = 0.0  # when they were true, on the loop's clock
        self._forget_at = 0.0
        self._is_blind = False
        self._is_closed = False

    async def start(self) -> None:
        """Begin to drop what is idle."""
        self._tasks.start(self._sweep(), "sweep")

    async def close(self) -> None:
        """End all watches and lookups; who waits for one is told that the source is unavailable."""
        self._is_closed = True
        await self._tasks.close()
        for lookup in self._lookups.values():  # a task that was cancelled before its first step ran no `finally`
            if not lookup.done():
                lookup.set_result(Unresolved(Why.UNAVAILABLE, _SHUTTING_DOWN))
        self._lookups.clear()
        for entry in list(self._entries.values()):
            watch = self._drop(entry)
            if watch is not None:
                await watch.close()

    # --- what is watched ---

    def remember(self, services: Mapping[Name, tuple[Endpoint, ...]], age_s: float) -> None:
        """What was served ``age_s`` seconds ago, by an earlier process. Call it before ``declare``."""
        now = self._now()
        self._remembered = {name: endpoints for name, endpoints in services.items() if _is_valid(name)}
        self._remembered_at = now - age_s
        self._forget_at = now + self.settings.idle_s

    def knowledge(self) -> dict[Name, tuple[Endpoint, ...]]:
        """What a later process may ``remember``: first what is declared, last what was remembered and not used."""
        entries = sorted(self._entries.values(), key=lambda entry: (not entry.is_declared, entry.service))
        known = {entry.service: entry.retention.served.known for entry in entries if entry.retention.served.known}
        return known | {name: each for name, each in self._remembered.items() if name not in self._entries}

    def declare(self, services: Iterable[Name], subsets: Mapping[Name, Subsets] | None = None) -> None:
        """Watch exactly these for good; those declared before and no more become idle ones.

        ``subsets``: those of the ServicePolicies, which a removal must not leave empty. Invalid names are skipped.
        """
        now = self._now()
        self._subsets = dict(subsets or {})
        wanted = set(services)
        for service in sorted(wanted):
            if not _is_valid(service):
                _log.warning("service %s is not watched: not a DNS label", service)
                continue
            entry = self._entries.get(service) or self._watch(service, now, is_declared=True)
            entry.is_declared = True
        for entry in self._entries.values():
            entry.retention.use_subsets(self._subsets.get(entry.service, {}))
            if entry.is_declared and entry.service not in wanted:
                entry.is_declared = False
                entry.touched_at = now
        self._make_room(0)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call ``subscriber`` whenever what is served of a service changes; returns what ends that.

        A service that is dropped for idleness is reported as served with nothing.
        """
        self._subscribers.append(subscriber)

        def unsubscribe() -> None:
            if subscriber in self._subscribers:
                self._subscribers.remove(subscriber)

        return unsubscribe

    # --- answers ---

    def get(self, service: Name) -> ServedEndpoints | None:
        """What is served of ``service``; None where that is not known (yet): ``resolve`` it. Marks it as used."""
        entry = self._entries.get(service)
        if entry is None or not entry.retention.is_known:
            return None
        entry.is_touched = True
        return entry.retention.served

    async def resolve(self, service: Name) -> Resolution:
        """The answer to a first request: waits at most 2 s. Callers at the same time share one lookup."""
        entry = self._entries.get(service)
        if entry is not None:
            return await self._first_answer(entry)
        now = self._now()
        settled = self._settle(service, now)
        if settled is not None:
            return settled
        lookup = self._lookups.get(service)
        if lookup is None:
            lookup = asyncio.get_running_loop().create_future()
            self._lookups[service] = lookup
            self._tasks.start(self._look_up(service, lookup), f"lookup {service}")
        return await asyncio.shield(lookup)  # a caller that gives up takes nothing from the others

    def resolve_soon(self, service: Name, done: Callable[[Resolution], None]) -> None:
        """``resolve`` for callers that cannot await: ``done`` is called once, in the loop, after this returned."""

        def ended(task: asyncio.Task[Resolution]) -> None:
            # Cancelled by close(), the only one who can; what died of a bug was logged by its owner.
            died = task.cancelled() or task.exception() is not None
            done(Unresolved(Why.UNAVAILABLE, _SHUTTING_DOWN) if died else task.result())

        self._tasks.start(self.resolve(service), f"resolve {service}").add_done_callback(ended)

    def connect_failed(self, service: Name, endpoint_id: str) -> None:
        """No connection could be made to an endpoint: one that is only kept for its grace time is dropped."""
        entry = self._entries.get(service)
        if entry is not None and entry.retention.connect_failed(endpoint_id):
            self._changed(entry)

    def report(self) -> tuple[ServiceReport, ...]:
        """All watched services, in order of name."""
        now = self._now()
        return tuple(self._report(self._entries[service], now) for service in sorted(self._entries))

    @property
    def counts(self) -> Mapping[str, int]:
        """``declared``, ``on_demand``, ``lookups`` (running) and ``negative`` (cached), for metrics."""
        declared = sum(entry.is_declared for entry in self._entries.values())
        return {
            "declared": declared,
            "on_demand": len(self._entries) - declared,
            "lookups": len(self._lookups),
            "negative": len(self._negative),
        }

    # --- lookups ---

    def _settle(self, service: Name, now: float) -> Resolution | None:
        """The answers that need no lookup."""
        if not _is_valid(service):
            return Unresolved(Why.UNKNOWN, f"{service} is not the name of a service: its parts must be DNS labels")
        if self._negative.holds(service, now):
            return _unknown(service, self.source)
        if self._is_closed:
            return Unresolved(Why.UNAVAILABLE, _SHUTTING_DOWN)
        if service not in self._lookups and len(self._lookups) >= self.settings.max_lookups:
            full = Unresolved(Why.UNAVAILABLE, f"{len(self._lookups)} other services are being looked up: try again")
            return self._recalled(service) or full
        return None

    async def _look_up(self, service: Name, answer: asyncio.Future[Resolution]) -> None:
        result: Resolution = Unresolved(Why.UNAVAILABLE, _SHUTTING_DOWN)
        try:
            async with asyncio.timeout(self.settings.lookup_timeout_s):
                observation = await self.source.lookup(service)
            result = self._looked_up(service, observation)
        except SourceError as error:
            result = self._recalled(service) or Unresolved(Why.UNAVAILABLE, str(error))
        except TimeoutError:
            detail = f"{self.source.name} did not say within {self.settings.lookup_timeout_s:g} s where {service} is"
            result = self._recalled(service) or Unresolved(Why.UNAVAILABLE, detail)
        finally:
            del self._lookups[service]
            if not answer.done():
                answer.set_result(result)

    def _looked_up(self, service: Name, observation: Observation | None) -> Resolution:
        now = self._now()
        if observation is None:
            # As of any known service: who restarted with nothing says the same, so what is missing has its grace time.
            recalled = self._recalled(service)
            if recalled is not None:
                return recalled
            self._negative.add(service, now)
            return _unknown(service, self.source)
        entry = self._entries.get(service)  # it may have been declared meanwhile
        if entry is None:
            self._make_room(1)
            entry = self._watch(service, now, is_declared=False)
        if not entry.retention.observations:
            self._observed(entry, observation)
        return entry.retention.served

    def _recalled(self, service: Name) -> ServedEndpoints | None:
        """What is remembered of a service that the source does not tell of; it is watched from now on."""
        entry = self._entries.get(service)  # it may have been declared meanwhile
        if entry is None and service in self._remembered:
            self._make_room(1)
            entry = self._watch(service, self._now(), is_declared=False)
        return entry.retention.served if entry is not None and entry.retention.is_known else None

    async def _first_answer(self, entry: _Entry) -> Resolution:
        """Of a watched service: at once if there was an answer, or if the source is known to be silent."""
        entry.is_touched = True
        if not entry.retention.is_known and entry.error is None:
            waiter = asyncio.get_running_loop().create_future()
            entry.waiters.add(waiter)
            try:
                async with asyncio.timeout(self.settings.lookup_timeout_s):
                    await waiter
            except TimeoutError:
                pass
            finally:
                entry.waiters.discard(waiter)
        if entry.retention.is_known:
            return entry.retention.served
        return Unresolved(Why.UNAVAILABLE, str(entry.error or f"{self.source.name} has not answered yet"))

    # --- watches ---

    def _watch(self, service: Name, now: float, *, is_declared: bool) -> _Entry:
        entry = _Entry(service, self.settings.grace_s, now, is_declared=is_declared)
        entry.retention.use_subsets(self._subsets.get(service, {}))
        self._entries[service] = entry
        self._negative.remove(service)
        remembered = self._remembered.pop(service, None)
        if remembered is not None:
            entry.retention.recall(now, remembered, max(0.0, now - self._remembered_at))
            self._changed(entry)
        entry.watch = self.source.watch(
            service, lambda observation: self._observed(entry, observation), lambda _, error: self._failed(entry, error)
        )
        return entry

    def _observed(self, entry: _Entry, observation: Observation) -> None:
        if self._entries.get(entry.service) is not entry:
            return  # dropped a moment ago
        if self._is_blind:
            self._is_blind = False
            _log.info("discovery: %s is in contact again", self.source.name)
        is_first = entry.retention.observations == 0
        entry.contact, entry.error = observation.contact, None
        if entry.retention.observe(self._now(), observation) or is_first:
            self._changed(entry)
        else:
            self._set_timer(entry)
        _wake(entry)

    def _failed(self, entry: _Entry, error: SourceError) -> None:
        if self._entries.get(entry.service) is not entry:
            return
        if not self._is_blind:
            self._is_blind = True  # said once for all services: they share the source
            _log.warning("discovery: %s; serving the last known endpoints", error)
        entry.error = error
        entry.retention.lost_contact(self._now(), error.silent_s)
        self._set_timer(entry)
        _wake(entry)

    def _changed(self, entry: _Entry) -> None:
        self._set_timer(entry)
        self._tell(entry.service, entry.retention.served)

    def _tell(self, service: Name, served: ServedEndpoints) -> None:
        for subscriber in list(self._subscribers):
            subscriber(service, served)

    def _set_timer(self, entry: _Entry) -> None:
        due = entry.retention.next_grace_end
        if entry.timer is not None:
            if due is not None and entry.timer.when() == due:
                return
            entry.timer.cancel()
            entry.timer = None
        if due is not None:
            entry.timer = asyncio.get_running_loop().call_at(due, self._expire, entry)

    def _expire(self, entry: _Entry) -> None:
        entry.timer = None
        # The loop may fire a timer a little early (its clock's resolution): then it is set again.
        if entry.retention.expire(self._now()):
            missing = len(entry.retention.served.missing)
            _log.info(
                "discovery: missing endpoints of %s are gone after their grace time, %d left", entry.service, missing
            )
            self._changed(entry)
        else:
            self._set_timer(entry)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.settings.sweep_s)
            now = self._now()
            self._stamp(now)
            self._negative.expire(now)
            if now >= self._forget_at:
                self._remembered.clear()
            for entry in list(self._entries.values()):
                if not entry.is_declared and now - entry.touched_at >= self.settings.idle_s:
                    _log.debug("discovery: %s was idle and is watched no more", entry.service)
                    self._end(self._drop(entry))

    def _stamp(self, now: float) -> None:
        for entry in self._entries.values():
            if entry.is_touched:
                entry.is_touched = False
                entry.touched_at = now

    def _make_room(self, wanted: int) -> None:
        """Drop the on-demand watches unused for longest, so that ``wanted`` more fit."""
        on_demand = [entry for entry in self._entries.values() if not entry.is_declared]
        excess = len(on_demand) + wanted - self.settings.max_on_demand
        if excess <= 0:
            return
        self._stamp(self._now())
        on_demand.sort(key=lambda entry: entry.touched_at)
        for entry in on_demand[:excess]:
            self._end(self._drop(entry))

    def _end(self, watch: Watch | None) -> None:
        if watch is not None:
            self._tasks.start(watch.close(), "end a watch")

    def _drop(self, entry: _Entry) -> Watch | None:
        """Forget a service; the caller closes the watch."""
        del self._entries[entry.service]
        if entry.timer is not None:
            entry.timer.cancel()
        entry.error = entry.error or SourceError(f"{entry.service} is watched no more")
        _wake(entry)
        if not self._is_closed:
            self._tell(entry.service, ServedEndpoints(entry.service, (), ()))
        return entry.watch

    def _report(self, entry: _Entry, now: float) -> ServiceReport:
        retention = entry.retention
        return ServiceReport(
            entry.service,
            self.source.name,
            entry.is_declared,
            entry.contact,
            retention.age_s(now) if retention.is_known else None,
            None if entry.error is None else str(entry.error),
            len(retention.served.usable),
            len(retention.served.known),
            len(retention.served.missing),
        )

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _is_valid(service: Name) -> bool:
    return is_label(service.namespace) and is_label(service.name)


def _unknown(service: Name, source: Source) -> Unresolved:
    return Unresolved(Why.UNKNOWN, f"{source.name} knows no service {service}")


def _wake(entry: _Entry) -> None:
    for waiter in entry.waiters:
        if not waiter.done():
            waiter.set_result(None)
