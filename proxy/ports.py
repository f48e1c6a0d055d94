"""What the exchange asks of its two sides, whatever protocol they speak: HTTP/1.1 now, HTTP/2 streams as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mesh.http.headers import Headers
from mesh.http.message import RequestHead, ResponseHead

if TYPE_CHECKING:
    from proxy.attempt import Attempt
    from proxy.exchange import Exchange
    from proxy.request_body import RequestBody


class DownstreamStream(Protocol):
    """One request's way back to the client."""

    peer_address: str
    """The client's address, without its port."""
    peer_port: int

    @property
    def is_tls(self) -> bool:
        """The client speaks TLS to us."""

    @property
    def is_writable(self) -> bool:
        """False: the client is slow and nothing more should be sent to it for now."""

    def respond(self, head: ResponseHead, pieces: list[bytes], trailers: Headers, *, ended: bool) -> None:
        """Begin the final answer with what there is of its body, in one write; ``ended``: that was all."""

    def send_informational(self, head: ResponseHead) -> None:
        """Pass on a 1xx answer."""

    def send_data(self, piece: bytes) -> None:
        """Go on with the body."""

    def send_end(self, trailers: Headers) -> None:
        """End the body."""

    def abort(self) -> None:
        """The answer cannot be completed: make that visible to the client (close, RST_STREAM)."""

    def close_after(self) -> None:
        """The connection (stream) may not serve another request after this answer."""

    def pause(self) -> None:
        """Take no more of the request's body for now."""

    def resume_reading(self) -> None:
        """Take it again."""

    def open_tunnel(self, head: ResponseHead, exchange: Exchange) -> DownstreamTunnel:
        """Answer that the protocol changes (SWITCHED), or that a CONNECT is through (200).

        Gives the end that relays bytes from here on.
        """

    def exchange_done(self, *, request_ended: bool) -> None:
        """The exchange is over; the stream, or its connection, may serve the next."""


class DownstreamTunnel(DownstreamStream, Protocol):
    """The client's end of a tunnel. It tells the exchange (``post``) when ``body`` has ended."""

    @property
    def body(self) -> RequestBody | None:
        """What the client sends."""


class BodySink(Protocol):
    """What takes a body piece by piece."""

    def send_data(self, piece: bytes) -> None:
        """Go on with it."""

    def send_end(self, trailers: Headers) -> None:
        """End it."""


class UpstreamStream(BodySink, Protocol):
    """One attempt's way to an endpoint."""

    def start(self, attempt: Attempt, head: RequestHead, added: list[bytes], body: bytes, *, ended: bool) -> None:
        """Send the head, the fields the mesh adds (lines without CRLF) and what there is of the body, in one write."""

    def pause(self) -> None:
        """Take no more of the answer for now."""

    def resume_reading(self) -> None:
        """Take it again."""

    def cancel(self) -> None:
        """Nobody wants the answer any more: drop it, and with HTTP/1.1 the connection."""
