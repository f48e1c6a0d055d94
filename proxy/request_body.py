"""The relay of a request's body: from the client to the attempt under way, with what a retry needs kept.

Nothing is held whole unless a retry needs it, and then under a cap: as long as all of the body so far fits, it can
be sent again; beyond it the pieces are let go and the request is sent once. While no endpoint takes the body (it is
being connected to, or a backoff runs) the client is paused at the same cap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mesh.http.headers import Headers

if TYPE_CHECKING:
    from proxy.ports import BodySink, DownstreamStream

REPLAY_BYTES: Final = 64 * 1024  # Linkerd keeps 64 KiB for retries
MAX_PIECES: Final = 64


class RequestBody:
    """See the module. ``received`` counts the client's bytes; ``ended`` says that the client has sent all."""

    __slots__ = (
        "_downstream",
        "_is_upstream_full",
        "_kept",
        "_kept_bytes",
        "_stream",
        "ended",
        "is_client_paused",
        "is_replayable",
        "received",
        "trailers",
    )

    def __init__(self, downstream: DownstreamStream, *, keeps: bool = True) -> None:
        """Begin before the first byte. ``keeps`` False: what was sent on is never sent again."""
        self._downstream = downstream
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._stream: BodySink | None = None
        self.is_client_paused = False
        self._is_upstream_full = False
        self.received = 0
        self.ended = False
        self.is_replayable = keeps
        self.trailers: Headers = []

    def on_data(self, piece: bytes) -> None:
        """A piece came from the client."""
        self.received += len(piece)
        if self._stream is not None:
            self._stream.send_data(piece)
            if self.is_replayable:
                self._keep(piece)
        else:
            self._append(piece)
            self._kept_bytes += len(piece)
            if self._kept_bytes > REPLAY_BYTES:
                self._pause_client()

    def on_end(self, trailers: Headers) -> None:
        """The client has sent all."""
        self.ended = True
        self.trailers = trailers
        if self._stream is not None:
            self._stream.send_end(trailers)

    def begin_attempt(self) -> bytes:
        """What to send at once with the head; call ``attach`` when it is sent."""
        self._is_upstream_full = False
        kept = b"".join(self._kept)
        if not self.is_replayable:
            self._kept.clear()
            self._kept_bytes = 0
        return kept

    def attach(self, stream: BodySink) -> None:
        """From now on pieces go to ``stream``, which has been sent everything so far, and may be full of it."""
        self._stream = stream
        if self._kept_bytes > REPLAY_BYTES:
            self.is_replayable = False
            self._kept.clear()
        if not self._is_upstream_full:
            self._resume_client()

    def detach(self) -> None:
        """The attempt is over; pieces are kept for the next one."""
        self._stream = None

    def on_writable(self, *, writable: bool) -> None:
        """The endpoint's backpressure becomes the client's."""
        self._is_upstream_full = not writable
        if writable:
            self._resume_client()
        elif not self.ended:
            self._pause_client()

    def _keep(self, piece: bytes) -> None:
        self._kept_bytes += len(piece)
        if self._kept_bytes > REPLAY_BYTES:
            self.is_replayable = False
            self._kept.clear()
        else:
            self._append(piece)

    def _append(self, piece: bytes) -> None:
        """Keep a piece; many small ones become one, for each object costs more than 30 bytes."""
        self._kept.append(piece)
        if len(self._kept) >= MAX_PIECES:
            self._kept = [b"".join(self._kept)]

    def _pause_client(self) -> None:
        if not self.is_client_paused:
            self.is_client_paused = True
            self._downstream.pause()

    def _resume_client(self) -> None:
        if self.is_client_paused:
            self.is_client_paused = False
            self._downstream.resume_reading()
