"""``mesh why CONNECT``: what a tunnel would meet, and that a real one meets just that."""

from __future__ import annotations

import asyncio

import pytest
from click.testing import CliRunner, Result

from mesh.cli.main import main
from mesh.model.name import Name
from mesh.model.service import Endpoint
from proxy.dataplane import EGRESS
from proxy.explain import why_tunnel
from tests.support.mesh import Client, mesh
from tests.support.telemetry import Running, endpoints, sidecar

OUTSIDE = Name(EGRESS, "outside.example:443")


async def mesh_why(running: Running, url: str) -> Result:
    admin = running.admin.removeprefix("http://")
    return await asyncio.to_thread(CliRunner().invoke, main, ["why", "CONNECT", url, "--admin", admin])


async def met(port: int, authority: str) -> str:
    """What a real CONNECT is answered: its status, and the line that says why."""
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    client.send(f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n".encode())
    answer = await client.receive()
    client.close()
    _, _, why = answer.body.decode().strip().partition(": ")
    return f"{answer.status} {why}"


@pytest.mark.parametrize(
    ("settings", "authority", "outcome"),
    [
        ({}, "outside.example:443", "501 "),
        ({"egress": True, "egress_connect": (443,)}, "outside.example:22", "403 NR: CONNECT to port 22 is not allowed, only to 443"),
        ({"egress": True, "egress_connect": (443,)}, "pay:443", "403 NR: pay is a service of the mesh"),
        ({"egress": True, "egress_connect": (443,)}, "nosuch.invalid:443", "404 NR: "),
    ],
)  # fmt: skip
async def test_a_refusal_is_told_as_a_real_tunnel_meets_it(
    settings: dict[str, object], authority: str, outcome: str
) -> None:
    async with sidecar("app", services={"pay": endpoints(1)}, **settings) as running:
        told = await mesh_why(running, f"https://{authority}")
        assert told.exit_code == 0, told.output
        assert told.output.startswith(f"CONNECT {authority}  (table ")
        (line,) = (line for line in told.output.splitlines() if line.startswith("outcome: "))
        assert line.startswith(f"outcome: {outcome}")
        said = await met(running.outbound, authority)
        assert (line[9:12], line.partition(": ")[2].partition(": ")[2]) == (said[:3], said.partition(": ")[2])


async def test_a_port_that_is_not_said_is_that_of_https() -> None:
    async with sidecar("app", egress=True, egress_connect=(8443,)) as running:
        assert "CONNECT to port 443 is not allowed" in (await mesh_why(running, "https://outside.example")).output


async def test_what_passes_is_told_with_its_addresses() -> None:
    async with mesh().connect_to(443).service("pay").start() as m:
        m.plane.apply_endpoints(OUTSIDE, (Endpoint("192.0.2.1", "192.0.2.1", 443),))
        answer = why_tunnel(m.outbound, b"outside.example:443")
        assert answer["outcome"] == "forwarded"
        assert [each["address"] for each in answer["backends"][0]["endpoints"]] == ["192.0.2.1:443"]
        assert "not known here yet" in why_tunnel(m.outbound, b"other.example:443")["outcome"]
    async with mesh().connect_to(443).without_table().start() as m:
        assert why_tunnel(m.outbound, b"outside.example:443")["outcome"].startswith("503 NR: ")


def test_a_tunnel_has_nothing_but_a_host_and_a_port() -> None:
    told = CliRunner().invoke(main, ["why", "CONNECT", "https://api.example:443/x"])
    assert told.exit_code == 2
    assert "https://HOST:PORT" in told.output
