"""The events one watching operator has not yet fetched, bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from control.operator_messages import revision_message, sidecar_message
from control.store.base import Revision
from control.subscription import Subscription
from mesh.model.wire import encode_timestamp
from protos.mesh.v1 import operator_pb2

MAX_EVENTS: Final = 20_000
"""A publish with 5000 sidecars makes 10 000 events at once; a client that is behind further is ended."""


class EventFeed:
    """What happened since the client last took; ``is_over`` when it is too far behind."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock`` gives Unix seconds."""
        self._clock = clock
        self._events: deque[operator_pb2.Event] = deque()
        self.bell = asyncio.Event()
        """Rings when there is something to take."""
        self.is_over = False

    def revised(self, revision: Revision) -> None:
        """The table has a new version."""
        self._add(operator_pb2.Event(when=encode_timestamp(revision.when_unix_s), revision=revision_message(revision)))

    def moved(self, subscription: Subscription) -> None:
        """A sidecar entered another state."""
        self._add(operator_pb2.Event(when=encode_timestamp(self._clock()), sidecar=sidecar_message(subscription)))

    def _add(self, event: operator_pb2.Event) -> None:
        if len(self._events) >= MAX_EVENTS:
            self.is_over = True
        else:
            self._events.append(event)
        self.bell.set()

    def take(self) -> Iterator[operator_pb2.Event]:
        """The events there are, oldest first; those that come meanwhile too."""
        self.bell.clear()
        while self._events:
            yield self._events.popleft()
