"""One HTTP/2 connection as bytes: frames in, events out (RFC 9113); frames out are ``sending.py``. Pure: no sockets.

Both sides speak it. ``feed`` reads whatever bytes have come and calls the owner of the stream, or ``Events`` for what
concerns the connection. Frames are read whole (16 KiB
at most, as we announce), heads are decoded at once, so that the peer's table stays in step also for streams nobody
wants any more.

Flow control (§5.2): the stream's credit goes back when its owner is not paused, which means that the other side takes
the bytes; the connection's goes back at once, so that a slow stream never stalls its siblings. What is held for a
paused stream is at most its window.

What is not worth a frame has a budget (see ``budget.py``).
"""

from __future__ import annotations

from struct import Struct
from typing import Final, Protocol

from mesh.http.headers import Headers
from proxy.http2.errors import ConnectionFault, ErrorCode, StreamFault
from proxy.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    ENABLE_CONNECT_PROTOCOL,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    LAST_STREAM,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from proxy.http2.hpack import Decoder
from proxy.http2.octets import HEADER_LIST_BYTES, join_data
from proxy.http2.octets import frame as _frame
from proxy.http2.sending import DEFAULT_WINDOW, FRAME_BYTES, Sending
from proxy.http2.stream import STREAM_WINDOW, Owner, Stream

MAX_WINDOW: Final = 2**31 - 1
CONNECTION_WINDOW: Final = 1024 * 1024
CONCURRENT: Final = 100  # RFC 9113 §6.5.2: no fewer
MAX_LIST_BYTES: Final = 4 * HEADER_LIST_BYTES  # beyond it the connection ends, since nothing is decoded any more
FRAMES_IN_A_TURN: Final = 500  # an ordinary read brings fewer; other connections wait meanwhile
HASTY_S: Final = 1  # "at once"

_OF_A_BODY: Final = (b"\0", b"")  # the kind of a frame of which so much is there, or may be
_HEAD: Final = Struct(">BHBBL")
_LONG: Final = Struct(">L")
_SETTING: Final = Struct(">HL")


class Events(Protocol):
    """What concerns the connection."""

    def on_stream(self, stream: Stream, fields: Headers, *, ended: bool) -> None:
        """The peer has begun a stream; give it an owner. Raises StreamFault for a head that may not be."""

    def on_settings(self) -> None:
        """The peer's settings have come."""

    def on_stream_over(self) -> None:
        """There is one stream less."""

    def on_goaway(self, code: int, message: bytes) -> None:
        """The peer takes no more streams; those it did not begin have been reset as unprocessed."""


class Connection(Sending):
    """See the module. ``is_server``: the peer begins the streams."""

    def __init__(self, events: Events, *, is_server: bool) -> None:
        """Our preface and settings stand in ``out`` from the start."""
        super().__init__()
        self._events = events
        self._is_server = is_server
        self._buffer = b""
        self._awaits_preface = is_server
        self.awaits_settings = True
        self._decoder = Decoder(MAX_LIST_BYTES)
        self._block: list[bytes] = []
        self._block_bytes = 0
        self._block_stream = 0
        self._block_ends = False
        self._seconds = 0
        self._frames = 0
        self.replies = 0
        """Answers to PING and SETTINGS so far: a peer that reads none of them may not ask without end."""
        self._credit = 0
        self._recv_window = CONNECTION_WINDOW
        self.peer_window = DEFAULT_WINDOW
        self.peer_list_bytes: int | None = None
        """The largest header list it takes, as it says (§6.5.2)."""
        self.peer_concurrent = CONCURRENT  # until it says otherwise: more would be refused by most
        self.last_peer_stream = 0
        self._passed_over = 0
        self.next_stream = 1
        self.goaway_received = False
        self.peer_takes_tunnels = False
        """It knows extended CONNECT (RFC 8441 §3); said in its first SETTINGS."""
        self.pings_acked = 0
        ours = [
            (MAX_CONCURRENT_STREAMS, CONCURRENT),
            (INITIAL_WINDOW_SIZE, STREAM_WINDOW),
            (MAX_HEADER_LIST_SIZE, HEADER_LIST_BYTES),
            (ENABLE_CONNECT_PROTOCOL, 1),
        ]
        if not is_server:
            self.out.append(PREFACE)
            ours[0] = (ENABLE_PUSH, 0)
            del ours[-1]
        self.out.append(_frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*each) for each in ours)))
        self.out.append(_frame(WINDOW_UPDATE, 0, 0, _LONG.pack(CONNECTION_WINDOW - DEFAULT_WINDOW)))

    # --- in ---------------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bool:
        """Read what has come; True where there is more, for another turn: feed nothing then. Raises ConnectionFault.

        After a fault nothing more may be fed.
        """
        buffer = self._buffer + data if self._buffer else data
        position, size, read = 0, len(buffer), 0
        if self._awaits_preface:
            if not PREFACE.startswith(buffer[: len(PREFACE)]):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 connection preface (RFC 9113 §3.4)")
            if size < len(PREFACE):
                self._buffer = buffer
                return False
            self._awaits_preface = False
            position = len(PREFACE)
        elif self.awaits_settings and buffer.startswith(b"HTTP/"):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "it speaks HTTP/1.1 only (appProtocol, --protocol http1)")
        while size - position >= 9 and read < FRAMES_IN_A_TURN:
            high, low, kind, flags, number = _HEAD.unpack_from(buffer, position)
            length = high << 16 | low
            if length > FRAME_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes (§4.2)")
            end = position + 9 + length
            if end > size:
                break
            read += 1
            if kind == DATA and not flags and not self._block_stream and not self.awaits_settings:
                payload, position, empty = join_data(buffer, position)  # what one read brought goes on as one
                self._read_data(number & LAST_STREAM, payload, empty)
                continue
            self._read_frame(kind, flags, number & LAST_STREAM, buffer[position + 9 : end])
            position = end
        self._buffer = buffer[position:] if position else buffer
        self._frames += read
        if self._all_credited or self._credited:
            self._pump_credited()
        return read == FRAMES_IN_A_TURN

    @property
    def unfinished(self) -> int:
        """Tells apart what the peer has begun to send and not ended, a head or a frame; 0 where there is nothing.

        Bodies aside: they may take their time, and their streams are watched.
        """
        if self._block_stream:
            return -self._block_stream
        if not self._buffer or (self.streams and self._buffer[3:4] in _OF_A_BODY):
            return 0
        return self._frames + 1

    def _read_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self.awaits_settings:
            if kind != SETTINGS or flags & ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is no SETTINGS (§3.4)")
            self.awaits_settings = False
        if self._block_stream and (kind != CONTINUATION or number != self._block_stream):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame within a header block (§6.10)")
        try:
            if kind == DATA:
                self._on_data(flags, number, payload)
            elif kind == HEADERS:
                self._on_headers(flags, number, payload)
            elif kind == WINDOW_UPDATE:
                self._on_window_update(number, payload)
            else:
                self._read_other(kind, flags, number, payload)
        except StreamFault as fault:
            self._fail(number, fault)

    def _read_data(self, number: int, payload: bytes, empty: int) -> None:
        """Plain frames of data, joined; so many of them were ``empty``."""
        if empty:
            self._budget.spend(empty if payload else empty - 1)
        try:
            self._on_data(0, number, payload)
        except StreamFault as fault:
            self._fail(number, fault)

    def _read_other(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == RST_STREAM:
            self._on_rst_stream(number, payload)
        elif kind == SETTINGS:
            self._on_settings(flags, number, payload)
        elif kind == PING:
            self._on_ping(flags, number, payload)
        elif kind == CONTINUATION:
            self._on_continuation(flags, number, payload)
        elif kind == PRIORITY:
            self._on_priority(number, payload)
        elif kind == GOAWAY:
            self._on_goaway(number, payload)
        elif kind == PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, which was never allowed (§6.6)")
        else:
            self._budget.spend()  # §4.1: unknown ones are ignored

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        if not number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0 (§6.1)")
        flow = len(payload)
        self._recv_window -= flow
        if self._recv_window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more than the connection's window (§6.9.1)")
        self._credit += flow
        if self._credit >= CONNECTION_WINDOW // 2:
            self.out.append(_frame(WINDOW_UPDATE, 0, 0, _LONG.pack(self._credit)))
            self._recv_window += self._credit
            self._credit = 0
        stream = self.streams.get(number)
        if stream is None or stream.remote_ended:
            self._check_begun(number, "DATA")
            if stream is None and self._is_late(number):
                self._budget.spend_late_data(number, flow)
                return
            raise StreamFault(ErrorCode.STREAM_CLOSED, "DATA on a closed stream (§5.1)")
        if flags & PADDED:
            payload = _unpadded(payload)
        stream.recv_window -= flow
        if stream.recv_window < 0:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "more than the stream's window (§6.9.1)")
        if not stream.has_head:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "DATA before the head (§8.1)")
        ended = flags & END_STREAM
        stream.received += len(payload)
        if stream.expected is not None and (
            stream.received > stream.expected or (ended and stream.received != stream.expected)
        ):
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "a body of another length than content-length says (§8.1.1)")
        if payload:
            self._budget.earn()
        elif not ended:
            self._budget.spend()
        stream.unacked += flow
        owner = stream.owner
        if ended:
            stream.remote_ended = True
            self._forget_if_over(stream)  # before its owner hears, who may want the room for another
        elif not stream.is_paused:
            self._give_credit(stream)
        if owner is not None:
            if payload:
                owner.on_data(payload)
            if ended:
                owner.on_end()

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0 (§6.2)")
        if flags & PADDED:
            payload = _unpadded(payload, 5 if flags & HAS_PRIORITY else 0)
        if flags & HAS_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a HEADERS frame too short for its priority (§6.2)")
            payload = payload[5:]
        ends = bool(flags & END_STREAM)
        if flags & END_HEADERS:
            self._head(number, payload, ends=ends)
            return
        self._block_stream, self._block_ends = number, ends
        self._block, self._block_bytes = [payload], len(payload)

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if not self._block_stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS (§6.10)")
        self._block.append(payload)
        self._block_bytes += len(payload)
        # CVE-2024-27316: neither bytes nor frames without end.
        if self._block_bytes > MAX_LIST_BYTES or len(self._block) > HEADER_LIST_BYTES // 1024:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block without end (§6.10)")
        if flags & END_HEADERS:
            block, self._block, self._block_stream = b"".join(self._block), [], 0
            self._head(number, block, ends=self._block_ends)

    def _head(self, number: int, block: bytes, *, ends: bool) -> None:
        fields = self._decoder.decode(block)  # also of streams that nobody wants: the table is shared
        stream = self.streams.get(number)
        if stream is None:
            stream = self._begun_by_peer(number, ends=ends)
            if stream is None:
                self._budget.spend()
            else:
                self._events.on_stream(stream, fields, ended=ends)
                self._forget_if_over(stream)
            return
        if stream.remote_ended:
            raise StreamFault(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream (§5.1)")
        if stream.has_head:
            if not ends:
                raise StreamFault(ErrorCode.PROTOCOL_ERROR, "trailers that do not end the stream (§8.1)")
            if any(name[:1] == b":" for name, _ in fields):
                raise StreamFault(ErrorCode.PROTOCOL_ERROR, "a pseudo field in the trailers (§8.1)")
            if stream.expected is not None and stream.received != stream.expected:
                raise StreamFault(ErrorCode.PROTOCOL_ERROR, "a body shorter than content-length says (§8.1.1)")
        elif not fields or fields[0][0] != b":status":
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "an answer that does not begin with :status (§8.3.2)")
        else:
            stream.has_head = fields[0][1][:1] != b"1"
            if ends and not stream.has_head:
                raise StreamFault(ErrorCode.PROTOCOL_ERROR, "an informational answer that ends the stream (§8.1)")
        self._budget.earn()
        owner = stream.owner
        if ends:
            stream.remote_ended = True
            self._forget_if_over(stream)
        if owner is not None:
            owner.on_headers(fields, ended=ends)

    def _begun_by_peer(self, number: int, *, ends: bool) -> Stream | None:
        """A stream that HEADERS begin; None where it is not to be had."""
        if not self._is_server or number % 2 == 0:
            self._check_begun(number, "HEADERS")
            if self._is_late(number):
                return None
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream (§5.1)")
        if number <= self.last_peer_stream:
            if self._is_late(number):
                return None
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"stream {number} is over, or was passed over (§5.1.1)")
        if self.goaway_sent is not None and number > self.goaway_sent:
            self._passed_over = max(self._passed_over, number)
            return None  # §6.8: it will be sent again elsewhere
        self.last_peer_stream = number
        if len(self.streams) >= CONCURRENT:
            self._budget.remember_refused(number, STREAM_WINDOW)
            self.out.append(_frame(RST_STREAM, 0, number, _LONG.pack(ErrorCode.REFUSED_STREAM)))
            self._budget.spend_reset()
            return None
        self._budget.earn()
        stream = self.streams[number] = Stream(number, self.peer_window)
        stream.begun_second = self._seconds
        stream.has_head = True
        stream.remote_ended = ends
        return stream

    def _on_priority(self, number: int, payload: bytes) -> None:
        if not number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0 (§6.3)")
        self._budget.spend()  # §5.3.2: parsed, and no more
        if len(payload) != 5 and number in self.streams:
            raise StreamFault(ErrorCode.FRAME_SIZE_ERROR, "a PRIORITY frame that is not 5 bytes (§6.3)")

    def _on_rst_stream(self, number: int, payload: bytes) -> None:
        if not number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on stream 0 (§6.4)")
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a RST_STREAM frame that is not 4 bytes (§6.4)")
        self._check_begun(number, "RST_STREAM")
        self._budget.spend()
        stream = self.streams.get(number)
        if stream is None:
            return
        is_answered = stream.local_ended or stream.pending_end is not None
        is_hasty = not is_answered and self._seconds - stream.begun_second <= HASTY_S
        (code,) = _LONG.unpack(payload)
        owner = self._drop(stream)
        if owner is not None:
            owner.on_reset(code, is_unprocessed=code == ErrorCode.REFUSED_STREAM)
        if self._is_server and is_hasty:
            self._budget.spend_reset()  # CVE-2023-44487: begun, and given up at once

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream (§6.5)")
        if flags & ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a SETTINGS ACK that is not empty (§6.5)")
            self._budget.spend()
            return
        if len(payload) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of no whole number of settings (§6.5)")
        self._budget.spend(1 + len(payload) // 6)
        window: int | None = None
        for key, value in _SETTING.iter_unpack(payload):
            if key == INITIAL_WINDOW_SIZE:
                window = self._checked_window(value)
            else:
                self._apply_setting(key, value)
        if window is not None:
            self._apply_window(window)  # the last one holds (§6.5.3), and costs a look at every stream
            self._all_credited = True  # let out behind the ACK: until it comes, gRPC holds DATA to the old one
        self.replies += 1
        self.out.append(_frame(SETTINGS, ACK, 0, b""))
        self._events.on_settings()

    def _checked_window(self, value: int) -> int:
        if value > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"an initial window of {value} (§6.5.2)")
        return value

    def _apply_window(self, value: int) -> None:
        change, self.peer_window = value - self.peer_window, value
        if not change:
            return
        for stream in tuple(self.streams.values()):
            stream.send_window += change  # it may become negative (§6.9.2)
            if stream.send_window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window of more than 2^31-1 (§6.9.2)")

    def _apply_setting(self, key: int, value: int) -> None:
        if key == MAX_FRAME_SIZE:
            if not FRAME_BYTES <= value <= 2**24 - 1:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"frames of {value} bytes (§6.5.2)")
            self.peer_frame_bytes = min(value, 4 * FRAME_BYTES)
        elif key == MAX_CONCURRENT_STREAMS:
            self.peer_concurrent = value
        elif key == MAX_HEADER_LIST_SIZE:
            self.peer_list_bytes = value
        elif key == ENABLE_PUSH and (value > 1 or (value and not self._is_server)):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH {value} (§6.5.2)")
        elif key == ENABLE_CONNECT_PROTOCOL:
            if value <= 1:
                self.peer_takes_tunnels = value == 1
                return
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_CONNECT_PROTOCOL {value} (RFC 8441 §3)")

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream (§6.7)")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a PING that is not 8 bytes (§6.7)")
        self._budget.spend()
        if flags & ACK:
            self.pings_acked += 1
            return
        self.replies += 1
        self.out.append(_frame(PING, ACK, 0, payload))

    def _on_goaway(self, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream (§6.8)")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a GOAWAY of less than 8 bytes (§6.8)")
        self._budget.spend()
        last, (code,) = _LONG.unpack_from(payload)[0] & LAST_STREAM, _LONG.unpack_from(payload, 4)
        self.goaway_received = True
        if not self._is_server:
            for each in [stream for key, stream in self.streams.items() if key > last]:
                owner = self._drop(each)
                if owner is not None:
                    owner.on_reset(code, is_unprocessed=True)
        self._events.on_goaway(code, payload[8:])

    def _on_window_update(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a WINDOW_UPDATE that is not 4 bytes (§6.9)")
        increment = _LONG.unpack(payload)[0] & LAST_STREAM
        self._budget.spend_update()
        if not number:
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a WINDOW_UPDATE of 0 (§6.9)")
            self.send_window += increment
            if self.send_window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window of more than 2^31-1 (§6.9.1)")
            self._all_credited = True
            return
        stream = self.streams.get(number)
        if stream is None:
            self._check_begun(number, "WINDOW_UPDATE")
            return
        if not increment:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "a WINDOW_UPDATE of 0 (§6.9)")
        stream.send_window += increment
        if stream.send_window > MAX_WINDOW:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "a window of more than 2^31-1 (§6.9.1)")
        if number in self._blocked:
            self._credited[number] = None

    # --- out --------------------------------------------------------------------------------------------------------

    def open(self) -> Stream:
        """Begin a stream of ours; its head is to be sent next. Ask ``room`` before."""
        number, self.next_stream = self.next_stream, self.next_stream + 2
        stream = self.streams[number] = Stream(number, self.peer_window)
        return stream

    @property
    def room(self) -> int:
        """How many streams of ours may be begun now; 0 where the peer goes away or numbers have run out (§5.1.1)."""
        if self.goaway_received or self.next_stream > LAST_STREAM:
            return 0
        most = 1 if self.awaits_settings else min(self.peer_concurrent, CONCURRENT)  # it may take one at a time
        return max(0, most - len(self.streams))

    def stop_peer(self, stream: Stream) -> None:
        """§8.1: the rest of the request is not wanted; said as soon as the answer is out."""
        if stream.local_ended:
            self.reset(stream, ErrorCode.NO_ERROR)
        else:
            stream.stops_peer = True

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Give a stream up; its owner hears nothing more."""
        if stream.id not in self.streams:
            return
        self._budget.remember_refused(stream.id, stream.recv_window)
        self._budget.earn()  # what of it is still on its way is not the peer's fault
        self.out.append(_frame(RST_STREAM, 0, stream.id, _LONG.pack(code)))
        self._drop(stream)

    def pause(self, stream: Stream) -> None:
        """Give the peer no more credit for this stream."""
        stream.is_paused = True

    def resume(self, stream: Stream) -> None:
        """Give it again."""
        stream.is_paused = False
        if not stream.remote_ended:
            self._give_credit(stream)

    def forget_all(self) -> None:
        """The connection is lost: what waited to be sent is let go at once, not when cycles are collected."""
        for stream in self.streams.values():
            stream.owner = None
            stream.local_ended = stream.remote_ended = True  # what its exchange still has to say goes nowhere
            stream.pending.clear()
        self.streams.clear()
        self._blocked.clear()
        self._credited.clear()

    def tick(self) -> None:
        """Once a second: time earns some budget back too."""
        self._seconds += 1
        self._budget.tick()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _give_credit(self, stream: Stream) -> None:
        if stream.unacked >= STREAM_WINDOW // 2:
            self.out.append(_frame(WINDOW_UPDATE, 0, stream.id, _LONG.pack(stream.unacked)))
            stream.recv_window += stream.unacked
            stream.unacked = 0

    def _ended(self, stream: Stream) -> None:
        stream.local_ended = True
        if stream.stops_peer and not stream.remote_ended:
            self.reset(stream, ErrorCode.NO_ERROR)
        else:
            self._forget_if_over(stream)

    def _forget_if_over(self, stream: Stream) -> None:
        if stream.local_ended and stream.remote_ended and self.streams.pop(stream.id, None) is not None:
            self._blocked.pop(stream.id, None)
            stream.owner = None  # it knows its stream: without the cycle both are freed at once
            self._budget.earn_reset()
            self._events.on_stream_over()

    def _drop(self, stream: Stream) -> Owner | None:
        """Take a stream out; gives who is to be told."""
        self.streams.pop(stream.id, None)
        self._blocked.pop(stream.id, None)
        stream.local_ended = stream.remote_ended = True
        owner, stream.owner = stream.owner, None
        self._events.on_stream_over()
        return owner

    def _fail(self, number: int, fault: StreamFault) -> None:
        """§5.4.2: reset one stream for what the peer did, and tell its owner."""
        stream = self.streams.get(number)
        owner = self._drop(stream) if stream is not None else None
        self._budget.remember_refused(number, 0 if stream is None else stream.recv_window)
        self.out.append(_frame(RST_STREAM, 0, number, _LONG.pack(fault.code)))
        if owner is not None:
            owner.on_reset(fault.code, is_unprocessed=False)
        self._budget.spend_reset()  # CVE-2025-8671: who has us reset its streams is no better than who does

    def _is_late(self, number: int) -> bool:
        """A frame of a stream that was on its way before the peer heard of our reset, or of our going away."""
        if self._budget.is_refused(number) or (
            self.goaway_sent is not None and self.goaway_sent < number <= self._passed_over
        ):
            return True
        return not self._is_server and number % 2 == 1  # one of ours: more are given up than are remembered

    def _check_begun(self, number: int, what: str) -> None:
        """§5.1: on a stream that was never begun there is nothing but HEADERS and PRIORITY."""
        is_peers = (number % 2 == 1) is self._is_server
        begun = number <= max(self.last_peer_stream, self._passed_over) if is_peers else number < self.next_stream
        if not begun:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{what} on idle stream {number} (§5.1)")


def _unpadded(payload: bytes, least: int = 0) -> bytes:
    """§6.1: without the padding and its length, which must leave ``least`` bytes."""
    if not payload or payload[0] + least >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than there is payload (§6.1)")
    return payload[1 : len(payload) - payload[0]]
