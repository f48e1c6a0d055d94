"""Many connections that wait are accepted together, and all of them; a closed listener accepts none."""

import asyncio
import socket

import pytest

from proxy.accept import open_server
from proxy.file_limit import FILES_PER_LISTENER
from tests.support.mesh import mesh

WAITING = 3 * FILES_PER_LISTENER + 1
REQUEST = b"GET / HTTP/1.1\r\nhost: nobody\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize(("is_shared", "together"), [(False, FILES_PER_LISTENER), (True, 1)])
async def test_so_many_in_one_turn(*, is_shared: bool, together: int) -> None:
    async with mesh().start() as m:
        with socket.create_server(("127.0.0.1", 0), backlog=100) as bound:
            server = await open_server(m.outbound, bound.dup(), is_shared=is_shared)
            clients = [socket.create_connection(bound.getsockname()) for _ in range(WAITING)]
            async with asyncio.timeout(10):
                while not m.outbound.connections:
                    await asyncio.sleep(0)
            assert len(m.outbound.connections) == together
            for client in clients:
                client.sendall(REQUEST)
            for client in clients:
                client.setblocking(False)
                async with asyncio.timeout(10):
                    assert (await asyncio.get_running_loop().sock_recv(client, 100)).startswith(b"HTTP/1.1 404")
                client.close()
            server.close()
            await asyncio.sleep(0)
            address = bound.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
