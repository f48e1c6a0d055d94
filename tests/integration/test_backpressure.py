"""Slow clients, small windows and bodies of all sizes, both ways and through both versions: nobody waits for ever.

Each pause has to be taken back by somebody, whichever side ends first: a connection that stays paused costs the request
that comes next on it.
"""

import asyncio
import socket
from pathlib import Path
from random import Random

import pytest

from mesh.model.name import Name
from mesh.model.policy import AppProtocol, ServicePolicy
from tests.support.mesh import Mesh, Request, mesh, name, read_body, speak
from tests.support.needs import require

SIZES = (0, 1, 1000, 60_000, 66_000, 70_000, 100_000, 130_000, 200_000, 300_000)
REQUESTS = 300


def program(random: Random):
    """Takes a body at its leisure; answers with one of some size, in some pieces, with or without a length."""

    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        if random.random() < 0.3:
            await asyncio.sleep(random.random() * 0.02)
        await read_body(request.fields("content-length"), request.fields("transfer-encoding"), request.reader)
        size = random.choice(SIZES)
        is_chunked = random.random() < 0.5
        framing = b"transfer-encoding: chunked" if is_chunked else b"content-length: %d" % size
        writer.write(b"HTTP/1.1 200 OK\r\nx-size: %d\r\n%b\r\n\r\n" % (size, framing))
        left = size
        while left:
            piece = min(left, random.choice((1, 1000, 16_384, 50_000, 150_000)) if left < 200_000 else 100_000)
            left -= piece
            data = b"x" * piece
            writer.write(b"%x\r\n%b\r\n" % (piece, data) if is_chunked else data)
            if piece > 1 and random.random() < 0.3:
                await asyncio.sleep(random.random() * 0.01)
        if is_chunked:
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    return reply


async def slow_http1(m: Mesh, random: Random, requests: int) -> None:
    """A client of few bytes at a time, on one connection, with bodies of its own."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    own.setblocking(False)
    await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", m.port))
    reader, writer = await asyncio.open_connection(sock=own, limit=4096)
    for _ in range(requests):
        body = b"y" * random.choice(SIZES)
        writer.write(b"POST / HTTP/1.1\r\nhost: pay\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert head.startswith("http/1.1 200"), head
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        if random.random() < 0.5:
            await asyncio.sleep(random.random() * 0.05)
        got = await read_body(
            [fields["content-length"]] if "content-length" in fields else [],
            [fields["transfer-encoding"]] if "transfer-encoding" in fields else [],
            reader,
        )
        assert len(got) == int(fields["x-size"])
    writer.close()


async def small_windows(m: Mesh, tmp_path: Path, random: Random, bits: int) -> None:
    """Nghttp2's client, whose windows are of so many bits, several streams to a connection."""
    body = tmp_path / f"body-{bits}"
    body.write_bytes(b"y" * random.choice(SIZES[1:]))
    process = await asyncio.create_subprocess_exec(
        require("h2load"), "-n", str(REQUESTS), "-c", "3", "-m", "10", "-w", str(bits), "-W", str(bits + 1),
        "-d", str(body), "-H", ":authority: pay", f"http://127.0.0.1:{m.port}/",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert f"{REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout".encode() in said, said.decode()
    assert f"status codes: {REQUESTS} 2xx".encode() in said, said.decode()


@pytest.mark.parametrize("protocol", [AppProtocol.HTTP, AppProtocol.HTTP2])
@pytest.mark.parametrize("seed", range(2))
async def test_every_request_is_answered_whole_however_slow_the_others_are(
    tmp_path: Path, protocol: AppProtocol, seed: int
) -> None:
    """``protocol`` is spoken between two sidecars; to the program it is HTTP/1.1."""
    random = Random(seed)
    async with mesh().service("pay", replies=[program(random)], sidecar=True).start() as m:
        speak(m, "pay", protocol)
        local = Name("(local)", "pay-0")
        m.plane.services[local].set_policy(ServicePolicy(local, app_protocol=AppProtocol.HTTP))
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(slow_http1(m, random, 20))
            for bits in (10, 13, 15):
                group.create_task(small_windows(m, tmp_path, random, bits))
        assert not m.plane.exchanges
        assert m.plane.services[name("pay")].usage.requests == 0
