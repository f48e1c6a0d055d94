"""The control stream: takes snapshots, answers ACK or NACK, tells which endpoints this sidecar may send to.

A snapshot that cannot be taken is NACKed with the reason and the last good one stays. A dead control server changes
nothing but the log: the stream is made again with backoff and jitter, and says what already runs so that it is not
sent again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from random import Random

import grpc
import grpc.aio

from mesh.model.errors import InvalidError
from mesh.model.name import Name
from mesh.model.snapshot import NO_SNAPSHOT, Snapshot, SnapshotId
from mesh.model.wire import decode_snapshot_id, encode_name, encode_snapshot_id, snapshot_from_push
from mesh.tasks import Tasks
from mesh.version import VERSION
from protos.mesh.v1 import discovery_pb2
from protos.mesh.v1.discovery_pb2_grpc import RoutingDiscoveryStub

logger = logging.getLogger(__name__)

FIRST_RETRY_S = 0.2
GOODBYE_S = 1.0  # how long the control server may take to end a stream that we end
MAX_RETRY_S = 3.0  # with its jitter all are back within 5 s of a restart, which ``mesh weights set`` waits for
CAPABILITIES = ("http1", "http2", "grpc", "websocket", "tcp", "tls", "retry", "subset")


_Outbox = asyncio.Queue[discovery_pb2.DiscoveryRequest | None]
"""What a stream still has to send; None ends our side of it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the sidecar says it is."""

    node: str
    service: Name
    service_version: str
    instance_id: str


class Feed:
    """See the module. ``apply`` takes a checked snapshot and raises what makes it impossible to take."""

    def __init__(
        self, channel: grpc.aio.Channel, identity: Identity, apply: Callable[[Snapshot], Awaitable[None]], rng: Random
    ) -> None:
        """``channel`` is the owner's to close."""
        self._stub = RoutingDiscoveryStub(channel)
        self._identity = identity
        self._apply = apply
        self._rng = rng
        self._outbox = _Outbox()
        self._endpoints: dict[Name, tuple[str, ...]] = {}
        self._tasks = Tasks("feed")
        self._stream_task: asyncio.Task[None] | None = None
        self._is_closing = False
        self.snapshot: Snapshot | None = None
        self.is_connected = False
        self.is_synced = False
        """The server has said, since this process started, that what runs is the newest."""
        self.last_error = ""
        self.nacks = 0
        self.acks = 0

    def start(self, snapshot: Snapshot | None) -> None:
        """Begin; ``snapshot`` already runs (from disk)."""
        self.snapshot = snapshot
        self._stream_task = self._tasks.start(self._run(), "stream")

    async def close(self) -> None:
        """End the stream, in order: the control server forgets who says goodbye, and expects back whom it lost."""
        self._is_closing = True
        if self.is_connected and self._stream_task is not None:
            self._outbox.put_nowait(None)
            await asyncio.wait([self._stream_task], timeout=GOODBYE_S)
        await self._tasks.close()

    @property
    def running(self) -> SnapshotId:
        """What the sidecar runs."""
        return self.snapshot.id if self.snapshot else NO_SNAPSHOT

    def report_endpoints(self, service: Name, ids: Iterable[str] | None) -> None:
        """Tell which endpoints of a service may get new requests from here; None: it is no longer watched."""
        if ids is None:
            if self._endpoints.pop(service, None) is None:
                return
        else:
            known = tuple(sorted(ids))
            if self._endpoints.get(service) == known:
                return
            self._endpoints[service] = known
        if self.is_connected:
            self._outbox.put_nowait(self._state_message(service))

    async def await_unseen(self, service: Name, instance_id: str) -> AsyncIterator[tuple[str, ...]]:
        """The nodes that may still send to an instance, after every change, until none may. Raises AioRpcError."""
        request = discovery_pb2.AwaitUnseenRequest(
            service=encode_name(service), instance_id=instance_id, node=self._identity.node
        )
        async for answer in self._stub.AwaitUnseen(request):
            yield tuple(answer.nodes)

    # --- the stream -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        wait_s, told = FIRST_RETRY_S, ""
        while True:
            try:
                await self._stream()
                self.last_error = "the control server closed the stream"
            except grpc.aio.AioRpcError as error:
                self.last_error = f"{error.code().name}: {error.details()}"
            if self._is_closing:
                return
            if self.is_connected:
                wait_s = FIRST_RETRY_S
                logger.warning("control stream lost (%s); the table %s stays", self.last_error, self.running)
            elif self.last_error != told:
                logger.warning("no control stream (%s); trying on with table %s", self.last_error, self.running)
            told = self.last_error
            self.is_connected = False
            await asyncio.sleep(wait_s * (0.5 + self._rng.random()))
            wait_s = min(wait_s * 2, MAX_RETRY_S)

    async def _stream(self) -> None:
        self._outbox = _Outbox()
        self._outbox.put_nowait(self._hello())
        for service in self._endpoints:
            self._outbox.put_nowait(self._state_message(service))
        call = self._stub.Stream(self._requests(self._outbox))
        try:
            async for push in call:
                if not self.is_connected:
                    self.is_connected = True
                    logger.info("control stream is up")
                self._outbox.put_nowait(await self._answer(push))
        finally:
            call.cancel()

    async def _requests(self, outbox: _Outbox) -> AsyncIterator[discovery_pb2.DiscoveryRequest]:
        while (message := await outbox.get()) is not None:
            yield message

    async def _answer(self, push: discovery_pb2.SnapshotPush) -> discovery_pb2.DiscoveryRequest:
        """Take the push, or not; gives the ACK or NACK."""
        if push.unchanged:
            self.is_synced = True
            return self._ack(push, decode_snapshot_id(push.id))
        try:
            snapshot = snapshot_from_push(push, self.snapshot)
            await self._apply(snapshot)
        except InvalidError as error:
            return self._nack(push, str(error))
        except Exception as error:  # whatever a table does to us, the last good one stays
            logger.exception("bug while taking snapshot v%d", push.id.version)
            return self._nack(push, f"bug in the sidecar: {type(error).__name__}: {error}")
        self.snapshot = snapshot
        self.is_synced = True
        self.acks += 1
        return self._ack(push, snapshot.id)

    def _ack(self, push: discovery_pb2.SnapshotPush, running: SnapshotId) -> discovery_pb2.DiscoveryRequest:
        ack = discovery_pb2.Ack(nonce=push.nonce, id=encode_snapshot_id(running))
        return discovery_pb2.DiscoveryRequest(ack=ack)

    def _nack(self, push: discovery_pb2.SnapshotPush, reason: str) -> discovery_pb2.DiscoveryRequest:
        self.nacks += 1
        logger.error("snapshot v%d refused, %s stays: %s", push.id.version, self.running, reason)
        nack = discovery_pb2.Nack(
            nonce=push.nonce, id=push.id, reason=reason[:4096], running=encode_snapshot_id(self.running)
        )
        return discovery_pb2.DiscoveryRequest(nack=nack)

    def _hello(self) -> discovery_pb2.DiscoveryRequest:
        me = self._identity
        return discovery_pb2.DiscoveryRequest(
            hello=discovery_pb2.Hello(
                node=me.node,
                service=encode_name(me.service),
                service_version=me.service_version,
                instance_id=me.instance_id,
                sidecar_version=VERSION,
                capabilities=CAPABILITIES,
                running=encode_snapshot_id(self.running),
            )
        )

    def _state_message(self, service: Name) -> discovery_pb2.DiscoveryRequest:
        ids = self._endpoints.get(service)
        return discovery_pb2.DiscoveryRequest(
            endpoint_state=discovery_pb2.EndpointState(
                service=encode_name(service), endpoint_ids=ids or (), watching=ids is not None
            )
        )
