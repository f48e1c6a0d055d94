"""Registers this instance once its program answers, and keeps its health told.

What is registered is the inbound listener at the advertised address: callers' sidecars speak to this sidecar, never
to the program. Consul checks it through the inbound port at a reserved path that answers with the program's state,
so that either's death takes the instance out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from random import Random
from urllib.parse import urlsplit

from mesh.discovery.backoff import Backoff
from mesh.discovery.base import HealthCheck, Registration, Source, SourceError
from mesh.model.name import DEFAULT_NAMESPACE
from mesh.model.service import Endpoint, Health, Instance
from mesh.tasks import Tasks
from proxy.config import Address, SidecarConfig
from proxy.listener import HEALTH_PATH
from proxy.program_check import ProgramCheck

logger = logging.getLogger(__name__)

FOLLOW_S = 1.0  # a table that waits for the source waits no longer


class SelfRegistration:
    """The sidecar's own instance in a discovery source."""

    def __init__(self, config: SidecarConfig, source: Source, inbound: Address, rng: Random) -> None:
        """``inbound`` is where the inbound listener really listens."""
        self._config = config
        self._source = source
        self._inbound = inbound
        self.address: Address | None = None
        """What is registered; known once it is tried."""
        self._backoff = Backoff(rng)
        self._registration: Registration | None = None
        self._health = Health.PASSING
        self._takes_connections = config.protocol == "tcp"
        self._tasks = Tasks("registration")
        self._leaving = asyncio.Event()
        self.error = ""

    @property
    def is_registered(self) -> bool:
        """The source has it, or will as soon as it can be reached."""
        return self._registration is not None

    def start(self, check: ProgramCheck) -> None:
        """Register as soon as the program has answered for the first time."""
        self._tasks.start(self._register(check), "register")

    def set_health(self, health: Health) -> None:
        """The program's state changed."""
        self._health = health
        if self._registration is not None:
            self._registration.set_health(health)

    async def follow(self, *, takes_connections: bool) -> None:
        """What the inbound listener takes: requests, or connections of any protocol.

        With those nobody is answered over HTTP there, and the program's state goes with the lease. Bounded in time.
        """
        self._takes_connections = takes_connections
        if self._registration is None or self.address is None:
            return
        try:
            async with asyncio.timeout(FOLLOW_S):
                await self._registration.change_check(self._check_at(self.address))
        except (SourceError, TimeoutError) as error:
            logger.warning("%s is not told yet how to check this sidecar: %s", self._source.name, error)

    async def announce_leaving(self) -> None:
        """Nobody should send new requests any more; one that is not registered yet stays away."""
        self._leaving.set()
        if self._registration is not None:
            try:
                await self._registration.announce_leaving()
            except SourceError as error:
                logger.warning("discovery could not be told of our leaving: %s", error)

    async def close(self) -> None:
        """Deregister."""
        await self._tasks.close()
        if self._registration is not None:
            await self._registration.close()
            self._registration = None

    async def _register(self, check: ProgramCheck) -> None:
        await check.first_success.wait()
        while not self._leaving.is_set():
            try:
                address = await advertised_address(self._config, self._inbound)
                await self._register_at(address)
                break
            except SourceError as error:  # refused: a token may be there in a moment, a policy be mended
                if str(error) != self.error:
                    logger.error("not registered, and trying on: %s", error)  # noqa: TRY400 - the message says it all
                self.error = str(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._backoff.next_s()):
                    await self._leaving.wait()
        else:
            return
        self.error = ""
        if self._leaving.is_set():
            await self.announce_leaving()

    async def _register_at(self, address: Address) -> None:
        if address != self.address and address.is_loopback and self._source.name != "file":
            logger.warning(
                "!!! registering the loopback address %s: only this machine can reach it (--advertise, --inbound)",
                address,
            )
        self.address = address
        instance = self.instance(address)
        self._registration = await self._source.register(instance, Health.PASSING, self._check_at(address))
        self._registration.set_health(self._health)
        await self.follow(takes_connections=self._takes_connections)  # as was told meanwhile
        logger.info("registered as %s of %s at %s", instance.endpoint.id, instance.service, address)

    def _check_at(self, address: Address) -> HealthCheck | None:
        return None if self._takes_connections else HealthCheck(f"http://{address}{HEALTH_PATH.decode()}")

    def instance(self, address: Address) -> Instance:
        """What is registered."""
        config = self._config
        metadata = {"version": config.version} if config.version else {}
        if config.protocol != "tcp":
            metadata["http2"] = "true"  # of our inbound port, whatever the program behind it speaks
        if config.service.namespace != DEFAULT_NAMESPACE:
            metadata["namespace"] = config.service.namespace
        endpoint = Endpoint(config.instance, address.host, address.port, metadata)
        return Instance(config.service, endpoint)


async def advertised_address(config: SidecarConfig, inbound: Address) -> Address:
    """Where other sidecars reach us: as told, else the inbound address, for a wildcard the one that routes out.

    Raises SourceError where nothing routes there now.
    """
    if config.advertise is not None:
        return Address(config.advertise.host, config.advertise.port or inbound.port)
    if not inbound.is_wildcard:
        return inbound
    target = config.control
    if config.consul is not None:
        parts = urlsplit(config.consul)
        target = Address(parts.hostname or "127.0.0.1", parts.port or 8500)
    if target is None:
        return Address("127.0.0.1", inbound.port)
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(target.host, target.port or 1, type=socket.SOCK_DGRAM)
        family, kind, _, _, where = found[0]
        with socket.socket(family, kind) as probe:  # connecting a datagram socket sends nothing
            probe.connect(where)
            return Address(str(probe.getsockname()[0]), inbound.port)
    except OSError as error:
        message = f"no way to {target} ({error}), so this machine's address is not known; --advertise says it"
        raise SourceError(message) from error
