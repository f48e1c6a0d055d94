"""Registers this instance once its program answers, and keeps its health told.

What is registered is the inbound listener at the advertised address: callers' sidecars speak to this sidecar, never
to the program. Consul checks it through the inbound port at a reserved path that answers with the program's state,
so that either's death takes the instance out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from urllib.parse import urlsplit

from mesh.discovery.base import HealthCheck, Registration, Source, SourceError
from mesh.model.name import DEFAULT_NAMESPACE
from mesh.model.service import Endpoint, Health, Instance
from mesh.tasks import Tasks
from proxy.config import Address, SidecarConfig
from proxy.listener import HEALTH_PATH
from proxy.program_check import ProgramCheck

logger = logging.getLogger(__name__)


class SelfRegistration:
    """The sidecar's own instance in a discovery source."""

    def __init__(self, config: SidecarConfig, source: Source, inbound: Address) -> None:
        """``inbound`` is where the inbound listener really listens."""
        self._config = config
        self._source = source
        self.address = advertised_address(config, inbound)
        self._registration: Registration | None = None
        self._health = Health.PASSING
        self._tasks = Tasks("registration")
        self._leaving = asyncio.Event()
        self.error = ""

    @property
    def is_registered(self) -> bool:
        """The source has it, or will as soon as it can be reached."""
        return self._registration is not None

    def start(self, check: ProgramCheck) -> None:
        """Register as soon as the program has answered for the first time."""
        if self.address.is_loopback and self._source.name != "file":
            logger.warning(
                "registering the loopback address %s: only this machine can reach it (--advertise, --inbound)",
                self.address,
            )
        self._tasks.start(self._register(check), "register")

    def set_health(self, health: Health) -> None:
        """The program's state changed."""
        self._health = health
        if self._registration is not None:
            self._registration.set_health(health)

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
        if self._leaving.is_set():
            return
        instance = self.instance()
        url = f"http://{self.address}{HEALTH_PATH.decode()}"
        try:
            self._registration = await self._source.register(instance, Health.PASSING, HealthCheck(url))
        except SourceError as error:
            self.error = str(error)
            logger.error("not registered: %s", error)  # noqa: TRY400 - the message says it all
            return
        self._registration.set_health(self._health)
        if self._leaving.is_set():
            await self.announce_leaving()
            return
        logger.info("registered as %s of %s at %s", instance.endpoint.id, instance.service, self.address)

    def instance(self) -> Instance:
        """What is registered."""
        config = self._config
        metadata = {"version": config.version} if config.version else {}
        if config.service.namespace != DEFAULT_NAMESPACE:
            metadata["namespace"] = config.service.namespace
        endpoint = Endpoint(config.instance, self.address.host, self.address.port, metadata)
        return Instance(config.service, endpoint)


def advertised_address(config: SidecarConfig, inbound: Address) -> Address:
    """Where other sidecars reach us: as told, else the inbound address, for a wildcard the one that routes out."""
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
    family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # connecting a datagram socket sends nothing
        probe.connect((target.host, target.port or 1))
        return Address(str(probe.getsockname()[0]), inbound.port)
