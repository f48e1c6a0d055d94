"""What goes over the wire to Consul, and answers that a real agent gives rarely: an agent scripted by the test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from mesh.discovery.base import Contact, SourceError, SourceRefused
from mesh.discovery.consul import ConsulConfig, ConsulSource
from mesh.model.service import Endpoint, Health, Instance
from tests.support.discovery import REVIEWS, Seen, endpoint
from tests.support.process import until

ENTRY = {
    "Node": {"Node": "n", "Address": "10.0.0.9"},
    "Service": {"ID": "a", "Address": "10.0.0.1", "Port": 80, "Meta": {"version": "v1"}, "Tags": []},
    "Checks": [],
}
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Agent:
    """Takes each request to ``answer`` and remembers it."""

    url: str = ""
    requests: list[web.Request] = field(default_factory=list)
    answer: Answer | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        assert self.answer
        return await self.answer(request)


def json(body: object, index: int = 10, **headers: str) -> web.Response:
    return web.json_response(body, headers={"X-Consul-Index": str(index)} | headers)


async def for_ever(_: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    agent = Agent()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", agent.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    agent.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield agent
    await runner.cleanup()


@pytest.fixture
async def source(agent: Agent) -> AsyncIterator[ConsulSource]:
    source = ConsulSource(ConsulConfig(agent.url, token="secret", datacenter="dc2"), wait_s=1)
    await source.start()
    yield source
    await source.close()


async def test_a_watch_asks_stale_for_all_instances_with_token_and_datacenter_then_blocks(
    agent: Agent, source: ConsulSource
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return await for_ever(request) if "index" in request.query else json([ENTRY], 42)

    agent.answer = answer
    seen = Seen(source)
    await seen.until_ids("a")
    await until(lambda: len(agent.requests) == 2, what="the blocking query")
    first, second = agent.requests
    assert first.path == "/v1/health/service/reviews"
    assert dict(first.query) == {"stale": "", "dc": "dc2"}
    assert first.headers["X-Consul-Token"] == "secret"
    assert dict(second.query) == {"stale": "", "index": "42", "wait": "1000ms", "dc": "dc2"}
    assert second.headers["X-Consul-Token"] == "secret"
    await seen.until(lambda seen: seen.failures, "an agent that hangs to be noticed", timeout_s=6)
    assert "did not answer within" in str(seen.failures[0])
    await until(lambda: len(agent.requests) >= 3, what="the next query")
    assert "index" not in agent.requests[2].query


async def test_proxy_variables_are_not_read(
    agent: Agent, source: ConsulSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return json([ENTRY])

    agent.answer = answer
    for variable in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert await source.lookup(REVIEWS)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (403, "ACL not found", SourceRefused),
        (429, "rate limit exceeded", SourceError),
        (500, "No cluster leader", SourceError),
        (302, "", SourceError),
        (200, "no json", SourceError),
    ],
)
async def test_each_bad_answer_is_an_error_of_the_source(
    agent: Agent, source: ConsulSource, status: int, body: str, kind: type[SourceError]
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=body, headers={"Location": "http://127.0.0.1:9/"})

    agent.answer = answer
    with pytest.raises(SourceError) as caught:
        await source.lookup(REVIEWS)
    assert type(caught.value) is kind
    seen = Seen(source)
    await seen.until(lambda seen: len(seen.failures) >= 2, "the watch to go on")
    assert not seen.observations


async def test_results_that_acls_filtered_to_nothing_are_a_refusal_not_an_empty_service(
    agent: Agent, source: ConsulSource
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return json([], **{"X-Consul-Results-Filtered-By-ACLs": "true"})

    agent.answer = answer
    with pytest.raises(SourceRefused, match="service:read"):
        await source.lookup(REVIEWS)


async def test_an_answer_without_a_leader_is_reported_and_then_contact_is_lost(
    agent: Agent, source: ConsulSource
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if "index" in request.query:
            return await for_ever(request)
        return json([ENTRY], **{"X-Consul-KnownLeader": "false"})

    agent.answer = answer
    seen = Seen(source)
    await seen.until(lambda seen: seen.failures, "the failure")
    assert seen.contacts == [Contact.RESUMED]
    assert "no leader" in str(seen.failures[0])

    async def nothing(_: web.Request) -> web.StreamResponse:
        return json([], **{"X-Consul-KnownLeader": "false"})

    agent.answer = nothing
    with pytest.raises(SourceError, match="no leader"):
        await source.lookup(REVIEWS)


async def test_an_agent_that_answers_each_blocking_query_at_once_is_not_spun_on(
    agent: Agent, source: ConsulSource
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return json([ENTRY], 42)

    agent.answer = answer
    loop = asyncio.get_running_loop()
    began = loop.time()
    Seen(source)
    await until(lambda: len(agent.requests) >= 4, what="four queries")
    assert loop.time() - began >= 1.9  # one at once, one blocking, then 1 s and 2 s between them


@pytest.mark.parametrize("status", [404, 500])
async def test_a_ttl_that_the_agent_does_not_know_is_registered_again(
    agent: Agent, source: ConsulSource, status: int
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/v1/agent/check/update"):
            return web.Response(status=status)
        if request.method == "GET":
            return json({"Address": "127.0.0.1", "Port": 80})
        return web.Response()

    def count(path: str) -> int:
        return sum(request.path.startswith(path) for request in agent.requests)

    agent.answer = answer
    registration = await source.register(Instance(REVIEWS, endpoint("a")), Health.PASSING)
    registration.set_health(Health.WARNING)
    await until(lambda: count("/v1/agent/service/register") == 2, what="the second registration")
    await registration.close()
    assert count("/v1/agent/service/deregister/a") == 1


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_a_deregistration_is_done_whatever_the_agent_says_of_an_unknown_id(
    agent: Agent, source: ConsulSource, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status if "deregister" in request.path else 200)

    agent.answer = answer
    registration = await source.register(Instance(REVIEWS, endpoint("a")), Health.PASSING)
    await registration.close()
    assert "stays registered" not in caplog.text


LEAVING = ENTRY | {"Checks": [{"CheckID": "_service_maintenance:a", "Status": "critical"}]}
OTHER = {**ENTRY, "Service": {"ID": "b", "Address": "10.0.0.2", "Port": 80, "Meta": {}, "Tags": []}}
OURS = Endpoint("a", "10.0.0.1", 80)


@dataclass
class Told:
    """An agent with ACLs on, whose token may not read the agent; it lists what ``entries`` says."""

    entries: list[dict[str, object]]
    index: int = 10

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/agent/self":
            return web.Response(status=403, text="Permission denied")
        if request.method == "PUT":
            return web.Response()
        began = self.index
        while "index" in request.query and int(request.query["index"]) == self.index == began:
            await asyncio.sleep(0.01)
        return json(self.entries, self.index)

    def say(self, *entries: dict[str, object]) -> None:
        self.entries, self.index = list(entries), self.index + 1


async def test_what_left_as_announced_is_no_sign_of_a_wrong_token(
    agent: Agent, source: ConsulSource, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told([ENTRY])
    agent.answer = told.answer
    seen = Seen(source)
    await seen.until_ids("a")
    told.say(LEAVING)
    await seen.until_ids("a", health=Health.LEAVING)
    told.say()
    await seen.until_ids()
    assert not caplog.records


@pytest.mark.parametrize("how", ["announced", "deregistered"])
async def test_what_we_took_out_ourselves_is_no_sign_of_a_wrong_token(
    agent: Agent, source: ConsulSource, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told([ENTRY])
    agent.answer = told.answer
    registration = await source.register(Instance(REVIEWS, OURS), Health.PASSING)
    seen = Seen(source)
    await seen.until_ids("a")
    await (registration.announce_leaving() if how == "announced" else registration.close())
    told.say()
    await seen.until_ids()
    assert await source.lookup(REVIEWS) is None
    await registration.close()
    assert not caplog.records


async def test_what_went_without_a_word_may_be_hidden_by_a_token_which_is_said_once(
    agent: Agent, source: ConsulSource, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told([LEAVING, OTHER])
    agent.answer = told.answer
    seen = Seen(source)
    await seen.until_ids("a", "b")
    told.say()
    await seen.until_ids()
    await until(lambda: "Consul has ACLs on" in caplog.text, what="the hint")
    assert "lists no instance of reviews any more (it listed 2)" in caplog.text
    assert await source.lookup(REVIEWS) is None
    assert len(caplog.records) == 2


async def test_without_acls_what_went_without_a_word_is_told_and_no_token_is_spoken_of(
    agent: Agent, source: ConsulSource, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told([ENTRY])

    async def answer(request: web.Request) -> web.StreamResponse:
        return json({}) if request.path == "/v1/agent/self" else await told.answer(request)

    agent.answer = answer
    seen = Seen(source)
    await seen.until_ids("a")
    told.say()
    await seen.until_ids()
    await until(lambda: any(r.path == "/v1/agent/self" for r in agent.requests), what="the question")
    assert await source.lookup(REVIEWS) is None
    assert "nobody had announced it" in caplog.text
    assert "token" not in caplog.text
