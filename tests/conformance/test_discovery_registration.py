"""One suite over every way to register: a TTL check or an HTTP check with real Consul, a lease with the registry."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from aiohttp import web

from mesh.discovery.base import HealthCheck, Registration, Source, SourceError, SourceRefused
from mesh.model.name import Name
from mesh.model.service import Endpoint, Health, Instance
from tests.support.discovery import (
    REVIEWS,
    Provider,
    Seen,
    SharedAgent,
    consul_provider,
    registry_provider,
    shared_agent,
)
from tests.support.process import until

HERE = Endpoint("reviews-1/é", "127.0.0.1", 4321, {"version": "v2", "zone": "a"}, ("canary",))


@dataclass
class Program:
    """Answers a check with the health a test sets."""

    health: Health = Health.PASSING
    url: str = ""
    asked: int = 0

    async def answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        status = {Health.PASSING: 200, Health.WARNING: 429}.get(self.health, 503)
        return web.Response(status=status)


@dataclass
class Registrar:
    """Where to register, and how health gets there."""

    provider: Provider
    program: Program | None = None

    async def register(self, source: Source, service: Name = REVIEWS, health: Health = Health.PASSING) -> Registration:
        check = HealthCheck(self.program.url, interval_s=0.1) if self.program else None
        return await source.register(Instance(service, HERE), health, check)

    def set_health(self, registration: Registration, health: Health) -> None:
        registration.set_health(health)
        if self.program:
            self.program.health = health


agent = pytest.fixture(scope="module")(shared_agent)


@pytest.fixture
async def ttl(agent: SharedAgent) -> AsyncIterator[Registrar]:
    async with consul_provider(agent) as provider:
        yield Registrar(provider)


@pytest.fixture
async def http(agent: SharedAgent) -> AsyncIterator[Registrar]:
    program = Program()
    app = web.Application()
    app.router.add_get("/check", program.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    program.url = f"http://127.0.0.1:{runner.addresses[0][1]}/check"
    async with consul_provider(agent) as provider:
        yield Registrar(provider, program)
    await runner.cleanup()


@pytest.fixture
async def lease() -> AsyncIterator[Registrar]:
    async with registry_provider() as provider:
        yield Registrar(provider)


@pytest.fixture(
    params=[
        pytest.param("ttl", marks=pytest.mark.consul, id="consul-ttl"),
        pytest.param("http", marks=pytest.mark.consul, id="consul-http"),
        pytest.param("lease", id="registry"),
    ]
)
def registrar(request: pytest.FixtureRequest) -> Registrar:
    return request.getfixturevalue(request.param)


async def test_an_instance_is_seen_changes_its_health_announces_its_leaving_and_goes(registrar: Registrar) -> None:
    source = await registrar.provider.source()
    registration = await registrar.register(source)
    seen = Seen(source)
    await seen.until_ids(HERE.id, health=Health.PASSING)
    assert seen.observations[-1].endpoints == (HERE,)
    registrar.set_health(registration, Health.CRITICAL)
    await seen.until_ids(HERE.id, health=Health.CRITICAL)
    registrar.set_health(registration, Health.PASSING)
    await seen.until_ids(HERE.id, health=Health.PASSING)
    await registration.announce_leaving()
    await seen.until_ids(HERE.id, health=Health.LEAVING)
    await registration.close()
    await registration.close()
    await seen.until(lambda seen: not seen.state or seen.state[HERE.id][1] is Health.LEAVING, "the instance to be gone")


async def test_the_first_status_is_the_given_one_and_a_namespace_travels(registrar: Registrar) -> None:
    if registrar.program:
        registrar.program.health = Health.CRITICAL
    shop = Name("shop", "reviews")
    source = await registrar.provider.source()
    registration = await registrar.register(source, shop, Health.CRITICAL)
    seen, elsewhere = Seen(source, shop), Seen(source)
    await seen.until_ids(HERE.id, health=Health.CRITICAL)
    await elsewhere.until_ids()
    await registration.close()


async def test_an_instance_that_the_source_forgot_registers_again(registrar: Registrar) -> None:
    source = await registrar.provider.source()
    registration = await registrar.register(source)
    seen = Seen(source)
    await seen.until_ids(HERE.id)
    await registrar.provider.kill()
    await seen.until(lambda seen: seen.failures, "the outage")
    before = len(seen.observations)
    await registrar.provider.restart_empty()
    await seen.until(lambda seen: len(seen.observations) > before, "contact")
    await seen.until_ids(HERE.id, health=Health.PASSING)
    await registration.close()


async def test_an_instance_that_was_forgotten_can_still_announce_its_leaving(registrar: Registrar) -> None:
    source = await registrar.provider.source()
    registration = await registrar.register(source)
    await registrar.provider.kill()
    with pytest.raises(SourceError):
        await registration.announce_leaving()
    await registrar.provider.restart_empty()
    seen = Seen(source)
    await seen.until_ids(HERE.id, health=Health.LEAVING)
    await registration.close()


async def test_a_source_out_of_reach_is_registered_with_later(
    registrar: Registrar, caplog: pytest.LogCaptureFixture
) -> None:
    source = await registrar.provider.source()
    await registrar.provider.kill()
    with caplog.at_level(logging.WARNING):
        registration = await registrar.register(source)
    assert "not registered yet" in caplog.text
    await registrar.provider.restart_empty()
    await Seen(source).until_ids(HERE.id)
    await registration.close()


async def test_closing_a_registration_with_a_dead_source_neither_raises_nor_hangs(registrar: Registrar) -> None:
    source = await registrar.provider.source()
    registration = await registrar.register(source)
    await registrar.provider.kill()
    async with asyncio.timeout(5):
        await registration.close()


async def test_what_the_source_refuses_is_told_at_once(registrar: Registrar) -> None:
    source = await registrar.provider.source()
    bad = Instance(REVIEWS, Endpoint("x", "127.0.0.1", 80, {"version": "v" * 5000}))
    with pytest.raises(SourceRefused):
        await source.register(bad, Health.PASSING)


@pytest.mark.consul
async def test_consul_asks_the_given_url(http: Registrar) -> None:
    source = await http.provider.source()
    registration = await http.register(source)
    assert http.program
    await until(lambda: http.program and http.program.asked >= 2, what="two checks")
    await registration.close()


@pytest.mark.consul
async def test_an_id_that_another_sidecar_took_over_is_left_to_it(
    http: Registrar, caplog: pytest.LogCaptureFixture
) -> None:
    source = await http.provider.source()
    registration = await http.register(source)
    seen = Seen(source)
    await seen.until_ids(HERE.id)
    other = Endpoint(HERE.id, "127.0.0.1", 9999, {"version": "v1"})
    second = await source.register(Instance(REVIEWS, other), Health.PASSING)
    await until(lambda: "must not share an id" in caplog.text, what="the first one to notice")
    await registration.close()
    await seen.until(lambda seen: seen.state[HERE.id][2] == 9999, "the other one's address")
    await second.close()
    await seen.until_ids()
