"""An HTTP/2 connection of a client: each of its streams is a request with an exchange of its own.

A shell: it moves bytes between the transport, the codec and the exchanges. A connection that begins with the HTTP/2
preface is handed over by the HTTP/1.1 shell, which has read it (RFC 9113 §3.3: prior knowledge).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.http.connect import TUNNEL
from mesh.http.headers import Headers
from mesh.http.message import RequestHead, ResponseHead
from mesh.http.outcome import ClientGone, ProxyError, TunnelIdle
from proxy.callbacks import set_callbacks
from proxy.exchange import Exchange
from proxy.grpc_web import GrpcWebStream
from proxy.http2.connection import Http2Connection
from proxy.http2.errors import ConnectionFault, ErrorCode, code_name
from proxy.http2.frames import LAST_STREAM
from proxy.http2.messages import request_head, response_fields, trailers
from proxy.http2.stream import Stream
from proxy.request_body import RequestBody
from proxy.unsent import holds_unsent

if TYPE_CHECKING:
    from proxy.http1.downstream import Http1Downstream
    from proxy.http1.limits import ConnectionLimits
    from proxy.listener import Listener


class Http2Downstream(Http2Connection):
    """See the module."""

    is_server = True

    def __init__(self, listener: Listener, peer_address: str, peer_port: int) -> None:
        """``listener`` has admitted the connection."""
        super().__init__(listener.plane.trampoline)
        self._listener = listener
        self._plane = listener.plane
        self.limits = listener.limits
        self.peer_address = peer_address
        self.peer_port = peer_port
        self.served = 0
        self._last_read_s = self._plane.now_s
        self._pings_before = 0
        self._paused_s = 0.0
        self._unfinished = 0
        self._unfinished_s = 0.0

    @property
    def now_s(self) -> float:
        """The time of the last sweep."""
        return self._plane.now_s

    @classmethod
    def take_over(cls, listener: Listener, before: Http1Downstream, data: bytes) -> None:
        """Go on with a connection that has turned out to speak HTTP/2; ``data`` is what has come of it."""
        connection = cls(listener, before.peer_address, before.peer_port)
        listener.replace(before, connection)
        set_callbacks(before.transport, connection)
        connection.connection_made(before.transport)
        connection.data_received(data)

    def data_received(self, data: bytes) -> None:
        """Bytes of frames."""
        self._last_read_s = self._plane.now_s
        super().data_received(data)

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self._paused_s = self._plane.now_s
        super().pause_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by either side."""
        self.read_rest()
        self.is_closed = True
        self._listener.forget(self)
        how = f"reset ({exc})" if exc else "closed"
        for stream in tuple(self.codec.streams.values()):
            if isinstance(stream.owner, DownstreamStream):
                stream.owner.gone(f"the client {how} the connection before its answer was complete")
        self.codec.forget_all()
        self._plane.trampoline.drain()

    def check_time(self, now: float) -> None:
        """Once a second: budgets, graceful ends, and clients that took too long."""
        codec, quiet_s = self.codec, now - self._last_read_s
        codec.tick()
        if self.transport.is_closing():
            if quiet_s > self.limits.stall_s:
                self.transport.abort()
            return
        if self._listener.is_draining or codec.goaway_sent is not None:
            self._go_away()
        if not self.is_writable and now - self._paused_s > self.limits.stall_s:
            self.transport.abort()  # whatever it sends meanwhile, it reads nothing
            return
        if codec.unfinished != self._unfinished:
            self._unfinished, self._unfinished_s = codec.unfinished, now
        elif self._unfinished and now - self._unfinished_s > self.limits.head_s:
            message = f"a request head, or another frame, was not complete within {self.limits.head_s:g} s"
            self.fail(ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, message))
            return
        if not codec.streams:
            if codec.goaway_sent not in (None, LAST_STREAM):
                if not self.has_unsent or quiet_s > self.limits.stall_s:
                    self.end()
            elif quiet_s > (self.limits.idle_s if self.served else self.limits.first_byte_s):
                codec.goaway(codec.last_peer_stream)
                self.end()
        else:
            for stream in tuple(codec.streams.values()):
                if isinstance(stream.owner, DownstreamStream):
                    stream.owner.check_time(now, self.limits)
        if codec.out:
            self.touch()
        self._plane.trampoline.drain()

    @property
    def has_unsent(self) -> bool:
        """See ClientConnection."""
        return self.codec.has_pending or holds_unsent(self.transport, is_tls=self.is_tls)

    def finish(self) -> None:
        """See ClientConnection: bodies may wait for credit, which is still read."""
        codec = self.codec
        if self.is_closed:
            return
        if not codec.has_pending:
            self.end()
        elif codec.goaway_sent in (None, LAST_STREAM):
            codec.goaway(codec.last_peer_stream)
            self.touch()
            self._plane.trampoline.drain()

    def _go_away(self) -> None:
        """In two steps (§6.8): first that it is time, then, a round trip later, which streams were taken."""
        codec = self.codec
        if codec.goaway_sent is None:
            self._pings_before = codec.pings_acked
            codec.goaway(LAST_STREAM)
            codec.ping(b"sidemesh")
        elif codec.goaway_sent == LAST_STREAM and codec.pings_acked > self._pings_before:
            codec.goaway(codec.last_peer_stream)

    def on_stream(self, stream: Stream, fields: Headers, *, ended: bool) -> None:
        """A request: its exchange begins at once."""
        self.served += 1
        owner = DownstreamStream(self, stream)
        try:
            request = request_head(fields, ended=ended)
        except ProxyError as error:
            stream.owner = owner
            self._listener.refuse_unread(owner, error)
            if not stream.remote_ended:
                self.codec.stop_peer(stream)
            return
        stream.owner = owner
        stream.expected = request.content_length
        owner.begin(self._listener, request)

    def __repr__(self) -> str:
        """For debugging."""
        return f"<Http2Downstream {self.peer_address}:{self.peer_port} streams={len(self.codec.streams)}>"


class DownstreamStream:
    """One request's way back to the client. See ``ports.DownstreamStream`` and ``codec.Owner``."""

    __slots__ = (
        "_connection",
        "_is_tunnel",
        "_last_state",
        "_moved_s",
        "_stream",
        "_without_body",
        "body",
        "exchange",
        "peer_address",
        "peer_port",
    )

    def __init__(self, connection: Http2Downstream, stream: Stream) -> None:
        """Nothing is known of the request yet."""
        self._connection = connection
        self._stream = stream
        self._without_body = False
        self._is_tunnel = False
        self._last_state: tuple[int, int, int] | None = None
        self._moved_s = 0.0
        self.body: RequestBody | None = None
        self.exchange: Exchange | None = None
        self.peer_address = connection.peer_address
        self.peer_port = connection.peer_port

    def begin(self, listener: Listener, request: RequestHead) -> None:
        """Start the exchange."""
        if request.grpc is not None and request.grpc.web:
            self._begin_grpc_web(listener, request)
            return
        self._without_body = request.method == b"HEAD"
        if request.upgrade is not None:
            self.body = RequestBody(self, keeps=False)  # of the tunnel, if it comes to one
            self._is_tunnel = True
            self._moved_s = self._connection.now_s
            if self._stream.remote_ended:
                self.body.on_end([])
        elif request.has_body:
            self.body = RequestBody(self)
        self.exchange = Exchange(listener, self, request, None if self._is_tunnel else self.body)
        self.exchange.begin()

    def _begin_grpc_web(self, listener: Listener, request: RequestHead) -> None:
        web = GrpcWebStream(self, request)
        self.body = web.body
        exchange = self.exchange = Exchange(listener, web, request, self.body)
        exchange.begin()
        web.attach_exchange(exchange)

    # --- what the client sends --------------------------------------------------------------------------------------

    def on_headers(self, fields: Headers, *, ended: bool) -> None:
        """Trailers."""
        del ended
        if self._is_tunnel:
            self._connection.codec.reset(self._stream, ErrorCode.PROTOCOL_ERROR)
            self.gone("a header block within a tunnel (RFC 9113 §8.5)")
        elif self.body is not None:
            self.body.on_end(trailers(fields))  # StreamFault: the codec resets the stream, counts it and tells us

    def on_data(self, piece: bytes) -> None:
        """A piece of the request's body."""
        if self._is_tunnel:
            self._moved_s = self._connection.now_s
        if self.body is not None:
            self.body.on_data(piece)

    def on_end(self) -> None:
        """The request is complete."""
        if self.body is not None:
            self.body.on_end([])
            if self._is_tunnel and self.exchange is not None and self.exchange.answered:
                self.exchange.post(None)

    def on_reset(self, code: int, *, is_unprocessed: bool) -> None:
        """The client gave up, or broke a rule of this stream."""
        del is_unprocessed
        self.gone(f"the stream was reset ({code_name(code)}) before its answer was complete")

    def on_writable(self, *, writable: bool) -> None:
        """The client takes the answer (again), or is slow."""
        if self.exchange is not None:
            self.exchange.on_downstream_writable(writable=writable and self.is_writable)

    def gone(self, message: str) -> None:
        """Nobody waits for the answer any more."""
        if self.exchange is not None:
            self.exchange.post(ClientGone(message))

    def check_time(self, now: float, limits: ConnectionLimits) -> None:
        """Give up where the client neither sends nor takes anything of this stream, whatever the others do."""
        stream, exchange = self._stream, self.exchange
        is_owed = not (stream.remote_ended or stream.is_paused or exchange is None or exchange.answered)
        # Once it is answered, a client may be silent for ever; where the transport is full, the connection counts.
        waits_for_client = is_owed or (bool(stream.pending) and not self._connection.codec.is_held)
        if self._is_tunnel and exchange is not None and exchange.answered and not stream.pending:
            limit_s, is_still = limits.tunnel_idle_s, True  # what moves tells: see ``on_data`` and ``send_data``
        else:
            state = (stream.received, stream.send_window, stream.pending_bytes) if waits_for_client else None
            limit_s, is_still = limits.stall_s, state is not None and state == self._last_state
            self._last_state = state
        is_quiet_call = is_owed and exchange is not None and exchange.request.grpc is not None and not stream.pending
        if is_quiet_call:
            limit_s = limits.tunnel_idle_s  # both ends of a stream of messages may wait, its server with the head, too
        if not is_still:
            self._moved_s = now
        elif now - self._moved_s > limit_s and is_quiet_call and exchange is not None:
            self._moved_s = now
            exchange.post(TunnelIdle(f"nothing passed in either direction for {limit_s:g} s"))
        elif now - self._moved_s > limit_s:
            self._connection.codec.reset(stream, ErrorCode.CANCEL)
            self.gone("the client neither sent nor took anything for too long")

    # --- the exchange's side ----------------------------------------------------------------------------------------

    @property
    def is_tls(self) -> bool:
        """See ports.DownstreamStream."""
        return self._connection.is_tls

    @property
    def is_writable(self) -> bool:
        """See ports.DownstreamStream."""
        return self._stream.is_writable and self._connection.is_writable

    def respond(self, head: ResponseHead, pieces: list[bytes], trailers: Headers, *, ended: bool) -> None:
        """See ports.DownstreamStream."""
        codec, stream = self._connection.codec, self._stream
        if stream.local_ended:
            return
        self._connection.touch()
        if self._without_body or (ended and not pieces and not trailers):
            codec.send_headers(stream, response_fields(head), ended=ended or self._without_body)
            return
        codec.send_headers(stream, response_fields(head), ended=False)
        if ended:
            codec.send_last(stream, b"".join(pieces), trailers)
        elif pieces:
            codec.send_data(stream, b"".join(pieces))

    def send_informational(self, head: ResponseHead) -> None:
        """See ports.DownstreamStream."""
        if not self._stream.local_ended:
            self._connection.codec.send_headers(self._stream, response_fields(head), ended=False)
            self._connection.touch()

    def send_data(self, piece: bytes) -> None:
        """See ports.DownstreamStream."""
        if self._is_tunnel:
            self._moved_s = self._connection.now_s
        if not self._without_body:
            self._connection.codec.send_data(self._stream, piece)
            self._connection.touch()

    def send_end(self, trailers: Headers) -> None:
        """See ports.DownstreamStream."""
        if not self._without_body:
            self._connection.codec.send_last(self._stream, b"", trailers)
            self._connection.touch()

    def abort(self) -> None:
        """See ports.DownstreamStream: RST_STREAM says that the answer is not whole."""
        is_connect = self.exchange is not None and self.exchange.request.upgrade == TUNNEL
        # §8.5: whatever happens to the TCP connection at the other end is told as CONNECT_ERROR.
        self._connection.codec.reset(self._stream, ErrorCode.CONNECT_ERROR if is_connect else ErrorCode.INTERNAL_ERROR)
        self._connection.touch()

    def close_after(self) -> None:
        """See ports.DownstreamStream: a stream serves one request anyway."""

    def open_tunnel(self, head: ResponseHead, exchange: Exchange) -> DownstreamStream:
        """See ports.DownstreamStream: in HTTP/2 a tunnel begins with 200 (RFC 8441 §5)."""
        del exchange
        if self._stream.local_ended:
            return self
        opened = ResponseHead(200, head.fields)
        self._connection.codec.send_headers(self._stream, response_fields(opened), ended=False)
        self._connection.touch()
        return self

    def pause(self) -> None:
        """See ports.DownstreamStream."""
        self._connection.codec.pause(self._stream)

    def resume_reading(self) -> None:
        """See ports.DownstreamStream."""
        self._connection.codec.resume(self._stream)
        self._connection.touch()

    def exchange_done(self, *, request_ended: bool) -> None:
        """See ports.DownstreamStream."""
        self.exchange = None
        self.body = None
        stream = self._stream
        if (not request_ended or self._is_tunnel) and not stream.remote_ended:
            self._connection.codec.stop_peer(stream)
            self._connection.touch()
