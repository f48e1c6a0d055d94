"""The rules all tests run under: pyproject.toml has the settings, this file what settings cannot say."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

# Before anything loads gRPC: uvloop starts processes by fork(), whose child dies in gRPC's at-fork handlers now and then.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import hypothesis
import pytest
import pytest_asyncio

from tests.support.certificates import Authority
from tests.support.consul import ConsulAgent
from tests.support.loops import WatchedLoop, leftover_tasks
from tests.support.needs import require

# No deadline: a shared machine stalls for longer than any example takes. `make fuzz` loads the other profile.
hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    "fuzz",
    parent=hypothesis.settings.get_profile("default"),
    max_examples=int(os.environ.get("FUZZ_EXAMPLES") or 10_000),
)
hypothesis.settings.load_profile("default")


# ------------------------------------------------------------------------------------------ loops, tasks, sockets


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": WatchedLoop}


def pytest_configure() -> None:
    """What is tested is what stands there: nothing compiled of an older source."""
    if os.environ.get("MESH_PURE_PYTHON"):
        return
    root = Path(__file__).parents[1]
    for made in (*root.glob("mesh/**/*.so"), *root.glob("proxy/**/*.so")):
        for source in (made.with_name(made.name.partition(".")[0] + suffix) for suffix in (".c", ".py")):
            if source.exists() and source.stat().st_mtime > made.stat().st_mtime:
                message = f"{source.relative_to(root)} is newer than what was compiled of it: make setup"
                raise pytest.UsageError(message)


def pytest_collection_finish() -> None:
    """Take all that was imported out of the collector's sight: WatchedLoop collects after every test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What programs keep by default (tables, endpoints) is one test's own, and never the user's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state" / os.urandom(8).hex()))


@pytest.fixture(autouse=True)
def _no_task_is_left(request: pytest.FixtureRequest) -> None:
    if pytest_asyncio.is_async_test(request.node):
        request.getfixturevalue("_tasks_end_with_the_test")


@pytest.fixture
async def _tasks_end_with_the_test() -> AsyncIterator[None]:
    # Set up before the test's own fixtures, so that this looks after they have cleaned up.
    before = asyncio.all_tasks()
    yield
    if left := await leftover_tasks(before):
        pytest.fail("tasks outlived the test:\n" + "\n".join(left), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    try:
        yield
    finally:
        unhandled, WatchedLoop.unhandled[:] = WatchedLoop.unhandled[:], []
    if unhandled:
        pytest.fail("the event loop was left with an error:\n" + "\n".join(unhandled), pytrace=False)


# ------------------------------------------------------------------------------------------ what could not be run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        *_, reason = report.longrepr  # (file, line, "Skipped: …")
        reasons.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    if not reasons:
        return
    terminalreporter.section("not run")
    for reason, tests in sorted(reasons.items()):
        files = ", ".join(sorted({test.partition("::")[0] for test in tests}))
        terminalreporter.line(f"not run: {len(tests)} in {files}: {reason}")
    total = sum(map(len, reasons.values()))
    verdict = "; MESH_REQUIRE=all makes that a failure" if _all_required() else ""
    terminalreporter.line(f"{total} not run{verdict}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if _all_required() and session.exitstatus == pytest.ExitCode.OK and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _all_required() -> bool:
    return os.environ.get("MESH_REQUIRE") == "all"


# --------------------------------------------------------------------------------------------------- real programs


@pytest.fixture
async def consul(tmp_path: Path) -> AsyncIterator[ConsulAgent]:
    """A real Consul agent of the test's own, empty and with a leader."""
    directory = tmp_path / "consul"
    directory.mkdir()
    async with ConsulAgent(require("consul"), directory) as agent:
        yield agent


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs the certificates that a module's peers trust."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another, whom they do not trust."""
    return Authority(tmp_path_factory.mktemp("stranger"), "a stranger")
