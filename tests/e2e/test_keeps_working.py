"""It keeps working, on real processes: what dies, hangs or comes back empty costs no request."""

import asyncio
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from mesh.client import MeshClient
from mesh.model.name import Name
from mesh.model.snapshot import Kind
from proxy.last_good import LastGood
from tests.support.consul import ConsulAgent
from tests.support.control import background
from tests.support.faults import FaultyLink
from tests.support.fleet import MESH, Answer, Fleet, SidecarProcess, get, patched
from tests.support.process import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

AWAY_S = float(os.environ.get("MESH_TEST_AWAY_S", "60"))
"""How long the control server is dead under load."""

WORKERS = pytest.mark.parametrize("workers", [1, 2])
"""Of every sidecar in the test: one process that is all, or two that its parent tells everything."""


@pytest.mark.parametrize(("workers", "away_s"), [(1, AWAY_S), (2, min(AWAY_S, 2))])
async def test_a_dead_control_server_costs_no_request_and_is_obeyed_again_when_it_is_back(
    tmp_path: Path, workers: int, away_s: float
) -> None:
    async with Fleet(tmp_path, workers=workers) as fleet:
        control = await fleet.control()
        old, new, caller = await asyncio.gather(
            fleet.instance("pay", version="v1", label="pay-1"),
            fleet.instance("pay", version="v2", label="pay-2"),
            fleet.sidecar("caller", "--data", str(tmp_path / "caller")),
        )
        nodes = (old.sidecar.node, new.sidecar.node, caller.node)
        await caller.until_usable("pay", 2)
        assert (await control.set_weights("pay", v1=100, v2=0)).is_acked_by_all
        async with fleet.load(caller, "pay") as load:
            await load.more(60)
            await control.kill()
            await load.run_for(away_s)
            assert load.shares() == {"v1": 1.0}
            assert await caller.metric("mesh_control_connected") == 0
            await control.restart()
            # At once, when hardly anybody has come back: all are waited for, since the server knows who there was.
            change = await control.set_weights("pay", v1=0, v2=100)
            assert {answer.node for answer in change.answers} == set(nodes)
            assert change.is_acked_by_all
            await load.more(20)  # what was under way when the weights changed
            since = await load.more(60)
            assert load.shares(since) == {"v2": 1.0}
        assert not load.failures


async def test_a_control_server_that_hangs_is_noticed_and_the_age_of_what_is_served_is_told(tmp_path: Path) -> None:
    """Its connections stay open and nothing comes: gRPC's pings find out."""
    async with Fleet(tmp_path) as fleet:
        control = await fleet.control()
        await fleet.instance("pay")
        caller = await fleet.sidecar("caller")
        await caller.until_usable("pay", 1)
        assert await caller.metric("mesh_endpoints_age_seconds") == 0
        async with fleet.load(caller, "pay", rate=50) as load:
            control.process.signal(signal.SIGSTOP)
            try:

                async def is_noticed() -> bool:
                    ages = await caller.metric("mesh_endpoints_age_seconds")
                    return ages > 0 and await caller.metric("mesh_control_connected") == 0

                await until(is_noticed, what="the silence to be noticed", timeout_s=30)
            finally:
                control.process.signal(signal.SIGCONT)

            async def is_back() -> bool:
                return await caller.metric("mesh_control_connected") == 1

            await until(is_back, what="the control stream to be back", timeout_s=30)
        assert not load.failures


@WORKERS
async def test_consul_restarted_empty_and_a_cold_start_without_control_server_change_nothing(
    tmp_path: Path, consul: ConsulAgent, workers: int
) -> None:
    async with Fleet(tmp_path, workers=workers) as fleet:
        fleet.consul_url = consul.url
        control = await fleet.control()
        caller, (_, a), (_, b), pay = await asyncio.gather(
            fleet.sidecar("caller", "--data", str(tmp_path / "caller")),
            fleet.program("pay", "v2", label="pay-a"),
            fleet.program("pay", "v2", label="pay-b"),
            fleet.instance("pay", version="v1", label="pay-1"),
        )
        await register(consul, "pay-a", a)
        await register(consul, "pay-b", b)
        await caller.until_usable("pay", 3)
        assert (await control.set_weights("pay", v1=50, v2=50)).is_acked_by_all
        await control.kill()

        # A cold start: the table comes from disk, or there is none and that is said.
        await caller.process.stop()
        fresh = fleet.launch("fresh", "--data", str(tmp_path / "fresh"))
        await asyncio.gather(fleet.again(caller).until_ready(), fresh.until_listening())
        refused = await get(fresh.url(), {"host": "pay"})
        assert (refused.status, refused.flag) == (503, "NR")
        assert not await fresh.is_ready()
        assert await caller.metric("mesh_table_version") > 0
        await caller.until_usable("pay", 3)

        # Consul dies, and comes back knowing nothing; instances return one by one.
        async with fleet.load(caller, "pay", rate=100) as load:
            await load.more(100)
            await consul.kill()
            await load.more(100)
            await consul.restart(clean=True)
            registered = partial(consul.get, "/v1/health/service/pay")
            await until(registered, what="the sidecar to register again", timeout_s=30)
            await load.more(100)
            await register(consul, "pay-a", a)
            await load.more(100)
            await register(consul, "pay-b", b)
            await load.more(100)
            # Each of these spans all the states between: 4 standard errors around one half.
            count = len(load.answers)
            assert load.shares()["v1"] == pytest.approx(0.5, abs=4 * 0.5 / count**0.5)
            sent_to = Counter(answer.told["pid"] for answer in load.answers)
            assert len(sent_to) == 3
        assert not load.failures
        assert len(await consul.get("/v1/health/service/pay")) == 3
        assert pay.sidecar.process.is_running


async def test_a_cold_start_without_control_server_serves_the_table_and_endpoints_it_had(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        control = await fleet.control()
        data = ("--data", str(tmp_path / "callers"))
        caller, workers, old, new, other = await asyncio.gather(
            fleet.sidecar("caller", *data),
            fleet.sidecar("caller", *data, "--workers", "2", label="workers"),
            fleet.instance("pay", version="v1", label="pay-1"),
            fleet.instance("pay", version="v2", label="pay-2"),
            fleet.instance("stock"),
        )
        for each in (caller, workers):
            await each.until_usable("pay", 2)  # declared by the weights
            await each.until_usable("stock", 1)  # asked for, no more
        assert (await control.set_weights("pay", v1=0, v2=100)).is_acked_by_all
        await control.kill()
        kept = [tmp_path / "callers" / f"caller_{label}.endpoints" for label in ("caller", "workers")]
        await until(lambda: all(f.exists() and b"stock" in f.read_bytes() for f in kept), what="the files")
        await asyncio.gather(caller.process.kill(), workers.process.stop())

        for each in (caller, workers):
            await fleet.again(each).until_ready()
            for service in ("pay", "stock"):
                answers = [await get(each.url(), {"host": service}) for _ in range(10)]
                assert [answer.status for answer in answers] == [200] * 10, (service, str(answers[0]))
                if service == "pay":
                    assert {answer.told["version"] for answer in answers} == {"v2"}
            assert await each.metric("mesh_endpoints_age_seconds") > 0
            pages = {page["service"]: page for page in await each.page("clusters")}
            assert "registry at" in pages["pay"]["source_error"]

        # The registry comes back knowing nothing; what was on disk is served on until all have registered again.
        async with fleet.load(caller, "pay", rate=100) as load:
            await load.more(50)
            await control.restart()
            await control.until_acked(caller.node, workers.node, old.sidecar.node, new.sidecar.node, other.sidecar.node)
            assert (await control.set_weights("pay", v1=100, v2=0)).is_acked_by_all
            await load.more(20)  # what was under way when the weights changed
            since = await load.more(100)
            assert load.shares(since) == {"v1": 1.0}
        assert not load.failures


async def register(consul: ConsulAgent, instance: str, port: int) -> None:
    """Register a program itself, without a sidecar, so that the test says when it returns."""
    body = {"ID": instance, "Name": "pay", "Address": "127.0.0.1", "Port": port, "Meta": {"version": "v2"}}
    await consul.put("/v1/agent/service/register", body)


@WORKERS
async def test_an_endpoint_killed_in_its_answer_never_leaves_half_of_it_as_a_whole_one(
    tmp_path: Path, workers: int
) -> None:
    async with Fleet(tmp_path, workers=workers) as fleet:
        program, port = await fleet.program("pay")
        pay = await fleet.sidecar("pay", "--port", str(port), discovery=False)
        services = str(fleet.services_file(pay=pay.inbound))
        caller = await fleet.sidecar("caller", "--services", services, discovery=False)
        for dies in ("program", "sidecar"):
            url = caller.url("/hold/headless")
            silent = [background(get(url, {"host": "pay"}, method)) for method in ("GET", "POST")]
            halves = [await Half.of(caller, path) for path in BROKEN]
            await until(partial(in_flight, caller, 4), what="all four to be under way")
            if dies == "program":
                await program.kill()
            else:
                await pay.process.kill()
            for half in halves:
                assert await half.is_visibly_broken(), f"{half.path} after the {dies} died"
            for answer in await asyncio.gather(*silent):
                # A worker that has lost its parent still says that it stops.
                known = {(503, "UC"), (502, "UC"), (503, "UF"), (503, "URX"), (503, "DRAIN")}
                assert (answer.status, answer.flag) in known, (dies, answer)
                assert answer.body
            if dies == "program":
                program, _ = await fleet.program("pay", port=port, label="pay-again")
        # A request that nobody has taken yet is told apart: connection refused, and nobody else is left.
        answer = await get(caller.url(), {"host": "pay"})
        assert (answer.status, answer.flag) == (503, "UF")


BROKEN = ("/break/length", "/break/chunked")


async def in_flight(caller: SidecarProcess, count: int) -> bool:
    pages = await caller.page("clusters")
    return [page["requests_in_flight"] for page in pages if page["service"] == "pay"] == [count]


@dataclass
class Half:
    """An answer of which the head and some of the body have come."""

    path: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def of(cls, caller: SidecarProcess, path: str) -> Self:
        reader, writer = await asyncio.open_connection("127.0.0.1", caller.outbound)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: pay\r\n\r\n".encode())
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            await reader.readuntil(b"xxx")
        return cls(path, reader, writer)

    async def is_visibly_broken(self) -> bool:
        """The connection ends before the length is reached, or without the last chunk."""
        async with asyncio.timeout(10):
            try:
                rest = await self.reader.read()
            except ConnectionError:
                rest = b""
        self.writer.close()
        return len(rest) < 5000 and not rest.endswith(b"0\r\n\r\n")


@WORKERS
async def test_a_rolling_restart_and_a_dead_machine_cost_no_request(tmp_path: Path, workers: int) -> None:
    async with Fleet(tmp_path, workers=workers) as fleet:
        await fleet.control("--lease", "2")
        first, second = fleet.run("pay", label="pay-1"), fleet.run("pay", label="pay-2")
        caller = await fleet.sidecar("caller")
        # Asked for before it is registered, a service is called unknown for some seconds.
        await asyncio.gather(*(i.process.until_logged("registered as") for i in (first, second)))
        await caller.until_usable("pay", 2)
        async with fleet.load(caller, "pay") as load:
            await load.more(30)
            for instance in (first, second):
                instance.process.signal(signal.SIGTERM)
                assert await instance.process.wait(timeout_s=20) == 0
                assert "ended in order" in instance.process.output()
                await load.more(20)
                fleet.again(instance)
                await caller.until_usable("pay", 2)
                await load.more(20)
        assert not load.failures

        # kill -9 of everything an instance is: its lease ends and takes it out; until then callers try another.
        machine = await fleet.instance("pay", label="pay-3")
        await caller.until_usable("pay", 3)
        async with fleet.load(caller, "pay") as load:
            await load.more(30)
            died_s = time.monotonic()
            await machine.kill()
            await caller.until_usable("pay", 2)
            await load.more(30)
        # Only what the dead had taken and was not safe to repeat may fail, and says so.
        in_flight_post = partial(was_in_flight_post, died_s)
        assert not load.failed(but=in_flight_post)


def was_in_flight_post(died_s: float, answer: Answer) -> bool:
    began_before = answer.began_s <= died_s + 0.05
    return answer.method == "POST" and (answer.status, answer.flag) == (503, "UC") and began_before


LAXER = patched("from mesh.model import regex; regex.MAX_PATTERN_BYTES = 5000")
"""A mesh of a release that lets longer patterns through than the sidecars of this one take."""

LONG_PATTERN = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: too-long}
spec:
  parentRefs: [{kind: Service, group: "", name: pay}]
  rules:
  - matches: [{path: {type: RegularExpression, value: "/PATTERN"}}]
    backendRefs: [{name: pay}]
""".replace("PATTERN", "a" * 600)


async def test_a_refused_table_and_a_full_disk_leave_the_last_good_one_running(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        control = await fleet.control(entry=LAXER)
        pay, caller, readonly = await asyncio.gather(
            fleet.instance("pay", version="v1"),
            fleet.sidecar("caller", "--data", str(tmp_path / "caller")),
            fleet.sidecar("readonly", "--data", "/proc/sidemesh"),
        )
        await caller.until_usable("pay", 1)
        assert (await control.set_weights("pay", v1=100)).is_acked_by_all
        good = await caller.metric("mesh_table_version")
        kept = tmp_path / "caller" / "caller_caller.table"
        last_good = LastGood(kept.parent, "caller/caller")

        def is_kept() -> bool:
            held = last_good.load()
            return held is not None and held.id.version == good

        await until(is_kept, what="the table to be kept")
        before = kept.read_bytes()

        async with fleet.load(caller, "pay") as load:
            # A snapshot that must be refused: NACK with the reason, seen by operators; the last good one stays.
            document = tmp_path / "too-long.yaml"
            document.write_text(LONG_PATTERN)
            code, told_operator = await run(*LAXER, "apply", "-f", str(document), "--control", control.address)
            assert code == 3, told_operator
            told = (await control.status())[caller.node]
            assert told.state == "nacked"
            assert "the pattern has" in told.reason
            assert told.running.version == good
            _, shown = await run(*MESH, "status", "--control", control.address)
            assert "nacked" in shown
            assert "the pattern has" in shown
            assert await caller.metric("mesh_table_nacks_total") >= 1
            assert await caller.metric("mesh_table_version") == good
            assert kept.read_bytes() == before
            await load.more(20)

            # The disk is full from now on: tables are taken all the same, the last one that fitted stays on disk.
            kept.with_suffix(".new").symlink_to("/dev/full")
            async with MeshClient(control.address) as client:
                result = await client.delete(Kind.ROUTE, Name("default", "too-long"))
            assert result.is_acked_by_all
            await until(lambda: has_failed_to_write(caller), what="the failed write to be counted")
            assert await caller.metric("mesh_table_version") > good
            assert kept.read_bytes() == before
            assert "No space left" in caller.process.output()
            await load.more(20)
        assert not load.failures
        assert await has_failed_to_write(readonly)
        assert "could not be kept" in readonly.process.output()
        assert (await get(readonly.url(), {"host": "pay"})).status == 200
        assert pay.program.is_running


async def has_failed_to_write(sidecar: SidecarProcess) -> bool:
    return await sidecar.metric("mesh_last_good_write_failures_total") >= 1


async def run(*arguments: str) -> tuple[int | None, str]:
    """Run a command; its exit code and all it said."""
    command = await asyncio.create_subprocess_exec(
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "300"},
    )
    out, _ = await command.communicate()
    return command.returncode, out.decode()


async def test_a_collector_that_hangs_slows_no_request_and_lost_spans_are_counted(tmp_path: Path) -> None:
    env = {"OTEL_EXPORTER_OTLP_TIMEOUT": "500", "OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    async with Fleet(tmp_path) as fleet, FaultyLink(None) as collector:
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector.port}"
        _, port = await fleet.program("pay")
        services = ("--services", str(fleet.services_file(pay=port)), "--trace-ratio", "1")
        plain, traced = await asyncio.gather(
            fleet.sidecar("plain", *services, label="plain"),
            fleet.sidecar("traced", *services, label="traced", env=env),
        )
        async with fleet.load(plain, "pay", rate=50) as without, fleet.load(traced, "pay", rate=50) as load:
            await until(lambda: collector.swallowed_bytes > 0, what="spans to be sent")
            await load.more(150)
            await until(partial(has_dropped_spans, traced), what="100 spans to be lost and counted", timeout_s=20)
        assert not load.failures + without.failures
        assert await traced.metric("mesh_spans_exported_total") == 0
        # The timeout of 500 ms would show; 50 ms is what two busy cores may cost.
        assert load.latency_s(0.5) < without.latency_s(0.5) + 0.05
        assert load.latency_s(0.95) < 0.4


async def has_dropped_spans(sidecar: SidecarProcess) -> bool:
    return await sidecar.metric("mesh_spans_dropped_total") >= 100
