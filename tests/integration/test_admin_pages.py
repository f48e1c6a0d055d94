"""The admin pages /stats and /routes, of a real sidecar: as JSON for programs and as a page for people."""

import html
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import yaml

from mesh.model.gateway_api import parse, to_document
from mesh.model.name import Name
from proxy.admin import AdminServer
from proxy.config import Address, SidecarConfig
from proxy.sidecar import Sidecar
from tests.support.mesh import Program

ANY = Address("127.0.0.1", 0)
HTML = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}
PROMETHEUS = {
    "Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
}
ROUTES = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: pay}
spec:
  parentRefs: [{kind: Service, group: "", name: pay}]
  rules:
  - matches: [{headers: [{name: x-mark, value: "<b>&"}]}]
    retry: {attempts: 2, codes: [503]}
    backendRefs: [{name: pay}]
  - backendRefs:
    - {name: pay, weight: 100, filters: [{type: ExtensionRef, extensionRef: {group: mesh.sidemesh.dev, kind: Subset, name: v2}}]}
    - {name: pay, weight: 0, filters: [{type: ExtensionRef, extensionRef: {group: mesh.sidemesh.dev, kind: Subset, name: v1}}]}
---
apiVersion: mesh.sidemesh.dev/v1
kind: ServicePolicy
metadata: {name: pay}
spec:
  outlierDetection: {consecutiveFailures: 0}
"""


class Admin:
    """A running sidecar's admin pages, and its outbound side."""

    def __init__(self, sidecar: Sidecar, session: aiohttp.ClientSession) -> None:
        self._sidecar = sidecar
        self._session = session

    async def page(self, path: str, headers: dict[str, str] | None = None) -> tuple[str, str]:
        """The content type and the text."""
        async with self._session.get(f"http://{self._sidecar.addresses['admin']}{path}", headers=headers) as answer:
            assert answer.status == 200
            return answer.content_type, await answer.text()

    async def json(self, path: str) -> Any:
        kind, text = await self.page(path)
        assert kind == "application/json"
        return json.loads(text)

    async def call(self, host: str = "pay", **headers: str) -> int:
        url = f"http://{self._sidecar.addresses['outbound']}/"
        async with self._session.get(url, headers={"Host": host} | headers) as answer:
            await answer.read()
            return answer.status


@asynccontextmanager
async def admin_of(*ports: int, routes: str = ROUTES) -> AsyncIterator[Admin]:
    services = {
        "pay": [
            {"id": f"pay-{i}", "address": "127.0.0.1", "port": port, "version": "v2"} for i, port in enumerate(ports)
        ]
    }
    sidecar = Sidecar(
        SidecarConfig(
            Name("default", "caller"),
            version="v9",
            inbound=ANY,
            outbound=ANY,
            admin=ANY,
            services=services,
            routes=tuple(yaml.safe_load_all(routes)) if routes else (),
        )
    )
    admin = AdminServer(sidecar)
    await sidecar.start()
    await admin.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            yield Admin(sidecar, session)
    finally:
        await admin.close()
        await sidecar.close()


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    program = Program([200, 200, 503, 200])
    await program.start()
    async with admin_of(program.port) as admin:
        yield admin
    await program.stop()


async def test_stats_counts_requests_by_what_was_called_and_how_it_ended(admin: Admin) -> None:
    before = await admin.json("/stats")
    assert (before["requests"], before["retries"]) == ([], {})
    assert [await admin.call() for _ in range(2)] == [200, 200]
    assert await admin.call(**{"X-Mark": "<b>&"}) == 200  # after a 503
    assert await admin.call("nobody") == 404
    stats = await admin.json("/stats")
    counts = Counter[tuple[str, str, int, str]]()
    for row in stats["requests"]:
        assert row["mean_ms"] > 0
        assert (row["labels"]["reporter"], row["labels"]["source_workload"]) == ("source", "caller-v9")
        called = row["labels"]["destination_service_name"], row["labels"]["destination_version"]
        counts[*called, row["status"], row["flag"]] += row["count"]
    # By its subset where the route names one.
    assert counts == {("pay", "v2", 200, ""): 2, ("pay", "unknown", 200, ""): 1, ("unknown", "unknown", 404, "NR"): 1}
    assert list(stats["retries"].values()) == [1]
    assert stats["discovery"] == {"declared": 1, "on_demand": 0, "lookups": 0, "negative": 1}
    assert stats["ejections"] == stats["retry_budget_exhausted"] == 0


async def test_stats_is_a_page_for_a_browser_with_the_same_numbers(admin: Admin) -> None:
    await admin.call()
    kind, page = await admin.page("/stats", HTML)
    assert kind == "text/html"
    assert json.loads(body_of(page)) == await admin.json("/stats")
    assert "<h1>stats</h1>" in page
    assert (await admin.page("/stats?format=json", HTML))[0] == "application/json"


async def test_routes_shows_the_documents_as_they_are_in_force(admin: Admin) -> None:
    routes = await admin.json("/routes")
    (route, policy) = parse(ROUTES).values
    assert routes == [to_document(route)]
    assert parse(json.dumps(routes[0])).values == (route,)  # and takes them again
    assert policy.name.name == "pay"


async def test_routes_is_a_page_for_a_browser_in_which_nothing_of_a_route_is_markup(admin: Admin) -> None:
    kind, page = await admin.page("/routes", HTML)
    assert kind == "text/html"
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;" in page
    assert json.loads(body_of(page)) == await admin.json("/routes")
    links = re.findall(r'<a href="([^"]+)">', page)
    assert {"/", "/stats", "/routes"} <= set(links)
    for link in links:
        await admin.page(link, HTML)  # 200, all of them


async def test_without_routes_the_page_is_an_empty_list() -> None:
    async with admin_of(routes="") as admin:
        assert await admin.json("/routes") == []
        assert body_of((await admin.page("/routes", HTML))[1]) == "[]"


def body_of(page: str) -> str:
    """What stands in the page, as text."""
    (body,) = re.findall(r"<pre>(.*)</pre>", page, re.DOTALL)
    return html.unescape(body)


async def test_metrics_is_the_exposition_a_page_and_json_with_the_same_samples(admin: Admin) -> None:
    await admin.call()
    kind, text = await admin.page("/metrics")
    assert kind == "text/plain"
    lines = [line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    as_json = await admin.json("/metrics?format=json")
    assert [sample["name"] for sample in as_json] == lines
    requests = [s for s in as_json if s["name"] == "istio_requests_total" and s["labels"]["reporter"] == "source"]
    assert [(s["labels"]["response_code"], s["value"]) for s in requests] == [("200", 1)]
    kind, page = await admin.page("/metrics", HTML)
    assert kind == "text/html"
    assert "<h1>metrics</h1>" in page
    assert 'istio_requests_total{reporter="source"' in body_of(page)
    assert (await admin.page("/metrics", {"Accept": "application/json"}))[0] == "application/json"
    assert (await admin.page("/metrics", PROMETHEUS))[0] == "text/plain"


async def test_ready_and_live_are_text_for_probes_a_page_and_json(admin: Admin) -> None:
    assert await admin.page("/ready") == ("text/plain", "ready\n")
    assert await admin.page("/live") == ("text/plain", "live\n")
    assert await admin.json("/ready?format=json") == {"ready": True}
    assert await admin.json("/live?format=json") == {"live": True}
    for path in ("/ready", "/live"):
        kind, page = await admin.page(path, HTML)
        assert kind == "text/html"
        assert json.loads(body_of(page))[path.strip("/")] is True


async def test_a_sidecar_that_is_not_ready_says_503_and_why_in_every_form() -> None:
    sidecar = Sidecar(SidecarConfig(Name("default", "caller"), inbound=ANY, outbound=ANY, admin=ANY))
    admin = AdminServer(sidecar)
    await admin.start()  # the sidecar itself has not been started
    url = f"http://{sidecar.addresses['admin']}/ready"
    try:
        async with aiohttp.ClientSession() as session:
            for headers, text in (
                ({}, "not ready: no"),
                (HTML, "<h1>ready"),
                ({"Accept": "application/json"}, '"ready": false'),
            ):
                async with session.get(url, headers=headers) as answer:
                    assert answer.status == 503
                    body = await answer.text()
                    assert text in body
                    assert "no routing table yet" in body
    finally:
        await admin.close()
        await sidecar.close()
