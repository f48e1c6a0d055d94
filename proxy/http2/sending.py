"""The half of an HTTP/2 connection that goes out: heads, and bodies as far as windows and transport let them. Pure.

What is to be sent collects in ``out`` until the shell takes it. A body waits in its stream while the peer gives no
credit (RFC 9113 §5.2), while the transport is full, and while enough has been let out that the transport has not seen
yet; of what waits the peer's credit lets out once for each ``feed``: in crumbs, it would walk all that wait for each of
them. A stream of which much waits pauses its source.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from mesh.http.headers import Headers
from proxy.http2.budget import Budget
from proxy.http2.errors import ErrorCode
from proxy.http2.frames import CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING
from proxy.http2.hpack import NO_TABLE
from proxy.http2.octets import encode
from proxy.http2.octets import frame as _frame
from proxy.http2.stream import Stream

DEFAULT_WINDOW: Final = 65_535  # RFC 9113 §6.9.2, until settings say otherwise
FRAME_BYTES: Final = 16_384  # what we take, and the least a peer must take (§4.2)
QUEUED_BYTES: Final = 64 * 1024  # of a stream's body that the peer's window does not let out; then its source is paused
LET_OUT_BYTES: Final = 256 * 1024  # of bodies at once: the rest goes when the transport has taken that

_LONG: Final = Struct(">L")


class Sending:
    """See the module. Which streams there are, and what their ends mean, is for ``codec.Connection``."""

    def __init__(self) -> None:
        """Nothing is to be sent yet."""
        self.out: list[bytes] = []
        self.streams: dict[int, Stream] = {}
        self.goaway_sent: int | None = None
        self.send_window = DEFAULT_WINDOW
        self.peer_frame_bytes = FRAME_BYTES
        self.is_held = False
        """The transport is full: bodies wait, whatever credit there is."""
        self.is_cut_short = False
        """More may be let out (``let_go``) as soon as the transport has taken what was."""
        self._let_out = 0
        self._blocked: dict[int, Stream] = {}
        self._credited: dict[int, None] = {}  # those of them that the peer gave credit in this feed
        self._all_credited = False
        self._begun_block = False
        self._budget = Budget()

    def send_headers(self, stream: Stream, fields: Headers, *, ended: bool) -> None:
        """Send a head, or trailers where nothing of the body is queued any more."""
        block = encode(fields)
        if not self._begun_block:
            self._begun_block = True
            block = NO_TABLE + block
        limit, flags = self.peer_frame_bytes, END_STREAM if ended else 0
        if len(block) <= limit:
            self.out.append(_frame(HEADERS, flags | END_HEADERS, stream.id, block))
        else:
            self.out.append(_frame(HEADERS, flags, stream.id, block[:limit]))
            for start in range(limit, len(block), limit):
                last = END_HEADERS if start + limit >= len(block) else 0
                self.out.append(_frame(CONTINUATION, last, stream.id, block[start : start + limit]))
        if ended:
            self._ended(stream)

    def send_data(self, stream: Stream, piece: bytes) -> None:
        """Send a piece of the body, as far as the windows let it out; the rest waits."""
        if stream.local_ended or stream.pending_end is not None:
            return
        size = len(piece)
        if not stream.pending and self._lets_out(stream, size):
            self._data_frames(stream.id, piece, 0)
            return
        stream.pending.append(piece)
        stream.pending_bytes += size
        self._pump(stream)

    def send_last(self, stream: Stream, piece: bytes, trailers: Headers) -> None:
        """Send the last piece of the body (it may be empty) and the end, with trailers or without."""
        if stream.local_ended or stream.pending_end is not None:
            return
        if not trailers and not stream.pending and self._lets_out(stream, len(piece)):
            self._data_frames(stream.id, piece, END_STREAM)
            self._ended(stream)
            return
        if piece:
            self.send_data(stream, piece)
        if stream.pending:
            stream.pending_end = trailers
        elif trailers:
            self.send_headers(stream, trailers, ended=True)
        else:
            self.out.append(_frame(DATA, END_STREAM, stream.id, b""))
            self._ended(stream)

    def hold(self) -> None:
        """Send no bodies until ``let_go``: the peer does not take what was sent. Its credit alone fills no memory."""
        self.is_held = True

    def let_go(self) -> None:
        """Send what was held, or a part of it: see ``is_cut_short``."""
        self.is_held = self.is_cut_short = False
        self._all_credited = True
        self._pump_credited()

    @property
    def has_pending(self) -> bool:
        """Tell whether bodies wait, for credit or for the transport."""
        return bool(self._blocked)

    def ping(self, data: bytes) -> None:
        """Ask for a sign of life; ``pings_acked`` counts the answers."""
        self.out.append(_frame(PING, 0, 0, data))

    def goaway(self, last: int, code: ErrorCode = ErrorCode.NO_ERROR, message: str = "") -> None:
        """Say that streams beyond ``last`` are not taken; first LAST_STREAM, later the true one: in order (§6.8)."""
        self.goaway_sent = last
        self.out.append(_frame(GOAWAY, 0, 0, _LONG.pack(last) + _LONG.pack(code) + message.encode()[:256]))

    def take(self) -> bytes:
        """What is to be sent now."""
        self._let_out = 0
        out, self.out = self.out, []
        return out[0] if len(out) == 1 else b"".join(out)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _ended(self, stream: Stream) -> None:
        """The last of a stream is out."""
        raise NotImplementedError

    def _data_frames(self, number: int, piece: bytes, flags: int) -> None:
        limit, out = self.peer_frame_bytes, self.out
        size = len(piece)
        if size <= limit:
            out.append(_frame(DATA, flags, number, piece))
            self._budget.earn_by_sending(size)
        else:
            for start in range(0, size, limit):
                is_last = start + limit >= size
                out.append(_frame(DATA, flags if is_last else 0, number, piece[start : start + limit]))
                self._budget.earn_by_sending(limit)

    def _lets_out(self, stream: Stream, size: int) -> bool:
        """Take a piece off both windows, if it may go out whole and now."""
        if size > stream.send_window or size > self.send_window or self.is_held or self.is_cut_short:
            return False
        stream.send_window -= size
        self.send_window -= size
        self._let_out += size
        if self._let_out >= LET_OUT_BYTES:
            self.is_cut_short = True
        return True

    def _pump(self, stream: Stream) -> None:
        """Let out of a stream's queue what the windows allow; tell its source when it may go on, or has to stop."""
        pending = stream.pending
        while pending:
            room = min(stream.send_window, self.send_window)
            if room <= 0 or self.is_held or self.is_cut_short:
                break
            piece = pending[0]
            if len(piece) <= room:
                pending.popleft()
            else:
                pending[0] = piece[room:]
                piece = piece[:room]
            size = len(piece)
            stream.send_window -= size
            self.send_window -= size
            stream.pending_bytes -= size
            self._let_out += size
            self.is_cut_short = self._let_out >= LET_OUT_BYTES
            is_last = not pending and stream.pending_end == []
            self._data_frames(stream.id, piece, END_STREAM if is_last else 0)
            if is_last:
                stream.pending_end = None
                self._ended(stream)
        if pending:
            self._blocked[stream.id] = stream
        else:
            self._blocked.pop(stream.id, None)
            if stream.pending_end is not None:
                trailers, stream.pending_end = stream.pending_end, None
                self.send_headers(stream, trailers, ended=True)
        writable = stream.pending_bytes < QUEUED_BYTES
        if writable is not stream.is_writable:
            stream.is_writable = writable
            if stream.owner is not None:
                stream.owner.on_writable(writable=writable)

    def _pump_credited(self) -> None:
        numbers = tuple(self._blocked if self._all_credited else self._credited)
        self._all_credited = False
        self._credited.clear()
        for number in numbers:
            if self.send_window <= 0 or self.is_held or self.is_cut_short:
                break
            stream = self._blocked.pop(number, None)  # to the end of the line, if it is blocked again
            if stream is not None:
                self._pump(stream)
