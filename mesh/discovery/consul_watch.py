"""The pure half of a Consul watch: what to ask next, how sure the answer is, how long to pause.

What an agent does (each tried on 1.8.7, see tests) and what follows:

- After a restart with lost state its indexes begin anew; an old, larger index then blocks for the whole wait and
  sees no change. So any transport error drops the index, and so does an index that is 0 or goes backwards.
- A blocking query returns for other reasons than a change (its wait is over; on 1.8 a service nobody registered
  wakes on every registration; an agent that gets SIGTERM answers 200 with old data). So answers are compared, and
  a loop of unchanged answers slows down instead of spinning.
- Beyond its connection limit (200 per client address, shared by all sidecars of a host) the agent drops a
  connection without a word. A watch whose blocking query breaks off at once goes on by polling for a while.
- Under churn a token bucket bounds the queries: Consul's documentation proposes a burst of 2 and one per 15 s. That
  would hold back the news of a failing instance for 15 s, so ours are 5 and one per second.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum
from typing import Final

from mesh.discovery.backoff import Backoff
from mesh.discovery.base import Contact
from mesh.model.service import Endpoint

WAIT_S: Final = 30.0  # short, so that a watch deaf for whatever reason recovers; the default of 5 min does not
TIMEOUT_MARGIN_S: Final = 3.0  # for the network and a busy agent, on top of the wait/16 that the agent adds
POLL_S: Final = 2.0  # above the cap of blocking queries; answered from the agent's cache
POLL_AFTER_DROP_S: Final = 30.0  # how long a watch polls when the agent drops its blocking queries
DROPPED_AT_ONCE_S: Final = 1.0  # a blocking query that breaks sooner was not let in
BURST: Final = 5
REFILL_PER_S: Final = 1.0
SLOWEST_LOOP_S: Final = 5.0  # pause of a loop that wakes for nothing
MAX_CACHE_AGE_S: Final = 60.0  # beyond it the agent's cache has lost its servers


class Mode(Enum):
    """How a query is answered."""

    NOW = "now"
    """At once, by a server."""

    BLOCK = "block"
    """When the index has passed ``index`` or the wait is over; holds a connection of its own."""

    CACHED = "cached"
    """At once, from the agent's cache, which the agent keeps fresh by itself: cheap to ask often."""


@dataclass(frozen=True, slots=True)
class Query:
    """What to send; ``index`` and ``wait_s`` matter for BLOCK only. No answer after ``timeout_s`` is an error."""

    mode: Mode = Mode.NOW
    index: int = 0
    wait_s: float = 0.0
    timeout_s: float = TIMEOUT_MARGIN_S


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back with 200. ``has_leader`` False: the servers answer from memory, cut off from each other."""

    index: int
    endpoints: tuple[Endpoint, ...]
    has_leader: bool = True
    cache_age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """What to do with an answer: report it with ``contact``, then pause for ``pause_s``.

    ``is_vouched_for`` False: Consul itself does not stand by it; report it, and then that contact is lost.
    """

    contact: Contact
    pause_s: float
    is_vouched_for: bool


class WatchLoop:
    """The state of one watch. The shell calls ``ask``, sends the query, then ``answered`` or ``failed``; repeat."""

    __slots__ = (
        "_asked_at",
        "_backoff",
        "_endpoints",
        "_index",
        "_is_resumed",
        "_poll_until",
        "_rng",
        "_tokens",
        "_unchanged",
        "_was_blocking",
        "wait_s",
    )

    def __init__(self, rng: random.Random, wait_s: float = WAIT_S) -> None:
        """``wait_s``: the longest a blocking query may take, seconds."""
        self.wait_s = wait_s
        self._rng = rng
        self._backoff = Backoff(rng)
        self._index = 0
        self._is_resumed = True  # the next answer does not continue what is known
        self._endpoints: tuple[Endpoint, ...] | None = None
        self._unchanged = 0
        self._tokens = float(BURST)
        self._asked_at = float("-inf")
        self._was_blocking = False
        self._poll_until = float("-inf")

    def wants_to_block(self, now: float) -> bool:
        """Whether the next query should hold a connection of its own, if one is to be had."""
        return self._index > 0 and now >= self._poll_until

    def ask(self, now: float, *, may_block: bool) -> Query:
        """The next query. ``may_block``: a connection of its own was found."""
        self._tokens = min(float(BURST), self._tokens + REFILL_PER_S * max(0.0, now - self._asked_at)) - 1.0
        self._asked_at = now
        self._was_blocking = may_block and self.wants_to_block(now)
        if self._was_blocking:
            # The agent adds up to wait/16 so that the watches of many clients do not wake together.
            return Query(Mode.BLOCK, self._index, self.wait_s, self.wait_s + self.wait_s / 16 + TIMEOUT_MARGIN_S)
        # Only a steady poll is cached: each cached name makes the agent watch it for days.
        return Query(Mode.CACHED if self._index > 0 else Mode.NOW)

    def answered(self, now: float, answer: Answer) -> Step:
        """Take in a 200."""
        self._backoff.succeeded()
        went_back = answer.index < max(self._index, 1)
        is_vouched_for = answer.has_leader and answer.cache_age_s <= MAX_CACHE_AGE_S
        contact = Contact.RESUMED if self._is_resumed or went_back or not is_vouched_for else Contact.CONTINUOUS
        # After a step back the next answer is a fresh start too: that index was not to be trusted.
        self._is_resumed = went_back or not is_vouched_for
        is_unchanged = answer.endpoints == self._endpoints
        self._endpoints = answer.endpoints
        is_repeated = answer.index == self._index and self._was_blocking
        self._index = 0 if went_back else answer.index
        woke_for_nothing = is_unchanged and self._was_blocking and now - self._asked_at < SLOWEST_LOOP_S
        self._unchanged = self._unchanged + 1 if woke_for_nothing else 0
        return Step(contact, self._pause_s(now, is_suspicious=went_back or is_repeated), is_vouched_for)

    def failed(self, now: float) -> float:
        """A transport error, a timeout or an error status: forget the index. Returns the pause in seconds."""
        if self._was_blocking and now - self._asked_at < DROPPED_AT_ONCE_S:
            self._poll_until = now + self._rng.uniform(1.0, 1.5) * POLL_AFTER_DROP_S
        self._index = 0
        self._is_resumed = True
        self._tokens += 1.0  # the backoff paces errors; a source that returns is followed at full speed
        return self._backoff.next_s()

    def _pause_s(self, now: float, *, is_suspicious: bool) -> float:
        if not self.wants_to_block(now) and self._index > 0:
            return self.poll_pause_s()
        since_asked_s = now - self._asked_at
        pace_s = 0.0
        if is_suspicious or self._unchanged > 0:
            # Nothing new: at least a second between two queries and longer each time; one that blocked so long needs
            # no pause.
            pace_s = min(SLOWEST_LOOP_S, 2.0 ** max(0, min(self._unchanged, 10) - 1))
        if self._tokens < 1.0:
            pace_s = max(pace_s, (1.0 - self._tokens) / REFILL_PER_S)
        return max(0.0, pace_s - since_asked_s) * self._rng.uniform(1.0, 1.25)

    def poll_pause_s(self) -> float:
        """How long to wait before a poll, seconds: also where ``wants_to_block`` but no connection is to be had."""
        return self._rng.uniform(0.75, 1.25) * POLL_S
