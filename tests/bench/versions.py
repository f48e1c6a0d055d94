"""Which programs were compared."""

from __future__ import annotations

import re
import subprocess

from mesh.version import VERSION
from proxy.http1.splitter import IS_COMPILED
from tests.support.needs import TOOLS

_ASK = {"envoy": "--version", "nginx": "-v", "haproxy": "-v", "traefik": "version", "wrk": "-v"}
_VERSION = re.compile(r"\d+\.\d+\.\d+")
TIMEOUT_S = 10


def versions() -> dict[str, str]:
    """The version of each program that is there."""
    found = {"sidemesh": VERSION + ("" if IS_COMPILED else " (nothing compiled)")}
    for name, option in _ASK.items():
        if program := TOOLS[name].find():
            done = subprocess.run([program, option], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            number = _VERSION.search(done.stdout + done.stderr)
            found[name] = number[0] if number else "unknown"
    return found
