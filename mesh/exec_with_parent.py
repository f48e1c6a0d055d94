"""Becomes a program that gets SIGTERM when its parent dies, however that dies: ``kill -9`` leaves no orphan.

    python -I -S exec_with_parent.py PARENT_PID OPEN_FILES PROGRAM ARGUMENT…

A file of its own that is run as one, since the setting is made by the child itself: between ``fork`` and ``exec`` there
is no place for it with ``vfork`` (``child.py``), and it outlives ``exec``. It imports what starts in 20 ms and nothing
of ours. A program that changes its user or has file capabilities loses the setting, as prctl(2) says.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as a shell ends


def main(parent: int, open_files: int, program: str, *arguments: str) -> None:
    """Never comes back. ``open_files``: the soft limit that the program gets; 0 leaves it as it is."""
    if open_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    # Where there is no prctl, or a filter forbids it, the program runs all the same.
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before it could be known
        sys.exit(128 + signal.SIGTERM)
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):  # and what is ignored stays so over exec
        signal.signal(ignored_by_python, signal.SIG_DFL)
    try:
        os.execvp(program, [program, *arguments])  # noqa: S606 - that is what it is for
    except OSError as error:
        sys.stderr.write(f"cannot start {program}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
