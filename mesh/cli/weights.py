"""``mesh weights set`` and ``mesh weights get``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from mesh.cli.output import Column, print_rows, print_value
from mesh.cli.shared import (
    ask,
    change_options,
    control_option,
    namespace_option,
    output_option,
    parse_name,
    tell_change,
)
from mesh.cli.verbatim import VerbatimCommand, VerbatimGroup
from mesh.client import Options, RuleWeights
from mesh.model.route import MAX_WEIGHT, BackendRef


@click.group("weights", cls=VerbatimGroup)
def command() -> None:
    """Show or set how traffic is split between the versions of a service.

    Examples:
      mesh weights get reviews
      mesh weights set reviews v1=90 v2=10
    """


class WeightType(click.ParamType[tuple[str, int]]):
    """``SUBSET=WEIGHT``."""

    name = "SUBSET=WEIGHT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:  # noqa: ANN401
        """The pair, or click's usage error."""
        if isinstance(value, tuple):
            return value
        subset, equals, weight = str(value).partition("=")
        if not subset or not equals or not (weight.isascii() and weight.isdigit()) or int(weight) > MAX_WEIGHT:
            self.fail(f"{value!r} is not SUBSET=WEIGHT, such as v1=90 (weights are 0 to {MAX_WEIGHT})", param, ctx)
        return subset, int(weight)


@command.command("set", cls=VerbatimCommand)
@click.argument("service")
@click.argument("weights", nargs=-1, required=True, type=WeightType())
@click.option("--route", default="", metavar="[KIND/]ROUTE[/RULE]", help="Which rule, where several carry them.")
@click.option("--force", is_flag=True, help="Also send to a subset without a healthy endpoint; also drop subsets.")
@namespace_option
@change_options
@output_option
@control_option
def set_(
    service: str,
    weights: tuple[tuple[str, int], ...],
    route: str,
    namespace: str,
    output: str,
    control: str,
    force: bool,  # noqa: FBT001 - a flag
    author: str,
    change: Options,
) -> None:
    """Set the weights of subsets (versions) of SERVICE.

    A subset's share is its weight divided by the sum of weights; 0 sends nothing. The one rule on SERVICE that
    carries exactly these subsets is changed; a service without a route gets one that takes every request. It holds
    from the next request on, requests in flight are not disturbed.

    Examples:
      mesh weights set reviews v1=90 v2=10
      mesh weights set reviews v1=0 v2=100 --reason "v2 looks good"
      mesh weights set reviews v1=50 v2=50 --expect-version 12 --dry-run
      mesh weights set reviews v1=90 v2=10 --route reviews/api
      mesh weights set reviews v1=90 v2=10 --route grpcroute/reviews

    Exit codes: 0 every sidecar took it; 1 not done; 2 not valid; 3 stored, but not every sidecar took it.
    """
    name = parse_name(service, namespace, "SERVICE")
    if len({subset for subset, _ in weights}) < len(weights):
        raise click.BadParameter("a subset is given twice", param_hint="SUBSET=WEIGHT")
    settings = replace(change, force=force)
    result = ask(control, lambda mesh: mesh.set_weights(name, dict(weights), route, settings), author)
    tell_change(result, output, is_dry_run=change.dry_run, control=control)


@command.command("get", cls=VerbatimCommand)
@click.argument("service", required=False)
@namespace_option
@output_option
@control_option
def get(service: str | None, namespace: str, output: str, control: str) -> None:
    """Show the weights of SERVICE, or of every service with a route.

    Examples:
      mesh weights get
      mesh weights get reviews -o json
    """
    name = parse_name(service, namespace, "SERVICE") if service else None
    version, rules = ask(control, lambda mesh: mesh.weights(name))
    if output != "table":
        print_value({"version": version, "rules": [_value(rule) for rule in rules]}, output)
        return
    print_rows(
        [
            Column("SERVICE", lambda row: str(row[0].service)),
            Column("ROUTE/RULE", lambda row: _label(row[0])),
            Column("BACKEND", lambda row: str(row[1]) if row[1] else "none"),
            Column("WEIGHT", lambda row: str(row[1].weight) if row[1] else ""),
            Column("SHARE", lambda row: _share(row[0], row[1]) if row[1] else ""),
        ],
        [(rule, ref) for rule in rules for ref in rule.backend_refs or (None,)],
    )


def _label(rule: RuleWeights) -> str:
    """As ``--route`` takes it; most routes are HTTPRoutes, and go without their kind."""
    return f"{'' if rule.kind == 'HTTPRoute' else rule.kind + '/'}{rule.route}/{rule.rule}"


def _share(rule: RuleWeights, ref: BackendRef) -> str:
    total = sum(other.weight for other in rule.backend_refs)
    return f"{100 * ref.weight / total:.4g} %" if total else "0 %"


def _value(rule: RuleWeights) -> dict[str, Any]:
    return {
        "service": str(rule.service),
        "kind": rule.kind,
        "route": str(rule.route),
        "rule": rule.rule,
        "backends": [
            {"service": str(ref.service), "subset": ref.subset, "weight": ref.weight, "port": ref.port}
            for ref in rule.backend_refs
        ],
    }
