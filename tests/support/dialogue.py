"""The HTTP/1.1 shells without sockets and without a loop: bytes in, requests and bytes out.

``Conversation`` is a client's connection in front of a service that answers every whole request with 200 and takes
down what it was sent. The endpoint's side: ``AnswerReading`` feeds bytes of an answer to the upstream shell. All of the
proxy in between is the real one; only transports stand in for those of a loop.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, cast

import httptools

from mesh.http.headers import Fields, Headers
from mesh.http.message import RequestHead, ResponseHead
from mesh.http.outcome import ProxyError
from mesh.http.trace_context import Propagation
from mesh.model.name import Name
from mesh.model.service import Endpoint
from proxy.attempt import Attempt
from proxy.dataplane import DataPlane, PlaneSettings
from proxy.exchange import Exchange
from proxy.http1.downstream import Http1Downstream
from proxy.http1.limits import ConnectionLimits
from proxy.http1.upstream import Http1Upstream
from proxy.listener import OutboundListener
from proxy.recorder import Recorder
from proxy.table import Names
from proxy.trampoline import Trampoline
from proxy.upstream.endpoint import UpstreamEndpoint
from tests.support.mesh import HandMadeDirectory

if TYPE_CHECKING:
    from proxy.ports import DownstreamStream


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_QUIET, _OTHER_SIDE = socket.socketpair()


class FakeSocket:
    def setsockopt(self, level: int, name: int, value: int) -> None: ...

    def fileno(self) -> int:
        return _QUIET.fileno()


class FakeTransport:
    """Takes down what is written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.is_closed = False
        self.is_reading = True

    def write(self, data: bytes) -> None:
        assert not self.is_closed, "written after the end"
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> Any:
        return {"peername": ("192.0.2.1", 1), "socket": FakeSocket()}.get(name)


@dataclass
class Taken:
    """A request as an endpoint was sent it. ``head`` is what ours made of it, all else is llhttp's reading."""

    head: RequestHead
    sent: bytearray = field(default_factory=bytearray)
    method: bytes = b""
    target: bytes = b""
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    trailers: Headers = field(default_factory=list)
    is_whole: bool = False


class Later:
    """Something that happens when the outermost callback drains: never in the middle of what asked for it."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def resume(self, _: object) -> None:
        self._call()


class AnsweringTransport(FakeTransport):
    """A connection to an endpoint that answers each whole request with 200; llhttp says when it is whole.

    An endpoint whose connection was closed gets another one at once, so that nobody ever has to wait for one.
    """

    def __init__(self, endpoint: UpstreamEndpoint, trampoline: Trampoline, taken: list[Taken]) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._trampoline = trampoline
        self._taken = taken
        self._is_between = True
        self._has_head = False
        self._reader = httptools.HttpRequestParser(self)
        self.connection = Http1Upstream(endpoint, trampoline)
        self.connection.connection_made(cast("asyncio.Transport", self))
        endpoint.connections.add(self.connection)
        endpoint.service.usage.connections += 1
        endpoint.release(self.connection)

    def write(self, data: bytes) -> None:
        super().write(data)
        if self._is_between:
            self._is_between = self._has_head = False
            attempt = self.connection.attempt
            assert attempt is not None
            self._taken.append(Taken(attempt.exchange.request))
        self._taken[-1].sent += data
        self._reader.feed_data(data)

    def abort(self) -> None:
        if not self.is_closed:
            super().abort()
            self._trampoline.post(Later(lambda: self.connection.connection_lost(None)), None)
            AnsweringTransport(self._endpoint, self._trampoline, self._taken)

    # what llhttp calls

    def on_url(self, url: bytes) -> None:
        self._taken[-1].target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        taken = self._taken[-1]
        (taken.trailers if self._has_head else taken.headers).append((name, value))

    def on_headers_complete(self) -> None:
        self._has_head = True
        self._taken[-1].method = self._reader.get_method()

    def on_body(self, body: bytes) -> None:
        self._taken[-1].body += body

    def on_message_complete(self) -> None:
        self._is_between = self._taken[-1].is_whole = True
        self._trampoline.post(Later(lambda: self.connection.data_received(OK)), None)


def make_plane() -> DataPlane:
    """A plane with the service ``pay``, whose clock does not run."""
    me = Name("default", "me")
    plane = DataPlane(
        PlaneSettings(me, Names("default")), HandMadeDirectory(), Recorder(me), Propagation(0.0, Random(1)), Random(1)
    )
    plane.apply_endpoints(Name("default", "pay"), (Endpoint("pay-1", "127.0.0.1", 1),))
    plane.apply_table(None)
    plane.call_later = lambda delay_s, call: cast("asyncio.TimerHandle", None)
    return plane


@dataclass
class Conversation:
    """See the module. ``taken`` are the requests that reached the service."""

    plane: DataPlane = field(default_factory=make_plane)
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    taken: list[Taken] = field(default_factory=list)
    transport: FakeTransport = field(default_factory=FakeTransport)

    def __post_init__(self) -> None:
        service = self.plane.service(Name("default", "pay"))
        self.upstream = AnsweringTransport(service.endpoints["pay-1"], self.plane.trampoline, self.taken)
        self.listener = OutboundListener(self.plane, "sidemesh-out-test", self.limits)
        self.connection = Http1Downstream(self.listener)
        self.connection.connection_made(cast("asyncio.Transport", self.transport))

    def feed(self, data: bytes, cut: int = 0) -> Conversation:
        """Bytes from the client; with ``cut``, that many at a time."""
        for start in range(0, len(data), cut or len(data) or 1):
            if self.transport.is_closed:
                break
            self.connection.data_received(data[start : start + (cut or len(data))])
        return self

    @property
    def statuses(self) -> list[int]:
        """The statuses answered, in order."""
        return [int(part[:3]) for part in bytes(self.transport.written).split(b"HTTP/1.1 ")[1:]]

    @property
    def is_over(self) -> bool:
        """The connection was closed, or is about to be: nothing more is read from it."""
        return self.transport.is_closed or self.connection._lingering

    @property
    def requests(self) -> list[tuple[bytes, bytes, bytes]]:
        """(method, target, body) of every whole request that reached the service."""
        return [(t.method, t.target, t.body) for t in self.taken if t.is_whole]


class Client:
    """A client's side of an exchange: takes down what is informational."""

    peer_address, peer_port, is_tls, is_writable = "192.0.2.1", 1, False, True

    def __init__(self) -> None:
        self.informational: list[int] = []

    def send_informational(self, head: ResponseHead) -> None:
        self.informational.append(head.status)


def make_attempt(plane: DataPlane, client: Client | None = None, method: bytes = b"GET") -> Attempt:
    """An attempt on ``pay`` of an exchange that does not run."""
    listener = OutboundListener(plane, "sidemesh-out-test", ConnectionLimits())
    request = RequestHead(method, b"/", b"pay", Fields())
    exchange = Exchange(listener, cast("DownstreamStream", client or Client()), request, None)
    exchange.attempt = Attempt(exchange, plane.service(Name("default", "pay")).endpoints["pay-1"], 0.0)
    return exchange.attempt


class AnswerReading:
    """An answer to ``method`` as the upstream shell reads it, for an attempt that nobody goes on with."""

    def __init__(self, method: bytes = b"GET") -> None:
        self.transport = FakeTransport()
        self._client = Client()
        plane = make_plane()
        self.attempt = make_attempt(plane, self._client, method)
        self.connection = Http1Upstream(self.attempt.endpoint, plane.trampoline)
        self.connection.connection_made(cast("asyncio.Transport", self.transport))
        self.connection.start(self.attempt, self.attempt.exchange.request, [], b"", ended=True)

    @property
    def heads(self) -> list[ResponseHead]:
        """The final head, where one came."""
        return [] if self.attempt.head is None else [self.attempt.head]

    @property
    def informational(self) -> list[int]:
        """The statuses of those before it."""
        return self._client.informational

    @property
    def body(self) -> bytes:
        """What there is of it."""
        return b"".join(self.attempt.pieces)

    @property
    def ended(self) -> bool:
        """The answer is whole."""
        return self.attempt.ended

    @property
    def error(self) -> ProxyError | None:
        """Why there is none."""
        return self.attempt.error

    @property
    def released(self) -> int:
        """How often the connection went back to its pool."""
        return len(self.attempt.endpoint._idle)

    def feed(self, data: bytes, cut: int = 0) -> AnswerReading:
        """Bytes from the endpoint."""
        for start in range(0, len(data), cut or len(data) or 1):
            if self.transport.is_closed:
                break
            self.connection.data_received(data[start : start + (cut or len(data))])
        return self

    def end(self) -> AnswerReading:
        """The endpoint closes the connection."""
        self.connection.connection_lost(None)
        return self
