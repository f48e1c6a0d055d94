"""All processes of a case: the upstream, the span sink and the proxies, started, checked and ended together."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import grpc_upstream, upstream, websocket_upstream
from tests.bench.cases import Behind
from tests.bench.load import BenchError
from tests.bench.machine import LOAD_CORE, PROXY_CORE, pinned
from tests.bench.peers import Certificate, Site, peers
from tests.bench.traffic import SERVICE
from tests.support.certificates import Authority
from tests.support.needs import TOOLS
from tests.support.ports import free_port, free_ports
from tests.support.process import Process

UPSTREAMS = 10
START_S = 30.0


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that runs."""

    name: str
    process: Process
    site: Site

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        return self.site.port


@dataclass(frozen=True, slots=True)
class Fleet:
    """What runs. ``directory`` is for files of the case."""

    directory: Path
    upstreams: tuple[int, ...]
    proxies: Mapping[str, Proxy]
    otlp_http: int
    otlp_grpc: int

    async def spans(self) -> dict[str, int]:
        """How many spans each proxy has sent so far."""
        _, body = await get(self.otlp_http, "/count")
        return {str(name): int(count) for name, count in json.loads(body).items()}


@asynccontextmanager
async def fleet(
    names: Sequence[str],
    *,
    logs: bool = False,
    trace_ratio: float = 0.01,
    behind: Behind = "http1",
    holds_streams: bool = False,
) -> AsyncIterator[Fleet]:
    """Start the proxies of these names and what they need. ``logs``: each writes its access log.

    ``holds_streams``: see Site.
    """
    known = peers()
    missing = absent()
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-bench-")))
        ports = tuple(free_ports(UPSTREAMS))
        files = _certificate(directory / "certificates") if behind == "tls" else None
        otlp_http, otlp_grpc = free_ports(2)
        await stack.enter_async_context(
            Process.start(
                *_upstream(behind, _folder(directory, "upstream"), ports, files), log=directory / "upstream.log"
            )
        )
        sink = await stack.enter_async_context(
            Process.start(
                *pinned(LOAD_CORE, sys.executable, "-m", "tests.bench.sink", str(otlp_http), str(otlp_grpc)),
                log=directory / "sink.log",
            )
        )
        await sink.until(lambda: answers(otlp_http, "/count"), what="the span sink", timeout_s=START_S)
        proxies = {}
        for name in names:
            if name in missing:
                continue
            folder = _folder(directory, name)
            log = folder / "access.log" if logs else None
            site = Site(
                *(name, folder, free_port(), free_port(), ports, otlp_http, otlp_grpc),
                *(trace_ratio, log, behind, files, holds_streams),
            )
            command = known[name](site)
            process = await stack.enter_async_context(
                Process.start(*pinned(PROXY_CORE, *command.words), log=folder / "output.log", env=command.env)
            )
            proxies[name] = Proxy(name, process, site)
        for proxy in proxies.values():
            forwards = functools.partial(answers, proxy.port, "/r0/items/1", is_tls=files is not None)
            await proxy.process.until(forwards, what=f"{proxy.name} to forward", timeout_s=START_S)
        yield Fleet(directory, ports, proxies, otlp_http, otlp_grpc)


def _upstream(behind: Behind, directory: Path, ports: tuple[int, ...], files: Certificate | None) -> list[str | Path]:
    if behind == "grpc":
        return grpc_upstream.command(ports)
    if behind == "websocket":
        return websocket_upstream.command(ports)
    return upstream.command(directory, ports, http2=behind == "http2", files=files)


def _certificate(directory: Path) -> Certificate:
    """For the service, of an authority of its own. Raises BenchError."""
    if TOOLS["openssl"].find() is None:
        raise BenchError(f"openssl is absent: {TOOLS['openssl'].remedy}")
    authority = Authority(directory)
    return Certificate(*authority.issue(SERVICE), authority.certificate)


def absent() -> dict[str, str]:
    """The programs that are not there, with what brings them."""
    wanted = ("wrk", "envoy", "nginx", "haproxy", "traefik", "consul")
    return {name: f"{name} is absent: {TOOLS[name].remedy}" for name in wanted if TOOLS[name].find() is None}


async def get(
    port: int, path: str, host: str = SERVICE, *, timeout_s: float = 10.0, is_tls: bool = False
) -> tuple[int, bytes]:
    """One request on a connection of its own: status and body. Raises BenchError where there is no answer.

    ``is_tls``: over TLS, whatever certificate is shown, as wrk does.
    """
    try:
        async with asyncio.timeout(timeout_s):
            secured = ssl._create_unverified_context() if is_tls else None  # noqa: S323 - our own peer
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=secured)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                answer = await reader.read()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError) as error:
        raise BenchError(f"no answer from port {port}: {error}") from error
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 "):
        raise BenchError(f"port {port} answered {answer[:60]!r}")
    return int(head[9:12]), body


async def answers(port: int, path: str, *, is_tls: bool = False) -> bool:
    try:
        status, _ = await get(port, path, is_tls=is_tls)
    except BenchError:
        return False
    return status == 200


def _folder(directory: Path, name: str) -> Path:
    made = directory / name
    made.mkdir()
    return made
