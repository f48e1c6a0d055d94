"""Deadlines without a timer per request: attributes that a sweep reads every 100 ms.

Only exchanges that have a deadline are walked, so idle streams cost nothing. What is due within a second stands in
a heap with one loop timer for the earliest, which makes it exact to a few ms. Connections (idle, slow heads) are
looked at once a second; their limits are seconds.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable
from itertools import count
from typing import Final, Protocol

logger = logging.getLogger(__name__)

SWEEP_S: Final = 0.1
NEAR_S: Final = 1.0


class Timed(Protocol):
    """Something with a deadline."""

    deadline_s: float
    """Monotonic seconds; 0.0 means none (any more)."""

    def on_deadline(self) -> None:
        """Called once when it has passed. Never raises."""


class Watched(Protocol):
    """A connection that is looked at once a second."""

    def check_time(self, now: float) -> None:
        """Close it if it took too long. Never raises."""


class Deadlines:
    """The clock's hand of one event loop. ``drain`` is called after every round, as after any callback."""

    def __init__(self, clock: Callable[[], float], drain: Callable[[], None]) -> None:
        """``clock`` gives monotonic seconds."""
        self._clock = clock
        self._drain = drain
        self._timed: set[Timed] = set()
        self._near: list[tuple[float, int, Timed]] = []
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._sweeper: asyncio.TimerHandle | None = None
        self._next_second = 0.0
        self.connections: set[Watched] = set()
        self.each_sweep: list[Callable[[float], None]] = []
        """Who keeps the time of the last sweep."""
        self.each_second: list[Callable[[float], None]] = []
        """Whatever else wants a beat: budgets, ejections, idle pools."""

    def start(self) -> None:
        """Begin to sweep on the running loop."""
        self._schedule_sweep()

    def close(self) -> None:
        """Stop; deadlines no longer pass."""
        for handle in (self._timer, self._sweeper):
            if handle is not None:
                handle.cancel()
        self._timer = self._sweeper = None

    def add(self, timed: Timed, now: float) -> None:
        """Watch ``timed.deadline_s``; it may be moved later and set to 0.0 at will. Call again to move it earlier."""
        if timed.deadline_s - now < NEAR_S:
            self._push(timed)
        else:
            self._timed.add(timed)

    def discard(self, timed: Timed) -> None:
        """Watch it no longer."""
        timed.deadline_s = 0.0
        self._timed.discard(timed)

    def _push(self, timed: Timed) -> None:
        heapq.heappush(self._near, (timed.deadline_s, next(self._numbers), timed))
        self._arm()

    def _arm(self) -> None:
        if not self._near:
            return
        due = self._near[0][0]
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, due - self._clock()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._clock()
        while self._near and self._near[0][0] <= now + 0.0005:  # half a loop tick: uvloop's timers count in ms
            _, _, timed = heapq.heappop(self._near)
            deadline = timed.deadline_s
            if not deadline:
                continue
            if deadline > now + 0.0005:
                self.add(timed, now)
                continue
            timed.deadline_s = 0.0
            try:
                timed.on_deadline()
            except Exception:
                logger.exception("a deadline failed: %r", timed)
        self._arm()
        self._drain()

    def _schedule_sweep(self) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._schedule_sweep()
        now = self._clock()
        for tell in self.each_sweep:
            tell(now)
        near = [timed for timed in self._timed if timed.deadline_s - now < NEAR_S]
        for timed in near:
            self._timed.discard(timed)
            if timed.deadline_s:
                self._push(timed)
        if now >= self._next_second:
            self._next_second = now + 1.0
            for connection in tuple(self.connections):
                try:
                    connection.check_time(now)
                except Exception:
                    logger.exception("a look at a connection failed: %r", connection)
            for beat in self.each_second:
                try:
                    beat(now)
                except Exception:
                    logger.exception("a beat failed: %r", beat)
        self._drain()
