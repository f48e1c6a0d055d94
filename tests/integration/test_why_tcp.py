"""``mesh why TCP``: what a connection would meet, told by a real sidecar, and that a real one meets just that."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner, Result

from mesh.cli.main import main
from mesh.model.name import Name
from tests.support.ports import free_port
from tests.support.telemetry import Running, endpoints, sidecar

HTTP_ROUTE: dict[str, Any] = {
    "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "pages"},
    "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "db"}], "rules": [{"backendRefs": [{"name": "db"}]}]},
}  # fmt: skip
TCP_ROUTE: dict[str, Any] = {
    "apiVersion": "gateway.networking.k8s.io/v1alpha2", "kind": "TCPRoute", "metadata": {"name": "db"},
    "spec": {
        "parentRefs": [{"group": "", "kind": "Service", "name": "db"}],
        "rules": [{"backendRefs": [{"name": "db", "weight": 3}, {"name": "old", "weight": 1}]}],
    },
}  # fmt: skip
SECOND_ROUTE: dict[str, Any] = TCP_ROUTE | {"metadata": {"name": "later"}}
DB = Name("default", "db")


async def why(running: Running, url: str = "tcp://db") -> dict[str, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{running.admin}/why", params={"url": url, "format": "json"}) as answer,
    ):
        found: dict[str, Any] = await answer.json()
        return found


async def mesh_why(running: Running, *words: str) -> Result:
    admin = running.admin.removeprefix("http://")
    return await asyncio.to_thread(CliRunner().invoke, main, ["why", *words, "--admin", admin])


async def says(text: bytes) -> tuple[asyncio.Server, int]:
    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def test_the_oldest_route_takes_a_connection_and_the_others_are_told_why_they_do_not() -> None:
    one, one_port = await says(b"one")
    two, two_port = await says(b"two")
    local = free_port()
    services = {"db": endpoints(one_port), "old": endpoints(two_port)}
    async with (
        one, two,
        sidecar("app", services=services, routes=(HTTP_ROUTE, SECOND_ROUTE, TCP_ROUTE), upstreams={DB: local}) as s,
    ):  # fmt: skip
        answer = await why(s)
        assert answer["outcome"] == "forwarded"
        assert (answer["route"], answer["local_port"]) == ("db/0", f"127.0.0.1:{local}")
        assert [(c["rule"], c["verdict"].partition(",")[0]) for c in answer["candidates"]] == [
            ("db/0", "takes it"),
            ("later/0", "would take it"),
            ("pages", "takes no connections: it is of kind HTTPRoute"),
        ]
        assert [(b["cluster"], b["share_percent"]) for b in answer["backends"]] == [("db", 75.0), ("old", 25.0)]
        assert answer["backends"][0]["endpoints"][0]["verdict"] == "may get it"

        heard = set()
        for _ in range(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", local)
            heard.add(await reader.read())
            writer.close()
        assert heard == {b"one", b"two"}

        told = await mesh_why(s, "TCP", "tcp://db:5432")
        assert told.exit_code == 0
        lines = told.output.splitlines()
        assert lines[0].startswith("TCP tcp://db:5432  (table ")
        assert lines[1:4] == ["outcome: forwarded", f"port:    127.0.0.1:{local}", "route:   db/0"]
        assert any(line.startswith("backend: old  weight 1 = 25 %") for line in lines)
        assert "retries: 2 more" in told.output


async def test_without_a_route_it_goes_to_the_service_if_it_finds_a_port() -> None:
    local, http = free_port(), free_port()
    services = {"db": endpoints(1), "web": endpoints(1), "none": endpoints(1), "gone": endpoints(1, health="critical")}
    upstreams = {DB: local, Name("default", "web"): http, Name("default", "gone"): 0}
    async with sidecar(
        "app", services=services, upstreams=upstreams, tcp_upstreams=frozenset({DB, Name("default", "gone")})
    ) as s:
        assert (await why(s))["route"] == "passthrough"
        assert (await why(s))["outcome"] == "forwarded"
        assert (await why(s, "tcp://web"))["outcome"].startswith(
            f"400: 127.0.0.1:{http} takes HTTP only; if web speaks"
        )
        answer = await why(s, "tcp://none")
        assert answer["local_port"] is None
        assert "--upstream none=PORT/tcp" in answer["outcome"]
        assert (await why(s, "tcp://gone"))["outcome"] == "503 UH: gone has no healthy endpoint"
        assert (await why(s, "tcp://nobody"))["outcome"].startswith("404 NR")
        assert "port:    none" in (await mesh_why(s, "TCP", "tcp://none")).output


async def test_where_first_bytes_decide_it_may_be_a_connection() -> None:
    async with sidecar(
        "app", services={"db": endpoints(1)}, upstreams={DB: 0}, detected_upstreams=frozenset({DB})
    ) as s:
        assert (await why(s))["outcome"] == "forwarded"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("TCP", "http://db"), "mesh why TCP tcp://SERVICE"),
        (("GET", "tcp://db"), "mesh why TCP tcp://SERVICE"),
        (("TCP", "tcp://db/path"), "no path, query or headers"),
        (("TCP", "tcp://db", "-H", "a: b"), "no path, query or headers"),
        (("TCP", "db"), "no absolute URL"),
    ],
)
def test_what_is_neither_a_request_nor_a_connection_is_refused(words: tuple[str, ...], said: str) -> None:
    told = CliRunner().invoke(main, ["why", *words])
    assert told.exit_code == 2
    assert said in " ".join(told.output.split())


def test_help_names_both() -> None:
    told = CliRunner().invoke(main, ["why", "--help"]).output
    assert "mesh why TCP tcp://db" in told
    assert "mesh why GET http://reviews" in told
