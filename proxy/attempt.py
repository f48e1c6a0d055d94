"""One try of an exchange on one endpoint: what came back so far, and the relay of its body.

The upstream shell calls ``on_…``; the exchange reads the attributes after it was resumed with the attempt itself as
the event. Body pieces never resume the exchange: before the answer is committed they are kept here (a little, then
the endpoint is paused), after it they go straight downstream.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from mesh.http.grpc import pushback_s, status_in
from mesh.http.headers import Headers
from mesh.http.message import SWITCHED, ResponseHead
from mesh.http.outcome import InternalError, PerTryTimeout, ProxyError

if TYPE_CHECKING:
    from proxy.exchange import Exchange
    from proxy.ports import UpstreamStream
    from proxy.upstream.endpoint import UpstreamEndpoint
    from proxy.upstream.waiting import WaitingLine

logger = logging.getLogger(__name__)

HELD_BYTES: Final = 64 * 1024
"""Body bytes kept of an answer that nobody has accepted yet; then the endpoint is paused."""


class Attempt:
    """See the module. ``is_detached``: given up; whatever still comes of it is dropped."""

    __slots__ = (
        "answered_s",
        "body_bytes",
        "deadline_s",
        "endpoint",
        "ended",
        "error",
        "exchange",
        "head",
        "http2",
        "is_committed",
        "is_detached",
        "is_held",
        "line",
        "method",
        "pieces",
        "reused",
        "span_id",
        "started_s",
        "stream",
        "trailers",
        "wants_fresh",
    )

    def __init__(self, exchange: Exchange, endpoint: UpstreamEndpoint, started_s: float) -> None:
        """Begin without a connection."""
        self.exchange = exchange
        self.endpoint = endpoint
        self.method = exchange.request.method
        self.started_s = started_s
        self.answered_s = 0.0
        self.deadline_s = 0.0
        self.line: WaitingLine | None = None
        """Where it waits for a connection."""
        self.stream: UpstreamStream | None = None
        self.head: ResponseHead | None = None
        self.error: ProxyError | None = None
        self.pieces: list[bytes] = []
        self.body_bytes = 0
        self.trailers: Headers = []
        self.ended = False
        self.is_committed = False
        self.is_detached = False
        self.is_held = False
        """Its head is there, and the exchange waits for what comes next."""
        self.reused = False
        self.http2 = False
        """It is made over HTTP/2."""
        self.wants_fresh = False
        """It waits for a connection that has carried nothing yet: of TCP and CONNECT each is its client's own."""
        self.span_id = b""

    @property
    def grpc_status(self) -> int | None:
        """What gRPC's status says of a whole answer, in its trailers or, where it has no body, in its head."""
        if not self.ended or self.head is None:
            return None
        status = status_in(self.trailers)
        return status_in(self.head.headers) if status is None else status

    @property
    def pushback_s(self) -> float | None:
        """How long a gRPC server wants to be left alone before a retry; see ``pushback_s``."""
        if self.head is None or self.exchange.request.grpc is None:
            return None
        return pushback_s(self.trailers or self.head.headers)

    def on_stream(self, stream: UpstreamStream) -> None:
        """A connection is there."""
        self.stream = stream
        self.exchange.post(self)

    def on_informational(self, head: ResponseHead) -> None:
        """A 1xx answer: passed on at once (RFC 9110 §15.2), unless another attempt is the one that answers."""
        if not self.is_detached:
            self.exchange.on_informational(head)

    def on_head(self, head: ResponseHead) -> None:
        """The final answer's head."""
        self.head = head
        self.exchange.post(self)

    def on_answer(self, head: ResponseHead, body: bytes) -> None:
        """The whole final answer, without trailers, at once; its connection is no longer this attempt's."""
        self.head = head
        if body:
            self.pieces.append(body)
            self.body_bytes = len(body)
        self.ended = True
        self.stream = None
        self.exchange.post(self)

    def on_data(self, piece: bytes) -> None:
        """A piece of the answer's body."""
        self.body_bytes += len(piece)
        if self.is_committed:
            self.exchange.downstream.send_data(piece)
        else:
            self.pieces.append(piece)
            if self.is_held:
                self.exchange.post(self)
            if self.body_bytes > HELD_BYTES and self.stream is not None:
                self.stream.pause()

    def on_end(self, trailers: Headers) -> None:
        """The answer is complete; its connection is no longer this attempt's."""
        self.ended = True
        if self.head is None or self.head.status != SWITCHED:  # a tunnel's other direction may go on
            self.stream = None
        self.trailers = trailers
        if self.is_committed:
            self.exchange.downstream.send_end(trailers)
            self.exchange.post(self)
        elif self.is_held:
            self.exchange.post(self)

    def on_error(self, error: ProxyError) -> None:
        """It failed, at any point; nothing else follows."""
        self.error = error
        self.stream = None
        self.exchange.post(self)

    def on_writable(self, *, writable: bool) -> None:
        """The endpoint takes the request body (again), or is full."""
        self.exchange.on_upstream_writable(writable=writable)

    def on_deadline(self) -> None:
        """``timeouts.backendRequest`` has passed before the answer was whole (Gateway API): this try has failed."""
        if not self.is_detached and not self.ended:
            stream, self.stream = self.stream, None
            self.error = PerTryTimeout(f"{self.endpoint} did not answer in full within timeouts.backendRequest")
            if stream is not None:
                stream.cancel()
            self.exchange.post(self)

    def broke(self, error: Exception) -> None:
        """What carries it met a bug of ours: that costs its exchange and no other."""
        logger.error("bug while an answer was read", exc_info=error)
        self.exchange.post(InternalError.of(error))

    def detach(self) -> None:
        """Give it up: it waits for no connection any more, and a stream under way is cancelled."""
        self.is_detached = True
        self.pieces.clear()
        if self.line is not None:
            self.line.leave(self)
        if self.stream is not None:
            self.stream.cancel()
            self.stream = None
