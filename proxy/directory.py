"""Joins the catalog of discovery to a data plane of the same process: what is served flows in, first requests ask."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from mesh.discovery.catalog import Catalog, Unresolved, Why
from mesh.discovery.retention import ServedEndpoints
from mesh.http.outcome import DiscoveryUnavailable, NeverRegistered, NoRoute, ProxyError
from mesh.model.name import Name
from mesh.model.service import Endpoint
from mesh.tasks import Tasks
from proxy.config import Address
from proxy.dataplane import EGRESS, Answer, no_such_service
from proxy.own_listeners import is_own

if TYPE_CHECKING:
    from proxy.dataplane import DataPlane

logger = logging.getLogger(__name__)

DNS_TIMEOUT_S = 2.0
MAX_LOOKUPS = 64


class CatalogDirectory:
    """See the module. ``catalog`` None: there is no source, and no service is known but those applied by hand."""

    def __init__(self, catalog: Catalog | None, own: Mapping[str, Address]) -> None:
        """Bind the plane before use. ``own``: where this sidecar listens, as it comes to be known."""
        self._catalog = catalog
        self._own = own
        self._plane: DataPlane | None = None
        self._tasks = Tasks("directory")
        self._asking = 0
        if catalog is not None:
            catalog.subscribe(self._served)

    def bind(self, plane: DataPlane) -> None:
        """The plane that endpoints are applied to."""
        self._plane = plane

    async def close(self) -> None:
        """End lookups under way."""
        await self._tasks.close()

    def look_up(self, service: Name, answer: Answer) -> None:
        """See Directory."""
        if self._asking >= MAX_LOOKUPS:
            error = DiscoveryUnavailable(f"{self._asking} other services are being looked up; try again")
            asyncio.get_running_loop().call_soon(answer, error)
            return
        self._asking += 1
        find = self._find_outside(service) if service.namespace == EGRESS else self._find(service)
        self._tasks.start(self._answer(find, answer), f"lookup {service}")

    def touch(self, services: set[Name]) -> None:
        """See Directory."""
        if self._catalog is not None:
            for service in services:
                self._catalog.get(service)

    def connect_failed(self, service: Name, endpoint_id: str) -> None:
        """See Directory."""
        if self._catalog is not None and service.namespace != EGRESS:
            self._catalog.connect_failed(service, endpoint_id)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _served(self, service: Name, served: ServedEndpoints) -> None:
        plane = self._plane
        if plane is None:
            return
        if not served.known and service in plane.services and self._is_dropped(service):
            plane.drop_service(service)
        elif served.exists:
            plane.apply_endpoints(service, served.known)
        else:
            plane.mark_unknown(service)

    def _is_dropped(self, service: Name) -> bool:
        return self._catalog is not None and service not in {r.service for r in self._catalog.report()}

    async def _answer(self, find: Coroutine[Any, Any, ProxyError | None], answer: Answer) -> None:
        try:
            error: ProxyError | None = await find
        except asyncio.CancelledError:
            error = DiscoveryUnavailable("the sidecar stops")
        finally:
            self._asking -= 1
        answer(error)

    async def _find(self, service: Name) -> ProxyError | None:
        if self._catalog is None:
            return NoRoute(no_such_service(str(service)))
        found = await self._catalog.resolve(service)
        if isinstance(found, Unresolved):
            if found.why is Why.UNKNOWN:
                return NoRoute(f"{no_such_service(str(service))} ({found.detail})")
            return DiscoveryUnavailable(f"where {service} is cannot be told: {found.detail}")
        if not found.exists:
            return NeverRegistered(f"{self._catalog.source.name} has never told of an instance of {service}")
        if self._plane is not None:
            self._plane.apply_endpoints(service, found.known)
        return None

    async def _find_outside(self, name: Name) -> ProxyError | None:
        host, _, port = name.name.rpartition(":")
        try:
            async with asyncio.timeout(DNS_TIMEOUT_S):
                found = await asyncio.get_running_loop().getaddrinfo(
                    host.strip("[]"), int(port), type=socket.SOCK_STREAM
                )
        except TimeoutError:
            return DiscoveryUnavailable(f"DNS did not tell the address of {host} within {DNS_TIMEOUT_S:g} s")
        except (OSError, UnicodeError) as error:
            return NoRoute(f"{host} is no service of the mesh, and DNS does not know it either: {error}")
        addresses = {item[4][0] for item in found}
        allowed = sorted(str(a) for a in addresses if _may_go_to(str(a)))
        if not allowed:
            return NoRoute(f"{host} is at a loopback or link-local address, where egress never goes")
        allowed = [a for a in allowed if not is_own(a, int(port), self._own.values())]
        if not allowed:
            return NoRoute(f"{host}:{port} is this sidecar's own listener, where egress never goes")
        if self._plane is not None:
            self._plane.apply_endpoints(name, tuple(Endpoint(a, a, int(port)) for a in allowed))
        return None


def _may_go_to(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    ip = mapped or ip
    return not (ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast)
