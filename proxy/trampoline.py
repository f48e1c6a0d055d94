"""Drives exchanges: an event that a protocol callback brings resumes its generator in the same loop turn.

asyncio would need a Task and a future for each request (3 to 5 µs against about 1). The rules, each from a failure
seen when they were broken:

* Callbacks never resume a generator. They put (who, event) on the ready queue, which the outermost callback drains
  in a loop: uvloop calls ``pause_writing`` inside ``write()``, so a direct resume meets "generator already
  executing"; and thousands of pipelined local answers would recurse.
* Whoever resumes is the outermost frame: nothing it raises may reach a transport, which would close somebody
  else's connection. ``resume`` catches everything; ``drain`` is the last resort and only logs.
* An exchange is a generator, no coroutine: it yields nothing and is sent nothing, so that there is no way to await
  something of asyncio's in it by mistake.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, Protocol

logger = logging.getLogger(__name__)


class Resumable(Protocol):
    """Somebody who can be told of an event."""

    def resume(self, event: Any) -> None:  # noqa: ANN401 - each kind of resumable has its own events
        """Go on with ``event``. Never raises."""


class Flushable(Protocol):
    """A connection on which something has collected that is to go out in one write."""

    def flush(self) -> None:
        """Send it. Never raises."""


class Trampoline:
    """The ready queue of one event loop. ``dirty`` connections are flushed when nobody is ready any more."""

    __slots__ = ("_draining", "dirty", "ready")

    def __init__(self) -> None:
        """Start with nothing ready."""
        self.ready: deque[tuple[Resumable, Any]] = deque()
        self.dirty: list[Flushable] = []
        self._draining = False

    def post(self, who: Resumable, what: Any) -> None:  # noqa: ANN401 - see Resumable
        """Have ``who`` resumed with ``what`` as soon as the outermost callback drains."""
        self.ready.append((who, what))

    def drain(self) -> None:
        """Resume everybody that is ready. The last line of every protocol and timer callback."""
        if self._draining:
            return
        ready = self.ready
        self._draining = True
        try:
            while ready:
                who, what = ready.popleft()
                try:
                    who.resume(what)
                except Exception:
                    logger.exception("a resumable let an exception out: %r", who)
        finally:
            self._draining = False
        while self.dirty:
            self.dirty.pop().flush()  # it may pause somebody, whose callback drains anew
