"""Services as discovery tells them: their endpoints, healthy or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from mesh.model.name import Name
from mesh.model.policy import AppProtocol

_APP_PROTOCOLS = {protocol.value: protocol for protocol in AppProtocol}


class Health(Enum):
    """What a discovery source says of an endpoint. Only PASSING and WARNING get new requests."""

    PASSING = "passing"
    WARNING = "warning"
    CRITICAL = "critical"
    LEAVING = "leaving"
    """It announced its leaving (maintenance): its going away is no surprise."""

    @property
    def is_usable(self) -> bool:
        """May get new requests."""
        return self is Health.PASSING or self is Health.WARNING


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One instance of a service: where to reach it and what it says of itself.

    ``id`` is unique within the service. ``metadata`` is never changed after construction.
    """

    id: str
    address: str
    port: int
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    tags: tuple[str, ...] = ()
    health: Health = Health.PASSING

    def in_subset(self, name: str, metadata: Mapping[str, str] | None = None) -> bool:
        """Tell whether the endpoint belongs to the subset ``name``.

        ``metadata`` is what the ServicePolicy demands of that subset; without one, ``name`` means
        ``Meta.version == name``, or a tag ``name`` or ``version=name`` (DESIGN.md, one form for a subset).
        """
        if metadata is not None:
            return all(self.metadata.get(key) == value for key, value in metadata.items())
        return self.metadata.get("version") == name or name in self.tags or f"version={name}" in self.tags

    @property
    def speaks_http2(self) -> bool | None:
        """What its metadata say: ``http2`` (``true`` or ``false``), else ``appProtocol``; None where neither does."""
        told = {"true": True, "false": False}.get(self.metadata.get("http2", ""))
        if told is None and self.app_protocol is not None:
            return self.app_protocol.is_http2
        return told

    @property
    def app_protocol(self) -> AppProtocol | None:
        """What it says of itself by the metadata ``appProtocol``; None where that is missing, or none of ours."""
        return _APP_PROTOCOLS.get(self.metadata.get("appProtocol", ""))

    def __str__(self) -> str:
        """``id (address:port)``, for people."""
        return f"{self.id} ({self.address}:{self.port})"


@dataclass(frozen=True, slots=True)
class Instance:
    """What a sidecar registers: its service's name and itself as an endpoint of it."""

    service: Name
    endpoint: Endpoint
