"""What the kernel moves: nothing of a tunnel's behaviour changes, nothing is lost, and the files come back."""

import asyncio
import os
from pathlib import Path

import pytest

from proxy.http1.limits import ConnectionLimits
from proxy.splice import running
from tests.support.mesh import name
from tests.support.process import until
from tests.support.tcp import LARGE, Tcp, echo, reset, rest, tcp

PIECE = LARGE[: 1 << 20]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def spliced(t: Tcp, directions: int = 2) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of which so many directions are moved by the kernel, and nothing is under way."""
    reader, writer = await t.connect()
    async with asyncio.timeout(20):
        while running() < directions:
            writer.write(PIECE)
            assert await reader.readexactly(len(PIECE)) == PIECE
    return reader, writer


async def test_bytes_both_ways_and_all_files_come_back() -> None:
    async with tcp(echo) as t:
        before = open_files()
        reader, writer = await spliced(t)

        async def send() -> None:
            for _ in range(4):
                writer.write(LARGE)
                await writer.drain()
            writer.write_eof()

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(send())
            back = await reader.read()
        assert back == LARGE * 4
        writer.close()
        await t.over()
        await until(lambda: running() == 0, what="the splices to end")
        await until(lambda: open_files() <= before, what="the files to be closed")
        cell = t.m.recorder.series_for(name("db"), None, "tcp").cells[0, ""]
        assert cell.request_bytes == cell.response_bytes >= 4 * len(LARGE)


async def test_small_messages_follow_at_once() -> None:
    async with tcp(echo) as t:
        reader, writer = await spliced(t)
        async with asyncio.timeout(10):
            for number in range(500):
                message = b"%d\n" % number
                writer.write(message)
                assert await reader.readline() == message
        writer.close()
        await t.over()


async def test_who_does_not_read_is_waited_for_and_gets_all() -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for _ in range(8):
            for start in range(0, len(LARGE), 1 << 16):
                writer.write(LARGE[start : start + (1 << 16)])
                await writer.drain()
                sent += 1 << 16
        writer.close()

    async with tcp(pour) as t:
        reader, writer = await t.connect()
        await until(lambda: running() == 1, what="the splice")
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        last = -1
        while sent != last:
            last = sent
            await asyncio.sleep(0.3)
        assert sent < 8 * len(LARGE), "nobody waited"
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert await rest(reader) == LARGE * 8
        writer.close()
        await t.over()


@pytest.mark.parametrize("who", ["client", "server"])
async def test_a_reset_ends_both(who: str) -> None:
    ended = asyncio.Event()
    servers: list[asyncio.StreamWriter] = []

    async def echo_until_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        servers.append(writer)
        try:
            await echo(reader, writer)
        except ConnectionError:
            writer.close()
        ended.set()

    async with tcp(echo_until_reset) as t:
        reader, writer = await spliced(t)
        reset(writer if who == "client" else servers[0])
        async with asyncio.timeout(10):
            if who == "server":
                assert await rest(reader) == b""
            await ended.wait()
        writer.close()
        await t.over()
        await until(lambda: running() == 0, what="the splices to end")
        assert t.m.cells() == {("db", -1, ""): 1, ("db", 0, "DC" if who == "client" else "UC"): 1}


async def test_a_server_may_end_first_and_still_be_sent_to() -> None:
    got: list[bytes] = []

    async def end_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(PIECE)
        writer.write_eof()
        got.append(await reader.read())
        writer.close()

    async with tcp(end_first) as t:
        reader, writer = await t.connect()
        async with asyncio.timeout(20):
            assert await reader.read() == PIECE
            for _ in range(4):
                writer.write(LARGE)
                await writer.drain()
            writer.write_eof()
            await until(lambda: bool(got), what="the server to have all")
        assert got == [LARGE * 4]
        writer.close()
        await t.over()


async def test_without_room_for_one_all_goes_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.splice.splices_within_limit", lambda: 0)
    async with tcp(echo) as t:
        reader, writer = await t.connect()
        for _ in range(4):
            writer.write(PIECE)
            assert await reader.readexactly(len(PIECE)) == PIECE
            assert running() == 0
        writer.close()
        await t.over()


@pytest.mark.parametrize("which", ["pipe2", "dup"])
async def test_without_files_for_one_all_goes_the_usual_way(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(24, "Too many open files")

    async with tcp(echo) as t:
        before = open_files()
        reader, writer = await t.connect()
        with monkeypatch.context() as patch:
            patch.setattr(os, which, none_left)
            for _ in range(4):
                writer.write(PIECE)
                assert await reader.readexactly(len(PIECE)) == PIECE
            assert running() == 0
        writer.close()
        await t.over()
        await until(lambda: open_files() <= before, what="the files to be closed")


async def test_a_connection_in_which_nothing_moves_is_still_closed() -> None:
    async with tcp(echo, limits=ConnectionLimits(tunnel_idle_s=1.0)) as t:
        reader, writer = await spliced(t)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
        await t.over()
        await until(lambda: running() == 0, what="the splices to end")
