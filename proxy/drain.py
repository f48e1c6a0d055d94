"""Leaving without losing a request, and without a guessed sleep.

(1) The instance is marked as leaving. (2) Inbound goes on accepting, and answers ``Connection: close``. (3) Wait
until every connected sidecar that watches the service has reported an endpoint state without this instance; with no
control server that answers, until no request came for 2 s. Either is bounded by ``drain_s``. (4) What is in flight is
finished; for that there is ``drain_s`` once more, whatever the wait before has taken. WebSockets, which have no end of
their own, are told to go elsewhere, and not before: whoever connects again now finds another instance. What comes
after (stopping the program, then outbound) is its caller's; beside a program that somebody else stops, its calls under
way are finished here too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import grpc.aio

if TYPE_CHECKING:
    from proxy.sidecar import Sidecar

logger = logging.getLogger(__name__)

QUIET_S = 2.0
FIRST_WORD_S = 2.0
_POLL_S = 0.05


async def drain(sidecar: Sidecar, *, program_stays: bool) -> None:
    """Steps 1 to 4. Never raises; takes at most twice ``drain_s``.

    ``program_stays``: the program is not ours to stop, so this is the end of its calls: wait for a moment without any.
    """
    loop, drain_s = asyncio.get_running_loop(), sidecar.config.drain_s
    if sidecar.listeners.inbound is not None:
        await _leave(sidecar, loop.time() + drain_s)
    end = loop.time() + drain_s
    left = 0
    if sidecar.listeners.inbound is not None:
        sidecar.tell_websockets(inbound_only=True)
        left = await _none(sidecar.inbound_under_way, end)
    if program_stays or sidecar.listeners.inbound is None:
        sidecar.tell_websockets(inbound_only=False)
        left = await _none(sidecar.under_way, end)
    if left:
        logger.warning("draining: %d exchanges are given up", left)


async def _leave(sidecar: Sidecar, end: float) -> None:
    logger.info("draining: leaving discovery")
    sidecar.begin_drain()
    try:
        async with asyncio.timeout_at(end):
            await _announce(sidecar)
            if not await _unseen(sidecar):
                await _quiet(sidecar)
    except TimeoutError:
        logger.warning("draining: not everybody has taken note within %g s; going on", sidecar.config.drain_s)


async def _announce(sidecar: Sidecar) -> None:
    """Mark the instance in discovery; a source that hangs is left to notice by itself."""
    if sidecar.registration is not None:
        try:
            await asyncio.wait_for(sidecar.registration.announce_leaving(), FIRST_WORD_S)
        except TimeoutError:
            logger.warning("draining: discovery does not take note that this instance leaves")


async def _unseen(sidecar: Sidecar) -> bool:
    """Wait until no sidecar may send here; False where the control server could not tell."""
    if sidecar.feed is None or not sidecar.feed.is_connected:
        return False
    answers = sidecar.feed.await_unseen(sidecar.config.service, sidecar.config.instance)
    try:
        # It says at once who may; one that does not is as good as none, though its connection be open.
        nodes = await asyncio.wait_for(anext(answers, ()), FIRST_WORD_S)
        while nodes:
            logger.info("draining: %d sidecars may still send here", len(nodes))
            nodes = await anext(answers, ())
    except TimeoutError:
        logger.warning("draining: the control server does not say who may still send here")
        return False
    except grpc.aio.AioRpcError as error:
        logger.warning("draining: the control server cannot tell who may still send here: %s", error.details())
        return False
    return True


async def _quiet(sidecar: Sidecar) -> None:
    started = sidecar.plane.clock()
    while min(await sidecar.inbound_quiet_s(), sidecar.plane.clock() - started) < QUIET_S:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)


async def _none(count: Callable[[], Awaitable[int]], end: float) -> int:
    """Wait until there are no such exchanges; gives how many there are at the end."""
    loop = asyncio.get_running_loop()
    while under_way := await count():
        if loop.time() >= end:
            break
        await asyncio.sleep(_POLL_S)
    return under_way
