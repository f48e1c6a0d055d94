"""``mesh watch``."""

from __future__ import annotations

import click

from mesh.cli.output import as_time, print_line
from mesh.cli.shared import ask, changes_line, control_option, output_option, revision_value, sidecar_value
from mesh.cli.verbatim import VerbatimCommand
from mesh.client import Event, MeshClient


@click.command(cls=VerbatimCommand)
@output_option
@control_option
def command(output: str, control: str) -> None:
    """Follow changes of the table and of the sidecars, until Ctrl-C.

    It begins with the newest version and every sidecar as it is. With -o json every event is one line.

    Examples:
      mesh watch
      mesh watch -o json | jq -c 'select(.sidecar.state == "nacked")'
    """

    async def work(mesh: MeshClient) -> None:
        async for event in mesh.watch():
            if output == "table":
                click.echo(f"{as_time(event.when_unix_s)}  {_line(event)}")
            else:
                print_line(_value(event), output)

    ask(control, work)


def _line(event: Event) -> str:
    if event.revision is not None:
        r = event.revision
        return f"version {r.version} by {r.author}: {changes_line(r.changes) or r.reason}"
    assert event.sidecar is not None  # noqa: S101 - an event is one or the other
    s = event.sidecar
    of = f" ({s.service} {s.service_version})" if s.service else ""
    return f"sidecar {s.node}{of}: {s.state}, runs {s.running}{': ' + s.reason if s.reason else ''}"


def _value(event: Event) -> dict[str, object]:
    value: dict[str, object] = {"when": as_time(event.when_unix_s)}
    if event.revision is not None:
        value["revision"] = revision_value(event.revision)
    if event.sidecar is not None:
        value["sidecar"] = sidecar_value(event.sidecar)
    return value
