"""Checks the program beside this sidecar: every second, out after 2 failures, in after 1 success.

By connecting (``tcp``), or by a path that answers 2xx or 3xx. The result is what the inbound health path answers,
what the lease renewal carries, and whether the instance registers at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from mesh.model.service import Health

logger = logging.getLogger(__name__)

FAILURES = 2
TIMEOUT_S = 1.0
_GOOD = range(200, 400)


class ProgramCheck:
    """See the module. ``health`` is CRITICAL until the program has answered once."""

    def __init__(self, host: str, port: int, check: str, interval_s: float, changed: Callable[[Health], None]) -> None:
        """``check`` is ``tcp`` or a path; ``changed`` is told of every change."""
        self._host, self._port = host, port
        self._check = check
        self._interval_s = interval_s
        self._changed = changed
        self._failures = 0
        self.health = Health.CRITICAL
        self.last_failure = "not checked yet"
        self.first_success = asyncio.Event()

    async def run(self) -> None:
        """Check for ever; the owner's task."""
        while True:
            failure = await self.probe()
            self._note(failure)
            # Until it has come up at all, look often: a program should not wait a second for its first request.
            await asyncio.sleep(self._interval_s if self.first_success.is_set() else min(0.1, self._interval_s))

    async def probe(self) -> str | None:
        """One check; gives what is wrong, None if nothing."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                try:
                    return None if self._check == "tcp" else await self._ask(reader, writer)
                finally:
                    writer.close()
        except TimeoutError:
            return f"no answer within {TIMEOUT_S:g} s"
        except OSError as error:
            return f"cannot connect to {self._host}:{self._port}: {error.strerror or error}"

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str | None:
        writer.write(
            f"GET {self._check} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\nuser-agent: sidemesh-check\r\n"
            f"connection: close\r\n\r\n".encode()
        )
        line = await reader.readline()
        parts = line.split(b" ")
        if len(parts) < 2 or not parts[1].isdigit():
            return f"{self._check} did not answer HTTP"
        return None if int(parts[1]) in _GOOD else f"{self._check} answered {int(parts[1])}"

    def _note(self, failure: str | None) -> None:
        if failure is None:
            self._failures = 0
            self.first_success.set()
            self._set(Health.PASSING)
            return
        self.last_failure = failure
        self._failures += 1
        if self._failures >= FAILURES:
            self._set(Health.CRITICAL)

    def _set(self, health: Health) -> None:
        if health is self.health:
            return
        self.health = health
        if health is Health.PASSING:
            logger.info("the program on port %d is well", self._port)
        else:
            logger.warning("the program on port %d is not well: %s", self._port, self.last_failure)
        self._changed(health)
