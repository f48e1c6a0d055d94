import pytest

from mesh.model.duration import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("500ms", 0.5),
        ("1m30s", 90),
        ("1h", 3600),
        ("1h1m1s1ms", 3661.001),
        ("0s", 0),
        ("1s1s", 2),
        ("99999h", 359_996_400),
    ],
)
def test_geps_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "1", "1.5s", "-1s", "1d", "100000s", "1s1s1s1s1s", " 1s", "1 s", "s", "1S", "1s\n"]
)
def test_what_is_no_duration_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="such as 10s"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (5, "5s"), (90, "90s"), (0.25, "250ms"), (1.5, "1s500ms"), (3600, "1h"), (5400, "1h30m")],
)
def test_durations_are_written_as_people_would(seconds, text):
    assert format_duration(seconds) == text
