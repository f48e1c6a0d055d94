"""Routes: the Gateway API's HTTPRoute with a Service as parent (GAMMA), as frozen values.

Durations are float seconds; None means no timeout. What a value may be is checked in ``validate.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mesh.model.name import Name

DEFAULT_WEIGHT = 1
MAX_WEIGHT = 1_000_000  # Gateway API BackendRef.weight


class PathType(Enum):
    """How a path is compared; the values are the Gateway API's words."""

    EXACT = "Exact"
    PREFIX = "PathPrefix"
    REGULAR_EXPRESSION = "RegularExpression"


class RouteKind(Enum):
    """The Gateway API's kinds of routes."""

    HTTP = "HTTPRoute"
    GRPC = "GRPCRoute"
    TCP = "TCPRoute"


class ValueType(Enum):
    """How a header or query parameter is compared; the values are the Gateway API's words."""

    EXACT = "Exact"
    REGULAR_EXPRESSION = "RegularExpression"


@dataclass(frozen=True, slots=True)
class PathMatch:
    """A path condition. Prefixes match whole elements: ``/abc`` takes ``/abc/d`` and not ``/abcd``."""

    type: PathType = PathType.PREFIX
    value: str = "/"


@dataclass(frozen=True, slots=True)
class ValueMatch:
    """A condition on the first header, or first query parameter, called ``name``. Header names are lower case."""

    name: str
    value: str
    type: ValueType = ValueType.EXACT


@dataclass(frozen=True, slots=True)
class MethodMatch:
    """A condition on a gRPC call: its full service name, its method. None means every one."""

    service: str | None = None
    method: str | None = None
    type: ValueType = ValueType.EXACT


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """Conditions that must all hold. ``method`` None means every method.

    A GRPCRoute's match has ``grpc`` and headers, and takes gRPC calls only; an HTTPRoute's has no ``grpc``.
    """

    path: PathMatch = PathMatch()
    headers: tuple[ValueMatch, ...] = ()
    query_params: tuple[ValueMatch, ...] = ()
    method: str | None = None
    grpc: MethodMatch | None = None


@dataclass(frozen=True, slots=True)
class BackendRef:
    """A weighted destination: ``subset`` of ``service``, or all its endpoints. Its share is weight / sum of weights.

    ``port`` selects among endpoints that name ports; where they name none, the endpoint's own port is used.
    """

    service: Name
    subset: str | None = None
    weight: int = DEFAULT_WEIGHT
    port: int | None = None

    def __str__(self) -> str:
        """``reviews:v2``, for people."""
        return f"{self.service}:{self.subset}" if self.subset else str(self.service)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """``request_s`` bounds the exchange with all its retries, ``backend_request_s`` each attempt."""

    request_s: float | None = None
    backend_request_s: float | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """An explicit retry stanza: these ``codes``, for every method; ``attempts`` are extra tries.

    ``grpc_codes`` are gRPC statuses, of a GRPCRoute's rule; it has no ``codes``.
    ``backoff_s`` is the shortest wait before a retry; None leaves it to the default (full jitter, at most 250 ms).
    """

    codes: tuple[int, ...] = ()
    attempts: int = 1
    backoff_s: float | None = None
    grpc_codes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to the requests that one of ``matches`` takes. ``retry`` None means the default retries."""

    matches: tuple[RouteMatch, ...] = (RouteMatch(),)
    backend_refs: tuple[BackendRef, ...] = ()
    timeouts: Timeouts = Timeouts()
    retry: Retry | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Parent:
    """A service whose traffic a route steers; with ``port``, only what is sent to that port of it."""

    service: Name
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One route. ``created_unix_s`` breaks ties between routes: the older one wins.

    A TCPRoute has one rule, which takes every connection.
    """

    name: Name
    parents: tuple[Parent, ...]
    rules: tuple[Rule, ...]
    created_unix_s: float = 0.0
    kind: RouteKind = RouteKind.HTTP

    def rule_label(self, index: int) -> str:
        """The rule's name, or its index where it has none: what operators call it."""
        return self.rules[index].name or str(index)
