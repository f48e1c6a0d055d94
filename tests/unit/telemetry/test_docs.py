"""docs/metrics-and-spans.md lists exactly the names that the code has."""

import re
from pathlib import Path

from mesh.telemetry.accesslog import Clock, Entry, Line, json_lines, text_line
from mesh.telemetry.names import ATTRIBUTES, ISTIO_LABELS, LOG_FIELDS, METRICS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "metrics-and-spans.md").read_text()

EXAMPLE = Entry(
    0.0, 0.004217, 0.003905, b"GET", b"/products/7?full=1", b"1.1", 200, "", 0, 31, None, b"curl/8.5.0",
    b"6f1f7e1e-6f2b-4c0e-a9d4-0c2f3d5b7a10", b"reviews", "127.0.0.1:15006", "outbound", "127.0.0.1",
    b"0af7651916cd43dd8448eb211c80319c", "reviews/0", "reviews:v2", 1, None, "",
)  # fmt: skip


def first_cells(header: str) -> list[str]:
    """The names in the first column of the table that begins with ``header``."""
    rows = PAGE.split(header, 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [re.findall(r"`([^`]+)`", row.split("|")[1])[0] for row in rows]


def test_the_page_lists_every_metric_with_its_type_and_labels() -> None:
    assert first_cells("| name | type |") == [metric.name for metric in METRICS]
    for metric in METRICS:
        (row,) = re.findall(rf"^\| `{metric.name}` \|.*$", PAGE, re.MULTILINE)
        _, _, kind, labels, text, _ = row.split("|")
        assert kind.strip() == metric.kind
        assert text.strip()
        if metric.labels is not ISTIO_LABELS:
            assert tuple(re.findall(r"`(\w+)`", labels)) == metric.labels


def test_the_page_lists_istios_labels() -> None:
    (line,) = [line for line in PAGE.splitlines() if line.startswith("`reporter`")]
    assert tuple(re.findall(r"`(\w+)`", line)) == ISTIO_LABELS


def test_the_page_lists_every_span_attribute() -> None:
    assert first_cells("| attribute | on |") == list(ATTRIBUTES)


def test_the_page_lists_every_field_of_the_access_log() -> None:
    assert first_cells("| field | Envoy's name") == list(LOG_FIELDS) == list(Line.__struct_fields__)


def test_the_lines_on_the_page_are_what_is_written() -> None:
    clock = Clock(1795431600.0)
    assert json_lines([EXAMPLE], clock).decode() in PAGE
    assert text_line(EXAMPLE, clock).decode() in PAGE


def test_every_variable_that_is_read_is_on_the_page() -> None:
    source = (Path(__file__).resolve().parents[3] / "mesh" / "telemetry" / "otel_settings.py").read_text()
    for variable in set(re.findall(r'"(OTEL_[A-Z_]+)"', source)):
        assert f"`{variable}`" in PAGE, variable
