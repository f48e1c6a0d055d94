"""``mesh rollback``."""

from __future__ import annotations

from dataclasses import replace

import click

from mesh.cli.shared import ask, change_options, control_option, output_option, tell_change
from mesh.cli.verbatim import VerbatimCommand
from mesh.client import Options


@click.command(cls=VerbatimCommand)
@click.argument("version", type=click.IntRange(min=1), required=False)
@change_options
@output_option
@control_option
def command(version: int | None, output: str, control: str, author: str, change: Options) -> None:
    """Go back to the table of VERSION, or to the one before the newest.

    The old table becomes a new version, so nothing of the history is lost and a rollback can itself be undone.

    Examples:
      mesh rollback
      mesh rollback 12 --dry-run
      mesh rollback 12 --expect-version 15 --reason "v2 leaks memory"
    """
    reason = change.reason or f"rollback to {f'version {version}' if version else 'the version before'}"
    change = replace(change, reason=reason)
    result = ask(control, lambda mesh: mesh.rollback(version or 0, change), author)
    tell_change(result, output, is_dry_run=change.dry_run, control=control)
