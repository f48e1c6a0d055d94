"""Why a request goes where it goes: the same candidates, in the same order, with each one's verdict in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from mesh.http.message import RequestHead
from mesh.rules.match import Matcher, comparable_path

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Verdict(Generic[T]):
    """What became of one candidate. ``reason`` is None for the one that takes the request."""

    route: str
    rule: str
    match: str
    reason: str | None
    value: T


def explain_match(matcher: Matcher[T], request: RequestHead) -> list[Verdict[T]]:
    """A verdict for every candidate, in order of precedence; at most one has no reason against it."""
    path = comparable_path(request.target)
    verdicts: list[Verdict[T]] = []
    winner: str | None = None
    for candidate in matcher.candidates:
        reason = candidate.refusal(request, path)
        name = f"{candidate.route.name}/{candidate.route.rule_label(candidate.rule_index)}"
        if reason is None:
            if winner is None:
                winner = name
            else:
                reason = f"would match, but {winner} comes before it (Gateway API precedence)"
        match = candidate.match
        call = match.grpc
        shown = " ".join(
            [
                *([match.method] if match.method else []),
                f"{match.path.type.value} {match.path.value}"
                if call is None
                else f"gRPC {call.type.value} {call.service or '*'}/{call.method or '*'}",
                *(f"header {h.name} {h.type.value} {h.value!r}" for h in match.headers),
                *(f"query {q.name} {q.type.value} {q.value!r}" for q in match.query_params),
            ]
        )
        route = candidate.route
        verdicts.append(
            Verdict(str(route.name), route.rule_label(candidate.rule_index), shown, reason, candidate.value)
        )
    return verdicts
