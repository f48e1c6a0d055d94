"""RoutingDiscovery: the gRPC shell between the sidecars' streams and the hub.

Registered as generic handlers, so that a push is written as the bytes the hub serialised once, not as a message that
gRPC would serialise again for each of a thousand streams.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import grpc.aio

from control.grpc_errors import abort_invalid
from control.hub import Hub, Stream
from control.long_calls import STOPPING, LongCalls
from control.subscription import ProtocolError, SidecarInfo
from mesh.model.errors import InvalidError, Violation
from mesh.model.name import is_label
from mesh.model.wire import decode_name, decode_snapshot_id
from mesh.tasks import Tasks
from protos.mesh.v1 import discovery_pb2, resource_pb2

log = logging.getLogger(__name__)

SERVICE: Final = "mesh.v1.RoutingDiscovery"
HELLO_TIMEOUT_S: Final = 5.0
MAX_STREAMS: Final = 5000  # about 50 KB each on this side; more sidecars need more control servers
MAX_TEXT: Final = 253
MAX_LIST: Final = 1024
_GOODBYE_PAUSE_S: Final = 0.05
_LOOK_AGAIN_S: Final = 1.0  # a disconnected sidecar's grace ends without any event

_Context = grpc.aio.ServicerContext[Any, Any]


class SidecarService:
    """Streams of sidecars. ``hello_timeout_s`` is how long a new stream may stay silent."""

    def __init__(
        self,
        hub: Hub,
        long_calls: LongCalls,
        *,
        hello_timeout_s: float = HELLO_TIMEOUT_S,
        max_streams: int = MAX_STREAMS,
    ) -> None:
        """Serves nothing until ``handlers`` are added to a server."""
        self._hub = hub
        self._long_calls = long_calls
        self._hello_timeout_s = hello_timeout_s
        self._max_streams = max_streams
        self._open = 0
        self._tasks = Tasks("sidecar service")

    def handlers(self) -> grpc.GenericRpcHandler:
        """The RPCs of the service, for ``server.add_generic_rpc_handlers``."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Stream": grpc.stream_stream_rpc_method_handler(
                    self.stream,
                    request_deserializer=discovery_pb2.DiscoveryRequest.FromString,
                    response_serializer=None,  # bytes already
                ),
                "AwaitUnseen": grpc.unary_stream_rpc_method_handler(
                    self.await_unseen,
                    request_deserializer=discovery_pb2.AwaitUnseenRequest.FromString,
                    response_serializer=discovery_pb2.AwaitUnseenResponse.SerializeToString,
                ),
            },
        )

    async def stream(self, requests: AsyncIterator[discovery_pb2.DiscoveryRequest], context: _Context) -> None:
        """One sidecar's stream, for as long as it lasts."""
        if self._open >= self._max_streams:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"this control server takes {self._max_streams} streams"
            )
        self._open += 1
        try:
            hello = await self._hello(requests, context)
            await self._serve(hello, requests, context)
        finally:
            self._open -= 1

    async def _serve(
        self,
        hello: discovery_pb2.Hello,
        requests: AsyncIterator[discovery_pb2.DiscoveryRequest],
        context: _Context,
    ) -> None:
        """Push until the reader, a newer stream, the end of the server or of the connection ends it."""
        stream = self._hub.connect(_info(hello, context.peer()), decode_snapshot_id(hello.running))
        node = hello.node
        log.info("sidecar %s connected from %s", node, context.peer())
        reader = self._tasks.start(self._read_to_end(stream, requests), f"answers of {node}")
        try:
            with self._long_calls.ringing(stream.bell):
                await self._write(stream, context)
        finally:
            reader.cancel()
            self._hub.disconnect(stream, why=stream.over or "the stream broke", is_goodbye=stream.is_goodbye)
            log.info("sidecar %s gone: %s", node, stream.over or "the stream broke")
        if stream.replaced_by is not None:
            log.warning("node %s connected twice: %s makes way for %s", node, context.peer(), stream.replaced_by)
            await context.abort(
                grpc.StatusCode.ABORTED, f"a newer stream of node {node!r} came from {stream.replaced_by}"
            )
        if stream.over is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, STOPPING)
        if not stream.is_goodbye:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, stream.over)

    async def _hello(
        self, requests: AsyncIterator[discovery_pb2.DiscoveryRequest], context: _Context
    ) -> discovery_pb2.Hello:
        """The first message, checked; ends the call if it does not come or is none."""
        try:
            async with asyncio.timeout(self._hello_timeout_s):
                first = await anext(requests, None)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no Hello within {self._hello_timeout_s:g} s")
        if first is None or first.WhichOneof("message") != "hello":
            await abort_invalid(context, InvalidError([Violation("message", "the first message must be a Hello")]))
        hello = first.hello
        problems = _hello_problems(hello)
        if problems:
            await abort_invalid(context, InvalidError(problems))
        return hello

    async def _write(self, stream: Stream, context: _Context) -> None:
        """Push whatever is newest, one at a time: gRPC's flow control makes ``write`` wait for a slow sidecar.

        Ends between two writes, when there is a reason to.
        """
        while True:
            await stream.bell.wait()
            if stream.over is not None or stream.replaced_by is not None or self._long_calls.is_ending:
                return
            body = self._hub.take(stream)
            if body is not None:
                await context.write(body)

    async def _read_to_end(self, stream: Stream, requests: AsyncIterator[discovery_pb2.DiscoveryRequest]) -> None:
        """Take the sidecar's answers, then have the writer end, which may take it long; the hub hears at once."""
        try:
            await self._read(stream, requests)
            # A broken stream ends the reading too; what tells it from a goodbye is that the call is cancelled next.
            await asyncio.sleep(_GOODBYE_PAUSE_S)
            stream.over, stream.is_goodbye = "goodbye", True
        except ProtocolError as error:
            stream.over = str(error)
        self._hub.disconnect(stream, why=stream.over, is_goodbye=stream.is_goodbye)
        stream.bell.set()

    async def _read(self, stream: Stream, requests: AsyncIterator[discovery_pb2.DiscoveryRequest]) -> None:
        """Take the sidecar's answers until it closes its side."""
        async for request in requests:
            match request.WhichOneof("message"):
                case "ack":
                    self._hub.acked(stream, request.ack.nonce)
                case "nack":
                    nack = request.nack
                    log.warning("sidecar %s refuses %s: %s", stream.subscription.info.node, nack.nonce, nack.reason)
                    self._hub.nacked(stream, nack.nonce, nack.reason, decode_snapshot_id(nack.running))
                case "endpoint_state":
                    self._take_endpoints(stream, request.endpoint_state)
                case "hello":
                    message = "a second Hello on one stream"
                    raise ProtocolError(message)
                case _:
                    message = "an empty or unknown message"
                    raise ProtocolError(message)

    def _take_endpoints(self, stream: Stream, state: discovery_pb2.EndpointState) -> None:
        service = decode_name(state.service)
        if not (is_label(service.namespace) and is_label(service.name)):
            message = f"an endpoint state of {service!s:.80}, which is no service name"
            raise ProtocolError(message)
        self._hub.saw_endpoints(stream, service, frozenset(state.endpoint_ids) if state.watching else None)

    async def await_unseen(
        self, request: discovery_pb2.AwaitUnseenRequest, context: _Context
    ) -> AsyncIterator[discovery_pb2.AwaitUnseenResponse]:
        """Tell who may still send to the instance, at once and after every change, until nobody may."""
        service = decode_name(request.service)
        if not request.instance_id:
            await abort_invalid(context, InvalidError([Violation("instance_id", "must be given")]))
        told: list[str] | None = None
        with self._hub.endpoint_bell() as bell, self._long_calls.ringing(bell):
            while not self._long_calls.is_ending:
                bell.clear()
                nodes = self._hub.who_may_send_to(service, request.instance_id, request.node)
                if nodes != told:
                    yield discovery_pb2.AwaitUnseenResponse(nodes=nodes)
                    told = nodes
                if not nodes:
                    return
                try:
                    async with asyncio.timeout(_LOOK_AGAIN_S):
                        await bell.wait()
                except TimeoutError:
                    continue
        await context.abort(grpc.StatusCode.UNAVAILABLE, STOPPING)


def _info(hello: discovery_pb2.Hello, peer: str) -> SidecarInfo:
    return SidecarInfo(
        node=hello.node,
        service=decode_name(hello.service) if hello.HasField("service") else None,
        service_version=hello.service_version,
        instance_id=hello.instance_id,
        sidecar_version=hello.sidecar_version,
        capabilities=tuple(hello.capabilities),
        wanted_services=tuple(decode_name(name) for name in hello.wanted_services),
        peer=peer,
    )


def _hello_problems(hello: discovery_pb2.Hello) -> list[Violation]:
    problems = [
        Violation(f"hello.{key}", f"has more than {MAX_TEXT} characters")
        for key in ("node", "service_version", "instance_id", "sidecar_version")
        if len(getattr(hello, key)) > MAX_TEXT
    ]
    problems += [
        Violation(f"hello.{key}", f"has more than {MAX_LIST} entries")
        for key in ("capabilities", "wanted_services")
        if len(getattr(hello, key)) > MAX_LIST
    ]
    if not hello.node or not hello.node.isprintable():
        problems.append(Violation("hello.node", "must name the sidecar, in printable characters"))
    if hello.HasField("service") and not _is_name(hello.service):
        problems.append(Violation("hello.service", "is no service name (DNS labels)"))
    return problems


def _is_name(name: resource_pb2.Name) -> bool:
    decoded = decode_name(name)
    return is_label(decoded.namespace) and is_label(decoded.name)
