"""The grpcio that blocks, on both ends of two sidecars: servers on a thread pool, and clients in threads."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.support.grpc_echo import GRPC, RETRIED
from tests.support.process import until
from tests.support.telemetry import Running, endpoints, sidecar

UNAVAILABLE, NOT_FOUND = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED
CAP_S = 20.0  # nothing takes that long: it ends the threads of a test that fails

ROUTE = yaml.safe_load(RETRIED)


class Server:
    """Methods that run in threads. ``gate``: what Held waits for; ``given_up``: Hang's call ended without it."""

    def __init__(self) -> None:
        self.gate, self.given_up = threading.Event(), threading.Event()
        self.remaining_s = 0.0
        self.heads = 0
        self.health = health.HealthServicer()

    def unary(self, request: bytes, context: Any) -> bytes:
        return request

    def many(self, request: bytes, context: Any) -> Iterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    def collect(self, requests: Iterator[bytes], context: Any) -> bytes:
        return b"".join(requests)

    def both(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for request in requests:
            yield request * 2

    def fail(self, request: bytes, context: Any) -> bytes:
        """Ends with the status of that number."""
        code = next(code for code in grpc.StatusCode if code.value[0] == int(request))
        context.set_trailing_metadata((("why", "there is none"),))
        context.abort(code, "no such café")
        return b""

    def hang(self, request: bytes, context: Any) -> bytes:
        self.remaining_s = context.time_remaining()
        context.add_callback(self.given_up.set)
        self.given_up.wait(CAP_S)
        return request

    def held(self, request: bytes, context: Any) -> Iterator[bytes]:
        """A head, and nothing more before the gate opens."""
        self.heads += 1
        context.send_initial_metadata((("hello", "first"),))
        self.gate.wait(CAP_S)
        yield request

    def late(self, request: bytes, context: Any) -> bytes:
        """A head, and a status that asks for a retry so many milliseconds later."""
        if "grpc-previous-rpc-attempts" in dict(context.invocation_metadata()):
            return b"retried"
        context.send_initial_metadata((("hello", "first"),))
        time.sleep(int(request) / 1000)
        context.abort(UNAVAILABLE, "not now")
        return b""

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "test.Echo",
            {
                "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
                "Many": grpc.unary_stream_rpc_method_handler(self.many),
                "Collect": grpc.stream_unary_rpc_method_handler(self.collect),
                "Both": grpc.stream_stream_rpc_method_handler(self.both),
                "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
                "Hang": grpc.unary_unary_rpc_method_handler(self.hang),
                "Held": grpc.unary_stream_rpc_method_handler(self.held),
                "Late": grpc.unary_unary_rpc_method_handler(self.late),
            },
        )


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Server, int]]:
    made, pool = Server(), ThreadPoolExecutor(8)
    server = grpc.server(pool)
    server.add_generic_rpc_handlers((made.handlers(),))
    health_pb2_grpc.add_HealthServicer_to_server(made.health, server)
    reflection.enable_server_reflection((health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield made, port
    finally:
        made.gate.set()
        await asyncio.to_thread(server.stop(0).wait)
        pool.shutdown()


class Pair:
    """The server behind its sidecar, and a blocking channel through its caller's."""

    def __init__(self, server: Server, caller: Running, callee: Running, channel: grpc.Channel) -> None:
        self.server, self.caller, self.callee, self.channel = server, caller, callee, channel

    def unary(self, method: str) -> Callable[..., bytes]:
        return self.channel.unary_unary(f"/test.Echo/{method}")


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with served() as (server, port), sidecar(GRPC, port=port) as callee:
        services = {GRPC: endpoints(callee.inbound, metadata={"http2": "true"})}
        async with sidecar("app", services=services, routes=(ROUTE,)) as caller:
            options = [("grpc.default_authority", GRPC), ("grpc.enable_http_proxy", 0)]
            with grpc.insecure_channel(f"127.0.0.1:{caller.outbound}", options=options) as channel:
                yield Pair(server, caller, callee, channel)


async def failure_of(call: Callable[..., bytes], request: bytes, timeout_s: float = CAP_S) -> Any:
    with pytest.raises(grpc.RpcError) as failed:
        await asyncio.to_thread(call, request, timeout=timeout_s)
    return failed.value


# --- calls ----------------------------------------------------------------------------------------------------------


async def test_all_four_kinds_of_call(pair: Pair) -> None:
    def call() -> None:
        assert pair.unary("Unary")(b"x", timeout=CAP_S) == b"x"
        many: Any = pair.channel.unary_stream("/test.Echo/Many")
        assert list(many(b"500", timeout=CAP_S)) == [b"%d" % number for number in range(500)]
        collect: Any = pair.channel.stream_unary("/test.Echo/Collect")
        assert collect(iter([b"a", b"b", b"c"]), timeout=CAP_S) == b"abc"
        both: Any = pair.channel.stream_stream("/test.Echo/Both")
        assert list(both(iter([b"a", b"b"]), timeout=CAP_S)) == [b"aa", b"bb"]

    await asyncio.to_thread(call)


async def test_a_message_almost_as_large_as_grpc_takes_passes_whole(pair: Pair) -> None:
    message = bytes(range(256)) * 15_234  # 3.9 MB; grpcio takes 4 MiB
    assert await asyncio.to_thread(pair.unary("Unary"), message, timeout=CAP_S) == message


async def test_a_status_comes_with_its_details_and_trailing_metadata(pair: Pair) -> None:
    failed = await failure_of(pair.unary("Fail"), b"5")
    assert (failed.code(), failed.details()) == (NOT_FOUND, "no such café")
    assert dict(failed.trailing_metadata())["why"] == "there is none"


async def test_a_deadline_that_passes_ends_the_call_at_the_server_too(pair: Pair) -> None:
    failed = await failure_of(pair.unary("Hang"), b"x", timeout_s=1.0)
    assert failed.code() is DEADLINE_EXCEEDED
    assert await asyncio.to_thread(pair.server.given_up.wait, 5)
    assert 0 < pair.server.remaining_s < 2.0


# --- the services that come with gRPC -------------------------------------------------------------------------------


async def test_health_is_checked_and_watched(pair: Pair) -> None:
    serving = health_pb2.HealthCheckResponse.SERVING
    stub: Any = health_pb2_grpc.HealthStub(pair.channel)
    request = health_pb2.HealthCheckRequest(service="")

    def check() -> None:
        assert stub.Check(request, timeout=CAP_S).status == serving
        watch = stub.Watch(request, timeout=CAP_S)
        assert next(watch).status == serving
        pair.server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()

    await asyncio.to_thread(check)


async def test_reflection_answers_in_one_stream(pair: Pair) -> None:
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=health.SERVICE_NAME),
    ]

    def ask() -> list[Any]:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(pair.channel)
        return list(stub.ServerReflectionInfo(iter(requests), timeout=CAP_S))

    listed, found = await asyncio.to_thread(ask)
    assert {s.name for s in listed.list_services_response.service} == {health.SERVICE_NAME, reflection.SERVICE_NAME}
    file = descriptor_pb2.FileDescriptorProto.FromString(found.file_descriptor_response.file_descriptor_proto[0])
    assert {method.name for method in file.service[0].method} >= {"Check", "Watch"}


# --- a head that is held --------------------------------------------------------------------------------------------


async def test_a_head_comes_long_before_its_server_goes_on(pair: Pair) -> None:
    def call() -> float:
        begun_s = time.monotonic()
        held: Any = pair.channel.unary_stream("/test.Echo/Held")
        answer = held(b"x", timeout=CAP_S)
        assert ("hello", "first") in list(answer.initial_metadata())
        waited_s = time.monotonic() - begun_s
        pair.server.gate.set()
        assert list(answer) == [b"x"]
        return waited_s

    assert await asyncio.to_thread(call) < 2.0  # 100 ms and what a busy machine adds
    assert pair.server.heads == 1


@pytest.mark.parametrize(("after_ms", "expected"), [(20, "retried"), (200, "not now")])
async def test_a_status_is_retried_only_if_it_comes_soon_after_its_head(
    pair: Pair, after_ms: int, expected: str
) -> None:
    """Ten tries, of which one shows it: where the machine stalls, the sidecar sees other times than the server."""
    late: Any = pair.unary("Late")

    def once() -> str:
        call = late.future(b"%d" % after_ms, timeout=CAP_S)
        return str(call.details()) if call.exception() else call.result().decode()

    seen: list[str] = []
    while expected not in seen and len(seen) < 10:
        seen.append(await asyncio.to_thread(once))
    assert expected in seen


# --- what is counted ------------------------------------------------------------------------------------------------


async def test_the_metrics_tell_calls_by_their_status(pair: Pair) -> None:
    await asyncio.to_thread(pair.unary("Unary"), b"x", timeout=CAP_S)
    for code, count in ((NOT_FOUND, 2), (DEADLINE_EXCEEDED, 1)):
        for _ in range(count):
            await failure_of(pair.unary("Fail"), b"%d" % code.value[0])

    async def by_status(running: Running) -> Counter[str | None]:
        counted: Counter[str | None] = Counter()
        for family in text_string_to_metric_families(await running.metrics()):
            for sample in family.samples:
                if sample.name == "istio_requests_total":
                    assert (sample.labels["request_protocol"], sample.labels["response_code"]) == ("grpc", "200")
                    counted[sample.labels.get("grpc_response_status")] += int(sample.value)
        return counted

    both = (pair.caller, pair.callee)
    await until(lambda: not any(running.sidecar.plane.exchanges for running in both), what="the calls to be over")
    for running in both:
        assert await by_status(running) == {"0": 1, "5": 2, "4": 1}


async def test_a_deadline_that_the_sidecar_watches_is_counted_by_its_status() -> None:
    rule = {"backendRefs": [{"name": GRPC}], "timeouts": {"request": "300ms"}}
    route = {**ROUTE, "kind": "HTTPRoute", "spec": {**ROUTE["spec"], "rules": [rule]}}
    async with served() as (_, port), sidecar("app", services={GRPC: endpoints(port)}, routes=(route,)) as caller:
        options = [("grpc.default_authority", GRPC), ("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(f"127.0.0.1:{caller.outbound}", options=options) as channel:
            failed = await failure_of(channel.unary_unary("/test.Echo/Hang"), b"x")
        assert failed.code() is DEADLINE_EXCEEDED
        (line,) = [line for line in (await caller.metrics()).splitlines() if line.startswith("istio_requests_total{")]
        assert 'response_code="200",grpc_response_status="4",response_flags="UT"' in line
