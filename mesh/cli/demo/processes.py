"""The demo's processes: real ones, each with a log file, ended by pid."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mesh.child import command_with_parent

STOP_S = 8.0
_LOWEST, _HIGHEST = 10_000, 20_000


class Children:
    """Child processes by name. ``logs`` holds one file for each."""

    def __init__(self, logs: Path) -> None:
        """Nothing runs yet."""
        self.logs = logs
        self._children: dict[str, asyncio.subprocess.Process] = {}

    async def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None, *, piped: bool = False
    ) -> asyncio.subprocess.Process:
        """Start ``command``; with ``piped`` its standard input and output are ours."""
        log = (self.logs / f"{name}.log").open("ab")
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *command_with_parent(command),  # whatever ends the demo ends them too
            stdin=pipe if piped else asyncio.subprocess.DEVNULL,
            stdout=pipe if piped else log,
            stderr=log,
            env={**os.environ, **(env or {})},
            start_new_session=True,  # Ctrl-C is ours to pass on, in order
            limit=1 << 20,
        )
        log.close()
        self._children[name] = child
        return child

    def pid(self, name: str) -> int:
        """The process id."""
        return self._children[name].pid

    async def kill(self, name: str) -> None:
        """SIGKILL, as a crash or the kernel's memory killer would."""
        child = self._children.pop(name)
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()

    def first_dead(self) -> str | None:
        """The name of a child that ended without being asked to."""
        return next((name for name, child in self._children.items() if child.returncode is not None), None)

    async def stop_all(self) -> None:
        """SIGTERM to all, newest first; SIGKILL to whoever is left after a while."""
        children = list(reversed(self._children.values()))
        self._children.clear()
        for child in children:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(signal.SIGTERM)
        await asyncio.gather(*map(_ended, children))


async def _ended(child: asyncio.subprocess.Process) -> None:
    try:
        await asyncio.wait_for(child.wait(), STOP_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", name, *arguments]


def mesh(*arguments: str) -> list[str]:
    """The command that runs ``mesh``."""
    return module("mesh.cli.main", *arguments)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free just now, one behind the other. Raises OSError where there are none.

    Not of those that the kernel gives to outgoing connections (32768 up), one of which might take a port between now
    and the moment its process binds it.
    """
    for first in random.SystemRandom().sample(range(_LOWEST, _HIGHEST - count), _HIGHEST - count - _LOWEST):
        ports = list(range(first, first + count))
        if all(map(_is_free, ports)):
            return ports
    raise OSError(f"no {count} ports in a row are free on 127.0.0.1 between {_LOWEST} and {_HIGHEST}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
