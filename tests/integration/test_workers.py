"""``--workers 2``: one sidecar to everybody else, two processes that carry its traffic."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from control.config import ControlConfig
from control.server import ControlServer
from mesh.client import MeshClient
from mesh.model.name import Name
from proxy.admin import AdminServer
from proxy.config import Address, SidecarConfig
from proxy.drain import drain
from proxy.sidecar import Sidecar
from tests.support.mesh import Program

ANY = Address("127.0.0.1", 0)
PAY = Name("default", "pay")


def config(service: str, control: str, **settings: object) -> SidecarConfig:
    given: dict[str, object] = {"inbound": ANY, "outbound": ANY, "admin": ANY, "drain_s": 5.0}
    given |= {"control": Address.parse(control), "check_interval_s": 0.2}
    return SidecarConfig(Name("default", service), **(given | settings))  # type: ignore[arg-type]


@asynccontextmanager
async def running(settings: SidecarConfig) -> AsyncIterator[Sidecar]:
    sidecar = Sidecar(settings)
    try:
        await sidecar.start()
        async with asyncio.timeout(20):
            await sidecar.ready()
        yield sidecar
    finally:
        await sidecar.close()


@pytest.fixture
async def program() -> AsyncIterator[Program]:
    program = Program([200])
    await program.start()
    yield program
    await program.stop()


@pytest.fixture
async def control() -> AsyncIterator[str]:
    async with ControlServer(ControlConfig(listen="127.0.0.1:0", http="127.0.0.1:0")) as server:
        yield str(server.grpc_address)


async def get(session: aiohttp.ClientSession, sidecar: Sidecar, host: str = "pay") -> tuple[int, str]:
    async with session.get(f"http://{sidecar.addresses['outbound']}/", headers={"Host": host}) as answer:
        return answer.status, answer.headers.get("connection", "")


async def until(check, timeout_s: float = 15.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await check():
            await asyncio.sleep(0.02)


async def test_two_workers_are_one_sidecar(control: str, program: Program) -> None:
    async with (
        running(config("pay", control, port=program.port, version="v1", instance_id="pay-1", workers=2)) as pay,
        running(config("front", control, instance_id="front-1", workers=2)) as front,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
        MeshClient(control) as client,
    ):
        assert pay.pool is not None
        assert front.pool is not None
        assert len(set(front.pool.pids)) == 2

        async def answers() -> bool:
            return (await get(session, front))[0] == 200

        await until(answers)

        # A table is acknowledged once, when all workers run it.
        result = await client.set_weights(PAY, {"v1": 1})
        assert [(a.node, a.result) for a in result.answers] == [("front/front-1", "acked"), ("pay/pay-1", "acked")]
        status = await client.status()
        assert [s.node for s in status.sidecars if s.state == "acked"] == ["front/front-1", "pay/pay-1"]

        # Counts of both workers are summed.
        before = await counted(front)
        assert [(await get(session, front))[0] for _ in range(40)] == [200] * 40
        assert await counted(front) == before + 40
        address = front.addresses["outbound"]
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        await reader.readuntil(b"hello")
        admin = AdminServer(front)
        await admin.start()
        async with session.get(f"http://{front.addresses['admin']}/metrics") as answer:
            text = await answer.text()
        total = sum(
            float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("istio_requests_total")
        )
        assert total == before + 41
        assert 'mesh_listener_connections{listener="outbound"} 1\n' in text
        writer.close()
        await admin.close()

        # A worker that is killed is started anew; the sidecar serves on.
        killed = front.pool.pids[0]
        os.kill(killed, signal.SIGKILL)

        async def is_back() -> bool:
            return len(front.pool.pids) == 2 and killed not in front.pool.pids and front.pool.is_whole

        await until(is_back)
        assert [(await get(session, front))[0] for _ in range(40)] == [200] * 40
        assert front.pool.restarts == 1

        # Draining reaches both workers.
        url = f"http://{pay.addresses['inbound']}/"
        await drain(pay, program_stays=True)
        for _ in range(8):
            async with session.get(url) as answer:
                assert (answer.status, answer.headers["connection"]) == (200, "close")


async def test_a_port_already_taken_is_a_clear_error(control: str) -> None:
    async with running(config("front", control, instance_id="a", workers=2)) as first:
        second = Sidecar(config("front", control, instance_id="b", workers=2, outbound=first.addresses["outbound"]))
        with pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.1:[0-9]+: .*choose another port"):
            await second.start()
        await second.close()


async def counted(sidecar: Sidecar) -> int:
    assert sidecar.pool is not None
    await sidecar.pool.gather()
    return sum(cell.count for series in sidecar.recorder.series.values() for cell in series.cells.values())
