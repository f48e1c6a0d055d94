import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mesh.telemetry.accesslog import AccessLog, Clock, Entry, Writer, json_line, text_line
from mesh.telemetry.names import LOG_FIELDS

PLAIN = Entry(
    10.0, 10.25, 0.2, b"GET", b"/a", b"1.1", 200, "", 3, 4, None, b"me", b"id", b"pay", "10.0.0.1:80", "outbound",
    "127.0.0.1", b"ab" * 16, "pay/0", "pay", 0, "",
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
)


@given(entries)
def test_whatever_a_request_holds_its_line_of_json_is_one_line_and_whole(entry: Entry) -> None:
    line = json_line(entry, CLOCK)
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


async def test_lines_beyond_the_queue_are_dropped_and_counted(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "log"), "json", max_queued=3)
    for _ in range(5):
        log.add(PLAIN)
    assert log.dropped == 2
    await log.close()
    assert log.lines == 3
    assert len((tmp_path / "log").read_text().splitlines()) == 3


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
