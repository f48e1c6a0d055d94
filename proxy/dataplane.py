"""One event loop's data plane: what all its exchanges share, built once and handed in.

It knows no control server, no Consul and no gRPC: tables and endpoints come in through ``apply_table`` and
``apply_endpoints``, names it has not heard of go out through ``Directory``. So a worker process runs the same code
as a sidecar of one process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from binascii import hexlify
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final, Protocol

from mesh.http.outcome import Draining, NeverRegistered, NoRoute, ProxyError
from mesh.http.trace_context import Propagation
from mesh.model.name import Name
from mesh.model.policy import AppProtocol, ServicePolicy
from mesh.model.route import BackendRef
from mesh.model.service import Endpoint
from mesh.model.snapshot import Snapshot
from mesh.tasks import Tasks
from mesh.telemetry.metrics import RequestSeries
from proxy.deadlines import Deadlines
from proxy.explain import decision_record
from proxy.recorder import LOCAL
from proxy.table import Names, ServiceEntry, Table, passthrough_rule
from proxy.trampoline import Trampoline
from proxy.upstream.service import Cluster, UpstreamService

if TYPE_CHECKING:
    from proxy.exchange import Exchange
    from proxy.recorder import Recorder
    from proxy.upstream.endpoint import UpstreamEndpoint

logger = logging.getLogger(__name__)

EGRESS: Final = "(egress)"  # no DNS label, so no service can have this namespace
TOUCH_S: Final = 2.0
OUTSIDE_FRESH_S: Final = 30.0  # the time to live that most names of load balancers have is 60 s or less
MAX_OUTSIDE: Final = 128  # as services on demand
OUTSIDE_IDLE_S: Final = 600.0  # as a service of the mesh that was watched on demand

Answer = Callable[[ProxyError | None], None]
"""Told of a lookup's end: None when the service's endpoints have been applied, else what to answer."""


class Directory(Protocol):
    """Where the data plane asks for services it has not heard of."""

    def look_up(self, service: Name, answer: Answer) -> None:
        """Find ``service`` and apply its endpoints, then call ``answer`` (later, not from within); bounded in time.

        A name in the namespace EGRESS is ``host:port`` outside the mesh, found by DNS.
        """

    def touch(self, services: set[Name]) -> None:
        """These were used since the last call (about a second ago)."""

    def connect_failed(self, service: Name, endpoint_id: str) -> None:
        """Connecting to that endpoint failed."""


@dataclass(frozen=True)
class PlaneSettings:
    """What a data plane is told once."""

    service: Name
    names: Names
    allow_egress: bool = False
    connect_ports: frozenset[int] = frozenset()
    """Where CONNECT may go outside the mesh; empty: nowhere."""
    shares: int = 1
    """Workers of this sidecar: limits and budgets are divided by it."""


class DataPlane:
    """See the module."""

    def __init__(
        self,
        settings: PlaneSettings,
        directory: Directory,
        recorder: Recorder,
        propagation: Propagation,
        rng: Random,
    ) -> None:
        """Build it; ``start`` when the loop runs."""
        self.settings = settings
        self.shares = settings.shares
        self.directory = directory
        self.recorder = recorder
        self.record = recorder.record
        self.record_unread = recorder.record_unread
        self.on_retry = recorder.on_retry
        self.times_answers = recorder.times_answers
        self.propagation = propagation
        self.random = rng.random
        self._bits = rng.getrandbits
        self.clock = time.monotonic
        self.call_later = _call_later
        self.now_s = time.monotonic()
        """The time of the last sweep: good enough for idleness, and free."""
        self.trampoline = Trampoline()
        self.deadlines = Deadlines(self.clock, self.trampoline.drain)
        self.tasks = Tasks("plane")
        self.exchanges: set[Exchange] = set()
        self.services: dict[Name, UpstreamService] = {}
        self.table: Table | None = None
        self.program_state = "passing"
        self.declared: AppProtocol | None = None
        """What the policy of this sidecar's own service says that its program speaks."""
        self._policies: dict[Name, ServicePolicy] = {}
        self._passthrough: dict[Name, ServiceEntry] = {}
        self._asking: dict[Name, list[Answer]] = {}
        """Who waits for the end of each lookup under way."""
        self.deadlines.each_sweep.append(self._tell_time)
        self.deadlines.each_second.append(self._beat)

    def start(self) -> None:
        """Begin to keep time on the running loop."""
        self.deadlines.start()

    def give_up(self) -> None:
        """End every exchange still under way as its client understands it: by an answer, a gRPC status, a reset."""
        for exchange in tuple(self.exchanges):
            exchange.post(Draining("the sidecar stops, and waits for this no longer (--drain-s)"))
        self.trampoline.drain()

    async def close(self) -> None:
        """Close upstream connections and stop keeping time."""
        self.give_up()
        await self.tasks.close()
        for service in self.services.values():
            service.close()
        self.deadlines.close()

    # --- what comes in ----------------------------------------------------------------------------------------------

    def apply_table(self, snapshot: Snapshot | None) -> None:
        """Compile a checked snapshot and swap it in; None is the empty table. Raises before anything has changed."""
        policies = {policy.name: policy for policy in snapshot.policies} if snapshot else {}
        table = Table(snapshot, self.cluster_for, self.table)
        for service in self.services.values():
            if service.name.namespace != LOCAL:
                policy = policies.get(service.name) or ServicePolicy(service.name)
                if service.policy != policy:
                    service.set_policy(policy)
        self.declared = declared_in(snapshot, self.settings.service)
        self._policies = policies
        self.table = table

    def apply_endpoints(self, service: Name, endpoints: tuple[Endpoint, ...]) -> None:
        """Take what discovery tells of a service now."""
        self.service(service).apply(endpoints)

    def mark_unknown(self, service: Name) -> None:
        """Discovery has never heard of the service."""
        upstream = self.services.get(service)
        if upstream is not None and not upstream.endpoints:
            upstream.is_known = False

    def drop_service(self, service: Name) -> None:
        """Forget a service that nobody used for long and no route names."""
        upstream = self.services.pop(service, None)
        self._passthrough.pop(service, None)
        if upstream is not None:
            upstream.close()
        if self.table is not None:
            self.table.forget(service)

    # --- what the request path asks ---------------------------------------------------------------------------------

    def service(self, name: Name) -> UpstreamService:
        """The service of that name, with its policy; made when first asked for."""
        service = self.services.get(name)
        if service is None:
            if name.namespace == EGRESS:
                self._make_room_outside()
            service = self.services[name] = UpstreamService(self, name, self._policies.get(name))
        return service

    def cluster_for(self, ref: BackendRef) -> Cluster:
        """The cluster a backendRef means."""
        return self.service(ref.service).cluster(ref.subset, ref.port)

    def entry(self, name: Name) -> ServiceEntry:
        """How requests for the service are routed."""
        assert self.table is not None  # noqa: S101 - the listener has looked
        entry = self.table.entries.get(name) or self._passthrough.get(name)
        if entry is None:
            entry = self._passthrough[name] = ServiceEntry(name, passthrough_rule(name, self.cluster_for), [])
        return entry

    def find_entry(self, authority: bytes) -> tuple[ServiceEntry, int | None] | Name:
        """Understand a Host seen for the first time; gives the name to look up where it is unheard of.

        Raises NoRoute for one that cannot be a service's name.
        """
        assert self.table is not None  # noqa: S101 - the listener has looked
        name, host, port = self.settings.names.parse(authority)
        if name is None:
            if not self.settings.allow_egress or not host:
                raise NoRoute(no_such_service(host))
            name = egress_name(host, port)
        if name not in self.table.entries:
            service = self.services.get(name)
            if service is None or service.is_known is not True:
                return name
        found = self.entry(name), port
        self.table.remember(authority, *found)
        return found

    def look_up(self, exchange: Exchange, name: Name) -> None:
        """Ask the directory; ``exchange`` is resumed when the endpoints are applied, or with what to answer."""

        def answer(error: ProxyError | None) -> None:
            if isinstance(error, NoRoute | NeverRegistered):
                self.mark_unknown(name)
            if isinstance(error, NoRoute) and self.settings.allow_egress and name.namespace != EGRESS:
                self._look_up_egress(exchange)
                return
            exchange.post(error)
            self.trampoline.drain()

        self._ask(name, answer)

    async def look_up_for(self, authority: bytes) -> ProxyError | None:
        """Look up the service of an authority where that is to be done; gives what a request would be answered."""
        try:
            found = None if self.table is None else self.find_entry(authority)
        except ProxyError as refusal:
            return refusal
        if not isinstance(found, Name):
            return None
        error = await self._answer(found)
        if isinstance(error, NoRoute) and self.settings.allow_egress and found.namespace != EGRESS:
            _, host, port = self.settings.names.parse(authority)
            error = await self._answer(egress_name(host, port))
        return error

    async def _answer(self, name: Name) -> ProxyError | None:
        told: asyncio.Future[ProxyError | None] = asyncio.get_running_loop().create_future()
        self._ask(name, lambda error: None if told.done() else told.set_result(error))
        return await told

    def _ask(self, name: Name, answer: Answer) -> None:
        """Whoever asks for a name that is being looked up shares that lookup."""
        asking = self._asking.setdefault(name, [])
        asking.append(answer)
        if len(asking) > 1:
            return

        def answered(error: ProxyError | None) -> None:
            del self._asking[name]
            for each in asking:
                each(error)

        self.directory.look_up(name, answered)

    def _look_up_egress(self, exchange: Exchange) -> None:
        authority = exchange.request.authority
        _, host, port = self.settings.names.parse(authority)
        name = egress_name(host, port)

        def answer(error: ProxyError | None) -> None:
            if error is None and self.table is not None:
                self.table.remember(authority, self.entry(name), port)
            exchange.post(error)
            self.trampoline.drain()

        self._ask(name, answer)

    def decision_record(self, exchange: Exchange) -> bytes:
        """Why the exchange went where it went, as one line of JSON."""
        return decision_record(self, exchange)

    def new_request_id(self) -> bytes:
        """A random UUID (RFC 9562 version 4)."""
        h = hexlify(self._bits(128).to_bytes(16, "big"))
        return b"%b-%b-4%b-a%b-%b" % (h[:8], h[8:12], h[13:16], h[17:20], h[20:])

    def series_for(self, service: Name, subset: str | None) -> RequestSeries:
        """The metrics of requests to that service."""
        return self.recorder.series_for(service, subset)

    # --- what it tells ----------------------------------------------------------------------------------------------

    def on_connect_failed(self, service: Name, endpoint_id: str) -> None:
        """Connecting failed: an endpoint kept only for lack of better knowledge may go."""
        self.directory.connect_failed(service, endpoint_id)

    def on_ejection(self, service: UpstreamService, endpoint: UpstreamEndpoint) -> None:
        """Outlier detection took an endpoint out."""
        self.recorder.on_ejection(service, endpoint)

    def on_budget_exhausted(self, cluster: Cluster) -> None:
        """A retry was not made, for the budget."""
        self.recorder.on_budget_exhausted(cluster)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _tell_time(self, now: float) -> None:
        self.now_s = now

    def _beat(self, now: float) -> None:
        self.directory.touch({s.name for s in self.services.values() if now - s.last_used_s <= TOUCH_S})
        for service in tuple(self.services.values()):
            service.beat(now)
            if service.name.namespace == EGRESS:
                self._renew_outside(service, now)

    def _make_room_outside(self) -> None:
        """Programs choose the hosts they call: forget the one unused for longest where there are too many."""
        outside = [s for s in self.services.values() if s.name.namespace == EGRESS and not s.usage.requests]
        if len(outside) >= MAX_OUTSIDE:
            self.drop_service(min(outside, key=lambda service: service.last_used_s).name)

    def _renew_outside(self, service: UpstreamService, now: float) -> None:
        """Nobody tells us when the address of a host changes: ask DNS again while it is used, forget it when not."""
        if now - service.last_used_s > OUTSIDE_IDLE_S and not service.usage.requests:
            self.drop_service(service.name)
        elif now - service.applied_s > OUTSIDE_FRESH_S and service.last_used_s > service.applied_s:
            service.applied_s = now  # also where DNS is silent: then the last addresses stay
            self._ask(service.name, lambda _error: None)


def declared_in(snapshot: Snapshot | None, service: Name) -> AppProtocol | None:
    """What a table's policy of the service says that its programs speak."""
    for policy in snapshot.policies if snapshot else ():
        if policy.name == service:
            return policy.app_protocol
    return None


def no_such_service(host: str) -> str:
    """What to tell the caller of an unknown name."""
    return f"{host[:80]!r} is no service of the mesh; register it with discovery, or allow egress (--egress allow)"


def egress_name(host: str, port: int | None) -> Name:
    """The name that endpoints of a host outside the mesh are kept under."""
    return Name(EGRESS, f"{host}:{port or 80}")


def _call_later(delay_s: float, call: Callable[[], None]) -> asyncio.TimerHandle:
    """A loop timer, for what is rare."""
    return asyncio.get_running_loop().call_later(delay_s, call)
