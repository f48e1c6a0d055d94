"""Calls that last as long as their client: they are ended at once when the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class LongCalls:
    """The tasks of all open streams and watches. Short calls get the server's grace time instead."""

    def __init__(self) -> None:
        """None are open."""
        self._tasks: set[asyncio.Task[object]] = set()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The current task is such a call while within."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - gRPC runs handlers in tasks
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    def end(self) -> None:
        """Cancel them all; clients see the stream break and come back."""
        for task in tuple(self._tasks):
            task.cancel()
