"""64 MiB through a sidecar, up and down, with flat memory: a slow reader at one end stops the writer at the other.

The sidecar is a process of its own, so that its peak memory (VmHWM) is its own too.
"""

import asyncio
import hashlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.control import background
from tests.support.fleet import Fleet, SidecarProcess

pytestmark = pytest.mark.slow

SIZE = 64 << 20
PIECE = bytes(range(256)) * 256  # 64 KiB
PIECES = SIZE // len(PIECE)
DIGEST = hashlib.sha256(PIECE * PIECES).hexdigest()
MAY_GROW = 20 << 20
KERNEL_MAY_HOLD = 24 << 20
"""What four socket buffers on loopback take together before a writer is stopped; measured 6 to 16 MiB."""

Writer = asyncio.StreamWriter
Reader = asyncio.StreamReader


async def send(writer: Writer, *, chunked: bool, sent: list[int]) -> None:
    """64 MiB, waiting whenever the other side is slow."""
    for _ in range(PIECES):
        writer.write(b"%x\r\n%b\r\n" % (len(PIECE), PIECE) if chunked else PIECE)
        await writer.drain()
        sent[0] += len(PIECE)
    if chunked:
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def digest(reader: Reader, *, chunked: bool) -> str:
    """The digest of a body, read to its end."""
    found = hashlib.sha256()
    if not chunked:
        left = SIZE
        while left:
            piece = await reader.read(min(left, 1 << 18))
            assert piece, f"the body broke off {left} bytes before its end"
            left -= len(piece)
            found.update(piece)
        return found.hexdigest()
    while size := int(await reader.readline(), 16):
        found.update(await reader.readexactly(size))
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
    return found.hexdigest()


async def until_stopped(sent: list[int]) -> int:
    """Wait until the writer stands still; gives what it has sent."""
    async with asyncio.timeout(20):
        before = -1
        while before != sent[0] or not sent[0]:
            before = sent[0]
            await asyncio.sleep(0.3)
    return before


@asynccontextmanager
async def program(serve: Callable[[Reader, Writer], Awaitable[None]]) -> AsyncIterator[int]:
    """A server for one connection, which ``serve`` gets behind the request's head."""

    async def connection(reader: Reader, writer: Writer) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0, limit=1 << 17)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def sidecar_for(tmp_path: Path, port: int) -> AsyncIterator[SidecarProcess]:
    """A sidecar that knows one service, whose peak memory counts from now on."""
    async with Fleet(tmp_path) as fleet:
        caller = await fleet.sidecar("caller", "--services", str(fleet.services_file(pay=port)))
        reset_peak(caller)
        yield caller


def reset_peak(sidecar: SidecarProcess) -> None:
    Path(f"/proc/{sidecar.process.pid}/clear_refs").write_text("5")  # proc(5)


def peak_bytes(sidecar: SidecarProcess) -> int:
    status = Path(f"/proc/{sidecar.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.parametrize("chunked", [False, True], ids=["by length", "chunked"])
async def test_64_mib_up_to_a_program_that_waits_before_it_reads(tmp_path: Path, *, chunked: bool) -> None:
    may_read = asyncio.Event()

    async def serve(reader: Reader, writer: Writer) -> None:
        await may_read.wait()
        answer = (await digest(reader, chunked=chunked)).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))
        await writer.drain()

    async with program(serve) as port, sidecar_for(tmp_path, port) as sidecar:
        before = sidecar.rss_bytes()
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.outbound)
        framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % SIZE
        # The sidecar finds more than it may keep behind the head, before it has a connection to send it on.
        sidecar.process.signal(signal.SIGSTOP)
        writer.write(b"POST / HTTP/1.1\r\nhost: pay\r\n%b\r\n\r\n" % framing)
        sent = [0]
        sending = background(send(writer, chunked=chunked, sent=sent))
        await until_stopped(sent)
        sidecar.process.signal(signal.SIGCONT)
        assert await until_stopped(sent) < KERNEL_MAY_HOLD
        may_read.set()
        await sending
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        assert await reader.readexactly(64) == DIGEST.encode()
        assert peak_bytes(sidecar) - before < MAY_GROW
        writer.close()


@pytest.mark.parametrize("chunked", [False, True], ids=["by length", "chunked"])
async def test_64_mib_down_to_a_client_that_waits_before_it_reads(tmp_path: Path, *, chunked: bool) -> None:
    sent = [0]

    async def serve(_: Reader, writer: Writer) -> None:
        framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % SIZE
        writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing)
        await send(writer, chunked=chunked, sent=sent)

    async with program(serve) as port, sidecar_for(tmp_path, port) as sidecar:
        before = sidecar.rss_bytes()
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.outbound, limit=1 << 17)
        writer.write(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        assert await until_stopped(sent) < KERNEL_MAY_HOLD
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        assert await digest(reader, chunked=chunked) == DIGEST
        assert peak_bytes(sidecar) - before < MAY_GROW
        writer.close()
