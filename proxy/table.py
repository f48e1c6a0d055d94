"""A snapshot compiled for speed: host to service, path to rule, rule to clusters. Swapped whole.

An exchange keeps the rule it was given, whatever table comes after. Services, clusters, pools and counts live in the
data plane and survive every swap; a route whose digest is unchanged keeps its compiled rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mesh.http.message import RequestHead
from mesh.model.name import DEFAULT_SUFFIXES, Name, is_label
from mesh.model.route import BackendRef, Route, RouteKind, Rule
from mesh.model.snapshot import NO_SNAPSHOT, Snapshot, SnapshotId
from mesh.rules.match import Matcher
from mesh.rules.retry import RetryRule
from mesh.rules.split import Split

if TYPE_CHECKING:
    from proxy.upstream.service import Cluster

MAX_HOSTS: Final = 4096  # distinct Host values remembered; then the memory of them starts anew

ClusterFor = Callable[[BackendRef], "Cluster"]


class Backend:
    """A destination of a rule, resolved."""

    __slots__ = ("cluster", "ref")

    def __init__(self, ref: BackendRef, cluster: Cluster) -> None:
        """``cluster`` is what ``ref`` names."""
        self.ref = ref
        self.cluster = cluster


class CompiledRule:
    """One rule of one route, ready for the request path. ``route`` is None where no route holds: straight through."""

    __slots__ = (
        "backends",
        "holds_heads",
        "index",
        "label",
        "passes_to",
        "per_try_s",
        "retry",
        "route",
        "split",
        "timeout_s",
    )

    def __init__(self, rule: Rule, backends: list[Backend], route: Route | None = None, index: int = 0) -> None:
        """``backends`` in the order of ``rule.backend_refs``."""
        self.route = route
        self.index = index
        self.backends = backends
        self.label = f"{route.name}/{route.rule_label(index)}" if route else "passthrough"
        self.passes_to = backends[0].cluster.service if route is None else None
        """The service itself, where no route holds."""
        self.split = Split(backends, [b.ref.weight for b in backends])
        self.retry = RetryRule(rule.retry)
        self.holds_heads = bool(self.retry.grpc_codes)
        """A call's status may stand in its trailers: see whether they are next before its head is passed on."""
        self.timeout_s = rule.timeouts.request_s or 0.0
        self.per_try_s = rule.timeouts.backend_request_s or 0.0


class ServiceEntry:
    """How requests for one service are routed: by its routes, or straight through to it where it has none."""

    __slots__ = ("_by_port", "_matcher", "connections", "name", "passthrough", "routes", "tcp_rules")

    def __init__(
        self, name: Name, passthrough: CompiledRule | None, routes: list[list[tuple[Route, int, CompiledRule]]]
    ) -> None:
        """``routes``: of every route that has the service as a parent, its (route, rule index, compiled rule)."""
        self.routes = routes
        rules = [rule for route in routes for rule in route if rule[0].kind is not RouteKind.TCP]
        tcp = [rule for route in routes for rule in route if rule[0].kind is RouteKind.TCP]
        # The oldest wins (Gateway API): a connection says nothing by which to choose.
        tcp.sort(key=lambda rule: (rule[0].created_unix_s, rule[0].name))
        self.tcp_rules = [rule for _, _, rule in tcp]
        self.connections = self.tcp_rules[0] if tcp else None
        """The rule of a TCPRoute, which takes every connection; None where there is none."""
        self.name = name
        self.passthrough = passthrough
        ports = {parent.port for route, _, _ in rules for parent in route.parents if parent.service == name}
        whole = [r for r in rules if _holds_for(r[0], name, None)]
        self._matcher = Matcher(whole) if whole else None
        self._by_port = {p: Matcher([r for r in rules if _holds_for(r[0], name, p)]) for p in ports if p is not None}

    def is_made_of(self, routes: list[list[tuple[Route, int, CompiledRule]]]) -> bool:
        """It was compiled from just these, so that it may serve the next table too."""
        return len(routes) == len(self.routes) and all(a is b for a, b in zip(routes, self.routes, strict=True))

    def connection_rule(self) -> CompiledRule:
        """The rule that takes every TCP connection: a TCPRoute's, else straight through."""
        rule = self.connections or self.passthrough
        assert rule is not None  # noqa: S101 - every service has one
        return rule

    def match(self, request: RequestHead, port: int | None) -> CompiledRule | None:
        """The rule that takes the request; None where routes hold and none of them does."""
        matcher = self._matcher if port is None else self.matcher(port)
        return self.passthrough if matcher is None else matcher.match(request)

    def matcher(self, port: int | None) -> Matcher[CompiledRule] | None:
        """The routes that hold for that port; None where none does."""
        return self._matcher if port is None else self._by_port.get(port, self._matcher)


class Table:
    """All of one snapshot, compiled. ``hosts`` remembers how Host values were understood."""

    __slots__ = ("backends", "compiled", "entries", "hosts", "id", "snapshot")

    def __init__(self, snapshot: Snapshot | None, cluster_for: ClusterFor, previous: Table | None = None) -> None:
        """Compile; unchanged routes are taken over from ``previous``."""
        self.snapshot = snapshot
        self.id: SnapshotId = snapshot.id if snapshot else NO_SNAPSHOT
        self.hosts: dict[bytes, tuple[ServiceEntry, int | None]] = {}
        self.entries: dict[Name, ServiceEntry] = {}
        by_parent: dict[Name, list[list[tuple[Route, int, CompiledRule]]]] = {}
        self.backends: set[Name] = set()
        self.compiled: dict[str, list[tuple[Route, int, CompiledRule]]] = {}
        for resource in snapshot.resources if snapshot else ():
            route = resource.value
            if not isinstance(route, Route):
                continue
            compiled = previous.compiled.get(resource.digest) if previous else None
            if compiled is None:
                compiled = [
                    (
                        route,
                        index,
                        CompiledRule(rule, [Backend(r, cluster_for(r)) for r in rule.backend_refs], route, index),
                    )
                    for index, rule in enumerate(route.rules)
                ]
            self.compiled[resource.digest] = compiled
            self.backends.update(ref.service for rule in route.rules for ref in rule.backend_refs)
            for service in {parent.service for parent in route.parents}:
                by_parent.setdefault(service, []).append(compiled)
        for service, routes in by_parent.items():
            entry = previous.entries.get(service) if previous else None
            if entry is None or not entry.is_made_of(routes):
                entry = ServiceEntry(service, passthrough_rule(service, cluster_for), routes)
            self.entries[service] = entry

    def remember(self, authority: bytes, entry: ServiceEntry, port: int | None) -> None:
        """Keep how an authority was understood; bounded, since clients choose what they write there."""
        if len(self.hosts) >= MAX_HOSTS:
            self.hosts.clear()
        self.hosts[authority] = (entry, port)

    def forget(self, name: Name) -> None:
        """Drop what is remembered of a service that is no longer watched."""
        self.hosts = {host: found for host, found in self.hosts.items() if found[0].name != name}


def passthrough_rule(service: Name, cluster_for: ClusterFor) -> CompiledRule:
    """The rule of a service without routes: everything to all its endpoints."""
    ref = BackendRef(service)
    return CompiledRule(Rule(backend_refs=(ref,)), [Backend(ref, cluster_for(ref))])


@dataclass(frozen=True)
class Names:
    """How a Host or :authority names a service."""

    namespace: str
    suffixes: tuple[str, ...] = DEFAULT_SUFFIXES
    """Domains below which names are services: ``reviews.service.consul``, ``reviews.prod.service.consul``."""

    def parse(self, authority: bytes) -> tuple[Name | None, str, int | None]:
        """The service an authority names (None where it cannot be one), its host and its port."""
        text = authority.decode("latin-1").lower()
        host, _, port_text = text.rpartition(":") if ":" in text and not text.endswith("]") else (text, "", "")
        port = int(port_text) if port_text.isdigit() else None
        name = host.removesuffix(".")
        for suffix in self.suffixes:
            if name.endswith(suffix):
                labels = name.removesuffix(suffix).split(".")
                break
        else:
            labels = [name]
        if len(labels) > 2 or not all(map(is_label, labels)):
            return None, host, port
        return Name(labels[1] if len(labels) > 1 else self.namespace, labels[0]), host, port


def _holds_for(route: Route, service: Name, port: int | None) -> bool:
    return any(p.service == service and p.port in (None, port) for p in route.parents)
