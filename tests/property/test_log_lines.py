"""The compiled writer of log lines and its twin in Python give the same line for every entry, or it leaves it to it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.telemetry import accesslog
from mesh.telemetry.accesslog import Clock, Entry, escaped_json_line

compiled = accesslog.compiled_json_lines
needs_compiler = pytest.mark.skipif(compiled is None, reason="no C compiler here: sudo apt-get install gcc python3-dev")

raw = st.binary(max_size=40) | st.text('ab/?=&%7~ "\\é\x7f\n', max_size=40).map(str.encode) | st.just(b"x" * 2048)
seconds = st.floats(0, 1e6) | st.sampled_from([0.0, 1.0, 1.001, 1.0015, 0.1 + 0.2])
text = st.text(max_size=20) | st.text("abc:/0", max_size=20)
count = st.integers(0, 2**70)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    started = draw(seconds)
    return Entry(
        started, started + draw(seconds), draw(seconds), draw(raw), draw(raw), draw(st.sampled_from([b"1.1", b"1.0", b""])),
        draw(st.integers(100, 599)), draw(st.sampled_from(["", "UH", "URX"])), draw(count), draw(count),
        draw(st.none() | raw), draw(st.none() | raw), draw(raw), draw(raw), draw(text), draw(text), draw(text),
        draw(st.just(b"") | st.just(b"0af7651916cd43dd8448eb211c80319c")), draw(text), draw(text), draw(count),
        draw(st.none() | st.integers(0, 16)), draw(text),
    )  # fmt: skip


OFFSET_S = 1_764_000_000.0


def twin(entry: Entry) -> bytes:
    return escaped_json_line(entry, Clock(OFFSET_S).text(entry.started_s))


def unwanted(entry: Entry) -> bytes:
    raise AssertionError(entry)


@needs_compiler
@given(st.lists(entries(), max_size=5))
def test_both_write_the_same(some: list[Entry]) -> None:
    assert compiled is not None
    lines = compiled(some, OFFSET_S, twin)
    assert lines == b"".join(map(twin, some))
    assert lines.count(b"\n") == len(some)
    for line in lines.splitlines():
        json.loads(line)


PLAIN = Entry(1.0, 1.0042, 0.0039, b"GET", b"/a?b=c", b"1.1", 200, "", 0, 66, None, b"curl/8", b"id", b"shop", "127.0.0.1:1",
              "outbound", "127.0.0.1", b"0af7651916cd43dd8448eb211c80319c", "shop/3", "shop:v1", 0, None, "")  # fmt: skip


@needs_compiler
@pytest.mark.parametrize(
    "entry", [PLAIN, PLAIN._replace(error="no endpoint", flag="UH", status=503), PLAIN._replace(version=b"")]
)
def test_what_needs_no_escaping_is_written_compiled(entry: Entry) -> None:
    assert compiled is not None
    assert compiled([entry], OFFSET_S, unwanted) == twin(entry)


@needs_compiler
@pytest.mark.parametrize(
    "entry",
    [
        PLAIN._replace(target=b'/"'),
        PLAIN._replace(target=b"/\\"),
        PLAIN._replace(user_agent=b"caf\xc3\xa9"),
        PLAIN._replace(route="caf\u00e9"),
        PLAIN._replace(authority=b"x" * 9000),
        PLAIN._replace(sent=2**64),
        PLAIN._replace(ended_s=0.5),
    ],
)
def test_what_does_is_left_to_the_twin(entry: Entry) -> None:
    assert compiled is not None
    assert compiled([PLAIN, entry, PLAIN], OFFSET_S, lambda _: b"twin\n") == twin(PLAIN) + b"twin\n" + twin(PLAIN)
    assert json.loads(twin(entry))


@needs_compiler
def test_many_long_lines_have_room() -> None:
    assert compiled is not None
    some = [PLAIN._replace(target=b"/" * (size % 2048)) for size in range(0, 100_000, 333)]
    some[50] = PLAIN._replace(authority=b'"' * 20_000)
    assert compiled(some, OFFSET_S, twin) == b"".join(map(twin, some))
    assert compiled([], OFFSET_S, twin) == b""


@needs_compiler
def test_an_error_of_the_twin_is_the_callers() -> None:
    assert compiled is not None
    with pytest.raises(AssertionError):
        compiled([PLAIN, PLAIN._replace(target=b"\\")], OFFSET_S, unwanted)


@needs_compiler
def test_what_is_no_entry_is_a_type_error() -> None:
    assert compiled is not None
    for wrong in (
        (1, 2),
        (PLAIN, 0.0, twin),
        ([PLAIN[:5]], 0.0, twin),
        ([PLAIN], 0, twin),
        ([PLAIN._replace(target=b"\\")], 0.0, len),
    ):
        with pytest.raises(TypeError):
            compiled(*wrong)  # type: ignore[arg-type, call-arg]
