"""Outlier detection: takes out an endpoint that keeps failing, and lets it back in.

Consecutive failures are the simplest sound signal: they need no minimum of traffic and no peers to compare with.
What they miss: an endpoint that fails every other time, and one that is merely slow. The guards matter more than
the signal: at most max(1 endpoint, ``max_ejection_percent``) are out at a time and never the last one; when fewer
than ``panic_percent`` of the known endpoints are usable, ejections are ignored, since everything failing at once
is seldom the endpoints' own doing. Each ejection in a row lasts one base time longer (Envoy), at most ten; one of
them is forgiven for each base time without another.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from mesh.model.policy import OutlierDetection

MAX_TIMES: Final = 10  # Envoy: base 30 s, at most 300 s


@dataclass
class OutlierState:
    """What is remembered of one endpoint. ``ejected_until_s`` is monotonic; 0.0 while it is in."""

    consecutive_failures: int = 0
    times_ejected: int = 0
    ejected_until_s: float = 0.0
    calm_since_s: float = 0.0
    """When it was let in again, or was last forgiven one of ``times_ejected``."""

    @property
    def is_ejected(self) -> bool:
        """Out at present."""
        return self.ejected_until_s > 0.0


class HasOutlierState(Protocol):
    """An endpoint as outlier detection sees it."""

    outlier: OutlierState


E = TypeVar("E", bound=HasOutlierState)


def record_failure(
    state: OutlierState, rule: OutlierDetection, known: int, ejected: int, now: float, *, is_last: bool = False
) -> bool:
    """Count a failure; True when it ejected the endpoint.

    ``known`` endpoints of the service, ``ejected`` of them already out; ``is_last``: a subset has no other left. A
    success sets ``consecutive_failures`` to 0.
    """
    state.consecutive_failures += 1
    if state.is_ejected or not rule.consecutive_failures or state.consecutive_failures < rule.consecutive_failures:
        return False
    allowed = max(1, known * rule.max_ejection_percent // 100)
    if is_last or ejected + 1 > allowed or known - ejected <= 1:
        return False
    state.times_ejected = min(state.times_ejected + 1, MAX_TIMES)
    state.ejected_until_s = now + rule.base_ejection_s * state.times_ejected
    return True


def uneject_due(states: Iterable[OutlierState], rule: OutlierDetection, now: float) -> bool:
    """Let back in whoever has been out long enough, forgive who was in long enough; True when anybody came back."""
    changed = False
    for state in states:
        if state.is_ejected:
            if state.ejected_until_s <= now:
                state.ejected_until_s = 0.0
                state.consecutive_failures = 0
                state.calm_since_s = now
                changed = True
        elif state.times_ejected and now - state.calm_since_s >= rule.base_ejection_s:
            state.times_ejected -= 1
            state.calm_since_s = now
    return changed


def without_ejected(healthy: list[E], known: int, rule: OutlierDetection) -> list[E]:
    """``healthy`` endpoints without the ejected ones; all of them in a panic. ``known`` counts the unhealthy too."""
    kept = [e for e in healthy if not e.outlier.is_ejected]
    if len(kept) == len(healthy):
        return healthy
    is_panic = not kept or len(kept) * 100 < known * rule.panic_percent
    return healthy if is_panic else kept
