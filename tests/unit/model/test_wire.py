import pytest
from google.protobuf.duration_pb2 import Duration

from mesh.model.errors import InvalidError
from mesh.model.name import Name
from mesh.model.policy import ServicePolicy
from mesh.model.route import BackendRef, Parent, PathMatch, PathType, Retry, Route, RouteMatch, Rule, Timeouts
from mesh.model.service import Endpoint, Health
from mesh.model.snapshot import NO_SNAPSHOT, Kind, make_snapshot
from mesh.model.wire import (
    decode_duration,
    decode_endpoint,
    decode_health,
    decode_kind,
    decode_name,
    decode_policy,
    decode_resource,
    decode_route,
    decode_snapshot_id,
    encode_duration,
    encode_endpoint,
    encode_kind,
    encode_resource,
    encode_route,
    encode_snapshot_id,
    push_from_snapshot,
    snapshot_from_push,
)
from protos.mesh.v1 import discovery_pb2, resource_pb2
from tests.support.control import REVIEWS, split

SNAPSHOT = make_snapshot("e", 7, [encode_resource(split(v1=90, v2=10)), encode_resource(ServicePolicy(REVIEWS))])


def push():
    return push_from_snapshot(SNAPSHOT, "7-1", 1_700_000_000.25)


def test_a_push_gives_back_the_snapshot_it_was_made_of():
    assert snapshot_from_push(push()) == SNAPSHOT


def test_an_unchanged_resource_stays_the_same_object():
    first = snapshot_from_push(push())
    changed = make_snapshot("e", 8, [encode_resource(split(v1=50, v2=50)), first.resources[1]])
    second = snapshot_from_push(push_from_snapshot(changed, "8-1", 0), first)
    assert second.resources[1] is first.resources[1]
    assert second.resources[0].value == split(v1=50, v2=50)


def refusal(message):
    with pytest.raises(InvalidError) as refused:
        snapshot_from_push(message)
    return [(violation.field, violation.message) for violation in refused.value.violations]


def test_a_body_that_was_changed_on_the_way_is_refused():
    message = push()
    message.resources[0].body = encode_route(split(v1=1)).SerializeToString(deterministic=True)
    ((field, said),) = refusal(message)
    assert field == "HTTPRoute/reviews.digest"
    assert "the body has" in said


def test_a_resource_under_another_name_is_refused():
    message = push()
    message.resources[0].name.name = "other"
    assert refusal(message) == [("HTTPRoute/other.name", "the body says reviews, the push other")]


def test_a_missing_resource_shows_in_the_digest_of_the_whole():
    message = push()
    del message.resources[1]
    assert [field for field, _ in refusal(message)] == ["id.digest"]


def test_an_unknown_kind_is_refused_by_number():
    message = push()
    message.resources[1].kind = 7
    ((field, said),) = refusal(message)
    assert field == "kind 7/reviews.kind"
    assert "HTTPRoute, GRPCRoute, TCPRoute, ServicePolicy" in said


def test_a_body_that_is_no_message_is_refused():
    message = push()
    message.resources[0].body = b"\xff\xff\xff"
    message.resources[0].digest = "x"
    assert "no readable protobuf" in refusal(message)[0][1]


def test_a_table_that_is_not_sound_is_refused_however_it_got_here():
    bad = make_snapshot(
        "e",
        1,
        [
            encode_resource(
                Route(REVIEWS, (Parent(REVIEWS),), (Rule((RouteMatch(PathMatch(PathType.REGULAR_EXPRESSION, "(")),)),))
            )
        ],
    )
    ((field, said),) = refusal(push_from_snapshot(bad, "n", 0))
    assert field == "HTTPRoute/reviews.rules[0].matches[0].path.value"
    assert "RE2" in said


def test_a_push_without_resources_is_no_snapshot():
    assert refusal(discovery_pb2.SnapshotPush(unchanged=True))[0][0] == "unchanged"


def test_a_field_from_the_future_is_refused_rather_than_ignored():
    # Field 99 of a Rule, within a Route: what a newer server may add, such as another condition.
    message = encode_route(split(v1=1))
    future = resource_pb2.Rule.FromString(b"\x9a\x06\x01x")
    message.rules.append(future)
    with pytest.raises(InvalidError, match="does not know"):
        decode_route(message)
    policy = resource_pb2.ServicePolicy.FromString(b"\x9a\x06\x01x")
    with pytest.raises(InvalidError, match="does not know"):
        decode_policy(policy)


def test_equal_policies_have_equal_bytes_whatever_order_their_subsets_came_in():
    one = ServicePolicy(REVIEWS, {"a": {"x": "1", "y": "2"}, "b": {"z": "3"}})
    other = ServicePolicy(REVIEWS, {"b": {"z": "3"}, "a": {"y": "2", "x": "1"}})
    assert encode_resource(one).body == encode_resource(other).body


def test_what_a_client_leaves_out_has_the_gateway_apis_defaults():
    route = decode_route(
        resource_pb2.Route(
            name=resource_pb2.Name(name="reviews"),
            parents=[resource_pb2.Name(name="reviews")],
            rules=[
                resource_pb2.Rule(
                    backend_refs=[resource_pb2.BackendRef(service=resource_pb2.Name(name="reviews"))],
                    retry=resource_pb2.Retry(codes=[500]),
                    timeouts=resource_pb2.Timeouts(request=Duration()),
                )
            ],
        )
    )
    assert route == Route(
        REVIEWS, (Parent(REVIEWS),), (Rule(backend_refs=(BackendRef(REVIEWS, None, 1),), retry=Retry((500,), 1)),)
    )


def test_an_empty_policy_message_has_every_default():
    assert decode_policy(resource_pb2.ServicePolicy(name=resource_pb2.Name(name="reviews"))) == ServicePolicy(REVIEWS)


def test_a_weight_of_zero_is_not_an_absent_weight():
    route = split(v1=0)
    assert decode_route(encode_route(route)) == route


def test_header_names_come_out_in_lower_case():
    match = resource_pb2.RouteMatch(headers=[resource_pb2.ValueMatch(type=1, name="X-Canary", value="1")])
    route = decode_route(resource_pb2.Route(rules=[resource_pb2.Rule(matches=[match])]))
    assert route.rules[0].matches[0].headers[0].name == "x-canary"


def test_every_unknown_enum_value_is_named_with_its_path():
    match = resource_pb2.RouteMatch(
        path=resource_pb2.PathMatch(type=9, value="/"),
        headers=[resource_pb2.ValueMatch(name="a", value="b")],
    )
    with pytest.raises(InvalidError) as refused:
        decode_route(resource_pb2.Route(rules=[resource_pb2.Rule(matches=[match])]))
    assert [v.field for v in refused.value.violations] == [
        "rules[0].matches[0].path.type",
        "rules[0].matches[0].headers[0].type",
    ]


def test_parent_ports_must_fit_the_parents():
    with pytest.raises(InvalidError, match="parentPorts"):
        decode_route(resource_pb2.Route(parents=[resource_pb2.Name(name="a")], parent_ports=[1, 2]))


def test_a_subset_defined_twice_is_refused():
    message = resource_pb2.ServicePolicy(subsets=[resource_pb2.Subset(name="a"), resource_pb2.Subset(name="a")])
    with pytest.raises(InvalidError, match="twice"):
        decode_policy(message)


@pytest.mark.parametrize("seconds", [0.001, 1.001, 0.1, 5, 1e-9, 86_400 * 365.0, 359_996_400.0])
def test_durations_come_back_as_the_same_float(seconds):
    assert decode_duration(encode_duration(seconds)) == seconds


def test_a_timeout_of_zero_is_none():
    message = encode_route(Route(REVIEWS, (), (Rule(timeouts=Timeouts(1.0, 0.5)),)))
    message.rules[0].timeouts.request.Clear()
    assert decode_route(message).rules[0].timeouts == Timeouts(None, 0.5)


def test_endpoints_healths_kinds_and_ids_come_back():
    endpoint = Endpoint("i", "10.0.0.1", 80, {"version": "v1"}, ("a", "b"), Health.LEAVING)
    assert decode_endpoint(encode_endpoint(endpoint)) == endpoint
    assert decode_health(0) is Health.PASSING
    with pytest.raises(InvalidError, match="passing, warning"):
        decode_health(42)
    assert [decode_kind(encode_kind(kind)) for kind in Kind] == list(Kind)
    assert decode_snapshot_id(encode_snapshot_id(SNAPSHOT.id)) == SNAPSHOT.id
    assert decode_snapshot_id(discovery_pb2.SnapshotId()) == NO_SNAPSHOT
    assert decode_name(resource_pb2.Name(name="x")) == Name("default", "x")


def test_a_stored_resource_is_read_back():
    for resource in SNAPSHOT.resources:
        assert decode_resource(resource.kind, resource.body) == resource
