"""Each call as a value: what is sent and how its answer is read. Both clients send these; nothing here does I/O."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message

from mesh.client.values import (
    Answer,
    Change,
    ChangeResult,
    Event,
    Options,
    Revision,
    RuleWeights,
    SidecarStatus,
    Status,
    Table,
)
from mesh.model.errors import InvalidError, Violation
from mesh.model.name import Name
from mesh.model.policy import ServicePolicy
from mesh.model.route import MAX_WEIGHT, Route
from mesh.model.snapshot import Kind
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
from protos.mesh.v1 import operator_pb2

DEFAULT_CONTROL: Final = "127.0.0.1:15010"
CALL_TIMEOUT_S: Final = 10.0
CHANNEL_OPTIONS: Final = (
    # HTTP_PROXY in this environment may well be a sidecar; the control server is not behind it.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 64 << 20),
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """One unary call. ``method`` is of the Operator service; ``read`` makes the result of its answer."""

    method: str
    message: Message
    read: Callable[[Any], T]
    timeout_s: float = CALL_TIMEOUT_S


def default_author() -> str:
    """``user@host``, as far as they are known."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def apply(author: str, values: Iterable[Route | ServicePolicy], options: Options | None) -> Request[ChangeResult]:
    """Create or replace. Raises InvalidError for what may not even fit into a message."""
    given = list(values)
    validate_table(given)
    request = operator_pb2.ApplyRequest(
        routes=[encode_route(value) for value in given if isinstance(value, Route)],
        policies=[encode_policy(value) for value in given if isinstance(value, ServicePolicy)],
        options=_options(author, options),
    )
    return _change("Apply", request, options)


def delete(author: str, kind: Kind, name: Name, options: Options | None) -> Request[ChangeResult]:
    """Delete one."""
    request = operator_pb2.DeleteRequest(
        kind=encode_kind(kind), name=encode_name(name), options=_options(author, options)
    )
    return _change("Delete", request, options)


def set_weights(
    author: str, service: Name, weights: Mapping[str, int], route: str, options: Options | None
) -> Request[ChangeResult]:
    """Set the weights of subsets. Raises InvalidError for what the message could not even carry."""
    outside = [
        Violation(f"weights[{subset}]", f"is {weight}, not 0 to {MAX_WEIGHT}")
        for subset, weight in weights.items()
        if not 0 <= weight <= MAX_WEIGHT
    ]
    if outside:
        raise InvalidError(outside)
    request = operator_pb2.SetWeightsRequest(
        service=encode_name(service),
        weights=[operator_pb2.SubsetWeight(subset=subset, weight=weight) for subset, weight in weights.items()],
        route=route,
        options=_options(author, options),
    )
    return _change("SetWeights", request, options)


def rollback(author: str, to_version: int, options: Options | None) -> Request[ChangeResult]:
    """Make an earlier table the newest."""
    request = operator_pb2.RollbackRequest(to_version=to_version, options=_options(author, options))
    return _change("Rollback", request, options)


def get(kind: Kind, name: Name) -> Request[Route | ServicePolicy]:
    """One route or policy."""

    def read(response: operator_pb2.GetResponse) -> Route | ServicePolicy:
        return decode_policy(response.policy) if kind is Kind.SERVICE_POLICY else decode_route(response.route)

    return Request("Get", operator_pb2.GetRequest(kind=encode_kind(kind), name=encode_name(name)), read)


def list_(kind: Kind | None, namespace: str, version: int) -> Request[Table]:
    """Routes and policies."""
    request = operator_pb2.ListRequest(
        kind=None if kind is None else encode_kind(kind), namespace=namespace, version=version
    )
    return Request("List", request, _table)


def weights(service: Name | None) -> Request[tuple[int, tuple[RuleWeights, ...]]]:
    """The backends of every rule."""
    request = operator_pb2.GetWeightsRequest(service=None if service is None else encode_name(service))
    return Request("GetWeights", request, _rules)


def history(limit: int, before_version: int) -> Request[tuple[Revision, ...]]:
    """Revisions."""
    request = operator_pb2.HistoryRequest(limit=limit, before_version=before_version)
    return Request("History", request, lambda response: tuple(_revision(each) for each in response.revisions))


def status() -> Request[Status]:
    """The newest table and all sidecars."""

    def read(response: operator_pb2.StatusResponse) -> Status:
        return Status(decode_snapshot_id(response.current), tuple(_sidecar(each) for each in response.sidecars))

    return Request("Status", operator_pb2.StatusRequest(), read)


def read_event(message: operator_pb2.Event) -> Event:
    """One message of the Watch stream."""
    return Event(
        decode_timestamp(message.when),
        _revision(message.revision) if message.HasField("revision") else None,
        _sidecar(message.sidecar) if message.HasField("sidecar") else None,
    )


def _options(author: str, options: Options | None) -> operator_pb2.ChangeOptions:
    options = options or Options()
    return operator_pb2.ChangeOptions(
        expect_version=options.expect_version,
        dry_run=options.dry_run,
        author=author,
        reason=options.reason,
        wait=encode_duration(options.wait_s),
        force=options.force,
    )


def _change(method: str, message: Message, options: Options | None) -> Request[ChangeResult]:
    return Request(method, message, _change_result, CALL_TIMEOUT_S + (options or Options()).wait_s)


def _table(response: operator_pb2.ListResponse) -> Table:
    routes = [decode_route(message) for message in response.routes]
    return Table(response.version, (*routes, *(decode_policy(message) for message in response.policies)))


def _rules(response: operator_pb2.GetWeightsResponse) -> tuple[int, tuple[RuleWeights, ...]]:
    return response.version, tuple(
        RuleWeights(
            decode_name(rule.service),
            decode_name(rule.route),
            rule.rule,
            tuple(decode_backend_ref(ref) for ref in rule.backend_refs),
            rule.kind or "HTTPRoute",
        )
        for rule in response.rules
    )


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
