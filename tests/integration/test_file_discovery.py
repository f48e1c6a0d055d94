"""The file source over a real file that is edited well and badly."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.discovery.base import Contact, SourceError
from mesh.discovery.file import FileSource
from mesh.model.errors import InvalidError
from mesh.model.service import Health, Instance
from tests.support.discovery import REVIEWS, Seen, endpoint
from tests.support.process import until

ONE = "services: {reviews: [{id: a, address: h, port: 1}]}"
TWO = "services: {reviews: [{id: a, address: h, port: 1}, {id: b, address: h, port: 2}]}"
BAD = "services: {reviews: [{id: a, address: h, port: 0, colour: red}]}"


def write(path: Path, body: str | bytes) -> None:
    path.write_bytes(body.encode() if isinstance(body, str) else body)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "services.yaml"


@pytest.fixture
async def source(path: Path) -> AsyncIterator[FileSource]:
    source = FileSource(path, poll_s=0.02)
    yield source
    await source.close()


async def test_a_bad_file_keeps_the_last_good_one_and_is_told_once_with_all_that_is_wrong(
    path: Path, source: FileSource, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, ONE)
    await source.start()
    seen = Seen(source)
    await seen.until_ids("a")
    write(path, BAD)
    await seen.until(lambda seen: seen.failures, "the bad file to be noticed")
    assert "services.reviews[0].colour" in str(seen.failures[0])
    assert "services.reviews[0].port: 0 must be a whole number from 1 to 65535" in str(seen.failures[0])
    found = await source.lookup(REVIEWS)
    assert found
    assert [each.id for each in found.endpoints] == ["a"]
    write(path, BAD)
    write(path, TWO)
    await seen.until_ids("a", "b")
    assert seen.contacts[-1] is Contact.RESUMED
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == len(seen.failures) == 1


async def test_a_watch_that_begins_while_the_file_is_bad_gets_the_last_good_one(path: Path, source: FileSource) -> None:
    write(path, ONE)
    await source.start()
    write(path, BAD)
    await until(lambda: source.error, what="the bad file to be noticed")
    seen = Seen(source)
    await seen.until_ids("a")
    assert len(seen.failures) == 1


@pytest.mark.parametrize("body", [b"\xff\xfe", b"services: 5", b"x" * 17_000_000], ids=["utf-8", "shape", "size"])
async def test_a_first_file_that_is_bad_is_an_error_of_the_source(path: Path, source: FileSource, body: bytes) -> None:
    write(path, body)
    await source.start()
    with pytest.raises(SourceError, match=r"services\.yaml"):
        await source.lookup(REVIEWS)


async def test_a_file_that_is_not_there_yet_is_read_when_it_comes(path: Path, source: FileSource) -> None:
    await source.start()
    with pytest.raises(SourceError, match="No such file"):
        await source.lookup(REVIEWS)
    seen = Seen(source)
    await seen.until(lambda seen: seen.failures, "the failure")
    write(path, ONE)
    await seen.until_ids("a")


async def test_a_file_that_is_written_in_pieces_is_read_when_it_stands_still(path: Path, source: FileSource) -> None:
    write(path, TWO)
    await source.start()
    seen = Seen(source)
    await seen.until_ids("a", "b")
    text = ""
    for piece in (
        "services:\n",
        "  reviews:\n",
        "    - {id: a, address: h, port: 1}\n",
        "    - {id: c, address: h, port: 3}\n",
    ):
        text += piece
        write(path, text)
        await asyncio.sleep(0.04)  # a writer slower than the polls and faster than the settling time
    await seen.until_ids("a", "c")
    assert [sorted(each.id for each in said.endpoints) for said in seen.observations] == [["a", "b"], ["a", "c"]]


async def test_a_section_of_a_configuration_is_a_source_of_its_own() -> None:
    source = FileSource.of({"reviews": [{"address": "h", "port": 1}]})
    await source.start()
    seen = Seen(source)
    await seen.until_ids("h:1")
    registration = await source.register(Instance(REVIEWS, endpoint("x")), Health.PASSING)
    registration.set_health(Health.CRITICAL)
    await registration.announce_leaving()
    await registration.close()
    await source.close()
    with pytest.raises(InvalidError):
        FileSource.of({"Reviews": []})
