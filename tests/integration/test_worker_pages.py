"""What a sidecar of several workers tells of itself: the pages and metrics show the sums, whoever took a request."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from proxy.worker_pool import ANSWER_S
from tests.support.control import background
from tests.support.mesh import Program, Request
from tests.support.process import until
from tests.support.telemetry import Running, endpoints, otlp_backend, sidecar

SAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
ROUTE = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "HTTPRoute",
    "metadata": {"name": "pay"},
    "spec": {
        "parentRefs": [{"kind": "Service", "group": "", "name": "pay"}],
        "rules": [{"backendRefs": [{"name": "pay"}]}],
    },
}


@asynccontextmanager
async def programs(*replies: Any) -> AsyncIterator[tuple[Program, ...]]:
    """One program for each reply."""
    async with AsyncExitStack() as stack:
        started = []
        for reply in replies:
            program = Program([reply])
            await program.start()
            stack.push_async_callback(program.stop)
            started.append(program)
        yield tuple(started)


async def page(caller: Running, name: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(f"{caller.admin}/{name}") as answer:
        return await answer.json()


async def cluster(caller: Running, service: str) -> dict[str, Any]:
    """What /clusters says of one service."""
    (found,) = [told for told in await page(caller, "clusters") if told["service"] == service]
    return dict(found)


async def metric(caller: Running, sample: str) -> float:
    lines = [line for line in (await caller.metrics()).splitlines() if line.startswith(sample)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def test_the_pages_sum_over_the_workers_and_tell_who_ejected_an_endpoint() -> None:
    release = asyncio.Event()

    async def held(_: Request, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async with programs(200, 503, held) as (good, bad, slow), AsyncExitStack() as stack:
        services = {"pay": endpoints(good.port, bad.port), "slow": endpoints(slow.port)}
        caller = await stack.enter_async_context(sidecar("shop", services=services, routes=(ROUTE,), workers=2))
        url = f"http://127.0.0.1:{caller.outbound}/"

        # One connection is one worker's, so only that one sees the failures. A POST is not repeated after a 503.
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)))
        sent = 0
        while not (e1 := (await cluster(caller, "pay"))["endpoints"][1])["ejected"]:
            assert sent < 200, e1
            for _ in range(10):
                async with session.post(url, headers={"host": "pay"}) as answer:
                    await answer.read()
            sent += 10
        assert e1["ejected_by"] == "1 of 2 workers"
        assert e1["failures_in_a_row"] == 5
        told = await cluster(caller, "pay")
        e0, e1 = told["endpoints"]
        assert (e0["ejected"], e0["ejected_by"]) == (False, "0 of 2 workers")
        assert e0["requests"] + e1["requests"] == len(good.requests) + len(bad.requests) >= sent
        assert told["clusters"] == [{"name": "pay", "usable": ["e0", "e1"]}], "the other worker still uses both"
        assert told["workers_without_answer"] == []
        assert await metric(caller, 'mesh_endpoints{service="pay",state="ejected"}') == 1
        assert await metric(caller, 'mesh_endpoints{service="pay",state="usable"}') == 1

        # So does `mesh why`.
        (backend,) = (await page(caller, "why?method=GET&url=http://pay/")).get("backends")
        assert [e["verdict"] for e in backend["endpoints"]] == ["may get it", "ejected by 1 of 2 workers"]

        # Requests under way are counted, whoever has them.
        waiting = [background(caller.call("slow")) for _ in range(6)]
        await slow.wait_for_requests(6)
        told = await cluster(caller, "slow")
        assert (told["requests_in_flight"], told["connections"], told["pending"]) == (6, 6, 0)
        assert [(e["active"], e["requests"], e["connections"]) for e in told["endpoints"]] == [(6, 6, 6)]
        overview = await page(caller, "")
        assert overview["exchanges_under_way"] == 6
        assert caller.sidecar.pool is not None
        assert overview["workers"] == [f"worker {n} (pid {pid})" for n, pid in enumerate(caller.sidecar.pool.pids)]
        release.set()
        assert [status for status, _, _ in await asyncio.gather(*waiting)] == [200] * 6
        told = await cluster(caller, "slow")
        assert (told["requests_in_flight"], told["endpoints"][0]["active"]) == (0, 0)

        # /stats asks as well, rather than wait for the next report.
        stats = await page(caller, "stats")
        assert sum(r["count"] for r in stats["requests"] if r["labels"]["destination_app"] == "slow") == 6
        assert stats["ejections"] == 1
        assert stats["workers_without_answer"] == []


async def test_a_worker_that_does_not_answer_is_named_and_holds_up_nobody() -> None:
    async with programs(200) as (program,), sidecar("shop", services={"pay": endpoints(program.port)}, workers=2) as s:
        assert s.sidecar.pool is not None
        assert (await s.call("pay"))[0] == 200
        hung = s.sidecar.pool.pids[1]
        os.kill(hung, signal.SIGSTOP)
        try:
            began = time.monotonic()
            asked = background(cluster(s, "pay"))
            served = 0
            while not asked.done():
                assert (await s.call("pay"))[0] == 200
                served += 1
            assert served >= 10
            told = await asked
            assert time.monotonic() - began < ANSWER_S + 1
            assert told["workers_without_answer"] == [f"worker 1 (pid {hung})"]
            stats = await page(s, "stats")
            assert stats["workers_without_answer"] == [f"worker 1 (pid {hung})"]
            assert sum(r["count"] for r in stats["requests"]) >= served
        finally:
            os.kill(hung, signal.SIGCONT)

        async def is_back() -> bool:
            return (await cluster(s, "pay"))["workers_without_answer"] == []

        await until(is_back, what="the worker to answer again")


async def test_a_page_of_a_sidecar_without_workers_speaks_of_none() -> None:
    async with programs(200) as (program,), sidecar("shop", services={"pay": endpoints(program.port)}) as caller:
        assert (await caller.call("pay"))[0] == 200
        told = await cluster(caller, "pay")
        assert "workers_without_answer" not in told
        assert (told["endpoints"][0]["requests"], told["endpoints"][0]["ejected"]) == (1, False)
        assert "ejected_by" not in told["endpoints"][0]
        assert "workers" not in await page(caller, "")


async def test_spans_and_log_lines_of_workers_are_counted_one_by_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    log = tmp_path / "access.log"
    async with programs(200) as (program,), otlp_backend() as backend:
        backend.answer = 400
        for key, value in {
            "OTEL_EXPORTER_OTLP_ENDPOINT": backend.http,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_BSP_MAX_QUEUE_SIZE": "64",
        }.items():
            monkeypatch.setenv(key, value)
        services = {"pay": endpoints(program.port)}
        settings: dict[str, Any] = {"workers": 2, "access_log": "all", "access_log_path": str(log)}
        async with sidecar("shop", services=services, **settings) as caller:

            async def counted(name: str, count: int) -> None:
                async def is_so() -> bool:
                    return await metric(caller, name) == count

                await until(is_so, what=f"{name} to be {count}")

            for _ in range(30):
                assert (await caller.call("pay", headers=SAMPLED))[0] == 200
            await counted("mesh_spans_dropped_total", 30)
            assert await metric(caller, "mesh_spans_exported_total") == 0
            assert await metric(caller, "mesh_spans_queued") == 0
            backend.answer = 200
            for _ in range(10):
                await caller.call("pay", headers=SAMPLED)
            await counted("mesh_spans_exported_total", 10)
            await counted("mesh_access_log_lines_total", 40)
            assert await metric(caller, "mesh_spans_dropped_total") == 30
        assert len(backend.spans) == 10


async def test_spans_that_workers_still_hold_at_the_end_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with otlp_backend() as backend:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", backend.http)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
        async with sidecar("shop", workers=2) as caller:
            for _ in range(12):
                await caller.call("nobody", headers=SAMPLED)
        assert len(backend.spans) == 12
