"""Operators against a real control server, through the documented client: what is done, refused and told."""

import asyncio
import json

import aiohttp
import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from mesh.client import ConflictError, MeshClient, NotFoundError, Options, RefusedError, UnreachableError
from mesh.model.errors import InvalidError
from mesh.model.name import Name
from mesh.model.policy import ServicePolicy
from mesh.model.route import BackendRef, Parent, Route, Rule
from mesh.model.snapshot import Kind
from mesh.model.wire import encode_name, encode_route
from protos.mesh.v1 import operator_pb2, operator_pb2_grpc, registry_pb2, registry_pb2_grpc, resource_pb2
from tests.support.control import ANSWER_S, REVIEWS, FakeSidecar, background, control_server, register, sidecars, split

RATINGS = Name("default", "ratings")
NO_WAIT = Options(wait_s=0)


@pytest.fixture
async def server():
    async with control_server() as server:
        yield server


@pytest.fixture
async def mesh(server):
    async with MeshClient(server.grpc_address, author="tester") as mesh:
        yield mesh


def weights_of(route, index=0):
    return {ref.subset: ref.weight for ref in route.rules[index].backend_refs}


# ------------------------------------------------------------------------------------------------ apply, get, delete


async def test_an_applied_table_is_there_to_get_and_list(mesh):
    policy = ServicePolicy(REVIEWS, {"v2": {"version": "v2"}})
    result = await mesh.apply([split(v1=90, v2=10), policy])
    assert (result.previous_version, result.version, result.is_acked_by_all) == (1, 2, True)
    assert [(c.kind, str(c.name), c.action) for c in result.changes] == [
        (Kind.ROUTE, "reviews", "created"),
        (Kind.SERVICE_POLICY, "reviews", "created"),
    ]
    route = await mesh.get(Kind.ROUTE, REVIEWS)
    assert route.rules == split(v1=90, v2=10).rules
    assert route.created_unix_s > 1.7e9
    assert await mesh.get(Kind.SERVICE_POLICY, REVIEWS) == policy
    assert (await mesh.list()).values == (route, policy)
    assert (await mesh.list(Kind.SERVICE_POLICY)).values == (policy,)
    assert (await mesh.list(namespace="shop")).values == ()
    assert (await mesh.list(version=1)).values == ()


async def test_an_apply_that_changes_nothing_makes_no_version(mesh):
    await mesh.apply([split(v1=1)])
    result = await mesh.apply([split(v1=1)])
    assert (result.previous_version, result.version, result.changes[0].action) == (2, 2, "unchanged")


async def test_all_or_none_with_every_problem_by_field(server, mesh):
    bad = split(name="bad", **{"-": 1, "v2": 1_000_001})
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:  # the client would not even send it
        stub = operator_pb2_grpc.OperatorStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Apply(operator_pb2.ApplyRequest(routes=[encode_route(split(v1=1)), encode_route(bad)]))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    (detail,) = details(refused.value)
    bad_request = error_details_pb2.BadRequest()
    assert detail.Unpack(bad_request)
    assert [v.field for v in bad_request.field_violations] == [
        "HTTPRoute/bad.rules[0].backendRefs[0].filters[0].extensionRef.name",
        "HTTPRoute/bad.rules[0].backendRefs[1].weight",
    ]
    with pytest.raises(InvalidError) as refused_here:
        await mesh.apply([split(v1=1), bad])
    assert [v.field for v in refused_here.value.violations] == [v.field for v in bad_request.field_violations]
    assert (await mesh.list()).version == 1


def details(error):
    (packed,) = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
    return status_pb2.Status.FromString(packed).details


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("Apply", operator_pb2.ApplyRequest(), "routes"),
        ("Apply", operator_pb2.ApplyRequest(routes=[resource_pb2.Route()]), "HTTPRoute/.metadata.name"),
        ("Delete", operator_pb2.DeleteRequest(), "kind"),
        ("Get", operator_pb2.GetRequest(kind=9), "kind"),
        ("Get", operator_pb2.GetRequest(kind=1, name=resource_pb2.Name(name="No such")), "name.name"),
        (
            "Delete",
            operator_pb2.DeleteRequest(kind=1, name=resource_pb2.Name(name="a", namespace="B")),
            "name.namespace",
        ),
        ("List", operator_pb2.ListRequest(kind=9), "kind"),
        ("List", operator_pb2.ListRequest(namespace="No"), "namespace"),
        ("SetWeights", operator_pb2.SetWeightsRequest(), "service.name"),
        (
            "SetWeights",
            operator_pb2.SetWeightsRequest(
                service=encode_name(REVIEWS), weights=[operator_pb2.SubsetWeight(subset="v1")]
            ),
            "weights[0].weight",
        ),
        ("GetWeights", operator_pb2.GetWeightsRequest(service=resource_pb2.Name(name="No")), "service.name"),
        (
            "Rollback",
            operator_pb2.RollbackRequest(options=operator_pb2.ChangeOptions(reason="x" * 2000)),
            "options.reason",
        ),
    ],
)
async def test_bad_input_is_named_by_its_field(server, method, request_, field):
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await getattr(operator_pb2_grpc.OperatorStub(channel), method)(request_)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad = error_details_pb2.BadRequest()
    details(refused.value)[0].Unpack(bad)
    assert field in [v.field for v in bad.field_violations]


async def test_a_flood_of_problems_still_fits_into_the_answer(server):
    broken = [resource_pb2.Route(name=resource_pb2.Name(name=f"x{i}" * 50)) for i in range(500)]
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await operator_pb2_grpc.OperatorStub(channel).Apply(operator_pb2.ApplyRequest(routes=broken))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "more" in refused.value.details().splitlines()[-1]
    bad = error_details_pb2.BadRequest()
    assert details(refused.value)[0].Unpack(bad)
    assert bad.field_violations


async def test_numbers_that_fit_no_float_are_refused_and_not_an_accident(server):
    route = encode_route(split(v1=1))
    route.rules[0].timeouts.request.seconds = 2**63 - 1
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await operator_pb2_grpc.OperatorStub(channel).Apply(operator_pb2.ApplyRequest(routes=[route]))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_is_not_there_is_not_found(mesh):
    for work in (
        mesh.get(Kind.ROUTE, REVIEWS),
        mesh.delete(Kind.ROUTE, REVIEWS),
        mesh.list(version=7),
        mesh.rollback(7),
        mesh.rollback(),  # version 1 has none before it
    ):
        with pytest.raises(NotFoundError):
            await work


async def test_a_dry_run_tells_and_changes_nothing(mesh):
    result = await mesh.apply([split(v1=0)], Options(dry_run=True))
    assert (result.version, result.changes[0].action, result.answers) == (1, "created", ())
    assert "answers 503" in result.warnings[0]
    assert (await mesh.list()).values == ()


async def test_an_expected_version_that_is_not_the_current_one_is_a_conflict(mesh):
    await mesh.apply([split(v1=1)], Options(expect_version=1))
    with pytest.raises(ConflictError) as conflict:
        await mesh.apply([split(v1=2)], Options(expect_version=1))
    assert conflict.value.current_version == 2
    assert weights_of(await mesh.get(Kind.ROUTE, REVIEWS)) == {"v1": 1}


async def test_of_two_changes_that_expect_the_same_version_one_is_made(mesh):
    results = await asyncio.gather(
        *(mesh.apply([split(v1=i)], Options(expect_version=1)) for i in range(1, 9)), return_exceptions=True
    )
    assert sum(isinstance(result, ConflictError) for result in results) == 7
    assert (await mesh.list()).version == 2


# -------------------------------------------------------------------------------------------------------------- weights


async def test_weights_of_a_service_without_a_route_make_one(server, mesh):
    await register(server.grpc_address, REVIEWS, ["v1", "v2"])
    result = await mesh.set_weights(REVIEWS, {"v1": 90, "v2": 10})
    assert result.changes[0].action == "created"
    route = await mesh.get(Kind.ROUTE, REVIEWS)
    assert weights_of(route) == {"v1": 90, "v2": 10}
    version, (rule,) = await mesh.weights(REVIEWS)
    assert (version, rule.service, rule.route, rule.rule) == (2, REVIEWS, REVIEWS, "0")
    assert rule.backend_refs == route.rules[0].backend_refs
    await mesh.set_weights(REVIEWS, {"v1": 0, "v2": 100})
    assert weights_of(await mesh.get(Kind.ROUTE, REVIEWS)) == {"v1": 0, "v2": 100}


async def test_a_subset_without_a_healthy_endpoint_gets_no_traffic_unless_forced(server, mesh):
    await register(server.grpc_address, REVIEWS, ["v1"])
    with pytest.raises(RefusedError) as refused:
        await mesh.set_weights(REVIEWS, {"v1": 90, "v2": 10})
    assert refused.value.reason == "NO_HEALTHY_ENDPOINT"
    assert refused.value.details == {"service": "reviews", "subsets": "v2"}
    assert "of version v1" in str(refused.value)
    assert (await mesh.list()).version == 1
    await mesh.set_weights(REVIEWS, {"v1": 90, "v2": 10}, options=Options(force=True))
    # Taking an empty one out needs no force.
    await mesh.set_weights(REVIEWS, {"v1": 1, "v2": 0})


@pytest.mark.parametrize("health", ["HEALTH_CRITICAL", "HEALTH_LEAVING"])
async def test_an_endpoint_that_takes_no_requests_does_not_count(server, mesh, health):
    await register(server.grpc_address, REVIEWS, ["v1"])
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        await registry_pb2_grpc.RegistryStub(channel).Renew(
            registry_pb2.RenewRequest(
                service=encode_name(REVIEWS),
                instance_id="reviews-v1",
                health=resource_pb2.Endpoint.Health.Value(health),
            )
        )
    with pytest.raises(RefusedError, match="1 known, 0 healthy"):
        await mesh.set_weights(REVIEWS, {"v1": 1})


async def test_a_policys_subset_is_found_by_its_metadata(server, mesh):
    await register(server.grpc_address, REVIEWS, ["v2"])
    await mesh.apply([ServicePolicy(REVIEWS, {"canary": {"version": "v2"}, "empty": {"version": "v9"}})])
    with pytest.raises(RefusedError, match="subset empty"):
        await mesh.set_weights(REVIEWS, {"canary": 1, "empty": 1}, options=Options(dry_run=True))
    await mesh.set_weights(REVIEWS, {"canary": 1})


async def test_several_rules_are_listed_and_one_can_be_named(server, mesh):
    await register(server.grpc_address, REVIEWS, ["v1", "v2"])
    refs = (BackendRef(REVIEWS, "v1"), BackendRef(REVIEWS, "v2"))
    await mesh.apply(
        [Route(REVIEWS, (Parent(REVIEWS),), (Rule(backend_refs=refs, name="api"), Rule(backend_refs=refs)))]
    )
    with pytest.raises(RefusedError) as refused:
        await mesh.set_weights(REVIEWS, {"v1": 5, "v2": 5})
    assert refused.value.reason == "SEVERAL_RULES"
    assert "reviews/api" in refused.value.details["rules"]
    await mesh.set_weights(REVIEWS, {"v1": 5, "v2": 6}, "reviews/api")
    route = await mesh.get(Kind.ROUTE, REVIEWS)
    assert (weights_of(route, 0), weights_of(route, 1)) == ({"v1": 5, "v2": 6}, {"v1": 1, "v2": 1})
    with pytest.raises(NotFoundError):
        await mesh.set_weights(REVIEWS, {"v1": 5, "v2": 5}, "nope")


async def test_weights_of_all_services_are_listed(mesh):
    await mesh.apply([split(v1=1), split(RATINGS, v1=2)])
    _, rules = await mesh.weights()
    assert [str(rule.service) for rule in rules] == ["ratings", "reviews"]


@pytest.mark.consul
async def test_endpoints_that_only_consul_knows_count(consul):
    payload = {"Name": "reviews", "ID": "r1", "Address": "127.0.0.1", "Port": 8080, "Meta": {"version": "v1"}}
    url = f"{consul.url}/v1/agent/service/register"
    async with aiohttp.ClientSession() as session, session.put(url, json=payload) as response:
        assert response.status == 200
    async with control_server(consul=consul.url) as server, MeshClient(server.grpc_address) as mesh:
        with pytest.raises(RefusedError, match="subset v2 of reviews has no healthy endpoint: 1 known"):
            await mesh.set_weights(REVIEWS, {"v1": 1, "v2": 1})
        await mesh.set_weights(REVIEWS, {"v1": 1})


async def test_a_consul_that_does_not_answer_is_named(server):
    async with control_server(consul="http://127.0.0.1:9") as other, MeshClient(other.grpc_address) as mesh:
        with pytest.raises(RefusedError, match="consul did not answer"):
            await mesh.set_weights(REVIEWS, {"v1": 1})


# ---------------------------------------------------------------------------------------------------- answers, history


async def test_answers_are_told_per_sidecar(server, mesh):
    async with sidecars(server.grpc_address, 2), FakeSidecar(server.grpc_address, "z-nacks") as nacks:
        await (await nacks.connect()).accept()
        asking = background(mesh.apply([split(v1=1)]))
        await nacks.nack(await nacks.push(), "too new")
        result = await asking
        assert [(a.node, a.result, a.reason) for a in result.answers] == [
            ("sidecar-000", "acked", ""),
            ("sidecar-001", "acked", ""),
            ("z-nacks", "nacked", "too new"),
        ]
        assert not result.is_acked_by_all
        assert all(0 < a.took_s < ANSWER_S for a in result.answers)


async def test_a_silent_sidecar_is_waited_for_only_so_long_and_the_change_stays(server, mesh):
    async with FakeSidecar(server.grpc_address, "silent") as silent:
        await (await silent.connect()).accept()
        result = await mesh.apply([split(v1=1)], Options(wait_s=0.2))
        (answer,) = result.answers
        assert (answer.result, answer.reason) == ("silent", "no answer within 0.2 s")
        assert 0.15 < answer.took_s < 2
        assert (await mesh.list()).version == 2
        (answer,) = (await mesh.apply([split(v1=2)], NO_WAIT)).answers
        assert (answer.result, answer.reason) == ("silent", "no answer within 0 s")


async def test_the_history_says_who_when_and_why(mesh):
    await mesh.apply([split(v1=1)], Options(reason="first"))
    await mesh.apply([split(v1=2)])
    await mesh.delete(Kind.ROUTE, REVIEWS, Options(reason="away"))
    history = await mesh.history()
    assert [(r.version, r.author, r.reason, [c.action for c in r.changes]) for r in history] == [
        (4, "tester", "away", ["deleted"]),
        (3, "tester", "", ["updated"]),
        (2, "tester", "first", ["created"]),
        (1, "control", "store created", []),
    ]
    assert [r.version for r in await mesh.history(2, 4)] == [3, 2]
    assert history[0].when_unix_s > 1.7e9


async def test_a_rollback_makes_the_old_table_a_new_version(server, mesh):
    await mesh.apply([split(v1=1)])
    before = server.hub.current.snapshot
    await mesh.apply([split(v1=2), split(RATINGS, v1=1)])
    async with FakeSidecar(server.grpc_address, "a") as sidecar:
        await (await sidecar.connect()).accept()
        asking = background(mesh.rollback())
        assert (await sidecar.accept()).digest == before.id.digest
        result = await asking
    assert (result.previous_version, result.version) == (3, 4)
    assert {(str(c.name), c.action) for c in result.changes} == {("ratings", "deleted"), ("reviews", "updated")}
    await mesh.rollback(3)
    assert weights_of(await mesh.get(Kind.ROUTE, REVIEWS)) == {"v1": 2}
    await mesh.rollback(1)
    assert (await mesh.list()).values == ()


async def test_status_tells_what_every_sidecar_runs(server, mesh):
    async with FakeSidecar(server.grpc_address, "a", REVIEWS, "v1") as sidecar:
        await sidecar.connect()
        push = await sidecar.push()
        (status,) = (await mesh.status()).sidecars
        assert (status.state, status.running.version) == ("pending", 0)
        await sidecar.ack(push)
        while status.state != "acked":
            (status,) = (await mesh.status()).sidecars
        assert (status.node, status.service, status.service_version) == ("a", REVIEWS, "v1")
        assert status.running == (await mesh.status()).current
        assert status.peer.startswith("ipv4:127.0.0.1:")


async def test_a_watch_begins_with_what_is_and_goes_on_with_what_happens(server, mesh):
    async with FakeSidecar(server.grpc_address, "a") as sidecar:
        await (await sidecar.connect()).accept()
        told = []
        async with asyncio.timeout(ANSWER_S):
            async for event in mesh.watch():
                if event.revision:
                    told.append(event.revision.version)
                else:
                    told.append(f"{event.sidecar.node} {event.sidecar.state} {event.sidecar.running}")
                if told[-1] == "a acked v1":
                    await mesh.apply([split(v1=1)], NO_WAIT)
                    await sidecar.nack(await sidecar.push(), "no")
                if told[-1] == "a nacked v1":
                    break
        assert told[0] == 1
        assert told[-4:] == ["a acked v1", 2, "a pending v1", "a nacked v1"]


async def test_a_watch_is_ended_when_the_server_stops():
    async with control_server() as server, MeshClient(server.grpc_address) as mesh:
        watch = mesh.watch()
        await anext(watch)
        await server.stop()
        with pytest.raises(UnreachableError, match="stopping"):
            await anext(watch)


async def test_a_server_that_is_not_there_is_told_with_what_to_do():
    async with MeshClient("127.0.0.1:9") as mesh:
        with pytest.raises(UnreachableError, match="mesh control"):
            await mesh.status()


# ----------------------------------------------------------------------------------------------------------------- http


async def test_metrics_and_health(server, mesh):
    async with sidecars(server.grpc_address, 2), aiohttp.ClientSession() as session:
        await mesh.apply([split(v1=1)])
        await register(server.grpc_address, REVIEWS, ["v1"])
        async with session.get(f"http://{server.http_address}/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            lines = (await response.text()).splitlines()
        for line in (
            "mesh_control_connected_sidecars 2",
            'mesh_control_sidecars{state="acked"} 2',
            "mesh_control_table_version 2",
            "mesh_control_pushes_total 4",
            "mesh_control_acks_total 4",
            "mesh_control_nacks_total 0",
            'mesh_control_push_seconds_bucket{le="+Inf"} 4',
            "mesh_control_registry_instances 1",
        ):
            assert line in lines
        async with session.get(f"http://{server.http_address}/healthz") as response:
            health = json.loads(await response.text())
        assert (health["status"], health["version"], health["sidecars"]) == ("ok", 2, 2)


async def test_metrics_are_what_prometheus_reads(server):
    from prometheus_client.parser import text_string_to_metric_families

    async with aiohttp.ClientSession() as session, session.get(f"http://{server.http_address}/metrics") as response:
        families = list(text_string_to_metric_families(await response.text()))
    assert all(family.documentation and family.type != "unknown" for family in families)
    assert "mesh_control_push_seconds" in [family.name for family in families]
