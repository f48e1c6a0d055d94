import json

import pytest
import yaml

from mesh.cli.output import Column, as_age, as_time, print_line, print_rows, print_value


def test_a_table_is_aligned_and_can_be_cut(capsys):
    print_rows([Column("A", lambda r: r[0]), Column("LONG", lambda r: r[1])], [("one", "x\ny"), ("a longer one", "")])
    assert capsys.readouterr().out == "A             LONG\none           x y\na longer one  -\n"


def test_values_are_json_or_yaml(capsys):
    value = {"b": ["é", 1], "a": None}
    print_value(value, "json")
    assert json.loads(capsys.readouterr().out) == value
    print_value(value, "yaml")
    out = capsys.readouterr().out
    assert yaml.safe_load(out) == value
    assert out.startswith("b:")
    print_line(value, "json")
    assert capsys.readouterr().out.count("\n") == 1
    print_line(value, "yaml")
    print_line(value, "yaml")
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == [value, value]


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (59, "59s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d")]
)
def test_ages(seconds, text):
    assert as_age(seconds) == text


def test_times_are_utc():
    assert as_time(1_767_225_600.25) == "2026-01-01T00:00:00.250Z"
