"""Programs that a test starts: one pid each, output in a log file, ended by that pid and by nothing wider."""

import asyncio
import contextlib
import inspect
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Self

_POLL_S = 0.02


async def until(condition: Callable[[], object | Awaitable[object]], *, what: str, timeout_s: float = 10) -> None:
    """Wait until ``condition()`` (plain or async) gives something true; after ``timeout_s`` fail, naming ``what``."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if inspect.isawaitable(result):
            result = await result
        if result:
            return
        if time.monotonic() > deadline:
            msg = f"waited {timeout_s:g} s for {what}"
            raise TimeoutError(msg)
        await asyncio.sleep(_POLL_S)


class Process:
    """A running program. Always the program itself, never a shell around it, so that ``pid`` is the one to end.

    As an async context manager it stops the program on the way out.
    """

    def __init__(self, command: list[str], log: Path, popen: subprocess.Popen[bytes]) -> None:
        self.command = command
        self.log = log
        self._popen = popen

    @classmethod
    def start(
        cls, *command: str | Path, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Self:
        """Start ``command`` with its output appended to ``log``; ``env`` is added to this process's own."""
        argv = [os.fspath(part) for part in command]
        with log.open("ab") as output:
            popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                # Its own group: Ctrl-C in the terminal goes to pytest, which stops it in order.
                start_new_session=True,
            )
        return cls(argv, log, popen)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def __repr__(self) -> str:
        state = "running" if self.is_running else f"ended with {self.returncode}"
        return f"<Process {self.pid} {self.command[0]} {state}>"

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for the signal that ended it, None while it runs."""
        return self._popen.poll()

    def output(self) -> str:
        """All it has written so far."""
        return self.log.read_text(errors="replace")

    async def until(
        self, condition: Callable[[], object | Awaitable[object]], *, what: str, timeout_s: float = 10
    ) -> None:
        """Like the module's `until`, but fails at once, with the end of the log, when the program ends."""

        async def met_or_ended() -> object:
            if not self.is_running:
                msg = f"{self!r} while waiting for {what}; its last output:\n{self.output()[-2000:]}"
                raise RuntimeError(msg)
            result = condition()
            return await result if inspect.isawaitable(result) else result

        try:
            await until(met_or_ended, what=what, timeout_s=timeout_s)
        except TimeoutError as error:
            error.add_note(f"{self!r}, its last output:\n{self.output()[-2000:]}")
            raise

    async def until_logged(self, text: str, *, timeout_s: float = 10) -> None:
        """Wait until the program has written ``text``."""
        await self.until(lambda: text in self.output(), what=f"{text!r} in the output", timeout_s=timeout_s)

    async def wait(self, *, timeout_s: float = 10) -> int:
        """Wait for the program to end by itself; its exit status."""
        await until(lambda: not self.is_running, what=f"{self!r} to end", timeout_s=timeout_s)
        return self._popen.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, e.g. SIGSTOP to make the program fall silent without closing its connections."""
        self._popen.send_signal(number)

    async def kill(self) -> None:
        """End it with SIGKILL, as a crash would, and reap it."""
        self._popen.kill()
        await self.wait()

    async def stop(self, *, timeout_s: float = 10) -> None:
        """End it with SIGTERM, and with SIGKILL when ``timeout_s`` was not enough; nothing to do when it has ended."""
        if self.is_running:
            self._popen.terminate()
            self._popen.send_signal(signal.SIGCONT)  # a stopped program would never see the SIGTERM
            with contextlib.suppress(TimeoutError):
                await self.wait(timeout_s=timeout_s)
                return
            await self.kill()
