"""Reading what YAML gave: typed, with the path to everything that is wrong, all of it in one report.

A ``Node`` is a value and its path. Every reader returns something usable even where it has noted a problem, so that
the rest of the document is looked at too; the caller throws the result away if there were problems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from mesh.model.duration import parse_duration
from mesh.model.errors import Violation

_E = TypeVar("_E", bound=Enum)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Node:
    """A value from a document. ``value`` None is what is absent or null."""

    value: object
    path: str
    problems: list[Violation]

    @property
    def is_given(self) -> bool:
        """Something stands there."""
        return self.value is not None

    def complain(self, message: str) -> None:
        """Note what is wrong here."""
        self.problems.append(Violation(self.path, message))

    def at(self, key: str) -> Node:
        """The value of ``key`` in this mapping; absent where this is no mapping (``fields`` complains of that)."""
        value = self.value.get(key) if isinstance(self.value, dict) else None
        return Node(value, f"{self.path}.{key}" if self.path else key, self.problems)

    def fields(self, accepted: Sequence[str], not_built: Sequence[str] = (), *, is_required: bool = False) -> Node:
        """Demand a mapping without other keys than ``accepted``; those ``not_built`` must be absent or empty."""
        if self.value is None:
            if is_required:
                self.complain("must be given")
            return self
        if not isinstance(self.value, dict):
            self.complain(f"must be a mapping with {', '.join(accepted)}, not {_kind_of(self.value)}")
            return Node(None, self.path, self.problems)
        for key, value in self.value.items():
            if key in accepted or (key in not_built and value in (None, [], {}, "")):
                continue
            where = self.at(str(key))
            if key in not_built:
                where.complain("is not built yet, and is refused rather than ignored")
            else:
                where.complain(f"is not known here; accepted are {', '.join(accepted)}")
        return self

    def items(self) -> list[Node]:
        """The entries of this list; none where it is absent."""
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            self.complain(f"must be a list, not {_kind_of(self.value)}")
            return []
        return [Node(value, f"{self.path}[{i}]", self.problems) for i, value in enumerate(self.value)]

    def pairs(self) -> Iterator[tuple[str, Node]]:
        """The entries of this mapping of anything."""
        if self.value is not None and not isinstance(self.value, dict):
            self.complain(f"must be a mapping, not {_kind_of(self.value)}")
        elif isinstance(self.value, dict):
            for key in self.value:
                yield str(key), self.at(str(key))

    def text(self, default: str | None = None) -> str:
        """A string; without a default it must be given."""
        if self.value is None:
            if default is None:
                self.complain("must be given")
            return default or ""
        if not isinstance(self.value, str):
            self.complain(f'must be a string, not {_kind_of(self.value)}; write it in quotes: "{self.value}"')
            return ""
        return self.value

    def number(self, default: int) -> int:
        """An integer."""
        if self.value is None:
            return default
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            self.complain(f"must be a whole number, not {_kind_of(self.value)}")
            return default
        return self.value

    def optional_number(self) -> int | None:
        """An integer, or None where it is absent."""
        return self.number(0) if self.is_given else None

    def word(self, words: type[_E], default: _T) -> _E | _T:
        """One of the values of an enum; ``default`` where it is absent."""
        if self.value is None:
            return default
        for word in words:
            if word.value == self.value:
                return word
        self.complain(f"{self.value!r} is none of {', '.join(str(word.value) for word in words)}")
        return default

    def seconds(self, default: _T) -> float | _T:
        """A duration (GEP-2257), in seconds; ``default`` where it is absent."""
        if self.value is None:
            return default
        text = self.text()
        if not isinstance(self.value, str):
            return default
        try:
            return parse_duration(text)
        except ValueError as error:
            self.complain(str(error))
            return default

    def must_be(self, accepted: Sequence[object], why: str) -> None:
        """Complain, saying ``why``, unless the value is one of ``accepted`` (None: absent)."""
        if self.value not in accepted:
            self.complain(f"is {self.value!r}; {why}")


def each(nodes: Sequence[Node], read: Callable[[Node], _T]) -> tuple[_T, ...]:
    """``read`` over all nodes."""
    return tuple(read(node) for node in nodes)


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return type(value).__name__
