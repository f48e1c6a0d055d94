"""Prometheus' text format, version 0.0.4, in pieces: whoever writes them may let the loop run in between.

A whole scrape of 500 request series is megabytes and would hold the loop for tens of ms; a piece is one series of one
family, some tens of µs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mesh.telemetry.metrics import DURATION_BOUNDS_MS, OTHER, SIZE_BITS, SIZE_BOUNDS_BYTES, RequestCell, escape
from mesh.telemetry.names import (
    ISTIO_LABELS,
    REQUEST_BYTES,
    REQUEST_DURATION,
    REQUESTS,
    RESPONSE_BYTES,
    TCP_CLOSED,
    TCP_OPENED,
    TCP_RECEIVED,
    TCP_SENT,
    Metric,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_SERIES = 2000

OTHER_LABELS = ",".join(f'{label}="{OTHER}"' for label in ISTIO_LABELS)

Sample = tuple[tuple[str, ...], float]
"""Label values, in the order of ``Metric.labels``, and the value."""

_DURATION_ENDS = tuple(f'le="{bound:g}"}} ' for bound in DURATION_BOUNDS_MS)
_SIZE_ENDS = tuple(f'le="{bound}"}} ' for bound in SIZE_BOUNDS_BYTES)
_INF = 'le="+Inf"} '


def head(metric: Metric) -> str:
    """HELP and TYPE of a family."""
    return f"# HELP {metric.name} {metric.text}\n# TYPE {metric.name} {metric.kind}\n"


def family(metric: Metric, samples: Iterable[Sample]) -> str:
    """A counter or gauge with few series. Beyond MAX_SERIES of them the rest is summed as ``other``."""
    lines = [head(metric)]
    rest = 0.0
    is_capped = False
    for number, (values, value) in enumerate(samples):
        if number >= MAX_SERIES:
            is_capped = True
            rest += value
            continue
        lines.append(_line(metric, values, value))
    if is_capped:
        lines.append(_line(metric, (OTHER,) * len(metric.labels), rest))
    return "".join(lines)


def _line(metric: Metric, values: Sequence[str], value: float) -> str:
    labels = ",".join(f'{key}="{escape(text)}"' for key, text in zip(metric.labels, values, strict=True))
    return f"{metric.name}{{{labels}}} {_number(value)}\n" if labels else f"{metric.name} {_number(value)}\n"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def request_families(cells: Sequence[tuple[str, RequestCell]]) -> Iterator[str]:
    """Istio's four families; ``cells``: each with its labels as text."""
    yield head(REQUESTS)
    for labels, cell in cells:
        yield f"{REQUESTS.name}{{{labels}}} {cell.count}\n"
    yield head(REQUEST_DURATION)
    for labels, cell in cells:
        yield _durations(labels, cell)
    for metric, is_request in ((REQUEST_BYTES, True), (RESPONSE_BYTES, False)):
        yield head(metric)
        for labels, cell in cells:
            sizes = [cell.empty_requests, *cell.request_sizes[1:]] if is_request else cell.response_sizes
            yield _sizes(metric.name, labels, sizes, cell.request_bytes if is_request else cell.response_bytes)


def connection_families(
    opened: Sequence[tuple[str, RequestCell]], closed: Sequence[tuple[str, RequestCell]]
) -> Iterator[str]:
    """Istio's families of TCP connections; none where there was no connection."""
    if opened or closed:
        yield head(TCP_OPENED)
        yield from (f"{TCP_OPENED.name}{{{labels}}} {cell.count}\n" for labels, cell in opened)
        yield head(TCP_CLOSED)
        yield from (f"{TCP_CLOSED.name}{{{labels}}} {cell.count}\n" for labels, cell in closed)
        yield head(TCP_RECEIVED)
        yield from (f"{TCP_RECEIVED.name}{{{labels}}} {cell.request_bytes}\n" for labels, cell in closed)
        yield head(TCP_SENT)
        yield from (f"{TCP_SENT.name}{{{labels}}} {cell.response_bytes}\n" for labels, cell in closed)


def _durations(labels: str, cell: RequestCell) -> str:
    start = f"{REQUEST_DURATION.name}_bucket{{{labels},"
    lines: list[str] = []
    total = 0
    for end, count in zip(_DURATION_ENDS, cell.duration_buckets, strict=False):
        total += count
        lines += (start, end, str(total), "\n")
    total += cell.duration_buckets[-1]
    lines += (start, _INF, str(total), "\n")
    name = REQUEST_DURATION.name
    lines.append(f"{name}_sum{{{labels}}} {cell.duration_sum_ms!r}\n{name}_count{{{labels}}} {total}\n")
    return "".join(lines)


def _sizes(name: str, labels: str, sizes: list[int], in_all: int) -> str:
    start = f"{name}_bucket{{{labels},"
    lines: list[str] = []
    total = below = 0
    for bits, end in zip(SIZE_BITS, _SIZE_ENDS, strict=True):
        total += sum(sizes[below : bits + 1])
        below = bits + 1
        lines += (start, end, str(total), "\n")
    total += sum(sizes[below:])
    lines += (start, _INF, str(total), "\n")
    lines.append(f"{name}_sum{{{labels}}} {in_all}\n{name}_count{{{labels}}} {total}\n")
    return "".join(lines)
