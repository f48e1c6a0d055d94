"""``mesh delete``."""

from __future__ import annotations

import click

from mesh.cli.shared import (
    KindType,
    ask,
    change_options,
    control_option,
    namespace_option,
    output_option,
    parse_name,
    tell_change,
)
from mesh.cli.verbatim import VerbatimCommand
from mesh.client import Options
from mesh.model.snapshot import Kind


@click.command(cls=VerbatimCommand)
@click.argument("kind", type=KindType())
@click.argument("name")
@namespace_option
@change_options
@output_option
@control_option
def command(kind: Kind, name: str, namespace: str, output: str, control: str, author: str, change: Options) -> None:
    """Delete a route or a policy. KIND is route, grpcroute, tcproute or policy.

    A service without any route passes its traffic through to all its endpoints.

    Examples:
      mesh delete route reviews
      mesh delete policy reviews --reason "back to the defaults"
    """
    wanted = parse_name(name, namespace, "NAME")
    result = ask(control, lambda mesh: mesh.delete(kind, wanted, change), author)
    tell_change(result, output, is_dry_run=change.dry_run, control=control)
