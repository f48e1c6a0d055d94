"""Discovery through the control server's registry: leases and watch streams over gRPC."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import grpc
import grpc.aio

from mesh.discovery.backoff import Backoff
from mesh.discovery.base import (
    Contact,
    FailureObserver,
    HealthCheck,
    Observation,
    Observer,
    SourceError,
    SourceRefused,
)
from mesh.model.errors import InvalidError
from mesh.model.name import Name
from mesh.model.service import Endpoint, Health, Instance
from mesh.model.wire import (
    decode_duration,
    decode_endpoint,
    encode_duration,
    encode_endpoint,
    encode_health,
    encode_name,
)
from mesh.tasks import Tasks
from protos.mesh.v1 import registry_pb2
from protos.mesh.v1.registry_pb2_grpc import RegistryStub

_log = logging.getLogger(__name__)

LEASE_S: Final = 10.0  # asked for; the server's answer holds
RENEWALS_PER_LEASE: Final = 3  # two may be lost
CALL_TIMEOUT_S: Final = 3.0
CLOSE_TIMEOUT_S: Final = 3.0
STEADY_S: Final = 5.0  # a stream that lived so long was a good one: the next backoff begins anew

CHANNEL_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),  # HTTP_PROXY is the sidecar itself
    ("grpc.use_local_subchannel_pool", 1),
    # A server that vanished without a word is noticed after 15 s. The server must allow such pings.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Without these two gRPC takes a minute: it sends no third ping while nothing else is sent, and waits its own time.
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.ping_timeout_ms", 5_000),
    # gRPC's own backoff goes up to two minutes; a returned registry should be found in seconds.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

# What only a person can mend; anything else may pass.
_REFUSALS: Final = frozenset(
    (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    )
)


class Continuity:
    """Judges the contact of each state of one watch: pure.

    A registry that restarted has forgotten everything and does not publish what it knows as the whole truth before
    one full lease has passed; so states are RESUMED until it says that it settled, and the first after any break.
    """

    __slots__ = ("_epoch",)

    def __init__(self) -> None:
        """Out of contact."""
        self._epoch: str | None = None

    def received(self, epoch: str, *, is_settled: bool) -> Contact:
        """A state came in."""
        is_continuous = is_settled and epoch == self._epoch
        self._epoch = epoch
        return Contact.CONTINUOUS if is_continuous else Contact.RESUMED

    def broke(self) -> None:
        """The stream ended."""
        self._epoch = None


class RegistrySource:
    """Endpoints from the control server's registry.

    The control server must take keepalive pings of every 10 s (``grpc.http2.min_ping_interval_without_data_ms``).
    """

    name = "registry"

    def __init__(
        self,
        target: str,
        channel: grpc.aio.Channel | None = None,
        rng: random.Random | None = None,
        lease_s: float = LEASE_S,
    ) -> None:
        """``target`` is HOST:PORT. A ``channel`` handed in is shared, and stays open when the source closes."""
        self.target = target
        self._channel = channel
        self._owns_channel = channel is None
        self._stub: RegistryStub | None = None
        self._rng = rng or random.Random()
        self._lease_s = lease_s
        self._tasks = Tasks("registry")

    async def start(self) -> None:
        """Make the channel; it connects by itself."""
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.target, options=CHANNEL_OPTIONS)
        self._stub = RegistryStub(self._channel)

    async def close(self) -> None:
        """End all watches, and the channel if it is ours."""
        await self._tasks.close()
        if self._owns_channel and self._channel is not None:
            await self._channel.close(None)

    async def lookup(self, service: Name) -> Observation | None:
        """Ask once. A registry that has not settled and knows no instance cannot say, which is a SourceError."""
        request = registry_pb2.LookupRequest(service=encode_name(service))
        try:
            with self.translated():
                state = await self.stub.Lookup(request, timeout=CALL_TIMEOUT_S)
        except _NotFound:
            return None
        endpoints = read_endpoints(state)
        if not endpoints and not state.settled:
            raise SourceError(f"the registry at {self.target} has just started and does not know {service} yet")
        return Observation(service, endpoints, Contact.RESUMED)

    def watch(self, service: Name, observer: Observer, failed: FailureObserver) -> RegistryWatch:
        """Watch by one stream."""
        return RegistryWatch(self, service, observer, failed, Backoff(self._rng), self._tasks)

    async def register(
        self, instance: Instance, health: Health, check: HealthCheck | None = None
    ) -> RegistryRegistration:
        """Register under a lease that is renewed at a third of it, with the health. ``check`` is not used."""
        del check  # the registry does not probe: who renews no lease is out
        registration = RegistryRegistration(self, instance, health, self._lease_s, self._rng)
        await registration.open()
        return registration

    @property
    def stub(self) -> RegistryStub:
        """The service's calls; RuntimeError before ``start``."""
        if self._stub is None:
            raise RuntimeError("the registry source was not started")
        return self._stub

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Translate gRPC's errors in the block: SourceError, SourceRefused, or _NotFound."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise translate(self.target, error) from error
        except asyncio.CancelledError:
            # gRPC also says "cancelled" where the server or the channel ended the call, and nobody meant this task.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise SourceError(f"registry at {self.target} ended the call") from None
        except grpc.aio.UsageError as error:  # the channel was closed under us
            raise SourceError(f"registry at {self.target}: {error}") from error


class _NotFound(SourceError):
    """The registry answered, and does not know that service or instance."""


def translate(target: str, error: grpc.aio.AioRpcError) -> SourceError:
    """Our error for one of gRPC's."""
    code = error.code()
    message = f"registry at {target}: {code.name} {error.details() or ''}".rstrip()
    if code is grpc.StatusCode.NOT_FOUND:
        return _NotFound(message)
    return SourceRefused(message) if code in _REFUSALS else SourceError(message)


def read_endpoints(state: registry_pb2.ServiceState) -> tuple[Endpoint, ...]:
    """The endpoints of a state, in order of id. Raises SourceError where one cannot be read."""
    try:
        endpoints = [decode_endpoint(message) for message in state.endpoints]
    except InvalidError as error:
        raise SourceError(f"the registry sent an endpoint that is not understood: {error}") from error
    return tuple(sorted(endpoints, key=lambda endpoint: endpoint.id))


class RegistryWatch:
    """One stream, opened again for as long as the watch lasts."""

    def __init__(
        self,
        source: RegistrySource,
        service: Name,
        observer: Observer,
        failed: FailureObserver,
        backoff: Backoff,
        tasks: Tasks,
    ) -> None:
        """Starts at once."""
        self.service = service
        self._source = source
        self._observer = observer
        self._failed = failed
        self._backoff = backoff
        self._continuity = Continuity()
        self._task = tasks.start(self._run(), f"watch {service}")

    async def close(self) -> None:
        """End it. Safe to call twice."""
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def _run(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            began = now()
            try:
                await self._follow()
                error = SourceError(f"registry at {self._source.target} ended the watch of {self.service}")
            except SourceError as caught:
                error = caught
            self._continuity.broke()
            self._failed(self.service, error)
            if now() - began > STEADY_S:
                self._backoff.succeeded()
            await asyncio.sleep(self._backoff.next_s())

    async def _follow(self) -> None:
        """Report the states of one stream until it ends."""
        request = registry_pb2.WatchRequest(service=encode_name(self.service))
        with self._source.translated():
            call = self._source.stub.Watch(request)
            try:
                async for state in call:
                    contact = self._continuity.received(state.registry_epoch, is_settled=state.settled)
                    lease_s = decode_duration(state.lease)
                    self._observer(Observation(self.service, read_endpoints(state), contact, lease_s))
            finally:
                call.cancel()


class RegistryRegistration:
    """One instance under a lease. Made by ``RegistrySource.register``."""

    def __init__(
        self, source: RegistrySource, instance: Instance, health: Health, lease_s: float, rng: random.Random
    ) -> None:
        """Nothing is sent before ``open``."""
        self.instance = instance
        self.health = health
        self.lease_s = lease_s
        self._source = source
        self._backoff = Backoff(rng)
        self._tasks = Tasks(f"registry registration of {instance.endpoint.id}")
        self._wake = asyncio.Event()
        self._is_registered = False
        self._is_closed = False

    async def open(self) -> None:
        """Register, then keep registered in the background. Raises SourceRefused."""
        try:
            await self._register()
        except SourceRefused:
            raise
        except SourceError as error:
            _log.warning("%s is not registered yet and will be: %s", self.instance.endpoint.id, error)
        self._tasks.start(self._keep(), "keep")

    def set_health(self, health: Health) -> None:
        """Renew with ``health`` at once; once the instance is leaving, that stands."""
        if health is not self.health and self.health is not Health.LEAVING:
            self.health = health
            self._wake.set()

    async def change_check(self, check: HealthCheck | None) -> None:
        """Nothing: the registry does not probe."""

    async def announce_leaving(self) -> None:
        """Renew as leaving. Raises SourceError; the next renewals say it again."""
        self.health = Health.LEAVING
        await self._renew()

    async def close(self) -> None:
        """Deregister. Logs what fails and never raises for it; the lease ends then."""
        if self._is_closed:
            return
        self._is_closed = True
        await self._tasks.close()
        request = registry_pb2.DeregisterRequest(
            service=encode_name(self.instance.service), instance_id=self.instance.endpoint.id
        )
        try:
            with self._source.translated():
                await self._source.stub.Deregister(request, timeout=CLOSE_TIMEOUT_S)
        except SourceError as error:
            _log.warning("%s stays registered until its lease ends: %s", self.instance.endpoint.id, error)

    async def _register(self) -> None:
        endpoint = encode_endpoint(self.instance.endpoint)
        endpoint.health = encode_health(self.health)
        request = registry_pb2.RegisterRequest(
            service=encode_name(self.instance.service), endpoint=endpoint, lease=encode_duration(self.lease_s)
        )
        with self._source.translated():
            answer = await self._source.stub.Register(request, timeout=CALL_TIMEOUT_S)
        self.lease_s = decode_duration(answer.lease) or self.lease_s
        self._is_registered = True

    async def _renew(self) -> None:
        if self._is_registered:
            request = registry_pb2.RenewRequest(
                service=encode_name(self.instance.service),
                instance_id=self.instance.endpoint.id,
                health=encode_health(self.health),
            )
            try:
                with self._source.translated():
                    answer = await self._source.stub.Renew(request, timeout=CALL_TIMEOUT_S)
            except _NotFound:
                _log.info("the registry has forgotten %s: it is registered again", self.instance.endpoint.id)
            else:
                self.lease_s = decode_duration(answer.lease) or self.lease_s
                return
        await self._register()

    async def _keep(self) -> None:
        pause_s = self._renewal_s if self._is_registered else self._backoff.next_s()
        while True:
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self._renew()
            except SourceError as error:
                pause_s = min(self._renewal_s, self._backoff.next_s())
                _log.info("%s could not be renewed: %s", self.instance.endpoint.id, error)
            else:
                pause_s = self._renewal_s
                self._backoff.succeeded()

    @property
    def _renewal_s(self) -> float:
        return self.lease_s / RENEWALS_PER_LEASE
