"""The exposition read back, a sample at a time: for pages that tell the same numbers as JSON.

Reads what ``mesh.telemetry.exposition`` writes (Prometheus' text format, version 0.0.4, without timestamps), not what
anybody else may write in that format.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, TypedDict

_LABEL: Final = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
_ESCAPE: Final = re.compile(r"\\(.)")


class Sample(TypedDict):
    """One line of the exposition. ``value`` is text where JSON has no such number (``+Inf``, ``NaN``)."""

    name: str
    labels: dict[str, str]
    value: float | int | str


def samples_of(text: str) -> Iterator[Sample]:
    """The samples of whole lines of the exposition, in their order; comments are left out."""
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        front, _, number = line.rpartition(" ")
        name, _, labels = front.partition("{")
        yield Sample(
            name=name,
            labels={key: _ESCAPE.sub(_unescaped, value) for key, value in _LABEL.findall(labels)},
            value=_value(number),
        )


def _unescaped(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]


def _value(text: str) -> float | int | str:
    try:
        return int(text)
    except ValueError:
        number = float(text)
        return number if number - number == 0 else text  # JSON has neither infinity nor NaN
