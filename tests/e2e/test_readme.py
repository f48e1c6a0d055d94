"""Every command in README.md and docs/ is run as it stands there.

The ``sh`` and ``console`` blocks of a page are one session: one shell, an empty folder, in order. A ``yaml`` block that
begins with ``# NAME.yaml`` is written to that file first. Ports are exchanged for free ones. In a ``console`` block the
lines after ``$ `` are commands, the others are output: each must be among the lines printed, in that order; ``…`` stands
for anything, runs of spaces for one.

Comments before a block say what a reader knows by himself:
``<!-- not run: WHY -->`` · ``<!-- as: COMMAND -->`` is run in its place · ``<!-- until: COMMAND -->`` first repeat it until
it succeeds · ``<!-- exit: N -->`` of its last command · ``<!-- seconds: N -->`` stop it then, as Ctrl-C would.
"""

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.needs import REPO, require
from tests.support.ports import free_port
from tests.support.process import Process

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md")), *sorted((REPO / "deploy").glob("*.md"))]
NOTES = ("not run", "as", "until", "exit", "seconds")
PORTS = (8001, 8002, 8500, 9001, 15000, 15001, 15006, 15010, 15014, 15106, 15206)
UNTIL_S = 20
DONE = "-- block done, exit "


@dataclass
class Block:
    """A fenced block with the notes before it."""

    language: str
    text: str
    line: int
    notes: list[tuple[str, str]] = field(default_factory=list)

    def note(self, name: str) -> str | None:
        return next((value for key, value in self.notes if key == name), None)

    @property
    def commands(self) -> str:
        if self.language != "console":
            return self.text
        taken, more = [], False
        for line in self.text.splitlines():
            if line.startswith("$ ") or more:
                taken.append(line.removeprefix("$ "))
                more = line.endswith("\\")
        return "\n".join(taken)

    @property
    def expected(self) -> list[str]:
        if self.language != "console":
            return []
        return [line for line in self.text.splitlines() if not line.startswith("$ ") and line != "…"]


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page."""
    found: list[Block] = []
    notes: list[tuple[str, str]] = []
    opened: Block | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if opened is not None:
            if line == "```":
                found.append(opened)
                opened = None
            else:
                opened.text += line + "\n"
        elif fence := re.fullmatch(r"```(\w*)", line):
            opened, notes = Block(fence[1], "", number, notes), []
        elif note := re.fullmatch(r"<!-- ([a-z ]+): (.+) -->", line):
            assert note[1] in NOTES, f"line {number}: {note[1]!r} is none of {NOTES}"
            notes.append((note[1], note[2]))
        elif line.strip():
            notes = []
    return found


def with_free_ports(text: str, given: dict[int, int]) -> str:
    """``text`` with every port that it names exchanged."""
    return re.sub(r"\b\d{4,5}\b", lambda found: str(given.get(int(found[0]), found[0])), text)


def runnable(page: Path) -> list[Block]:
    return [b for b in blocks(page.read_text()) if b.language in ("sh", "console") and b.note("not run") is None]


def script(page: Path, given: dict[int, int]) -> tuple[str, list[Block]]:
    """The session's script, and the blocks that it runs in order."""
    lines, run = ["set -u"], []
    for block in blocks(page.read_text()):
        if block.language == "yaml" and (name := re.match(r"# ([\w.-]+\.yaml)\n", block.text)):
            lines.append(f"cat > {name[1]} <<'END-OF-FILE'\n{with_free_ports(block.text, given)}END-OF-FILE")
        if block.language not in ("sh", "console") or block.note("not run") is not None:
            continue
        run.append(block)
        lines += [
            f"for _ in $(seq {UNTIL_S * 5}); do {with_free_ports(value, given)} >/dev/null 2>&1 && break; sleep 0.2; done"
            for key, value in block.notes
            if key == "until"
        ]
        command = with_free_ports(block.note("as") or block.commands, given)
        if seconds := block.note("seconds"):
            command = f"timeout -s INT {seconds} bash -c {shlex.quote(command)} || true"
        # A command that fails ends the block, unless a failure is what the page shows. Not a subshell: what a block
        # exports and starts belongs to the session.
        wanted = block.note("exit") or "0"
        stop = "set +e" if wanted != "0" else "set -e"
        lines += [stop, command, f"rc=$?; echo '{DONE}'$rc; [ $rc = {wanted} ] || exit 1; set +e"]
    return "\n".join(lines) + "\n", run


def missing_line(expected: list[str], printed: str) -> str | None:
    """The first expected line that was not printed after those before it."""
    rest = [" ".join(line.split()) for line in printed.splitlines()]
    for wanted in expected:
        pattern = ".*".join(re.escape(" ".join(part.split())) for part in wanted.split("…")).replace(r"\ .*\ ", ".*")
        for number, line in enumerate(rest):
            if re.fullmatch(pattern, line):
                rest = rest[number + 1 :]
                break
        else:
            return wanted
    return None


@pytest.mark.parametrize("page", [p for p in PAGES if runnable(p)], ids=lambda p: str(p.relative_to(REPO)))
async def test_every_command_of_the_page_does_what_the_page_says(page: Path, tmp_path: Path) -> None:
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if any(re.search(r"^consul ", block.commands, re.MULTILINE) for block in runnable(page)):
        path.insert(1, str(require("consul").parent))
    given = {port: free_port() for port in PORTS}
    text, run = script(page, given)
    home = tmp_path / "session"
    home.mkdir()
    env = {
        "PATH": os.pathsep.join(path),
        "HOME": str(tmp_path),
        "MESH_LISTEN": f"127.0.0.1:{given[15010]}",
        "MESH_HTTP": f"127.0.0.1:{given[15014]}",
        "MESH_INBOUND": f"127.0.0.1:{given[15006]}",
        "MESH_OUTBOUND": f"127.0.0.1:{given[15001]}",
        "MESH_ADMIN": f"127.0.0.1:{given[15000]}",
        "MESH_DRAIN_S": "1",  # at the end all go at once, and nobody is there to take note
        "PYTHONUNBUFFERED": "1",
    }
    own = {key: value for key, value in os.environ.items() if not key.upper().startswith(("MESH_", "CONSUL_", "OTEL_"))}
    own = {key: value for key, value in own.items() if not key.lower().endswith("_proxy") and key != "XDG_STATE_HOME"}
    (tmp_path / "session.sh").write_text(text)
    command = ("env", "-i", *(f"{k}={v}" for k, v in (own | env).items()), "bash", tmp_path / "session.sh")
    shell = Process.start(*command, log=tmp_path / "log", cwd=home)
    try:
        code = await shell.wait(timeout_s=90)
    finally:
        await end_group(shell.pid)
    output = shell.output()
    printed = re.split(rf"^{DONE}\d+\n", output, flags=re.MULTILINE)
    assert code == 0, (
        f"block {len(printed)} of {len(run)} (line {run[min(len(printed), len(run)) - 1].line}) failed:\n{output[-4000:]}"
    )
    for block, said in zip(run, printed, strict=False):
        wanted = missing_line([with_free_ports(line, given) for line in block.expected], said)
        assert wanted is None, f"{page.name}:{block.line} shows {wanted!r}, which was not printed:\n{said}"


async def end_group(group: int) -> None:
    """End what the session left running: SIGTERM, and SIGKILL to what is left."""
    for number, waits in ((signal.SIGTERM, 100), (signal.SIGKILL, 20)):
        try:
            os.killpg(group, number)
            for _ in range(waits):
                os.killpg(group, 0)
                await asyncio.sleep(0.1)
        except ProcessLookupError:
            return


async def test_the_python_on_the_client_s_page_runs(tmp_path: Path) -> None:
    grpc, http = free_port(), free_port()
    shown = [b.text for b in blocks((REPO / "docs" / "python-client.md").read_text()) if b.language == "python"]
    mesh = Path(sys.executable).with_name("mesh")
    listen = ("--listen", f"127.0.0.1:{grpc}", "--http", f"127.0.0.1:{http}", "--data", ":memory:")
    async with Process.start(mesh, "control", *listen, log=tmp_path / "control.log") as control:
        await control.until_logged("ready grpc=")
        output = ""
        for number, code in enumerate(shown):
            log = tmp_path / f"log-{number}"
            program = Process.start(sys.executable, "-c", with_free_ports(code, {15010: grpc}), log=log, cwd=REPO)
            assert await program.wait() == 0, program.output()
            output += program.output()
    assert "version 2 acked by all: True" in output
    assert "somebody else was there: version 2" in output
    assert "version 4 []" in output  # the second one, on what the first left
    assert "4 deploy-script half\n3 deploy-bot" in output


def test_make_demo_is_mesh_demo_after_its_setup() -> None:
    # The suite may itself run under make, whose flags would add lines of their own.
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    said = subprocess.run(["make", "-n", "demo"], cwd=REPO, capture_output=True, text=True, check=True, env=env)
    assert said.stdout.rstrip().endswith(".venv/bin/mesh demo")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    generated = {REPO / "docs" / "benchmarks.md"}  # by make bench
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        target = (page.parent / link).resolve()
        assert target.exists() or target in generated, link


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_a_block_that_is_not_run_has_its_reason(page: Path) -> None:
    for block in blocks(page.read_text()):
        if reason := block.note("not run"):
            assert len(reason.split()) > 2, f"line {block.line}"
