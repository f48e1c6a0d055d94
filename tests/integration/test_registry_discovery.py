"""How the registry source takes what gRPC does when servers stop and channels close."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from mesh.discovery.base import Contact, SourceError
from mesh.discovery.registry import CHANNEL_OPTIONS, RegistrySource
from mesh.model.name import Name
from mesh.model.service import Health, Instance
from protos.mesh.v1 import registry_pb2
from tests.support.discovery import REVIEWS, RegistryProvider, Seen, endpoint, registry_provider


@pytest.fixture
async def provider() -> AsyncIterator[RegistryProvider]:
    async with registry_provider() as provider:
        yield provider


async def test_a_stream_that_the_server_cancels_is_opened_again_and_not_taken_for_our_own_cancellation() -> None:
    streams = 0

    async def watch(_: registry_pb2.WatchRequest, context: grpc.aio.ServicerContext) -> None:
        nonlocal streams
        streams += 1
        await context.write(registry_pb2.ServiceState(registry_epoch="e", settled=True))
        await context.abort(grpc.StatusCode.CANCELLED, "the server stops")

    handler = grpc.unary_stream_rpc_method_handler(
        watch,
        request_deserializer=registry_pb2.WatchRequest.FromString,
        response_serializer=registry_pb2.ServiceState.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("mesh.v1.Registry", {"Watch": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    source = RegistrySource(f"127.0.0.1:{port}")
    await source.start()
    seen = Seen(source)
    await seen.until(lambda seen: len(seen.failures) >= 2, "two streams to end")
    assert streams >= 2
    assert set(seen.contacts) == {Contact.RESUMED}
    await source.close()
    await server.stop(0)


async def test_a_channel_handed_in_is_shared_and_stays_open(provider: RegistryProvider) -> None:
    await provider.put(endpoint("a"))
    channel = grpc.aio.insecure_channel(provider.server.target, options=CHANNEL_OPTIONS)
    first, second = (RegistrySource(provider.server.target, channel) for _ in range(2))
    await first.start()
    await second.start()
    await Seen(first).until_ids("a")
    await first.close()
    await Seen(second).until_ids("a")
    await second.close()
    await channel.close(None)


async def test_a_channel_that_its_owner_closed_is_an_error_of_the_source_not_a_cancellation(
    provider: RegistryProvider,
) -> None:
    channel = grpc.aio.insecure_channel(provider.server.target, options=CHANNEL_OPTIONS)
    source = RegistrySource(provider.server.target, channel)
    await source.start()
    registration = await source.register(Instance(REVIEWS, endpoint("a")), Health.PASSING)
    seen = Seen(source)
    await seen.until_ids("a")
    await channel.close(None)
    await seen.until(lambda seen: seen.failures, "the watch to notice")
    with pytest.raises(SourceError):
        await source.lookup(REVIEWS)
    with pytest.raises(SourceError):
        await registration.announce_leaving()
    async with asyncio.timeout(5):
        await registration.close()
    await source.close()


async def test_a_registry_that_has_just_started_does_not_say_that_a_service_is_unknown(
    provider: RegistryProvider,
) -> None:
    source = await provider.source()
    with pytest.raises(SourceError, match="just started"):
        await source.lookup(REVIEWS)
    seen = Seen(source)
    await seen.until(lambda seen: Contact.CONTINUOUS in seen.contacts, "the registry to settle")
    assert await source.lookup(Name("default", "nobody")) is None


async def test_an_instance_keeps_its_lease_and_its_health_through_many_renewals(provider: RegistryProvider) -> None:
    source = await provider.source()
    registration = await source.register(Instance(REVIEWS, endpoint("a")), Health.WARNING)
    registration.set_health(Health.PASSING)
    seen = Seen(source)
    await seen.until_ids("a", health=Health.PASSING)
    await seen.until(lambda seen: Contact.CONTINUOUS in seen.contacts, "the registry to settle: one full lease")
    await asyncio.sleep(2 * provider.server.lease_s)
    assert list(seen.state) == ["a"]
    await registration.announce_leaving()
    registration.set_health(Health.PASSING)  # the program still answers; it leaves all the same
    await seen.until_ids("a", health=Health.LEAVING)
    await registration.close()
    await seen.until_ids("a", health=Health.LEAVING)  # the tombstone
