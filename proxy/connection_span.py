"""The span of a TCP connection: who called whom, how much went each way, and how it ended.

Nothing on the wire says which trace a connection belongs to, so that each sidecar's is the root of its own: the
caller's is a CLIENT span with the endpoint it reached, the called one's a SERVER span with the caller as its peer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.telemetry.spans import SERVER, TcpSpan

if TYPE_CHECKING:
    from mesh.model.name import Name
    from proxy.exchange import Exchange


def connection_span(exchange: Exchange, kind: int, own: Name, ended_s: float) -> TcpSpan:
    """What ``exchange``, a TCP connection that is over, is told as; ``own`` is the service beside this sidecar."""
    listener, downstream, attempt = exchange.listener, exchange.downstream, exchange.attempt
    cluster, rule, body, error = exchange.cluster, exchange.rule, exchange.body, exchange.error
    endpoint = None if attempt is None else attempt.endpoint.model
    if kind == SERVER:
        server, client = own, downstream.peer_address
        peer_address, peer_port = downstream.peer_address, downstream.peer_port
    else:
        server, client = listener.service or own, ""
        peer_address, peer_port = ("", 0) if endpoint is None else (endpoint.address, endpoint.port)
    return TcpSpan(
        exchange.trace.trace_id,
        exchange.plane.propagation.new_span_id(),
        exchange.started_s,
        ended_s,
        kind,
        server.name,
        listener.port,
        client,
        peer_address,
        peer_port,
        "" if error is None else error.error_type,
        exchange.flag,
        "" if kind == SERVER or cluster is None else cluster.name,
        "" if kind == SERVER or rule is None else rule.label,
        "" if kind == SERVER or endpoint is None else endpoint.id,
        0 if body is None else body.received,
        0 if attempt is None else attempt.body_bytes,
    )
