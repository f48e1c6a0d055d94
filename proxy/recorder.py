"""What is told of every exchange once it is over: metrics always, a span where the trace is sampled, a log line."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from mesh.http.outcome import ProxyError
from mesh.model.name import Name
from mesh.telemetry.metrics import RequestSeries

if TYPE_CHECKING:
    from proxy.attempt import Attempt
    from proxy.exchange import Exchange
    from proxy.http1.downstream import Http1Downstream
    from proxy.listener import Listener
    from proxy.upstream.endpoint import UpstreamEndpoint
    from proxy.upstream.service import Cluster, UpstreamService


class Recorder:
    """See the module. Its methods are called on the request path and only add to cells and lists."""

    def __init__(self, service: Name) -> None:
        """``service`` is the one beside this sidecar."""
        self.service = service
        self.series: dict[tuple[Name | None, str | None], RequestSeries] = {}
        self.retries: Counter[str] = Counter()
        self.ejections = 0
        self.budget_exhausted = 0

    def series_for(self, service: Name | None, subset: str | None) -> RequestSeries:
        """The cells of requests to that service; the same each time."""
        series = self.series.get((service, subset))
        if series is None:
            series = self.series[service, subset] = RequestSeries({"destination": str(service), "subset": subset or ""})
        return series

    def record(self, exchange: Exchange) -> None:
        """An exchange is over."""
        cluster, attempt, body = exchange.cluster, exchange.attempt, exchange.body
        series = cluster.series if cluster is not None else self.series_for(None, None)
        duration_ms = (time.monotonic() - exchange.started_s) * 1000.0
        series.record(
            exchange.status,
            exchange.flag,
            duration_ms,
            0 if body is None else body.received,
            0 if attempt is None else attempt.body_bytes,
        )

    def record_unread(self, listener: Listener, connection: Http1Downstream, error: ProxyError) -> None:
        """A request that could not be read was refused."""
        self.series_for(None, None).record(error.http_status, error.flag, 0.0, 0, 0)

    def on_attempt(self, exchange: Exchange, attempt: Attempt, retry_reason: str | None) -> None:
        """An attempt has an outcome; with a reason, another one follows."""
        if retry_reason is not None:
            self.retries[retry_reason] += 1

    def on_ejection(self, service: UpstreamService, endpoint: UpstreamEndpoint) -> None:
        """Outlier detection took an endpoint out."""
        self.ejections += 1

    def on_budget_exhausted(self, cluster: Cluster) -> None:
        """A retry was not made, for the budget."""
        self.budget_exhausted += 1
