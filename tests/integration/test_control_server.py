"""The control server as a process and as a gRPC server anybody's tools can speak to."""

import asyncio
import logging
import re
import signal
import socket
import sys

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from control.errors import StoreError
from control.server import ListenError
from mesh.client import MeshClient, Options
from mesh.model.service import Health
from mesh.model.wire import decode_health, encode_name
from protos.mesh.v1 import registry_pb2, registry_pb2_grpc, resource_pb2
from tests.support.control import REVIEWS, FakeSidecar, control_server, register, split
from tests.support.process import Process, until


async def start(tmp_path, *more):
    """`mesh control` as a process; it and its gRPC address."""
    process = Process.start(
        *(sys.executable, "-m", "mesh.cli.main", "control", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"),
        *("--data", tmp_path / "data", *more),
        log=tmp_path / f"control-{len(list(tmp_path.iterdir()))}.log",
    )
    await process.until_logged("ready grpc=")
    return process, re.search(r"ready grpc=(\S+) http=(\S+)", process.output())[1]


async def test_every_version_survives_sigkill(tmp_path):
    process, address = await start(tmp_path)
    async with process:
        async with MeshClient(address) as mesh:
            for weight in range(1, 6):
                await mesh.apply([split(v1=weight)], Options(reason=f"weight {weight}"))
            status = await mesh.status()
        await process.kill()
    process, address = await start(tmp_path)
    async with process, MeshClient(address) as mesh:
        assert (await mesh.status()).current == status.current
        assert [r.reason for r in await mesh.history()] == [f"weight {i}" for i in range(5, 0, -1)] + ["store created"]
        # A sidecar that comes back is not sent what it has.
        async with FakeSidecar(address, "a") as sidecar:
            assert (await (await sidecar.connect(status.current)).push()).unchanged
        await mesh.rollback(2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_order(tmp_path, number):
    process, address = await start(tmp_path)
    async with process, FakeSidecar(address, "a") as sidecar:
        await (await sidecar.connect()).accept()
        process.signal(number)
        assert (await sidecar.ended()).code() is grpc.StatusCode.UNAVAILABLE
        assert await process.wait() == 0


async def test_a_second_server_on_the_same_data_or_port_says_so(tmp_path):
    async with control_server(tmp_path) as server:
        with pytest.raises(StoreError, match="in use by another control server"):
            async with control_server(tmp_path):
                pass
        from control.config import ControlConfig
        from control.server import ControlServer

        with pytest.raises(ListenError, match=re.escape(server.grpc_address)):
            await ControlServer(ControlConfig(server.grpc_address, "127.0.0.1:0")).start()
        with pytest.raises(ListenError, match=re.escape(server.http_address)):
            await ControlServer(ControlConfig("127.0.0.1:0", server.http_address)).start()


async def test_listening_beyond_loopback_without_tls_is_a_loud_warning(caplog):
    from control.config import ControlConfig
    from control.server import ControlServer

    with caplog.at_level(logging.WARNING):
        async with ControlServer(ControlConfig("0.0.0.0:0", "127.0.0.1:0")):
            pass
    assert "0.0.0.0:0 WITHOUT TLS" in caplog.text
    assert caplog.text.count("WITHOUT TLS") == 1


async def test_health_is_told_for_the_server_and_each_service():
    async with control_server() as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "mesh.v1.RoutingDiscovery", "mesh.v1.Operator", "mesh.v1.Registry"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await health.Check(health_pb2.HealthCheckRequest(service="nope"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_generic_client_finds_every_method_by_reflection():
    async with control_server() as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        async def ask(**request):
            call = stub.ServerReflectionInfo()
            await call.write(reflection_pb2.ServerReflectionRequest(**request))
            answer = await call.read()
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.OK
            return answer

        listed = {s.name for s in (await ask(list_services="")).list_services_response.service}
        assert listed >= {"mesh.v1.RoutingDiscovery", "mesh.v1.Operator", "mesh.v1.Registry", "grpc.health.v1.Health"}
        answer = await ask(file_containing_symbol="mesh.v1.Operator")
        file = descriptor_pb2.FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
        assert {method.name for method in file.service[0].method} >= {"Apply", "SetWeights", "Rollback", "Watch"}


async def test_a_client_that_knows_only_the_bytes_can_set_weights():
    async with control_server() as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        await register(server.grpc_address, REVIEWS, ["v1"])
        call = channel.unary_unary("/mesh.v1.Operator/SetWeights")
        # service{name: "reviews"} weights{subset: "v1" weight: 7}
        request = b"\x0a\x09\x12\x07reviews" + b"\x12\x06\x0a\x02v1\x10\x07"
        assert await call(request)
        assert server.hub.current.snapshot.routes[0].rules == split(v1=7).rules


# -------------------------------------------------------------------------------------------------------- the registry


@pytest.fixture
async def registry():
    async with control_server(lease_s=1.0) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        yield registry_pb2_grpc.RegistryStub(channel)


def request(id_="r1", lease_s=None, **more):
    message = registry_pb2.RegisterRequest(
        service=encode_name(REVIEWS), endpoint=resource_pb2.Endpoint(id=id_, address="127.0.0.1", port=8080, **more)
    )
    if lease_s is not None:
        message.lease.FromMilliseconds(int(lease_s * 1000))
    return message


async def code_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code()


async def test_a_watch_tells_of_registering_renewing_and_leaving(registry):
    watch = registry.Watch(registry_pb2.WatchRequest(service=encode_name(REVIEWS)))
    state = await watch.read()
    assert (list(state.endpoints), state.settled) == ([], False)
    answer = await registry.Register(request(metadata={"version": "v1"}))
    assert answer.lease.ToMilliseconds() == 1000
    state = await watch.read()
    assert [(e.id, e.metadata["version"]) for e in state.endpoints] == [("r1", "v1")]
    renewal = registry_pb2.RenewRequest(
        service=encode_name(REVIEWS), instance_id="r1", health=resource_pb2.Endpoint.HEALTH_CRITICAL
    )
    await registry.Renew(renewal)
    assert [decode_health(e.health) for e in (await watch.read()).endpoints] == [Health.CRITICAL]
    await registry.Deregister(registry_pb2.DeregisterRequest(service=encode_name(REVIEWS), instance_id="r1"))
    assert [decode_health(e.health) for e in (await watch.read()).endpoints] == [Health.LEAVING]
    assert await code_of(registry.Renew(renewal)) is grpc.StatusCode.NOT_FOUND
    watch.cancel()


async def test_a_lease_that_is_not_renewed_ends_and_watchers_hear_that_the_registry_has_settled(registry):
    await registry.Register(request())
    watch = registry.Watch(registry_pb2.WatchRequest(service=encode_name(REVIEWS)))
    states = []
    async with asyncio.timeout(5):
        while not states or states[-1].endpoints or not states[-1].settled:
            states.append(await watch.read())
    assert [e.id for e in states[0].endpoints] == ["r1"]
    assert not any(not state.endpoints and not state.settled for state in states)
    assert len({state.registry_epoch for state in states}) == 1
    watch.cancel()


async def test_a_lookup_knows_nothing_for_sure_before_the_registry_has_settled(registry):
    lookup = registry_pb2.LookupRequest(service=encode_name(REVIEWS))
    assert not (await registry.Lookup(lookup)).settled

    async def is_known_to_be_unknown():
        try:
            return (await registry.Lookup(lookup)).settled
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.NOT_FOUND

    await until(is_known_to_be_unknown, what="the registry to settle")
    assert await code_of(registry.Lookup(lookup)) is grpc.StatusCode.NOT_FOUND


async def test_what_cannot_be_registered_is_refused_by_field(registry):
    assert await code_of(registry.Register(request(id_=""))) is grpc.StatusCode.INVALID_ARGUMENT
    assert await code_of(registry.Register(registry_pb2.RegisterRequest())) is grpc.StatusCode.INVALID_ARGUMENT
    bad = registry_pb2.WatchRequest(service=resource_pb2.Name(name="No"))
    assert await code_of(registry.Watch(bad).read()) is grpc.StatusCode.INVALID_ARGUMENT
    renewal = registry_pb2.RenewRequest(service=encode_name(REVIEWS), instance_id="r1", health=99)
    assert await code_of(registry.Renew(renewal)) is grpc.StatusCode.INVALID_ARGUMENT


async def test_watching_unknown_names_leaves_nothing_behind():
    async with control_server() as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        stub = registry_pb2_grpc.RegistryStub(channel)
        for i in range(200):
            watch = stub.Watch(registry_pb2.WatchRequest(service=resource_pb2.Name(name=f"nobody-{i}")))
            await watch.read()
            watch.cancel()
        assert list(server.registry.services()) == []


def test_the_port_is_closed_to_others_once_bound(tmp_path):
    # so_reuseport off: a second server must fail, not share the sidecars in silence.
    async def run():
        async with control_server() as server:
            host, _, port = server.grpc_address.rpartition(":")
            with socket.socket() as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                with pytest.raises(OSError, match="in use"):
                    other.bind((host, int(port)))

    asyncio.run(run())
