"""How commands print: tables for people, JSON and YAML for programs. Results go to stdout, all else to stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import click

FORMATS: Final = ("table", "json", "yaml")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading and what stands in it for one row."""

    heading: str
    cell: Callable[[Any], str]


def print_rows(columns: Sequence[Column], rows: Iterable[object]) -> None:
    """Print an aligned table without lines, so that it can be cut with awk too. Line breaks in cells become spaces."""
    cells = [[column.heading for column in columns]]
    cells += [[" ".join(column.cell(row).split()) or "-" for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_value(value: object, output: str) -> None:
    """Print ``value`` (plain dicts and lists) as json or yaml."""
    if output == "json":
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    import yaml

    click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120), nl=False)


def print_line(value: object, output: str) -> None:
    """Print one of a stream of values: a JSON line, or a YAML document."""
    if output == "json":
        click.echo(json.dumps(value, ensure_ascii=False))
    else:
        click.echo("---")
        print_value(value, output)


def as_time(unix_s: float) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_age(seconds: float) -> str:
    """How long ago, in the largest unit that fits."""
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"
