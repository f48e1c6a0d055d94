"""One HTTP/1.1 connection of a client: reads its requests in turn and writes their answers.

A shell: it moves bytes between the transport, the codec and the exchange under way. One exchange at a time;
pipelined requests wait in the buffer and are answered in order (RFC 9112 §9.3.2). Every wait on the client has its
limit (``ConnectionLimits``), every buffer its size.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from mesh.http.headers import Headers
from mesh.http.message import SWITCHED, RequestHead, ResponseHead
from mesh.http.outcome import BadRequest, ClientGone, InternalError, ProxyError, RequestTimeout
from proxy.callbacks import set_callbacks
from proxy.exchange import Exchange
from proxy.grpc_web import GrpcWebStream
from proxy.half_close import half_close
from proxy.http1.body import BodyReader, ChunkedReader, LengthReader
from proxy.http1.codec import check_partial_head, chunk, last_chunk, parse_request, response_bytes, upgrade_lines
from proxy.http1.fields import HEAD_END
from proxy.http2.downstream import Http2Downstream
from proxy.request_body import RequestBody
from proxy.tunnel import TunnelDownstream
from proxy.unsent import holds_unsent

if TYPE_CHECKING:
    from proxy.listener import Listener


logger = logging.getLogger(__name__)

HTTP2_HEAD: Final = b"PRI * HTTP/2.0\r\n\r\n"
HTTP2_HEAD_BYTES: Final = len(HTTP2_HEAD) - 4
MAX_EMPTY_LINES: Final = 8  # old clients send one behind a body; without a limit they would keep a connection alive
_BODILESS: Final[tuple[int, ...]] = (204, 304)  # RFC 9112 §6.3: without a body, and so without a length, whatever comes
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close with RST


class Http1Downstream:
    """See the module."""

    __slots__ = (
        "_buffer",
        "_checked",
        "_chunked_answer",
        "_discarded",
        "_empty_lines",
        "_ends_by_close",
        "_keep_alive",
        "_last_read_s",
        "_lingering",
        "_listener",
        "_plane",
        "_reading_paused",
        "_reader",
        "_since_s",
        "_version",
        "_without_body",
        "exchange",
        "is_tls",
        "is_writable",
        "limits",
        "peer_address",
        "peer_port",
        "served",
        "transport",
    )

    def __init__(self, listener: Listener) -> None:
        """A client of ``listener``, not yet connected."""
        self._listener = listener
        self._plane = listener.plane
        self.limits = listener.limits
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.exchange: Exchange | None = None
        self.is_writable = True
        self.is_tls = False
        self.peer_address = ""
        self.peer_port = 0
        self.served = 0
        self._empty_lines = 0
        self._buffer = b""
        self._checked = 0
        self._reader: BodyReader | None = None
        self._keep_alive = True
        self._version = b"1.1"
        self._chunked_answer = False
        self._without_body = False
        self._ends_by_close = False
        self._discarded = 0
        self._lingering = False
        self._reading_paused = False
        self._since_s = 0.0
        self._last_read_s = 0.0

    # --- the transport's side ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self.transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        if peer:
            self.peer_address, self.peer_port = peer[0], peer[1]
        self._last_read_s = self._plane.now_s
        if self._listener.tls is not None:
            self.is_tls = transport.get_extra_info("ssl_object") is not None
        if not self._listener.admit(self):
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, of its body or of pipelined ones."""
        if self._lingering:
            return
        self._last_read_s = self._plane.now_s
        if self._reader is not None:
            self._read_body(data)
        else:
            self._buffer = self._buffer + data if self._buffer else data
        if self.exchange is None and self.is_writable:
            self._advance()
        elif len(self._buffer) > self.limits.pipelined_bytes:
            self._pause_reading()
        trampoline = self._plane.trampoline
        if trampoline.ready or trampoline.dirty:
            trampoline.drain()

    def eof_received(self) -> bool:
        """The client closed its side: as with Envoy and nginx that means it no longer waits for an answer."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by either side."""
        self._listener.forget(self)
        self._buffer = b""
        self._lingering = True
        if self.exchange is not None:
            how = f"reset ({exc})" if exc else "closed"
            self.exchange.post(ClientGone(f"the client {how} the connection before its answer was complete"))
        self._plane.trampoline.drain()

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self.is_writable = False
        if self.exchange is not None:
            self.exchange.on_downstream_writable(writable=False)

    def resume_writing(self) -> None:
        """It has caught up."""
        self.is_writable = True
        self._last_read_s = self._plane.now_s
        if self.exchange is not None:
            self.exchange.on_downstream_writable(writable=True)
        elif not self._lingering and not self.transport.is_closing():
            self.resume_reading()
            self._plane.trampoline.post(self, None)
        self._plane.trampoline.drain()

    def check_time(self, now: float) -> None:
        """Close a connection that took too long (once a second)."""
        quiet_s = now - self._last_read_s
        if self._lingering:
            if quiet_s <= self.limits.stall_s and self.has_unsent:
                self._since_s = now  # an answer from before is still being taken
            elif now - self._since_s > self.limits.linger_s:
                self.transport.abort()
        elif self.transport.is_closing():
            if quiet_s > self.limits.stall_s:
                self.transport.abort()  # it was closed, but the client never took the last of its answer
        elif self.exchange is not None or not self.is_writable:
            is_waiting_for_client = not self.is_writable or (self._reader is not None and not self._reading_paused)
            if is_waiting_for_client and quiet_s > self.limits.stall_s:
                self.transport.abort()
        elif self._buffer:
            if now - self._since_s > self.limits.head_s:
                self._refuse(RequestTimeout(f"the request head was not complete within {self.limits.head_s:g} s"))
        elif quiet_s > (self.limits.idle_s if self.served else self.limits.first_byte_s):
            self.transport.close()

    @property
    def has_unsent(self) -> bool:
        """See ClientConnection."""
        return holds_unsent(self.transport, is_tls=self.is_tls)

    def finish(self) -> None:
        """See ClientConnection."""
        self.transport.close()

    # --- requests ---------------------------------------------------------------------------------------------------

    def resume(self, _event: object) -> None:
        """See Resumable: an exchange is over and the next request waits in the buffer."""
        if self.exchange is None and not self._lingering:
            self._advance()

    def _advance(self) -> None:
        """Start exchanges for what the buffer holds, until one has to wait, or the client has to take answers first.

        Without the latter a client that only ever asks would have its answers pile up here.
        """
        while self.exchange is None and self._buffer and self.is_writable and not self._lingering:
            if self._reader is not None:
                data, self._buffer = self._buffer, b""
                self._read_body(data)
                continue
            try:
                if not self._begin():
                    return
            except ProxyError as error:
                self._refuse(error)
            except Exception as error:  # as in _read_body
                logger.exception("bug while a request was read")
                self._refuse(InternalError.of(error))

    def _begin(self) -> bool:
        """Begin an exchange with the next whole head; False where it is not whole yet. Raises BadRequest."""
        buffer = self._buffer
        end = buffer.find(HEAD_END, self._checked)
        if end <= 0:
            if buffer.startswith(b"\r\n"):
                self._checked = 0
                return self._skip_empty_line()
            if not self._since_s:
                self._since_s = self._plane.now_s
            check_partial_head(buffer, self.limits.head, self._checked)
            # What was looked at is not looked at again, but for an end of the head that may be cut: else a head that
            # comes byte by byte costs the square of its length (50 KB: half a minute).
            self._checked = max(0, len(buffer) - 3)
            return False
        self._checked = 0
        if buffer.startswith(b"\r\n"):
            return self._skip_empty_line()
        if end == HTTP2_HEAD_BYTES and not self.served and buffer.startswith(HTTP2_HEAD):
            self._become_http2(buffer)
            return False
        request, self._keep_alive = parse_request(buffer[: end + 4], self.limits.head)
        rest = buffer[end + 4 :]
        self._since_s = 0.0
        self._empty_lines = 0
        self._version = request.version
        self._without_body = request.method == b"HEAD"
        self.served += 1
        if request.has_body:
            self._begin_with_body(request, rest)
        elif request.grpc is not None:
            self._buffer = rest
            exchange = self.exchange = Exchange(self._listener, GrpcWebStream(self, request), request, None)
            exchange.begin()
        else:
            self._buffer = rest
            exchange = self.exchange = Exchange(self._listener, self, request, None)
            exchange.begin()
        return True

    def _become_http2(self, data: bytes) -> None:
        """The client spoke HTTP/2 from its first byte (RFC 9113 §3.3)."""
        self._lingering = True
        self._buffer = b""
        Http2Downstream.take_over(self._listener, self, data)

    def _skip_empty_line(self) -> bool:
        """RFC 9112 §2.2: an empty line before a request line is ignored. Gives whether there is more to look at."""
        self._empty_lines += 1
        if self._empty_lines > MAX_EMPTY_LINES:
            message = f"more than {MAX_EMPTY_LINES} empty lines before a request (RFC 9112 §2.2)"
            raise BadRequest(message)
        self._buffer = self._buffer[2:]
        self._since_s = 0.0
        return bool(self._buffer)

    def _begin_with_body(self, request: RequestHead, rest: bytes) -> None:
        length = request.content_length
        reader: BodyReader = ChunkedReader(BadRequest) if length is None else LengthReader(length)
        web = None if request.grpc is None else GrpcWebStream(self, request)
        body = RequestBody(self) if web is None or web.body is None else web.body
        self._buffer = reader.feed(rest, body.on_data) if rest else b""
        if reader.ended:
            body.on_end(reader.trailers)
        else:
            self._reader = reader
            if not body.is_client_paused:
                self.resume_reading()  # what stopped it, too much read ahead, has become this body
        exchange = self.exchange = Exchange(self._listener, web or self, request, body)
        exchange.begin()
        if web is not None:
            web.attach_exchange(exchange)

    def _read_body(self, data: bytes) -> None:
        reader, exchange = self._reader, self.exchange
        assert reader is not None  # noqa: S101 - only called with one
        body = exchange.body if exchange is not None else None
        try:
            self._buffer = reader.feed(data, self._discard if body is None else body.on_data)
            if reader.ended:
                self._reader = None
                if body is not None:
                    body.on_end(reader.trailers)
        except ProxyError as error:
            self._break_body_off(error)
        except Exception as error:  # raised on, it would end in the transport, and the endpoint would wait for the rest
            logger.exception("bug while a body was read")
            self._break_body_off(InternalError.of(error))

    def _break_body_off(self, error: ProxyError) -> None:
        if self.exchange is None:
            self._linger()
        else:
            self._keep_alive = False
            self._reader = None
            self.exchange.post(error)

    def _discard(self, piece: bytes) -> None:
        """The rest of a body whose exchange is over: read up to a limit, so that the connection can be used again."""
        self._discarded += len(piece)
        if self._discarded > self.limits.discard_bytes:
            self._linger()

    # --- the exchange's side ----------------------------------------------------------------------------------------

    def respond(self, head: ResponseHead, pieces: list[bytes], trailers: Headers, *, ended: bool) -> None:
        """See DownstreamStream."""
        if self._listener.is_draining:
            self._keep_alive = False
        length = head.content_length
        if length is not None and self._keep_alive and self._version == b"1.1" and not head.announces_trailers:
            self._chunked_answer = self._ends_by_close = False
            framing = b"content-length: %d\r\n\r\n" % length
        else:
            framing = self._framing(head)
        if self._without_body:
            pieces = []
        elif self._chunked_answer:
            pieces = [chunk(piece) for piece in pieces]
        data = response_bytes(head, framing, *pieces)
        if ended and self._chunked_answer:
            data += last_chunk(trailers)
        if not self.transport.is_closing():  # as in _write()
            if ended and not self._keep_alive:
                # The close that follows then goes out in one packet with this; with its acknowledgement it is a
                # quarter of what the kernel spends on a short connection.
                self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            self.transport.write(data)

    def send_informational(self, head: ResponseHead) -> None:
        """See DownstreamStream. RFC 9110 §15.2: never to an HTTP/1.0 client."""
        if self._version == b"1.1":
            self._write(response_bytes(head, b"\r\n"))

    def send_data(self, piece: bytes) -> None:
        """See DownstreamStream."""
        if not self._without_body:
            self._write(chunk(piece) if self._chunked_answer else piece)

    def send_end(self, trailers: Headers) -> None:
        """See DownstreamStream."""
        if self._chunked_answer:
            self._write(last_chunk(trailers))

    def abort(self) -> None:
        """See DownstreamStream: only closing tells an HTTP/1.1 client that the answer is not whole (RFC 9112 §8)."""
        self._keep_alive = False
        self._lingering = True
        if self._ends_by_close:
            # A plain close would look like the proper end of this body: only a reset says that it is broken.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()
        else:
            self.transport.close()

    def close_after(self) -> None:
        """See DownstreamStream."""
        self._keep_alive = False

    def open_tunnel(self, head: ResponseHead, exchange: Exchange) -> TunnelDownstream:
        """See DownstreamStream: 101, to CONNECT 200 without a length (RFC 9110 §9.3.6), then bytes as they are."""
        assert exchange.request.upgrade is not None  # noqa: S101 - only what asked for it is answered so
        follows = upgrade_lines(exchange.request.upgrade) if head.status == SWITCHED else b""
        self._write(response_bytes(head, follows + b"\r\n"))
        tunnel = TunnelDownstream(self._listener, self.transport)
        tunnel.peer_address, tunnel.peer_port = self.peer_address, self.peer_port
        tunnel.is_writable = self.is_writable
        tunnel.exchange, self.exchange = exchange, None
        early, self._buffer = self._buffer, b""
        self._lingering = True
        self._listener.replace(self, tunnel)
        set_callbacks(self.transport, tunnel)
        if early:
            tunnel.body.on_data(early)  # sent before it knew
        if self._reading_paused:
            tunnel.resume_reading()
        return tunnel

    def pause(self) -> None:
        """See DownstreamStream."""
        self._pause_reading()

    def resume_reading(self) -> None:
        """See DownstreamStream."""
        if self._reading_paused:
            self._reading_paused = False
            self._last_read_s = self._plane.now_s
            self._unless_closing(self.transport.resume_reading)

    def exchange_done(self, *, request_ended: bool) -> None:
        """See DownstreamStream."""
        self.exchange = None
        self._last_read_s = self._plane.now_s
        if not self._keep_alive:
            if request_ended and not self._buffer:
                self.transport.close()
            else:
                self._linger()
            return
        self._discarded = 0
        if len(self._buffer) <= self.limits.pipelined_bytes:  # else each answer would let another read pile up
            self.resume_reading()
        if self._buffer:
            self._plane.trampoline.post(self, None)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _framing(self, head: ResponseHead) -> bytes:
        """The last lines of an answer's head: how its body ends and what becomes of the connection."""
        self._chunked_answer = self._ends_by_close = False
        lines: list[bytes] = []
        if head.announces_trailers and head.has_body and self._version == b"1.1" and not self._without_body:
            self._chunked_answer = True  # only chunks have a place for them
            lines.append(b"transfer-encoding: chunked\r\n")
        elif head.content_length is not None:
            lines.append(b"content-length: %d\r\n" % head.content_length)
        elif self._without_body or head.status in _BODILESS:
            pass
        elif not head.has_body:
            lines.append(b"content-length: 0\r\n")  # HTTP/2 ends a stream; here a client would wait (RFC 9112 §6.3)
        elif self._version == b"1.1":
            self._chunked_answer = True
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            self._ends_by_close = True
            self._keep_alive = False  # RFC 9112 §6.3: an HTTP/1.0 client reads until the end
        if not self._keep_alive:
            lines.append(b"connection: close\r\n")
        elif self._version == b"1.0":
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def _write(self, data: bytes) -> None:
        # uvloop raises where asyncio shrugs: the connection may be gone a moment before we are told.
        if not self.transport.is_closing():
            self.transport.write(data)

    def _unless_closing(self, do: Callable[[], None]) -> None:
        if not self.transport.is_closing():
            do()

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self._unless_closing(self.transport.pause_reading)

    def _refuse(self, error: ProxyError) -> None:
        """Answer a request that never became an exchange, and close."""
        self._keep_alive = False
        self._without_body = False
        self._version = b"1.1"
        if not self.served:
            self._listener.tell_of_foreign(self, self._buffer)
        self._listener.refuse_unread(self, error)
        self._linger()

    def _linger(self) -> None:
        """Close so that the client can still read what was sent (RFC 9112 §9.6): half-close, discard what comes."""
        self._lingering = True
        self._buffer = b""
        self._reader = None
        self._since_s = self._plane.now_s
        self.resume_reading()
        # uvloop sends at the end of the loop's turn: half-close after that.
        self._plane.call_later(0.0, self._half_close)

    def _half_close(self) -> None:
        if self.transport.is_closing():
            return
        if self.is_tls or self.transport.get_write_buffer_size():  # TLS cannot be half closed in Python
            self.transport.close()
            return
        half_close(self.transport)

    def __repr__(self) -> str:
        """For debugging: who, and what it does."""
        state = "lingering" if self._lingering else "busy" if self.exchange else "idle"
        return f"<Http1Downstream {self.peer_address}:{self.peer_port} {state} served={self.served}>"
