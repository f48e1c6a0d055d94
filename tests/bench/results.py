"""What a case found, and its form in build/bench.json. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.bench.cases import PEER, US
from tests.bench.stats import NOTHING, REPORTED, Estimate, worst


@dataclass(frozen=True, slots=True)
class Row:
    """One proxy's medians over the rounds; the ratios are to Envoy, round by round."""

    name: str
    cpu_us: float
    user_us: float
    system_us: float
    requests_per_s: float
    busy_ratio: float
    p50_us: float
    p99_us: float
    ratio: Estimate = NOTHING
    p50_ratio: Estimate = NOTHING
    p99_ratio: Estimate = NOTHING


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure and the most it may be; ``most`` None: it is only reported."""

    what: str
    most: float | None
    found: Estimate
    verdict: str
    unit: str = ""

    def __str__(self) -> str:
        figure = f"{self.found.median:.3g}{self.unit} [{self.found.low:.3g}, {self.found.high:.3g}]"
        return f"{self.what}: {figure}" + (
            "" if self.most is None else f", bar {self.most:g}{self.unit}: {self.verdict}"
        )


@dataclass(frozen=True, slots=True)
class Result:
    """A case's outcome. ``rows`` is empty where no proxies were compared under load."""

    name: str
    what: str
    rows: tuple[Row, ...] = ()
    bars: tuple[Bar, ...] = ()
    is_disturbed: bool = False
    """A proxy and its twin, which must be alike, were not: the machine was not quiet."""
    twin_difference: float = 0.0
    """By how much they differed; of two measurements the one with less stands."""
    notes: tuple[str, ...] = ()
    not_run: str = ""
    """Why there is nothing."""
    was_repeated: bool = False
    profile: str = ""
    """Where the time goes, of a case that missed its bar."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What else is worth keeping, for build/bench.json."""

    @property
    def verdict(self) -> str:
        """The worst of its bars, or ``not run``."""
        if self.not_run:
            return "not run"
        return worst([bar.verdict for bar in self.bars]) if self.bars else REPORTED

    def row(self, name: str) -> Row | None:
        """One proxy's row."""
        return next((row for row in self.rows if row.name == name), None)

    def as_json(self) -> dict[str, Any]:
        """The entry of build/bench.json. ``ci_low`` and ``ci_high`` belong to ``ratio``."""
        ours, theirs = self.row(US), self.row(PEER)
        ratio = ours.ratio if ours else NOTHING
        entry: dict[str, Any] = {
            "name": self.name,
            "peer": PEER,
            "cpu_us": _number(ours.cpu_us if ours else None),
            "peer_cpu_us": _number(theirs.cpu_us if theirs else None),
            "ratio": _number(ratio.median),
            "p50_ratio": _number(ours.p50_ratio.median if ours else None),
            "p99_ratio": _number(ours.p99_ratio.median if ours else None),
            "ci_low": _number(ratio.low),
            "ci_high": _number(ratio.high),
            "verdict": self.verdict,
            "disturbed": self.is_disturbed,
            "repeated": self.was_repeated,
            "bars": [_bar(bar) for bar in self.bars],
            "notes": list(self.notes),
        }
        if self.profile:
            entry["profile"] = self.profile.splitlines()
        if self.not_run:
            entry["not_run"] = self.not_run
        entry |= self.figures
        if self.rows:
            entry["proxies"] = {row.name: _row(row) for row in self.rows}
        return entry


def _bar(bar: Bar) -> dict[str, Any]:
    return {"what": bar.what, "unit": bar.unit.strip(), "bar": bar.most, "verdict": bar.verdict} | _estimate(bar.found)


def _row(row: Row) -> dict[str, Any]:
    figures = ("cpu_us", "user_us", "system_us", "requests_per_s", "busy_ratio", "p50_us", "p99_us")
    return {name: _number(getattr(row, name)) for name in figures} | {
        name: _estimate(getattr(row, name)) for name in ("ratio", "p50_ratio", "p99_ratio")
    }


def _estimate(found: Estimate) -> dict[str, float | None]:
    return {"median": _number(found.median), "ci_low": _number(found.low), "ci_high": _number(found.high)}


def _number(value: float | None) -> float | None:
    """Four digits are more than the rounds can tell; JSON knows no NaN."""
    return None if value is None or math.isnan(value) else float(f"{value:.4g}")
