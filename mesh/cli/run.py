"""``mesh run``: a program with a sidecar of its own, as one process to supervise."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import uvloop

from mesh.child import Child, reap_orphans
from mesh.cli.sidecar import checked_config, configure_logging
from mesh.cli.sidecar_options import sidecar_options
from mesh.cli.verbatim import VerbatimCommand
from mesh.tasks import Tasks
from proxy.admin import AdminServer
from proxy.config import SidecarConfig
from proxy.drain import drain
from proxy.file_limit import raise_file_limit
from proxy.memory import settle_memory
from proxy.sidecar import Sidecar

logger = logging.getLogger(__name__)

REAP_S = 1.0
KILL_S = 10.0  # between SIGTERM and SIGKILL to the program: what Docker gives
PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGWINCH)
_PR_SET_CHILD_SUBREAPER = 36


@click.command(
    cls=VerbatimCommand,
    context_settings={"auto_envvar_prefix": "MESH", "ignore_unknown_options": False, "allow_interspersed_args": False},
)
@sidecar_options
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def command(program: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401 - click's
    """Run a program with a sidecar of its own.

    The sidecar starts first, the program once it is ready, with http_proxy set so that its calls go through the
    mesh. Signals are passed on. SIGTERM drains the sidecar, then stops the program. SIGHUP opens the access log again,
    and goes to a program that handles it. A program that ends by itself ends the sidecar too, with the program's exit
    code (128+n for signal n). All options of `mesh sidecar` hold.

    mesh run --service pay --port 8080 --version v2 -- python app.py
    """
    config = checked_config(options)
    configure_logging(config.log_level)
    sys.exit(uvloop.run(Runner(config, program).run()))


class Runner:
    """One program and its sidecar."""

    def __init__(self, config: SidecarConfig, program: tuple[str, ...]) -> None:
        """Nothing runs yet."""
        self._config = config
        self._command = program
        self._program: Child | None = None
        self._open_files = raise_file_limit()
        self._stop = asyncio.Event()
        self._tasks = Tasks("run")

    async def run(self) -> int:
        """Run both to their end; gives the exit code."""
        sidecar = Sidecar(self._config)
        self._install_signals(sidecar)
        admin = AdminServer(sidecar)
        try:
            await sidecar.start()
            await admin.start()
        except OSError as error:
            logger.error("%s", error.strerror or error)  # noqa: TRY400 - the message says it all
            await admin.close()
            await sidecar.close()
            return 1
        try:
            return await self._run_program(sidecar)
        finally:
            await self._tasks.close()
            await sidecar.close()
            await admin.close()

    async def _run_program(self, sidecar: Sidecar) -> int:
        stopped = self._tasks.start(self._stop.wait(), "stop")
        ready = self._tasks.start(sidecar.ready(), "ready")
        await asyncio.wait((stopped, ready), return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._stop.is_set():
            return 128 + signal.SIGTERM
        settle_memory()
        become_reaper()
        environment = program_environment(os.environ, self._config, sidecar)
        program = self._program = Child.start(
            *self._command, env=environment, with_parent=True, open_files=self._open_files
        )
        ended = self._tasks.start(program.wait(), "program")
        self._tasks.start(self._reap_orphans(), "reap")
        await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await drain(sidecar, program_stays=False)
            await self._end_program(program)
        if sidecar.registration is not None:
            await sidecar.registration.announce_leaving()
        code: int = await ended
        return code if code >= 0 else 128 - code

    async def _end_program(self, program: Child) -> None:
        program.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(program.wait(), KILL_S)
        except TimeoutError:
            logger.warning("the program ignored SIGTERM for %g s; SIGKILL", KILL_S)
            program.kill()

    async def _reap_orphans(self) -> None:
        while True:
            await asyncio.sleep(REAP_S)
            reap_orphans()

    def _install_signals(self, sidecar: Sidecar) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        for number in PASSED_ON:
            loop.add_signal_handler(number, self._pass_on, number)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up, sidecar)

    def _hang_up(self, sidecar: Sidecar) -> None:
        """Logs were rotated: said to both, but whoever knows nothing of SIGHUP dies of it."""
        sidecar.reopen_logs()
        if self._program is not None and handles(self._program.pid, signal.SIGHUP):
            self._program.send_signal(signal.SIGHUP)

    def _pass_on(self, number: int) -> None:
        if self._program is not None:
            self._program.send_signal(number)


def program_environment(environ: Mapping[str, str], config: SidecarConfig, sidecar: Sidecar) -> dict[str, str]:
    """The program's environment: its calls go through the sidecar, those to the mesh's own helpers do not.

    curl reads only the lower-case ``http_proxy``; most libraries read either. Calls with TLS (``https_proxy``) go
    through it only where it carries CONNECT: elsewhere they would fail.
    """
    proxy = f"http://{sidecar.addresses['outbound']}"
    direct = ["localhost", "127.0.0.0/8", "127.0.0.1", "::1", "169.254.0.0/16", "169.254.169.254", "fe80::/10"]
    if config.control is not None:
        direct.append(config.control.host)
    urls = (
        config.consul,
        environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"),
        environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
    )
    # An OTLP endpoint for gRPC may stand without a scheme.
    direct += [host for url in urls if url and (host := urlsplit(url if "://" in url else f"//{url}").hostname)]
    for own in (environ.get("no_proxy", ""), environ.get("NO_PROXY", "")):
        direct += [part.strip() for part in own.split(",") if part.strip()]
    no_proxy = ",".join(dict.fromkeys(direct))
    given = ("http_proxy", "HTTP_PROXY", *(("https_proxy", "HTTPS_PROXY") if config.egress_connect else ()))
    return {**environ, **dict.fromkeys(given, proxy), "no_proxy": no_proxy, "NO_PROXY": no_proxy}


def handles(pid: int, number: int) -> bool:
    """Whether a process catches or ignores a signal; False where that cannot be told."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigCgt:", "SigIgn:"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def become_reaper() -> None:
    """As PID 1, or a subreaper, orphans of the program become ours and would stay as zombies."""
    if os.getpid() != 1:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
