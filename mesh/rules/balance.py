"""Which endpoint of a cluster gets an attempt: least request of two random choices.

Two draws avoid both the herd of "always the least loaded" under stale counts and the blindness of plain random
(Mitzenmacher). An endpoint already tried by this exchange is passed over while another is left. Cold and empty:
with one endpoint there is nothing to draw, with none the caller gets None.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeVar


class Loaded(Protocol):
    """Anything with a number of requests in flight."""

    active: int


E = TypeVar("E", bound=Loaded)


def least_request(endpoints: Sequence[E], random: Callable[[], float], tried: Collection[E] = ()) -> E | None:
    """Pick from ``endpoints``; those in ``tried`` only where no other is left. None where there are none."""
    if tried:
        endpoints = [e for e in endpoints if e not in tried] or endpoints
    count = len(endpoints)
    if count <= 1:
        return endpoints[0] if count else None
    first = int(random() * count)
    second = int(random() * (count - 1))
    if second >= first:
        second += 1
    one, other = endpoints[first], endpoints[second]
    return one if one.active <= other.active else other
