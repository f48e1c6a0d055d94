"""One stream of an HTTP/2 connection (RFC 9113 §5): what the codec knows of it, and whom it tells."""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from mesh.http.headers import Headers

STREAM_WINDOW: Final = 256 * 1024  # what is held at most for a stream whose other side is slow


class Owner(Protocol):
    """Who a stream belongs to: the shell's side of a request or an answer."""

    def on_headers(self, fields: Headers, *, ended: bool) -> None:
        """A head has come (1xx too), or the trailers; ``ended``: nothing follows."""

    def on_data(self, piece: bytes) -> None:
        """A piece of the body; never empty."""

    def on_end(self) -> None:
        """The body has ended, without trailers."""

    def on_reset(self, code: int, *, is_unprocessed: bool) -> None:
        """The stream is over, before its time. ``is_unprocessed``: the peer says that it did nothing of it."""

    def on_writable(self, *, writable: bool) -> None:
        """What was queued for want of window has gone out (or there is too much of it)."""


class Stream:
    """One stream. ``owner`` is told what comes; ``expected`` body bytes, where a content-length said so."""

    __slots__ = (
        "pending",
        "pending_bytes",
        "pending_end",
        "expected",
        "has_head",
        "id",
        "is_paused",
        "is_writable",
        "local_ended",
        "owner",
        "received",
        "recv_window",
        "remote_ended",
        "send_window",
        "begun_second",
        "stops_peer",
        "unacked",
    )

    def __init__(self, number: int, send_window: int) -> None:
        """Open."""
        self.id = number
        self.owner: Owner | None = None
        self.send_window = send_window
        self.recv_window = STREAM_WINDOW
        self.unacked = 0
        self.begun_second = 0
        self.stops_peer = False
        """Once our side has ended the peer is told to send no more (§8.1)."""
        self.is_paused = False
        self.is_writable = True
        self.local_ended = False
        self.remote_ended = False
        self.has_head = False
        self.expected: int | None = None
        self.received = 0
        self.pending: deque[bytes] = deque()
        self.pending_bytes = 0
        self.pending_end: Headers | None = None

    def __repr__(self) -> str:
        """For debugging."""
        ends = ("-" if self.local_ended else ">") + ("-" if self.remote_ended else "<")
        return f"<Stream {self.id} {ends} send={self.send_window} queued={self.pending_bytes}>"
