"""A child process, started without ``fork`` and waited for without a thread.

uvloop's own subprocesses go through ``fork()``, which runs the at-fork handlers of every library in the child; those
of gRPC, once a channel is open, end it with a segmentation fault before it ever becomes the program (seen in one start
of ten). ``subprocess.Popen`` uses ``vfork``, which runs none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from signal import SIGKILL

from mesh import exec_with_parent

_owned: set[int] = set()


class Child:
    """A running child; ``returncode`` is None while it runs, negative for the signal that ended it."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        """Made by ``start``."""
        self._popen = popen
        self._ended = asyncio.Event()
        self.pid = popen.pid
        self.returncode: int | None = None
        _owned.add(popen.pid)
        self._pidfd = os.pidfd_open(popen.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    @classmethod
    def start(
        cls,
        *command: str,
        env: Mapping[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
        quiet: bool = False,
        with_parent: bool = False,
        open_files: int = 0,
    ) -> Child:
        """Start ``command``; ``quiet`` gives it no standard input. Raises OSError where it cannot be.

        ``with_parent``: it gets SIGTERM when this process dies, also of SIGKILL. Call it in the main thread, whose end
        counts. A command that cannot be is then told on standard error, and ends with 127 or 126. ``open_files`` is
        then its soft limit of open files; 0: as ours.
        """
        if with_parent:
            command = command_with_parent(command, open_files)
        stdin = subprocess.DEVNULL if quiet else None
        return cls(subprocess.Popen(command, env=env, pass_fds=pass_fds, stdin=stdin))

    async def wait(self) -> int:
        """Wait for its end; gives ``returncode``."""
        await self._ended.wait()
        assert self.returncode is not None  # noqa: S101 - set before the event
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(SIGKILL)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.returncode = self._popen.wait()
        _owned.discard(self.pid)
        self._ended.set()


def command_with_parent(command: Sequence[str], open_files: int = 0) -> tuple[str, ...]:
    """The command that starts ``command`` so that it gets SIGTERM when this process dies; see ``Child.start``."""
    shim = (sys.executable, "-I", "-S", exec_with_parent.__file__, str(os.getpid()), str(open_files))
    return (*shim, *command)


def reap_orphans() -> None:
    """Collect ended children that nobody here started; never blocks. For PID 1 and subreapers."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid in _owned:
                return  # its owner collects it in a moment; come back then
            os.waitpid(ended.si_pid, os.WNOHANG)
