"""What is wrong with a document or a table, said so that it can be mended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong: ``field`` is the path to it (``rules[0].weight``), ``message`` says what would be right."""

    field: str
    message: str

    def __str__(self) -> str:
        """``field: message``."""
        return f"{self.field}: {self.message}" if self.field else self.message


class InvalidError(ValueError):
    """A document, a table or a setting is not valid; ``violations`` names everything wrong in one report."""

    def __init__(self, violations: Iterable[Violation]) -> None:
        """Keep every violation; the message has one line for each."""
        self.violations = tuple(violations)
        super().__init__("\n".join(str(v) for v in self.violations))
