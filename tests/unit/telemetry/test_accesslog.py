import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.telemetry.accesslog import BATCH, FLUSH_S, AccessLog, Clock, Entry, Writer, json_lines, text_line
from mesh.telemetry.names import LOG_FIELDS

PLAIN = Entry(
    10.0, 10.25, 0.2, b"GET", b"/a", b"1.1", 200, "", 3, 4, None, b"me", b"id", b"pay", "10.0.0.1:80", "outbound",
    "127.0.0.1", b"ab" * 16, "pay/0", "pay", 0, None, "",
)  # fmt: skip
CLOCK = Clock(1_700_000_000.0)

octets = st.binary(max_size=40)
entries = st.builds(
    PLAIN._replace,
    method=octets,
    target=octets,
    version=st.sampled_from([b"", b"1.1", b"\xff\n"]),
    flag=st.sampled_from(["", "UF"]),
    forwarded_for=st.none() | octets,
    user_agent=st.none() | octets,
    request_id=octets,
    authority=octets,
    upstream=st.text(max_size=20),
    route=st.text(max_size=20),
    cluster=st.text(max_size=20),
    trace_id=st.sampled_from([b"", b"ab" * 16]),
    error=st.text(max_size=40),
    upstream_s=st.sampled_from([0.0, 0.2]),
    grpc_status=st.none() | st.integers(0, 16),
)


@given(entries)
def test_whatever_a_request_holds_its_line_of_json_is_one_line_and_whole(entry: Entry) -> None:
    line = json_lines([entry], CLOCK)
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert len(line.decode().splitlines()) == 1
    assert list(json.loads(line)) == list(LOG_FIELDS)


@given(entries)
def test_whatever_a_request_holds_its_line_of_text_is_one_printable_line(entry: Entry) -> None:
    line = text_line(entry, CLOCK)
    assert line.endswith(b"\n")
    assert line[:-1].isascii()
    assert line[:-1].decode().isprintable()


def test_the_clock_goes_on_over_the_second() -> None:
    clock = Clock(0.0)
    assert [clock.text(t) for t in (0.9994, 1.0, 1.001, 86_400.5)] == [
        "1970-01-01T00:00:00.999Z",
        "1970-01-01T00:00:01.000Z",
        "1970-01-01T00:00:01.001Z",
        "1970-01-02T00:00:00.500Z",
    ]


async def test_lines_that_a_slow_writer_has_no_room_for_are_dropped_and_counted(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "log"), "json", max_unwritten_bytes=BATCH * 400)
    for _ in range(3 * BATCH):  # a line has more than 400 bytes; nothing is written before the loop runs
        log.add(PLAIN)
    assert log.dropped == 2 * BATCH
    await log.close()
    assert log.lines == BATCH
    assert len((tmp_path / "log").read_text().splitlines()) == BATCH


async def test_every_line_comes_once_and_in_order_however_many_there_are_at_a_time(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "log"), "json")
    for number in range(3000):
        log.add(PLAIN._replace(retries=number))
        if number % 700 == 0:
            await asyncio.sleep(FLUSH_S * 1.5)
    await log.close()
    assert (log.lines, log.dropped) == (3000, 0)
    assert [json.loads(line)["retries"] for line in (tmp_path / "log").read_text().splitlines()] == list(range(3000))


async def test_a_line_that_cannot_be_made_is_tried_once_and_costs_no_other(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "log"), "json")
    log.add(PLAIN._replace(route=5))  # type: ignore[arg-type]  # as a bug of ours might
    for _ in range(BATCH - 2):
        log.add(PLAIN)
    with pytest.raises(AttributeError):
        log.add(PLAIN)
    log.add(PLAIN)
    await log.close()
    assert log.lines == 1


async def test_a_single_line_is_written_soon(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "log"), "text")
    log.add(PLAIN)
    async with asyncio.timeout(5):
        while log.lines == 0:
            await asyncio.sleep(0.01)
    await log.close()


def test_reopen_makes_a_new_file_even_under_the_same_name(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = Writer(str(path))
    writer._write(b"1\n")
    before = writer._fd
    writer.wants_reopening = True
    writer._write(b"2\n")
    assert not writer.wants_reopening
    assert writer._fd >= 0
    assert path.read_text() == "1\n2\n"
    assert before >= 0
    writer._close_file()
