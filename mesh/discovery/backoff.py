"""How long to wait before a source is asked again after errors: exponential, with jitter. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Waits that double from ``base_s`` to ``max_s``, each drawn from its upper half ("equal jitter").

    The jitter spreads the sidecars of a host, which all lose the same agent in the same instant; the lower bound
    keeps the unlucky draw from hammering it. The first wait is short, since most outages are restarts, and the cap
    is what a returning source may cost in freshness.
    """

    rng: random.Random
    base_s: float = 0.2
    max_s: float = 10.0
    _failures: int = field(default=0, init=False)

    def next_s(self) -> float:
        """The wait after one more failure, in seconds."""
        ceiling_s = min(self.max_s, self.base_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return self.rng.uniform(ceiling_s / 2, ceiling_s)

    def succeeded(self) -> None:
        """Begin anew."""
        self._failures = 0
