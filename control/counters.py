"""What the control server counted since it started."""

from __future__ import annotations

from typing import Final

# Prometheus' default buckets with some below: a push to a handful of sidecars takes a millisecond.
PUSH_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Counters:
    """What happened since the start, for /metrics."""

    def __init__(self) -> None:
        self.pushes = 0
        self.pushed_bytes = 0
        self.acks = 0
        self.nacks = 0
        self.stale_answers = 0
        self.hellos = 0
        self.resumed = 0
        self.push_seconds_counts = [0] * len(PUSH_BUCKETS_S)
        """Pushes answered within each bound of ``PUSH_BUCKETS_S``, cumulative."""
        self.push_seconds_count = 0
        self.push_seconds_sum = 0.0

    def observe_push(self, seconds: float) -> None:
        """Count one push, from writing it to its ACK or NACK."""
        for i, bound in enumerate(PUSH_BUCKETS_S):
            self.push_seconds_counts[i] += seconds <= bound
        self.push_seconds_count += 1
        self.push_seconds_sum += seconds
