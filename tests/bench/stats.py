"""What the figures of several rounds say: medians, how sure they are, and whether a bar is met. Pure.

A ratio is taken within one round, between two runs that stood next to each other, so that a machine that slows down
for a while slows down both. The median of the rounds stands, with the interval in which 95 % of the medians of
resampled rounds lie (percentile bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

RESAMPLES = 4000
SEED = 20  # the same rounds always give the same interval
MET, UNDECIDED, MISSED, REPORTED = "met", "undecided", "missed", "reported"
_WORST_FIRST = (MISSED, UNDECIDED, MET, REPORTED)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median with its 95 % interval. No rounds at all: NaN, which meets no bar."""

    median: float
    low: float
    high: float

    @property
    def exists(self) -> bool:
        """There were figures to make it of."""
        return self.median == self.median


NOTHING = Estimate(float("nan"), float("nan"), float("nan"))


def estimate(values: Sequence[float]) -> Estimate:
    """The median of ``values`` and its 95 % bootstrap interval."""
    if not values:
        return NOTHING
    rng = Random(SEED)
    count = len(values)
    medians = sorted(median(rng.choices(values, k=count)) for _ in range(RESAMPLES))
    return Estimate(median(values), medians[int(RESAMPLES * 0.025)], medians[int(RESAMPLES * 0.975)])


def ratios(ours: Sequence[float], theirs: Sequence[float], base: Sequence[float] | None = None) -> list[float]:
    """Round by round, ``ours`` to ``theirs``; both above ``base`` where it is given.

    A round in which theirs is not above the base has no ratio and is left out.
    """
    base = base or [0.0] * len(ours)
    return [(o - b) / (t - b) for o, t, b in zip(ours, theirs, base, strict=True) if t > b]


def verdict(found: Estimate, bar: float | None) -> str:
    """``met``, ``missed``, ``undecided`` when the interval spans the bar, ``reported`` where there is none."""
    if bar is None:
        return REPORTED
    if not found.exists or found.low <= bar < found.high:
        return UNDECIDED
    return MET if found.median <= bar else MISSED


def worst(verdicts: Sequence[str]) -> str:
    """The verdict on several bars that must all be met."""
    return min(verdicts, key=_WORST_FIRST.index)


def is_disturbed(twin_ratio: float, allowed: float) -> bool:
    """Tell whether a proxy differs from its own twin by more than ``allowed`` (0.05): the machine was not quiet.

    A ratio that could not be taken (NaN) tells of no quiet machine either.
    """
    return not abs(twin_ratio - 1.0) <= allowed


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(len(ordered) * share * 1_000_000) // 1_000_000) - 1)]


def rotated(names: Sequence[str], round_number: int) -> list[str]:
    """The order of a round: each name is first once in ``len(names)`` rounds, and every second time round reversed.

    Rotation alone keeps the neighbours: one would always run right after the same other.
    """
    turn = round_number % len(names)
    order = [*names[turn:], *names[:turn]]
    return order[::-1] if round_number // len(names) % 2 else order
