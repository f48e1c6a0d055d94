"""A sidecar: everything is built here, once, top to bottom; then start, ready, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from random import Random, SystemRandom

import grpc.aio

from mesh.discovery.base import Source
from mesh.discovery.catalog import Catalog, CatalogSettings
from mesh.discovery.consul import ConsulConfig, ConsulSource
from mesh.discovery.file import FileSource
from mesh.discovery.registry import CHANNEL_OPTIONS, RegistrySource
from mesh.discovery.retention import ServedEndpoints
from mesh.model.errors import InvalidError
from mesh.model.gateway_api import read_documents
from mesh.model.name import Name
from mesh.model.service import Health
from mesh.model.snapshot import Snapshot, make_snapshot
from mesh.model.wire import encode_resource
from mesh.tasks import Tasks
from mesh.telemetry.otlp_transport import make_transport
from proxy.accept import Closable, open_server
from proxy.config import Address, SidecarConfig
from proxy.dataplane import DataPlane, PlaneSettings
from proxy.directory import CatalogDirectory
from proxy.feed import Feed, Identity
from proxy.last_good import EndpointsKeeper, LastGood
from proxy.listener import Listener
from proxy.listeners import build_listeners
from proxy.program_check import ProgramCheck
from proxy.registration import SelfRegistration
from proxy.scrape import pieces
from proxy.table import Names
from proxy.telemetry import Telemetry
from proxy.websocket_relay import tell_websockets
from proxy.worker_pool import WorkerPool

logger = logging.getLogger(__name__)


class Sidecar:
    """See the module. After ``start`` the addresses say where it really listens."""

    def __init__(self, config: SidecarConfig) -> None:
        """Build; nothing runs yet and nothing is opened. Raises InvalidError for a bad configuration."""
        config.validate()
        self.config = config
        rng = Random(SystemRandom().getrandbits(128))
        self._rng = rng
        self.tasks = Tasks("sidecar")
        self.channel = self._make_channel()
        self.source = self._make_source()
        self.catalog = Catalog(self.source, CatalogSettings(config.grace_s)) if self.source is not None else None
        self.addresses: dict[str, Address] = {}
        self.directory = CatalogDirectory(self.catalog, self.addresses)
        self.telemetry = Telemetry(config, os.environ, rng, make_transport)
        self.recorder = self.telemetry.recorder
        names = Names(config.service.namespace, config.suffixes)
        settings = PlaneSettings(config.service, names, config.egress, config.connect_ports)
        self.plane = DataPlane(settings, self.directory, self.recorder, self.telemetry.propagation, rng)
        self.directory.bind(self.plane)
        token = f"{rng.getrandbits(48):012x}"
        self.listeners = build_listeners(self.plane, config, token)
        self.pool: WorkerPool | None = None
        if config.workers > 1:
            self.pool = WorkerPool(config, self.plane, token, self.telemetry)
        self.check: ProgramCheck | None = None
        if config.port is not None:
            self.check = ProgramCheck(
                "127.0.0.1", config.port, config.check, config.check_interval_s, self._program_changed
            )
            self.plane.program_state = self.check.health.value
        self.feed: Feed | None = None
        self.last_good: LastGood | None = None
        self.keeper: EndpointsKeeper | None = None
        if config.data_dir is not None:
            self.last_good = LastGood(config.data_dir, config.node)
            # A file is there at the next start too.
            if self.catalog is not None and not isinstance(self.source, FileSource):
                self.keeper = EndpointsKeeper(self.last_good, self.catalog.source.name, self.catalog.knowledge)
        if self.channel is not None:
            identity = Identity(config.node, config.service, config.version, config.instance)
            self.feed = Feed(self.channel, identity, self._take, rng)
        self.registration: SelfRegistration | None = None
        self.is_stopping = False
        self._is_listening = False
        self._to_keep: Snapshot | None = None
        self._servers: list[Closable] = []

    # --- start ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open everything. Raises OSError naming the address where a port is taken."""
        config = self.config
        self.plane.start()
        self.telemetry.start()
        if self.source is not None:
            await self.source.start()
        if self.catalog is not None:
            await self.catalog.start()
            self.catalog.subscribe(self._served)
            await self._recall(self.catalog)
        await self._first_table()
        await self._listen()
        if self.check is not None:
            if self.source is not None:
                self.registration = SelfRegistration(config, self.source, self.addresses["inbound"], self._rng)
                await self._follow_inbound()
                self.registration.start(self.check)
            self.tasks.start(self.check.run(), "program check")
        if self.feed is not None:
            self.feed.start(self.plane.table.snapshot if self.plane.table else None)

    @property
    def is_ready(self) -> bool:
        """It may be sent traffic: it listens, and has a table wherever it needs one."""
        return self._is_listening and self.plane.table is not None and not self.is_stopping

    async def ready(self) -> None:
        """Wait until it is ready."""
        while not self.is_ready:  # noqa: ASYNC110 - becomes true by several causes, once in a life
            await asyncio.sleep(0.02)

    async def _recall(self, catalog: Catalog) -> None:
        """Begin with the endpoints on disk; the source's first word replaces them, with its grace time."""
        if self.keeper is None or self.last_good is None:
            return
        known = await asyncio.to_thread(self.last_good.load_endpoints, catalog.source.name)
        if known is not None and known.services:
            catalog.remember(known.services, known.age_s)
            logger.info(
                "endpoints of %d services taken from disk until %s tells them", len(known.services), catalog.source.name
            )

    async def _first_table(self) -> None:
        if self.feed is None:
            await self._apply(self._configured_snapshot())
            return
        if self.last_good is not None:
            snapshot = await asyncio.to_thread(self.last_good.load)
            if snapshot is not None:
                await self._apply(snapshot)
                logger.info("table %s taken from disk until the control server says otherwise", snapshot.id)
        self._declare()

    def _configured_snapshot(self) -> Snapshot | None:
        if not self.config.routes:
            return None
        resources = read_documents(self.config.routes).values
        return make_snapshot("file", 1, [encode_resource(r) for r in resources])

    async def _listen(self) -> None:
        """Bind every listener's socket, then open it here, or hand all of them to the workers."""
        config = self.config
        wanted = {"outbound": config.outbound, "inbound": config.inbound}
        wanted |= {f"upstream {s}": Address(config.outbound.host, port) for s, port in config.upstreams.items()}
        sockets: dict[str, socket.socket] = {}
        try:
            for name, _ in self.listeners.named():
                address = wanted[name]
                sockets[name] = bound_socket(address)
                self.addresses[name] = Address(address.host, sockets[name].getsockname()[1])
                if not address.is_loopback:
                    logger.warning("!!! %s listens on %s WITHOUT TLS: whoever reaches it may use it", name, address)
        except OSError:
            for sock in sockets.values():
                sock.close()
            raise
        if self.pool is not None:
            await self.pool.start(sockets)
        else:
            for name, listener in self.listeners.named():
                await self._open(listener, sockets[name])
        for name, address in self.addresses.items():
            logger.info("%s listens on %s", name, address)
        self._is_listening = True

    async def _open(self, listener: Listener, sock: socket.socket) -> None:
        self._servers.append(await open_server(listener, sock))

    def metrics_text(self) -> str:
        """What /metrics answers, whole; the admin page sends it in chunks (scrape.py)."""
        return "".join(pieces(self))

    def reopen_logs(self) -> None:
        """Access logs were rotated: open them anew, here and in the workers."""
        self.telemetry.reopen()
        if self.pool is not None:
            self.pool.reopen_logs()

    # --- tables and endpoints ---------------------------------------------------------------------------------------

    async def _take(self, snapshot: Snapshot) -> None:
        """Run a pushed snapshot and keep it on disk. Raises what makes it impossible to run."""
        await self._apply(snapshot)
        if self.last_good is not None:
            is_keeping, self._to_keep = self._to_keep is not None, snapshot
            if not is_keeping:
                self.tasks.start(self._keep(self.last_good), "keep table")

    async def _keep(self, last_good: LastGood) -> None:
        """Write tables one at a time, so that an older one never comes last; those overtaken meanwhile are left out."""
        while (snapshot := self._to_keep) is not None:
            await asyncio.to_thread(last_good.save, snapshot)
            if self._to_keep is snapshot:
                self._to_keep = None

    async def _apply(self, snapshot: Snapshot | None) -> None:
        """Run a table here and in all workers; a table that one of them refuses leaves the last one everywhere."""
        before = self.plane.table.snapshot if self.plane.table else None
        await self._announce_inbound(snapshot)
        try:
            self.plane.apply_table(snapshot)
            if self.pool is not None:
                try:
                    await self.pool.apply_table(snapshot)
                except InvalidError:
                    self.plane.apply_table(before)
                    raise
        finally:
            await self._follow_inbound()
        self._declare()

    def _declare(self) -> None:
        """Watch what this sidecar needs: its upstreams, and what its routes name."""
        if self.catalog is None:
            return
        table = self.plane.table
        wanted = set(self.config.upstreams)
        subsets: dict[Name, object] = {}
        if table is not None:
            wanted |= set(table.entries) | table.backends
            subsets = {p.name: p.subsets for p in (table.snapshot.policies if table.snapshot else ())}
        self.catalog.declare(wanted, subsets)  # type: ignore[arg-type]

    async def _announce_inbound(self, snapshot: Snapshot | None) -> None:
        """Where the inbound listener will take connections, nobody may ask it for health over HTTP by then.

        Whoever still did would reach the program, and find it critical.
        """
        inbound = self.listeners.inbound
        if self.registration is not None and inbound is not None and inbound.would_take_connections(snapshot):
            await self.registration.follow(takes_connections=True)

    async def _follow_inbound(self) -> None:
        """And where it takes requests again, it may be asked again."""
        if self.registration is not None and self.listeners.inbound is not None:
            await self.registration.follow(takes_connections=self.listeners.inbound.takes_connections)

    def _served(self, service: Name, served: ServedEndpoints) -> None:
        """What discovery serves changed; the plane has been told by the directory."""
        if self.keeper is not None:
            self.keeper.changed()
        if self.feed is not None:
            self.feed.report_endpoints(service, [e.id for e in served.usable])
        if self.pool is not None:
            if service in self.plane.services:
                self.pool.tell_endpoints(service, served.known)
            else:
                self.pool.drop_service(service)

    def _program_changed(self, health: Health) -> None:
        self.plane.program_state = health.value
        if self.pool is not None:
            self.pool.tell_program(health.value)
        if self.registration is not None:
            self.registration.set_health(health)

    # --- drain ------------------------------------------------------------------------------------------------------

    def begin_drain(self) -> None:
        """Inbound answers say ``Connection: close`` from now on."""
        if self.listeners.inbound is not None:
            self.listeners.inbound.is_draining = True
        if self.pool is not None:
            self.pool.drain()

    def tell_websockets(self, *, inbound_only: bool) -> None:
        """Tell both sides of each WebSocket that it goes away, and of each that is opened from now on."""
        tell_websockets(self.plane, self.listeners.that_leave(inbound_only=inbound_only))
        if self.pool is not None:
            self.pool.tell_websockets(inbound_only=inbound_only)

    async def under_way(self) -> int:
        """Exchanges under way in either direction, and connections with answers that are still being taken."""
        if self.pool is not None:
            gauges = await self.pool.gather()
            return int(gauges.get("exchanges", 0) + gauges.get("unsent", 0))
        return len(self.plane.exchanges) + self.listeners.unsent(inbound_only=False)

    async def inbound_under_way(self) -> int:
        """The same, inbound."""
        if self.pool is not None:
            gauges = await self.pool.gather()
            return int(gauges.get("inbound_exchanges", 0) + gauges.get("inbound_unsent", 0))
        exchanges = sum(exchange.listener is self.listeners.inbound for exchange in self.plane.exchanges)
        return exchanges + self.listeners.unsent(inbound_only=True)

    async def inbound_quiet_s(self) -> float:
        """Seconds since the last inbound exchange began."""
        if self.pool is not None:
            return (await self.pool.gather()).get("inbound_quiet_s", float("inf"))
        inbound = self.listeners.inbound
        return float("inf") if inbound is None else self.plane.clock() - inbound.last_request_s

    # --- stop -------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close everything, the outbound side last. What should be finished was finished by ``drain``."""
        self.is_stopping = True
        for server in self._servers:
            server.close()
        if self.registration is not None:
            await self.registration.close()
        await self.tasks.close()
        if self.feed is not None:
            await self.feed.close()
        await self.directory.close()
        if self.keeper is not None:
            await self.keeper.close()  # before the catalog, which knows nothing after its end
        if self.catalog is not None:
            await self.catalog.close()
        if self.source is not None:
            await self.source.close()
        if self.pool is not None:
            await self.pool.close()
        self.plane.give_up()
        await self.listeners.close_connections()
        await self.plane.close()
        await self.telemetry.close()
        if self.channel is not None:
            await self.channel.close(None)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _make_channel(self) -> grpc.aio.Channel | None:
        control = self.config.control
        return None if control is None else grpc.aio.insecure_channel(str(control), options=CHANNEL_OPTIONS)

    def _make_source(self) -> Source | None:
        config = self.config
        if config.consul is not None:
            return ConsulSource(ConsulConfig.make(os.environ, config.consul))
        if config.services_file is not None:
            return FileSource(config.services_file)
        if config.services is not None:
            return FileSource.of(config.services)
        if config.control is not None:
            return RegistrySource(str(config.control), self.channel)
        return None


def bound_socket(address: Address) -> socket.socket:
    """A socket bound for listening. No SO_REUSEPORT: a second sidecar on the port must fail, not share in silence."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}; choose another port") from error
    sock.setblocking(False)
    return sock
