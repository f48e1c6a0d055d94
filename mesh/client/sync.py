"""The client for programs without an event loop: scripts, jobs, notebooks.

It has a channel of gRPC's own threads rather than a loop that it runs: so it may be used in a thread of a program that
has a loop, and from several threads at one time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

import grpc

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
class SyncMeshClient:
    """``MeshClient`` without ``await``; a context manager. Each call blocks its thread until it is answered."""

    target: str = DEFAULT_CONTROL
    author: str = field(default_factory=default_author)
    _channel: grpc.Channel | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        self._channel = grpc.insecure_channel(self.target, options=CHANNEL_OPTIONS)
        return self

    def __exit__(self, *_: object) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def apply(self, values: Iterable[Route | ServicePolicy], options: Options | None = None) -> ChangeResult:
        """Create or replace routes and policies, all or none."""
        return self._call(requests.apply(self.author, values, options))

    def delete(self, kind: Kind, name: Name, options: Options | None = None) -> ChangeResult:
        """Delete one route or policy."""
        return self._call(requests.delete(self.author, kind, name, options))

    def set_weights(
        self, service: Name, weights: Mapping[str, int], route: str = "", options: Options | None = None
    ) -> ChangeResult:
        """Set the weights of subsets of ``service``; ``route`` (ROUTE or ROUTE/RULE) where several rules have them."""
        return self._call(requests.set_weights(self.author, service, weights, route, options))

    def rollback(self, to_version: int = 0, options: Options | None = None) -> ChangeResult:
        """Make the table of ``to_version`` (0: the one before the newest) the newest."""
        return self._call(requests.rollback(self.author, to_version, options))

    def get(self, kind: Kind, name: Name) -> Route | ServicePolicy:
        """One route or policy."""
        return self._call(requests.get(kind, name))

    def list(self, kind: Kind | None = None, namespace: str = "", version: int = 0) -> Table:
        """All routes and policies, or those of one kind or namespace; at an earlier ``version`` if given."""
        return self._call(requests.list_(kind, namespace, version))

    def weights(self, service: Name | None = None) -> tuple[int, tuple[RuleWeights, ...]]:
        """The table's version, and the backends of every rule on ``service`` (None: on any) with their weights."""
        return self._call(requests.weights(service))

    def history(self, limit: int = 0, before_version: int = 0) -> tuple[Revision, ...]:
        """Revisions, newest first; ``limit`` 0 leaves it to the server (20)."""
        return self._call(requests.history(limit, before_version))

    def status(self) -> Status:
        """The newest table and which sidecars run what."""
        return self._call(requests.status())

    def watch(self) -> Iterator[Event]:
        """The newest revision and all sidecars, then every change as it happens, until the caller stops.

        Waits for the next one without end; close the iterator (``contextlib.closing``) to stop it at once.
        """
        call = self._stub().Watch(operator_pb2.WatchEventsRequest())
        try:
            for message in call:
                yield read_event(message)
        except grpc.RpcError as error:
            raise translate(self.target, error) from error
        finally:
            call.cancel()

    def _stub(self) -> OperatorStub:
        if self._channel is None:
            raise RuntimeError("use the client within `with`")
        return OperatorStub(self._channel)

    def _call(self, request: Request[T]) -> T:
        """One unary call; its errors become ours."""
        try:
            answer = getattr(self._stub(), request.method)(request.message, timeout=request.timeout_s)
        except grpc.RpcError as error:
            raise translate(self.target, error) from error
        return request.read(answer)
