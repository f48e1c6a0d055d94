"""An instance registered with a Consul agent, kept registered, and taken out again.

The agent is asked every few seconds whether it still has the instance: a restart with lost state forgets it, and
nothing else would tell. Hash blocking on /v1/agent/service/:id would see a removal sooner, at the price of one of
the agent's 200 connections for each sidecar of the host; what it would gain is covered by the grace time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from enum import Enum
from typing import Any, Final, assert_never
from urllib.parse import quote

from mesh.discovery.backoff import Backoff
from mesh.discovery.base import HealthCheck, SourceError, SourceRefused
from mesh.discovery.consul_client import NAMESPACE_KEY, ConsulClient, Reply, check
from mesh.model.name import DEFAULT_NAMESPACE
from mesh.model.service import Health, Instance
from mesh.tasks import Tasks

_log = logging.getLogger(__name__)

KEEP_S: Final = 2.0  # how often the agent is asked whether it still knows us, or its TTL check is renewed
TTL_S: Final = 10.0  # of the check where the caller gives none: five renewals
TTL_DEREGISTER_AFTER_S: Final = 600.0  # as HealthCheck.deregister_after_s
CLOSE_TIMEOUT_S: Final = 3.0

_IN_DOUBT: Final = object()
"""What Consul checks by, while it has not answered what it was told."""
_STATUS: Final = {
    Health.PASSING: "passing",
    Health.WARNING: "warning",
    Health.CRITICAL: "critical",
    Health.LEAVING: "critical",  # and maintenance mode besides
}


class Kept(Enum):
    """What an agent says of an instance that was registered with it."""

    YES = "yes"
    FORGOTTEN = "forgotten"
    TAKEN_OVER = "taken over"
    """Somebody else registered the same id at another address."""


def registration_body(instance: Instance, health: Health, health_check: HealthCheck | None) -> dict[str, object]:
    """The JSON of /v1/agent/service/register. No other keys: since 1.7 unknown ones are refused with 400.

    Weights are left out: 0 is refused there, so draining is maintenance mode and shares belong to the routes.
    """
    endpoint = instance.endpoint
    meta = dict(endpoint.metadata)
    meta.pop(NAMESPACE_KEY, None)
    if instance.service.namespace != DEFAULT_NAMESPACE:
        meta[NAMESPACE_KEY] = instance.service.namespace
    checking: dict[str, object] = {"Status": _STATUS[health]}
    if health_check is None:
        checking |= {
            "CheckID": lease_id(instance),
            "Name": "sidemesh lease",
            "TTL": _duration(TTL_S),
            "DeregisterCriticalServiceAfter": _duration(TTL_DEREGISTER_AFTER_S),
        }
    else:
        checking |= {
            "CheckID": f"service:{endpoint.id}",
            "Name": "sidemesh sidecar",
            "HTTP": health_check.url,
            "Interval": _duration(health_check.interval_s),
            "Timeout": _duration(health_check.timeout_s),
            "DeregisterCriticalServiceAfter": _duration(health_check.deregister_after_s),
        }
    return {
        "ID": endpoint.id,
        "Name": instance.service.name,
        "Address": endpoint.address,
        "Port": endpoint.port,
        "Meta": meta,
        "Tags": list(endpoint.tags),
        "Check": checking,
    }


def lease_id(instance: Instance) -> str:
    """The id of the instance's TTL check.

    A check over HTTP has another: one that is replaced by a check of another kind and the same id goes on in secret
    (1.8.7), and takes the instance out.
    """
    return f"service:{instance.endpoint.id}:lease"


def judge(instance: Instance, reply: Reply) -> Kept:
    """Read an answer of /v1/agent/service/:id. Raises SourceError where it says neither."""
    if reply.status == 404:
        return Kept.FORGOTTEN
    try:
        found: dict[str, Any] = json.loads(check(reply).body)
        is_ours = (found["Address"], found["Port"]) == (instance.endpoint.address, instance.endpoint.port)
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"Consul's answer about instance {instance.endpoint.id} is not understood: {error!r}"
        ) from error
    return Kept.YES if is_ours else Kept.TAKEN_OVER


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


class ConsulRegistration:
    """One instance on one agent. Made by ``ConsulSource.register``."""

    def __init__(
        self,
        client: ConsulClient,
        instance: Instance,
        health: Health,
        health_check: HealthCheck | None,
        rng: random.Random,
    ) -> None:
        """Nothing is sent before ``open``."""
        self.instance = instance
        self.health = health
        self.health_check = health_check
        self._told_check: object = health_check
        """What the agent checks by, as it was told last."""
        self._telling = asyncio.Lock()
        """One renewal at a time, since each goes by what the one before was answered."""
        self._client = client
        self._backoff = Backoff(rng)
        self._tasks = Tasks(f"consul registration of {instance.endpoint.id}")
        self._wake = asyncio.Event()
        self._is_registered = False
        self._is_leaving = False
        self._is_taken_over = False
        self._is_closed = False
        self._id = quote(instance.endpoint.id, safe="")

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
        """With a TTL check, renew it with ``health`` at once; Consul's own check finds the state out by itself."""
        if health is not self.health:
            self.health = health
            self._wake.set()

    async def change_check(self, health_check: HealthCheck | None) -> None:
        """Register with the other check, and with the program's state as that check's first status."""
        if health_check != self.health_check:
            self.health_check = health_check
            if not (self._is_taken_over or self._is_closed):
                await self._renew()

    @property
    def is_leaving(self) -> bool:
        """Its going away was announced, or it was taken out."""
        return self._is_leaving or self._is_closed

    async def announce_leaving(self) -> None:
        """Maintenance mode. Raises SourceError."""
        self._is_leaving = True
        reply = await self._put_maintenance()
        if reply.status == 404:
            # Forgotten, yet others may serve it on for its grace time: only a registered instance can announce.
            await self._register()
        else:
            check(reply)

    async def close(self) -> None:
        """Deregister. Logs what fails and never raises for it; the check takes the instance out then."""
        if self._is_closed:
            return
        self._is_closed = True
        await self._tasks.close()
        if self._is_taken_over:
            return  # under that id lives somebody else now
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S), self._telling:
                pass  # what is on its way would register it again
        try:
            reply = await self._client.call(
                "PUT", f"/v1/agent/service/deregister/{self._id}", timeout_s=CLOSE_TIMEOUT_S
            )
            if reply.status not in (200, 404, 500):  # an unknown id is 200 on 1.8, 404 later: done, either way
                check(reply)
        except SourceError as error:
            _log.warning("%s stays registered until its check fails: %s", self.instance.endpoint.id, error)

    async def _register(self) -> None:
        status = Health.CRITICAL if self._is_leaving else self.health
        told_check = self.health_check  # which may change meanwhile
        body = registration_body(self.instance, status, told_check)
        self._told_check = _IN_DOUBT
        check(await self._client.call("PUT", "/v1/agent/service/register?replace-existing-checks=true", body))
        self._is_registered = True
        if self._is_leaving:
            check(await self._put_maintenance())
        self._told_check = told_check

    async def _put_maintenance(self) -> Reply:
        path = f"/v1/agent/service/maintenance/{self._id}?enable=true&reason=leaving"
        return await self._client.call("PUT", path)

    async def _keep(self) -> None:
        pause_s = KEEP_S if self._is_registered else self._backoff.next_s()
        while not self._is_taken_over:
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self._renew()
            except SourceError as error:
                pause_s = min(KEEP_S, self._backoff.next_s())
                _log.info("%s could not be renewed with Consul: %s", self.instance.endpoint.id, error)
            else:
                pause_s = KEEP_S
                self._backoff.succeeded()

    async def _renew(self) -> None:
        async with self._telling:
            if not self._is_closed:
                await self._renew_alone()

    async def _renew_alone(self) -> None:
        if not self._is_registered:
            await self._register()
            return
        kept = judge(self.instance, await self._client.call("GET", f"/v1/agent/service/{self._id}"))
        if kept is Kept.YES and self.health_check != self._told_check:
            await self._register()
        elif kept is Kept.YES and self.health_check is None:
            kept = await self._pass_ttl()
        match kept:
            case Kept.YES:
                pass
            case Kept.FORGOTTEN:
                _log.info("Consul has forgotten %s: it is registered again", self.instance.endpoint.id)
                await self._register()
            case Kept.TAKEN_OVER:
                self._is_taken_over = True
                _log.error(
                    "instance id %s was registered with Consul for another address: two sidecars must not share an id; "
                    "this one stays out of discovery",
                    self.instance.endpoint.id,
                )
            case _:
                assert_never(kept)

    async def _pass_ttl(self) -> Kept:
        status = Health.CRITICAL if self._is_leaving else self.health
        # No Output: a text that changes would be a catalog write, and a wake of every watch, each time.
        body = {"Status": _STATUS[status]}
        reply = await self._client.call(
            "PUT", f"/v1/agent/check/update/{quote(lease_id(self.instance), safe='')}", body
        )
        if reply.status in (404, 500):  # an unknown check is 500 on 1.8 and 404 since 1.11
            return Kept.FORGOTTEN
        check(reply)
        return Kept.YES
