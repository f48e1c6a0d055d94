"""Whether a failed attempt is made again, and when.

Without a stanza: what certainly did not reach a program (no connection, refused, ``x-mesh-not-sent``) is repeated
for every method; a reset before a response head and 502, 503, 504 only for idempotent methods, since anything else
replays payments (istio#13851). A stanza's codes hold for every method, as the Gateway API says; 504 then stands for
our own ``timeouts.backendRequest`` too. A reset has no code of HTTP, so that a stanza does not widen it; to a gRPC call
it is UNAVAILABLE, and is repeated where a stanza names that. Without a stanza an answer is never asked for again where
it came from: while nobody else is left, an overloaded endpoint is only loaded more. A budget caps all of it, so that
retries cannot multiply an outage.

What this misses: a program that fails by answering 200. Cold, the budget allows ``min_per_s`` so that a quiet
cluster may retry at all; overloaded, it is the first thing to say no.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mesh.http.grpc import Status
from mesh.http.message import ResponseHead
from mesh.http.outcome import ConnectFailed, Overflow, PerTryTimeout, ProxyError, UpstreamReset
from mesh.model.policy import RetryBudgetPolicy
from mesh.model.route import Retry

DEFAULT_ATTEMPTS: Final = 2  # extra tries without a stanza: Istio's default
DEFAULT_CODES: Final = frozenset((502, 503, 504))
BASE_BACKOFF_S: Final = 0.025  # Envoy's base interval
MAX_BACKOFF_S: Final = 0.250  # Envoy's cap: ten base intervals
BUDGET_SLOTS: Final = 10  # one a second: GEP-3388's interval of 10 s


class RetryRule:
    """The retries of one rule, compiled. ``attempts`` are extra tries; ``is_off`` makes everything else moot."""

    __slots__ = ("attempts", "backoff_s", "codes", "grpc_codes", "is_explicit", "repeats_on_same")

    def __init__(self, stanza: Retry | None) -> None:
        """None is the default of DESIGN.md."""
        self.is_explicit = self.repeats_on_same = stanza is not None
        self.attempts = DEFAULT_ATTEMPTS if stanza is None else stanza.attempts
        self.codes = frozenset(stanza.codes) if stanza is not None else DEFAULT_CODES
        self.grpc_codes = frozenset() if stanza is None else frozenset(stanza.grpc_codes)
        self.backoff_s = None if stanza is None else stanza.backoff_s

    def reason(
        self, outcome: ResponseHead | ProxyError, *, idempotent: bool, grpc_status: int | None = None
    ) -> str | None:
        """Why ``outcome`` may be tried again (``connect-failure``, ``503``, ``UNAVAILABLE`` …); None where it stands.

        ``grpc_status`` is that of a gRPC call whose answer has no message: its own, or what our error is to its
        caller. Says nothing about whether the body can be sent again or the budget allows it.
        """
        if isinstance(outcome, Overflow):
            return None  # a limit of the whole service: another try would meet the same
        if grpc_status is not None and grpc_status in self.grpc_codes:
            return Status(grpc_status).name
        if isinstance(outcome, ResponseHead):
            if outcome.not_sent:
                return "not-sent"
            if outcome.status in self.codes and (idempotent or self.is_explicit):
                return str(outcome.status)
            return None
        if outcome.not_sent or isinstance(outcome, ConnectFailed):
            return "connect-failure"
        if isinstance(outcome, UpstreamReset):
            return "reset" if idempotent else None
        if isinstance(outcome, PerTryTimeout):
            is_asked_for = self.is_explicit and outcome.http_status in self.codes
            return "per-try-timeout" if idempotent or is_asked_for else None
        return None

    def wait_s(self, retry: int, random: Callable[[], float]) -> float:
        """Seconds to wait before extra try number ``retry`` (1 is the first); ``random`` gives a float in [0, 1)."""
        return backoff_s(retry, self.backoff_s, random)


def backoff_s(retry: int, configured_s: float | None, random: Callable[[], float]) -> float:
    """The wait before extra try number ``retry``.

    A configured b waits b plus a uniform share of b·(2ⁿ⁻¹-1), up to 10·b, and never less than b (Gateway API: a
    minimum). Without one: full jitter in [0, 25 ms·2ⁿ⁻¹], at most 250 ms.
    """
    grown = 2.0 ** min(retry - 1, 30)
    if configured_s is None:
        return random() * min(BASE_BACKOFF_S * grown, MAX_BACKOFF_S)
    return min(configured_s + random() * configured_s * (grown - 1.0), 10.0 * configured_s)


@dataclass
class RetryBudget:
    """Caps retries to a share of recent requests, so that they cannot multiply an outage.

    ``policy.percent`` (0 to 100) is of the requests of the last 10 s; ``policy.min_per_s`` more are allowed in each
    second, so that a quiet cluster may retry at all. Reads no clock: ``now`` (monotonic seconds) comes in. Counted
    in ten slots of a second. Source: GEP-3388 (20 %, 10 per 1 s).
    """

    policy: RetryBudgetPolicy
    shares: int = 1
    """Workers that share this policy: each may spend its part."""
    requests: int = 0
    """Requests of the current second: the request path adds one to it, and does nothing else here."""
    _retries: int = 0
    _second: int = 0
    _past: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=BUDGET_SLOTS - 1))

    def try_spend(self, now: float) -> bool:
        """Take one retry if the budget allows it; a False leaves the budget as it was."""
        self.tick(now)
        free = -(-self.policy.min_per_s // self.shares)
        if self._retries >= free:  # those within it do not count against the share
            requests = self.requests + sum(r for r, _ in self._past)
            shared = self._retries + 1 - free + sum(max(0, t - free) for _, t in self._past)
            if shared > requests * self.policy.percent / 100.0:
                return False
        self._retries += 1
        return True

    def tick(self, now: float) -> None:
        """Close the seconds that have passed; called at least once a second while there is traffic."""
        second = int(now)
        if second <= self._second:
            return
        empty = min(second - self._second, BUDGET_SLOTS) - 1
        self._past.append((self.requests, self._retries))
        self._past.extend(((0, 0),) * empty)
        self.requests = self._retries = 0
        self._second = second
