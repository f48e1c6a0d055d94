"""How much is measured: the full bench, the quick one, or what the command line says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.bench.cases import LEAST_ROUNDS, US


@dataclass(frozen=True, slots=True)
class Plan:
    """``deadline_s`` (monotonic): when it is past, nothing is repeated and what was not begun is not run."""

    rounds: int
    run_s: int
    """Whole seconds: wrk knows no others. Many short runs tell more than a few long ones: the machine changes less
    between two that stand next to each other."""
    warm_up_s: int
    deadline_s: float
    is_quick: bool = False
    is_exact: bool = False
    """Just so many rounds, whatever a case would like."""
    proxies: tuple[str, ...] = field(default=())
    """Only these; empty: all of the case."""

    @classmethod
    def full(cls) -> Plan:
        """At least seven rounds, within 20 minutes."""
        return cls(rounds=LEAST_ROUNDS, run_s=1, warm_up_s=1, deadline_s=time.monotonic() + 19.5 * 60)

    @classmethod
    def quick(cls) -> Plan:
        """A rough answer, within three minutes."""
        return cls(rounds=3, run_s=1, warm_up_s=1, deadline_s=time.monotonic() + 3 * 60, is_quick=True, is_exact=True)

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline_s - time.monotonic()

    def rounds_of(self, wanted: int) -> int:
        """How many of a case that would like ``wanted``."""
        return self.rounds if self.is_exact else max(self.rounds, wanted)

    def only(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of ``names`` that are to be measured; we always are."""
        return tuple(name for name in names if not self.proxies or name in self.proxies or name == US)
