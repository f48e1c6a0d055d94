"""The demo as a process: what ends it ends all that it started."""

import os
import re
import signal
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from mesh.client import MeshClient
from mesh.model.name import Name
from tests.support.needs import require
from tests.support.process import Process, until

pytestmark = pytest.mark.e2e


def children(pid: int) -> set[int]:
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.add(int(status.parent.name))
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)])
async def test_a_signal_ends_the_demo_and_all_its_processes(tmp_path: Path, number: signal.Signals, code: int) -> None:
    async with Process.start(sys.executable, "-m", "mesh.cli.main", "demo", log=tmp_path / "demo.log") as demo:
        await demo.until_logged("everything is up", timeout_s=40)
        started = children(demo.pid)
        assert len(started) >= 12
        demo.signal(number)
        assert await demo.wait(timeout_s=30) == code
        await until(lambda: not any(map(is_alive, started)), what="its processes to end", timeout_s=15)


def words_of(pid: int) -> set[bytes]:
    return set(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" and os.getpgid(pid) == pid
    except OSError:
        return False


async def test_with_a_real_consul_not_one_request_fails(tmp_path: Path) -> None:
    env = {"MESH_CONSUL_BIN": str(require("consul"))}
    command = (sys.executable, "-m", "mesh.cli.main", "demo", "--consul")
    async with Process.start(*command, log=tmp_path / "demo.log", env=env) as demo:
        assert await demo.wait(timeout_s=70) == 0, demo.output()
        assert "Not one request failed, and every share held." in demo.output()


async def test_requests_that_fail_are_named_with_their_flag_and_make_the_demo_fail(tmp_path: Path) -> None:
    async with Process.start(sys.executable, "-m", "mesh.cli.main", "demo", log=tmp_path / "demo.log") as demo:
        await demo.until_logged("everything is up", timeout_s=40)
        for pid in children(demo.pid):
            if b"mesh.cli.demo.ratings" in words_of(pid):
                os.kill(pid, signal.SIGSTOP)
        assert await demo.wait(timeout_s=100) == 1
        assert re.search(r"FAILED: \d+ requests failed: (GET|POST) /products/\d+: 5\d\d ", demo.output())


async def test_a_share_that_does_not_hold_is_named_and_makes_the_demo_fail(tmp_path: Path) -> None:
    """Somebody else moves the weights while the demo looks at one half."""
    async with Process.start(sys.executable, "-m", "mesh.cli.main", "demo", log=tmp_path / "demo.log") as demo:
        await demo.until_logged("everything is up", timeout_s=40)
        (control,) = {word for pid in children(demo.pid) for word in after(b"--control", command_line(pid))}
        await demo.until_logged("reviews v2 at 50 %", timeout_s=40)
        async with MeshClient(control.decode()) as mesh:
            assert (await mesh.set_weights(Name("default", "reviews"), {"v1": 95, "v2": 5})).is_acked_by_all
        assert await demo.wait(timeout_s=100) == 1
        assert re.search(r"FAILED: reviews v2 at 50 %.*% of \d+ requests went to v2", demo.output())


def command_line(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def after(option: bytes, words: list[bytes]) -> list[bytes]:
    return [value for word, value in pairwise(words) if word == option]
