"""How an instance is checked changes while it is registered, and Consul is slow or fails just then. A real agent."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from mesh.discovery.base import HealthCheck, SourceError
from mesh.discovery.consul_registration import KEEP_S, ConsulRegistration
from mesh.model.service import Endpoint, Health, Instance
from tests.support.control import background
from tests.support.discovery import REVIEWS, SharedAgent, consul_provider, shared_agent
from tests.support.process import until

pytestmark = pytest.mark.consul

agent = pytest.fixture(scope="module")(shared_agent)
HERE = Instance(REVIEWS, Endpoint("reviews-1", "127.0.0.1", 4321))
OVER_HTTP = HealthCheck("http://127.0.0.1:9/", interval_s=3600)
"""A check that does not come to its first question here: the status is what it was registered with."""
LEASE = ("service:reviews-1:lease", "passing")
ASKED = ("service:reviews-1", "passing")
LEAVING = ("_service_maintenance:reviews-1", "critical")

Meddle = Callable[[str, Callable[[], Awaitable[Any]]], Awaitable[Any]]


class Registered:
    """An instance in a real agent; ``meddle`` is asked with each call to it."""

    def __init__(self, registration: ConsulRegistration, agent: SharedAgent) -> None:
        self.registration, self._agent = registration, agent
        self.meddle: Meddle | None = None
        call = registration._client.call

        async def meddled(method: str, path: str, *more: Any, **named: Any) -> Any:
            def go_on() -> Awaitable[Any]:
                return call(method, path, *more, **named)

            return await (go_on() if self.meddle is None else self.meddle(path, go_on))

        registration._client.call = meddled  # type: ignore[method-assign]

    async def checks(self) -> set[tuple[str, str]]:
        return {(key, each["Status"]) for key, each in (await self._agent.get("/v1/agent/checks")).items()}

    async def until_checked_by(self, *checks: tuple[str, str]) -> None:
        async def are_these() -> bool:
            return await self.checks() == set(checks)

        await until(are_these, what=f"{checks}", timeout_s=3 * KEEP_S)

    async def services(self) -> set[str]:
        return set(await self._agent.get("/v1/agent/services"))


@pytest.fixture
async def registered(agent: SharedAgent) -> AsyncIterator[Registered]:
    async with consul_provider(agent) as provider:
        source = await provider.source()
        registration = await source.register(HERE, Health.PASSING, OVER_HTTP)
        yield Registered(registration, agent)
        await registration.close()


async def test_it_changes_there_and_back(registered: Registered) -> None:
    assert await registered.checks() == {ASKED}
    for _ in range(3):
        await registered.registration.change_check(None)
        assert await registered.checks() == {LEASE}
        await registered.registration.change_check(OVER_HTTP)
        assert await registered.checks() == {ASKED}


async def test_what_could_not_be_said_is_said_later(registered: Registered) -> None:
    async def is_away(path: str, go_on: Callable[[], Awaitable[Any]]) -> Any:
        if "register?" in path:
            raise SourceError("away")
        return await go_on()

    registered.meddle = is_away
    with pytest.raises(SourceError):
        await registered.registration.change_check(None)
    registered.meddle = None
    await registered.until_checked_by(LEASE)


async def test_one_that_is_leaving_is_leaving_still(registered: Registered) -> None:
    """To register takes maintenance away, and that it is put again may fail."""

    async def fails(path: str, go_on: Callable[[], Awaitable[Any]]) -> Any:
        if "maintenance" in path:
            raise SourceError("away")
        return await go_on()

    await registered.registration.announce_leaving()
    assert LEAVING in await registered.checks()
    registered.meddle = fails
    with pytest.raises(SourceError):
        await registered.registration.change_check(None)
    registered.meddle = None
    await registered.until_checked_by((LEASE[0], "critical"), LEAVING)


async def test_a_change_that_was_taken_and_not_answered_in_time_is_undone(registered: Registered) -> None:
    """A table that is refused takes back what it had announced, at once."""

    async def hangs(path: str, go_on: Callable[[], Awaitable[Any]]) -> Any:
        reply = await go_on()
        if "register?" in path:
            await asyncio.Event().wait()
        return reply

    registered.meddle = hangs
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await registered.registration.change_check(None)
    registered.meddle = None
    assert await registered.checks() == {LEASE}
    await registered.registration.change_check(OVER_HTTP)
    assert await registered.checks() == {ASKED}


async def test_a_change_under_way_does_not_outlive_the_end(registered: Registered) -> None:
    begun = asyncio.Event()

    async def is_slow(path: str, go_on: Callable[[], Awaitable[Any]]) -> Any:
        if "register?" in path:
            begun.set()
            await asyncio.sleep(0.3)
        return await go_on()

    registered.meddle = is_slow
    changing = background(registered.registration.change_check(None))
    await begun.wait()
    await registered.registration.close()
    await changing
    assert not await registered.services()
    await registered.registration.change_check(OVER_HTTP)
    assert not await registered.services()


async def test_one_whose_id_was_taken_over_stays_away(registered: Registered, agent: SharedAgent) -> None:
    other = {"ID": "reviews-1", "Name": "reviews", "Address": "10.0.0.9", "Port": 99}
    await agent.put("/v1/agent/service/register", other)
    await until(lambda: registered.registration._is_taken_over, what="it to notice", timeout_s=3 * KEEP_S)
    await agent.put("/v1/agent/service/deregister/reviews-1")
    await registered.registration.change_check(None)
    assert not await registered.services()
