"""A sidecar: everything is built here, once, top to bottom; then start, ready, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from random import Random, SystemRandom

import grpc.aio

from mesh.discovery.base import Source
from mesh.discovery.catalog import Catalog
from mesh.discovery.consul import ConsulConfig, ConsulSource
from mesh.discovery.file import FileSource
from mesh.discovery.registry import CHANNEL_OPTIONS, RegistrySource
from mesh.discovery.retention import ServedEndpoints
from mesh.model.gateway_api import read_documents
from mesh.model.name import Name
from mesh.model.policy import OutlierDetection, ServicePolicy
from mesh.model.route import BackendRef, Retry, Rule
from mesh.model.service import Endpoint, Health
from mesh.model.snapshot import Snapshot, make_snapshot
from mesh.model.wire import encode_resource
from mesh.tasks import Tasks
from proxy.config import Address, SidecarConfig
from proxy.dataplane import DataPlane, PlaneSettings
from proxy.directory import CatalogDirectory
from proxy.feed import Feed, Identity
from proxy.http1.downstream import ConnectionLimits, Http1Downstream
from proxy.last_good import LastGood
from proxy.listener import InboundListener, Listener, OutboundListener
from proxy.program_check import ProgramCheck
from proxy.recorder import LOCAL
from proxy.registration import SelfRegistration
from proxy.scrape import pieces
from proxy.table import Backend, CompiledRule, Names
from proxy.telemetry import Telemetry

logger = logging.getLogger(__name__)

PROGRAM_IDLE_S = 3.0  # programs close idle connections early: gunicorn after 2 s, uvicorn and Node after 5 s
BACKLOG = 1024


class Sidecar:
    """See the module. After ``start`` the addresses say where it really listens."""

    def __init__(self, config: SidecarConfig) -> None:
        """Build; nothing runs yet and nothing is opened. Raises InvalidError for a bad configuration."""
        config.validate()
        self.config = config
        rng = Random(SystemRandom().getrandbits(128))
        self.tasks = Tasks("sidecar")
        self.channel = self._make_channel()
        self.source = self._make_source()
        self.catalog = Catalog(self.source) if self.source is not None else None
        self.directory = CatalogDirectory(self.catalog)
        self.telemetry = Telemetry(config, os.environ, rng)
        self.recorder = self.telemetry.recorder
        settings = PlaneSettings(config.service, Names(config.service.namespace, config.suffixes), config.egress)
        self.plane = DataPlane(settings, self.directory, self.recorder, self.telemetry.propagation, rng)
        self.directory.bind(self.plane)
        token = f"{rng.getrandbits(48):012x}"
        limits = ConnectionLimits()
        self.outbound = OutboundListener(self.plane, f"sidemesh-out-{token}", limits, config.max_connections)
        self.upstreams = {
            service: OutboundListener(self.plane, f"sidemesh-out-{token}", limits, config.max_connections, service)
            for service in config.upstreams
        }
        self.inbound: InboundListener | None = None
        self.check: ProgramCheck | None = None
        if config.port is not None:
            self.check = ProgramCheck(
                "127.0.0.1", config.port, config.check, config.check_interval_s, self._program_changed
            )
            self.plane.program_state = self.check.health.value
            rule = self._program_rule(config.port)
            self.inbound = InboundListener(self.plane, f"sidemesh-in-{token}", limits, rule, config.max_connections)
        self.feed: Feed | None = None
        self.last_good: LastGood | None = None
        if self.channel is not None:
            identity = Identity(config.node, config.service, config.version, config.instance)
            self.feed = Feed(self.channel, identity, self._take, rng)
            if config.data_dir is not None:
                self.last_good = LastGood(config.data_dir, config.node)
        self.registration: SelfRegistration | None = None
        self.addresses: dict[str, Address] = {}
        self.is_stopping = False
        self._servers: list[asyncio.Server] = []

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
            self.catalog.subscribe(self._report_endpoints)
        await self._first_table()
        await self._listen("outbound", self.outbound, config.outbound)
        for service, port in config.upstreams.items():
            await self._listen(f"upstream {service}", self.upstreams[service], Address(config.outbound.host, port))
        if self.inbound is not None and self.check is not None:
            inbound = await self._listen("inbound", self.inbound, config.inbound)
            if self.source is not None:
                self.registration = SelfRegistration(config, self.source, inbound)
                self.registration.start(self.check)
            self.tasks.start(self.check.run(), "program check")
        if self.feed is not None:
            self.feed.start(self.plane.table.snapshot if self.plane.table else None)

    @property
    def is_ready(self) -> bool:
        """It may be sent traffic: it listens, and has a table wherever it needs one."""
        return bool(self._servers) and self.plane.table is not None and not self.is_stopping

    async def ready(self) -> None:
        """Wait until it is ready."""
        while not self.is_ready:  # noqa: ASYNC110 - becomes true by several causes, once in a life
            await asyncio.sleep(0.02)

    async def _first_table(self) -> None:
        if self.feed is None:
            self._apply(self._configured_snapshot())
            return
        if self.last_good is not None:
            snapshot = await asyncio.to_thread(self.last_good.load)
            if snapshot is not None:
                self._apply(snapshot)
                logger.info("table %s taken from disk until the control server says otherwise", snapshot.id)
        self._declare()

    def _configured_snapshot(self) -> Snapshot | None:
        if not self.config.routes:
            return None
        resources = read_documents(self.config.routes).values
        return make_snapshot("file", 1, [encode_resource(r) for r in resources])

    async def _listen(self, name: str, listener: Listener, address: Address) -> Address:
        if not address.is_loopback:
            logger.warning("%s listens on %s without TLS: anybody who reaches it may use it", name, address)
        sock = bound_socket(address)
        server = await asyncio.get_running_loop().create_server(
            lambda: Http1Downstream(listener), sock=sock, backlog=BACKLOG
        )
        self._servers.append(server)
        actual = Address(address.host, server.sockets[0].getsockname()[1])
        self.addresses[name] = actual
        logger.info("%s listens on %s", name, actual)
        return actual

    def metrics_text(self) -> str:
        """What /metrics answers, whole; the admin page sends it in chunks (scrape.py)."""
        return "".join(pieces(self))

    # --- tables and endpoints ---------------------------------------------------------------------------------------

    def _take(self, snapshot: Snapshot) -> None:
        """Run a pushed snapshot and keep it on disk. Raises what makes it impossible to run."""
        self._apply(snapshot)
        if self.last_good is not None:
            self.tasks.start(asyncio.to_thread(self.last_good.save, snapshot), f"keep table v{snapshot.id.version}")

    def _apply(self, snapshot: Snapshot | None) -> None:
        self.plane.apply_table(snapshot)
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

    def _report_endpoints(self, service: Name, served: ServedEndpoints) -> None:
        if self.feed is not None:
            self.feed.report_endpoints(service, [e.id for e in served.usable])

    def _program_changed(self, health: Health) -> None:
        self.plane.program_state = health.value
        if self.registration is not None:
            self.registration.set_health(health)

    def _program_rule(self, port: int) -> CompiledRule:
        """Everything to the local program; nothing is sent twice but what a stale connection never took."""
        name = Name(LOCAL, self.config.service.name)
        program = self.plane.service(name)
        program.set_policy(ServicePolicy(name, outlier_detection=OutlierDetection(consecutive_failures=0)))
        program.idle_s = PROGRAM_IDLE_S
        program.apply([Endpoint("program", "127.0.0.1", port)])
        ref = BackendRef(name)
        return CompiledRule(Rule(backend_refs=(ref,), retry=Retry(attempts=0)), [Backend(ref, program.cluster())])

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
        if self.catalog is not None:
            await self.catalog.close()
        if self.source is not None:
            await self.source.close()
        for listener in (self.outbound, self.inbound, *self.upstreams.values()):
            for connection in tuple(listener.connections) if listener else ():
                connection.transport.abort()
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
