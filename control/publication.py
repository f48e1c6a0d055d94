"""A snapshot in the form that all streams write: serialised once, whoever takes it."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.model.snapshot import Snapshot
from mesh.model.wire import encode_snapshot_id, encode_timestamp, push_from_snapshot
from protos.mesh.v1 import discovery_pb2


@dataclass(frozen=True, slots=True)
class Publication:
    """A snapshot ready to send: ``whole`` and ``unchanged`` are serialised SnapshotPush messages."""

    snapshot: Snapshot
    published_unix_s: float
    nonce: str
    whole: bytes
    unchanged: bytes

    @classmethod
    def of(cls, snapshot: Snapshot, nonce: str, published_unix_s: float) -> Publication:
        """Serialise ``snapshot``, once for all streams."""
        unchanged = discovery_pb2.SnapshotPush(
            nonce=nonce,
            id=encode_snapshot_id(snapshot.id),
            unchanged=True,
            published=encode_timestamp(published_unix_s),
        )
        whole = push_from_snapshot(snapshot, nonce, published_unix_s)
        return cls(snapshot, published_unix_s, nonce, whole.SerializeToString(), unchanged.SerializeToString())
