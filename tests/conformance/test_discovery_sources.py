"""One suite over every discovery source: real Consul, the control server's real registry, a real file."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from mesh.discovery.backoff import Backoff
from mesh.discovery.base import Contact
from mesh.discovery.catalog import Catalog, CatalogSettings
from mesh.discovery.retention import ServedEndpoints
from mesh.model.name import Name
from mesh.model.service import Health
from tests.support.discovery import (
    REVIEWS,
    FileProvider,
    Provider,
    Seen,
    SharedAgent,
    consul_provider,
    endpoint,
    registry_provider,
    shared_agent,
)
from tests.support.process import until

agent = pytest.fixture(scope="module")(shared_agent)


@pytest.fixture
async def consul_source(agent: SharedAgent) -> AsyncIterator[Provider]:
    async with consul_provider(agent) as provider:
        yield provider


@pytest.fixture
async def grpc_provider() -> AsyncIterator[Provider]:
    async with registry_provider() as provider:
        yield provider


@pytest.fixture
async def file_provider(tmp_path: Path) -> AsyncIterator[Provider]:
    provider = FileProvider(tmp_path / "services.json")
    yield provider
    await provider.close()


@pytest.fixture(
    params=[
        pytest.param("consul_source", marks=pytest.mark.consul, id="consul"),
        pytest.param("grpc_provider", id="registry"),
        pytest.param("file_provider", id="file"),
    ]
)
def provider(request: pytest.FixtureRequest) -> Provider:
    return request.getfixturevalue(request.param)


async def test_a_watch_first_resumes_contact_and_then_reports_each_change(provider: Provider) -> None:
    await provider.put(endpoint("a"))
    seen = Seen(await provider.source())
    await seen.until_ids("a", health=Health.PASSING)
    assert seen.contacts[0] is Contact.RESUMED
    await provider.put(endpoint("b", "v2", port=81))
    await seen.until_ids("a", "b")
    assert seen.state["b"] == ("v2", Health.PASSING, 81)
    await provider.put(endpoint("b", "v2", port=82))
    await seen.until(lambda seen: seen.state["b"][2] == 82, "the new port")
    for health in (Health.CRITICAL, Health.WARNING, Health.LEAVING):
        await provider.put(endpoint("b", "v2", health))
        await seen.until(lambda seen, health=health: seen.state["b"][1] is health, f"{health}")
    assert seen.state["a"] == ("v1", Health.PASSING, 80)
    await provider.remove("b")
    await seen.until_ids("a")
    assert seen.observations[-1].contact is Contact.CONTINUOUS
    assert not seen.failures
    await seen.watch.close()
    await seen.watch.close()


async def test_a_lookup_tells_a_known_service_from_an_unknown_one(provider: Provider) -> None:
    await provider.put(endpoint("a"))
    source = await provider.source()

    async def is_found() -> bool:
        found = await source.lookup(REVIEWS)
        return found is not None and [each.id for each in found.endpoints] == ["a"]

    await until(is_found, what="the lookup to find a")
    if source.name == "registry":  # which says "unknown" only when it has settled
        seen = Seen(source)
        await seen.until(lambda seen: Contact.CONTINUOUS in seen.contacts, "the registry to settle")
    assert await source.lookup(Name("default", "nobody")) is None
    assert await source.lookup(Name("other", "reviews")) is None


async def test_services_of_one_name_in_two_namespaces_are_two_services(provider: Provider) -> None:
    other = Name("shop", "reviews")
    await provider.put(endpoint("a"))
    await provider.put(endpoint("b"), other)
    source = await provider.source()
    here, there = Seen(source), Seen(source, other)
    await here.until_ids("a")
    await there.until_ids("b")


async def test_a_service_that_appears_later_is_seen(provider: Provider) -> None:
    seen = Seen(await provider.source())
    await seen.until(lambda seen: seen.observations, "an empty observation")
    assert seen.state == {}
    await provider.put(endpoint("a"))
    await seen.until_ids("a")


async def test_the_source_dies_and_returns_empty_and_no_share_changes_while_instances_return(
    provider: Provider,
) -> None:
    fleet = [endpoint("a", port=1), endpoint("b", port=2), endpoint("c", "v2", port=3)]
    for each in fleet:
        await provider.put(each)
    source = await provider.source()
    seen, catalog = Seen(source), Catalog(source, CatalogSettings(grace_s=60))
    history: list[set[str]] = []

    def note(_: Name, served: ServedEndpoints) -> None:
        history.append({each.id for each in served.usable})

    catalog.declare([REVIEWS])
    await seen.until_ids("a", "b", "c")
    await until(lambda: (served := catalog.get(REVIEWS)) and len(served.usable) == 3, what="all three to be served")
    catalog.subscribe(note)

    await provider.kill()
    await seen.until(lambda seen: seen.failures, "the outage to be noticed")
    before = len(seen.observations)
    await provider.restart_empty()
    await seen.until(lambda seen: len(seen.observations) > before, "contact")
    assert seen.observations[before].contact is Contact.RESUMED
    assert seen.state == {}
    # The catalog has a watch of its own, whose backoff may have begun its longest pause just before.
    longest_s = 2 * Backoff(Random(1)).max_s
    await until(
        lambda: catalog.report()[0].missing == 3, what="the catalog to be told that all are gone", timeout_s=longest_s
    )
    for count, each in enumerate(fleet, 1):
        await provider.put(each)
        await seen.until_ids(*[back.id for back in fleet[:count]])
    await until(lambda: not catalog.report()[0].missing, what="nobody to be missing", timeout_s=longest_s)
    assert history
    assert all(ids == {"a", "b", "c"} for ids in history)
    assert catalog.report()[0].age_s == 0
    await catalog.close()


async def test_while_the_source_is_dead_what_is_known_is_served_and_its_age_shown(provider: Provider) -> None:
    await provider.put(endpoint("a"))
    catalog = Catalog(await provider.source(), CatalogSettings(grace_s=0.1))
    catalog.declare([REVIEWS])
    await until(lambda: (served := catalog.get(REVIEWS)) and served.usable, what="a to be served")
    await provider.kill()
    await until(lambda: (catalog.report()[0].age_s or 0) > 0.2, what="the age to grow beyond the grace time")
    served = catalog.get(REVIEWS)
    assert served
    assert [each.id for each in served.usable] == ["a"]
    assert catalog.report()[0].error
    await catalog.close()


async def test_forty_services_are_watched_at_one_time(provider: Provider) -> None:
    services = [Name("default", f"s{n}") for n in range(40)]
    source = await provider.source()
    seen = {service: Seen(source, service) for service in services}
    for service in services:
        await provider.put(endpoint(f"{service.name}-1"), service)
    for service, each in seen.items():
        await each.until_ids(f"{service.name}-1")


async def test_a_source_that_is_closed_in_the_middle_of_everything_leaves_nothing_behind(provider: Provider) -> None:
    await provider.put(endpoint("a"))
    source = await provider.source()
    seen = Seen(source)
    await seen.until_ids("a")
    before = asyncio.all_tasks()
    Seen(source, Name("default", "nobody"))
    await provider.kill()
    await source.close()
    reported = len(seen.observations), len(seen.failures)
    await until(lambda: asyncio.all_tasks() <= before, what="all tasks to have ended", timeout_s=1)
    assert (len(seen.observations), len(seen.failures)) == reported
