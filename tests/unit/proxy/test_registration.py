"""Registering: when, at which address, and again after a refusal."""

import asyncio
import logging
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from mesh.discovery.base import HealthCheck, SourceError, SourceRefused
from mesh.model.name import Name
from mesh.model.service import Health, Instance
from proxy.config import Address, SidecarConfig
from proxy.registration import SelfRegistration, advertised_address
from tests.support.process import until

PAY = Name("default", "pay")
INBOUND = Address("127.0.0.1", 15006)
WILDCARD = Address("0.0.0.0", 15006)


class Registered:
    def __init__(self) -> None:
        self.health: list[Health] = []
        self.check: HealthCheck | None = None
        self.is_away = False
        self.is_leaving = False

    def set_health(self, health: Health) -> None:
        self.health.append(health)

    async def change_check(self, check: HealthCheck | None) -> None:
        if self.is_away:
            raise SourceError("consul is away")
        self.check = check

    async def announce_leaving(self) -> None:
        self.is_leaving = True

    async def close(self) -> None: ...


class FakeSource:
    """Refuses as often as told."""

    name = "consul"

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.asked: list[tuple[Instance, Health, HealthCheck | None]] = []
        self.registered = Registered()

    async def register(self, instance: Instance, health: Health, check: HealthCheck | None = None) -> Any:
        self.asked.append((instance, health, check))
        self.registered.check = check
        if len(self.asked) <= self.refusals:
            raise SourceRefused("ACL not found")
        return self.registered


def make(source: FakeSource, **settings: Any) -> tuple[SelfRegistration, Any]:
    config = SidecarConfig(PAY, 8080, **settings)
    registration = SelfRegistration(config, source, INBOUND, Random(1))  # type: ignore[arg-type]
    registration._backoff.base_s = registration._backoff.max_s = 0.001
    return registration, SimpleNamespace(first_success=asyncio.Event())


async def test_a_refusal_is_tried_again_told_once_and_forgotten_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = FakeSource(refusals=3)
    registration, check = make(source)
    registration.start(check)
    registration.set_health(Health.CRITICAL)
    await asyncio.sleep(0)
    assert not source.asked  # the program has not answered yet
    check.first_success.set()
    await until(lambda: registration.is_registered, what="the registration")
    assert (len(source.asked), registration.error) == (4, "")
    assert source.registered.health == [Health.CRITICAL]
    assert [r.message for r in caplog.records if "ACL" in r.message] == ["not registered, and trying on: ACL not found"]
    assert any("registering the loopback address" in r.message for r in caplog.records)
    await registration.close()


async def test_who_cannot_be_asked_over_http_is_checked_by_its_lease_as_long_as_that_holds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = FakeSource(refusals=0)
    registration, check = make(source)
    check.first_success.set()
    registration.start(check)
    await until(lambda: registration.is_registered, what="the registration")
    over_http = HealthCheck("http://127.0.0.1:15006/.well-known/sidemesh/health")
    assert source.registered.check == over_http
    await registration.follow(takes_connections=True)
    assert source.registered.check is None
    await registration.follow(takes_connections=False)
    assert source.registered.check == over_http
    source.registered.is_away = True
    with caplog.at_level(logging.WARNING, logger="proxy.registration"):
        await registration.follow(takes_connections=True)  # what is served does not depend on it
    assert caplog.messages[-1] == "consul is not told yet how to check this sidecar: consul is away"
    await registration.close()


async def test_what_the_inbound_port_takes_by_then_is_registered() -> None:
    source = FakeSource(refusals=0)
    registration, check = make(source)
    await registration.follow(takes_connections=True)
    registration.start(check)
    check.first_success.set()
    await until(lambda: registration.is_registered, what="the registration")
    assert [check for _, _, check in source.asked] == [None]
    assert source.registered.check is None
    await registration.close()


async def test_one_that_leaves_before_it_is_registered_stays_away() -> None:
    source = FakeSource(refusals=10**9)
    registration, check = make(source)
    registration.start(check)
    check.first_success.set()
    await until(lambda: registration.error == "ACL not found", what="the refusal")
    assert not registration.is_registered
    await registration.announce_leaving()
    source.refusals = 0
    await asyncio.sleep(0.02)
    assert not registration.is_registered
    await registration.close()


@pytest.mark.parametrize(
    ("inbound", "settings", "expected"),
    [
        (INBOUND, {}, "127.0.0.1:15006"),
        (Address("10.1.2.3", 15006), {}, "10.1.2.3:15006"),
        (WILDCARD, {"advertise": Address("pay.example", 0)}, "pay.example:15006"),
        (WILDCARD, {"advertise": Address("10.0.0.9", 30000)}, "10.0.0.9:30000"),
        (WILDCARD, {"control": Address("127.0.0.1", 15010)}, "127.0.0.1:15006"),
        (WILDCARD, {"consul": "http://127.0.0.1:8500", "control": Address("nosuch.invalid", 1)}, "127.0.0.1:15006"),
        (Address("::", 15006), {"consul": "http://[::1]:8500"}, "[::1]:15006"),
    ],
)
async def test_the_address_that_is_registered(inbound: Address, settings: dict[str, Any], expected: str) -> None:
    assert str(await advertised_address(SidecarConfig(PAY, 8080, inbound, **settings), inbound)) == expected


async def test_an_address_that_cannot_be_told_yet_is_an_error_to_try_again_after() -> None:
    config = SidecarConfig(PAY, 8080, control=Address("nosuch.invalid", 15010))
    with pytest.raises(SourceError, match=r"no way to nosuch\.invalid:15010 .*--advertise"):
        await advertised_address(config, WILDCARD)


@pytest.mark.parametrize(
    ("protocol", "told"), [("caller", "true"), ("http1", "true"), ("detect", "true"), ("tcp", None)]
)
def test_its_inbound_port_speaks_http2_whatever_its_program_does(protocol: str, told: str | None) -> None:
    registration, _ = make(FakeSource(0), protocol=protocol)
    assert registration.instance(INBOUND).endpoint.metadata.get("http2") == told
