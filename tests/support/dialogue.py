"""The HTTP/1.1 shells without sockets and without a loop: bytes in, requests and bytes out.

``Conversation`` is a client's connection in front of a service that answers every whole request with 200 and takes
down what it was sent. ``Endpoint side``: ``AnswerReading`` feeds bytes of an answer to the upstream shell.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, cast

from mesh.http.headers import Fields, Headers
from mesh.http.message import RequestHead, ResponseHead
from mesh.http.outcome import ProxyError
from mesh.http.trace_context import Propagation
from mesh.model.name import Name
from mesh.model.service import Endpoint
from proxy.dataplane import DataPlane, PlaneSettings
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
    from proxy.attempt import Attempt
    from proxy.upstream.service import UpstreamService


class FakeSocket:
    def setsockopt(self, level: int, name: int, value: int) -> None: ...


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
    """A request as an endpoint was sent it."""

    method: bytes
    target: bytes
    authority: bytes
    headers: Headers
    body: bytes
    trailers: Headers
    is_whole: bool = False


class FakeStream:
    """An endpoint that answers each whole request with 200."""

    def __init__(self, taken: list[Taken]) -> None:
        self._taken = taken
        self._attempt: Attempt | None = None

    def start(self, attempt: Attempt, head: RequestHead, added: list[bytes], body: bytes, *, ended: bool) -> None:
        self._attempt = attempt
        self._taken.append(Taken(head.method, head.target, head.authority, list(head.headers), body, []))
        if ended:
            self._end(attempt.exchange.request_trailers)

    def send_data(self, piece: bytes) -> None:
        self._taken[-1].body += piece

    def send_end(self, trailers: Headers) -> None:
        self._end(trailers)

    def _end(self, trailers: Headers) -> None:
        assert self._attempt is not None
        self._taken[-1].trailers = trailers
        self._taken[-1].is_whole = True
        attempt, self._attempt = self._attempt, None
        attempt.on_head(ResponseHead(200, content_length=0))
        attempt.on_end([])

    def pause(self) -> None: ...

    def resume_reading(self) -> None: ...

    def cancel(self) -> None: ...


def make_plane() -> DataPlane:
    """A plane with the service ``pay``, whose clock does not run."""
    me = Name("default", "me")
    plane = DataPlane(
        PlaneSettings(me, Names("default")), HandMadeDirectory(), Recorder(me), Propagation(0.0, Random(1)), Random(1)
    )
    plane.apply_endpoints(Name("default", "pay"), (Endpoint("pay-1", "127.0.0.1", 1),))
    plane.apply_table(None)
    plane.call_later = lambda delay_s, call: cast("asyncio.TimerHandle", None)  # type: ignore[method-assign]
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
        model = service.endpoints["pay-1"].model
        service.endpoints["pay-1"] = _AnsweringEndpoint(service, model, FakeStream(self.taken))
        service.cluster().refresh()
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


class _AnsweringEndpoint(UpstreamEndpoint):
    """An endpoint whose pool always has a connection."""

    def __init__(self, service: UpstreamService, model: Endpoint, stream: FakeStream) -> None:
        super().__init__(service, model)
        self.stream = stream

    def take(self, *, certain: bool = False, http2: bool = False) -> Any:
        del certain
        return self.stream


@dataclass
class AnswerReading:
    """An answer to ``method`` as the upstream shell reads it."""

    method: bytes = b"GET"
    heads: list[ResponseHead] = field(default_factory=list)
    informational: list[int] = field(default_factory=list)
    body: bytes = b""
    trailers: Headers = field(default_factory=list)
    ended: bool = False
    error: ProxyError | None = None
    reused: bool = False
    released: int = 0

    def __post_init__(self) -> None:
        self.transport = FakeTransport()
        self.connection = Http1Upstream(cast("UpstreamEndpoint", self), Trampoline())
        self.connection.connection_made(cast("asyncio.Transport", self.transport))
        self.connection.start(
            cast("Attempt", self), RequestHead(self.method, b"/", b"pay", Fields()), [], b"", ended=True
        )

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

    # what the shell calls, as an attempt and as an endpoint

    def on_head(self, head: ResponseHead) -> None:
        self.heads.append(head)

    def on_answer(self, head: ResponseHead, body: bytes) -> None:
        self.heads.append(head)
        self.body += body
        self.ended = True

    def on_informational(self, head: ResponseHead) -> None:
        self.informational.append(head.status)

    def on_data(self, piece: bytes) -> None:
        assert piece
        self.body += piece

    def on_end(self, trailers: Headers) -> None:
        self.ended = True
        self.trailers = trailers

    def on_error(self, error: ProxyError) -> None:
        self.error = error

    def release(self, _: Http1Upstream) -> None:
        self.released += 1

    def lost(self, _: Http1Upstream) -> None: ...
