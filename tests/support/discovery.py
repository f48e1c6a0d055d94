"""The three real discovery sources under one face, so that one suite holds for all."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import aiohttp
import grpc
import grpc.aio
import pytest

from control.long_calls import LongCalls
from control.registry import Registry
from control.registry_service import RegistryService
from mesh.discovery.base import Contact, Observation, Source, SourceError, Watch
from mesh.discovery.consul import ConsulConfig, ConsulSource
from mesh.discovery.file import FileSource
from mesh.discovery.registry import RegistrySource
from mesh.model.name import Name
from mesh.model.service import Endpoint, Health
from mesh.model.wire import encode_duration, encode_endpoint, encode_health, encode_name
from mesh.tasks import Tasks
from protos.mesh.v1 import registry_pb2
from protos.mesh.v1.registry_pb2_grpc import RegistryStub
from tests.support.consul import ConsulAgent
from tests.support.needs import require
from tests.support.ports import free_port
from tests.support.process import Process, until

REVIEWS = Name("default", "reviews")


def endpoint(id_: str, version: str = "v1", health: Health = Health.PASSING, port: int = 80) -> Endpoint:
    return Endpoint(id_, "127.0.0.1", port, {"version": version}, (), health)


class Seen:
    """What one watch reported."""

    def __init__(self, source: Source, service: Name = REVIEWS) -> None:
        self.observations: list[Observation] = []
        self.failures: list[SourceError] = []
        self.watch: Watch = source.watch(
            service, self.observations.append, lambda _, error: self.failures.append(error)
        )

    @property
    def state(self) -> dict[str, tuple[str | None, Health, int]]:
        """By id: (version, health, port) as last reported."""
        if not self.observations:
            return {}
        return {e.id: (e.metadata.get("version"), e.health, e.port) for e in self.observations[-1].endpoints}

    @property
    def contacts(self) -> list[Contact]:
        return [each.contact for each in self.observations]

    async def until(self, condition: Callable[["Seen"], object], what: str, timeout_s: float = 15) -> None:
        try:
            await until(lambda: condition(self), what=what, timeout_s=timeout_s)
        except TimeoutError as error:
            error.add_note(f"last: {self.state}\nfailures: {self.failures}")
            raise

    async def until_ids(self, *ids: str, health: Health | None = None) -> None:
        """Wait until exactly these are listed (all with ``health``, if given)."""

        def met(seen: "Seen") -> bool:
            healths = {each[1] for each in seen.state.values()}
            return (
                bool(seen.observations)
                and sorted(seen.state) == sorted(ids)
                and (health is None or healths == {health})
            )

        await self.until(met, f"exactly {ids} to be listed {health or ''}")


class Provider(Protocol):
    """Something real that knows services: a test changes it behind the back of the source."""

    async def source(self) -> Source:
        """A started source; the provider closes it."""

    async def put(self, endpoint: Endpoint, service: Name = REVIEWS) -> None:
        """Add an instance, or change it."""

    async def remove(self, id_: str, service: Name = REVIEWS) -> None:
        """Take an instance out without any announcement."""

    async def kill(self) -> None:
        """End it as a crash would."""

    async def restart_empty(self) -> None:
        """Start it again, all forgotten."""


class SharedAgent(ConsulAgent):
    """One agent for the tests of a module, empty again for each.

    In dev mode it has its leader in a fifth of a second, keeps its state in memory and so forgets it with each restart.
    """

    def __init__(self, binary: Path, directory: Path) -> None:
        super().__init__(binary, directory)
        settings = json.loads(self._config.read_text())
        for key in ("server", "bootstrap_expect", "data_dir", "performance"):
            del settings[key]
        self._config.write_text(json.dumps(settings))

    async def start(self) -> None:
        self.process = Process.start(self._binary, "agent", "-dev", f"-config-file={self._config}", log=self.log)
        await self.process.until(self._has_leader, what="Consul to elect its leader", timeout_s=30)

    async def attach(self) -> None:
        """Serve one test: running, and with nothing registered."""
        self._session = aiohttp.ClientSession(self.url, timeout=aiohttp.ClientTimeout(total=5))
        if self.process is None or not self.process.is_running:
            await self.start()
        for id_ in await self.get("/v1/agent/services"):
            await self.put(f"/v1/agent/service/deregister/{quote(id_, safe='')}")

    async def detach(self) -> None:
        """The test is over."""
        if self._session:
            await self._session.close()


def shared_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedAgent]:
    """To be made a fixture of module scope."""
    agent = SharedAgent(require("consul"), tmp_path_factory.mktemp("consul"))
    yield agent
    if agent.process:
        asyncio.run(agent.process.kill())  # in order it would take 2 s


class ConsulProvider:
    def __init__(self, agent: SharedAgent) -> None:
        self.agent = agent
        self.sources: list[ConsulSource] = []
        self._healths: dict[str, Health] = {}

    async def source(self) -> ConsulSource:
        source = ConsulSource(ConsulConfig(self.agent.url))
        await source.start()
        self.sources.append(source)
        return source

    async def put(self, endpoint: Endpoint, service: Name = REVIEWS) -> None:
        leaving = endpoint.health is Health.LEAVING
        status = "passing" if leaving else endpoint.health.value
        meta = dict(endpoint.metadata)
        if service.namespace != "default":
            meta["namespace"] = service.namespace
        body = {
            "ID": endpoint.id,
            "Name": service.name,
            "Address": endpoint.address,
            "Port": endpoint.port,
            "Meta": meta,
            "Tags": list(endpoint.tags),
            "Check": {"CheckID": f"service:{endpoint.id}", "Name": "test", "TTL": "10m", "Status": status},
        }
        await self.agent.put("/v1/agent/service/register", body)
        # A check that is registered again keeps its status, so that one is changed by itself. Only what has to change:
        # each call is a wake of every watch.
        before = self._healths.get(endpoint.id, endpoint.health)
        if before is not endpoint.health:
            await self.agent.put(f"/v1/agent/check/update/service:{endpoint.id}", {"Status": status})
        if leaving or before is Health.LEAVING:
            await self.agent.put(f"/v1/agent/service/maintenance/{endpoint.id}", enable="true" if leaving else "false")
        self._healths[endpoint.id] = endpoint.health

    async def remove(self, id_: str, service: Name = REVIEWS) -> None:
        await self.agent.put(f"/v1/agent/service/deregister/{id_}")

    async def kill(self) -> None:
        self._healths.clear()
        await self.agent.kill()

    async def restart_empty(self) -> None:
        await self.agent.start()

    async def close(self) -> None:
        for source in self.sources:
            await source.close()


@contextlib.asynccontextmanager
async def consul_provider(agent: SharedAgent) -> AsyncIterator[ConsulProvider]:
    await agent.attach()
    provider = ConsulProvider(agent)
    try:
        yield provider
    finally:
        await provider.close()
        await agent.detach()


class RegistryServer:
    """The control server's real registry behind a real port."""

    def __init__(self, lease_s: float = 1.0) -> None:
        self.port = free_port()
        self.lease_s = lease_s
        self.epochs = 0
        self.registry: Registry | None = None
        self._server: grpc.aio.Server | None = None
        self._long_calls = LongCalls()
        self._tasks = Tasks("registry server")

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        clock = asyncio.get_running_loop().time
        self.epochs += 1
        self.registry = Registry(f"epoch {self.epochs}", clock(), self.lease_s)
        self._long_calls = LongCalls()
        service = RegistryService(self.registry, clock, self._long_calls)
        options = (("grpc.http2.min_ping_interval_without_data_ms", 5_000), ("grpc.so_reuseport", 0))
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((service.handlers(),))
        assert self._server.add_insecure_port(self.target) == self.port
        await self._server.start()
        self._tasks.start(service.run(), "expire")

    async def stop(self) -> None:
        """End it at once, streams and all, as the control server does."""
        if self._server:
            self._long_calls.end()
            await self._server.stop(0)
            self._server = None
        await self._tasks.close()


class RegistryProvider:
    """Holds the leases of the instances that a test put in."""

    def __init__(self) -> None:
        self.server = RegistryServer()
        self.sources: list[RegistrySource] = []
        self._leases: dict[tuple[Name, str], Endpoint] = {}
        self._tasks = Tasks("registry provider")
        self._channel: grpc.aio.Channel | None = None

    async def start(self) -> None:
        await self.server.start()
        options = (("grpc.max_reconnect_backoff_ms", 100), ("grpc.initial_reconnect_backoff_ms", 100))
        self._channel = grpc.aio.insecure_channel(self.server.target, options=options)
        self._tasks.start(self._renew(), "renew")

    @property
    def _stub(self) -> RegistryStub:
        assert self._channel
        return RegistryStub(self._channel)

    async def source(self) -> RegistrySource:
        source = RegistrySource(self.server.target)
        await source.start()
        self.sources.append(source)
        return source

    async def put(self, endpoint: Endpoint, service: Name = REVIEWS) -> None:
        request = registry_pb2.RegisterRequest(
            service=encode_name(service), endpoint=encode_endpoint(endpoint), lease=encode_duration(1)
        )
        await self._stub.Register(request, wait_for_ready=True, timeout=10)
        self._leases[service, endpoint.id] = endpoint

    async def remove(self, id_: str, service: Name = REVIEWS) -> None:
        del self._leases[service, id_]  # and the lease runs out

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            for (service, id_), each in list(self._leases.items()):
                request = registry_pb2.RenewRequest(
                    service=encode_name(service), instance_id=id_, health=encode_health(each.health)
                )
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self._stub.Renew(request, timeout=1)

    async def kill(self) -> None:
        self._leases.clear()
        await self.server.stop()

    async def restart_empty(self) -> None:
        await self.server.start()

    async def close(self) -> None:
        for source in self.sources:
            await source.close()
        await self._tasks.close()
        if self._channel:
            await self._channel.close(None)
        await self.server.stop()


class FileProvider:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.sources: list[FileSource] = []
        self._services: dict[Name, dict[str, Endpoint]] = {}
        self._write()

    async def source(self) -> FileSource:
        source = FileSource(self.path, poll_s=0.05)
        await source.start()
        self.sources.append(source)
        return source

    async def put(self, endpoint: Endpoint, service: Name = REVIEWS) -> None:
        self._services.setdefault(service, {})[endpoint.id] = endpoint
        self._write()

    async def remove(self, id_: str, service: Name = REVIEWS) -> None:
        del self._services[service][id_]
        self._write()

    async def kill(self) -> None:
        self.path.unlink()
        self._services.clear()

    async def restart_empty(self) -> None:
        self._write()

    async def close(self) -> None:
        for source in self.sources:
            await source.close()

    def _write(self) -> None:
        services = {
            f"{service.namespace}/{service.name}": [
                {
                    "id": each.id,
                    "address": each.address,
                    "port": each.port,
                    "metadata": dict(each.metadata),
                    "tags": list(each.tags),
                    "health": each.health.value,
                }
                for each in endpoints.values()
            ]
            for service, endpoints in self._services.items()
        }
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({"services": services}))
        new.replace(self.path)


@contextlib.asynccontextmanager
async def registry_provider() -> AsyncIterator[RegistryProvider]:
    provider = RegistryProvider()
    await provider.start()
    try:
        yield provider
    finally:
        await provider.close()
