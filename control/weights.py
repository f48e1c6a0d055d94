"""Setting weights: which rule is meant, and what becomes of it. Pure.

``weights set reviews v1=90 v2=10`` means the one rule on ``reviews`` that carries exactly v1 and v2. Where that is
not clear, nothing is guessed: the error lists the rules and says how to name one. Naming a rule also allows adding a
subset to it; leaving one out that it carries must be forced, since its traffic would go elsewhere unsaid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from control.errors import NotFoundError, PreconditionError
from mesh.model.errors import InvalidError, Violation
from mesh.model.name import Name
from mesh.model.route import MAX_WEIGHT, BackendRef, Parent, Route, RouteKind, Rule
from mesh.model.snapshot import Snapshot
from mesh.model.validate import check_name, is_subset_name


@dataclass(frozen=True, slots=True)
class RuleOf:
    """A rule and where it stands."""

    route: Route
    index: int

    @property
    def rule(self) -> Rule:
        """The rule itself."""
        return self.route.rules[self.index]

    def __str__(self) -> str:
        """``reviews/0 (v1=90 v2=10)``, for people; a route of another kind than HTTPRoute has its kind before it."""
        weights = " ".join(f"{ref.subset or ref.service}={ref.weight}" for ref in self.rule.backend_refs)
        kind = "" if self.route.kind is RouteKind.HTTP else f"{self.route.kind.value}/"
        return f"{kind}{self.route.name}/{self.route.rule_label(self.index)} ({weights or 'no backends'})"


def rules_on(snapshot: Snapshot, service: Name | None = None) -> Iterator[RuleOf]:
    """All rules of the routes whose parents include ``service`` (None: all routes), in order."""
    for route in snapshot.routes:
        if service is None or any(parent.service == service for parent in route.parents):
            yield from (RuleOf(route, index) for index in range(len(route.rules)))


def set_weights(
    snapshot: Snapshot, service: Name, weights: Mapping[str, int], target: str = "", *, force: bool = False
) -> Route:
    """The route that carries ``weights`` for ``service``; ``target`` is ``[KIND/]ROUTE[/RULE]``, or empty.

    Raises InvalidError for weights that cannot be, NotFoundError for a target that is not there, and
    PreconditionError where it is not clear which rule is meant.
    """
    _check(service, weights)
    candidates = list(rules_on(snapshot, service))
    if target:
        candidates = _named(candidates, service, target)
    elif not candidates:
        return _new_route(snapshot, service, weights)
    exact = [c for c in candidates if _carries_exactly(c.rule, service, weights)]
    if len(exact) == 1:
        return _with_weights(exact[0], service, weights)
    listed = "; ".join(str(c) for c in exact or candidates)
    if exact:
        message = f"several rules carry {_words(weights)} of {service}: {listed}. Name one: --route [KIND/]ROUTE/RULE"
        raise PreconditionError("SEVERAL_RULES", message, {"rules": listed})
    if target and len(candidates) == 1:
        return _with_other_subsets(candidates[0], service, weights, force=force)
    message = (
        f"no rule on {service} carries exactly {_words(weights)}: {listed}. "
        "Name the rule that shall carry them with --route [KIND/]ROUTE/RULE"
    )
    raise PreconditionError("NO_SUCH_RULE", message, {"rules": listed})


def _check(service: Name, weights: Mapping[str, int]) -> None:
    problems = list(check_name(service, "service"))
    if not weights:
        problems.append(Violation("weights", "must name at least one subset"))
    for i, (subset, weight) in enumerate(weights.items()):
        if not is_subset_name(subset):
            problems.append(Violation(f"weights[{i}].subset", f"{subset!r} is not a subset's name"))
        if not 0 <= weight <= MAX_WEIGHT:
            problems.append(Violation(f"weights[{i}].weight", f"{weight} is not within 0 to {MAX_WEIGHT}"))
    if problems:
        raise InvalidError(problems)


def _named(candidates: list[RuleOf], service: Name, target: str) -> list[RuleOf]:
    """The candidates that ``target`` names: ROUTE, ROUTE/RULE, either with its namespace before it, all with a KIND.

    Routes of different kinds may share a name. A kind is read as one before it is read as a namespace.
    """
    readings: list[tuple[Name, str | None]] = []
    parts, among = target.split("/"), candidates
    kind = next((kind for kind in RouteKind if kind.value.lower() == parts[0].lower()), None)
    if kind is not None and len(parts) > 1:
        parts, among = parts[1:], [c for c in candidates if c.route.kind is kind]
    if len(parts) == 1:
        readings = [(Name(service.namespace, parts[0]), None)]
    elif len(parts) == 2:
        readings = [(Name(service.namespace, parts[0]), parts[1]), (Name(parts[0], parts[1]), None)]
    elif len(parts) == 3:
        readings = [(Name(parts[0], parts[1]), parts[2])]
    for route, label in readings:
        found = [c for c in among if c.route.name == route]
        if label is not None:
            # A rule's own name comes before an index: a rule may be named "1".
            found = [c for c in found if c.rule.name == label] or [c for c in found if str(c.index) == label]
        if found:
            return found
    known = "; ".join(str(c) for c in candidates) or "none"
    message = f"no rule {target!r} on {service}; there is: {known}"
    raise NotFoundError(message)


def _new_route(snapshot: Snapshot, service: Name, weights: Mapping[str, int]) -> Route:
    taken = {route.name for route in snapshot.routes}
    name = next((n for n in (service, Name(service.namespace, f"{service.name}-weights"[:63])) if n not in taken), None)
    if name is None:
        message = f"{service} has no route, and routes of other services have the names it would get; apply one"
        raise PreconditionError("NAME_TAKEN", message)
    refs = tuple(BackendRef(service, subset, weight) for subset, weight in weights.items())
    return Route(name, (Parent(service),), (Rule(backend_refs=refs),))


def _carries_exactly(rule: Rule, service: Name, weights: Mapping[str, int]) -> bool:
    refs = [(ref.service, ref.subset) for ref in rule.backend_refs]
    return len(refs) == len(weights) and set(refs) == {(service, subset) for subset in weights}


def _with_weights(where: RuleOf, service: Name, weights: Mapping[str, int]) -> Route:
    refs = tuple(
        replace(ref, weight=weights[ref.subset])
        if ref.service == service and ref.subset is not None and ref.subset in weights
        else ref
        for ref in where.rule.backend_refs
    )
    return _with_refs(where, refs)


def _with_other_subsets(where: RuleOf, service: Name, weights: Mapping[str, int], *, force: bool) -> Route:
    """The rule with exactly the subsets of ``weights``: those it carries in their place, new ones after them."""
    kept = [ref for ref in where.rule.backend_refs if ref.service == service and ref.subset in weights]
    dropped = [str(ref) for ref in where.rule.backend_refs if ref not in kept]
    if dropped and not force:
        message = (
            f"rule {where} also carries {', '.join(dropped)}; name every subset (weight 0 sends it nothing), "
            "or take the others out with --force"
        )
        raise PreconditionError("OTHER_BACKENDS", message, {"backends": ", ".join(dropped)})
    first: dict[str, BackendRef] = {}
    for ref in kept:
        first.setdefault(ref.subset or "", ref)
    new = [BackendRef(service, subset) for subset in weights if subset not in first]
    return _with_refs(where, tuple(replace(r, weight=weights[r.subset or ""]) for r in [*first.values(), *new]))


def _with_refs(where: RuleOf, refs: tuple[BackendRef, ...]) -> Route:
    rules = list(where.route.rules)
    rules[where.index] = replace(where.rule, backend_refs=refs)
    return replace(where.route, rules=tuple(rules))


def _words(weights: Mapping[str, int]) -> str:
    return " and ".join(weights)
