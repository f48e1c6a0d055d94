"""The client for programs with an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

import grpc.aio

from mesh.client import requests
from mesh.client.errors import translate
from mesh.client.requests import CHANNEL_OPTIONS, DEFAULT_CONTROL, Request, T, default_author, read_event
from mesh.client.values import ChangeResult, Event, Options, Revision, RuleWeights, Status, Table
from mesh.model.name import Name
from mesh.model.policy import ServicePolicy
from mesh.model.route import Route
from mesh.model.snapshot import Kind
from protos.mesh.v1 import operator_pb2
from protos.mesh.v1.operator_pb2_grpc import OperatorStub


@dataclass(slots=True)
class MeshClient:
    """A connection to a control server; an async context manager. ``author`` stands in the history."""

    target: str = DEFAULT_CONTROL
    author: str = field(default_factory=default_author)
    _channel: grpc.aio.Channel | None = field(default=None, init=False)

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self.target, options=CHANNEL_OPTIONS)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def apply(self, values: Iterable[Route | ServicePolicy], options: Options | None = None) -> ChangeResult:
        """Create or replace routes and policies, all or none."""
        return await self._call(requests.apply(self.author, values, options))

    async def delete(self, kind: Kind, name: Name, options: Options | None = None) -> ChangeResult:
        """Delete one route or policy."""
        return await self._call(requests.delete(self.author, kind, name, options))

    async def set_weights(
        self, service: Name, weights: Mapping[str, int], route: str = "", options: Options | None = None
    ) -> ChangeResult:
        """Set the weights of subsets of ``service``; ``route`` (ROUTE or ROUTE/RULE) where several rules have them."""
        return await self._call(requests.set_weights(self.author, service, weights, route, options))

    async def rollback(self, to_version: int = 0, options: Options | None = None) -> ChangeResult:
        """Make the table of ``to_version`` (0: the one before the newest) the newest."""
        return await self._call(requests.rollback(self.author, to_version, options))

    async def get(self, kind: Kind, name: Name) -> Route | ServicePolicy:
        """One route or policy."""
        return await self._call(requests.get(kind, name))

    async def list(self, kind: Kind | None = None, namespace: str = "", version: int = 0) -> Table:
        """All routes and policies, or those of one kind or namespace; at an earlier ``version`` if given."""
        return await self._call(requests.list_(kind, namespace, version))

    async def weights(self, service: Name | None = None) -> tuple[int, tuple[RuleWeights, ...]]:
        """The table's version, and the backends of every rule on ``service`` (None: on any) with their weights."""
        return await self._call(requests.weights(service))

    async def history(self, limit: int = 0, before_version: int = 0) -> tuple[Revision, ...]:
        """Revisions, newest first; ``limit`` 0 leaves it to the server (20)."""
        return await self._call(requests.history(limit, before_version))

    async def status(self) -> Status:
        """The newest table and which sidecars run what."""
        return await self._call(requests.status())

    async def watch(self) -> AsyncIterator[Event]:
        """The newest revision and all sidecars, then every change as it happens, until the caller stops."""
        try:
            async for message in self._stub().Watch(operator_pb2.WatchEventsRequest()):
                yield read_event(message)
        except grpc.aio.AioRpcError as error:
            raise translate(self.target, error) from error

    def _stub(self) -> OperatorStub:
        if self._channel is None:
            raise RuntimeError("use the client within `async with`")
        return OperatorStub(self._channel)

    async def _call(self, request: Request[T]) -> T:
        """One unary call; its errors become ours."""
        try:
            answer = await getattr(self._stub(), request.method)(request.message, timeout=request.timeout_s)
        except grpc.aio.AioRpcError as error:
            raise translate(self.target, error) from error
        return request.read(answer)
