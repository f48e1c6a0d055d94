"""Limits: circuit breakers of a cluster, so that a slow service cannot take its callers down with it.

Counts, no rates: connections, requests in flight, and requests waiting for a connection. Over a limit a request is
refused at once (503 UO), since a queue without an end only moves the overload.
"""

from __future__ import annotations

from mesh.model.policy import Limits


class Usage:
    """What a cluster uses now, and its limits. ``max_requests``: that many in flight are let in and no more."""

    __slots__ = ("_limits", "_shares", "connections", "max_requests", "pending", "requests")

    def __init__(self, limits: Limits, shares: int = 1) -> None:
        """``shares``: workers that share the limits; each has its part, at least one."""
        self._shares = shares
        self.limits = limits
        self.requests = 0
        self.pending = 0
        self.connections = 0

    @property
    def limits(self) -> Limits:
        """The limits of the policy, for all shares together."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self.max_requests = max(1, limits.max_requests // self._shares)

    def pending_refusal(self) -> str | None:
        """Why no further request may wait for a connection; None where one may."""
        if self.pending >= max(1, self.limits.max_pending_requests // self._shares):
            limit = self.limits.max_pending_requests
            return f"{self.pending} requests wait for a connection, limits.maxPendingRequests is {limit}"
        return None

    @property
    def may_connect(self) -> bool:
        """Another connection is within the limits."""
        return self.connections < max(1, self.limits.max_connections // self._shares)
