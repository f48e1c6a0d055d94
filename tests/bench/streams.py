"""Many control streams of one process, each with a connection of its own, as sidecars have them.

    python -m tests.bench.streams light|full ADDRESS FIRST COUNT

``light`` streams read each push and ACK it, so that the server is what is measured. ``full`` ones are the sidecar's own
feed and table without listeners: they decode, check and compile each push before they ACK it. Prints
``{"version": N, "at": monotonic seconds}`` when the last stream has taken that version.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from random import Random

import grpc.aio
import uvloop

from mesh.discovery.registry import CHANNEL_OPTIONS  # each channel has a connection of its own
from mesh.http.trace_context import Propagation
from mesh.model.name import Name
from mesh.model.snapshot import Snapshot
from protos.mesh.v1 import discovery_pb2, discovery_pb2_grpc
from proxy.dataplane import Answer, DataPlane, PlaneSettings
from proxy.feed import Feed, Identity
from proxy.recorder import Recorder
from proxy.table import Names

_SERVICE = Name("default", "caller")
_CONNECTING_AT_ONCE = 20


class Tally:
    """Counts who has taken which version."""

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self._taken: Counter[int] = Counter()

    def took(self, version: int) -> None:
        """One more stream runs ``version``."""
        self._taken[version] += 1
        if self._taken[version] == self._streams:
            print(json.dumps({"version": version, "at": time.monotonic()}), flush=True)


class NoDirectory:
    """Knows no endpoints: nothing is sent anywhere."""

    def look_up(self, service: Name, answer: Answer) -> None: ...

    def touch(self, services: set[Name]) -> None: ...

    def connect_failed(self, service: Name, endpoint_id: str) -> None: ...


async def light(address: str, node: str, tally: Tally, gate: asyncio.Semaphore) -> None:
    """One stream that ACKs everything, until it is cancelled."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        async with gate:
            stream = discovery_pb2_grpc.RoutingDiscoveryStub(channel).Stream()
            await stream.write(discovery_pb2.DiscoveryRequest(hello=discovery_pb2.Hello(node=node)))
            push = await stream.read()
        while push is not grpc.aio.EOF:
            ack = discovery_pb2.Ack(nonce=push.nonce, id=push.id)
            await stream.write(discovery_pb2.DiscoveryRequest(ack=ack))
            tally.took(push.id.version)
            push = await stream.read()


def full(address: str, node: str, tally: Tally) -> Feed:
    """A sidecar's feed and data plane. The feed is the caller's to close."""
    rng = Random(node)
    settings = PlaneSettings(_SERVICE, Names("default"))
    plane = DataPlane(settings, NoDirectory(), Recorder(_SERVICE), Propagation(0.01, rng, records=False), rng)

    async def apply(snapshot: Snapshot) -> None:
        plane.apply_table(snapshot)
        tally.took(snapshot.id.version)

    channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    feed = Feed(channel, Identity(node, _SERVICE, "", node), apply, rng)
    feed.start(None)
    return feed


async def main(kind: str, address: str, first: int, count: int) -> None:
    """Run until the process is ended."""
    tally = Tally(count)
    nodes = [f"{kind}-{first + number:04}" for number in range(count)]
    if kind == "light":
        gate = asyncio.Semaphore(_CONNECTING_AT_ONCE)
        await asyncio.gather(*(light(address, node, tally, gate) for node in nodes))
    _feeds = [full(address, node, tally) for node in nodes]  # kept: they run until the process ends
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
