"""The answers to "where is this service?", and the memory of those that were "nowhere". Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

from mesh.discovery.retention import ServedEndpoints
from mesh.model.name import Name


class Why(Enum):
    """Why a service has no endpoints to offer."""

    UNKNOWN = "unknown"
    """There is no such service: 404."""

    UNAVAILABLE = "unavailable"
    """Nobody can say: the source is silent, or too many names are being asked for: 503."""


@dataclass(frozen=True, slots=True)
class Unresolved:
    """No answer with endpoints; ``detail`` is for people."""

    why: Why
    detail: str


Resolution = ServedEndpoints | Unresolved


class NegativeCache:
    """Remembers for ``ttl_s`` seconds which services do not exist; at most ``size`` of them, the newest stay.

    All live equally long, so the order of coming is the order of going.
    """

    __slots__ = ("_until", "size", "ttl_s")

    def __init__(self, ttl_s: float, size: int) -> None:
        """Empty."""
        self.ttl_s = ttl_s
        self.size = size
        self._until: OrderedDict[Name, float] = OrderedDict()

    def add(self, service: Name, now: float) -> None:
        """``service`` does not exist, as of ``now``."""
        self._until.pop(service, None)
        while len(self._until) >= self.size:
            self._until.popitem(last=False)
        self._until[service] = now + self.ttl_s

    def holds(self, service: Name, now: float) -> bool:
        """Whether ``service`` was found not to exist less than ``ttl_s`` ago."""
        return self._until.get(service, now) > now

    def remove(self, service: Name) -> None:
        """It exists now."""
        self._until.pop(service, None)

    def expire(self, now: float) -> None:
        """Drop what is too old to hold."""
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._until)
