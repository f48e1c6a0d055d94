"""A client's connection of which nobody knows yet what it will speak: its first bytes decide, or its silence.

A shell around ``first_bytes``. Once that has decided, the connection is handed to the shell of what is spoken, with
the bytes read so far, and nothing of this module stays in its way. A client that says nothing for ``limits.peek_s``
is taken for one that waits for its server to speak, as those of MySQL, SMTP and SSH do: it becomes a TCP connection
before anybody has noticed, where waiting for its first byte would hang until somebody gives up. A request of HTTP
that comes later on it is carried as bytes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from proxy import tls
from proxy.callbacks import Callbacks, set_callbacks
from proxy.first_bytes import Spoken, likely, spoken
from proxy.http1.downstream import Http1Downstream
from proxy.tcp import TcpDownstream

if TYPE_CHECKING:
    from proxy.listener import Listener


class DetectingDownstream:
    """See the module. It lives from the connection's first moment until its protocol is known."""

    __slots__ = ("_began_s", "_listener", "_seen", "_timer", "transport")

    def __init__(self, listener: Listener) -> None:
        """A client of ``listener``, not yet connected."""
        self._listener = listener
        self._began_s = listener.plane.now_s
        self._seen = b""
        self._timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected: the wait for its first bytes begins."""
        self.transport = cast("asyncio.Transport", transport)
        tls.hear_end(transport, self._on_close_notify)
        if self._listener.admit(self):
            self._wait()
        else:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Its first bytes, or some more of them."""
        self._seen += data
        found = spoken(self._seen)
        if found is None:
            self._wait()
        else:
            self._hand_over(found)

    def eof_received(self) -> bool | None:
        """It sends no more, and may still read: what it has sent is all there is to go by."""
        return self._hand_over(likely(self._seen)).eof_received()

    def _on_close_notify(self) -> None:
        """The same, told by TLS, before anything else was."""
        if not self.transport.is_closing():
            after = self._hand_over(likely(self._seen))
            if isinstance(after, TcpDownstream):
                after.on_close_notify()
            else:
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by either side, before anything was decided."""
        del exc
        self._stop_waiting()
        self._listener.forget(self)

    def pause_writing(self) -> None:
        """Nothing is written yet."""

    def resume_writing(self) -> None:
        """Nothing is written yet."""

    def check_time(self, now: float) -> None:
        """Decide on one that sends byte by byte for longer than a head may take (once a second)."""
        if now - self._began_s > self._listener.limits.head_s:
            self._fall_silent()

    @property
    def has_unsent(self) -> bool:
        """See ClientConnection."""
        return self.transport.get_write_buffer_size() > 0

    def finish(self) -> None:
        """See ClientConnection."""
        self.transport.close()

    def _wait(self) -> None:
        self._stop_waiting()
        self._timer = self._listener.plane.call_later(self._listener.limits.peek_s, self._fall_silent)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fall_silent(self) -> None:
        if not self.transport.is_closing():
            self._hand_over(likely(self._seen))

    def _hand_over(self, found: Spoken) -> Callbacks:
        """Its place on the listener becomes the next one's, so that there is room for it in any case."""
        self._stop_waiting()
        self._listener.forget(self)
        after: Callbacks
        if found is Spoken.HTTP:
            after = Http1Downstream(self._listener)
            tls.hear_end(self.transport, self.transport.close)  # who ends there waits for no answer
        else:
            after = TcpDownstream(self._listener)
        set_callbacks(self.transport, after)
        after.connection_made(self.transport)
        if self._seen:
            after.data_received(self._seen)
        return after

    def __repr__(self) -> str:
        """For debugging."""
        return f"<DetectingDownstream {self._seen[:20]!r}>"
