"""A Python client for operators: everything the ``mesh`` command does, as calls.

    async with MeshClient("127.0.0.1:15010") as mesh:
        change = await mesh.set_weights(Name.parse("reviews"), {"v1": 90, "v2": 10})
        if not change.is_acked_by_all:
            await mesh.rollback(change.previous_version)

Every call raises one of: ``InvalidError`` (what was asked cannot be; each field named), ``ConflictError`` (the table
has moved on), ``NotFoundError``, ``RefusedError`` (not now; the message says why and what to do), ``UnreachableError``.
All but InvalidError are ``MeshError``. After any of them nothing has changed, except that of ``UnreachableError``
nobody knows: look with ``status`` or ``history``.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from mesh.model.errors import InvalidError, Violation
from mesh.model.name import Name
from mesh.model.policy import ServicePolicy
from mesh.model.route import BackendRef, Route
from mesh.model.snapshot import Kind, SnapshotId
from mesh.model.validate import validate_table
from mesh.model.wire import (
    decode_backend_ref,
    decode_duration,
    decode_kind,
    decode_name,
    decode_policy,
    decode_route,
    decode_snapshot_id,
    decode_timestamp,
    encode_duration,
    encode_kind,
    encode_name,
    encode_policy,
    encode_route,
)
from protos.mesh.v1 import operator_pb2, operator_pb2_grpc

DEFAULT_CONTROL: Final = "127.0.0.1:15010"
CALL_TIMEOUT_S: Final = 10.0
DEFAULT_WAIT_S: Final = 5.0
_M = TypeVar("_M", bound=Message)


class MeshError(Exception):
    """The control server did not do what was asked; the message says why."""


class ConflictError(MeshError):
    """The table is at ``current_version``, not at the one that was expected."""

    def __init__(self, message: str, current_version: int) -> None:
        super().__init__(message)
        self.current_version = current_version


class NotFoundError(MeshError):
    """There is no such resource or version."""


class RefusedError(MeshError):
    """The mesh is not in a state for it. ``reason`` is a word for programs, such as NO_HEALTHY_ENDPOINT."""

    def __init__(self, message: str, reason: str, details: Mapping[str, str]) -> None:
        super().__init__(message)
        self.reason, self.details = reason, dict(details)


class UnreachableError(MeshError):
    """The control server could not be asked, or its answer was lost."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a change is made. ``wait_s`` is how long to wait for the sidecars' answers; 0 does not wait."""

    expect_version: int | None = None
    dry_run: bool = False
    reason: str = ""
    wait_s: float = DEFAULT_WAIT_S
    force: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One resource's part in a change; ``action`` is created, updated, deleted or unchanged."""

    kind: Kind
    name: Name
    action: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One sidecar's answer; ``result`` is acked, nacked or silent. ``took_s`` counts from publishing."""

    node: str
    result: str
    reason: str
    took_s: float


@dataclass(frozen=True, slots=True)
class ChangeResult:
    """A change as made. Equal versions: nothing changed, or it was a dry run."""

    previous_version: int
    version: int
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    answers: tuple[Answer, ...]

    @property
    def is_acked_by_all(self) -> bool:
        """Every sidecar that was connected took it."""
        return all(answer.result == "acked" for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Table:
    """Resources at one version."""

    version: int
    values: tuple[Route | ServicePolicy, ...]


@dataclass(frozen=True, slots=True)
class RuleWeights:
    """The backends of one rule on ``service``; ``rule`` is the rule's name, or its index from 0."""

    service: Name
    route: Name
    rule: str
    backend_refs: tuple[BackendRef, ...]


@dataclass(frozen=True, slots=True)
class Revision:
    """One version in the history."""

    version: int
    when_unix_s: float
    author: str
    reason: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class SidecarStatus:
    """One sidecar; ``state`` is acked, nacked, pending or disconnected, since ``since_unix_s``."""

    node: str
    service: Name | None
    service_version: str
    instance_id: str
    sidecar_version: str
    state: str
    running: SnapshotId
    reason: str
    since_unix_s: float
    peer: str


@dataclass(frozen=True, slots=True)
class Status:
    """The newest table and all sidecars, in order of node."""

    current: SnapshotId
    sidecars: tuple[SidecarStatus, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: a new revision, or a sidecar in a new state."""

    when_unix_s: float
    revision: Revision | None = None
    sidecar: SidecarStatus | None = None


def default_author() -> str:
    """``user@host``, as far as they are known."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


@dataclass(slots=True)
class MeshClient:
    """A connection to a control server; an async context manager. ``author`` stands in the history."""

    target: str = DEFAULT_CONTROL
    author: str = field(default_factory=default_author)
    _channel: grpc.aio.Channel | None = field(default=None, init=False)

    async def __aenter__(self) -> Self:
        # HTTP_PROXY in this environment may well be a sidecar; the control server is not behind it.
        options = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", 64 << 20))
        self._channel = grpc.aio.insecure_channel(self.target, options=options)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def apply(self, values: Iterable[Route | ServicePolicy], options: Options | None = None) -> ChangeResult:
        """Create or replace routes and policies, all or none."""
        given = list(values)
        validate_table(given)  # what is not sound may not even fit into a message
        request = operator_pb2.ApplyRequest(
            routes=[encode_route(value) for value in given if isinstance(value, Route)],
            policies=[encode_policy(value) for value in given if isinstance(value, ServicePolicy)],
            options=self._options(options),
        )
        return _change_result(await self._call("Apply", request, operator_pb2.ChangeResponse, options))

    async def delete(self, kind: Kind, name: Name, options: Options | None = None) -> ChangeResult:
        """Delete one route or policy."""
        request = operator_pb2.DeleteRequest(
            kind=encode_kind(kind), name=encode_name(name), options=self._options(options)
        )
        return _change_result(await self._call("Delete", request, operator_pb2.ChangeResponse, options))

    async def set_weights(
        self, service: Name, weights: Mapping[str, int], route: str = "", options: Options | None = None
    ) -> ChangeResult:
        """Set the weights of subsets of ``service``; ``route`` (ROUTE or ROUTE/RULE) where several rules have them."""
        request = operator_pb2.SetWeightsRequest(
            service=encode_name(service),
            weights=[operator_pb2.SubsetWeight(subset=subset, weight=weight) for subset, weight in weights.items()],
            route=route,
            options=self._options(options),
        )
        return _change_result(await self._call("SetWeights", request, operator_pb2.ChangeResponse, options))

    async def rollback(self, to_version: int = 0, options: Options | None = None) -> ChangeResult:
        """Make the table of ``to_version`` (0: the one before the newest) the newest."""
        request = operator_pb2.RollbackRequest(to_version=to_version, options=self._options(options))
        return _change_result(await self._call("Rollback", request, operator_pb2.ChangeResponse, options))

    async def get(self, kind: Kind, name: Name) -> Route | ServicePolicy:
        """One route or policy."""
        request = operator_pb2.GetRequest(kind=encode_kind(kind), name=encode_name(name))
        response = await self._call("Get", request, operator_pb2.GetResponse)
        return decode_route(response.route) if kind is Kind.ROUTE else decode_policy(response.policy)

    async def list(self, kind: Kind | None = None, namespace: str = "", version: int = 0) -> Table:
        """All routes and policies, or those of one kind or namespace; at an earlier ``version`` if given."""
        request = operator_pb2.ListRequest(
            kind=None if kind is None else encode_kind(kind), namespace=namespace, version=version
        )
        response = await self._call("List", request, operator_pb2.ListResponse)
        routes = [decode_route(message) for message in response.routes]
        return Table(response.version, (*routes, *(decode_policy(message) for message in response.policies)))

    async def weights(self, service: Name | None = None) -> tuple[int, tuple[RuleWeights, ...]]:
        """The table's version, and the backends of every rule on ``service`` (None: on any) with their weights."""
        request = operator_pb2.GetWeightsRequest(service=None if service is None else encode_name(service))
        response = await self._call("GetWeights", request, operator_pb2.GetWeightsResponse)
        return response.version, tuple(
            RuleWeights(
                decode_name(rule.service),
                decode_name(rule.route),
                rule.rule,
                tuple(decode_backend_ref(ref) for ref in rule.backend_refs),
            )
            for rule in response.rules
        )

    async def history(self, limit: int = 0, before_version: int = 0) -> tuple[Revision, ...]:
        """Revisions, newest first; ``limit`` 0 leaves it to the server (20)."""
        request = operator_pb2.HistoryRequest(limit=limit, before_version=before_version)
        response = await self._call("History", request, operator_pb2.HistoryResponse)
        return tuple(_revision(revision) for revision in response.revisions)

    async def status(self) -> Status:
        """The newest table and which sidecars run what."""
        response = await self._call("Status", operator_pb2.StatusRequest(), operator_pb2.StatusResponse)
        return Status(decode_snapshot_id(response.current), tuple(_sidecar(sidecar) for sidecar in response.sidecars))

    async def watch(self) -> AsyncIterator[Event]:
        """The newest revision and all sidecars, then every change as it happens, until the caller stops."""
        try:
            async for event in self._stub().Watch(operator_pb2.WatchEventsRequest()):
                yield Event(
                    decode_timestamp(event.when),
                    _revision(event.revision) if event.HasField("revision") else None,
                    _sidecar(event.sidecar) if event.HasField("sidecar") else None,
                )
        except grpc.aio.AioRpcError as error:
            _raise(self.target, error)

    def _stub(self) -> operator_pb2_grpc.OperatorStub:
        if self._channel is None:
            raise RuntimeError("use the client within `async with`")
        return operator_pb2_grpc.OperatorStub(self._channel)

    def _options(self, options: Options | None) -> operator_pb2.ChangeOptions:
        options = options or Options()
        return operator_pb2.ChangeOptions(
            expect_version=options.expect_version,
            dry_run=options.dry_run,
            author=self.author,
            reason=options.reason,
            wait=encode_duration(options.wait_s),
            force=options.force,
        )

    async def _call(self, method: str, request: Message, response: type[_M], options: Options | None = None) -> _M:
        """One unary call; its errors become ours. ``response`` is the type of the answer."""
        timeout_s = CALL_TIMEOUT_S + (options or Options()).wait_s
        try:
            answer = await getattr(self._stub(), method)(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            _raise(self.target, error)
        assert isinstance(answer, response)  # noqa: S101 - the stub's own type
        return answer


def _raise(target: str, error: grpc.aio.AioRpcError) -> NoReturn:
    """Raise our error for one of gRPC's, with what its google.rpc details say."""
    message = error.details() or error.code().name
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT:
            bad = _detail(error, error_details_pb2.BadRequest())
            fields = [Violation(v.field, v.description) for v in bad.field_violations]
            raise InvalidError(fields or [Violation("", message)]) from error
        case grpc.StatusCode.ABORTED:
            info = _detail(error, error_details_pb2.ErrorInfo())
            raise ConflictError(message, int(info.metadata.get("current_version", "0"))) from error
        case grpc.StatusCode.NOT_FOUND:
            raise NotFoundError(message) from error
        case grpc.StatusCode.FAILED_PRECONDITION:
            info = _detail(error, error_details_pb2.ErrorInfo())
            raise RefusedError(message, info.reason, info.metadata) from error
        case grpc.StatusCode.UNAVAILABLE:
            said = f"no answer from a control server at {target} (is `mesh control` running there?): {message}"
            raise UnreachableError(said) from error
        case code:
            raise UnreachableError(f"the control server at {target} answered {code.name}: {message}") from error


def _detail(error: grpc.aio.AioRpcError, into: Any) -> Any:  # noqa: ANN401 - google.rpc has no types
    """The error's detail of the type of ``into``; ``into`` as it is where there is none."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(into):
                    return into
    return into


def _change_result(message: operator_pb2.ChangeResponse) -> ChangeResult:
    answers = tuple(
        Answer(
            answer.node,
            operator_pb2.SidecarAnswer.Result.Name(answer.result).removeprefix("RESULT_").lower(),
            answer.reason,
            decode_duration(answer.took),
        )
        for answer in message.answers
    )
    return ChangeResult(
        message.previous_version, message.version, _changes(message.changes), tuple(message.warnings), answers
    )


def _changes(messages: Iterable[operator_pb2.ResourceChange]) -> tuple[Change, ...]:
    return tuple(
        Change(
            decode_kind(message.kind),
            decode_name(message.name),
            operator_pb2.ResourceChange.Action.Name(message.action).removeprefix("ACTION_").lower(),
        )
        for message in messages
    )


def _revision(message: operator_pb2.Revision) -> Revision:
    when = decode_timestamp(message.when)
    return Revision(message.version, when, message.author, message.reason, _changes(message.changes))


def _sidecar(message: operator_pb2.SidecarStatus) -> SidecarStatus:
    return SidecarStatus(
        node=message.node,
        service=decode_name(message.service) if message.HasField("service") else None,
        service_version=message.service_version,
        instance_id=message.instance_id,
        sidecar_version=message.sidecar_version,
        state=operator_pb2.SidecarStatus.State.Name(message.state).removeprefix("STATE_").lower(),
        running=decode_snapshot_id(message.running),
        reason=message.reason,
        since_unix_s=decode_timestamp(message.since),
        peer=message.peer,
    )
