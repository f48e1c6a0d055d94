"""A sidecar that may open few files: idle clients do not take it, its program's check or its discovery down."""

import asyncio
from pathlib import Path

import pytest

from tests.support.fleet import MESH, Fleet, get

pytestmark = pytest.mark.e2e

FEW_FILES = ("sh", "-c", 'ulimit -n 400; exec "$@"', "sh", *MESH)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_idle_clients_do_not_take_the_files_that_the_sidecar_needs(tmp_path: Path, workers: str) -> None:
    async with Fleet(tmp_path) as fleet:
        _, port = await fleet.program("pay")
        options = ("--port", str(port), "--workers", workers, "--upstream", "other=0")
        pay = await fleet.sidecar("pay", *options, entry=FEW_FILES)
        assert "at most 25 connections a listener rather than" in pay.process.output()
        kept = await asyncio.open_connection("127.0.0.1", pay.inbound)
        idle = [await asyncio.open_connection("127.0.0.1", pay.inbound) for _ in range(600)]
        kept[1].write(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        assert (await kept[0].readline()).startswith(b"HTTP/1.1 200")
        assert (await pay.page(""))["program"] == "passing"
        assert "Too many open files" not in pay.process.output()
        for _, writer in (kept, *idle):
            writer.close()
        assert (await get(f"http://127.0.0.1:{pay.inbound}/")).status == 200
