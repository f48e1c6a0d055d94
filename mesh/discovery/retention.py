"""What is served from what was observed: pure, one ``Retention`` per service, ``now`` comes in.

The choices, for which every mesh has paid once (Synapse and Eureka keep the last known set, Consul's own mesh once
sent traffic to nobody):

- Health is believed at once: critical and leaving endpoints get no new requests, though they stay known.
- Absence is believed at once only from a source that was in contact all the time, and only where other usable
  endpoints remain in the service and in each of the subsets that the missing one was in; or where the instance had
  announced its leaving. A source that restarted empty, an index that went backwards, a token that sees nothing and
  a registry that lost its leases all look like "everybody is gone", and nearly never mean it.
- Otherwise the missing endpoint is served on for a grace time, unless connecting to it fails.
- While the source is blind nothing is forgotten: the grace time runs in contact only, and begins anew with each
  resumed contact, since whoever has to register again needs its time after that, not before.

- What an earlier process knew (``recall``) is knowledge of a source that has been blind ever since: served as it was
  until the source speaks, and then what it does not list has its grace time.

What this misses: a dead endpoint in its grace time costs the first caller one failed connection, which is retried.
Cold, with nothing recalled, nothing is known and nothing is served. When all endpoints are listed as critical nothing
is served either: that was said, not forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from mesh.discovery.base import Contact, Observation
from mesh.model.name import Name
from mesh.model.service import Endpoint

DEFAULT_GRACE_S = 30.0  # three leases of 10 s: time for each instance to notice the restart and register again

Subsets = Mapping[str, Mapping[str, str]]
"""A ServicePolicy's subsets: name to the metadata that its endpoints carry."""


@dataclass(frozen=True, slots=True)
class ServedEndpoints:
    """What of a service gets requests now.

    ``usable`` endpoints may get new requests; ``known`` are these and the critical and leaving ones (the ground of
    the panic threshold); ``missing`` are ids the source no longer lists and that are served on for the grace time.
    ``usable`` and ``known`` are in order of id. ``exists`` False: no instance was ever told of.
    """

    service: Name
    usable: tuple[Endpoint, ...]
    known: tuple[Endpoint, ...]
    missing: frozenset[str] = frozenset()
    exists: bool = True


class Retention:
    """Decides what is served of one service. Methods that may change it tell whether they did; read ``served``."""

    __slots__ = (
        "_graces",
        "_known",
        "_policy_subsets",
        "blind_since",
        "confirmed_at",
        "grace_s",
        "is_known",
        "observations",
        "served",
    )

    def __init__(self, service: Name, grace_s: float = DEFAULT_GRACE_S) -> None:
        """Know nothing. ``grace_s``: how long missing endpoints stay, in seconds, and at least one lease."""
        self.grace_s = grace_s
        self.served = ServedEndpoints(service, (), (), exists=False)
        self.blind_since: float | None = None
        """When contact was lost (the caller's clock), None while in contact or before the first observation."""
        self.confirmed_at = 0.0
        """When the source was last heard; while blind the age counts from then."""
        self.observations = 0
        """How many observations came in."""
        self.is_known = False
        """Something was observed or recalled; else ``served`` is empty because nobody has said anything yet."""
        self._known: dict[str, Endpoint] = {}
        self._graces: dict[str, float] = {}  # id of a missing endpoint -> when its grace time ends
        self._policy_subsets: Subsets = {}

    def use_subsets(self, subsets: Subsets) -> None:
        """Count these subsets too when a removal may leave one empty; version and tags always count."""
        self._policy_subsets = subsets

    def observe(self, now: float, observation: Observation) -> bool:
        """Take in what the source says; tells whether what is served changed."""
        is_continuous = observation.contact is Contact.CONTINUOUS and self.blind_since is None and self.observations > 0
        self.blind_since = None
        self.confirmed_at = now
        self.observations += 1
        self.is_known = True
        listed = {endpoint.id: endpoint for endpoint in observation.endpoints}
        gone = [endpoint for id_, endpoint in self._known.items() if id_ not in listed]
        graces, self._graces = self._graces, {}
        self._known = listed
        if gone:
            left = _Left.of(observation.endpoints, self._subsets_of)
            for endpoint in gone:
                if not endpoint.health.is_usable or (endpoint.address, endpoint.port) in left.addresses:
                    continue
                if is_continuous and endpoint.id in graces:
                    ends = graces[endpoint.id]  # it was missing before: that it still is, is no news
                elif is_continuous and left.any_usable and left.subsets.issuperset(self._subsets_of(endpoint)):
                    ends = now
                else:
                    ends = now + max(self.grace_s, observation.lease_s)
                if now < ends:
                    listed[endpoint.id] = endpoint
                    self._graces[endpoint.id] = ends
        return self._publish()

    def recall(self, now: float, endpoints: Iterable[Endpoint], age_s: float) -> None:
        """Before any observation: serve what was known ``age_s`` seconds ago, as if contact was lost then."""
        if not self.observations:
            self._known = {endpoint.id: endpoint for endpoint in endpoints}
            self.blind_since = self.confirmed_at = now - age_s
            self.is_known = True
            self._publish()

    def lost_contact(self, now: float, silent_s: float = 0.0) -> None:
        """The source is silent: what is served stays as it is until it speaks again.

        ``silent_s``: so long it has been, by the time that shows.
        """
        if self.blind_since is None:
            self.blind_since = now
            self.confirmed_at = now - silent_s

    def connect_failed(self, endpoint_id: str) -> bool:
        """No connection to this endpoint: if it was only kept for its grace time, it is gone.

        Endpoints that the source lists are left to outlier detection. Tells whether what is served changed.
        """
        if endpoint_id not in self._graces:
            return False
        return self._forget((endpoint_id,))

    def expire(self, now: float) -> bool:
        """Drop what has had its grace time; nothing while blind. Tells whether what is served changed."""
        if self.blind_since is not None:
            return False
        return self._forget([id_ for id_, ends in self._graces.items() if ends <= now])

    @property
    def next_grace_end(self) -> float | None:
        """When ``expire`` has something to do next, None if nothing is due by time alone."""
        if self.blind_since is not None or not self._graces:
            return None
        return min(self._graces.values())

    def age_s(self, now: float) -> float:
        """How old what is served is, in seconds: 0 in contact, else since the source was last heard."""
        return 0.0 if self.blind_since is None else max(0.0, now - self.confirmed_at)

    def _subsets_of(self, endpoint: Endpoint) -> Iterator[tuple[str, str]]:
        version = endpoint.metadata.get("version")
        if version is not None:
            yield ("name", version)
        for tag in endpoint.tags:  # any of them may be named as a subset by a route (DESIGN.md)
            yield ("name", tag.removeprefix("version="))
        for name, metadata in self._policy_subsets.items():
            if endpoint.in_subset(name, metadata):
                yield ("policy", name)

    def _forget(self, ids: Iterable[str]) -> bool:
        for id_ in ids:
            del self._graces[id_]
            del self._known[id_]
        return self._publish()

    def _publish(self) -> bool:
        known = tuple(sorted(self._known.values(), key=_id))
        usable = tuple(endpoint for endpoint in known if endpoint.health.is_usable)
        exists = self.served.exists or bool(known)
        served = ServedEndpoints(self.served.service, usable, known, frozenset(self._graces), exists)
        if served == self.served:
            return False
        self.served = served
        return True


@dataclass(frozen=True, slots=True)
class _Left:
    """What an observation still lists, for judging what it does not: made once, since both may be thousands."""

    any_usable: bool
    subsets: frozenset[tuple[str, str]]
    """Subsets with a usable endpoint."""
    addresses: frozenset[tuple[str, int]]
    """Of all endpoints: who is missing under its id but listed here under another one was replaced, and serving
    both would double that program's share."""

    @classmethod
    def of(cls, listed: Iterable[Endpoint], subsets_of: Callable[[Endpoint], Iterable[tuple[str, str]]]) -> _Left:
        listed = tuple(listed)
        usable = [endpoint for endpoint in listed if endpoint.health.is_usable]
        return cls(
            bool(usable),
            frozenset(key for endpoint in usable for key in subsets_of(endpoint)),
            frozenset((endpoint.address, endpoint.port) for endpoint in listed),
        )


def _id(endpoint: Endpoint) -> str:
    return endpoint.id
