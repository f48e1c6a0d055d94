"""Calls that last as long as their client: they are ended at once when the server stops.

They are asked, by their bell, not cancelled: gRPC cannot send a status while a cancelled write is still under way
(GRPC_CALL_ERROR_TOO_MANY_OPERATIONS), and then the client would wait for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

STOPPING: Final = "the control server is stopping"
"""What such a call is ended with (UNAVAILABLE): come back."""


class LongCalls:
    """The bells of all open streams and watches; each looks at ``is_ending`` whenever its bell has rung."""

    def __init__(self) -> None:
        self.is_ending = False
        self._bells: set[asyncio.Event] = set()

    @contextmanager
    def ringing(self, bell: asyncio.Event) -> Iterator[None]:
        """Ring ``bell`` at the end, while within."""
        self._bells.add(bell)
        if self.is_ending:
            bell.set()
        try:
            yield
        finally:
            self._bells.discard(bell)

    def end(self) -> None:
        """Ask all of them to end."""
        self.is_ending = True
        for bell in self._bells:
            bell.set()
