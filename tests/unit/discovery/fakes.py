"""A discovery source that says what a test tells it to."""

import asyncio
from collections.abc import Iterable

from mesh.discovery.base import Contact, FailureObserver, HealthCheck, Observation, Observer, Registration, SourceError
from mesh.model.name import Name
from mesh.model.service import Endpoint, Health, Instance


def name(text: str) -> Name:
    return Name.parse(text)


def endpoints(*ids: str) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(id_, id_, 80, {"version": "v1"}) for id_ in ids)


class FakeWatch:
    def __init__(self, source: "FakeSource", service: Name, observer: Observer, failed: FailureObserver) -> None:
        self.source, self.service, self.observer, self.failed = source, service, observer, failed

    async def close(self) -> None:
        self.source.watches.pop(self.service, None)


class FakeSource:
    """``known`` answers lookups; ``say`` and ``fail`` speak to the watches. ``gate`` holds lookups back."""

    name = "fake"

    def __init__(self, known: Iterable[Name] = ()) -> None:
        self.known = set(known)
        self.watches: dict[Name, FakeWatch] = {}
        self.lookups: list[Name] = []
        self.running = self.most_running = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: SourceError | None = None

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def lookup(self, service: Name) -> Observation | None:
        self.lookups.append(service)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        if self.error:
            raise self.error
        return Observation(service, endpoints("a", "b"), Contact.RESUMED) if service in self.known else None

    def watch(self, service: Name, observer: Observer, failed: FailureObserver) -> FakeWatch:
        assert service not in self.watches, "one shared watch per service"
        self.watches[service] = FakeWatch(self, service, observer, failed)
        return self.watches[service]

    async def register(self, instance: Instance, health: Health, check: HealthCheck | None = None) -> Registration:
        raise NotImplementedError

    def say(self, service: Name, *ids: str, contact: Contact = Contact.CONTINUOUS) -> None:
        self.watches[service].observer(Observation(service, endpoints(*ids), contact))

    def fail(self, service: Name) -> None:
        self.watches[service].failed(service, SourceError("the source is down"))
