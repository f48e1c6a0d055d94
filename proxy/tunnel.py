"""Bytes that pass as they are: what follows an upgrade (WebSocket), a TCP connection, a CONNECT.

To the exchange a tunnel is a request and an answer whose bodies have no end of their own: both sides relay through
``RequestBody`` and ``Attempt`` as ever, with their backpressure. Each side may close its direction first (half-close),
and the tunnel is over when both have.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from mesh.http.headers import Headers
from mesh.http.message import TCP, RequestHead, ResponseHead
from mesh.http.outcome import ClientGone, TunnelIdle, UpstreamReset
from proxy import tls
from proxy.callbacks import Callbacks
from proxy.half_close import half_close
from proxy.request_body import RequestBody
from proxy.splice import WORTH_BYTES, Splice, has_room
from proxy.unsent import holds_unsent

if TYPE_CHECKING:
    from proxy.attempt import Attempt
    from proxy.exchange import Exchange
    from proxy.listener import Listener
    from proxy.trampoline import Trampoline
    from proxy.upstream.endpoint import UpstreamEndpoint


class TunnelEnd:
    """What both ends share: writing, and closing one direction once what was written has gone out."""

    __slots__ = ("_closes_when_empty", "broken", "is_tls", "is_writable", "splice", "spliced_from", "transport")

    def __init__(self, transport: asyncio.Transport | None = None) -> None:
        """``transport`` of a connection that has become a tunnel."""
        self.transport: asyncio.Transport = cast("asyncio.Transport", transport)
        self.is_tls = transport is not None and _is_tls(transport)
        """It is a TLS connection."""
        self.is_writable = True
        self._closes_when_empty = False
        self.splice: Splice | None = None
        """Moves what comes from here, past the transport."""
        self.spliced_from: Splice | None = None
        """Moves what goes out here."""
        self.broken: OSError | None = None
        """What a splice met: the transport does not know."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected: here, or as something else before."""
        self.transport = cast("asyncio.Transport", transport)
        self.is_tls = _is_tls(transport)

    def write(self, data: bytes) -> None:
        """Send bytes on."""
        if not self.transport.is_closing():  # uvloop raises where asyncio shrugs
            self.transport.write(data)

    def half_close(self) -> None:
        """Send no more, once all that was written is out; the other direction goes on."""
        transport = self.transport
        if transport.is_closing():
            return
        if self.is_tls:
            transport.close()  # towards a client; what was written still goes out
        elif not self._closes_when_empty:
            self._closes_when_empty = True
            # uvloop sends at the end of the loop's turn, so that there may be something left whatever the buffer says.
            asyncio.get_running_loop().call_soon(self.half_close)
        elif transport.get_write_buffer_size():
            transport.set_write_buffer_limits(high=0)  # we are told when it is empty: see resume_writing
        else:
            half_close(transport)

    def resume_reading(self) -> None:
        """Take bytes again."""
        if self.splice is None and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_reading(self) -> None:
        """Take no more bytes for now."""
        if self.splice is None and not self.transport.is_closing():
            self.transport.pause_reading()

    def splice_to(self, sink: TunnelEnd) -> None:
        """Have the kernel move to ``sink`` what comes from here, where both are plain TCP."""
        is_possible = self.splice is None and sink.spliced_from is None and not (self.is_tls or sink.is_tls)
        if is_possible and has_room() and not (self.transport.is_closing() or sink.transport.is_closing()):
            self.splice = sink.spliced_from = Splice(self, sink)

    def stop_splicing(self) -> None:
        """The connection is gone."""
        for splice in (self.splice, self.spliced_from):
            if splice is not None:
                splice.stop()

    def on_moved(self, size: int) -> None:
        """So many bytes from here were moved."""
        raise NotImplementedError


def _is_tls(transport: asyncio.BaseTransport) -> bool:
    return transport.get_extra_info("ssl_object") is not None


class TunnelDownstream(TunnelEnd):
    """The client's end. See ``ports.DownstreamStream``."""

    __slots__ = ("_last_s", "_listener", "_plane", "body", "exchange", "peer_address", "peer_port")

    def __init__(self, listener: Listener, transport: asyncio.Transport | None = None) -> None:
        """``transport`` of a connection that ``listener`` has admitted, where it is there already."""
        super().__init__(transport)
        self._listener = listener
        self._plane = listener.plane
        self._last_s = self._plane.now_s
        self.exchange: Exchange | None = None
        self.body = RequestBody(self, keeps=False)
        self.peer_address = ""
        self.peer_port = 0
        if self.is_tls:
            tls.hear_end(self.transport, self.on_close_notify)

    # --- the transport's side ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        super().connection_made(transport)
        if self.is_tls:
            tls.hear_end(transport, self.on_close_notify)

    def on_close_notify(self) -> None:
        """The client sends no more, and may still read."""
        if not self.transport.is_closing():
            self.end_of_client()
            self._plane.trampoline.drain()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self._last_s = self._plane.now_s
        self.body.on_data(data)
        if self._plane.trampoline.dirty:
            self._plane.trampoline.drain()
        if len(data) >= WORTH_BYTES and self.exchange is not None and self.exchange.downstream is self:
            attempt = self.exchange.attempt
            if attempt is not None and isinstance(attempt.stream, TunnelUpstream):
                self.splice_to(attempt.stream)

    def on_moved(self, size: int) -> None:
        """See TunnelEnd."""
        self._last_s = self._plane.now_s
        self.body.received += size

    def touch(self) -> None:
        """Something was sent to the client."""
        self._last_s = self._plane.now_s

    def eof_received(self) -> bool:
        """The client sends no more, and may still read."""
        self.end_of_client()
        self._plane.trampoline.drain()
        return not self.is_tls  # that of TLS is heard of before; here the connection below has ended

    def end_of_client(self) -> None:
        """Its direction is over."""
        if not self.body.ended:
            self.body.on_end([])
            if self.exchange is not None and self.exchange.answered:  # before that it waits for something else
                self.exchange.post(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by either side."""
        self.stop_splicing()
        exc = exc or self.broken
        self._listener.forget(self)
        if self.exchange is not None:
            how = f"reset ({exc})" if exc else "closed"
            self.exchange.post(ClientGone(f"the client {how} the connection before the other side had ended"))
        self._plane.trampoline.drain()

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self.is_writable = False
        if self.exchange is not None:
            self.exchange.on_downstream_writable(writable=False)

    def resume_writing(self) -> None:
        """It has caught up."""
        self.is_writable = True
        if self.spliced_from is not None:
            self.spliced_from.go_on()
        if self._closes_when_empty:
            self.half_close()
        elif self.exchange is not None:
            self.exchange.on_downstream_writable(writable=True)
            self._plane.trampoline.drain()

    def check_time(self, now: float) -> None:
        """End a tunnel in which nothing has moved for long (once a second)."""
        limits = self._listener.limits
        idle_s = limits.tunnel_idle_s
        if self.exchange is not None and self.exchange.request.version == TCP:
            self._plane.recorder.on_progress(self.exchange)
        if self.exchange is None:
            if now - self._last_s > min(idle_s, limits.stall_s):
                self.transport.abort()  # it does not take the last bytes
        elif now - self._last_s > idle_s:
            self._last_s = now
            self.exchange.post(TunnelIdle(f"nothing passed in either direction for {idle_s:g} s"))
            self._plane.trampoline.drain()

    @property
    def has_unsent(self) -> bool:
        """See ClientConnection."""
        return holds_unsent(self.transport, is_tls=self.is_tls)

    def finish(self) -> None:
        """See ClientConnection."""
        self.transport.close()

    # --- the exchange's side ----------------------------------------------------------------------------------------

    def respond(self, head: ResponseHead, pieces: list[bytes], trailers: Headers, *, ended: bool) -> None:
        """See ports.DownstreamStream: an answer of the mesh has no form here but the end of the connection."""
        del head, pieces, trailers, ended
        self.transport.abort()

    def send_informational(self, head: ResponseHead) -> None:
        """See ports.DownstreamStream."""

    def send_data(self, piece: bytes) -> None:
        """See ports.DownstreamStream."""
        self._last_s = self._plane.now_s
        self.write(piece)

    def send_end(self, trailers: Headers) -> None:
        """See ports.DownstreamStream."""
        del trailers
        self.half_close()

    def abort(self) -> None:
        """See ports.DownstreamStream."""
        self.transport.abort()

    def close_after(self) -> None:
        """See ports.DownstreamStream."""

    def pause(self) -> None:
        """See ports.DownstreamStream."""
        self.pause_reading()

    def open_tunnel(self, head: ResponseHead, exchange: Exchange) -> TunnelDownstream:
        """See ports.DownstreamStream: a TCP connection is one from the start."""
        del head, exchange
        return self

    def exchange_done(self, *, request_ended: bool) -> None:
        """See ports.DownstreamStream."""
        del request_ended
        self.exchange = None
        if not self.transport.is_closing():
            self.transport.close()  # what is written still goes out

    def __repr__(self) -> str:
        """For debugging."""
        return f"<TunnelDownstream {self.peer_address}:{self.peer_port}>"


class TunnelUpstream(TunnelEnd):
    """The endpoint's end. See ``ports.UpstreamStream``."""

    __slots__ = ("_attempt", "_connection", "_endpoint", "_has_ended", "_trampoline")

    def __init__(
        self,
        endpoint: UpstreamEndpoint,
        trampoline: Trampoline,
        connection: Callbacks,
        transport: asyncio.Transport,
        attempt: Attempt,
    ) -> None:
        """``connection`` is what the endpoint's pool knows it as."""
        super().__init__(transport)
        self._endpoint = endpoint
        self._trampoline = trampoline
        self._connection = connection
        self._attempt: Attempt | None = attempt
        self._has_ended = False

    # --- the transport's side ---------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes from the endpoint."""
        if self._attempt is not None:
            self._attempt.on_data(data)
            if self._trampoline.dirty or self._trampoline.ready:
                self._trampoline.drain()
            if len(data) >= WORTH_BYTES and self._attempt is not None:
                client = self._attempt.exchange.downstream
                if isinstance(client, TunnelDownstream):
                    self.splice_to(client)

    def on_moved(self, size: int) -> None:
        """See TunnelEnd."""
        if self._attempt is not None:
            self._attempt.body_bytes += size
            client = self._attempt.exchange.downstream
            if isinstance(client, TunnelDownstream):
                client.touch()

    def eof_received(self) -> bool:
        """The endpoint sends no more, and may still read."""
        self._end()
        self._trampoline.drain()
        return not self.is_tls  # TLS closes both directions

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by either side."""
        self.stop_splicing()
        exc = exc or self.broken
        self._connection.connection_lost(exc)  # the pool's books
        if exc is None and not self._has_ended:
            self._end()
        elif exc is not None:
            self._lost(f"reset ({exc})")
        # Else a TLS endpoint closed both directions in order. Like a TCP peer, its client learns by sending more.
        self._trampoline.drain()

    def pause_writing(self) -> None:
        """The endpoint reads slowly."""
        self.is_writable = False
        if self._attempt is not None:
            self._attempt.on_writable(writable=False)

    def resume_writing(self) -> None:
        """It has caught up."""
        self.is_writable = True
        if self.spliced_from is not None:
            self.spliced_from.go_on()
        if self._closes_when_empty and not self.is_tls:
            self.half_close()
        elif self._attempt is not None:
            self._attempt.on_writable(writable=True)
            self._trampoline.drain()

    # --- the attempt's side -----------------------------------------------------------------------------------------

    def start(self, attempt: Attempt, head: RequestHead, added: list[bytes], body: bytes, *, ended: bool) -> None:
        """See ports.UpstreamStream: it has been started."""

    def send_data(self, piece: bytes) -> None:
        """See ports.UpstreamStream."""
        if self.transport.is_closing():
            asyncio.get_running_loop().call_soon(self._lost, "closed")  # not from under the exchange's feet
        else:
            self.transport.write(piece)

    def send_end(self, trailers: Headers) -> None:
        """See ports.UpstreamStream."""
        del trailers
        if self.is_tls:
            self._closes_when_empty = True
            tls.half_close(self.transport)
        else:
            self.half_close()

    def pause(self) -> None:
        """See ports.UpstreamStream."""
        self.pause_reading()

    def cancel(self) -> None:
        """See ports.UpstreamStream: the tunnel is over. What was written still goes out if it ended in order."""
        is_over = self._has_ended and self._closes_when_empty
        self._attempt = None
        if not self.transport.is_closing():
            if is_over:
                self.transport.close()
            else:
                self.transport.abort()

    def _lost(self, how: str) -> None:
        """The endpoint takes no more of what its client sends."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.on_error(UpstreamReset(f"{self._endpoint} {how} the connection before its client had ended"))
            self._trampoline.drain()

    def _end(self) -> None:
        """Its direction is over; the attempt goes on to hear of the other one."""
        if not self._has_ended:
            self._has_ended = True
            if self._attempt is not None:
                self._attempt.on_end([])
