"""One end of an HTTP/2 connection without sockets, and all that it heard, for tests of the codec."""

from dataclasses import dataclass, field

from mesh.http.headers import Headers
from mesh.http.outcome import ProxyError
from proxy.http2.codec import Connection
from proxy.http2.errors import ConnectionFault, ErrorCode
from proxy.http2.frames import (
    RST_STREAM,
)
from proxy.http2.messages import request_head
from proxy.http2.stream import Stream
from tests.support.http2 import frames


@dataclass
class Peer:
    """A server's or client's end under test, and all that its owner heard."""

    is_server: bool = True
    heard: list[tuple[object, ...]] = field(default_factory=list)
    fault: ConnectionFault | None = None
    sent: list[tuple[int, int, int, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connection = Connection(self, is_server=self.is_server)
        self.connection.out.clear()

    def feed(self, data: bytes, cut: int = 0) -> "Peer":
        pieces = [data] if not cut else [data[i : i + cut] for i in range(0, len(data), cut)]
        try:
            for piece in pieces:
                is_more = self.connection.feed(piece)
                while is_more:
                    is_more = self.connection.feed(b"")
        except ConnectionFault as fault:
            self.fault = fault
        self.sent += frames(self.connection.take())
        return self

    @property
    def resets(self) -> dict[int, ErrorCode]:
        return {s: ErrorCode(int.from_bytes(p, "big")) for kind, _, s, p in self.sent if kind == RST_STREAM}

    def on_stream(self, stream: Stream, fields: Headers, *, ended: bool) -> None:
        try:
            request = request_head(fields, ended=ended)
        except ProxyError as error:
            self.heard.append(("refused", stream.id, error.http_status))
            return
        stream.expected = request.content_length
        stream.owner = Owner(self, stream.id)
        self.heard.append(("request", stream.id, request.method, request.target, ended))

    def on_settings(self) -> None: ...

    def on_stream_over(self) -> None: ...

    def on_goaway(self, code: int, message: bytes) -> None:
        self.heard.append(("goaway", code))


@dataclass
class Owner:
    peer: Peer
    id: int

    def on_headers(self, fields: Headers, *, ended: bool) -> None:
        self.peer.heard.append(("headers", self.id, tuple(fields), ended))

    def on_data(self, piece: bytes) -> None:
        last = self.peer.heard[-1]
        if last[:2] == ("data", self.id):  # how it was cut into frames is of no interest
            self.peer.heard[-1] = ("data", self.id, last[2] + piece)  # type: ignore[operator]
        else:
            self.peer.heard.append(("data", self.id, piece))

    def on_end(self) -> None:
        self.peer.heard.append(("end", self.id))

    def on_reset(self, code: int, *, is_unprocessed: bool) -> None:
        self.peer.heard.append(("reset", self.id, code, is_unprocessed))

    def on_writable(self, *, writable: bool) -> None:
        self.peer.heard.append(("writable", self.id, writable))
