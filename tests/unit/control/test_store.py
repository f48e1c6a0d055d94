import asyncio
import shutil
import sqlite3

import pytest

from control.errors import StoreError
from control.store.base import Action, Change, Revision
from control.store.sqlite import SqliteStore
from mesh.model.snapshot import Kind, make_snapshot
from mesh.model.wire import encode_resource
from tests.support.control import REVIEWS, background, split


def clock():
    return 1_700_000_000.5


def revision(version, reason=""):
    return Revision(version, clock() + version, "me", reason, (Change(Kind.ROUTE, REVIEWS, Action.UPDATED),))


@pytest.fixture(params=["file", "memory"])
def directory(request, tmp_path):
    return tmp_path / "data" if request.param == "file" else None


async def fill(store, *weights):
    """A version for each weight of v1."""
    snapshot, _ = await store.open()
    for version, weight in enumerate(weights, 2):
        snapshot = make_snapshot(snapshot.id.epoch, version, [encode_resource(split(v1=weight))])
        await store.append(snapshot, revision(version, f"weight {weight}"))
    return snapshot


async def test_a_new_store_has_an_empty_first_version(directory):
    store = SqliteStore(directory, clock)
    snapshot, first = await store.open()
    assert (snapshot.id.version, snapshot.resources) == (1, ())
    assert snapshot.id.epoch
    assert first == Revision(1, clock(), "control", "store created", ())
    await store.close()
    await store.close()


async def test_every_version_is_kept_whole(directory):
    store = SqliteStore(directory, clock)
    snapshot = await fill(store, 10, 20, 10)
    assert await store.snapshot_at(4) == snapshot
    assert (await store.snapshot_at(3)).routes[0] == split(v1=20)
    assert (await store.snapshot_at(1)).resources == ()
    assert await store.snapshot_at(5) is None
    assert await store.revisions(2) == [revision(4, "weight 10"), revision(3, "weight 20")]
    assert [r.version for r in await store.revisions(10, before=3)] == [2, 1]
    await store.close()


async def test_what_was_stored_is_there_after_reopening(tmp_path):
    store = SqliteStore(tmp_path, clock)
    before = await fill(store, 10, 20)
    await store.close()
    store = SqliteStore(tmp_path, clock)
    snapshot, newest = await store.open()
    assert snapshot == before
    assert newest == revision(3, "weight 20")
    await store.close()


async def test_each_store_has_an_epoch_of_its_own(tmp_path):
    epochs = set()
    for name in ("a", "b"):
        store = SqliteStore(tmp_path / name, clock)
        epochs.add((await store.open())[0].id.epoch)
        await store.close()
    assert len(epochs) == 2


async def test_a_version_is_stored_once(directory):
    store = SqliteStore(directory, clock)
    snapshot = await fill(store, 10)
    with pytest.raises(StoreError):
        await store.append(snapshot, revision(2))
    assert (await store.revisions(1))[0] == revision(2, "weight 10")
    await store.append(make_snapshot(snapshot.id.epoch, 3, snapshot.resources), revision(3))  # and goes on working
    await store.close()


async def test_two_servers_cannot_share_a_directory(tmp_path):
    first, second = SqliteStore(tmp_path, clock), SqliteStore(tmp_path, clock)
    await first.open()
    with pytest.raises(StoreError, match="in use by another control server"):
        await second.open()
    await first.close()
    await second.open()
    await second.close()


async def test_a_copied_store_has_a_new_epoch(tmp_path):
    store = SqliteStore(tmp_path / "a", clock)
    before = await fill(store, 10)
    await store.close()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copy = SqliteStore(tmp_path / "b", clock)
    snapshot, _ = await copy.open()
    assert snapshot.id.epoch != before.id.epoch
    assert snapshot.routes == before.routes
    await copy.close()
    copy = SqliteStore(tmp_path / "b", clock)
    assert (await copy.open())[0].id.epoch == snapshot.id.epoch  # once is enough
    await copy.close()


async def test_a_file_restored_in_place_has_a_new_epoch(tmp_path):
    store = SqliteStore(tmp_path, clock)
    before = await fill(store, 10)
    await store.close()
    backup = (tmp_path / "control.db").read_bytes()
    store = SqliteStore(tmp_path, clock)
    await store.open()
    await store.append(make_snapshot(before.id.epoch, 3, ()), revision(3))
    await store.close()
    (tmp_path / "control.db").write_bytes(backup)  # the same inode
    store = SqliteStore(tmp_path, clock)
    snapshot, _ = await store.open()
    assert snapshot.id.version == 2
    assert snapshot.id.epoch != before.id.epoch
    await store.close()


async def test_a_file_that_is_no_store_is_told(tmp_path):
    (tmp_path / "control.db").write_text("not a database, but long enough to be taken for one" * 100)
    with pytest.raises(StoreError, match=r"the store .* failed"):
        await SqliteStore(tmp_path, clock).open()


async def test_a_store_of_a_later_version_is_not_touched(tmp_path):
    db = sqlite3.connect(tmp_path / "control.db")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StoreError, match="has schema 99"):
        await SqliteStore(tmp_path, clock).open()


async def test_a_closed_store_says_so():
    with pytest.raises(StoreError, match="closed"):
        await SqliteStore(None, clock).revisions(1)


async def test_a_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/data"):
        await SqliteStore(tmp_path / "file" / "data", clock).open()


async def test_the_loop_goes_on_while_the_disk_is_slow(tmp_path):
    store = SqliteStore(tmp_path, clock)
    snapshot = await fill(store)
    other = sqlite3.connect(tmp_path / "control.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = background(store.append(make_snapshot(snapshot.id.epoch, 2, ()), revision(2)))
    turns = 0
    while turns < 100:
        await asyncio.sleep(0)
        turns += 1
    assert not writing.done()
    other.execute("COMMIT")
    other.close()
    await writing
    await store.close()
