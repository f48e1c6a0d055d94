"""A control server for tests, and sidecars that are nothing but a control stream."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from control.config import ControlConfig
from control.server import ControlServer
from mesh.model.name import Name
from mesh.model.route import BackendRef, Parent, Route, Rule
from mesh.model.snapshot import NO_SNAPSHOT, Snapshot, SnapshotId
from mesh.model.wire import decode_snapshot_id, encode_name, encode_snapshot_id, snapshot_from_push
from mesh.tasks import Tasks
from protos.mesh.v1 import discovery_pb2, discovery_pb2_grpc, registry_pb2, registry_pb2_grpc, resource_pb2

_T = TypeVar("_T")

REVIEWS = Name("default", "reviews")
ANSWER_S = 5.0
"""How long a test waits for what must come."""


_tasks = Tasks("test")


def background(work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """Run ``work`` beside the test, which awaits it."""
    return _tasks.start(work, getattr(work, "__name__", "work"))


def split(service: Name = REVIEWS, name: str | None = None, **weights: int) -> Route:
    """A route that splits ``service`` between versions, as ``weights`` says."""
    refs = tuple(BackendRef(service, subset, weight) for subset, weight in weights.items())
    return Route(Name(service.namespace, name or service.name), (Parent(service),), (Rule(backend_refs=refs),))


@asynccontextmanager
async def control_server(data: Path | None = None, lease_s: float = 10.0, **more: Any) -> AsyncIterator[ControlServer]:
    """A control server in this process, on free ports."""
    async with ControlServer(ControlConfig("127.0.0.1:0", "127.0.0.1:0", data, lease_s=lease_s, **more)) as server:
        yield server


class FakeSidecar:
    """A sidecar's control stream, driven by hand. Its channel is its own, as a real sidecar's is."""

    def __init__(self, address: str, node: str, service: Name | None = None, version: str = "") -> None:
        self.node = node
        self._hello = discovery_pb2.Hello(
            node=node, service=encode_name(service) if service else None, service_version=version
        )
        # Without the probe the receive window stays at 64 KiB, so that one who reads nothing is soon noticed.
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0))
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self._stub = discovery_pb2_grpc.RoutingDiscoveryStub(self._channel)
        self.stream: Any = None
        self.snapshot: Snapshot | None = None
        self._answering: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._answering is not None:
            self._answering.cancel()
            await asyncio.gather(self._answering, return_exceptions=True)
        if self.stream is not None:
            self.stream.cancel()
        await self._channel.close()

    async def connect(self, running: SnapshotId = NO_SNAPSHOT) -> Self:
        """Open the stream and say Hello."""
        self.stream = self._stub.Stream()
        hello = discovery_pb2.Hello()
        hello.CopyFrom(self._hello)
        hello.running.CopyFrom(encode_snapshot_id(running))
        await self.send(hello=hello)
        return self

    async def send(self, **message: Any) -> None:
        """Send one DiscoveryRequest."""
        await self.stream.write(discovery_pb2.DiscoveryRequest(**message))

    async def push(self) -> discovery_pb2.SnapshotPush:
        """The next push."""
        async with asyncio.timeout(ANSWER_S):
            push = await self.stream.read()
        assert push is not grpc.aio.EOF, "the stream has ended"
        return push

    async def no_push(self, within_s: float = 0.2) -> bool:
        """Whether nothing comes for a while. What comes later is lost: the stream is of no more use."""
        try:
            async with asyncio.timeout(within_s):
                await asyncio.shield(background(self.stream.read()))
        except TimeoutError:
            return True
        return False

    async def ack(self, push: discovery_pb2.SnapshotPush) -> None:
        if not push.unchanged:
            self.snapshot = snapshot_from_push(push, self.snapshot)
        await self.send(ack=discovery_pb2.Ack(nonce=push.nonce, id=push.id))

    async def nack(self, push: discovery_pb2.SnapshotPush, reason: str) -> None:
        running = encode_snapshot_id(self.snapshot.id if self.snapshot else NO_SNAPSHOT)
        await self.send(nack=discovery_pb2.Nack(nonce=push.nonce, id=push.id, reason=reason, running=running))

    async def accept(self) -> SnapshotId:
        """Take the next push; what it names."""
        push = await self.push()
        await self.ack(push)
        return decode_snapshot_id(push.id)

    def keep_accepting(self) -> None:
        """From now on take every push in the background."""

        async def answer() -> None:
            while (push := await self.stream.read()) is not grpc.aio.EOF:
                await self.ack(push)

        self._answering = background(answer())

    async def sees(self, service: Name, *ids: str, watching: bool = True) -> None:
        """Report an endpoint state."""
        state = discovery_pb2.EndpointState(service=encode_name(service), endpoint_ids=ids, watching=watching)
        await self.send(endpoint_state=state)

    async def leave(self) -> None:
        """Close the stream in order."""
        await self.stream.done_writing()
        async with asyncio.timeout(ANSWER_S):
            assert await self.stream.code() is grpc.StatusCode.OK

    async def ended(self) -> grpc.aio.AioRpcError:
        """The error the server ended the stream with, after whatever it still sent."""
        async with asyncio.timeout(ANSWER_S):
            try:
                while await self.stream.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError as error:
                return error
        raise AssertionError("the stream ended well")


@asynccontextmanager
async def sidecars(address: str, count: int) -> AsyncIterator[list[FakeSidecar]]:
    """``count`` connected sidecars that have taken the first push and take all others."""
    fakes = [FakeSidecar(address, f"sidecar-{i:03}") for i in range(count)]
    try:
        for fake in fakes:
            await fake.connect()
            await fake.accept()
            fake.keep_accepting()
        yield fakes
    finally:
        for fake in fakes:
            await fake.__aexit__()


async def register(address: str, service: Name, versions: Iterable[str]) -> None:
    """Register a healthy instance of each version, with the longest lease."""
    async with grpc.aio.insecure_channel(address) as channel:
        registry = registry_pb2_grpc.RegistryStub(channel)
        for version in versions:
            endpoint = resource_pb2.Endpoint(
                id=f"{service.name}-{version}", address="127.0.0.1", port=8080, metadata={"version": version}
            )
            await registry.Register(registry_pb2.RegisterRequest(service=encode_name(service), endpoint=endpoint))
