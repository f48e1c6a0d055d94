"""``mesh status``."""

from __future__ import annotations

import time

import click

from mesh.cli.output import Column, as_age, print_rows, print_value
from mesh.cli.shared import ask, control_option, output_option, sidecar_value
from mesh.cli.verbatim import VerbatimCommand


@click.command(cls=VerbatimCommand)
@output_option
@control_option
def command(output: str, control: str) -> None:
    """Show which sidecars run which version of the table.

    acked: runs the newest table. nacked: refused it for the reason given and goes on with the version shown.
    pending: has it, has not answered. disconnected: its stream broke; it goes on with what it has and comes back by
    itself.

    Examples:
      mesh status
      mesh status -o json | jq '.sidecars[] | select(.state != "acked")'
    """
    status = ask(control, lambda mesh: mesh.status())
    if output != "table":
        value = {
            "version": status.current.version,
            "epoch": status.current.epoch,
            "digest": status.current.digest,
            "sidecars": [sidecar_value(sidecar) for sidecar in status.sidecars],
        }
        print_value(value, output)
        return
    now = time.time()
    click.echo(f"table: version {status.current.version} of store {status.current.epoch}")
    if not status.sidecars:
        click.echo("no sidecar is connected")
        return
    print_rows(
        [
            Column("SIDECAR", lambda s: s.node),
            Column("SERVICE", lambda s: str(s.service) if s.service else ""),
            Column("VERSION", lambda s: s.service_version),
            Column("TABLE", lambda s: str(s.running)),
            Column("STATE", lambda s: s.state),
            Column("SINCE", lambda s: as_age(now - s.since_unix_s)),
            Column("REASON", lambda s: s.reason),
        ],
        status.sidecars,
    )
