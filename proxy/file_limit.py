"""How many files this process may have open, and how many client connections that leaves room for.

Each connection is an open file, and so is each to an endpoint. A process that has none left can neither ask its
program how it is nor speak to discovery, so that a thousand idle clients would take the instance out.
"""

from __future__ import annotations

import logging
import resource

logger = logging.getLogger(__name__)

RESERVED = 200
"""For discovery, the control stream, logs, checks and what Python opens."""
FEW = 1000
MAX_SPLICES = 256
FILES_PER_SPLICE = 4
SPLICES_SHARE = 16  # of all files, at most one in so many is a splice's
FILES_PER_CLIENT = 2  # its connection, and one to an endpoint
FILES_PER_LISTENER = 8  # so many connections are accepted in one turn of the loop: see ``accept``


def raise_file_limit() -> int:
    """Allow this process as many open files as its hard limit lets it; gives how many it was allowed before.

    Workers inherit it. Other programs must not: those that still use select() rely on small numbers.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft


def connections_within_limit(wanted: int, listeners: int) -> int:
    """``wanted`` client connections for each of so many listeners, or what the limit of open files allows."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return wanted
    left = files - RESERVED - splices_within_limit() * FILES_PER_SPLICE - listeners * FILES_PER_LISTENER
    room = max(1, left // (FILES_PER_CLIENT * listeners))
    if room < wanted:
        logger.log(
            logging.WARNING if room < FEW else logging.INFO,
            "at most %d connections a listener rather than %d: this process may have %d files open (ulimit -n)",
            room,
            wanted,
            files,
        )
    return min(wanted, room)


def splices_within_limit() -> int:
    """How many directions of TCP tunnels the kernel may move at a time (see ``splice``)."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_SPLICES
    return min(MAX_SPLICES, files // (SPLICES_SHARE * FILES_PER_SPLICE))
