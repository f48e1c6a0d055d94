"""TCP through the request path: routes, half-close, servers that speak first, ends that break off."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from mesh.model.policy import AppProtocol, Limits, ServicePolicy
from mesh.model.service import Endpoint
from proxy.http1.limits import ConnectionLimits
from tests.support.mesh import inbound_listener, name, serve, speak
from tests.support.ports import free_port
from tests.support.process import until
from tests.support.tcp import LARGE, echo, greet, reset, rest, says, tcp


async def test_bytes_both_ways_with_backpressure_and_half_close() -> None:
    async with tcp(echo) as t:
        reader, writer = await t.connect()

        async def send() -> None:
            writer.write(LARGE)
            await writer.drain()
            writer.write_eof()  # plain asyncio, not uvloop, is what must never do this on the request path

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(send())
            back = await reader.read()  # to the server's own end, which comes after ours
        assert back == LARGE
        writer.close()
        await t.over()
        assert t.m.cells() == {("db", -1, ""): 1, ("db", 0, ""): 1}
        series = t.m.recorder.series_for(name("db"), None, "tcp")
        assert (series.cells[0, ""].request_bytes, series.cells[0, ""].response_bytes) == (len(LARGE), len(LARGE))


async def test_the_server_may_speak_first() -> None:
    async with tcp(greet) as t:
        for _ in range(50):
            reader, writer = await t.connect()
            async with asyncio.timeout(5):
                assert await reader.readline() == b"220 hello\r\n"
                writer.write(b"quit\r\n")
                assert await reader.read() == b"QUIT\r\n"
            writer.close()
        await t.over()


async def test_the_client_may_end_first_and_still_be_answered() -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d" % len(await reader.read()))
        await writer.drain()
        writer.close()

    async with tcp(count) as t:
        reader, writer = await t.connect()
        writer.write(b"x" * 100_000)
        writer.write_eof()
        async with asyncio.timeout(5):
            assert await reader.read() == b"100000"
        writer.close()
        await t.over()


async def test_a_dead_endpoint_is_passed_over_and_without_any_the_connection_is_refused() -> None:
    async with tcp(says(b"one")) as t:
        (alive,) = t.m.plane.services[name("db")].endpoints.values()
        dead = Endpoint("dead", "127.0.0.1", free_port())
        t.m.plane.apply_endpoints(name("db"), (alive.model, dead))
        for _ in range(20):
            assert await t.all_of() == b"one"
        t.m.plane.apply_endpoints(name("db"), (dead,))
        assert await t.all_of() == b""
        await t.over()


ROUTE = """
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: db}
spec:
  parentRefs: [{group: "", kind: Service, name: db}]
  rules: [{backendRefs: [{name: db, weight: 3}, {name: other, weight: 1}]}]
"""


async def test_a_route_splits_connections_by_weight() -> None:
    async with tcp(says(b"one"), routes=ROUTE, is_declared=False) as t:
        server = await asyncio.start_server(says(b"two"), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            t.m.plane.apply_endpoints(name("other"), (Endpoint("o", "127.0.0.1", port),))
            seen = [await t.all_of() for _ in range(400)]
        assert set(seen) == {b"one", b"two"}
        assert 300 - 4 * 9 < seen.count(b"one") < 300 + 4 * 9  # four standard errors of 3 in 4
        await t.over()


@pytest.mark.parametrize("who", ["client", "server"])
async def test_a_reset_passes_through(who: str) -> None:
    done = asyncio.Event()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(await reader.read(1))
            if who == "server":
                reset(writer)
            else:
                await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()
            done.set()

    async with tcp(serve_one) as t:
        reader, writer = await t.connect()
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        if who == "client":
            reset(writer)
        else:
            assert await rest(reader) == b""
        await asyncio.wait_for(done.wait(), 5)
        writer.close()
        await t.over()
        assert t.m.cells() == {("db", -1, ""): 1, ("db", 0, "DC" if who == "client" else "UC"): 1}


async def test_a_connection_in_which_nothing_moves_is_closed() -> None:
    async with tcp(echo, limits=ConnectionLimits(tunnel_idle_s=1.0)) as t:
        reader, writer = await t.connect()
        for _ in range(4):
            writer.write(b"x")
            assert await reader.read(1) == b"x"
            await asyncio.sleep(0.4)
        assert await rest(reader) == b""
        writer.close()
        await t.over()
        assert t.m.cells() == {("db", -1, ""): 1, ("db", 0, ""): 0, ("db", 0, "SI"): 1}  # its bytes were counted before


async def test_connections_of_a_service_are_limited() -> None:
    async with tcp(echo) as t:
        usage = t.m.plane.services[name("db")].usage
        usage.max_requests = 2
        kept = [await t.connect() for _ in range(2)]
        for reader, writer in kept:
            writer.write(b"x")
            assert await reader.read(1) == b"x"
        assert await t.all_of() == b""
        for _, writer in kept:
            writer.close()
        await t.over()
        assert t.m.cells()["db", 0, "UO"] == 1


async def test_through_an_inbound_listener_too() -> None:
    async with tcp(greet) as t, AsyncExitStack() as stack:
        (endpoint,) = t.m.plane.services[name("db")].endpoints.values()
        listener = inbound_listener(t.m.plane, "db-0", endpoint.model.port, ConnectionLimits(), is_tcp=True)
        inbound = await serve(stack, listener)
        t.m.plane.apply_endpoints(name("db"), (Endpoint("s", "127.0.0.1", inbound),))
        reader, writer = await t.connect()
        async with asyncio.timeout(5):
            assert await reader.readline() == b"220 hello\r\n"
            writer.write(b"quit\r\n")
            assert await reader.read() == b"QUIT\r\n"
        writer.close()
        await t.over()


async def test_a_listener_follows_the_policy_without_a_restart() -> None:
    async with tcp(says(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"), is_declared=False) as t:
        reader, writer = await t.connect()
        writer.write(b"GET / HTTP/1.1\r\nhost: db\r\n\r\n")
        assert b"via: " in await reader.readuntil(b"\r\n\r\n")  # spoken as HTTP
        writer.close()
        speak(t.m, "db", AppProtocol.TCP)
        assert b"via: " not in await t.all_of()


async def test_an_endpoint_may_end_first_and_still_be_sent_to() -> None:
    received = bytearray()

    async def listens(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        while data := await reader.read(1 << 16):
            received.extend(data)
        writer.close()

    async with tcp(listens) as t:
        reader, writer = await t.connect()
        assert await rest(reader) == b""
        writer.write(b"x" * (4 << 20))
        writer.write_eof()
        await until(lambda: len(received) == 4 << 20, what="the upload to arrive")
        await until(lambda: not t.m.plane.exchanges, what="the exchange to end")
        writer.close()


async def test_a_client_that_goes_on_sending_learns_that_its_endpoint_is_gone() -> None:
    async with tcp(says(b"bye")) as t:
        reader, writer = await t.connect()
        assert await rest(reader) == b"bye"

        async def send_for_ever() -> None:
            while True:
                writer.write(b"z" * 1000)
                await writer.drain()
                await asyncio.sleep(0.01)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(send_for_ever(), 10)
        await until(lambda: not t.m.plane.exchanges, what="the exchange to end")
        writer.transport.abort()


async def test_an_endpoint_that_speaks_http2_is_sent_the_bytes_of_a_connection_as_they_are() -> None:
    only = ROUTE.replace(", {name: other, weight: 1}", "")
    async with tcp(greet, routes=only, is_declared=False) as t:
        (endpoint,) = t.m.plane.services[name("db")].endpoints.values()
        model = replace(endpoint.model, metadata={"http2": "true"})
        t.m.plane.apply_endpoints(name("db"), (model,))
        assert endpoint.speaks_http2 is True
        reader, writer = await t.connect()
        assert await reader.readline() == b"220 hello\r\n"
        writer.write(b"ehlo\r\n")
        assert await rest(reader) == b"EHLO\r\n"
        writer.close()
        await t.over()


async def test_who_finds_no_connection_left_is_turned_away_at_once() -> None:
    """Those that are there may stay for days."""
    async with tcp(echo) as t:
        policy = ServicePolicy(name("db"), app_protocol=AppProtocol.TCP, limits=Limits(max_connections=1))
        t.m.plane.services[name("db")].set_policy(policy)
        reader, writer = await t.connect()
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        assert await t.all_of() == b""
        assert t.m.cells()["db", 0, "UO"] == 1
        writer.close()
        await t.over()


async def test_the_bytes_of_a_connection_are_counted_while_it_is_open() -> None:
    async with tcp(echo) as t:
        reader, writer = await t.connect()
        series = t.m.recorder.series_for(name("db"), None, "tcp")
        for number in (1, 2):
            writer.write(b"x" * 1000)
            await reader.readexactly(1000)
            await until(
                lambda n=number: (0, "") in series.cells and series.cells[0, ""].request_bytes == 1000 * n,  # type: ignore[misc]
                what="the bytes to be counted",
            )
            assert series.cells[0, ""].response_bytes == 1000 * number
        writer.write(b"x")
        await reader.readexactly(1)
        assert series.cells[0, ""].count == 0
        writer.close()
        await t.over()
        cell = series.cells[0, ""]
        assert (cell.count, cell.request_bytes, cell.response_bytes) == (1, 2001, 2001)
