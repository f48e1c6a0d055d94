"""A mesh in one process, on real sockets: programs that answer as they are told, and a caller's sidecar before them.

    async with mesh().service("pay", replies=[503, 200]).start() as m:
        answer = await m.get("pay", "/")

No control server and no discovery: endpoints and routes are applied by hand, so that a test is about the request path
and nothing else.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, Self

from mesh.http.outcome import NoRoute
from mesh.http.trace_context import Propagation
from mesh.model.gateway_api import parse
from mesh.model.name import DEFAULT_NAMESPACE, Name
from mesh.model.policy import AppProtocol, OutlierDetection, ServicePolicy
from mesh.model.route import BackendRef, Parent, Retry, Route, Rule, Timeouts
from mesh.model.service import Endpoint
from mesh.model.snapshot import make_snapshot
from mesh.model.wire import encode_resource
from proxy.accept import open_server
from proxy.dataplane import Answer, DataPlane, PlaneSettings, no_such_service
from proxy.http1.limits import ConnectionLimits
from proxy.listener import InboundListener, Listener, OutboundListener
from proxy.recorder import Recorder
from proxy.table import Backend, CompiledRule, Names
from tests.support.hang_up import until_hung_up

TIMEOUT_S = 10.0

Reply = int | bytes | Callable[["Request", asyncio.StreamWriter], Awaitable[None]]
"""A status, the raw bytes of an answer (the connection closes after it unless they allow more), or what to do."""


@dataclass
class Request:
    """A request as a program saw it."""

    head: bytes
    body: bytes
    connection: int
    reader: asyncio.StreamReader

    @property
    def line(self) -> str:
        """The request line."""
        return self.head.split(b"\r\n", 1)[0].decode("latin-1")

    def fields(self, name: str) -> list[str]:
        """The values of all fields of that name, in order."""
        lines = [line.decode("latin-1") for line in self.head.split(b"\r\n")[1:] if b":" in line]
        return [v.strip() for k, _, v in (line.partition(":") for line in lines) if k.lower() == name.lower()]


@dataclass
class Response:
    """An answer as the client saw it. ``closed``: the connection ended after it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    trailers: list[tuple[str, str]] = field(default_factory=list)

    def get(self, name: str) -> str | None:
        """The first field of that name."""
        return next((v for k, v in self.headers if k.lower() == name.lower()), None)

    @property
    def flag(self) -> str:
        """The response flag out of Proxy-Status; "" where an endpoint answered."""
        status = self.get("proxy-status")
        return status.split('details="', 1)[1].split(" ", 1)[0] if status else ""


class Program:
    """A real HTTP/1.1 server that gives ``replies`` in turn, and the last one for ever."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        """``requests`` collects what it saw."""
        self._replies = list(replies)
        self.requests: list[Request] = []
        self.connections = 0
        self.port = 0
        self.arrived = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, port: int = 0) -> None:
        """Listen; ``port`` 0 takes a free one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and break off every connection."""
        if self._server is not None:
            self._server.close()
            for writer in tuple(self._writers):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None
        while self._writers:
            await asyncio.sleep(0.005)

    def close_connections(self) -> None:
        """Close every connection as a program does whose idle time is over."""
        for writer in self._writers:
            writer.close()

    async def wait_for_requests(self, count: int) -> None:
        """Until that many requests have come."""
        async with self.arrived, asyncio.timeout(TIMEOUT_S):
            await self.arrived.wait_for(lambda: len(self.requests) >= count)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self._writers.add(writer)
        try:
            await self._serve_until_hung_up(reader, writer, number)
        finally:
            self._writers.discard(writer)

    async def _serve_until_hung_up(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        async with until_hung_up(writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                request = Request(head, b"", number, reader)
                reply = self._replies[min(len(self.requests), len(self._replies) - 1)]
                if not callable(reply):
                    request.body = await read_body(
                        request.fields("content-length"), request.fields("transfer-encoding"), reader
                    )
                async with self.arrived:
                    self.requests.append(request)
                    self.arrived.notify_all()
                if not await self._reply(reply, request, writer):
                    return

    async def _reply(self, reply: Reply, request: Request, writer: asyncio.StreamWriter) -> bool:
        if callable(reply):
            await reply(request, writer)
            return not writer.is_closing()
        if isinstance(reply, bytes):
            writer.write(reply)
            await writer.drain()
            return b"\r\ncontent-length:" in reply.lower()
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 5\r\n\r\nhello" % reply)
        await writer.drain()
        return True


async def read_body(lengths: list[str], codings: list[str], reader: asyncio.StreamReader) -> bytes:
    """A whole body, by its length or its chunks."""
    if lengths:
        return await reader.readexactly(int(lengths[0]))
    body = b""
    if codings:
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        while (await reader.readuntil(b"\r\n")) != b"\r\n":
            pass
    return body


class HandMadeDirectory:
    """Knows what the test applied, and nothing else."""

    def __init__(self) -> None:
        """``lookups`` and ``connect_failures`` are for the test to look at."""
        self.lookups: list[Name] = []
        self.connect_failures: list[str] = []

    def look_up(self, service: Name, answer: Answer) -> None:
        """Nobody knows more."""
        self.lookups.append(service)
        asyncio.get_running_loop().call_soon(answer, NoRoute(no_such_service(str(service))))

    def touch(self, services: set[Name]) -> None:
        """Nothing to keep."""

    def connect_failed(self, service: Name, endpoint_id: str) -> None:
        """Remember."""
        self.connect_failures.append(endpoint_id)


class Client:
    """A client connection that shows exactly what came back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """``reader`` and ``writer`` are open for the test to use."""
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        """Send raw bytes."""
        self.writer.write(data)

    async def receive(self, method: str = "GET") -> Response:
        """One final answer; 1xx answers are passed over."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                response = await self._receive(method)
                if response.status >= 200:
                    return response

    async def receive_head(self) -> Response:
        """One head of any status, without a body."""
        async with asyncio.timeout(TIMEOUT_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = [tuple(map(str.strip, line.split(":", 1))) for line in head[1:] if line]
        return Response(int(head[0].split(" ")[1]), fields, b"")  # type: ignore[arg-type]

    async def ended(self) -> bool:
        """Wait for the end of the connection; True if nothing came before it."""
        async with asyncio.timeout(TIMEOUT_S):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True

    def close(self) -> None:
        """Close."""
        self.writer.close()

    async def _receive(self, method: str) -> Response:
        response = await self.receive_head()
        if response.status < 200 or method == "HEAD" or response.status in {204, 304}:
            return response
        length = response.get("content-length")
        if length is not None:
            response.body = await self.reader.readexactly(int(length))
        elif response.get("transfer-encoding"):
            while size := int((await self.reader.readuntil(b"\r\n")), 16):
                response.body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
                name, _, value = line.decode("latin-1").partition(":")
                response.trailers.append((name.strip(), value.strip()))
        else:
            response.body = await self.reader.read()
        return response


@dataclass
class Mesh:
    """A running mesh; see the module."""

    plane: DataPlane
    outbound: OutboundListener
    port: int
    programs: dict[str, list[Program]]
    directory: HandMadeDirectory
    recorder: Recorder
    inbounds: dict[str, list[InboundListener]]
    _clients: list[Client] = field(default_factory=list)

    async def connect(self, port: int | None = None) -> Client:
        """A client connection to the outbound listener."""
        client = Client(*await asyncio.open_connection("127.0.0.1", port or self.port, limit=1 << 20))
        self._clients.append(client)
        return client

    async def get(
        self, service: str, path: str = "/", method: str = "GET", headers: Iterable[str] = (), body: bytes = b""
    ) -> Response:
        """One request on a connection of its own."""
        client = await self.connect()
        lines = [f"{method} {path} HTTP/1.1", f"host: {service}", *headers]
        if body:
            lines.append(f"content-length: {len(body)}")
        client.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        try:
            return await client.receive(method)
        finally:
            client.close()

    def cells(self) -> dict[tuple[str, int, str], int]:
        """Requests counted so far: (service, status, flag) to count."""
        return {
            (str(service), status, flag): cell.count
            for (service, _, _), series in self.recorder.series.items()
            for (status, flag), cell in series.cells.items()
        }


def name(text: str) -> Name:
    """A name in the default namespace."""
    return Name.parse(text)


def speak(m: Mesh, service: str, protocol: AppProtocol) -> None:
    """Declare what a service's endpoints speak."""
    name_ = name(service)
    m.plane.services[name_].set_policy(ServicePolicy(name_, app_protocol=protocol))


class mesh:  # noqa: N801 - reads as a sentence
    """Builds a mesh; see the module."""

    def __init__(self) -> None:
        """Nothing runs before ``start``."""
        self._services: list[tuple[str, list[Program], list[dict[str, str]], bool]] = []
        self._routes: list[Route] = []
        self._policies: dict[Name, ServicePolicy] = {}
        self._documents = ""
        self._limits = ConnectionLimits()
        self._has_table = True
        self._max_connections = 20_000
        self._connect_ports: frozenset[int] = frozenset()

    def service(
        self,
        service: str,
        *,
        replies: Sequence[Reply] = (200,),
        versions: Sequence[str] = ("v1",),
        sidecar: bool = False,
    ) -> Self:
        """A service with one program for each version; ``sidecar``: each behind an inbound listener of its own."""
        programs = [Program(replies) for _ in versions]
        self._services.append((service, programs, [{"version": v} for v in versions], sidecar))
        return self

    def programs(self, service: str, *replies: Sequence[Reply], sidecar: bool = False) -> Self:
        """A service with one program for each list of replies."""
        self._services.append((service, [Program(r) for r in replies], [{} for _ in replies], sidecar))
        return self

    def routes(self, documents: str) -> Self:
        """HTTPRoute and ServicePolicy documents."""
        self._documents += "\n---\n" + documents
        return self

    def rule(
        self, service: str, *, retry: Retry | None = None, request_s: float | None = None, try_s: float | None = None
    ) -> Self:
        """A route of one rule from ``service`` to itself."""
        rule = Rule(backend_refs=(BackendRef(name(service)),), retry=retry, timeouts=Timeouts(request_s, try_s))
        self._routes.append(Route(name(service), (Parent(name(service)),), (rule,)))
        return self

    def retries(self, attempts: int, *codes: int, backoff_s: float | None = None) -> Self:
        """An explicit retry stanza for the last service."""
        return self.rule(self._services[-1][0], retry=Retry(codes, attempts, backoff_s))

    def policy(self, policy: ServicePolicy) -> Self:
        """A service's policy."""
        self._policies[policy.name] = policy
        return self

    def limits(self, limits: ConnectionLimits, max_connections: int = 20_000) -> Self:
        """What clients may take."""
        self._limits = limits
        self._max_connections = max_connections
        return self

    def connect_to(self, *ports: int) -> Self:
        """CONNECT is carried to these ports outside the mesh."""
        self._connect_ports = frozenset(ports)
        return self

    def without_table(self) -> Self:
        """As a sidecar that never heard of its control server."""
        self._has_table = False
        return self

    @asynccontextmanager
    async def start(self) -> AsyncIterator[Mesh]:
        """Run it."""
        directory, me = HandMadeDirectory(), name("caller")
        recorder = Recorder(me)
        plane = DataPlane(
            PlaneSettings(me, Names(DEFAULT_NAMESPACE), bool(self._connect_ports), self._connect_ports),
            directory,
            recorder,
            Propagation(0.0, Random(1)),
            Random(7),
        )
        plane.start()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(plane.close)
            programs: dict[str, list[Program]] = {}
            inbounds: dict[str, list[InboundListener]] = {}
            for service, members, metadata, with_sidecar in self._services:
                endpoints = []
                for index, (program, meta) in enumerate(zip(members, metadata, strict=True)):
                    await program.start()
                    stack.push_async_callback(program.stop)
                    port = program.port
                    if with_sidecar:
                        listener = inbound_listener(plane, f"{service}-{index}", program.port, self._limits)
                        inbounds.setdefault(service, []).append(listener)
                        port = await serve(stack, listener)
                    endpoints.append(Endpoint(f"{service}-{index}", "127.0.0.1", port, meta))
                programs[service] = members
                plane.apply_endpoints(name(service), tuple(endpoints))
            if self._has_table:
                plane.apply_table(self._snapshot())
            outbound = OutboundListener(plane, "sidemesh-out-test", self._limits, self._max_connections)
            port = await serve(stack, outbound)
            running = Mesh(plane, outbound, port, programs, directory, recorder, inbounds)
            stack.callback(lambda: [client.close() for client in running._clients])
            yield running

    def _snapshot(self) -> Any:
        values = [*self._routes, *self._policies.values()]
        if self._documents:
            values += parse(self._documents).values
        return make_snapshot("test", 1, [encode_resource(v) for v in values])


async def serve(stack: AsyncExitStack, listener: Listener) -> int:
    """Open a listener on a free port until the stack closes."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = int(sock.getsockname()[1])
    server = await open_server(listener, sock)

    async def close() -> None:
        server.close()
        for connection in tuple(listener.connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    stack.push_async_callback(close)
    return port


def inbound_listener(
    plane: DataPlane, label: str, port: int, limits: ConnectionLimits, *, is_tcp: bool = False, detects: bool = False
) -> InboundListener:
    """An inbound listener for the program on ``port``."""
    local = Name("(local)", label)
    program = plane.service(local)
    program.set_policy(ServicePolicy(local, outlier_detection=OutlierDetection(consecutive_failures=0)))
    program.apply([Endpoint("program", "127.0.0.1", port)])
    ref = BackendRef(local)
    rule = CompiledRule(Rule(backend_refs=(ref,), retry=Retry(attempts=0)), [Backend(ref, program.cluster())])
    listener = InboundListener(
        plane, f"sidemesh-in-{label}", limits, rule, protocol=AppProtocol.TCP if is_tcp else None
    )
    listener.detects = detects
    return listener
