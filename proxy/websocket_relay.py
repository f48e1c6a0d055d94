"""A WebSocket that passes through: its bytes as they are, until the sidecar drains and tells both sides.

Then each side gets a Close with 1001 (going away) at the next end of a frame in its direction, as if from the other
one, and of what the other one still sends it gets nothing more (RFC 6455 §5.5.1: behind a Close there are no frames).
That includes the Close that each side answers with: it was ours that was answered. The server then closes the
connection (§7.1.1) and its end is passed on as ever. Whoever lets neither come is cut ``CLOSE_S`` after both were told;
a frame that never ends leaves its direction untold, and is cut with all that is left when the drain's time is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from mesh.http.headers import Headers
from mesh.http.message import ResponseHead
from mesh.http.outcome import Draining
from proxy.websocket_frames import FrameTracker, going_away

if TYPE_CHECKING:
    from proxy.dataplane import DataPlane
    from proxy.exchange import Exchange
    from proxy.listener import Listener
    from proxy.ports import BodySink, DownstreamTunnel
    from proxy.request_body import RequestBody

CLOSE_S = 5.0  # browsers and servers wait for an answer to their Close for about as long


class Direction:
    """What one side is sent. See ``ports.BodySink``."""

    __slots__ = ("_frames", "_is_leaving", "_on_told", "_sink", "is_told", "masks")

    def __init__(self, sink: BodySink, on_told: Callable[[], None], *, masks: bool) -> None:
        """``masks``: to a server, which takes nothing else (RFC 6455 §5.1). ``on_told`` is called once."""
        self._sink = sink
        self._on_told = on_told
        self._frames = FrameTracker()
        self._is_leaving = False
        self.masks = masks
        self.is_told = False
        """It has its Close, or its end."""

    def send_data(self, piece: bytes) -> None:
        """Pass it on; with a Close behind the frame under way, and nothing more, where that is wanted."""
        if self._is_leaving:
            self._leave(piece)
        else:
            self._frames.follow(piece)
            self._sink.send_data(piece)

    def send_end(self, trailers: Headers) -> None:
        """That side's other end is done."""
        self._sink.send_end(trailers)
        self._told()

    def tell(self) -> None:
        """Have a Close sent as soon as no frame is under way."""
        if not self._is_leaving:
            self._is_leaving = True
            self._leave(b"")

    def _leave(self, piece: bytes) -> None:
        if self._has_closed():  # the other side's own Close, and all that follows of it
            self._told()
            self._send_some(piece)
            return
        if self.is_told:
            return
        end = self._frames.end_in(piece)
        if end < 0:
            self._frames.follow(piece)
            self._send_some(piece)
            return
        self._frames.follow(piece[:end])
        if self._has_closed():
            self._send_some(piece)
        else:
            self._sink.send_data(piece[:end] + going_away(masks=self.masks))
        self._told()

    def _has_closed(self) -> bool:
        return self._frames.has_closed

    def _send_some(self, piece: bytes) -> None:
        if piece:
            self._sink.send_data(piece)

    def _told(self) -> None:
        if not self.is_told:
            self.is_told = True
            self._on_told()


class WebSocketRelay:
    """Both directions of one exchange. See ``ports.DownstreamTunnel``: to the exchange it is the client's end."""

    __slots__ = (
        "_exchange",
        "_is_leaving",
        "_timer",
        "_to_client",
        "_tunnel",
        "body",
        "peer_address",
        "peer_port",
        "send_data",
        "send_end",
        "to_server",
    )

    def __init__(self, exchange: Exchange, tunnel: DownstreamTunnel, server: BodySink) -> None:
        """``tunnel`` is the client's end, ``server`` what takes the client's bytes."""
        self._exchange = exchange
        self._tunnel = tunnel
        self.body: RequestBody | None = tunnel.body
        self.peer_address = tunnel.peer_address
        self.peer_port = tunnel.peer_port
        self._is_leaving = False
        self._timer: asyncio.TimerHandle | None = None
        self._to_client = Direction(tunnel, self._told, masks=False)
        self.to_server = Direction(server, self._told, masks=True)
        """What takes the client's bytes now."""
        self.send_data = self._to_client.send_data
        self.send_end = self._to_client.send_end

    # --- while the sidecar drains -----------------------------------------------------------------------------------

    def tell(self) -> None:
        """Tell both sides that this connection goes away. Drain the trampoline afterwards."""
        self._is_leaving = True
        self._to_client.tell()
        self.to_server.tell()

    def close(self) -> None:
        """The tunnel is over."""
        if self._timer is not None:
            self._timer.cancel()

    def _told(self) -> None:
        if self._to_client.is_told and self.to_server.is_told and self._is_leaving:
            self._timer = self._exchange.plane.call_later(CLOSE_S, self._cut)

    def _cut(self) -> None:
        self._exchange.post(Draining(f"a side of the WebSocket did not close it within {CLOSE_S:g} s of being told to"))
        self._exchange.plane.trampoline.drain()

    # --- the client's end -------------------------------------------------------------------------------------------

    @property
    def is_tls(self) -> bool:
        """See ports.DownstreamStream."""
        return self._tunnel.is_tls

    @property
    def is_writable(self) -> bool:
        """See ports.DownstreamStream."""
        return self._tunnel.is_writable

    def respond(self, head: ResponseHead, pieces: list[bytes], trailers: Headers, *, ended: bool) -> None:
        """See ports.DownstreamStream."""
        self._tunnel.respond(head, pieces, trailers, ended=ended)

    def send_informational(self, head: ResponseHead) -> None:
        """See ports.DownstreamStream."""
        self._tunnel.send_informational(head)

    def abort(self) -> None:
        """See ports.DownstreamStream."""
        self._tunnel.abort()

    def close_after(self) -> None:
        """See ports.DownstreamStream."""
        self._tunnel.close_after()

    def pause(self) -> None:
        """See ports.DownstreamStream."""
        self._tunnel.pause()

    def resume_reading(self) -> None:
        """See ports.DownstreamStream."""
        self._tunnel.resume_reading()

    def open_tunnel(self, head: ResponseHead, exchange: Exchange) -> DownstreamTunnel:
        """See ports.DownstreamStream: it is open."""
        return self._tunnel.open_tunnel(head, exchange)

    def exchange_done(self, *, request_ended: bool) -> None:
        """See ports.DownstreamStream."""
        self._tunnel.exchange_done(request_ended=request_ended)


def tell_websockets(plane: DataPlane, listeners: Collection[Listener]) -> None:
    """Tell those that came in by these listeners, and each that is opened from now on."""
    for listener in listeners:
        listener.tells_websockets = True
    for exchange in tuple(plane.exchanges):
        if exchange.listener in listeners and isinstance(exchange.downstream, WebSocketRelay):
            exchange.downstream.tell()
    plane.trampoline.drain()
