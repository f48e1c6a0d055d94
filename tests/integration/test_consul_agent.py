"""The Consul agent that other tests build on behaves as they assume."""

import os
from pathlib import Path

import aiohttp
import pytest

from tests.support.consul import ConsulAgent
from tests.support.needs import require
from tests.support.process import until

pytestmark = pytest.mark.consul

PAY = {"Name": "pay", "ID": "pay-1", "Address": "127.0.0.1", "Port": 8080, "Meta": {"version": "v1"}}


async def registered(agent: ConsulAgent) -> list[str]:
    return [entry["Service"]["ID"] for entry in await agent.get("/v1/health/service/pay", passing="true")]


async def test_a_registered_service_is_seen(consul: ConsulAgent) -> None:
    await consul.put("/v1/agent/service/register", PAY)

    async def is_seen() -> bool:
        return await registered(consul) == ["pay-1"]

    await until(is_seen, what="pay-1 in the catalog")


async def test_a_killed_agent_is_gone_at_once_and_loses_nothing_on_restart(consul: ConsulAgent) -> None:
    await consul.put("/v1/agent/service/register", PAY)
    await consul.put("/v1/kv/kept", "yes")
    pid = consul.pid
    await consul.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(aiohttp.ClientConnectorError):
        await registered(consul)

    await consul.restart(clean=False)
    assert consul.pid != pid
    assert [entry["Key"] for entry in await consul.get("/v1/kv/kept")] == ["kept"]

    async def is_seen() -> bool:
        return await registered(consul) == ["pay-1"]

    await until(is_seen, what="pay-1 in the catalog again")


async def test_a_clean_restart_keeps_the_port_and_forgets_the_services(consul: ConsulAgent) -> None:
    await consul.put("/v1/agent/service/register", PAY)
    url = consul.url
    await consul.restart(clean=True)
    assert consul.url == url
    assert await registered(consul) == []


async def test_two_agents_stand_side_by_side(consul: ConsulAgent, tmp_path: Path) -> None:
    directory = tmp_path / "second"
    directory.mkdir()
    async with ConsulAgent(require("consul"), directory) as second:
        await second.put("/v1/agent/service/register", PAY)
        assert await registered(consul) == []
