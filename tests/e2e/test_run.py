"""`mesh run` as a supervisor of one program sees it: environment, exit codes, signals, ports."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from mesh.cli.run import program_environment
from mesh.model.name import Name
from proxy.config import Address, SidecarConfig
from proxy.sidecar import Sidecar
from tests.support.fleet import MESH, PROGRAM, Answer, Fleet, SidecarProcess, get, patched
from tests.support.ports import free_port
from tests.support.process import until

pytestmark = pytest.mark.e2e

EXIT_7 = (sys.executable, "-c", "raise SystemExit(7)")
SEGFAULT = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
TOUGH = (
    sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('tough', flush=True); time.sleep(60)",
)  # fmt: skip


@pytest.mark.parametrize(
    ("program", "code"),
    [(EXIT_7, 7), (("true",), 0), (SEGFAULT, 128 + signal.SIGSEGV), (("/no/such/program",), 127), (("/etc",), 126)],
    ids=["exit 7", "job", "signal", "absent", "not executable"],
)
async def test_the_end_of_the_program_is_the_end_of_the_sidecar_with_its_exit_code(
    tmp_path: Path, program: tuple[str, ...], code: int
) -> None:
    async with Fleet(tmp_path) as fleet:
        job = fleet.launch("job", verb="run", program=program)
        assert await job.process.wait(timeout_s=20) == code, job.process.output()


async def test_the_sidecar_may_open_more_files_and_the_program_as_many_as_before(tmp_path: Path) -> None:
    said = tmp_path / "said"
    async with Fleet(tmp_path) as fleet:
        job = fleet.launch(
            "job", verb="run", entry=("sh", "-c", 'ulimit -Sn 300; exec "$@"', "sh", *MESH),
            program=("sh", "-c", f"ulimit -Sn > {said}; ulimit -Hn >> {said}; cat /proc/$PPID/limits >> {said}"),
        )  # fmt: skip
        assert await job.process.wait(timeout_s=20) == 0, job.process.output()
    soft, hard, *limits = said.read_text().splitlines()
    assert soft == "300"
    assert int(hard) > 300
    assert [line.split()[3:5] for line in limits if line.startswith("Max open files")] == [[hard, hard]]


async def test_the_programs_calls_go_through_the_sidecar_and_signals_reach_it(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        env = {
            "NO_PROXY": "db.example", "no_proxy": "cache.example",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.example:4318",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces.example:4318/v1/traces",
        }  # fmt: skip
        pay = fleet.run("pay", "--services", str(fleet.services_file()), "--check", "/", env=env)
        await pay.until_ready()
        await pay.process.until(partial(is_answering, pay), what="the program behind the sidecar")
        seen = (await ask(pay, "/environ")).told["environ"]
        assert seen["http_proxy"] == seen["HTTP_PROXY"] == f"http://127.0.0.1:{pay.outbound}"
        assert not {"https_proxy", "HTTPS_PROXY"} & set(seen)
        assert seen["no_proxy"] == seen["NO_PROXY"]
        direct = set(seen["NO_PROXY"].split(","))
        assert {"localhost", "127.0.0.1", "169.254.169.254", "fe80::/10", "db.example", "cache.example"} <= direct
        assert {"collector.example", "traces.example"} <= direct
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            pay.process.signal(number)

        async def all_came() -> bool:
            return set((await ask(pay, "/signals")).told["signals"]) == {"SIGHUP", "SIGUSR1", "SIGUSR2"}

        await pay.process.until(all_came, what="the signals to be passed on")


async def test_calls_to_the_meshs_own_helpers_go_past_the_sidecar() -> None:
    config = SidecarConfig(
        Name("default", "pay"), control=Address("control.example", 15010), consul="http://consul.example:8500"
    )
    sidecar = Sidecar(config)
    sidecar.addresses["outbound"] = Address("127.0.0.1", 15001)
    environment = program_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": "otlp.example:4317"}, config, sidecar)
    direct = environment["NO_PROXY"].split(",")
    assert {"control.example", "consul.example", "otlp.example", "127.0.0.1", "::1", "169.254.0.0/16"} <= set(direct)
    assert environment["no_proxy"] == environment["NO_PROXY"]


async def test_calls_with_tls_go_through_the_sidecar_where_it_carries_them(tmp_path: Path) -> None:
    said = tmp_path / "said"
    async with Fleet(tmp_path) as fleet:
        options = ("--egress", "allow", "--egress-connect", "443")
        job = fleet.launch(
            "job", *options, verb="run", program=("sh", "-c", f"echo $https_proxy $HTTPS_PROXY $NO_PROXY > {said}"),
            env={"https_proxy": "http://elsewhere.example:3128", "no_proxy": "db.example"},
        )  # fmt: skip
        assert await job.process.wait(timeout_s=20) == 0, job.process.output()
    proxy, again, direct = said.read_text().split()
    assert proxy == again == f"http://127.0.0.1:{job.outbound}"
    assert {"localhost", "127.0.0.1", "db.example"} <= set(direct.split(","))


SERVER = (
    sys.executable, "-c",
    "import http.server as h, sys; h.HTTPServer(('127.0.0.1', int(sys.argv[1])), h.SimpleHTTPRequestHandler).serve_forever()",
)  # fmt: skip
"""A program that knows nothing of signals."""


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("verb", ["run", "sidecar"])
async def test_sighup_opens_the_access_log_again_and_kills_nothing(tmp_path: Path, verb: str, workers: str) -> None:
    async with Fleet(tmp_path) as fleet:
        # Two names of one file: nobody who is not told sees that another folder took the first one's place.
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        (tmp_path / "a" / "log").touch()
        (tmp_path / "b" / "log").hardlink_to(tmp_path / "a" / "log")
        (tmp_path / "now").symlink_to("a")
        (tmp_path / "next").symlink_to("b")
        port = str(free_port())
        log = ("--access-log", "all", "--access-log-path", str(tmp_path / "now" / "log"))
        options = ("--port", port, "--workers", workers, *log, "--services", str(fleet.services_file()))
        if verb == "sidecar":
            fleet.start("server", *SERVER, port)
        pay = fleet.launch("pay", *options, verb=verb, program=(*SERVER, port) if verb == "run" else ())
        await pay.until_ready()
        await pay.process.until(partial(is_answering, pay), what="the program behind the sidecar")

        async def is_open_in(folder: str) -> bool:
            for _ in range(8):  # each worker should have a line to write
                await ask(pay, "/")
            return links(pay, "log") == [str(tmp_path / folder / "log")] * int(workers)

        await pay.process.until(partial(is_open_in, "a"), what="the log to be written")
        before = tree(pay.process.pid)
        (tmp_path / "next").rename(tmp_path / "now")
        assert await is_open_in("a")
        pay.process.signal(signal.SIGHUP)
        await pay.process.until(partial(is_open_in, "b"), what="the log to be opened again")
        assert tree(pay.process.pid) == before


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in below for each in tree(int(child)))]


def links(sidecar: SidecarProcess, name: str) -> list[str]:
    """The paths of that name which the processes of a sidecar have open."""
    found: list[Path] = []
    for pid in tree(sidecar.process.pid):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since the folder was read
                found.append(fd.readlink())
    return [str(path) for path in found if path.name == name]


async def test_curl_in_a_wrapped_program_reaches_other_services_by_their_names(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        _, port = await fleet.program("reviews")
        services = str(fleet.services_file(reviews=port))
        fetch = "import urllib.request as u; print(u.urlopen('http://reviews/stars').read().decode(), flush=True)"
        job = fleet.launch("job", "--services", services, verb="run", program=(sys.executable, "-c", fetch))
        assert await job.process.wait(timeout_s=20) == 0
        assert '"path": "/stars"' in job.process.output()


async def test_sigterm_finishes_what_is_in_flight_then_stops_the_program_in_order(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        pay = await fleet.run("pay").until_ready()
        await pay.process.until(partial(is_answering, pay), what="the program behind the sidecar")
        async with asyncio.TaskGroup() as group:
            held = group.create_task(ask(pay, "/hold"))
            await pay.process.until(partial(has_under_way, pay, 1), what="the held request")
            pay.process.signal(signal.SIGTERM)
            await pay.process.until_logged("draining")
            assert (await ask(pay, "/release")).status == 200
            assert (await held).status == 200
        assert await pay.process.wait(timeout_s=20) == 0
        said = pay.process.output()
        assert said.index("SIGTERM") < said.index("ended in order")


async def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        impatient = patched("from mesh.cli import run; run.KILL_S = 0.5")
        tough = fleet.launch("tough", "--drain-s", "0", verb="run", program=TOUGH, entry=impatient)
        await tough.process.until_logged("tough", timeout_s=20)
        tough.process.signal(signal.SIGTERM)
        assert await tough.process.wait(timeout_s=20) == 128 + signal.SIGKILL


async def test_the_program_is_told_to_stop_when_mesh_run_alone_is_killed(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        pay = await fleet.run("pay").until_ready()
        await pay.process.until(partial(is_answering, pay), what="the program behind the sidecar")
        program = (await ask(pay, "/")).told["pid"]
        try:
            await pay.process.kill()
            await until(lambda: "ended in order" in pay.process.output(), what="the program to end")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(program, signal.SIGKILL)


async def test_the_program_is_as_if_started_by_a_shell(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        job = fleet.launch("job", verb="run", program=("cat", "/proc/self/status"))
        assert await job.process.wait(timeout_s=20) == 0
        (ignored,) = re.findall(r"^SigIgn:\s(\w+)$", job.process.output(), re.MULTILINE)
        assert not int(ignored, 16) & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1))
        absent = fleet.launch("absent", verb="run", program=("no-such-program",))
        assert await absent.process.wait(timeout_s=20) == 127
        assert "cannot start no-such-program: No such file or directory" in absent.process.output()


async def test_a_taken_port_is_told_and_the_program_never_starts(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        first = await fleet.sidecar("pay")
        for option, port in (("--outbound", first.outbound), ("--admin", first.admin)):
            second = fleet.launch("pay", option, f"127.0.0.1:{port}", label="second", verb="run", program=("true",))
            assert await second.process.wait(timeout_s=20) == 1
            assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in second.process.output()
        port = str(free_port())
        inbound = ("--port", port, "--inbound", f"127.0.0.1:{free_port()}")
        owner = await fleet.sidecar("pay", *inbound, label="owner")
        third = fleet.launch("pay", *inbound, label="third")
        assert await third.process.wait(timeout_s=20) == 1
        assert f"cannot listen on 127.0.0.1:{owner.inbound}" in third.process.output()
        assert "Traceback" not in third.process.output()
        assert owner.process.is_running


async def test_orphans_of_the_program_are_collected(tmp_path: Path) -> None:
    # Two children of a shell that ends before them: they become ours, and end as zombies unless collected.
    orphaning = ("sh", "-c", "(sleep 0.1 & sleep 0.1 &) ; exec " + " ".join(PROGRAM) + " $0 pay v1")
    async with Fleet(tmp_path) as fleet:
        port = str(free_port())
        pay = fleet.launch("pay", "--port", port, verb="run", program=(*orphaning, port))
        await pay.process.until_logged("serving", timeout_s=20)
        await until(lambda: states_of_children(pay) == ["S"], what="nothing but the program to be left")


def states_of_children(sidecar: SidecarProcess) -> list[str]:
    children = Path(f"/proc/{sidecar.process.pid}/task/{sidecar.process.pid}/children").read_text().split()
    return [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in children]


async def ask(sidecar: SidecarProcess, path: str) -> Answer:
    """A call to the program, as another sidecar makes it."""
    return await get(f"http://127.0.0.1:{sidecar.inbound}{path}")


async def is_answering(sidecar: SidecarProcess) -> bool:
    return (await ask(sidecar, "/")).status == 200


async def has_under_way(sidecar: SidecarProcess, count: int) -> bool:
    return (await sidecar.metric("mesh_exchanges_under_way")) >= count
