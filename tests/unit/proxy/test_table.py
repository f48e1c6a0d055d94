"""Tables swap whole, and keep what did not change."""

from dataclasses import replace

from mesh.model.name import Name
from mesh.model.route import BackendRef, Parent, Route, Rule
from mesh.model.snapshot import Snapshot, make_snapshot
from mesh.model.wire import encode_resource
from tests.support.dialogue import Conversation


def name(text: str) -> Name:
    return Name("default", text)


def route(service: str, weight: int = 1) -> Route:
    ref = BackendRef(name("pay"), weight=weight)
    return Route(name(service), (Parent(name(service)),), (Rule(backend_refs=(ref,)),))


def snapshot(version: int, *routes: Route) -> Snapshot:
    return make_snapshot("test", version, [encode_resource(r) for r in routes])


def test_what_did_not_change_is_not_compiled_again() -> None:
    plane = Conversation().plane
    plane.apply_table(snapshot(1, route("a"), route("b")))
    before = plane.table
    assert before is not None
    plane.apply_table(snapshot(2, route("a"), route("b", weight=2)))
    after = plane.table
    assert after is not None
    assert after.entries[name("a")] is before.entries[name("a")]
    assert after.entries[name("b")] is not before.entries[name("b")]


def test_a_route_more_or_less_for_a_service_is_seen() -> None:
    plane = Conversation().plane
    both = replace(route("a"), name=name("z"))
    plane.apply_table(snapshot(1, route("a")))
    first = plane.entry(name("a"))
    plane.apply_table(snapshot(2, route("a"), both))
    assert plane.entry(name("a")) is not first
    plane.apply_table(snapshot(3))
    assert plane.entry(name("a")).matcher(None) is None


def test_clusters_and_their_endpoints_survive_every_swap() -> None:
    plane = Conversation().plane
    service = plane.services[name("pay")]
    endpoint = service.endpoints["pay-1"]
    plane.apply_table(snapshot(1, route("pay")))
    plane.apply_table(snapshot(2))
    assert plane.services[name("pay")] is service
    assert service.endpoints["pay-1"] is endpoint
