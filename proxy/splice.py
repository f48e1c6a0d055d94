"""One direction of a TCP tunnel, moved by the kernel: splice(2) from socket to socket by way of a pipe.

What is moved so is neither copied into this process nor out of it, which is most of what a large transfer costs. It
begins once a tunnel has read much at a time, and stays until the direction ends: two pipes and two more descriptors
for each connection would be too much for short ones. The transports go on to own their connections: ours are
duplicates of their descriptors, and the loop tells the transport of the end, which it then finds by itself.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from typing import TYPE_CHECKING, Final

from proxy.file_limit import splices_within_limit

if TYPE_CHECKING:
    from proxy.tunnel import TunnelEnd

WORTH_BYTES: Final = 64 * 1024
"""A read of that much says that there is more."""
PIPE_BYTES: Final = 256 * 1024
AT_ONCE: Final = 16  # times a pipe is filled before others have their turn
FLAGS: Final = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE

_running = 0


def running() -> int:
    """How many there are in this process."""
    return _running


def has_room() -> bool:
    """Tell whether one more may run."""
    return _running < splices_within_limit()


class Splice:
    """See the module. ``source`` is read no more by its transport, and nobody else writes to ``sink``."""

    __slots__ = ("_awaits_sink", "_files", "_held", "_is_counted", "_loop", "_sink", "_source")

    def __init__(self, source: TunnelEnd, sink: TunnelEnd) -> None:
        """It begins when all that was written to ``sink`` has gone out."""
        self._source = source
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._files: list[int] = []
        """The pipe's ends to read and to write, duplicates of source and sink; none while it does not run."""
        self._is_counted = False
        self._held = 0
        self._awaits_sink = False
        source.transport.pause_reading()
        # uvloop sends at the end of the loop's turn, so that there may be something left whatever the buffer says.
        self._loop.call_soon(self.go_on)

    def go_on(self) -> None:
        """The sink's buffer may be empty now."""
        source, sink = self._source, self._sink
        if self._files or source.splice is not self or source.transport.is_closing() or sink.transport.is_closing():
            return
        if sink.transport.get_write_buffer_size():
            sink.transport.set_write_buffer_limits(high=0)  # the sink is told when it is empty, and tells us
            return
        try:
            self._duplicate()
        except OSError:  # too many files are open: it goes on the usual way
            self.stop()
            sink.transport.set_write_buffer_limits()
            source.resume_reading()
            return
        self._loop.add_reader(self._files[2], self._move)

    def _duplicate(self) -> None:
        global _running  # noqa: PLW0603 - files are the process's, too
        _running += 1
        self._is_counted = True
        files = self._files
        files.extend(os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        fcntl.fcntl(files[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        for end in (self._source, self._sink):
            files.append(os.dup(end.transport.get_extra_info("socket").fileno()))

    def stop(self) -> None:
        """Give the files back. What is still in the pipe is lost: then one of the two connections is, too."""
        global _running  # noqa: PLW0603
        if self._is_counted:
            self._is_counted = False
            _running -= 1
        files, self._files = self._files, []
        for file in files[2:]:
            self._loop.remove_reader(file)
            self._loop.remove_writer(file)
        for file in files:
            os.close(file)
        if self._source.splice is self:
            self._source.splice = None
        if self._sink.spliced_from is self:
            self._sink.spliced_from = None

    def _move(self) -> None:
        """The source has something, or the sink has room."""
        out, into, source, sink = self._files
        for _ in range(AT_ONCE):
            size = 0
            if not self._held:
                try:
                    size = os.splice(source, into, PIPE_BYTES, flags=FLAGS)
                except BlockingIOError:
                    break
                except OSError as error:
                    self._fail(self._source, error)
                    return
                if not size:
                    self.stop()
                    self._source.resume_reading()  # its transport finds the end
                    return
                self._held = size
                self._source.on_moved(size)
            try:
                self._held -= os.splice(out, sink, self._held, flags=FLAGS)
            except BlockingIOError:
                self._await_sink(awaits=True)
                return
            except OSError as error:
                self._fail(self._sink, error)
                return
            if not self._held and size < WORTH_BYTES:
                break  # more would have come along
        self._await_sink(awaits=self._held > 0)

    def _await_sink(self, *, awaits: bool) -> None:
        if awaits is self._awaits_sink:
            return
        self._awaits_sink = awaits
        if awaits:
            self._loop.remove_reader(self._files[2])
            self._loop.add_writer(self._files[3], self._move)
        else:
            self._loop.remove_writer(self._files[3])
            self._loop.add_reader(self._files[2], self._move)

    def _fail(self, end: TunnelEnd, error: OSError) -> None:
        """A connection has broken. Reading the error took it from its transport, so it is passed on to that."""
        self.stop()
        end.broken = error
        if not end.transport.is_closing():
            end.transport.abort()
