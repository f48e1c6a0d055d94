"""Names, times and ids between the model and protobuf, and what all of ``wire`` shares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.model.errors import Violation
from mesh.model.name import DEFAULT_NAMESPACE, Name
from mesh.model.snapshot import SnapshotId
from protos.mesh.v1 import discovery_pb2, resource_pb2

_NS_PER_S: Final = 10**9


def encode_name(name: Name) -> resource_pb2.Name:
    """A Name message."""
    return resource_pb2.Name(namespace=name.namespace, name=name.name)


def decode_name(message: resource_pb2.Name) -> Name:
    """A Name; an empty namespace means the default one. Not checked: ``validate.py`` does that."""
    return Name(message.namespace or DEFAULT_NAMESPACE, message.name)


def encode_duration(seconds: float) -> Duration:
    """A Duration to the nanosecond."""
    whole, part = divmod(seconds, 1)
    total = int(whole) * _NS_PER_S + round(part * _NS_PER_S)
    return Duration(seconds=total // _NS_PER_S, nanos=total % _NS_PER_S)


def decode_duration(message: Duration) -> float:
    """Seconds. Integers are divided, which rounds correctly: 1001 ms comes back as the float 1.001."""
    return (message.seconds * _NS_PER_S + message.nanos) / _NS_PER_S


def encode_timestamp(unix_s: float) -> Timestamp:
    """A Timestamp to the nanosecond."""
    duration = encode_duration(unix_s)
    return Timestamp(seconds=duration.seconds, nanos=duration.nanos)


def decode_timestamp(message: Timestamp) -> float:
    """Unix seconds."""
    return (message.seconds * _NS_PER_S + message.nanos) / _NS_PER_S


def encode_snapshot_id(value: SnapshotId) -> discovery_pb2.SnapshotId:
    """A SnapshotId message."""
    return discovery_pb2.SnapshotId(epoch=value.epoch, version=value.version, digest=value.digest)


def decode_snapshot_id(message: discovery_pb2.SnapshotId) -> SnapshotId:
    """A SnapshotId; an empty message is ``NO_SNAPSHOT``."""
    return SnapshotId(message.epoch, message.version, message.digest)


def unknown_enum(value: int, words: Iterable[object]) -> str:
    """What to say of an enum value that this version does not know."""
    accepted = ", ".join(str(getattr(word, "value", word)) for word in words)
    return f"value {value} is not known here, one of {accepted} is"


def unknown_fields(message: Message) -> list[Violation]:
    """A violation if the message, or one within it, has fields this version does not know; they are removed."""
    before = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() == before:
        return []
    return [Violation("", "has fields that this version does not know; it would act without them")]
