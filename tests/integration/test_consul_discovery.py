"""What Consul does when it fails, limits or refuses, on a real agent. The rules: mesh/discovery/consul_watch.py."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.discovery.base import Contact, SourceError, SourceRefused
from mesh.discovery.catalog import Catalog, CatalogSettings, Unresolved, Why
from mesh.discovery.consul import ConsulConfig, ConsulSource
from mesh.model.name import Name
from mesh.model.service import Endpoint, Health, Instance
from tests.support.consul import ConsulAgent
from tests.support.discovery import (
    REVIEWS,
    ConsulProvider,
    Seen,
    SharedAgent,
    consul_provider,
    endpoint,
    shared_agent,
)
from tests.support.needs import require
from tests.support.ports import free_port
from tests.support.process import until

pytestmark = pytest.mark.consul

agent = pytest.fixture(scope="module")(shared_agent)
ROOT = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
async def provider(agent: SharedAgent) -> AsyncIterator[ConsulProvider]:
    async with consul_provider(agent) as provider:
        yield provider


async def test_a_crash_that_lost_the_state_does_not_leave_a_watch_deaf_behind_an_old_larger_index(
    provider: ConsulProvider,
) -> None:
    for n in range(30):
        await provider.put(endpoint("a", port=100 + n))  # the index grows
    source = await provider.source()
    seen = Seen(source)
    await seen.until_ids("a")
    await asyncio.sleep(1.1)  # a younger query that breaks would count as one the agent did not let in
    before = len(seen.observations)
    await provider.kill()
    await provider.restart_empty()
    await provider.put(endpoint("b"))
    await seen.until_ids("b")  # with the old index it would take the whole wait of 30 s
    assert seen.observations[before].contact is Contact.RESUMED


async def test_an_agent_that_ends_in_order_gives_old_data_once_and_is_not_hammered(provider: ConsulProvider) -> None:
    await provider.put(endpoint("a"))
    source = await provider.source()
    catalog = Catalog(source, CatalogSettings(grace_s=60))
    catalog.declare([REVIEWS])
    await until(lambda: (served := catalog.get(REVIEWS)) and served.usable, what="a to be served")
    seen = Seen(source)
    await seen.until_ids("a")
    await provider.agent.stop()
    await seen.until(lambda seen: seen.failures, "the outage")
    assert len(seen.observations) <= 4
    assert len(seen.failures) <= 6
    served = catalog.get(REVIEWS)
    assert served
    assert [each.id for each in served.usable] == ["a"]
    await catalog.close()


async def test_more_watches_than_the_agent_allows_connections_all_see_their_changes(provider: ConsulProvider) -> None:
    source = await provider.source()
    services = [Name("default", f"s{n}") for n in range(230)]
    watches = [Seen(source, service) for service in services]
    for each in watches:
        await each.until(lambda each: each.observations, "a first observation", timeout_s=30)
    for service in services[::23] + services[-5:]:
        await provider.put(endpoint(f"{service.name}-1"), service)
    for service, each in list(zip(services, watches, strict=True))[::23]:
        await each.until_ids(f"{service.name}-1")
    await watches[-1].until_ids("s229-1")
    assert sum(len(each.failures) for each in watches) == 0
    assert await source.lookup(services[0])  # there is room for short requests


async def test_watches_that_the_agent_drops_for_its_limit_go_on_by_polling(provider: ConsulProvider) -> None:
    sources = [await provider.source(), await provider.source()]  # each keeps within 150, both together do not
    services = [Name("default", f"s{n}") for n in range(120)]
    watches = [Seen(source, service) for source in sources for service in services]
    for each in watches:
        await each.until(lambda each: each.observations, "a first observation", timeout_s=30)
    await until(lambda: sum(len(each.failures) for each in watches) >= 30, what="the agent to drop connections")
    await provider.put(endpoint("last"), services[-1])
    for each in (watches[119], watches[239]):
        await each.until_ids("last")
    dropped = [each for each in watches if each.failures]
    for each in dropped[:10]:
        failures = len(each.failures)
        await each.until(lambda each: each.contacts[-1] is Contact.CONTINUOUS, "a steady poll")
        assert len(each.failures) == failures  # and no second drop: it polls for half a minute


async def test_a_dead_program_and_its_dead_sidecar_are_taken_out_by_the_check(provider: ConsulProvider) -> None:
    source = await provider.source()
    body = {
        "ID": "a",
        "Name": "reviews",
        "Address": "127.0.0.1",
        "Port": 80,
        "Check": {"TTL": "500ms", "Status": "passing"},
    }
    await provider.agent.put("/v1/agent/service/register", body)  # and then nobody renews it, as after kill -9
    seen = Seen(source)
    await seen.until_ids("a", health=Health.CRITICAL)


async def test_node_maintenance_is_a_leaving_and_a_service_without_address_has_its_nodes(
    provider: ConsulProvider,
) -> None:
    await provider.agent.put("/v1/agent/service/register", {"ID": "a", "Name": "reviews", "Port": 80})
    await provider.agent.put("/v1/agent/service/register", {"ID": "no-port", "Name": "reviews"})
    seen = Seen(await provider.source())
    await seen.until_ids("a", health=Health.PASSING)
    assert seen.observations[-1].endpoints == (Endpoint("a", "127.0.0.1", 80),)
    await provider.agent.put("/v1/agent/maintenance", enable="true")
    await seen.until_ids("a", health=Health.LEAVING)
    await provider.agent.put("/v1/agent/maintenance", enable="false")
    await seen.until_ids("a", health=Health.PASSING)


@contextlib.asynccontextmanager
async def guarded_agent(directory: Path) -> AsyncIterator[ConsulAgent]:
    """An agent that denies by default; ROOT may do everything."""
    acl = {"enabled": True, "default_policy": "deny", "tokens": {"master": ROOT}}
    config = {"acl": acl, "primary_datacenter": "dc1"}
    async with ConsulAgent(require("consul"), directory, config=config) as agent:
        yield agent


@contextlib.asynccontextmanager
async def source_with(agent: ConsulAgent, token: str) -> AsyncIterator[ConsulSource]:
    source = ConsulSource(ConsulConfig(agent.url, token=token))
    await source.start()
    try:
        yield source
    finally:
        await source.close()


async def test_acls_that_hide_everything_are_hinted_at_and_a_bogus_token_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        guarded_agent(tmp_path) as agent,
        source_with(agent, ROOT) as root,
        source_with(agent, "") as nobody,
        source_with(agent, "99999999-2222-3333-4444-555555555555") as bogus,
    ):

        async def register() -> bool:
            try:
                registrations.append(await root.register(Instance(REVIEWS, endpoint("a")), Health.PASSING))
            except SourceRefused:  # the tokens come a moment after the leader
                return False
            return True

        registrations: list = []
        await until(register, what="the root token to work")
        await Seen(root).until_ids("a")

        assert await nobody.lookup(REVIEWS) is None  # 1.8: "200 with []"
        assert await nobody.lookup(REVIEWS) is None
        assert caplog.text.count("Consul has ACLs on") == 1
        with pytest.raises(SourceRefused):
            await nobody.register(Instance(REVIEWS, endpoint("b")), Health.PASSING)

        with pytest.raises(SourceRefused, match="refuses the token"):
            await bogus.lookup(REVIEWS)
        catalog = Catalog(bogus)
        catalog.declare([REVIEWS])
        answer = await catalog.resolve(REVIEWS)
        assert isinstance(answer, Unresolved)
        assert answer.why is Why.UNAVAILABLE
        assert "CONSUL_HTTP_TOKEN" in answer.detail
        await catalog.close()
        await asyncio.gather(*(each.close() for each in registrations))


async def test_over_https_the_agents_certificate_is_verified(tmp_path: Path) -> None:
    binary, port = require("consul"), free_port()
    for command in (("ca", "create"), ("cert", "create", "-server")):
        await asyncio.to_thread(
            subprocess.run, [binary, "tls", *command], cwd=tmp_path, check=True, capture_output=True
        )
    config = {
        "cert_file": str(tmp_path / "dc1-server-consul-0.pem"),
        "key_file": str(tmp_path / "dc1-server-consul-0-key.pem"),
        "ports": {"https": port},
    }
    environ = {"CONSUL_HTTP_ADDR": f"127.0.0.1:{port}", "CONSUL_HTTP_SSL": "true"}
    ca_file = str(tmp_path / "consul-agent-ca.pem")
    async with ConsulAgent(binary, tmp_path, config=config):
        for trusted in (True, False):
            source = ConsulSource(ConsulConfig.make(environ | ({"CONSUL_CACERT": ca_file} if trusted else {})))
            await source.start()
            try:
                if trusted:
                    registration = await source.register(Instance(REVIEWS, endpoint("a")), Health.PASSING)
                    await Seen(source).until_ids("a")
                    await registration.close()
                else:
                    with pytest.raises(SourceError, match="certificate"):
                        await source.lookup(REVIEWS)
            finally:
                await source.close()
