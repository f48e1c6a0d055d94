"""The demo as a process: what ends it ends all that it started."""

import os
import signal
import sys
from pathlib import Path

import pytest

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


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" and os.getpgid(pid) == pid
    except OSError:
        return False
