"""The only translation between the model and protobuf: resources, endpoints, snapshots and their names.

Encoding is deterministic, as digests are made over it: equal values give equal bytes, whatever order their mappings
have. Decoding is structural (enums, units, what must be present) and reports everything wrong at once; what a value
may be is checked in ``validate.py``, which ``snapshot_from_push`` also asks. Fields this version does not know are
refused, since a rule read without one of its conditions would take the wrong requests.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError, Message

from mesh.model.errors import InvalidError, Violation
from mesh.model.name import Name
from mesh.model.policy import ServicePolicy
from mesh.model.route import Route
from mesh.model.service import Endpoint, Health
from mesh.model.snapshot import Kind, Resource, Snapshot, body_digest, kind_of, make_snapshot
from mesh.model.validate import check_table
from mesh.model.wire_resource import (
    decode_backend_ref,
    decode_policy,
    decode_route,
    encode_backend_ref,
    encode_policy,
    encode_route,
)
from mesh.model.wire_values import (
    decode_duration,
    decode_name,
    decode_snapshot_id,
    decode_timestamp,
    encode_duration,
    encode_name,
    encode_snapshot_id,
    encode_timestamp,
    unknown_enum,
)
from protos.mesh.v1 import discovery_pb2, resource_pb2

__all__ = [
    "decode_backend_ref",
    "decode_duration",
    "decode_endpoint",
    "decode_health",
    "decode_kind",
    "decode_name",
    "decode_policy",
    "decode_resource",
    "decode_route",
    "decode_snapshot_id",
    "decode_timestamp",
    "encode_backend_ref",
    "encode_duration",
    "encode_endpoint",
    "encode_health",
    "encode_kind",
    "encode_name",
    "encode_policy",
    "encode_push_resource",
    "encode_resource",
    "encode_route",
    "encode_snapshot_id",
    "encode_timestamp",
    "push_from_snapshot",
    "snapshot_from_push",
]

_HEALTHS: Final = {
    Health.PASSING: resource_pb2.Endpoint.HEALTH_PASSING,
    Health.WARNING: resource_pb2.Endpoint.HEALTH_WARNING,
    Health.CRITICAL: resource_pb2.Endpoint.HEALTH_CRITICAL,
    Health.LEAVING: resource_pb2.Endpoint.HEALTH_LEAVING,
}
_KINDS: Final = {
    Kind.ROUTE: discovery_pb2.Resource.KIND_ROUTE,
    Kind.GRPC_ROUTE: discovery_pb2.Resource.KIND_GRPC_ROUTE,
    Kind.TCP_ROUTE: discovery_pb2.Resource.KIND_TCP_ROUTE,
    Kind.SERVICE_POLICY: discovery_pb2.Resource.KIND_SERVICE_POLICY,
}


def encode_endpoint(endpoint: Endpoint) -> resource_pb2.Endpoint:
    """An Endpoint message."""
    return resource_pb2.Endpoint(
        id=endpoint.id,
        address=endpoint.address,
        port=endpoint.port,
        metadata=dict(endpoint.metadata),
        tags=endpoint.tags,
        health=encode_health(endpoint.health),
    )


def decode_endpoint(message: resource_pb2.Endpoint) -> Endpoint:
    """An Endpoint. Raises InvalidError for a health that is not known."""
    return Endpoint(
        id=message.id,
        address=message.address,
        port=message.port,
        metadata=dict(message.metadata),
        tags=tuple(message.tags),
        health=decode_health(message.health),
    )


def encode_health(health: Health) -> resource_pb2.Endpoint.Health:
    """The Health enum value."""
    return _HEALTHS[health]


def decode_health(value: int) -> Health:
    """A Health; unspecified means passing. Raises InvalidError for a value that is not known."""
    if value == resource_pb2.Endpoint.HEALTH_UNSPECIFIED:
        return Health.PASSING
    for health, number in _HEALTHS.items():
        if number == value:
            return health
    raise InvalidError([Violation("health", unknown_enum(value, Health))])


def encode_kind(kind: Kind) -> discovery_pb2.Resource.Kind:
    """The Kind enum value."""
    return _KINDS[kind]


def decode_kind(value: int) -> Kind:
    """A Kind. Raises InvalidError for a value that is not known."""
    for kind, number in _KINDS.items():
        if number == value:
            return kind
    raise InvalidError([Violation("kind", unknown_enum(value, Kind))])


def encode_resource(value: Route | ServicePolicy) -> Resource:
    """The resource of a route or policy: deterministic bytes and their digest."""
    message: Message = encode_route(value) if isinstance(value, Route) else encode_policy(value)
    body = message.SerializeToString(deterministic=True)
    return Resource(kind_of(value), value.name, value, body, body_digest(body))


def decode_resource(kind: Kind, body: bytes) -> Resource:
    """A resource from its serialised form. Raises InvalidError, the resource's structure named, not yet checked."""
    value: Route | ServicePolicy
    try:
        if kind is Kind.SERVICE_POLICY:
            value = decode_policy(resource_pb2.ServicePolicy.FromString(body))
        else:
            value = decode_route(resource_pb2.Route.FromString(body))
    except DecodeError as error:
        raise InvalidError([Violation("", f"the {kind.value} is no readable protobuf message: {error}")]) from error
    if kind_of(value) is not kind:
        raise InvalidError([Violation("kind", f"is {kind.value}, and the body is a {kind_of(value).value}")])
    return Resource(kind, value.name, value, body, body_digest(body))


def encode_push_resource(resource: Resource) -> discovery_pb2.Resource:
    """A Resource message of a snapshot push."""
    return discovery_pb2.Resource(
        kind=_KINDS[resource.kind], name=encode_name(resource.name), digest=resource.digest, body=resource.body
    )


def push_from_snapshot(snapshot: Snapshot, nonce: str, published_unix_s: float) -> discovery_pb2.SnapshotPush:
    """The push of a whole snapshot."""
    return discovery_pb2.SnapshotPush(
        nonce=nonce,
        id=encode_snapshot_id(snapshot.id),
        resources=[encode_push_resource(resource) for resource in snapshot.resources],
        published=encode_timestamp(published_unix_s),
    )


def snapshot_from_push(push: discovery_pb2.SnapshotPush, known: Snapshot | None = None) -> Snapshot:
    """The snapshot a push carries, checked whole: digests, kinds, values and references.

    Resources that ``known`` (the snapshot run so far) has with the same kind, name and digest are taken from it, so
    that an unchanged resource stays the same object. Raises InvalidError with all that is wrong, which is the reason
    of the NACK. A push that says ``unchanged`` carries no snapshot and is refused too: handle it before.
    """
    if push.unchanged:
        raise InvalidError([Violation("unchanged", "the push carries no resources")])
    held = {(r.kind, r.name, r.digest): r for r in known.resources} if known else {}
    problems: list[Violation] = []
    resources: list[Resource] = []
    for i, message in enumerate(push.resources):
        try:
            resources.append(_resource_from_push(message, held))
        except InvalidError as error:
            at = f"{_kind_word(message.kind)}/{decode_name(message.name)}" if message.name.name else f"resources[{i}]"
            problems += [Violation(f"{at}.{v.field}" if v.field else at, v.message) for v in error.violations]
    if not problems:
        good = {id(r.value): r.value for r in known.resources} if known else None
        problems += check_table((resource.value for resource in resources), good)
    snapshot = make_snapshot(push.id.epoch, push.id.version, resources)
    if not problems and snapshot.id != decode_snapshot_id(push.id):
        problems.append(Violation("id.digest", f"the resources make {snapshot.id.digest}, not {push.id.digest}"))
    if problems:
        raise InvalidError(problems)
    return snapshot


def _resource_from_push(message: discovery_pb2.Resource, held: dict[tuple[Kind, Name, str], Resource]) -> Resource:
    kind, name = decode_kind(message.kind), decode_name(message.name)
    same = held.get((kind, name, message.digest))
    if same is not None and same.body == message.body:
        return same
    resource = decode_resource(kind, message.body)
    if resource.digest != message.digest:
        raise InvalidError([Violation("digest", f"the body has {resource.digest}, not {message.digest}")])
    if resource.name != name:
        raise InvalidError([Violation("name", f"the body says {resource.name}, the push {name}")])
    return resource


def _kind_word(value: int) -> str:
    return next((kind.value for kind, number in _KINDS.items() if number == value), f"kind {value}")
