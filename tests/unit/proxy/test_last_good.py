"""What a sidecar keeps on disk of its endpoints."""

import asyncio
import logging
import os
from pathlib import Path

import pytest

from mesh.model.name import Name
from mesh.model.service import Endpoint, Health
from proxy import last_good
from proxy.last_good import EndpointsKeeper, LastGood
from tests.support.process import until

REVIEWS, RATINGS = Name("default", "reviews"), Name("shop", "ratings")
KNOWN = {
    REVIEWS: (
        Endpoint("r-1", "10.0.0.1", 80, {"version": "v1", "zone": "ä"}, ("canary",)),
        Endpoint("r-2", "fd00::1", 81, {}, (), Health.CRITICAL),
    ),
    RATINGS: (Endpoint("s-1", "10.0.0.2", 80, {"namespace": "shop"}),),
}


@pytest.fixture
def kept(tmp_path: Path) -> LastGood:
    return LastGood(tmp_path / "data", "shop/shop-1")


def read(kept: LastGood) -> object:
    found = LastGood(kept.path.parent, "shop/shop-1").load_endpoints("registry")
    return None if found is None else found.services


def test_what_was_kept_is_read_again_with_its_age(kept: LastGood) -> None:
    kept.save_endpoints("registry", KNOWN)
    assert read(kept) == KNOWN
    os.utime(kept.endpoints_path, (0, 0))
    found = kept.load_endpoints("registry")
    assert found is not None
    assert found.age_s > 1e9
    assert [path.name for path in kept.path.parent.iterdir()] == ["shop_shop-1.endpoints"]


def test_there_is_nothing_to_read_at_first_and_nothing_of_another_source(
    kept: LastGood, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(kept) is None
    kept.save_endpoints("consul", KNOWN)
    assert read(kept) is None
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("cut", [0, 10, 200, -1])
def test_a_file_that_is_not_as_it_was_written_counts_as_none(
    kept: LastGood, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    kept.save_endpoints("registry", KNOWN)
    kept.endpoints_path.write_bytes(kept.endpoints_path.read_bytes()[:cut])
    assert read(kept) is None
    assert "cannot be read" in caplog.text


def test_a_changed_address_is_noticed(kept: LastGood) -> None:
    kept.save_endpoints("registry", KNOWN)
    kept.endpoints_path.write_bytes(kept.endpoints_path.read_bytes().replace(b"10.0.0.1", b"10.0.0.9"))
    assert read(kept) is None


def test_a_service_that_a_file_may_not_say_leaves_the_others(kept: LastGood, caplog: pytest.LogCaptureFixture) -> None:
    odd = {Name("default", "odd"): (Endpoint("o", "two words", 80),)}
    kept.save_endpoints("registry", {**odd, **KNOWN})
    assert read(kept) == KNOWN
    assert "two words" in caplog.text


def test_a_file_of_any_size_is_neither_written_nor_read(
    kept: LastGood, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(last_good, "MAX_ENDPOINTS_BYTES", 1024 + 300)
    kept.save_endpoints("registry", KNOWN)
    kept.save_endpoints("registry", KNOWN)
    assert read(kept) == {REVIEWS: KNOWN[REVIEWS]}  # the first that fit
    assert caplog.text.count("1 services do not fit") == 1
    kept.endpoints_path.write_bytes(b"x" * 2000)
    assert read(kept) is None
    assert "more than 1324 bytes" in caplog.text


def test_a_full_disk_leaves_what_was_there_and_is_told_once(kept: LastGood, caplog: pytest.LogCaptureFixture) -> None:
    kept.save_endpoints("registry", KNOWN)
    fresh = kept.path.parent / "shop_shop-1.endpoints-new"
    fresh.symlink_to("/dev/full")
    for count in (1, 2):
        kept.save_endpoints("registry", {})
        assert kept.write_failures == count
    assert read(kept) == KNOWN
    assert caplog.text.count("No space left") == 1
    fresh.unlink()
    kept.save_endpoints("registry", {})
    assert read(kept) == {}


def test_a_folder_that_cannot_be_made_is_told(caplog: pytest.LogCaptureFixture) -> None:
    LastGood(Path("/proc/sidemesh"), "shop").save_endpoints("registry", KNOWN)
    assert "could not be kept" in caplog.text


async def test_endpoints_are_written_some_time_after_a_change_only_where_they_differ_and_at_the_end(
    kept: LastGood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_good, "WRITE_EVERY_S", 0.05)
    known = dict(KNOWN)
    asked: list[float] = []

    def knowledge() -> dict[Name, tuple[Endpoint, ...]]:
        asked.append(asyncio.get_running_loop().time())
        return dict(known)

    keeper = EndpointsKeeper(kept, "registry", knowledge)
    for _ in range(100):
        keeper.changed()
    await until(kept.endpoints_path.exists, what="the file")
    assert len(asked) == 1
    written = kept.endpoints_path.stat().st_mtime_ns
    keeper.changed()
    await until(lambda: len(asked) == 2, what="a second look")
    assert asked[1] - asked[0] >= 0.05
    await asyncio.to_thread(lambda: None)
    del known[RATINGS]
    keeper.changed()
    assert kept.endpoints_path.stat().st_mtime_ns == written
    await keeper.close()
    assert read(kept) == known
    await keeper.close()
    assert len(asked) == 3
