"""gRPC-Web at the edge: a call of a browser is a gRPC call to everything behind this, and its answer is none before it.

Stands between a client's stream and the exchange. The exchange sees the head of a gRPC call, frames in its body, and
answers as it answers any; so routes, retries, deadlines, metrics and spans are those of gRPC without a line about it.
Nothing is kept but for what ``mesh/http/grpc_web.py`` keeps: backpressure passes through in both directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.http.grpc import status_in
from mesh.http.grpc_web import AnswerEncoder, RequestDecoder, is_grpc_answer, to_grpc, to_web
from mesh.http.headers import Headers
from mesh.http.message import RequestHead, ResponseHead
from mesh.http.outcome import BadRequest
from proxy.request_body import RequestBody

if TYPE_CHECKING:
    from proxy.exchange import Exchange
    from proxy.ports import DownstreamStream, DownstreamTunnel


class GrpcWebBody(RequestBody):
    """The body of a gRPC-Web call as gRPC's frames. One that is malformed never ends, so that no server takes it."""

    __slots__ = ("_decoder", "_exchange", "_fault")

    def __init__(self, client: DownstreamStream, *, is_text: bool) -> None:
        """See RequestBody."""
        super().__init__(client)
        self._decoder = RequestDecoder(is_text=is_text)
        self._exchange: Exchange | None = None
        self._fault: BadRequest | None = None

    def attach_exchange(self, exchange: Exchange) -> None:
        """Whom to tell of a fault; what came with the head may have had one already."""
        self._exchange = exchange
        if self._fault is not None:
            exchange.post(self._fault)

    def on_data(self, piece: bytes) -> None:
        """See RequestBody."""
        if self._fault is None:
            try:
                frames = self._decoder.feed(piece)
            except BadRequest as fault:
                self._refuse(fault)
                return
            if frames:
                super().on_data(frames)

    def on_end(self, trailers: Headers) -> None:
        """See RequestBody."""
        if self._fault is None:
            try:
                self._decoder.end()
            except BadRequest as fault:
                self._refuse(fault)
                return
            super().on_end(trailers)

    def _refuse(self, fault: BadRequest) -> None:
        self._fault = fault
        if self._exchange is not None:
            self._exchange.post(fault)


class GrpcWebStream:
    """A gRPC-Web call's way back to the client. See ports.DownstreamStream."""

    __slots__ = ("_client", "_encoder", "_wants_text", "body", "peer_address", "peer_port")

    def __init__(self, client: DownstreamStream, request: RequestHead) -> None:
        """Translate ``request`` where it stands; its ``content_length`` is the client's until then."""
        self._client = client
        self.peer_address = client.peer_address
        self.peer_port = client.peer_port
        is_text, self._wants_text = to_grpc(request)
        self.body = GrpcWebBody(client, is_text=is_text) if request.has_body else None
        self._encoder: AnswerEncoder | None = None
        """None before the answer, and of one that is no gRPC."""

    def attach_exchange(self, exchange: Exchange) -> None:
        """The exchange has begun."""
        if self.body is not None:
            self.body.attach_exchange(exchange)

    @property
    def is_tls(self) -> bool:
        """See ports.DownstreamStream."""
        return self._client.is_tls

    @property
    def is_writable(self) -> bool:
        """See ports.DownstreamStream."""
        return self._client.is_writable

    def respond(self, head: ResponseHead, pieces: list[bytes], trailers: Headers, *, ended: bool) -> None:
        """See ports.DownstreamStream. An answer that is no gRPC passes as it is: clients know what a 502 means."""
        if not is_grpc_answer(head):
            self._client.respond(head, pieces, trailers, ended=ended)
            return
        to_web(head, is_text=self._wants_text)
        encoder = self._encoder = AnswerEncoder(is_text=self._wants_text)
        data = b"".join(map(encoder.feed, pieces))
        is_whole = ended and encoder.may_end
        if is_whole:
            if pieces or trailers:  # else the status stands in the head, which is gRPC-Web's way too
                data += encoder.end(trailers)
            head.content_length = len(data)
        head.has_body = bool(data) or not is_whole
        self._client.respond(head, [data] if data else [], [], ended=is_whole)
        if ended and not is_whole:
            self._client.abort()

    def send_informational(self, head: ResponseHead) -> None:
        """See ports.DownstreamStream."""
        self._client.send_informational(head)

    def send_data(self, piece: bytes) -> None:
        """See ports.DownstreamStream."""
        data = piece if self._encoder is None else self._encoder.feed(piece)
        if data:
            self._client.send_data(data)

    def send_end(self, trailers: Headers) -> None:
        """See ports.DownstreamStream. A status behind half a message would be read as its rest: better no end at all.

        In an answer that is no gRPC there is no place for one: it stands there when that answer has broken off.
        """
        if self._encoder is None:
            if status_in(trailers) is None:
                self._client.send_end(trailers)
            else:
                self._client.abort()
        elif self._encoder.may_end:
            self._client.send_data(self._encoder.end(trailers))
            self._client.send_end([])
        else:
            self._client.abort()

    def abort(self) -> None:
        """See ports.DownstreamStream."""
        self._client.abort()

    def close_after(self) -> None:
        """See ports.DownstreamStream."""
        self._client.close_after()

    def pause(self) -> None:
        """See ports.DownstreamStream."""
        self._client.pause()

    def resume_reading(self) -> None:
        """See ports.DownstreamStream."""
        self._client.resume_reading()

    def open_tunnel(self, head: ResponseHead, exchange: Exchange) -> DownstreamTunnel:
        """See ports.DownstreamStream: a call never asks for one."""
        return self._client.open_tunnel(head, exchange)

    def exchange_done(self, *, request_ended: bool) -> None:
        """See ports.DownstreamStream."""
        self._client.exchange_done(request_ended=request_ended)
