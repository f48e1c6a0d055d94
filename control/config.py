"""Settings of the control server, with the reason for each default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from control.registry import DEFAULT_LEASE_S
from mesh.discovery.consul_client import ConsulConfig
from mesh.model.errors import InvalidError, Violation

DEFAULT_LISTEN: Final = "127.0.0.1:15010"  # loopback: there is no identity check yet
DEFAULT_HTTP: Final = "127.0.0.1:15014"
MAX_LEASE_S: Final = 3600.0
_MAX_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """What ``mesh control`` is started with. Addresses are HOST:PORT, port 0 picks a free one.

    ``data`` None keeps the table in memory only. ``consul`` is a Consul agent to ask for
    endpoints, HOST:PORT or a URL;
    ``lease_s`` the longest lease of the embedded registry.
    """

    listen: str = DEFAULT_LISTEN
    http: str = DEFAULT_HTTP
    data: Path | None = None
    consul: str | None = None
    lease_s: float = DEFAULT_LEASE_S
    stop_s: float = 5.0  # open calls get this long at the end; streams come back by themselves

    def __post_init__(self) -> None:
        """Raise InvalidError with every setting that cannot be."""
        problems = [
            Violation(key, f"{text!r} is not HOST:PORT (port 0 to {_MAX_PORT}; an IPv6 host in brackets)")
            for key, text in (("listen", self.listen), ("http", self.http))
            if split_address(text) is None
        ]
        if not 1 <= self.lease_s <= MAX_LEASE_S:
            problems.append(Violation("lease", f"{self.lease_s:g} s is not within 1 s to {MAX_LEASE_S:g} s"))
        if self.consul is not None:
            try:
                ConsulConfig.make({}, self.consul)
            except ValueError as error:
                problems.append(Violation("consul", str(error)))
        if problems:
            raise InvalidError(problems)


def split_address(text: str) -> tuple[str, int] | None:
    """``HOST:PORT`` as (host without brackets, port); None where it is no such thing."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > _MAX_PORT:
        return None
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], int(port)
    return None if ":" in host else (host, int(port))


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach ``host``."""
    return host in ("localhost", "::1") or host.startswith("127.")
