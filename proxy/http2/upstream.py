"""An HTTP/2 connection to an endpoint, shared by many attempts: one stream for each.

A shell: it moves bytes between the transport, the codec and the attempts. Which connection an attempt gets is its
pool's decision (``upstream/http2_pool.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from mesh.http.headers import Headers
from mesh.http.message import SWITCHED, WEBSOCKET, RequestHead, ResponseHead
from mesh.http.outcome import Grpc, HeadersTooLarge, ProxyError, UpstreamProtocolError, UpstreamReset
from proxy.http2.connection import Http2Connection
from proxy.http2.errors import ConnectionFault, ErrorCode, StreamFault, code_name
from proxy.http2.messages import request_fields, response_head, trailers
from proxy.http2.octets import list_bytes
from proxy.http2.stream import Stream
from proxy.upstream.connect import has_declined_http2
from proxy.websocket import ACCEPT, KEY, accept_for

if TYPE_CHECKING:
    from proxy.attempt import Attempt
    from proxy.trampoline import Trampoline
    from proxy.upstream.http2_pool import Http2Pool

GRPC_STATUSES: Final[dict[int, Grpc]] = {
    ErrorCode.REFUSED_STREAM: Grpc.UNAVAILABLE,
    ErrorCode.CANCEL: Grpc.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Grpc.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Grpc.PERMISSION_DENIED,
}
"""What a reset says to a gRPC caller (grpc/doc/PROTOCOL-HTTP2.md, "Errors"); the others say INTERNAL."""
MAX_INFORMATIONAL: Final = 64  # as in HTTP/1.1
SETTINGS_S: Final = 5.0  # they are the first thing a server sends (§3.4), whatever it is asked
TAIL_S: Final = 30.0  # for the next of a tunnel's last bytes
PING_S: Final = 3.0  # for an answer to the question whether anybody is there


class Http2Upstream(Http2Connection):
    """See the module. ``idle_since_s`` is set when its last stream ends."""

    is_server = False

    def __init__(self, pool: Http2Pool, trampoline: Trampoline) -> None:
        """A connection of ``pool``, not yet made."""
        super().__init__(trampoline)
        self.pool = pool
        self.served = 0
        self.is_retired = False
        """It takes no more streams, and is closed after its last one."""
        self.reserved = 0
        """Streams given to attempts that have not begun them yet."""
        self.idle_since_s = 0.0
        self.has_answered = False
        """Something was answered on it: it may since have been closed for its idleness."""
        self.last_read_s = 0.0
        self._until_settings: list[tuple[UpstreamStream, Callable[[], None]]] = []
        self._made_s = pool.endpoint.service.plane.now_s
        self._suspect_since_s = 0.0
        self._pings_before = 0
        self._has_freed = False
        self._tails: dict[int, tuple[int, float]] = {}
        """Of streams that nobody waits for: how much is left to send, and since when it is as much."""

    @property
    def room(self) -> int:
        """How many more streams it takes now."""
        return 0 if self.is_closed or self.is_ending else self.codec.room - self.reserved

    def open(self) -> UpstreamStream:
        """A stream for an attempt; ask ``room`` before."""
        self.reserved += 1
        return UpstreamStream(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by either side."""
        self.read_rest()
        self.is_closed = True
        self.pool.lost(self)
        self._fail_all(exc)
        self.codec.forget_all()
        self._trampoline.drain()

    def fail(self, fault: ConnectionFault) -> None:
        """See Http2Connection; nobody waits until the endpoint has read what it did."""
        super().fail(fault)
        self._fail_all(None)

    def _fail_all(self, exc: Exception | None) -> None:
        """Tell everybody. One that had to do with a connection that was idle before may ask afresh (RFC 9113 §9.1)."""
        owners = [stream.owner for stream in self.codec.streams.values()]
        waiting, self._until_settings = self._until_settings, []
        for owner in (*owners, *(stream for stream, _ in waiting)):
            if isinstance(owner, UpstreamStream):
                owner.lost(self._why_lost(exc), is_stale=self.has_answered and self.fault is None)

    def _why_lost(self, exc: Exception | None) -> ProxyError:
        endpoint, fault = self.pool.endpoint, self.fault
        if fault is not None:
            return UpstreamProtocolError(f"{endpoint} was spoken to in HTTP/2, and broke a rule of it: {fault.message}")
        how = f"reset ({exc})" if exc else "closed"
        return UpstreamReset(f"{endpoint} {how} the connection before its answer was whole")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected, its handshake done."""
        self._made_s = self.pool.endpoint.service.plane.now_s
        if has_declined_http2(transport):
            self.transport = cast("asyncio.Transport", transport)
            self.is_closed = True  # before a byte was sent: the pool finds somebody else to use it
            return
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of frames."""
        self.last_read_s = self.pool.endpoint.service.plane.now_s
        super().data_received(data)

    def after_feed(self) -> None:
        """See Http2Connection: who waits is served now, and not on a connection that said GOAWAY in the same read."""
        if self._has_freed:
            self._has_freed = False
            self.pool.freed(self)

    def suspect(self) -> None:
        """Nothing was answered for too long: is anybody there? See ``check_time``."""
        if not self._suspect_since_s and not self.is_closed:
            self._suspect_since_s = self.pool.endpoint.service.plane.now_s
            self._pings_before = self.codec.pings_acked
            self.codec.ping(b"sidemesh")
            self.touch()

    def check_time(self, now: float) -> None:
        """Once a second: budgets, and connections whose other end is gone without a word."""
        self.codec.tick()
        if self.codec.awaits_settings and now - self._made_s > SETTINGS_S:
            self.transport.abort()
        if self._suspect_since_s:
            if self.codec.pings_acked > self._pings_before or self.last_read_s > self._suspect_since_s:
                self._suspect_since_s = 0.0  # the question may have to wait behind all that is being sent
            elif now - self._suspect_since_s > PING_S:
                self.pool.retire(self)
                self.transport.abort()
        self._check_tails(now)

    def _check_tails(self, now: float) -> None:
        """Give up the last bytes of tunnels that are over, where the endpoint gives no credit for them."""
        tails: dict[int, tuple[int, float]] = {}
        for stream in tuple(self.codec.streams.values()):
            if stream.remote_ended and stream.pending_end is not None:
                left, since_s = self._tails.get(stream.id, (0, now))
                if left != stream.pending_bytes:
                    since_s = now
                if now - since_s > TAIL_S:
                    self.codec.reset(stream, ErrorCode.CANCEL)
                    self.touch()
                else:
                    tails[stream.id] = stream.pending_bytes, since_s
        self._tails = tails

    def after_settings(self, stream: UpstreamStream, do: Callable[[], None]) -> None:
        """Do it once the endpoint has said what it takes."""
        if self.codec.awaits_settings:
            self._until_settings.append((stream, do))
        else:
            do()

    def on_settings(self) -> None:
        """See Events. The room may have changed too."""
        waiting, self._until_settings = self._until_settings, []
        for _, do in waiting:
            do()
        self.freed()

    def on_stream_over(self) -> None:
        """See Events."""
        self.freed()

    def freed(self) -> None:
        """There is room for another stream, or the connection may be unused."""
        if self.is_feeding:
            self._has_freed = True
        else:
            self.pool.freed(self)

    def on_goaway(self, code: int, message: bytes) -> None:
        """The endpoint takes no more streams: those under way are finished, new ones go elsewhere."""
        del code, message
        self.pool.retire(self)

    def __repr__(self) -> str:
        """For debugging."""
        return f"<Http2Upstream {self.pool.endpoint} streams={len(self.codec.streams)} served={self.served}>"


class UpstreamStream:
    """One attempt's way to an endpoint. See ``ports.UpstreamStream`` and ``codec.Owner``."""

    __slots__ = (
        "_attempt",
        "_connection",
        "_has_head",
        "_informational",
        "_is_begun",
        "_is_open",
        "_is_tunnel",
        "_started_s",
        "_stream",
        "_websocket_key",
    )

    def __init__(self, connection: Http2Upstream) -> None:
        """Nothing is sent yet; its number is taken when it starts, so that numbers go out in order (§5.1.1)."""
        self._connection = connection
        self._stream: Stream | None = None
        self._attempt: Attempt | None = None
        self._has_head = False
        self._informational = 0
        self._is_begun = False
        self._is_tunnel = False
        self._started_s = 0.0
        self._is_open = False
        self._websocket_key = b""

    # --- the attempt's side -----------------------------------------------------------------------------------------

    def start(self, attempt: Attempt, head: RequestHead, added: list[bytes], body: bytes, *, ended: bool) -> None:
        """See ports.UpstreamStream."""
        connection = self._connection
        self._attempt = attempt
        if head.upgrade is not None:
            connection.after_settings(self, partial(self._start_tunnel, attempt, head, added))
        else:
            self._start(attempt, head, added, body, ended=ended)

    def _start_tunnel(self, attempt: Attempt, head: RequestHead, added: list[bytes]) -> None:
        if self._attempt is not attempt:
            return  # given up meanwhile
        if not self._connection.codec.peer_takes_tunnels:
            endpoint = self._connection.pool.endpoint
            message = f"{endpoint} takes no {(head.upgrade or b'').decode()} over HTTP/2 (RFC 8441); see appProtocol"
            self.fail(UpstreamProtocolError(message))
            return
        self._websocket_key = (head.header(KEY) or b"") if head.upgrade == WEBSOCKET else b""
        self._is_tunnel = True
        self._start(attempt, head, added, b"", ended=False)

    def _start(self, attempt: Attempt, head: RequestHead, added: list[bytes], body: bytes, *, ended: bool) -> None:
        connection = self._connection
        self._is_begun = True
        connection.reserved -= 1
        if connection.is_closed or not connection.codec.room:
            attempt.on_error(UpstreamReset(f"{connection.pool.endpoint} takes no more streams", not_sent=True))
            self._attempt = None
            connection.freed()
            return
        codec = connection.codec
        connection.served += 1
        fields = request_fields(head, added, b"https" if connection.is_tls else b"http")
        most = codec.peer_list_bytes
        if most is not None and list_bytes(fields) > most:
            message = f"{connection.pool.endpoint} takes heads of {most} bytes, counted as RFC 9113 §6.5.2 does"
            self._attempt = None
            attempt.on_error(HeadersTooLarge(message))
            connection.freed()
            return
        stream = self._stream = codec.open()
        stream.owner = self
        self._started_s = connection.pool.endpoint.service.plane.now_s
        if not head.has_body:
            codec.send_headers(stream, fields, ended=not self._is_tunnel)
        else:
            codec.send_headers(stream, fields, ended=False)
            if ended:
                codec.send_last(stream, body, attempt.exchange.request_trailers)
            elif body:
                codec.send_data(stream, body)
            if not (ended or (connection.is_writable and stream.is_writable)):
                attempt.on_writable(writable=False)
        connection.touch()

    def send_data(self, piece: bytes) -> None:
        """See ports.UpstreamStream."""
        if self._stream is not None:
            self._connection.codec.send_data(self._stream, piece)
            self._connection.touch()

    def send_end(self, trailers: Headers) -> None:
        """See ports.UpstreamStream."""
        if self._stream is not None:
            self._connection.codec.send_last(self._stream, b"", trailers)
            self._connection.touch()

    def pause(self) -> None:
        """See ports.UpstreamStream."""
        if self._stream is not None:
            self._connection.codec.pause(self._stream)

    def resume_reading(self) -> None:
        """See ports.UpstreamStream."""
        if self._stream is not None:
            self._connection.codec.resume(self._stream)
            self._connection.touch()

    def cancel(self) -> None:
        """See ports.UpstreamStream: RST_STREAM, and the connection serves on."""
        self._attempt = None
        stream = self._stream
        if stream is not None and not self._has_head and self._connection.last_read_s < self._started_s:
            self._connection.suspect()
        is_over = stream is None or (stream.remote_ended and (stream.local_ended or stream.pending_end is not None))
        self._close(None if is_over else ErrorCode.CANCEL)

    # --- what the endpoint sends ------------------------------------------------------------------------------------

    def on_headers(self, fields: Headers, *, ended: bool) -> None:
        """The answer's head, 1xx too, or its trailers."""
        attempt = self._attempt
        if attempt is None:
            return
        try:
            if self._has_head:
                ends = trailers(fields)
                self._over()
                attempt.on_end(ends)
                return
            head = response_head(fields, ended=ended)
            if head.status >= 200:
                self._connection.has_answered = True
                self._frame_answer(attempt, head, ended=ended)
        except ProxyError as error:
            self.fail(error)
            return
        except StreamFault as fault:
            self.fail(UpstreamProtocolError(fault.message))
            return
        if head.status < 200:
            self._inform(attempt, head)
            return
        self._has_head = True
        if self._is_tunnel and head.status == 200 and not ended:
            self._open_tunnel(attempt, head)
            return
        if ended:
            self._over()
            attempt.on_answer(head, b"")
            return
        attempt.on_head(head)

    def _frame_answer(self, attempt: Attempt, head: ResponseHead, *, ended: bool) -> None:
        """See that the body is as long as the head says (§8.1.1). Raises StreamFault."""
        if attempt.method == b"HEAD" or head.status in (204, 304):
            head.has_body = False
            if self._stream is not None:
                self._stream.expected = 0
        elif ended and head.content_length:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "no body where content-length says there is one (§8.1.1)")
        elif self._stream is not None:
            self._stream.expected = head.content_length

    def _open_tunnel(self, attempt: Attempt, head: ResponseHead) -> None:
        """The endpoint agrees: to the exchange that is what it is in HTTP/1.1."""
        self._is_open = True
        if self._websocket_key:
            head.fields.append(ACCEPT, accept_for(self._websocket_key))
        attempt.on_head(ResponseHead(SWITCHED, head.fields))

    def on_data(self, piece: bytes) -> None:
        """A piece of the answer's body."""
        if self._attempt is not None:
            self._attempt.on_data(piece)

    def on_end(self) -> None:
        """The answer is complete."""
        attempt = self._attempt
        if attempt is not None:
            if not self._is_open:  # else our direction of the tunnel goes on
                self._over()
            attempt.on_end([])

    def on_reset(self, code: int, *, is_unprocessed: bool) -> None:
        """The endpoint gave up, or broke a rule of this stream."""
        self._stream = None
        endpoint = self._connection.pool.endpoint
        if code == ErrorCode.PROTOCOL_ERROR and not is_unprocessed:
            error: ProxyError = UpstreamProtocolError(f"{endpoint} broke a rule of HTTP/2, or found that we did")
        else:
            error = UpstreamReset(f"{endpoint} reset the stream ({code_name(code)})", not_sent=is_unprocessed)
        if not is_unprocessed:
            error.grpc_status = GRPC_STATUSES.get(code, Grpc.INTERNAL)
        self.fail(error)

    def on_writable(self, *, writable: bool) -> None:
        """The endpoint takes the request's body (again), or is slow."""
        if self._attempt is not None and self._stream is not None:
            self._attempt.on_writable(writable=writable and self._stream.is_writable and self._connection.is_writable)

    def lost(self, error: ProxyError, *, is_stale: bool) -> None:
        """The connection is gone. ``is_stale``: it may have been gone before we asked."""
        silent = self._connection.last_read_s < self._started_s
        if self._attempt is not None and is_stale and silent and not self._has_head:
            self._attempt.reused = True
        self.fail(error)

    def fail(self, error: ProxyError) -> None:
        """The attempt is over without an answer."""
        attempt, self._attempt = self._attempt, None
        self._close(ErrorCode.CANCEL)
        if attempt is not None:
            attempt.on_error(error)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _inform(self, attempt: Attempt, head: ResponseHead) -> None:
        self._informational += 1
        if self._informational > MAX_INFORMATIONAL:
            self.fail(UpstreamProtocolError(f"more than {MAX_INFORMATIONAL} answers 1xx before the final one"))
        else:
            attempt.on_informational(head)

    def _over(self) -> None:
        """The answer is whole; a request that is not is wanted no more."""
        self._attempt = None
        stream = self._stream
        self._close(ErrorCode.NO_ERROR if stream is not None and not stream.local_ended else None)

    def _close(self, code: ErrorCode | None) -> None:
        stream, self._stream = self._stream, None
        if not self._is_begun:
            self._is_begun = True
            self._connection.reserved -= 1
        if stream is not None and code is not None:
            self._connection.codec.reset(stream, code)
            self._connection.touch()
            return
        self._connection.freed()
