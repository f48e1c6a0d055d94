"""Registry: the gRPC shell around the embedded discovery. A service's state is serialised once for all watchers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio

from control.grpc_errors import abort_invalid
from control.long_calls import STOPPING, LongCalls
from control.registry import EXPIRE_EVERY_S, FullError, Registry, ServiceState, UnknownInstanceError
from mesh.model.errors import InvalidError, Violation
from mesh.model.name import Name
from mesh.model.service import Instance
from mesh.model.validate import check_name
from mesh.model.wire import (
    decode_duration,
    decode_endpoint,
    decode_health,
    decode_name,
    encode_duration,
    encode_endpoint,
    encode_name,
)
from protos.mesh.v1 import registry_pb2, resource_pb2

log = logging.getLogger(__name__)

SERVICE: Final = "mesh.v1.Registry"
MAX_WATCHES: Final = 100_000
_Context = grpc.aio.ServicerContext[Any, Any]


class RegistryService:
    """Serves a ``Registry``; ``clock`` gives monotonic seconds."""

    def __init__(self, registry: Registry, clock: Callable[[], float], long_calls: LongCalls) -> None:
        """Serves nothing until ``handlers`` are added to a server and ``run`` runs."""
        self.registry = registry
        self._clock = clock
        self._long_calls = long_calls
        self._bells: dict[Name, set[asyncio.Event]] = {}
        self._watches = 0
        self._serialised: dict[Name, tuple[int, bool, bytes]] = {}

    def handlers(self) -> grpc.GenericRpcHandler:
        """The RPCs of the service, for ``server.add_generic_rpc_handlers``."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Register": grpc.unary_unary_rpc_method_handler(
                    self.register,
                    request_deserializer=registry_pb2.RegisterRequest.FromString,
                    response_serializer=registry_pb2.RegisterResponse.SerializeToString,
                ),
                "Renew": grpc.unary_unary_rpc_method_handler(
                    self.renew,
                    request_deserializer=registry_pb2.RenewRequest.FromString,
                    response_serializer=registry_pb2.RenewResponse.SerializeToString,
                ),
                "Deregister": grpc.unary_unary_rpc_method_handler(
                    self.deregister,
                    request_deserializer=registry_pb2.DeregisterRequest.FromString,
                    response_serializer=registry_pb2.DeregisterResponse.SerializeToString,
                ),
                "Lookup": grpc.unary_unary_rpc_method_handler(
                    self.lookup,
                    request_deserializer=registry_pb2.LookupRequest.FromString,
                    response_serializer=None,
                ),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self.watch,
                    request_deserializer=registry_pb2.WatchRequest.FromString,
                    response_serializer=None,
                ),
            },
        )

    async def run(self) -> None:
        """Let leases end and tell watchers, until cancelled."""
        was_settled = False
        while True:
            await asyncio.sleep(EXPIRE_EVERY_S)
            now = self._clock()
            for service in self.registry.expire(now):
                log.info("registry: a lease of %s ended", service)
                self._ring(service)
            if self.registry.is_settled(now) and not was_settled:
                was_settled = True
                for service in list(self._bells):
                    self._ring(service)

    async def register(self, request: registry_pb2.RegisterRequest, context: _Context) -> registry_pb2.RegisterResponse:
        """Take an instance in."""
        asked_s = decode_duration(request.lease) if request.HasField("lease") else None
        try:
            instance = Instance(decode_name(request.service), decode_endpoint(request.endpoint))
            lease_s = self.registry.register(instance, self._clock(), asked_s)
        except InvalidError as error:
            await abort_invalid(context, error)
        except FullError as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        self._ring(instance.service)
        return registry_pb2.RegisterResponse(lease=encode_duration(lease_s))

    async def renew(self, request: registry_pb2.RenewRequest, context: _Context) -> registry_pb2.RenewResponse:
        """Prolong a lease."""
        service = decode_name(request.service)
        try:
            before = self.registry.revision(service)
            health = decode_health(request.health)
            lease_s = self.registry.renew(service, request.instance_id, health, self._clock())
        except InvalidError as error:
            await abort_invalid(context, error)
        except UnknownInstanceError:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"{request.instance_id!r} of {service} is not registered here; register it"
            )
        if self.registry.revision(service) != before:
            self._ring(service)
        return registry_pb2.RenewResponse(lease=encode_duration(lease_s))

    async def deregister(
        self, request: registry_pb2.DeregisterRequest, context: _Context
    ) -> registry_pb2.DeregisterResponse:
        """Take an instance out."""
        del context
        service = decode_name(request.service)
        if self.registry.deregister(service, request.instance_id, self._clock()):
            self._ring(service)
        return registry_pb2.DeregisterResponse()

    async def lookup(self, request: registry_pb2.LookupRequest, context: _Context) -> bytes:
        """The state now. A registry that has not settled cannot say that there is no such service."""
        service = await self._service(request.service, context)
        state = self.registry.state(service, self._clock())
        if state is None and self.registry.is_settled(self._clock()):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no instance of {service} ever registered here")
        return self._serialise(service, state)

    async def watch(self, request: registry_pb2.WatchRequest, context: _Context) -> None:
        """The state now and after every change; a slow watcher skips to the newest."""
        service = await self._service(request.service, context)
        if self._watches >= MAX_WATCHES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"this registry serves {MAX_WATCHES} watches")
        bell = asyncio.Event()
        self._bells.setdefault(service, set()).add(bell)
        self._watches += 1
        try:
            with self._long_calls.ringing(bell):
                await self._tell(service, bell, context)
        finally:
            self._watches -= 1
            self._bells[service].discard(bell)
            if not self._bells[service]:
                del self._bells[service]

    async def _tell(self, service: Name, bell: asyncio.Event, context: _Context) -> None:
        """Write the newest state whenever ``bell`` has rung."""
        told = b""
        while not self._long_calls.is_ending:
            bell.clear()
            body = self._serialise(service, self.registry.state(service, self._clock()))
            if body != told:
                await context.write(body)
                told = body
            await bell.wait()
        await context.abort(grpc.StatusCode.UNAVAILABLE, STOPPING)

    async def _service(self, message: resource_pb2.Name, context: _Context) -> Name:
        service = decode_name(message)
        problems = [Violation(v.field, v.message) for v in check_name(service, "service")]
        if problems:
            await abort_invalid(context, InvalidError(problems))
        return service

    def _ring(self, service: Name) -> None:
        for bell in self._bells.get(service, ()):
            bell.set()

    def _serialise(self, service: Name, state: ServiceState | None) -> bytes:
        """The state as bytes, the same object for all watchers of one revision."""
        is_settled = self.registry.is_settled(self._clock())
        revision = state.revision if state else 0
        held = self._serialised.get(service)
        if held is not None and held[:2] == (revision, is_settled):
            return held[2]
        body = registry_pb2.ServiceState(
            service=encode_name(service),
            endpoints=[encode_endpoint(endpoint) for endpoint in state.endpoints] if state else [],
            registry_epoch=self.registry.epoch,
            settled=is_settled,
            revision=revision,
            lease=encode_duration(self.registry.lease_s),
        ).SerializeToString()
        if state is not None:  # a flood of unknown names must leave nothing behind
            self._serialised[service] = (revision, is_settled, body)
        return body
