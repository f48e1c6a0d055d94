"""What is told of every exchange once it is over: metrics always, spans where the trace is sampled, a log line.

Spans: an inbound exchange is one SERVER span. An outbound one is a CLIENT span for each attempt, told when the
attempt's answer is complete; an exchange that was refused before it had an endpoint is one CLIENT span too, since a
call is what its caller meant to make. A TCP connection is one span of either kind, where that was asked for, told
when it closes. Requests that could not be read belong to no trace, and the sidecar's own
health answers to nobody: neither makes a span.
"""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from mesh.http.headers import Fields
from mesh.http.message import TCP
from mesh.http.outcome import ClientGone, ProxyError
from mesh.model.name import Name
from mesh.telemetry.accesslog import Entry
from mesh.telemetry.metrics import OTHER, CellBudget, RequestCell, RequestSeries
from mesh.telemetry.names import ISTIO_LABELS
from mesh.telemetry.spans import CLIENT, MAX_FIELD_BYTES, MAX_TARGET_BYTES, SERVER, HttpSpan, Span
from proxy.connection_span import connection_span

if TYPE_CHECKING:
    from proxy.attempt import Attempt
    from proxy.exchange import Exchange
    from proxy.listener import Listener, Refusable
    from proxy.upstream.endpoint import UpstreamEndpoint
    from proxy.upstream.service import Cluster, UpstreamService

LOCAL: Final = "(local)"  # no DNS label: the local program is no service of the mesh's names
INBOUND: Final = "inbound"
GRPC: Final = "grpc"  # Istio's request_protocol
TCP_PROTOCOL: Final = "tcp"
OPENED: Final = -1  # what stands where a connection has no status
CLOSED: Final = 0
UNKNOWN: Final = "unknown"  # Istio's word for an end it knows nothing of
MAX_SERIES: Final = 1000
MAX_STATE_BYTES: Final = 512  # to be carried at the least (W3C Trace Context §3.3.1.5); a cut one would be malformed

_TOLD: Final = b"-"  # an attempt's span id once its span is told
_SCHEME: Final = "http"
# NamedTuple's own constructor takes 0.5 µs more, to look at names that nobody gives it.
_span = partial(tuple.__new__, HttpSpan)


class SpanSink(Protocol):
    """Where spans go."""

    def add(self, span: Span) -> None:
        """Take one; never blocks, never raises."""


class LogSink(Protocol):
    """Where access log entries go."""

    def add(self, entry: Entry) -> None:
        """Take one; never blocks, never raises."""


class Recorder:
    """See the module. Its methods are called on the request path and only add to cells and lists."""

    def __init__(
        self,
        service: Name,
        *,
        version: str = "",
        spans: SpanSink | None = None,
        log: LogSink | None = None,
        log_mode: str = "all",
        traces_tcp: bool = False,
    ) -> None:
        """``service`` is the one beside this sidecar. ``log_mode``: all, or sampled (sampled traces and errors).

        ``traces_tcp``: TCP connections make spans too.
        """
        self.service = service
        self.version = version
        self.budget = CellBudget()
        self.series: dict[tuple[Name | None, str | None, str], RequestSeries] = {}
        self.retries: Counter[str] = Counter()
        self.ejections_of: Counter[str] = Counter()
        self.budget_exhausted_of: Counter[str] = Counter()
        self.health_answers = 0
        self._add_span = spans.add if spans is not None else None
        self._traces_tcp = traces_tcp
        self._told_bytes: dict[Exchange, tuple[int, int]] = {}
        """Of TCP connections that are open: what of their bytes is counted, received and sent."""
        self._add_line = log.add if log is not None else None
        self.times_answers = log is not None
        """Somebody wants to know when an attempt's answer came."""
        self._logs_all = log_mode == "all"
        self._other = RequestSeries(dict.fromkeys(ISTIO_LABELS, OTHER), self.budget)

    # --- what others read -------------------------------------------------------------------------------------------

    @property
    def ejections(self) -> int:
        """Endpoints taken out so far."""
        return self.ejections_of.total()

    @property
    def budget_exhausted(self) -> int:
        """Retries not made so far, for the budget."""
        return self.budget_exhausted_of.total()

    @property
    def is_capped(self) -> bool:
        """Some requests are counted in the series ``other``."""
        return self.budget.is_exhausted

    def cells(self) -> list[tuple[RequestSeries, int, str, RequestCell]]:
        """All cells with their status and flag, but for the one of ``other``."""
        other = self.budget.other
        return [
            (series, status, flag, cell)
            for series in self.series.values()
            for (status, flag), cell in series.cells.items()
            if cell is not other
        ]

    def series_for(self, service: Name | None, subset: str | None, protocol: str = "http") -> RequestSeries:
        """The cells of requests to that service; the same each time. None: it was refused before it had one."""
        key = (service, subset, protocol)
        series = self.series.get(key)
        if series is None:
            if len(self.series) >= MAX_SERIES:
                self.budget.other = self.budget.other or RequestCell()
                return _Beyond(self._other.labels, self.budget)
            series = self.series[key] = RequestSeries(self._labels(service, subset, protocol), self.budget)
        return series

    # --- the request path -------------------------------------------------------------------------------------------

    def record(self, exchange: Exchange) -> None:
        """An exchange is over."""
        ended_s = time.monotonic()
        if exchange.request.version == TCP:
            self._record_connection(exchange, ended_s)
            return
        cluster, attempt, body, status = exchange.cluster, exchange.attempt, exchange.body, exchange.status
        if exchange.grpc_status is not None:
            series, status = self._series(exchange, GRPC), exchange.grpc_status
        elif cluster is not None:
            series = cluster.series
        elif exchange.error is None:
            self.health_answers += 1
            return
        else:
            series = self.series_for(None, INBOUND if exchange.listener.name == INBOUND else None)
        series.record(
            status,
            exchange.flag,
            (ended_s - exchange.started_s) * 1000.0,
            0 if body is None else body.received,
            0 if attempt is None else attempt.body_bytes,
        )
        if exchange.trace.sampled and self._add_span is not None:
            if exchange.listener.name == INBOUND:
                self._tell_server(exchange, ended_s)
            elif attempt is None or attempt.span_id is not _TOLD:
                self._tell_client(exchange, attempt, exchange.error, "", ended_s)
        if self._add_line is not None and (
            self._logs_all or exchange.trace.sampled or exchange.error is not None or exchange.status >= 500
        ):
            self._log(exchange, ended_s)

    def on_retry(self, exchange: Exchange, attempt: Attempt, reason: str) -> None:
        """An attempt has an outcome, an answer's head or an error, and another one follows."""
        self.retries[reason] += 1
        is_told = exchange.trace.sampled and exchange.listener.name != INBOUND and exchange.request.version != TCP
        if is_told and self._add_span is not None:
            self._tell_client(exchange, attempt, attempt.error, reason, time.monotonic())
        exchange.resends += 1

    def on_connection(self, exchange: Exchange) -> None:
        """A TCP connection has reached an endpoint."""
        self._series(exchange, TCP_PROTOCOL).record(OPENED, "", 0.0, 0, 0)

    def on_progress(self, exchange: Exchange) -> None:
        """A TCP connection may have carried something since this was called last."""
        body, attempt = exchange.body, exchange.attempt
        if body is None or attempt is None:
            return
        before, now = self._told_bytes.get(exchange, (0, 0)), (body.received, attempt.body_bytes)
        if now != before:
            cell = self._series(exchange, TCP_PROTOCOL).cell(CLOSED, "")
            cell.request_bytes += now[0] - before[0]
            cell.response_bytes += now[1] - before[1]
            self._told_bytes[exchange] = now

    def record_unread(self, listener: Listener, connection: Refusable, error: ProxyError) -> None:
        """A request that could not be read was refused."""
        series = self.series_for(None, INBOUND if listener.name == INBOUND else None)
        series.record(error.http_status, error.flag, 0.0, 0, 0)
        if self._add_line is not None:
            now = time.monotonic()
            self._add_line(
                Entry(now, now, 0.0, b"-", b"-", b"", error.http_status, error.flag, 0, 0, None, None, b"", b"", "",
                      listener.name, f"{connection.peer_address}:{connection.peer_port}", b"", "", "", 0, None,
                      error.message)
            )  # fmt: skip

    def on_ejection(self, service: UpstreamService, endpoint: UpstreamEndpoint) -> None:
        """Outlier detection took an endpoint out."""
        self.ejections_of[str(service.name)] += 1

    def on_budget_exhausted(self, cluster: Cluster) -> None:
        """A retry was not made, for the budget."""
        self.budget_exhausted_of[str(cluster.service.name)] += 1

    # --- inside -----------------------------------------------------------------------------------------------------

    def _record_connection(self, exchange: Exchange, ended_s: float) -> None:
        """A TCP connection is over."""
        attempt, body = exchange.attempt, exchange.body
        received, sent = self._told_bytes.pop(exchange, (0, 0)) if self._told_bytes else (0, 0)
        self._series(exchange, TCP_PROTOCOL).record(
            CLOSED,
            exchange.flag,
            (ended_s - exchange.started_s) * 1000.0,
            0 if body is None else body.received - received,
            0 if attempt is None else attempt.body_bytes - sent,
        )
        is_sampled = self._traces_tcp and exchange.trace.sampled
        if is_sampled and self._add_span is not None:
            kind = SERVER if exchange.listener.name == INBOUND else CLIENT
            self._add_span(connection_span(exchange, kind, self.service, ended_s))
        if self._add_line is not None and (self._logs_all or is_sampled or exchange.error is not None):
            self._log(exchange, ended_s)

    def _series(self, exchange: Exchange, protocol: str) -> RequestSeries:
        """Of gRPC calls, whose cells' statuses are gRPC's, or of TCP connections, whose are OPENED and CLOSED."""
        cluster = exchange.cluster
        if cluster is None:
            return self.series_for(None, INBOUND if exchange.listener.name == INBOUND else None, protocol)
        return self.series_for(cluster.service.name, cluster.subset, protocol)

    def _tell_server(self, exchange: Exchange, ended_s: float) -> None:
        assert self._add_span is not None  # noqa: S101 - the caller has looked
        request, trace, error, downstream = exchange.request, exchange.trace, exchange.error, exchange.downstream
        agent, state = _told_by_client(request.fields)
        forwarded = request.known.get(b"x-forwarded-for")
        self._add_span(
            _span(
                (
                    trace.trace_id,
                    exchange.span_id or exchange.plane.propagation.new_span_id(),
                    trace.parent_id,
                    state,
                    exchange.started_s,
                    ended_s,
                    request.target[:MAX_TARGET_BYTES],
                    request.authority[:MAX_FIELD_BYTES],
                    agent,
                    _SCHEME,
                    SERVER,
                    request.method,
                    request.version,
                    0 if error is not None and error.__class__ is ClientGone else exchange.status,
                    -1 if exchange.grpc_status is None else exchange.grpc_status,
                    "" if error is None else error.error_type,
                    exchange.flag,
                    "",
                    "",
                    0,
                    "",
                    "",
                    downstream.peer_address,
                    downstream.peer_port,
                    downstream.peer_address.encode()
                    if forwarded is None
                    else forwarded[:MAX_FIELD_BYTES].partition(b",")[0].strip(),
                )
            )
        )

    def _tell_client(
        self, exchange: Exchange, attempt: Attempt | None, error: ProxyError | None, retry_reason: str, ended_s: float
    ) -> None:
        """The span of an attempt, or (without one) of a call that came to none."""
        assert self._add_span is not None  # noqa: S101 - the caller has looked
        request, trace, cluster, rule = exchange.request, exchange.trace, exchange.cluster, exchange.rule
        agent, state = _told_by_client(request.fields)
        head = attempt.head if attempt is not None else None
        if head is not None:
            status = head.status
        elif error is None or error.__class__ is ClientGone:
            status = 0
        else:
            status = error.http_status if attempt is None else 0  # nobody answered the attempt; the mesh its caller
        endpoint = attempt.endpoint.model if attempt is not None else None
        self._add_span(
            _span(
                (
                    trace.trace_id,
                    (attempt.span_id if attempt is not None else b"") or exchange.plane.propagation.new_span_id(),
                    trace.parent_id,
                    state,
                    exchange.started_s if attempt is None else attempt.started_s,
                    ended_s,
                    request.target[:MAX_TARGET_BYTES],
                    request.authority[:MAX_FIELD_BYTES],
                    agent,
                    _SCHEME,
                    CLIENT,
                    request.method,
                    request.version if attempt is None else b"2" if attempt.http2 else b"1.1",
                    status,
                    _grpc_status(exchange, attempt),
                    "" if error is None else error.error_type,
                    exchange.flag or ("" if error is None else error.flag),
                    "" if cluster is None else cluster.name,
                    "" if rule is None else rule.label,
                    exchange.resends,
                    retry_reason,
                    "" if endpoint is None else endpoint.id,
                    "" if endpoint is None else endpoint.address,
                    0 if endpoint is None else endpoint.port,
                    b"",
                )
            )
        )
        if attempt is not None:
            attempt.span_id = _TOLD

    def _log(self, exchange: Exchange, ended_s: float) -> None:
        assert self._add_line is not None  # noqa: S101 - the caller has looked
        request, attempt, body, downstream = exchange.request, exchange.attempt, exchange.body, exchange.downstream
        agent = None
        for line in request.fields.lines:
            if line[10:11] == b":" and line[:10].lower() == b"user-agent":
                agent = line[11:].strip()[:MAX_FIELD_BYTES]
                break
        forwarded = request.known.get(b"x-forwarded-for")
        cluster, rule, error = exchange.cluster, exchange.rule, exchange.error
        is_request = request.version != TCP
        entry: Any = (  # a tuple with an Entry's fields is all that is asked for, and a third of an Entry's price
            exchange.started_s,
            ended_s,
            attempt.answered_s - attempt.started_s if attempt is not None and attempt.head is not None else 0.0,
            request.method,
            request.target[:MAX_TARGET_BYTES],
            request.version if is_request else b"",
            exchange.status if is_request else 0,  # as Envoy's tcp_proxy: nobody answered in a protocol that we know
            exchange.flag,
            0 if body is None else body.received,
            0 if attempt is None else attempt.body_bytes,
            None if forwarded is None else forwarded[:MAX_FIELD_BYTES],
            agent,
            exchange.request_id[:MAX_FIELD_BYTES],
            request.authority[:MAX_FIELD_BYTES],
            "" if attempt is None else attempt.endpoint.address,
            exchange.listener.name,
            downstream.peer_address,
            exchange.trace.trace_id,
            "" if rule is None else rule.label,
            "" if cluster is None else cluster.name,
            exchange.retries,
            exchange.grpc_status,
            "" if error is None else error.message,
        )
        self._add_line(entry)

    def _labels(self, service: Name | None, subset: str | None, protocol: str) -> dict[str, str]:
        """Istio's labels, all but those of the answer. Without identities the caller of an inbound call is unknown."""
        own = _end(self.service, self.version)
        nobody = dict.fromkeys(own, UNKNOWN)
        if (service is not None and service.namespace == LOCAL) or (service is None and subset == INBOUND):
            source, destination, reporter = nobody, own, "destination"
            service = self.service
        else:
            source, reporter = own, "source"
            destination = nobody if service is None else _end(service, subset or "")
        labels = {"reporter": reporter}
        labels |= {f"source_{key}": value for key, value in source.items()}
        labels |= {f"destination_{key}": value for key, value in destination.items()}
        labels["destination_service"] = UNKNOWN if service is None else f"{service.name}.{service.namespace}"
        labels["destination_service_name"] = UNKNOWN if service is None else service.name
        labels["destination_service_namespace"] = UNKNOWN if service is None else service.namespace
        labels["request_protocol"] = protocol
        # Istio's words: the source cannot tell, the destination saw no TLS.
        labels["connection_security_policy"] = UNKNOWN if reporter == "source" else "none"
        return labels


def _grpc_status(exchange: Exchange, attempt: Attempt | None) -> int:
    """Of an attempt, for its span; -1 where it was no gRPC call, or nobody answered."""
    if exchange.request.grpc is None:
        return -1
    if exchange.grpc_status is not None:
        return exchange.grpc_status
    status = None if attempt is None else attempt.grpc_status
    return -1 if status is None else status


class _Beyond(RequestSeries):
    """Counts everything in the cell of ``other``: for services beyond MAX_SERIES."""

    __slots__ = ()

    def record(self, status: int, flag: str, duration_ms: float, request_bytes: int, response_bytes: int) -> None:
        """See RequestSeries."""
        assert self._budget.other is not None  # noqa: S101 - made before the first of these
        self.cells = {(0, ""): self._budget.other}
        super().record(0, "", duration_ms, request_bytes, response_bytes)


def _end(service: Name, version: str) -> dict[str, str]:
    """One end of a call in Istio's words."""
    return {
        "workload": f"{service.name}-{version}" if version else service.name,
        "workload_namespace": service.namespace,
        "principal": UNKNOWN,
        "app": service.name,
        "version": version or UNKNOWN,
        "cluster": UNKNOWN,
        "canonical_service": service.name,
        "canonical_revision": version or "latest",
    }


def _told_by_client(fields: Fields) -> tuple[bytes, bytes]:
    """User agent and trace state. Both names have ten letters, and lines are cheaper than making pairs of them all."""
    agent = state = b""
    for line in fields.lines:
        if line[10:11] == b":":
            name = line[:10].lower()
            if name == b"user-agent":
                agent = line[11:].strip()[:MAX_FIELD_BYTES]
            elif name == b"tracestate":
                value = line[11:].strip()
                state = b"%b,%b" % (state, value) if state else value
    return agent, state if len(state) <= MAX_STATE_BYTES else b""
