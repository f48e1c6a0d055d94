"""What /clusters tells: services and endpoints as discovery has them, and how calling them goes in this sidecar.

How it goes is known where the traffic is. A sidecar of one process reads it from its own plane; with workers each
tells its part when the page is asked for, and the page shows the sums. Ejections are every worker's own, so an
endpoint may be out for some callers and in for others: ``ejected_by`` says for how many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mesh.model.name import Name

if TYPE_CHECKING:
    from mesh.discovery.catalog import ServiceReport
    from proxy.upstream.endpoint import UpstreamEndpoint
    from proxy.upstream.service import UpstreamService
    from proxy.worker_pool import WorkerPool


class EndpointState(NamedTuple):
    """How one process fares with an endpoint."""

    is_ejected: bool = False
    failures_in_a_row: int = 0
    active: int = 0
    requests: int = 0
    connections: int = 0


class ServiceState(NamedTuple):
    """How one process fares with a service; ``usable`` holds endpoint ids by cluster, ``endpoints`` states by id."""

    requests_in_flight: int
    pending: int
    connections: int
    usable: dict[str, list[str]]
    endpoints: dict[str, EndpointState]


States = dict[Name, ServiceState]


async def states(services: Iterable[UpstreamService]) -> States:
    """How this process fares with all of them; between two services the loop runs, since it may carry traffic."""
    found: States = {}
    for service in tuple(services):
        found[service.name] = _state(service)
        await asyncio.sleep(0)
    return found


async def clusters_page(
    services: Mapping[Name, UpstreamService], reports: Mapping[Name, ServiceReport], pool: WorkerPool | None
) -> list[dict[str, Any]]:
    """The page. ``services`` are this process's own, ``reports`` what discovery says of them.

    Workers that did not answer in time are named, and their part is missing from the sums.
    """
    answers: list[States]
    silent: list[str] = []
    if pool is None:
        answers, workers = [await states(services.values())], 0
    else:
        answers, silent = await pool.service_states()
        workers = len(pool.names)
    shown = []
    for name, service in sorted(services.items(), key=lambda item: str(item[0])):
        parts = [answer[name] for answer in answers if name in answer]
        report = reports.get(name)
        page: dict[str, Any] = {
            "service": str(name),
            "source": report.source if report else None,
            "age_s": report.age_s if report else None,
            "source_error": report.error if report else None,
            "requests_in_flight": sum(p.requests_in_flight for p in parts),
            "pending": sum(p.pending for p in parts),
            "connections": sum(p.connections for p in parts),
            "clusters": _clusters(service, parts),
            "endpoints": [_endpoint(e, parts, workers) for e in service.endpoints.values()],
        }
        if workers:
            page["workers_without_answer"] = silent
        shown.append(page)
    return shown


def _state(service: UpstreamService) -> ServiceState:
    usage = service.usage
    return ServiceState(
        usage.requests,
        usage.pending,
        usage.connections,
        {cluster.name: [e.model.id for e in cluster.usable] for cluster in service.clusters},
        {
            key: EndpointState(
                e.outlier.is_ejected, e.outlier.consecutive_failures, e.active, e.requests, len(e.connections)
            )
            for key, e in service.endpoints.items()
        },
    )


def _clusters(service: UpstreamService, parts: Sequence[ServiceState]) -> list[dict[str, Any]]:
    """Each with the endpoints that at least one process may choose, in the order discovery tells them.

    A worker has a cluster from its table, or from its first request to the service; without, it has no say here.
    """
    names = dict.fromkeys(c.name for c in service.clusters) | dict.fromkeys(n for p in parts for n in p.usable)
    shown = []
    for name in names:
        usable = {key for p in parts for key in p.usable.get(name, ())}
        shown.append({"name": name, "usable": [key for key in service.endpoints if key in usable]})
    return shown


def _endpoint(endpoint: UpstreamEndpoint, parts: Sequence[ServiceState], workers: int) -> dict[str, Any]:
    model = endpoint.model
    told = [p.endpoints.get(model.id, EndpointState()) for p in parts]
    ejected_by = sum(state.is_ejected for state in told)
    page: dict[str, Any] = {
        "id": model.id,
        "address": endpoint.address,
        "health": model.health.value,
        "metadata": dict(model.metadata),
        "ejected": ejected_by > 0,
        "failures_in_a_row": max((state.failures_in_a_row for state in told), default=0),
        "active": sum(state.active for state in told),
        "requests": sum(state.requests for state in told),
        "connections": sum(state.connections for state in told),
    }
    if workers:
        page["ejected_by"] = f"{ejected_by} of {workers} workers"
    return page
