"""The embedded discovery: instances hold leases that they renew. Pure; every method takes ``now`` (monotonic s).

What is chosen here, and why:

- **An instance whose lease ends is removed, not called critical.** It may be the way to us that is broken; a removal
  leaves the sidecars' own rules (grace time, the last one stays, ejection) in charge.
- **After a start nothing is known to be gone** until one full lease has passed: ``is_settled`` says so to watchers,
  and no lease ends before.
- **Our own standstill is nobody's death.** When ``expire`` was not called for longer than a second beyond its rhythm
  (a suspended machine, a blocked loop), all leases are prolonged by that time.
- **A deregistered instance stays listed as leaving** for a while (a tombstone), so that a sidecar which reconnects
  just then learns that it left on purpose and need not keep it for its grace time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from mesh.model.errors import InvalidError, Violation
from mesh.model.name import Name
from mesh.model.service import Endpoint, Health, Instance
from mesh.model.validate import MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE, MAX_PORT, check_name

DEFAULT_LEASE_S: Final = 10.0
"""Renewed every third of it: two renewals may be lost (Eureka's ratio), and ejection acts long before it ends."""

MIN_LEASE_S: Final = 1.0
TOMBSTONE_S: Final = 60.0  # twice the sidecars' grace time
EXPIRE_EVERY_S: Final = 0.5  # how often the shell calls ``expire``
MAX_INSTANCES: Final = 20_000  # bounded memory against a client gone wild: about 20 MB
MAX_ID: Final = 253
MAX_TAGS: Final = 64


class UnknownInstanceError(KeyError):
    """No such instance is registered; its owner has to register it again."""


class FullError(Exception):
    """The registry holds as many instances as it takes."""


@dataclass(slots=True)
class _Lease:
    endpoint: Endpoint
    ends: float
    duration_s: float
    is_tombstone: bool = False


@dataclass(slots=True)
class _Service:
    leases: dict[str, _Lease] = field(default_factory=dict)
    revision: int = 0


@dataclass(frozen=True, slots=True)
class ServiceState:
    """What the registry knows of a service. ``revision`` grows with every change of ``endpoints``."""

    service: Name
    endpoints: tuple[Endpoint, ...]
    revision: int
    is_settled: bool


class Registry:
    """All instances of the mesh that registered here."""

    def __init__(self, epoch: str, now: float, lease_s: float = DEFAULT_LEASE_S) -> None:
        """``epoch`` is unlike that of every registry process before; ``lease_s`` is the longest lease granted."""
        self.epoch = epoch
        self.lease_s = lease_s
        self.settles = now + lease_s
        """When what is missing is known to be gone (monotonic s)."""
        self._services: dict[Name, _Service] = {}
        self._expired_at = now
        self._count = 0

    def __len__(self) -> int:
        """Instances that hold a lease, tombstones left out."""
        return sum(not lease.is_tombstone for s in self._services.values() for lease in s.leases.values())

    def is_settled(self, now: float) -> bool:
        """One full lease has passed since the start: whoever is alive has registered again."""
        return now >= self.settles

    def register(self, instance: Instance, now: float, asked_lease_s: float | None = None) -> float:
        """Take an instance in, or replace it under its id; returns the lease granted, in seconds.

        Raises InvalidError for a name, address or metadata that cannot be, FullError at ``MAX_INSTANCES``.
        """
        problems = check_instance(instance)
        if problems:
            raise InvalidError(problems)
        service = self._services.get(instance.service)
        is_new = service is None or instance.endpoint.id not in service.leases
        if is_new and self._count >= MAX_INSTANCES:
            message = f"the registry is full: {MAX_INSTANCES} instances"
            raise FullError(message)
        service = self._services.setdefault(instance.service, _Service())
        duration_s = min(max(asked_lease_s or self.lease_s, MIN_LEASE_S), self.lease_s)
        old = service.leases.get(instance.endpoint.id)
        service.leases[instance.endpoint.id] = _Lease(instance.endpoint, now + duration_s, duration_s)
        self._count += is_new
        if old is None or old.endpoint != instance.endpoint:
            service.revision += 1
        return duration_s

    def renew(self, service: Name, instance_id: str, health: Health, now: float) -> float:
        """Prolong a lease and take over the program's state; returns the lease. Raises UnknownInstanceError."""
        known = self._services.get(service)
        lease = known.leases.get(instance_id) if known else None
        if known is None or lease is None or lease.is_tombstone:
            raise UnknownInstanceError(instance_id)
        lease.ends = now + lease.duration_s
        if lease.endpoint.health is not health:
            lease.endpoint = replace(lease.endpoint, health=health)
            known.revision += 1
        return lease.duration_s

    def deregister(self, service: Name, instance_id: str, now: float) -> bool:
        """Take an instance out, leaving a tombstone; False where it was not in."""
        known = self._services.get(service)
        lease = known.leases.get(instance_id) if known else None
        if known is None or lease is None or lease.is_tombstone:
            return False
        if lease.endpoint.health is not Health.LEAVING:
            lease.endpoint = replace(lease.endpoint, health=Health.LEAVING)
            known.revision += 1
        lease.is_tombstone, lease.ends = True, now + TOMBSTONE_S
        return True

    def expire(self, now: float) -> set[Name]:
        """Remove what has ended; returns the services that changed. Call it every ``EXPIRE_EVERY_S``."""
        stood_still_s = now - self._expired_at - EXPIRE_EVERY_S
        self._expired_at = now
        if stood_still_s > 1.0:
            for service in self._services.values():
                for lease in service.leases.values():
                    lease.ends += stood_still_s
            if now - stood_still_s < self.settles:
                self.settles += stood_still_s
        changed: set[Name] = set()
        if not self.is_settled(now):
            return changed
        for name, service in self._services.items():
            ended = [id_ for id_, lease in service.leases.items() if lease.ends <= now]
            for id_ in ended:
                del service.leases[id_]
                self._count -= 1
            if ended:
                service.revision += 1
                changed.add(name)
        return changed

    def state(self, service: Name, now: float) -> ServiceState | None:
        """What is known of ``service``; None where it was never registered (since this registry started)."""
        known = self._services.get(service)
        if known is None:
            return None
        endpoints = tuple(lease.endpoint for _, lease in sorted(known.leases.items()))
        return ServiceState(service, endpoints, known.revision, self.is_settled(now))

    def revision(self, service: Name) -> int:
        """The revision of ``service``; 0 where it was never registered."""
        known = self._services.get(service)
        return known.revision if known else 0

    def services(self) -> Iterator[Name]:
        """Names of all services ever registered here, in order."""
        yield from sorted(self._services)


def check_instance(instance: Instance) -> list[Violation]:
    """What is wrong with an instance somebody wants to register; paths as in RegisterRequest."""
    endpoint = instance.endpoint
    problems = list(check_name(instance.service, "service"))
    if not 1 <= len(endpoint.id) <= MAX_ID or not endpoint.id.isprintable():
        problems.append(Violation("endpoint.id", f"must have 1 to {MAX_ID} printable characters"))
    if not 1 <= len(endpoint.address) <= MAX_ID or not endpoint.address.isprintable():
        problems.append(Violation("endpoint.address", "must be a host name or an IP address"))
    if not 1 <= endpoint.port <= MAX_PORT:
        problems.append(Violation("endpoint.port", f"{endpoint.port} is not within 1 to {MAX_PORT}"))
    if len(endpoint.metadata) > MAX_METADATA:
        problems.append(Violation("endpoint.metadata", f"has more than {MAX_METADATA} pairs"))
    problems += [
        Violation(f"endpoint.metadata.{key[:MAX_METADATA_KEY]}", "the key or value is too long")
        for key, value in endpoint.metadata.items()
        if len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE
    ]
    if len(endpoint.tags) > MAX_TAGS or any(len(tag) > MAX_METADATA_VALUE for tag in endpoint.tags):
        problems.append(Violation("endpoint.tags", f"are more than {MAX_TAGS}, or one is too long"))
    return problems
