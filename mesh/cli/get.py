"""``mesh get``."""

from __future__ import annotations

import click

from mesh.cli.output import Column, print_rows, print_value
from mesh.cli.shared import KindType, ask, control_option, output_option, parse_name
from mesh.cli.verbatim import VerbatimCommand
from mesh.client import MeshClient, Table
from mesh.model.gateway_api import to_document, to_yaml
from mesh.model.name import DEFAULT_NAMESPACE
from mesh.model.policy import ServicePolicy
from mesh.model.route import Route
from mesh.model.snapshot import Kind, kind_of


@click.command(cls=VerbatimCommand)
@click.argument("kind", type=KindType(), required=False)
@click.argument("name", required=False)
@click.option("-n", "--namespace", envvar="MESH_NAMESPACE", default="", help="Only this namespace; all if not given.")
@click.option("--at-version", type=click.IntRange(min=1), default=None, metavar="N", help="The table as it was then.")
@output_option
@control_option
def command(
    kind: Kind | None, name: str | None, namespace: str, at_version: int | None, output: str, control: str
) -> None:
    """Show routes and policies. KIND is route, grpcroute, tcproute or policy.

    Examples:
      mesh get
      mesh get routes
      mesh get route reviews -o yaml
      mesh get -o yaml --at-version 12 > before.yaml
    """
    wanted = parse_name(name, namespace or DEFAULT_NAMESPACE, "NAME") if name else None

    async def work(mesh: MeshClient) -> Table:
        if kind is not None and wanted is not None and at_version is None:
            return Table(0, (await mesh.get(kind, wanted),))
        return await mesh.list(kind, namespace, at_version or 0)

    table = ask(control, work)
    values = [value for value in table.values if wanted in (None, value.name)]
    if wanted is not None and not values:
        raise click.ClickException(f"there is no {kind.value if kind else 'resource'} {wanted} at version {at_version}")
    if output == "yaml":
        click.echo(to_yaml(values), nl=False)
    elif output == "json":
        documents = [to_document(value) for value in values]
        print_value(documents[0] if wanted else {"version": table.version, "items": documents}, output)
    else:
        _print(values)


def _print(values: list[Route | ServicePolicy]) -> None:
    print_rows(
        [
            Column("KIND", lambda v: kind_of(v).value),
            Column("NAMESPACE", lambda v: v.name.namespace),
            Column("NAME", lambda v: v.name.name),
            Column(
                "SERVICES",
                lambda v: ",".join(str(p.service) for p in v.parents) if isinstance(v, Route) else str(v.name),
            ),
            Column("WHAT", lambda v: _rules(v) if isinstance(v, Route) else _policy(v)),
        ],
        values,
    )


def _rules(route: Route) -> str:
    """Each rule's split in a word or two."""
    splits = []
    for i, rule in enumerate(route.rules):
        refs = " ".join(f"{ref}={ref.weight}" for ref in rule.backend_refs) or "no backends"
        splits.append(f"{route.rule_label(i)}: {refs}" if len(route.rules) > 1 else refs)
    return "; ".join(splits)


def _policy(policy: ServicePolicy) -> str:
    return f"subsets {', '.join(sorted(policy.subsets))}" if policy.subsets else ""
