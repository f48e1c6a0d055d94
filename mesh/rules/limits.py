"""Limits: circuit breakers of a cluster, so that a slow service cannot take its callers down with it.

Counts, no rates: connections, requests in flight, and requests waiting for a connection. Over a limit a request is
refused at once (503 UO), since a queue without an end only moves the overload.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.model.policy import Limits


@dataclass(slots=True)
class Usage:
    """What a cluster uses now, and its limits."""

    limits: Limits
    shares: int = 1
    """Workers that share these limits: each has its part, at least one."""
    requests: int = 0
    pending: int = 0
    connections: int = 0

    def refusal(self) -> str | None:
        """Why no further request is taken; None where one is."""
        if self.requests >= max(1, self.limits.max_requests // self.shares):
            return f"{self.requests} requests in flight, limits.maxRequests is {self.limits.max_requests}"
        return None

    def pending_refusal(self) -> str | None:
        """Why no further request may wait for a connection; None where one may."""
        if self.pending >= max(1, self.limits.max_pending_requests // self.shares):
            limit = self.limits.max_pending_requests
            return f"{self.pending} requests wait for a connection, limits.maxPendingRequests is {limit}"
        return None

    @property
    def may_connect(self) -> bool:
        """Another connection is within the limits."""
        return self.connections < max(1, self.limits.max_connections // self.shares)
