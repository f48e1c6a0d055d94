"""Why a change was not made, for operators: each class is one answer of the operator API. Nothing has changed."""

from __future__ import annotations


class RefusedError(Exception):
    """A change that was not made; the message says why and what to do. See also ``mesh.model.errors.InvalidError``."""


class ConflictError(RefusedError):
    """The table is not at the version the caller expected (ABORTED)."""

    def __init__(self, expected: int, current: int) -> None:
        """``current`` is what the table is at."""
        self.expected, self.current = expected, current
        super().__init__(f"the table is at version {current}, not {expected}; look again and repeat with that version")


class NotFoundError(RefusedError):
    """There is no such resource or version (NOT_FOUND)."""


class PreconditionError(RefusedError):
    """The mesh is not in a state for this change (FAILED_PRECONDITION); some can be forced.

    ``reason`` is a word for programs, ``details`` more of the same (ErrorInfo.reason and metadata).
    """

    def __init__(self, reason: str, message: str, details: dict[str, str] | None = None) -> None:
        """``reason`` in UPPER_SNAKE_CASE."""
        self.reason, self.details = reason, details or {}
        super().__init__(message)


class StoreError(Exception):
    """The store could not be read or written; the message says which file and what to do."""
