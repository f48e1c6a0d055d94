"""One HTTP/1.1 connection to an endpoint: sends one request at a time and reads its answer.

A shell: it moves bytes between the transport, the codec and the attempt it works for, and keeps no rules. When an
answer is complete the connection goes back to its endpoint's pool, unless something about it is in doubt.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Final, cast

from mesh.http.connect import TUNNEL
from mesh.http.headers import Headers
from mesh.http.message import SWITCHED, TCP, WEBSOCKET, RequestHead, ResponseHead
from mesh.http.outcome import ProxyError, UpstreamProtocolError, UpstreamReset
from proxy.callbacks import set_callbacks
from proxy.http1.body import BodyReader, ChunkedReader, LengthReader, UntilCloseReader
from proxy.http1.codec import CHUNKED, UNTIL_CLOSE, chunk, is_chunked, last_chunk, parse_response, request_bytes
from proxy.http1.fields import HEAD_END
from proxy.http1.limits import DEFAULT_LIMITS
from proxy.tunnel import TunnelUpstream
from proxy.websocket import ACCEPT, KEY, accept_for, new_key

if TYPE_CHECKING:
    from proxy.attempt import Attempt
    from proxy.trampoline import Trampoline
    from proxy.upstream.endpoint import UpstreamEndpoint


MAX_INFORMATIONAL: Final = 64  # a program tells of progress now and then, but an answer must have an end


class Http1Upstream:
    """See the module. ``idle_since_s`` is set by the pool."""

    __slots__ = (
        "_buffer",
        "_chunked_request",
        "_informational",
        "_is_paused",
        "_keep_alive",
        "_reader",
        "_request_ended",
        "_trampoline",
        "_upgrade",
        "_websocket_key",
        "attempt",
        "endpoint",
        "generation",
        "idle_since_s",
        "is_closed",
        "served",
        "transport",
    )

    def __init__(self, endpoint: UpstreamEndpoint, trampoline: Trampoline) -> None:
        """A connection of ``endpoint``, not yet made."""
        self.endpoint = endpoint
        self._trampoline = trampoline
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.attempt: Attempt | None = None
        self.idle_since_s = 0.0
        self.generation = 0
        """The endpoint's when it was made."""
        self.is_closed = False
        self.served = 0
        self._buffer = b""
        self._reader: BodyReader | None = None
        self._keep_alive = False
        self._request_ended = False
        self._informational = 0
        self._is_paused = False
        self._chunked_request = False
        self._upgrade: bytes | None = None
        self._websocket_key = b""

    # --- the attempt's side -----------------------------------------------------------------------------------------

    def start(self, attempt: Attempt, head: RequestHead, added: list[bytes], body: bytes, *, ended: bool) -> None:
        """See UpstreamStream."""
        self.attempt = attempt
        upgrade = head.upgrade
        if head.version == TCP or self._buffer or (upgrade is not None and upgrade == TUNNEL):
            self._start_early(attempt, head)
            return
        attempt.reused = self.served > 0
        self.served += 1
        self._request_ended = ended
        self._informational = 0
        self._upgrade = upgrade
        self._websocket_key = b""
        if upgrade is not None and upgrade == WEBSOCKET and head.header(KEY) is None:
            self._websocket_key = new_key()  # the client spoke HTTP/2, which has none (RFC 8441 §5)
            added.append(b"%b: %b" % (KEY, self._websocket_key))
        data = request_bytes(head, added)
        if head.has_body:
            self._chunked_request = is_chunked(head)
            if body:
                data += chunk(body) if self._chunked_request else body
            if ended and self._chunked_request:
                data += last_chunk(attempt.exchange.request_trailers)
        if not self.transport.is_closing():  # as in _write()
            self.transport.write(data)

    def _start_early(self, attempt: Attempt, head: RequestHead) -> None:
        """TCP and CONNECT, where the endpoint may have spoken already; or HTTP, where it must not have."""
        early, self._buffer = self._buffer, b""
        if head.version != TCP and head.upgrade != TUNNEL:
            self._fail(UpstreamProtocolError(f"{self.endpoint} spoke before it was asked: that is no HTTP"))
            return
        self.served += 1
        self._become_tunnel(attempt, ResponseHead(SWITCHED), early)
        self.resume_reading()

    def send_data(self, piece: bytes) -> None:
        """See UpstreamStream."""
        self._write(chunk(piece) if self._chunked_request else piece)

    def send_end(self, trailers: Headers) -> None:
        """See UpstreamStream."""
        self._request_ended = True
        if self._chunked_request:
            self._write(last_chunk(trailers))

    def pause(self) -> None:
        """See UpstreamStream."""
        self._is_paused = True
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """See UpstreamStream."""
        self._is_paused = False
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def cancel(self) -> None:
        """See UpstreamStream: in HTTP/1.1 only closing tells the endpoint; one that was asked nothing goes back."""
        if self.attempt is None:
            self.endpoint.release(self)
        else:
            self.attempt = None
            self.close()

    def close(self) -> None:
        """Close at once; what is unsent is of no use to anybody."""
        self.is_closed = True
        if self.transport is not None:
            self.transport.abort()

    def is_stale(self) -> bool:
        """Tell whether an idle connection was closed, or spoken on, by its endpoint without our having read it yet.

        Costs a system call; asked before a request that could not be repeated goes out on it.
        """
        if self.is_closed or self.transport.is_closing():
            return True
        poller = select.poll()
        poller.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poller.poll(0))

    # --- the transport's side ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer, or of nothing that was asked."""
        attempt = self.attempt
        if attempt is None:
            if self.served or self._buffer:
                self.close()
            else:  # of a server that speaks first, before its client has got the connection
                self._buffer = data
                self.pause()
            return
        try:
            if self._reader is None:
                self._read_head(attempt, self._buffer + data if self._buffer else data)
            else:
                self._read_body(attempt, self._reader, data)
        except ProxyError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - raised on, it would end in the transport; the attempt logs it
            self.attempt = None
            self.close()
            attempt.broke(error)
        self._trampoline.drain()

    def eof_received(self) -> bool:
        """The endpoint closed its side; nothing more can be asked of it."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by either side."""
        self.is_closed = True
        self.endpoint.lost(self)
        attempt = self.attempt
        if attempt is not None:
            self.attempt = None
            try:
                if isinstance(self._reader, UntilCloseReader) and exc is None:
                    attempt.on_end([])
                else:
                    attempt.on_error(self._reset_error(exc))
            except Exception as error:  # noqa: BLE001 - as above
                attempt.broke(error)
            self._trampoline.drain()

    def pause_writing(self) -> None:
        """The endpoint reads slowly."""
        if self.attempt is not None:
            self.attempt.on_writable(writable=False)

    def resume_writing(self) -> None:
        """It has caught up."""
        if self.attempt is not None:
            self.attempt.on_writable(writable=True)
            self._trampoline.drain()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        # uvloop raises where asyncio shrugs. A connection that is gone tells its attempt so in connection_lost().
        if not self.transport.is_closing():
            self.transport.write(data)

    def _read_head(self, attempt: Attempt, data: bytes) -> None:
        while True:
            end = data.find(HEAD_END)
            if end < 0 or end > DEFAULT_LIMITS.head_bytes:
                if len(data) > DEFAULT_LIMITS.head_bytes:
                    message = f"the answer's head is larger than {DEFAULT_LIMITS.head_bytes} bytes"
                    raise UpstreamProtocolError(message)
                self._buffer = data
                return
            head, framing, self._keep_alive = parse_response(data[: end + 4], attempt.method, upgrade=self._upgrade)
            data = data[end + 4 :]
            if head.status >= 200:
                break
            if head.status == SWITCHED:
                self._become_tunnel(attempt, head, data)
                return
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                message = f"more than {MAX_INFORMATIONAL} answers 1xx before the final one"
                raise UpstreamProtocolError(message)
            attempt.on_informational(head)
        self._buffer = b""
        if framing == len(data):  # the whole body is here already, and no more than that: the common case
            self.attempt = None
            if self._keep_alive and self._request_ended:
                self.endpoint.release(self)
            else:
                self.close()
            attempt.on_answer(head, data)
            return
        attempt.on_head(head)
        self._reader = reader = _reader_for(framing)
        if data:
            self._read_body(attempt, reader, data)

    def _become_tunnel(self, attempt: Attempt, head: ResponseHead, data: bytes) -> None:
        """Pass on what follows as it is."""
        if self._websocket_key:
            if head.fields.get(ACCEPT) != accept_for(self._websocket_key):
                message = f"{self.endpoint} accepted another WebSocket key than it was given (RFC 6455 §4.1)"
                raise UpstreamProtocolError(message)
            head.fields.remove((ACCEPT,))
        self.attempt = None
        self._buffer = b""
        tunnel = TunnelUpstream(self.endpoint, self._trampoline, self, self.transport, attempt)
        set_callbacks(self.transport, tunnel)
        attempt.stream = tunnel
        attempt.on_head(head)
        if data:
            attempt.on_data(data)

    def _read_body(self, attempt: Attempt, reader: BodyReader, data: bytes) -> None:
        rest = reader.feed(data, attempt.on_data)
        if reader.ended:
            self._finish(attempt, reader.trailers, rest=bool(rest))

    def _finish(self, attempt: Attempt, trailers: Headers, *, rest: bool) -> None:
        """The answer is complete: back to the pool before the attempt goes on, so that the next request finds us."""
        self.attempt = None
        self._reader = None
        if self._is_paused:
            self.resume_reading()  # the last piece was too much for its client, and others come after it
        if self._keep_alive and self._request_ended and not rest:
            self.endpoint.release(self)
        else:
            self.close()
        attempt.on_end(trailers)

    def _fail(self, error: ProxyError) -> None:
        attempt, self.attempt = self.attempt, None
        self.close()
        if attempt is not None:
            attempt.on_error(error)

    def _reset_error(self, exc: Exception | None) -> ProxyError:
        how = f"reset ({exc})" if exc else "closed"
        if self._reader is not None or self._buffer:
            return UpstreamReset(f"{self.endpoint} {how} the connection in the middle of its answer")
        return UpstreamReset(f"{self.endpoint} {how} the connection before it answered")

    def __repr__(self) -> str:
        """For debugging: whom to, and what it does."""
        state = "closed" if self.is_closed else "busy" if self.attempt else "idle"
        return f"<Http1Upstream {self.endpoint} {state} served={self.served}>"


def _reader_for(framing: int) -> BodyReader:
    if framing == CHUNKED:
        return ChunkedReader(UpstreamProtocolError)
    if framing == UNTIL_CLOSE:
        return UntilCloseReader()
    return LengthReader(framing)
