"""Things an operator should know about resources that are sound all the same. They never stop a change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from mesh.model.name import Name
from mesh.model.policy import ServicePolicy
from mesh.model.route import Parent, Route, RouteMatch
from mesh.model.snapshot import Kind, kind_of
from mesh.model.validate import resource_label

_UNSAFE_METHODS = ("POST", "PATCH")
"""Methods that RFC 9110 §9.2.2 does not call idempotent."""


def warnings_of(value: Route, policies: Mapping[Name, ServicePolicy]) -> Iterator[str]:
    """What to know about one route, given the table's policies by service."""
    label = resource_label(value)
    first_at: dict[RouteMatch, str] = {}
    for i, rule in enumerate(value.rules):
        at = f"{label} rule {value.rule_label(i)}"
        if rule.retry is not None and rule.retry.attempts > 0 and rule.retry.codes:
            methods = [m for m in _UNSAFE_METHODS if any(match.method in (None, m) for match in rule.matches)]
            if methods:
                yield (
                    f"{at}: its retry stanza repeats {' and '.join(methods)} too, as the Gateway API says; "
                    "where a repeat does harm, give the rule a method match or leave the stanza out"
                )
        if not rule.backend_refs:
            yield f"{at}: has no backendRefs and answers 500"
        elif not any(ref.weight for ref in rule.backend_refs):
            yield f"{at}: all weights are 0, so it answers 503"
        for ref in rule.backend_refs:
            policy = policies.get(ref.service)
            if ref.subset and policy and policy.subsets and ref.subset not in policy.subsets:
                yield (
                    f"{at}: subset {ref.subset} is not among those the ServicePolicy of {ref.service} defines "
                    f"({', '.join(sorted(policy.subsets))}); it means the endpoints of version {ref.subset}"
                )
        for match in rule.matches:
            if match in first_at:
                yield f"{at}: never sees some requests, {first_at[match]} has the same match and stands before it"
            first_at.setdefault(match, f"rule {value.rule_label(i)}")


def table_warnings(values: Iterable[Route | ServicePolicy], changed: Iterable[tuple[Kind, Name]]) -> list[str]:
    """What to know about the routes called ``changed``, alone and beside the rest of the table."""
    everything = list(values)
    policies = {value.name: value for value in everything if isinstance(value, ServicePolicy)}
    routes = [value for value in everything if isinstance(value, Route)]
    wanted = set(changed)
    found: list[str] = []
    for route in routes:
        if (kind_of(route), route.name) in wanted:
            found += warnings_of(route, policies)
            found += _hidden_by(route, routes)
    return found


def _hidden_by(route: Route, routes: Iterable[Route]) -> Iterator[str]:
    """Matches that an older route on the same parent has too: there the older one wins (Gateway API precedence)."""
    mine = _conditions(route)
    for other in routes:
        if other is route:
            continue
        shared = mine & _conditions(other)
        if shared:
            older, newer = sorted((route, other), key=lambda r: (r.created_unix_s, str(r.name)))
            parents = ", ".join(sorted({str(parent.service) for parent, _ in shared}))
            yield (
                f"{resource_label(newer)} and {resource_label(older)} have {len(shared)} match(es) of {parents} "
                f"in common; the older route, {older.name}, takes them"
            )


def _conditions(route: Route) -> set[tuple[Parent, RouteMatch]]:
    return {(parent, match) for parent in route.parents for rule in route.rules for match in rule.matches}
