"""What a request, a TCP connection or a tunnel would meet here, and what a real request met.

That is ``mesh why``, and ``x-mesh-explain``. Both ask the table that routes, so the answer cannot differ from what
happens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesh.http.connect import METHOD as CONNECT
from mesh.http.message import RequestHead
from mesh.http.outcome import ProxyError
from mesh.model.name import Name
from mesh.model.route import RouteKind
from mesh.rules.explain import Verdict, explain_match

if TYPE_CHECKING:
    from proxy.clusters import States
    from proxy.config import Address
    from proxy.dataplane import DataPlane
    from proxy.exchange import Exchange
    from proxy.listener import OutboundListener
    from proxy.table import CompiledRule, ServiceEntry
    from proxy.upstream.service import Cluster

MAX_RECORD_BYTES = 4096  # it travels as a header; most clients take 8 KiB in all
MAY_GET_IT = "may get it"
TCP_METHOD = "TCP"
"""What stands for a method where a connection is asked for."""
_MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class LocalPort:
    """A port that this sidecar keeps for one service."""

    address: Address
    listener: OutboundListener


def why(plane: DataPlane, request: RequestHead) -> dict[str, Any]:
    """What would become of ``request`` on the outbound listener now, without sending anything."""
    asked = {
        "method": request.method.decode("latin-1"),
        "authority": request.authority.decode("latin-1"),
        "target": request.target.decode("latin-1"),
    }
    answer, found = _looked_up(plane, asked, request.authority, "request")
    if found is None:
        return answer
    entry, port = found
    verdicts = _verdicts(entry, request, port)
    rule = (
        entry.passthrough
        if entry.matcher(port) is None
        else next((v.value for v in verdicts if v.reason is None), None)
    )
    answer["candidates"] = [_shown(v) for v in verdicts]
    if rule is None:
        answer["outcome"] = "404 NR: the service has routes, and none of their rules takes this request"
        return answer
    answer["route"] = rule.label
    answer["backends"] = _backends(rule)
    answer["outcome"] = _outcome_at(rule)
    answer["retry"] = {
        "attempts": rule.retry.attempts,
        "codes": sorted(rule.retry.codes),
        "for": "every method" if rule.retry.is_explicit else "idempotent methods",
        "besides": "unsent requests of every method; resets of idempotent ones",
    }
    answer["timeouts"] = {"request_s": rule.timeout_s or None, "backend_request_s": rule.per_try_s or None}
    return answer


def _looked_up(
    plane: DataPlane, asked: dict[str, str], authority: bytes, what: str
) -> tuple[dict[str, Any], tuple[ServiceEntry, int | None] | None]:
    """The beginning of an answer, and the service an authority names; None where the outcome is known already."""
    if plane.table is None:
        return {"request": asked, "outcome": "503 NR: this sidecar never had a routing table"}, None
    answer: dict[str, Any] = {"request": asked, "table": str(plane.table.id)}
    try:
        found = plane.find_entry(authority)
    except ProxyError as error:
        answer["outcome"] = outcome_of(error)
        return answer, None
    if isinstance(found, Name):
        answer["outcome"] = f"{found} is not known here yet: a first {what} looks it up"
        return answer, None
    answer["service"] = str(found[0].name)
    return answer, found


def why_tunnel(listener: OutboundListener, authority: bytes) -> dict[str, Any]:
    """What would become of a CONNECT to ``authority`` (``host:port``) on the outbound listener now."""
    plane = listener.plane
    asked = {"method": CONNECT.decode(), "authority": authority.decode("latin-1"), "target": ""}
    answer: dict[str, Any] = {"request": asked}
    if plane.table is not None:
        answer["table"] = str(plane.table.id)
    try:
        rule = listener.route_connect(authority)
    except ProxyError as error:
        answer["outcome"] = outcome_of(error)
        return answer
    if isinstance(rule, Name):
        answer["outcome"] = f"{rule} is not known here yet: a first tunnel looks it up"
        return answer
    answer["route"] = rule.label
    answer["backends"] = _backends(rule)
    answer["outcome"] = _outcome_at(rule)
    return answer


def why_connection(plane: DataPlane, authority: bytes, port: LocalPort | None) -> dict[str, Any]:
    """What would become of a TCP connection to that service now; ``port`` is what the sidecar keeps for it."""
    asked = {"method": TCP_METHOD, "authority": authority.decode("latin-1"), "target": ""}
    answer, found = _looked_up(plane, asked, authority, "connection")
    if found is None:
        return answer
    entry, _ = found
    rule = entry.connection_rule()
    answer["local_port"] = None if port is None else str(port.address)
    answer["candidates"] = _connection_verdicts(entry)
    answer["route"] = rule.label
    answer["backends"] = _backends(rule)
    answer["outcome"] = _refusal_at(port, entry.name) or _outcome_at(rule)
    answer["retry"] = {
        "attempts": rule.retry.attempts,
        "codes": [],
        "for": "every connection",
        "besides": "only while no connection to an endpoint could be made",
    }
    return answer


def _refusal_at(port: LocalPort | None, service: Name) -> str | None:
    """Why no connection to the service could even begin here."""
    if port is None:
        return f"nowhere to connect to: this sidecar has no local port for {service} (--upstream {service}=PORT/tcp)"
    if port.listener.takes_connections or port.listener.peeks:
        return None
    return f"400: {port.address} takes HTTP only; {port.listener.foreign_advice}"


def _connection_verdicts(entry: ServiceEntry) -> list[dict[str, str]]:
    """The service's TCPRoutes, of which the first takes all; then its other routes, whose rules take requests."""
    told = [
        {
            "rule": rule.label,
            "match": "every connection",
            "verdict": "takes it"
            if rule is entry.connections
            else f"would take it, but {entry.tcp_rules[0].label} comes before it (the oldest TCPRoute holds)",
        }
        for rule in entry.tcp_rules
    ]
    others = {route.name: route.kind.value for rules in entry.routes for route, _, _ in rules}
    return told + [
        {"rule": str(name), "match": "requests", "verdict": f"takes no connections: it is of kind {kind}"}
        for name, kind in others.items()
        if kind != RouteKind.TCP.value
    ]


def outcome_of(error: ProxyError) -> str:
    """What a request would be answered: status, response flag and why."""
    return f"{error.http_status} {error.flag}: {error.message}"


def _outcome_at(rule: CompiledRule) -> str:
    """What becomes of what the rule takes: all is forwarded, or the shares that are not."""
    if rule.split.is_drained:
        return "503 UH: every backend has weight 0"
    if not rule.backends:
        return "500 NC: the rule has no backendRefs"
    total = sum(b.ref.weight for b in rule.backends)
    refused: dict[str, float] = {}
    for backend in rule.backends:
        if backend.ref.weight and (answer := _refusal_of(backend.cluster)) is not None:
            refused[answer] = refused.get(answer, 0.0) + 100.0 * backend.ref.weight / total
    if not refused:
        return "forwarded"
    if len(refused) == 1 and sum(refused.values()) > 99.999:
        return next(iter(refused))
    shares = [f"{share:.3g} % {answer}" for answer, share in refused.items()]
    return "; ".join([f"{100.0 - sum(refused.values()):.3g} % forwarded", *shares])


def _refusal_of(cluster: Cluster) -> str | None:
    if cluster.service.is_known is False:
        return f"500 NC: discovery has never told of {cluster.name}"
    if cluster.service.is_known and not cluster.usable:
        return f"503 UH: {cluster.name} has no healthy endpoint"
    return None


def add_workers(answer: dict[str, Any], told: Sequence[States], workers: int) -> None:
    """Put into an answer of ``why`` what the workers alone know: requests under way, and what they ejected."""
    for backend in answer.get("backends", ()):
        cluster = backend["cluster"]
        parts = [part for states in told for part in states.values() if cluster in part.usable]
        for endpoint in backend["endpoints"]:
            key = endpoint["id"]
            found = [(part, state) for part in parts if (state := part.endpoints.get(key)) is not None]
            endpoint["active"] = sum(state.active for _, state in found)
            out = sum(state.is_ejected and key not in part.usable[cluster] for part, state in found)
            if out and endpoint["verdict"] == MAY_GET_IT:
                endpoint["verdict"] = f"ejected by {out} of {workers} workers"


def decision_record(plane: DataPlane, exchange: Exchange) -> bytes:
    """What a real request met, as one line of JSON that fits a header."""
    rule, cluster, attempt = exchange.rule, exchange.cluster, exchange.attempt
    record: dict[str, Any] = {"table": str(plane.table.id) if plane.table else "none"}
    if rule is not None:
        record["route"] = rule.label
        record["backends"] = {b.cluster.name: b.ref.weight for b in rule.backends}
    if cluster is not None:
        record["cluster"] = cluster.name
        record["usable"] = len(cluster.usable)
        record["left_out"] = [
            {"endpoint": e.model.id, "why": reason}
            for e in cluster.service.endpoints.values()
            if (reason := _left_out(cluster, e.model.id)) is not None
        ][:_MAX_SHOWN]
    if attempt is not None:
        record["endpoint"] = f"{attempt.endpoint.model.id} {attempt.endpoint.address}"
    record["retries"] = exchange.retries
    if exchange.error is not None:
        record["error"] = exchange.error.message
    if rule is not None and rule.route is not None and plane.table is not None and cluster is not None:
        parent = rule.route.parents[0].service
        entry = plane.table.entries.get(parent)
        if entry is not None:
            record["passed_over"] = [_shown(v) for v in _verdicts(entry, exchange.request, None) if v.reason][
                :_MAX_SHOWN
            ]
    text = json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode()
    if len(text) > MAX_RECORD_BYTES:
        record.pop("passed_over", None)
        record["left_out"] = []
        text = json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode()
    return text[:MAX_RECORD_BYTES]


def _verdicts(entry: ServiceEntry, request: RequestHead, port: int | None) -> list[Verdict[CompiledRule]]:
    matcher = entry.matcher(port)
    return [] if matcher is None else explain_match(matcher, request)


def _shown(verdict: Verdict[CompiledRule]) -> dict[str, str]:
    return {
        "rule": f"{verdict.route}/{verdict.rule}",
        "match": verdict.match,
        "verdict": "takes it" if verdict.reason is None else verdict.reason,
    }


def _backends(rule: CompiledRule) -> list[dict[str, Any]]:
    total = sum(b.ref.weight for b in rule.backends)
    return [
        {
            "cluster": b.cluster.name,
            "weight": b.ref.weight,
            "share_percent": round(100.0 * b.ref.weight / total, 3) if total else 0.0,
            "endpoints": [
                {
                    "id": e.model.id,
                    "address": e.address,
                    "active": e.active,
                    "verdict": _left_out(b.cluster, e.model.id) or MAY_GET_IT,
                }
                for e in b.cluster.service.endpoints.values()
            ],
        }
        for b in rule.backends
    ]


def _left_out(cluster: Cluster, endpoint_id: str) -> str | None:
    endpoint = cluster.service.endpoints[endpoint_id]
    if endpoint in cluster.usable:
        return None
    if not cluster.holds(endpoint.model):
        return f"not in subset {cluster.subset}"
    if not endpoint.model.health.is_usable:
        return f"health is {endpoint.model.health.value}"
    left_s = max(0.0, endpoint.outlier.ejected_until_s - endpoint.service.plane.clock())
    return f"ejected for {left_s:.0f} s more, for failures in a row"
