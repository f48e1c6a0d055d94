"""Attempts that wait for a connection: in line at one endpoint, and counted for its whole service.

Who gives up (a timeout, a client that is gone) leaves the line at once, so that ``maxPendingRequests`` counts only
those who still want a connection, at whichever endpoint they wait.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from mesh.http.outcome import Overflow

if TYPE_CHECKING:
    from proxy.attempt import Attempt
    from proxy.ports import UpstreamStream
    from proxy.upstream.service import UpstreamService


class WaitingLine:
    """See the module. First come, first served."""

    __slots__ = ("_attempts", "_service")

    def __init__(self, service: UpstreamService) -> None:
        """Nobody waits."""
        self._service = service
        self._attempts: OrderedDict[Attempt, None] = OrderedDict()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._attempts)

    def join(self, attempt: Attempt, *, has_connections: bool) -> None:
        """Let ``attempt`` wait. Raises Overflow at a limit.

        ``has_connections``: the endpoint has some, or one under way, so it gets its turn even where the service may
        have no more of them. Whoever wants a connection of its own does not: those that are there may stay for days.
        """
        usage = self._service.usage
        refusal = usage.pending_refusal()
        if refusal is None and not usage.may_connect and (attempt.wants_fresh or not has_connections):
            refusal = f"{usage.connections} connections, limits.maxConnections is {usage.limits.max_connections}"
        if refusal is not None:
            message = f"{self._service.name}: {refusal}"
            raise Overflow(message, not_sent=True)
        usage.pending += 1
        self._attempts[attempt] = None
        attempt.line = self

    def leave(self, attempt: Attempt) -> None:
        """It waits no more."""
        del self._attempts[attempt]
        attempt.line = None
        self._service.usage.pending -= 1

    def next(self, *, is_used: bool = False) -> Attempt | None:
        """Whose turn it is, who then waits no more; None where nobody waits.

        ``is_used``: for a connection that has carried something, which those who want a fresh one are passed over for.
        """
        for attempt in self._attempts:
            if not (is_used and attempt.wants_fresh):
                self.leave(attempt)
                return attempt
        return None

    def serve(self, stream: UpstreamStream, *, is_used: bool = False) -> bool:
        """Give ``stream`` to whose turn it is; False where nobody waits for such a one. See ``next``."""
        attempt = self.next(is_used=is_used)
        if attempt is None:
            return False
        try:
            attempt.on_stream(stream)
        except Exception as error:  # noqa: BLE001 - the attempt logs it; those behind it still have their turn
            attempt.broke(error)
        return True

    def disband(self) -> list[Attempt]:
        """All, in order; none of them waits any more."""
        return [attempt for _ in range(len(self)) if (attempt := self.next()) is not None]
