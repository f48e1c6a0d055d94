"""Metrics as plain cells on the request path; text is made of them only when somebody scrapes.

A series is one pair of ends (this workload and the service it calls, or is called as); its cells are keyed by what
an answer adds: status and response flag. Both are small closed sets, so cells cannot grow without bound.
"""

from __future__ import annotations

from bisect import bisect_left

# Istio's request duration buckets, in ms, so that existing dashboards work.
DURATION_BOUNDS_MS = (0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0)
SIZE_BOUNDS_BYTES = (1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0, 1_000_000.0, 10_000_000.0)


class RequestCell:
    """Requests of one series with one status and flag: count, sums and histogram counts (the last bucket is +Inf)."""

    __slots__ = ("count", "duration_buckets", "duration_sum_ms", "request_bytes", "response_bytes")

    def __init__(self) -> None:
        """All zero."""
        self.count = 0
        self.duration_sum_ms = 0.0
        self.duration_buckets = [0] * (len(DURATION_BOUNDS_MS) + 1)
        self.request_bytes = 0
        self.response_bytes = 0


class RequestSeries:
    """The requests between this workload and one service (one subset of it, where a route chose one)."""

    __slots__ = ("cells", "labels")

    def __init__(self, labels: dict[str, str]) -> None:
        """``labels`` are Istio's, all but those of the answer."""
        self.labels = labels
        self.cells: dict[tuple[int, str], RequestCell] = {}

    def record(self, status: int, flag: str, duration_ms: float, request_bytes: int, response_bytes: int) -> None:
        """Count one request."""
        cell = self.cells.get((status, flag))
        if cell is None:
            cell = self.cells[status, flag] = RequestCell()
        cell.count += 1
        cell.duration_sum_ms += duration_ms
        cell.duration_buckets[bisect_left(DURATION_BOUNDS_MS, duration_ms)] += 1
        cell.request_bytes += request_bytes
        cell.response_bytes += response_bytes
