"""Every limit counts from when a client or a connection did something, however long the sidecar has been up."""

import time

import pytest

from tests.support.mesh import Mesh, mesh
from tests.support.process import until


async def age(m: Mesh, by_s: float) -> None:
    """Let the sidecar's clock jump ahead, and wait until all of it has noticed."""
    m.plane.clock = m.plane.deadlines._clock = lambda: time.monotonic() + by_s
    m.plane.deadlines._next_second = 0.0
    await until(lambda: m.plane.now_s > time.monotonic() + by_s - 5, what="the sweep to tell the time")


async def beats(m: Mesh, count: int) -> None:
    """Wait until the once-a-second checks have run that often."""
    seen: list[float] = []
    m.plane.deadlines.each_second.append(seen.append)
    await until(lambda: len(seen) >= count, what=f"{count} beats")
    m.plane.deadlines.each_second.remove(seen.append)


@pytest.mark.parametrize("age_s", [90.0, 7200.0])
async def test_a_new_client_of_an_old_sidecar_has_all_its_time(age_s: float) -> None:
    async with mesh().service("pay").start() as m:
        await age(m, age_s)
        silent, slow, uploading = await m.connect(), await m.connect(), await m.connect()
        slow.send(b"GET / HTTP/1.1\r\nhost:")
        uploading.send(b"POST / HTTP/1.1\r\nhost: pay\r\ncontent-length: 4\r\n\r\nab")
        await beats(m, 2)
        silent.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        slow.send(b" pay\r\n\r\n")
        uploading.send(b"cd")
        assert [(await client.receive()).status for client in (silent, slow, uploading)] == [200, 200, 200]
        await beats(m, 1)
        silent.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")  # kept open for the next
        assert (await silent.receive()).status == 200


async def test_an_old_sidecar_keeps_its_connections_to_endpoints() -> None:
    async with mesh().service("pay").start() as m:
        await age(m, 7200.0)
        for _ in range(3):
            assert (await m.get("pay")).status == 200
            await beats(m, 1)
        assert m.programs["pay"][0].connections == 1


async def test_what_was_idle_too_long_is_closed() -> None:
    async with mesh().service("pay").start() as m:
        silent = await m.connect()
        served = await m.connect()
        served.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        assert (await served.receive()).status == 200
        await age(m, 61.0)
        assert await silent.ended()
        served.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")  # an hour for one that has been served
        assert (await served.receive()).status == 200
        assert m.programs["pay"][0].connections == 2  # the one to the endpoint was closed after 60 s
