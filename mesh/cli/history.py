"""``mesh history``."""

from __future__ import annotations

import click

from mesh.cli.output import Column, as_time, print_rows, print_value
from mesh.cli.shared import ask, changes_line, control_option, output_option, revision_value
from mesh.cli.verbatim import VerbatimCommand


@click.command(cls=VerbatimCommand)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many.")
@click.option("--before", type=click.IntRange(min=1), default=None, metavar="N", help="Only versions below N.")
@output_option
@control_option
def command(limit: int, before: int | None, output: str, control: str) -> None:
    """Show who changed the table, when and why; newest first.

    Examples:
      mesh history
      mesh history --limit 5 -o json
      mesh get -o yaml --at-version 12      what the table was then
      mesh rollback 12                      make it the table again
    """
    revisions = ask(control, lambda mesh: mesh.history(limit, before or 0))
    if output != "table":
        print_value([revision_value(revision) for revision in revisions], output)
        return
    print_rows(
        [
            Column("VERSION", lambda r: str(r.version)),
            Column("WHEN", lambda r: as_time(r.when_unix_s)),
            Column("AUTHOR", lambda r: r.author),
            Column("CHANGES", lambda r: changes_line(r.changes)),
            Column("REASON", lambda r: r.reason),
        ],
        revisions,
    )
