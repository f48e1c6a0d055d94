"""The events one watching operator has not yet fetched, bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Self

from control.operator_messages import revision_message, sidecar_message
from control.store.base import Revision
from control.subscription import Subscription
from mesh.model.wire import encode_timestamp
from protos.mesh.v1 import operator_pb2

MAX_EVENTS: Final = 20_000
"""A publish with 5000 sidecars makes 10 000 events at once; a client that is behind further is ended."""


class EventFeed:
    """An async iterator of events; it ends when the client is too far behind."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock`` gives Unix seconds."""
        self._clock = clock
        self._events: deque[operator_pb2.Event] = deque()
        self._bell = asyncio.Event()
        self._is_over = False

    def revised(self, revision: Revision) -> None:
        """The table has a new version."""
        self._add(operator_pb2.Event(when=encode_timestamp(revision.when_unix_s), revision=revision_message(revision)))

    def moved(self, subscription: Subscription) -> None:
        """A sidecar entered another state."""
        self._add(operator_pb2.Event(when=encode_timestamp(self._clock()), sidecar=sidecar_message(subscription)))

    def _add(self, event: operator_pb2.Event) -> None:
        if len(self._events) >= MAX_EVENTS:
            self._is_over = True
        else:
            self._events.append(event)
        self._bell.set()

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    async def __anext__(self) -> operator_pb2.Event:
        """The next event, when there is one."""
        while not self._events:
            if self._is_over:
                raise StopAsyncIteration
            self._bell.clear()
            await self._bell.wait()
        return self._events.popleft()
