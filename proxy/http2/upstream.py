"""An HTTP/2 connection to an endpoint, shared by many attempts: one stream for each.

A shell: it moves bytes between the transport, the codec and the attempts. Which connection an attempt gets is its
pool's decision (``upstream/http2_pool.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.http.headers import Headers
from mesh.http.message import RequestHead, ResponseHead
from mesh.http.outcome import ProxyError, UpstreamProtocolError, UpstreamReset
from proxy.http2.codec import Stream
from proxy.http2.connection import Http2Connection
from proxy.http2.errors import ErrorCode, StreamFault, code_name
from proxy.http2.messages import request_fields, response_head, trailers

if TYPE_CHECKING:
    from proxy.attempt import Attempt
    from proxy.trampoline import Trampoline
    from proxy.upstream.http2_pool import Http2Pool

MAX_INFORMATIONAL = 64  # as in HTTP/1.1


class Http2Upstream(Http2Connection):
    """See the module. ``idle_since_s`` is set when its last stream ends."""

    is_server = False

    def __init__(self, pool: Http2Pool, trampoline: Trampoline) -> None:
        """A connection of ``pool``, not yet made."""
        super().__init__(trampoline)
        self.pool = pool
        self.served = 0
        self.reserved = 0
        """Streams given to attempts that have not begun them yet."""
        self.idle_since_s = 0.0

    @property
    def room(self) -> int:
        """How many more streams it takes now."""
        return 0 if self.is_closed else self.codec.room - self.reserved

    def open(self) -> UpstreamStream:
        """A stream for an attempt; ask ``room`` before."""
        self.reserved += 1
        return UpstreamStream(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by either side."""
        self.is_closed = True
        self.pool.lost(self)
        for stream in tuple(self.codec.streams.values()):
            if isinstance(stream.owner, UpstreamStream):
                stream.owner.fail(self._why_lost(exc))
        self.codec.streams.clear()
        self._trampoline.drain()

    def _why_lost(self, exc: Exception | None) -> ProxyError:
        endpoint, fault = self.pool.endpoint, self.fault
        if fault is not None:
            return UpstreamProtocolError(f"{endpoint} was spoken to in HTTP/2, and broke a rule of it: {fault.message}")
        how = f"reset ({exc})" if exc else "closed"
        return UpstreamReset(f"{endpoint} {how} the connection before its answer was whole")

    def on_goaway(self, code: int, message: bytes) -> None:
        """The endpoint takes no more streams: those under way are finished, new ones go elsewhere."""
        del code, message
        self.pool.retire(self)

    def stream_over(self) -> None:
        """One stream fewer."""
        self.pool.freed(self)

    def __repr__(self) -> str:
        """For debugging."""
        return f"<Http2Upstream {self.pool.endpoint} streams={len(self.codec.streams)} served={self.served}>"


class UpstreamStream:
    """One attempt's way to an endpoint. See ``ports.UpstreamStream`` and ``codec.Owner``."""

    __slots__ = ("_attempt", "_connection", "_has_head", "_informational", "_is_begun", "_stream")

    def __init__(self, connection: Http2Upstream) -> None:
        """Nothing is sent yet; its number is taken when it starts, so that numbers go out in order (§5.1.1)."""
        self._connection = connection
        self._stream: Stream | None = None
        self._attempt: Attempt | None = None
        self._has_head = False
        self._informational = 0
        self._is_begun = False

    # --- the attempt's side -----------------------------------------------------------------------------------------

    def start(self, attempt: Attempt, head: RequestHead, added: list[bytes], body: bytes, *, ended: bool) -> None:
        """See ports.UpstreamStream."""
        connection = self._connection
        self._attempt = attempt
        self._is_begun = True
        connection.reserved -= 1
        if connection.is_closed or not connection.codec.room:
            attempt.on_error(UpstreamReset(f"{connection.pool.endpoint} takes no more streams", not_sent=True))
            self._attempt = None
            return
        codec = connection.codec
        attempt.reused = connection.served > 0
        connection.served += 1
        stream = self._stream = codec.open()
        stream.owner = self
        fields = request_fields(head, added)
        if not head.has_body:
            codec.send_headers(stream, fields, ended=True)
        else:
            codec.send_headers(stream, fields, ended=False)
            if ended:
                codec.send_last(stream, body, attempt.exchange.request_trailers)
            elif body:
                codec.send_data(stream, body)
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
        self._close(ErrorCode.CANCEL)

    # --- what the endpoint sends ------------------------------------------------------------------------------------

    def on_headers(self, fields: Headers, *, ended: bool) -> None:
        """The answer's head, 1xx too, or its trailers."""
        attempt = self._attempt
        if attempt is None:
            return
        try:
            if self._has_head:
                self._over()
                attempt.on_end(trailers(fields))
                return
            head = response_head(fields, ended=ended)
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
        if ended:
            self._over()
            attempt.on_answer(head, b"")
            return
        if self._stream is not None and attempt.method != b"HEAD" and head.status != 304:
            self._stream.expected = head.content_length
        attempt.on_head(head)

    def on_data(self, piece: bytes) -> None:
        """A piece of the answer's body."""
        if self._attempt is not None:
            self._attempt.on_data(piece)

    def on_end(self) -> None:
        """The answer is complete."""
        attempt = self._attempt
        if attempt is not None:
            self._over()
            attempt.on_end([])

    def on_reset(self, code: int, *, is_unprocessed: bool) -> None:
        """The endpoint gave up, or broke a rule of this stream."""
        self._stream = None
        endpoint = self._connection.pool.endpoint
        if code == ErrorCode.PROTOCOL_ERROR and not is_unprocessed:
            self.fail(UpstreamProtocolError(f"{endpoint} broke a rule of HTTP/2, or found that we did"))
        else:
            message = f"{endpoint} reset the stream ({code_name(code)})"
            self.fail(UpstreamReset(message, not_sent=is_unprocessed))

    def on_writable(self, *, writable: bool) -> None:
        """The endpoint takes the request's body (again), or is slow."""
        if self._attempt is not None and self._stream is not None:
            self._attempt.on_writable(writable=writable and self._stream.is_writable and self._connection.is_writable)

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
        self._connection.stream_over()
