"""A service as this sidecar calls it: its endpoints as discovery tells them, its policy and its clusters.

Clusters are the subsets that routes name; they share the service's endpoints, limits and retry budget. Endpoints
keep their pools, counts and ejections for as long as discovery tells of them, whatever tables come and go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mesh.http.grpc import FAILURES
from mesh.http.message import WEBSOCKET, ResponseHead
from mesh.http.outcome import Fault, ProxyError
from mesh.model.name import Name
from mesh.model.policy import ServicePolicy
from mesh.model.service import Endpoint
from mesh.rules.balance import least_request
from mesh.rules.limits import Usage
from mesh.rules.outlier import OutlierState, record_failure, uneject_due, without_ejected
from mesh.rules.retry import RetryBudget
from proxy.tls import ClientSettings, ClientTls, KeyPair
from proxy.upstream.endpoint import UpstreamEndpoint

if TYPE_CHECKING:
    from proxy.dataplane import DataPlane

logger = logging.getLogger(__name__)

IDLE_S: Final = 60.0  # below the keep-alive of most servers and load balancers, above the pause between bursts
GATEWAY_ERRORS: Final = 500


class Cluster:
    """The endpoints of a service, or of one subset of it, that may get requests now."""

    __slots__ = ("healthy", "name", "port", "series", "service", "subset", "usable")

    def __init__(self, service: UpstreamService, subset: str | None, port: int | None) -> None:
        """Empty until ``refresh``."""
        self.service = service
        self.subset = subset
        self.port = port
        self.name = f"{service.name}:{subset}" if subset else str(service.name)
        self.healthy: list[UpstreamEndpoint] = []
        """Those that discovery calls usable, ejected or not."""
        self.usable: list[UpstreamEndpoint] = []
        self.series = service.plane.series_for(service.name, subset)

    def refresh(self) -> None:
        """Compute who may get requests, after endpoints, ejections or the policy changed."""
        known = [e for e in self.service.endpoints.values() if self.holds(e.model)]
        self.healthy = [e for e in known if e.model.health.is_usable]
        self.usable = without_ejected(self.healthy, len(known), self.service.policy.outlier_detection)

    def pick(self, random: Callable[[], float], tried: Collection[UpstreamEndpoint] = ()) -> UpstreamEndpoint | None:
        """An endpoint for an attempt, one not yet ``tried`` while another is left; None where there is none.

        An ejected endpoint that was not tried comes before a second try of one that has just failed.
        """
        if not tried:
            return least_request(self.usable, random)
        if all(endpoint in tried for endpoint in self.usable):
            untried = [e for e in self.healthy if e not in tried]
            if untried:
                return least_request(untried, random)
        return least_request(self.usable, random, tried)

    def has_other_than(self, tried: Collection[UpstreamEndpoint]) -> bool:
        """Tell whether there is an endpoint that was not tried."""
        return any(endpoint not in tried for endpoint in self.healthy)

    def holds(self, endpoint: Endpoint) -> bool:
        """Tell whether the endpoint belongs to this cluster's subset."""
        if self.subset is None:
            return True
        return endpoint.in_subset(self.subset, self.service.policy.subsets.get(self.subset))


class UpstreamService:
    """See the module. ``is_known``: None until discovery has answered, then whether it knows the service."""

    def __init__(self, plane: DataPlane, name: Name, policy: ServicePolicy | None = None) -> None:
        """A service nobody has told anything of yet."""
        self.plane = plane
        self.name = name
        self.policy = policy or ServicePolicy(name)
        self.app_protocol = self.policy.app_protocol
        """What its policy declares, else what all its endpoints say of themselves."""
        self.upgrades = upgrades_of(self.policy)
        self.tls = tls_of(self.policy)
        """How its endpoints are met with TLS; None: in clear text."""
        self.usage = Usage(self.policy.limits, plane.shares)
        self.budget = RetryBudget(self.policy.retry_budget, plane.shares)
        self.endpoints: dict[str, UpstreamEndpoint] = {}
        self.is_known: bool | None = None
        self.idle_s = IDLE_S
        self.last_used_s = plane.now_s
        self.applied_s = plane.now_s
        """When endpoints were last told."""
        self._clusters: dict[tuple[str | None, int | None], Cluster] = {}

    def cluster(self, subset: str | None = None, port: int | None = None) -> Cluster:
        """The cluster of that subset; made when first asked for."""
        cluster = self._clusters.get((subset, port))
        if cluster is None:
            cluster = self._clusters[subset, port] = Cluster(self, subset, port)
            cluster.refresh()
        return cluster

    @property
    def clusters(self) -> Iterable[Cluster]:
        """All clusters made so far."""
        return self._clusters.values()

    def set_policy(self, policy: ServicePolicy | None) -> None:
        """Take another policy; counts under way stay as they are."""
        before, self.policy = self.policy, policy or ServicePolicy(self.name)
        self.upgrades = upgrades_of(self.policy)
        if self.policy.tls != before.tls:
            self.tls = tls_of(self.policy)
            for endpoint in self.endpoints.values():
                endpoint.renew()
        self.usage.limits = self.policy.limits
        self.budget.policy = self.policy.retry_budget
        self._refresh()

    def apply(self, endpoints: Iterable[Endpoint]) -> None:
        """Take what discovery tells now: all endpoints, usable or not."""
        told = {endpoint.id: endpoint for endpoint in endpoints}
        for gone in [e for key, e in self.endpoints.items() if key not in told or _moved(e.model, told[key])]:
            del self.endpoints[gone.model.id]
            gone.close()
        for key, model in told.items():
            endpoint = self.endpoints.get(key)
            if endpoint is None:
                self.endpoints[key] = UpstreamEndpoint(self, model)
            else:
                if model.health.is_usable and not endpoint.model.health.is_usable:
                    endpoint.outlier = OutlierState()  # a check has seen it recover: no need to wait the ejection out
                endpoint.model = model
        self.is_known = True
        self.applied_s = self.plane.now_s
        self._refresh()

    def record(
        self, endpoint: UpstreamEndpoint, outcome: ResponseHead | ProxyError, grpc_status: int | None = None
    ) -> None:
        """Count an attempt's outcome for outlier detection; ``grpc_status`` is that of a gRPC call's answer."""
        if isinstance(outcome, ResponseHead):
            if not (outcome.status >= GATEWAY_ERRORS or outcome.not_sent or grpc_status in FAILURES):
                endpoint.outlier.consecutive_failures = 0
                return
        elif outcome.fault is not Fault.UPSTREAM:
            return  # of its client's making, or ours: it says nothing
        ejected = sum(e.outlier.is_ejected for e in self.endpoints.values())
        rule, now = self.policy.outlier_detection, self.plane.clock()
        # The last one of a subset would be used all the same (panic), and its ejection count against the share.
        is_last = any(cluster.usable == [endpoint] for cluster in self._clusters.values())
        if record_failure(endpoint.outlier, rule, len(self.endpoints), ejected, now, is_last=is_last):
            logger.warning("%s ejected after %d failures in a row", endpoint, endpoint.outlier.consecutive_failures)
            self.plane.on_ejection(self, endpoint)
            self._refresh()

    def connect_failed(self, endpoint: UpstreamEndpoint) -> None:
        """Tell discovery: an endpoint kept only for lack of better knowledge may now go."""
        self.plane.on_connect_failed(self.name, endpoint.model.id)

    def beat(self, now: float) -> None:
        """Once a second: let back in who was ejected long enough, close what is idle, roll the budget."""
        self.budget.tick(now)
        if self.tls is not None:
            self.tls.refresh()
        if uneject_due((e.outlier for e in self.endpoints.values()), self.policy.outlier_detection, now):
            self._refresh()
        for endpoint in self.endpoints.values():
            endpoint.close_idle(now - self.idle_s)

    def close(self) -> None:
        """Close all idle connections."""
        for endpoint in self.endpoints.values():
            endpoint.close()

    def _refresh(self) -> None:
        told = {endpoint.model.app_protocol for endpoint in self.endpoints.values()}
        self.app_protocol = self.policy.app_protocol or (told.pop() if len(told) == 1 else None)
        for endpoint in self.endpoints.values():
            endpoint.refresh()
        for cluster in self._clusters.values():
            cluster.refresh()


def upgrades_of(policy: ServicePolicy) -> frozenset[bytes]:
    """The protocols that requests may change to: WebSocket, and what the policy names."""
    return frozenset((WEBSOCKET, *(token.encode() for token in policy.upgrades)))


def tls_of(policy: ServicePolicy) -> ClientTls | None:
    """What makes TLS connections as the policy says; None where it says nothing."""
    given = policy.tls
    if given is None:
        return None
    pair = KeyPair(Path(given.certificate_file), Path(given.key_file)) if given.certificate_file else None
    ca = Path(given.ca_file) if given.ca_file else None
    return ClientTls(ClientSettings(given.server_name or policy.name.name, ca, pair))


def _moved(old: Endpoint, new: Endpoint) -> bool:
    return (old.address, old.port) != (new.address, new.port)


Services = Mapping[Name, UpstreamService]
