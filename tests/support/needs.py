"""Programs from outside that some tests need, and the command that brings each.

A test that lacks one is skipped through `require`, so that the end of the run can print it as "not run" with the
remedy; under MESH_REQUIRE=all (CI) such a run fails (see tests/conftest.py).
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
NOT_RUN = "not run: "


@dataclass(frozen=True, slots=True)
class Tool:
    """Where a program may be found, first match wins, and what installs it.

    ``env`` names a variable that overrides the search; ``built`` are paths inside the repository, ``names`` are
    looked up on PATH and in the sbin folders, which PATH lacks for ordinary users.
    """

    remedy: str
    names: tuple[str, ...]
    built: str | None = None
    env: str | None = None

    def find(self) -> Path | None:
        """The program's path, or None when it is absent."""
        if self.env and os.environ.get(self.env):
            return Path(os.environ[self.env])
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
        for name in self.names:
            if found := shutil.which(name, path=path):
                return Path(found)
        if self.built and os.access(REPO / self.built, os.X_OK):
            return REPO / self.built
        return None


def _debian(package: str, *names: str) -> Tool:
    return Tool(remedy=f"sudo apt-get install --no-install-recommends {package}", names=names or (package,))


TOOLS = {
    "chromium": _debian("chromium", "chromium", "chromium-browser", "google-chrome"),
    "consul": Tool("make consul", ("consul",), built="build/consul/usr/bin/consul", env="MESH_CONSUL_BIN"),
    "curl": _debian("curl"),
    "docker-compose": Tool("make setup", ("docker-compose",), built=".venv/bin/docker-compose"),
    "envoy": Tool("make peers", ("envoy",), built="build/peers/bin/envoy"),
    "h2load": _debian("nghttp2-client", "h2load"),
    "haproxy": _debian("haproxy"),
    "nghttp": _debian("nghttp2-client", "nghttp"),
    "nghttpd": _debian("nghttp2-server", "nghttpd"),
    "nginx": _debian("nginx-light", "nginx"),
    "openssl": _debian("openssl"),
    "prometheus": _debian("prometheus"),
    "redis-benchmark": _debian("redis-tools", "redis-benchmark"),
    "redis-cli": _debian("redis-tools", "redis-cli"),
    "redis-server": _debian("redis-server"),
    "traefik": Tool("make peers", ("traefik",), built="build/peers/bin/traefik"),
    "wrk": _debian("wrk"),
}


def require(tool: str) -> Path:
    """The path of ``tool`` (a key of TOOLS); where it is absent the calling test counts as not run."""
    if found := TOOLS[tool].find():
        return found
    pytest.skip(f"{tool} is absent — {TOOLS[tool].remedy}")
