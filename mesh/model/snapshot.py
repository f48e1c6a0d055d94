"""Snapshots: the whole routing table at one version, checked as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from mesh.model.name import Name
from mesh.model.policy import ServicePolicy
from mesh.model.route import Route


class Kind(Enum):
    """Kinds of resources; the values are the words operators write."""

    ROUTE = "HTTPRoute"
    GRPC_ROUTE = "GRPCRoute"
    TCP_ROUTE = "TCPRoute"
    SERVICE_POLICY = "ServicePolicy"


def kind_of(value: Route | ServicePolicy) -> Kind:
    """The kind of a resource."""
    return Kind(value.kind.value) if isinstance(value, Route) else Kind.SERVICE_POLICY


@dataclass(frozen=True, slots=True)
class SnapshotId:
    """Names one state of the table. ``version`` compares only within one ``epoch``, the identity of the store."""

    epoch: str
    version: int
    digest: str

    def __str__(self) -> str:
        """``v7``, or ``none`` where there is no table yet."""
        return f"v{self.version}" if self.epoch else "none"


NO_SNAPSHOT = SnapshotId("", 0, "")


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource with its serialised form; equal ``digest`` means an equal resource."""

    kind: Kind
    name: Name
    value: Route | ServicePolicy
    body: bytes
    digest: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All resources at one version, in order of kind and name. Build it with ``make_snapshot``."""

    id: SnapshotId
    resources: tuple[Resource, ...]

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes, in order of name."""
        return tuple(r.value for r in self.resources if isinstance(r.value, Route))

    @property
    def policies(self) -> tuple[ServicePolicy, ...]:
        """The service policies, in order of name."""
        return tuple(r.value for r in self.resources if isinstance(r.value, ServicePolicy))


def body_digest(body: bytes) -> str:
    """SHA-256 of a serialised resource, hex."""
    return hashlib.sha256(body).hexdigest()


def snapshot_digest(resources: Iterable[Resource]) -> str:
    """SHA-256, hex, over kind, name and digest of all resources in the order given."""
    whole = hashlib.sha256()
    for resource in resources:
        whole.update(
            f"{resource.kind.value}\0{resource.name.namespace}\0{resource.name.name}\0{resource.digest}\n".encode()
        )
    return whole.hexdigest()


def make_snapshot(epoch: str, version: int, resources: Iterable[Resource]) -> Snapshot:
    """Put resources into their order and name the snapshot they make."""
    ordered = tuple(sorted(resources, key=lambda r: (r.kind.value, r.name)))
    return Snapshot(SnapshotId(epoch, version, snapshot_digest(ordered)), ordered)
