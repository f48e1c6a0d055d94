"""The control server, built once from top to bottom: store, hub, registry, the gRPC services, HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self

import grpc.aio
from aiohttp import web
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from control.config import ControlConfig, is_loopback, split_address
from control.http import application
from control.hub import Hub
from control.known_endpoints import KnownEndpoints
from control.ledger import Ledger
from control.long_calls import LongCalls
from control.operator_service import OperatorService
from control.planning import MAX_TABLE_BYTES
from control.registry import Registry
from control.registry_service import RegistryService
from control.roster import Roster
from control.sidecar_service import SidecarService
from control.store.base import Store
from control.store.sqlite import SqliteStore
from mesh.discovery.base import Source
from mesh.discovery.consul import ConsulConfig, ConsulSource
from mesh.tasks import Tasks
from protos.mesh.v1 import discovery_pb2, operator_pb2, operator_pb2_grpc, registry_pb2

log = logging.getLogger(__name__)

SERVICES: Final = tuple(
    descriptor.full_name
    for file in (discovery_pb2.DESCRIPTOR, operator_pb2.DESCRIPTOR, registry_pb2.DESCRIPTOR)
    for descriptor in file.services_by_name.values()
)

GRPC_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share the sidecars in silence
    # An Apply carries a whole table at most; a sidecar's messages are small, but the limit is the server's.
    ("grpc.max_receive_message_length", MAX_TABLE_BYTES + (1 << 20)),
    ("grpc.max_send_message_length", MAX_TABLE_BYTES + (1 << 20)),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 2000),
    # A sidecar whose machine is gone sends no FIN: find out within 30 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Sidecars may ping as often as every 5 s.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


class ListenError(Exception):
    """An address could not be listened on; the message says which."""


class ControlServer:
    """A control server; an async context manager, or ``start`` and ``stop``."""

    def __init__(self, config: ControlConfig) -> None:
        """Nothing is opened yet."""
        self.config = config
        self.grpc_address = ""
        """HOST:PORT as bound, once started."""
        self.http_address = ""
        self._stack = AsyncExitStack()
        self._long_calls = LongCalls()
        self._tasks = Tasks("control")
        self._expiry: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the store and listen. Raises StoreError and ListenError; then nothing is left open."""
        try:
            await self._build()
        except BaseException:
            await self._stack.aclose()
            raise

    async def stop(self) -> None:
        """End within ``config.stop_s`` and a little; sidecars go on with what they have. Safe to call twice."""
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    async def _build(self) -> None:
        config = self.config
        _warn_if_open(config)
        store: Store = SqliteStore(config.data, time.time)
        snapshot, newest = await store.open()
        self._stack.push_async_callback(store.close)
        self.hub = Hub(snapshot, newest.when_unix_s, time.time)
        self.registry = Registry(secrets.token_hex(8), time.monotonic(), config.lease_s)
        roster = None if config.data is None else Roster(config.data)
        if roster is not None:
            self.hub.expect(roster.read())
        self.ledger = Ledger(store, self.hub, newest, time.time)
        self._stack.push_async_callback(self.ledger.close)
        sources = [] if config.consul is None else [await self._consul(config.consul)]
        endpoints = KnownEndpoints(self.registry, sources, time.monotonic)
        registry_service = RegistryService(self.registry, time.monotonic, self._long_calls)
        sidecar_service = SidecarService(self.hub, self._long_calls)
        operator_service = OperatorService(self.ledger, self.hub, endpoints, self._long_calls, time.time)

        server = grpc.aio.server(options=GRPC_OPTIONS)
        server.add_generic_rpc_handlers((sidecar_service.handlers(), registry_service.handlers()))
        operator_pb2_grpc.add_OperatorServicer_to_server(operator_service, server)
        health_service = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        self.grpc_address = _bind(server, config.listen)

        self._expiry = self._tasks.start(registry_service.run(), "registry leases")
        if roster is not None:
            self._tasks.start(roster.run(self.hub), "roster")
        self._stack.push_async_callback(self._tasks.close)
        await server.start()
        self._stack.push_async_callback(self._stop_grpc, server, health_service)
        self.http_address = await self._serve_http(config.http)
        for name in ("", *SERVICES):
            await health_service.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info(
            "control server ready: gRPC %s, HTTP %s, table version %d of store %s",
            self.grpc_address,
            self.http_address,
            snapshot.id.version,
            config.data or "(memory only)",
        )

    async def wait(self) -> None:
        """Until the server fails; raises what it failed of."""
        assert self._expiry is not None  # noqa: S101 - called after start
        await asyncio.shield(self._expiry)

    async def _consul(self, address: str) -> Source:
        """The Consul to ask for endpoints. It need not be reachable now."""
        source: Source = ConsulSource(ConsulConfig.make(os.environ, address))  # the token comes from CONSUL_HTTP_TOKEN
        await source.start()
        self._stack.push_async_callback(source.close)
        return source

    async def _serve_http(self, address: str) -> str:
        """Listen for HTTP; returns the address as bound."""
        runner = web.AppRunner(
            application(self.hub, self.registry, time.monotonic), access_log=None, shutdown_timeout=1.0
        )
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        host, port = _split(address)
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            message = f"cannot listen for HTTP on {address}: {error.strerror or error}"
            raise ListenError(message) from error
        return _join(host, runner.addresses[0][1])

    async def _stop_grpc(self, server: grpc.aio.Server, health_service: health.aio.HealthServicer) -> None:
        """Streams end at once and come back elsewhere; calls in flight get their grace time."""
        await health_service.enter_graceful_shutdown()
        self._long_calls.end()
        try:
            # stop() has been seen to hang (grpc/grpc#40989); the process must end all the same.
            async with asyncio.timeout(self.config.stop_s + 2.0):
                await server.stop(self.config.stop_s)
        except TimeoutError:
            log.warning("gRPC did not stop within %g s; leaving it", self.config.stop_s + 2.0)


def _bind(server: grpc.aio.Server, address: str) -> str:
    host, _ = _split(address)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        message = f"cannot listen for gRPC on {address}: is another control server running there?"
        raise ListenError(message) from error
    return _join(host, port)


def _split(address: str) -> tuple[str, int]:
    split = split_address(address)
    assert split is not None  # noqa: S101 - ControlConfig has checked it
    return split


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _warn_if_open(config: ControlConfig) -> None:
    for what, address in (("gRPC", config.listen), ("HTTP", config.http)):
        host, _ = _split(address)
        if not is_loopback(host):
            log.warning(
                "!!! %s listens on %s WITHOUT TLS: whoever reaches it can %s. Keep it on a private network.",
                what,
                address,
                "change the routes of the whole mesh" if what == "gRPC" else "read its state",
            )
