"""An endpoint whose queue of connections is full: the kernel answers nothing, and only a timeout ends the waiting."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mesh.model.policy import AppProtocol, ServicePolicy
from mesh.model.service import Endpoint
from tests.support.mesh import name
from tests.support.tcp import says, tcp

TIMEOUT_S = 0.3  # by default it is 1 s


@pytest.fixture
def full() -> Iterator[Endpoint]:
    """It listens, accepts nobody, and has no room for one more."""
    with socket.socket() as listening, ExitStack() as stack:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(10):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0.2)
            try:
                waiting.connect(listening.getsockname())
            except TimeoutError:
                break
        else:
            pytest.fail("the queue never filled up")
        yield Endpoint("full", "127.0.0.1", listening.getsockname()[1])


async def test_after_the_policys_connect_timeout_another_endpoint_takes_the_connection(full: Endpoint) -> None:
    async with tcp(says(b"one")) as t:
        service = t.m.plane.services[name("db")]
        service.set_policy(ServicePolicy(name("db"), app_protocol=AppProtocol.TCP, connect_timeout_s=TIMEOUT_S))
        (alive,) = service.endpoints.values()
        t.m.plane.apply_endpoints(name("db"), (alive.model, full))
        given_up, waited_s = t.m.directory.connect_failures, []
        for _ in range(40):
            before, begun_s = len(given_up), time.monotonic()
            assert await t.all_of() == b"one"
            if len(given_up) > before:
                waited_s.append(time.monotonic() - begun_s)
            if len(waited_s) == 3:
                break
        assert given_up == ["full"] * 3
        assert TIMEOUT_S - 0.01 < min(waited_s) < 0.9
        await t.over()
        assert set(t.m.cells()) == {("db", -1, ""), ("db", 0, "")}
