"""The weighted split: which backend of a rule gets a request.

Weights are relative whole numbers, a share is weight / sum. Draws are independent, so that shares hold for any mix
of callers; small samples wander by the binomial error, which is what the demo and ``mesh weights`` allow for.
All weights 0 is a deliberate drain and answers 503 (``ZeroWeights``), never an invalid table.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

T = TypeVar("T")


class Split(Generic[T]):
    """Draws one of ``choices`` by weight. ``is_drained``: there are choices and all weigh nothing."""

    __slots__ = ("_bounds", "_choices", "_total", "is_drained", "only")

    def __init__(self, choices: Sequence[T], weights: Sequence[int]) -> None:
        """``weights`` in the order of ``choices``, each at least 0."""
        weighted = [(choice, weight) for choice, weight in zip(choices, weights, strict=True) if weight > 0]
        self._choices = [choice for choice, _ in weighted]
        self._bounds = list(accumulate(weight for _, weight in weighted))
        self._total = self._bounds[-1] if self._bounds else 0
        self.is_drained = bool(choices) and not weighted
        self.only: T | None = self._choices[0] if len(self._choices) == 1 else None
        """The one choice that gets everything, where there is just one."""

    def choose(self, random: Callable[[], float]) -> T | None:
        """Draw a choice; ``random`` gives a float in [0, 1). None where nothing has a weight."""
        if self.only is not None:
            return self.only
        if not self._total:
            return None
        return self._choices[bisect_right(self._bounds, random() * self._total)]
