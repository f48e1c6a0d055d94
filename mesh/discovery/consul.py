"""Discovery through a Consul agent. What is asked when is decided in ``consul_watch.py``."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass

from mesh.discovery.base import Contact, FailureObserver, HealthCheck, Observation, Observer, SourceError
from mesh.discovery.consul_client import ConsulClient, ConsulConfig
from mesh.discovery.consul_registration import ConsulRegistration
from mesh.discovery.consul_watch import WAIT_S, Answer, Query, WatchLoop
from mesh.model.name import Name
from mesh.model.service import Endpoint, Health, Instance
from mesh.tasks import Tasks

__all__ = ["ConsulConfig", "ConsulSource"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Slots:
    """The connections that blocking queries may hold at one time."""

    limit: int
    taken: int = 0

    def try_take(self) -> bool:
        """Take one if there is one; a True is followed by ``give_back``."""
        if self.taken >= self.limit:
            return False
        self.taken += 1
        return True

    def give_back(self) -> None:
        """Free one again."""
        self.taken -= 1


class ConsulSource:
    """Endpoints from a Consul agent, by one blocking query for each watched service.

    Proven against 1.8; newer agents are told apart by what they answer, never by their version.
    """

    name = "consul"

    def __init__(self, config: ConsulConfig, rng: random.Random | None = None, wait_s: float = WAIT_S) -> None:
        """``wait_s``: the longest a blocking query takes; shorter only in tests."""
        self.config = config
        self._client = ConsulClient(config)
        self._rng = rng or random.Random()  # jitter, no secret
        self._wait_s = wait_s
        self._tasks = Tasks("consul")
        self._slots = Slots(config.max_blocking)
        self._registrations: list[ConsulRegistration] = []
        self._is_hint_given = False

    async def start(self) -> None:
        """Make the sessions; the agent need not be there."""
        await self._client.start()

    async def close(self) -> None:
        """End all watches and connections."""
        await self._tasks.close()
        await self._client.close()

    async def lookup(self, service: Name) -> Observation | None:
        """Ask once. Consul keeps no service without instances, so none means that it does not exist."""
        answer = await self._client.health(service, Query())
        if not answer.has_leader and not answer.endpoints:
            raise SourceError(f"Consul has no leader and does not know {service}, which may not be the truth")
        if not answer.endpoints:
            # Where an instance was registered, its service may be read; that it is gone is our own doing.
            if not any(each.is_leaving and each.instance.service == service for each in self._registrations):
                await self.hint_at_token()
            return None
        return Observation(service, answer.endpoints, Contact.RESUMED)

    def watch(self, service: Name, observer: Observer, failed: FailureObserver) -> ConsulWatch:
        """Watch with a blocking query, or above ``max_blocking`` of them by polling the agent's cache."""
        loop = WatchLoop(self._rng, self._wait_s)
        return ConsulWatch(self, service, observer, failed, loop, self._client, self._slots, self._tasks)

    async def register(
        self, instance: Instance, health: Health, check: HealthCheck | None = None
    ) -> ConsulRegistration:
        """Register with the agent. Without a ``check`` the health is renewed against a TTL check of 10 s."""
        registration = ConsulRegistration(self._client, instance, health, check, self._rng)
        self._registrations.append(registration)
        await registration.open()
        return registration

    def is_leaving(self, service: Name, endpoint: Endpoint) -> bool:
        """Whether its going away was announced: by whoever it is, or by us, which a watch may not have seen in time."""
        where = (endpoint.address, endpoint.port)
        return endpoint.health is Health.LEAVING or any(
            each.is_leaving
            and each.instance.service == service
            and (each.instance.endpoint.address, each.instance.endpoint.port) == where
            for each in self._registrations
        )

    async def hint_at_token(self) -> None:
        """Say once where "nothing there" may mean "nothing for you": 1.8 filters silently (200 with [])."""
        if self._is_hint_given:
            return
        self._is_hint_given = True
        try:
            reply = await self._client.call("GET", "/v1/agent/self", timeout_s=1.0)
        except SourceError:
            return
        if reply.status == 403:
            _log.warning(
                "Consul has ACLs on and answered with no instances: if services seem missing, give a token with "
                "service:read and node:read (CONSUL_HTTP_TOKEN)"
            )


class ConsulWatch:
    """The shell around a ``WatchLoop``: sends, reports, sleeps."""

    def __init__(
        self,
        source: ConsulSource,
        service: Name,
        observer: Observer,
        failed: FailureObserver,
        loop: WatchLoop,
        client: ConsulClient,
        slots: Slots,
        tasks: Tasks,
    ) -> None:
        """Starts at once."""
        self.service = service
        self._source = source
        self._observer = observer
        self._failed = failed
        self._loop = loop
        self._client = client
        self._slots = slots
        self._tasks = tasks
        self._listed: tuple[Endpoint, ...] = ()
        self._task = tasks.start(self._run(), f"watch {service}")

    async def close(self) -> None:
        """End it. Safe to call twice."""
        self._task.cancel()
        await asyncio.wait((self._task,))

    def _is_leaving(self, endpoint: Endpoint) -> bool:
        return self._source.is_leaving(self.service, endpoint)

    async def _run(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            has_slot = False
            if self._loop.wants_to_block(now()):
                has_slot = self._slots.try_take()
                if not has_slot:
                    await asyncio.sleep(self._loop.poll_pause_s())
            asked_at = now()
            try:
                answer = await self._client.health(self.service, self._loop.ask(now(), may_block=has_slot))
            except SourceError as error:
                pause_s = self._loop.failed(now())
                error.silent_s = now() - asked_at
                self._failed(self.service, error)
            else:
                pause_s = self._report(now(), answer)
            finally:
                if has_slot:
                    self._slots.give_back()
            await asyncio.sleep(pause_s)

    def _report(self, now: float, answer: Answer) -> float:
        """Pass an answer on; returns the pause before the next query, seconds."""
        step = self._loop.answered(now, answer)
        if self._listed and not answer.endpoints and not all(map(self._is_leaving, self._listed)):
            _log.warning(
                "Consul lists no instance of %s any more (it listed %d), and nobody had announced it",
                self.service,
                len(self._listed),
            )
            self._tasks.start(self._source.hint_at_token(), "hint at token")
        self._listed = answer.endpoints
        self._observer(Observation(self.service, answer.endpoints, step.contact))
        if not step.is_vouched_for:
            self._failed(
                self.service, SourceError("Consul answers from memory: no leader, or its agent lost the servers")
            )
        return step.pause_s
