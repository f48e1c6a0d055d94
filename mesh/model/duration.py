"""Durations as documents write them (GEP-2257): ``1h30m``, ``500ms``."""

from __future__ import annotations

import re
from typing import Final

# GEP-2257's own pattern: one to four parts of at most five digits.
_DURATION: Final = re.compile(r"([0-9]{1,5}(h|m|s|ms)){1,4}")
_PART: Final = re.compile(r"([0-9]{1,5})(h|ms|m|s)")
_MS: Final = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


def parse_duration(text: str) -> float:
    """Seconds. Raises ValueError with the accepted form."""
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is not a duration such as 10s, 500ms or 1m30s (GEP-2257)")
    return sum(int(number) * _MS[unit] for number, unit in _PART.findall(text)) / 1000


def format_duration(seconds: float) -> str:
    """The shortest way to write ``seconds``, which must be a whole number of milliseconds of at most 99999 h."""
    left = round(seconds * 1000)
    if left % 1000 == 0 and left // 1000 < 120:
        return f"{left // 1000}s"
    words = []
    for unit, ms in _MS.items():
        count, left = divmod(left, ms)
        if count:
            words.append(f"{count}{unit}")
    return "".join(words)
