"""Who is expected back after a restart, as the file has it."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from control.hub import Hub
from control.roster import FILE, Roster
from control.subscription import SidecarInfo
from mesh.model.snapshot import NO_SNAPSHOT, make_snapshot
from mesh.tasks import Tasks
from tests.support.control import REVIEWS

ONE = SidecarInfo("pay-1", REVIEWS, "v2", "pay-1", "0.1.0")
TWO = SidecarInfo("job", None, "", "", "0.1.0")


def connect(hub, info):
    stream = hub.connect(info, NO_SNAPSHOT)
    hub.take(stream)
    return stream


@asynccontextmanager
async def running(directory):
    """A hub whose roster is kept in ``directory``."""
    hub, tasks = Hub(make_snapshot("e", 1, ()), 0, lambda: 1000.0), Tasks("test")
    tasks.start(Roster(directory).run(hub), "roster")
    await asyncio.sleep(0)
    yield hub
    await tasks.close()


async def kept(directory, work):
    """The roster of a new server after ``work`` was done with the hub of the one before."""
    async with running(directory) as hub:
        work(hub)
    return Roster(directory).read()


async def test_connected_and_lost_sidecars_are_expected_back_and_those_that_said_goodbye_are_not(tmp_path):
    def work(hub):
        connect(hub, ONE)
        hub.disconnect(connect(hub, TWO), why="broken", is_goodbye=False)
        hub.disconnect(connect(hub, SidecarInfo("done")), why="goodbye", is_goodbye=True)

    assert await kept(tmp_path, work) == [TWO, ONE]
    assert await kept(tmp_path, lambda hub: hub.expect([TWO])) == [TWO]  # through a second restart too


async def test_it_is_written_while_the_server_runs_since_it_may_be_killed(tmp_path):
    async with running(tmp_path) as hub:
        connect(hub, ONE)
        async with asyncio.timeout(5):
            while not Roster(tmp_path).read():
                await asyncio.sleep(0.01)
        assert Roster(tmp_path).read() == [ONE]


@pytest.mark.parametrize("text", ["", "{", "3", "[3]", '[{"node": "a"}]', "[[]]"])
def test_a_file_that_cannot_be_read_expects_nobody_and_is_told(tmp_path, text, caplog):
    (tmp_path / FILE).write_text(text)
    assert Roster(tmp_path).read() == []
    assert "no sidecar is expected back" in caplog.text


def test_no_file_expects_nobody_without_a_word(tmp_path, caplog):
    assert Roster(tmp_path).read() == []
    assert not caplog.text


async def test_a_disk_that_takes_nothing_is_told_once_and_holds_nothing_up(tmp_path, caplog):
    def work(hub):
        connect(hub, ONE)

    assert await kept(tmp_path / "missing", work) == []
    assert caplog.text.count("cannot be written") == 1
