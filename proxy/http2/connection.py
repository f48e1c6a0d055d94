"""What both shells of an HTTP/2 connection share: one write for each turn, backpressure, the end. Moves bytes only."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, cast

from mesh.http.headers import Headers
from proxy.http2.codec import Connection
from proxy.http2.errors import ConnectionFault, ErrorCode
from proxy.http2.stream import Stream

if TYPE_CHECKING:
    from proxy.trampoline import Trampoline

logger = logging.getLogger(__name__)

LINGER_S: Final = 2.0
MAX_UNREAD_REPLIES: Final = 1000
MAX_UNTAKEN_BYTES: Final = 8 * 1024 * 1024  # a hundred heads as large as they may be, and what may be let out before


class Http2Connection:
    """See the module. Frames collect in the codec and go out together when the outermost callback ends."""

    is_server = True

    def __init__(self, trampoline: Trampoline) -> None:
        """Not connected yet."""
        self._trampoline = trampoline
        self._is_dirty = False
        self._made = False
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.codec = Connection(self, is_server=self.is_server)
        self.is_tls = False
        self.is_writable = True
        self.is_closed = False
        self.fault: ConnectionFault | None = None
        self._replies_before = 0
        self._lets_others = False
        self.is_feeding = False
        self.is_ending = False
        """The peer has closed: what it sent before may still be read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast("asyncio.Transport", transport)
        self._made = True
        self.is_tls = transport.get_extra_info("ssl_object") is not None
        self.touch()
        self._trampoline.drain()

    def data_received(self, data: bytes) -> None:
        """Bytes of frames."""
        if self.is_closed:
            return
        if self._feed(data):
            self._let_others()
        if self.codec.out:
            self.touch()
        if self.is_writable:
            self._replies_before = self.codec.replies
        elif self.codec.replies - self._replies_before > MAX_UNREAD_REPLIES:
            self.transport.abort()  # it asks and asks, and reads nothing
        self._trampoline.drain()

    def _feed(self, data: bytes) -> bool:
        """See ``codec.feed``; what is wrong ends the connection."""
        self.is_feeding, is_more = True, False
        try:
            is_more = self.codec.feed(data)
        except ConnectionFault as fault:
            self.fail(fault)
        except Exception as error:
            logger.exception("bug while frames were read")  # the frames behind cannot be trusted any more
            self.fail(ConnectionFault(ErrorCode.INTERNAL_ERROR, f"bug in the sidecar: {type(error).__name__}"))
        finally:
            self.is_feeding = False
            if not is_more:
                self.after_feed()
        return is_more

    def after_feed(self) -> None:
        """All frames that came together have been read, in as many turns as that took."""

    def _let_others(self) -> None:
        """Have the loop look at the other connections before this one goes on, which brings very many frames."""
        if not self._lets_others:
            self._lets_others = True
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        if not self._lets_others:
            return  # the rest was read at the connection's end
        self._lets_others = False
        self.data_received(b"")
        if not (self._lets_others or self.is_closed or self.transport.is_closing()):
            self.transport.resume_reading()

    def eof_received(self) -> bool:
        """The peer closed its side; nothing more comes."""
        self.read_rest()
        self._trampoline.drain()
        return False

    def read_rest(self) -> None:
        """Read what came before the end and waits for its turn: TLS tells of the end at once, whoever has paused it."""
        self.is_ending = True
        while self._lets_others and not self.is_closed:
            self._lets_others = self._feed(b"")
        self._lets_others = False

    def pause_writing(self) -> None:
        """The peer reads slowly."""
        self.is_writable = False
        self.codec.hold()
        self._tell_writable(writable=False)

    def resume_writing(self) -> None:
        """It has caught up."""
        self.is_writable = True
        self.codec.let_go()
        self.touch()
        self._tell_writable(writable=True)
        self._trampoline.drain()

    def _let_go(self) -> None:
        if self.codec.is_cut_short and self.is_writable and not self.is_closed:
            self.codec.let_go()
            self.touch()
            self._trampoline.drain()

    def touch(self) -> None:
        """There is something to send: it goes out at the end of this turn."""
        if not self._is_dirty:
            self._is_dirty = True
            self._trampoline.dirty.append(self)

    def flush(self) -> None:
        """Send what has collected, in one write."""
        self._is_dirty = False
        if not self._made:
            return  # what has collected goes out with the connection's first callback
        data = self.codec.take()
        if data and not self.transport.is_closing():
            self.transport.write(data)
            if self.codec.is_cut_short and self.is_writable:
                asyncio.get_running_loop().call_soon(self._let_go)
            elif not self.is_writable and self.transport.get_write_buffer_size() > MAX_UNTAKEN_BYTES:
                self.transport.abort()  # heads, which nothing holds: those of answers without bodies, and 1xx

    def fail(self, fault: ConnectionFault) -> None:
        """The peer broke a rule: say which, and close."""
        logger.info("%r: %s (%s)", self, fault.message, fault.code.name)
        self.fault = fault
        self.codec.goaway(self.codec.last_peer_stream, fault.code, fault.message)
        self.end()

    def end(self) -> None:
        """Send what is left and close; streams still open end with the connection."""
        self.is_closed = True
        self.flush()
        self.transport.close()
        # Closing waits until the peer has taken what was written; one that reads nothing would have us wait for ever.
        asyncio.get_running_loop().call_later(LINGER_S, self.transport.abort)

    def on_stream(self, stream: Stream, fields: Headers, *, ended: bool) -> None:
        """See Events; a client has none begun by its peer (the codec refuses them)."""
        raise NotImplementedError

    def on_settings(self) -> None:
        """See Events."""

    def on_stream_over(self) -> None:
        """See Events."""

    def on_goaway(self, code: int, message: bytes) -> None:
        """See Events."""

    def _tell_writable(self, *, writable: bool) -> None:
        for stream in tuple(self.codec.streams.values()):
            if stream.owner is not None and stream.is_writable:
                stream.owner.on_writable(writable=writable)


REFUSED: Final = ErrorCode.REFUSED_STREAM
