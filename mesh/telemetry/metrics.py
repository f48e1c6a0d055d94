"""Metrics as plain cells on the request path; text is made of them only when somebody scrapes.

A series is one pair of ends (this workload and the service it calls, or is called as); its cells are keyed by what
an answer adds: status and response flag. Endpoints choose the status (100 to 599) and callers, where egress is
allowed, the service: so all cells together are capped, and what comes beyond is counted in one cell labelled "other".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Final

# Istio's request duration buckets, in ms, so that existing dashboards work.
DURATION_BOUNDS_MS: Final[tuple[float, ...]] = (
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0,
)  # fmt: skip
# Sizes are counted by their bit length, which costs half a search; these bounds are the ones shown: 2**n - 1.
SIZE_BITS: Final[tuple[int, ...]] = (0, 8, 10, 12, 14, 16, 18, 20, 24, 28)
SIZE_BOUNDS_BYTES: Final = tuple(2**bits - 1 for bits in SIZE_BITS)
_MAX_BITS: Final = 64

MAX_CELLS: Final = 2000
OTHER: Final = "other"


CELL_NUMBERS: Final[tuple[str, ...]] = (
    "duration_buckets",
    "duration_sum_ms",
    "request_bytes",
    "request_sizes",
    "response_bytes",
    "response_sizes",
)


class RequestCell:
    """Requests of one series with one status and flag: sums and histogram counts.

    The last duration bucket is +Inf; size buckets are by bit length. Requests without a body, nearly all, are not
    counted among their sizes: ``empty_requests`` says how many they are.
    """

    __slots__ = CELL_NUMBERS

    def __init__(self) -> None:
        """All zero."""
        self.duration_sum_ms = 0.0
        self.duration_buckets = [0] * (len(DURATION_BOUNDS_MS) + 1)
        self.request_bytes = 0
        self.response_bytes = 0
        self.request_sizes = [0] * (_MAX_BITS + 1)
        self.response_sizes = [0] * (_MAX_BITS + 1)

    @property
    def count(self) -> int:
        """How many requests there were."""
        return sum(self.duration_buckets)

    @property
    def empty_requests(self) -> int:
        """How many of them had no body."""
        return self.count - sum(self.request_sizes)


class CellBudget:
    """Counts the cells of all series of a sidecar, and gives the one for what is beyond ``limit``."""

    def __init__(self, limit: int = MAX_CELLS) -> None:
        """Nothing is spent."""
        self.limit = limit
        self.spent = 0
        self.other: RequestCell | None = None

    def take(self) -> RequestCell:
        """A new cell, or the common one."""
        if self.spent < self.limit:
            self.spent += 1
            return RequestCell()
        if self.other is None:
            self.other = RequestCell()
        return self.other

    @property
    def is_exhausted(self) -> bool:
        """Something was counted in the common cell."""
        return self.other is not None


class RequestSeries:
    """The requests between this workload and one service (one subset of it, where a route chose one)."""

    __slots__ = ("_budget", "cells", "labels", "protocol", "text")

    def __init__(self, labels: Mapping[str, str], budget: CellBudget | None = None) -> None:
        """``labels`` are Istio's, all but those of the answer."""
        self.labels = dict(labels)
        self.protocol = labels.get("request_protocol", "")
        self.text = ",".join(f'{key}="{escape(value)}"' for key, value in labels.items())
        """The labels as they stand in an exposition, made once."""
        self.cells: dict[tuple[int, str], RequestCell] = {}
        self._budget = budget or CellBudget()

    def cell(self, status: int, flag: str) -> RequestCell:
        """The cell of that status and flag; made when first asked for."""
        cell = self.cells.get((status, flag))
        if cell is None:
            cell = self.cells[status, flag] = self._budget.take()
        return cell

    def record(self, status: int, flag: str, duration_ms: float, request_bytes: int, response_bytes: int) -> None:
        """Count one request."""
        cell = self.cells.get((status, flag)) or self.cell(status, flag)
        cell.duration_sum_ms += duration_ms
        cell.duration_buckets[bisect_left(DURATION_BOUNDS_MS, duration_ms)] += 1
        if request_bytes:
            cell.request_sizes[request_bytes.bit_length()] += 1
            cell.request_bytes += request_bytes
        cell.response_sizes[response_bytes.bit_length()] += 1
        cell.response_bytes += response_bytes


def escape(value: str) -> str:
    """A label value as it stands between quotes (Prometheus text format 0.0.4)."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
