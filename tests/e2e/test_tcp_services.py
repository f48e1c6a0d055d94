"""A real Redis behind two sidecars that know nothing of its protocol."""

import asyncio
import os
from pathlib import Path

import pytest

from mesh.client import MeshClient
from mesh.model.name import Name
from mesh.model.policy import AppProtocol, ServicePolicy
from mesh.model.snapshot import Kind
from tests.support.consul import ConsulAgent
from tests.support.fleet import Fleet
from tests.support.needs import require
from tests.support.ports import free_port
from tests.support.process import Process

pytestmark = pytest.mark.e2e

CONNECTIONS = int(os.environ.get("TEST_CONNECTIONS", "1000"))
"""Half of those that are made to Redis; 50 000 take a minute and a half."""
GROWTH_BYTES = 4 << 20


async def redis_cli(port: int, *words: str, stdin: bytes = b"") -> str:
    done = await asyncio.create_subprocess_exec(
        require("redis-cli"), "-h", "127.0.0.1", "-p", str(port), *words,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(done.communicate(stdin), 30)
    return out.decode().strip()


async def churn(port: int, count: int) -> None:
    """So many connections, each of which asks once."""
    bench = await asyncio.create_subprocess_exec(
        require("redis-benchmark"), "-p", str(port), "-n", str(count), "-c", "20", "-k", "0", "-t", "ping_mbulk", "-q",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(bench.communicate(), 60 + count / 100)
    assert bench.returncode == 0, out
    assert b"rror" not in out, out


@pytest.mark.parametrize("how", ["tcp", "detect"])
async def test_redis_through_two_sidecars(tmp_path: Path, how: str) -> None:
    port, local = free_port(), free_port()
    command = (require("redis-server"), "--port", str(port), "--save", "", "--dir", tmp_path, "--bind", "127.0.0.1")
    async with Process.start(*command, log=tmp_path / "redis.log"), Fleet(tmp_path) as fleet:
        await fleet.control()
        db = await fleet.sidecar("db", "--port", str(port), "--protocol", how)
        app = await fleet.sidecar("app", "--upstream", f"db={local}/{how}")

        async def answers() -> bool:
            return await redis_cli(local, "ping") == "PONG"

        await app.process.until(answers, what="redis through both", timeout_s=20)
        assert await redis_cli(local, "set", "greeting", "hello") == "OK"
        assert await redis_cli(local, "get", "greeting") == "hello"
        large = b"x" * 3_000_000
        assert await redis_cli(local, "-x", "set", "large", stdin=large) == "OK"
        assert await redis_cli(local, "strlen", "large") == str(len(large))

        await churn(local, CONNECTIONS)
        before = app.rss_bytes(), db.rss_bytes()
        await churn(local, CONNECTIONS)
        grown = [after - held for after, held in zip((app.rss_bytes(), db.rss_bytes()), before, strict=True)]
        assert max(grown) < GROWTH_BYTES, grown

        # A subscriber waits in silence, and hears what another publishes.
        subscriber = await asyncio.create_subprocess_exec(
            require("redis-cli"), "-p", str(local), "subscribe", "news", stdout=asyncio.subprocess.PIPE
        )
        assert subscriber.stdout is not None
        assert b"subscribe" in await asyncio.wait_for(subscriber.stdout.readline(), 10)
        await asyncio.sleep(0.5)
        assert await redis_cli(local, "publish", "news", "rain") == "1"
        heard = b""
        async with asyncio.timeout(10):
            while b"rain" not in heard:
                heard += await subscriber.stdout.readline()
        subscriber.terminate()
        await subscriber.wait()

        opened, closed = "istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"
        await app.process.until(lambda: _equal(app, opened, closed), what="all connections to be over")
        assert await app.metric(opened) >= 2 * CONNECTIONS
        assert await app.metric("istio_tcp_received_bytes_total") > len(large)
        assert await db.metric(opened) >= 2 * CONNECTIONS


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_policy_is_all_that_is_needed(tmp_path: Path, consul: ConsulAgent, workers: int) -> None:
    """Both sidecars follow it while they run, and so does the check of the program's health."""
    port, local = free_port(), free_port()
    command = (require("redis-server"), "--port", str(port), "--save", "", "--dir", tmp_path, "--bind", "127.0.0.1")
    async with Fleet(tmp_path, workers=workers) as fleet:
        fleet.consul_url = consul.url
        redis = Process.start(*command, log=tmp_path / "redis.log")
        await redis.__aenter__()
        control = await fleet.control()
        db = await fleet.sidecar("db", "--port", str(port))
        app = await fleet.sidecar("app", "--upstream", f"db={local}")

        async def check() -> tuple[str, str]:
            """How Consul checks the instance, and what it found."""
            (found,) = (await consul.get("/v1/health/checks/db")) or [{}]
            return found.get("Name", ""), found.get("Status", "")

        async def is_checked(how: str, status: str) -> bool:
            return await check() == (how, status)

        async def until_checked(how: str, status: str) -> None:
            await db.process.until(lambda: is_checked(how, status), what=f"{how}: {status}", timeout_s=20)

        await until_checked("sidemesh sidecar", "passing")
        await app.until_usable("db", 1)
        policy = ServicePolicy(Name("default", "db"), app_protocol=AppProtocol.TCP)
        async with MeshClient(control.address) as client:
            assert (await client.apply([policy])).is_acked_by_all
        assert await redis_cli(local, "ping") == "PONG"
        await until_checked("sidemesh lease", "passing")
        await redis.kill()
        await until_checked("sidemesh lease", "critical")
        async with Process.start(*command, log=tmp_path / "redis2.log"):
            await until_checked("sidemesh lease", "passing")
            assert await redis_cli(local, "ping") == "PONG"
            async with MeshClient(control.address) as client:
                assert (await client.delete(Kind.SERVICE_POLICY, policy.name)).is_acked_by_all
            await until_checked("sidemesh sidecar", "passing")
            assert await db.metric("istio_tcp_connections_closed_total") == 2, "and none was a check of the other kind"


async def _equal(sidecar, one: str, other: str) -> bool:
    return await sidecar.metric(one) == await sidecar.metric(other)


async def test_a_dead_tcp_program_leaves_consul_and_comes_back(tmp_path: Path, consul: ConsulAgent) -> None:
    """Nobody can ask over HTTP through such a port, so the state travels with the sidecar's own lease."""
    port, local = free_port(), free_port()
    command = (require("redis-server"), "--port", str(port), "--save", "", "--dir", tmp_path, "--bind", "127.0.0.1")
    async with Fleet(tmp_path) as fleet:
        fleet.consul_url = consul.url
        redis = Process.start(*command, log=tmp_path / "redis.log")
        await redis.__aenter__()
        await fleet.sidecar("db", "--port", str(port), "--protocol", "tcp")
        app = await fleet.sidecar("app", "--upstream", f"db={local}/tcp")

        async def health() -> set[str]:
            return set((await app.endpoints("db")).values())

        async def is_passing() -> bool:
            return await health() == {"passing"}

        async def is_critical() -> bool:
            return await health() == {"critical"}

        await app.process.until(is_passing, what="redis to be well", timeout_s=20)
        await redis.kill()
        await app.process.until(is_critical, what="its death to be known", timeout_s=20)
        async with Process.start(*command, log=tmp_path / "redis2.log"):
            await app.process.until(is_passing, what="its return to be known", timeout_s=20)
            assert await redis_cli(local, "ping") == "PONG"
