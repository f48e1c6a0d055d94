"""What must fail a run although no assertion does: each rule of conftest.py, tried in a pytest of its own."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

CAREFUL = """
import asyncio
async def test_it():
    task = asyncio.get_running_loop().create_task(asyncio.sleep(60))
    task.cancel()
"""
LEAKED_TASK = """
import asyncio
async def test_it():
    asyncio.get_running_loop().create_task(asyncio.sleep(60), name="the-stray")
"""
FAILED_TASK = """
import asyncio
async def fail():
    raise RuntimeError("nobody asked")
async def test_it():
    asyncio.get_running_loop().create_task(fail())
    await asyncio.sleep(0)
"""
FAILED_CALLBACK = """
import asyncio
async def test_it():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)
"""
LEAKED_SOCKET = """
import socket
async def test_it():
    left = [socket.socket()]
    left.append(left)
"""
LEAKED_TRANSPORT = """
import asyncio
async def test_it():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
    server.close()
"""
SKIPPED = """
import pytest
from tests.support.needs import TOOLS, Tool, require
def test_it():
    TOOLS["rocket"] = Tool("make rocket", ("no-such-rocket",))
    require("rocket")
def test_other(): pass
"""
NOT_UVLOOP = """
import asyncio, uvloop
async def test_it():
    assert not isinstance(asyncio.get_running_loop(), uvloop.Loop)
"""


def run(source: str, directory: Path, **env: str) -> subprocess.CompletedProcess[str]:
    file = directory / "test_inner.py"
    file.write_text(source)
    options = ["-c", REPO / "pyproject.toml", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, file],
        cwd=REPO,
        env={**os.environ, "MESH_REQUIRE": "", **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_test_that_cleans_up_passes(tmp_path: Path) -> None:
    result = run(CAREFUL, tmp_path)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        pytest.param(LEAKED_TASK, "the-stray", id="task left behind"),
        pytest.param(FAILED_TASK, "nobody asked", id="task failed unseen"),
        pytest.param(FAILED_CALLBACK, "ZeroDivisionError", id="callback failed"),
        pytest.param(LEAKED_SOCKET, "unclosed <socket", id="socket left open"),
        pytest.param(LEAKED_TRANSPORT, "unclosed", id="transport left open"),
        pytest.param(NOT_UVLOOP, "AssertionError", id="not on uvloop"),
    ],
)
def test_it_fails_the_test_that_did_it(source: str, complaint: str, tmp_path: Path) -> None:
    result = run(source, tmp_path)
    assert result.returncode == 1, result.stdout
    assert complaint in result.stdout


def test_what_is_absent_is_printed_as_not_run_with_its_remedy(tmp_path: Path) -> None:
    result = run(SKIPPED, tmp_path)
    assert result.returncode == 0, result.stdout
    assert "not run: 1 in " in result.stdout
    assert "rocket is absent — make rocket" in result.stdout


def test_not_run_is_a_failure_where_everything_is_required(tmp_path: Path) -> None:
    result = run(SKIPPED, tmp_path, MESH_REQUIRE="all")
    assert result.returncode == 1, result.stdout
    assert "1 passed, 1 skipped" in result.stdout


def test_no_two_processes_are_given_the_same_port() -> None:
    """The tests run two at a time, and a port that is not bound yet looks free to all."""
    code = (
        "import sys; from tests.support.ports import free_ports; print(*free_ports(500), flush=True); sys.stdin.read()"
    )
    with ExitStack() as stack:
        given: set[str] = set()
        for _ in range(8):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code], cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            assert process.stdout
            given.update(process.stdout.readline().split())
        assert len(given) == 8 * 500
