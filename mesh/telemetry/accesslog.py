"""The access log: one line for each request, as JSON or as text with Envoy's fields.

The request path adds a tuple to a list. Lines are made of some dozens at a time: often enough that what they are made
of is still in the processor's cache, and seldom enough that the code is. (A thread would hold the interpreter for as
long, at a moment nobody chose.) They are written by a thread of the log's own, so that a slow disk or a stalled reader
of standard output costs lines, which are counted, and never a request.

One request is always one line, whatever bytes it was made of: everything that is not printable ASCII is escaped.
A file may be rotated at any time: it is opened anew when its name leads to another file, or none, and on ``reopen``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import queue
import re
import select
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

logger = logging.getLogger(__name__)

FLUSH_S = 0.1
BATCH = 64  # lines made at a stretch: 50 µs as JSON, 200 as text
WRITE_BYTES = 256 * 1024  # written at a stretch, under load: waking the writer costs as much as ten lines
MAX_UNWRITTEN_BYTES = 8 * 1024 * 1024  # half a second of a busy sidecar
CLOSE_S = 2.0
WARN_EVERY_S = 60.0
STANDARD_OUTPUT = "-"

_MS, _US = 1000.0, 1_000_000.0


class Entry(NamedTuple):
    """One request. Times are monotonic seconds (``upstream_s`` 0 where no endpoint answered); bytes are raw."""

    started_s: float
    ended_s: float
    upstream_s: float
    method: bytes
    target: bytes
    version: bytes
    status: int
    flag: str
    received: int
    sent: int
    forwarded_for: bytes | None
    user_agent: bytes | None
    request_id: bytes
    authority: bytes
    upstream: str
    listener: str
    downstream: str
    trace_id: bytes
    route: str
    cluster: str
    retries: int
    grpc_status: int | None
    """Of a gRPC call: what its caller got, from the server or from us (mesh/http/grpc.py)."""
    error: str


class Line(msgspec.Struct, omit_defaults=False):
    """A line as JSON; names.LOG_FIELDS. Durations in ms."""

    start_time: str
    method: str
    path: str
    protocol: str
    response_code: int
    response_flags: str
    bytes_received: int
    bytes_sent: int
    duration: float
    upstream_service_time: float | None
    x_forwarded_for: str | None
    user_agent: str | None
    request_id: str | None
    authority: str
    upstream_host: str | None
    listener: str
    downstream_address: str
    trace_id: str | None
    route: str | None
    cluster: str | None
    retries: int
    grpc_status: int | None
    error: str | None


class Clock:
    """Monotonic seconds to ``2026-11-22T10:00:00.123Z``; the part up to the second is made once a second."""

    def __init__(self, offset_s: float) -> None:
        """``offset_s`` makes Unix time of monotonic time."""
        self.offset_s = offset_s
        self._second = -1
        self._text = ""

    def text(self, monotonic_s: float) -> str:
        """The time of day, UTC."""
        ms = int((monotonic_s + self.offset_s) * _MS + 0.5)
        second, ms = divmod(ms, 1000)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{ms:03d}Z"


_encode = msgspec.json.Encoder().encode


def json_lines(entries: list[Entry], clock: Clock) -> bytes:
    r"""Entries as lines of JSON; unknown is null. What is not ASCII shows as ``\xNN``, the rest JSON escapes."""

    def escaped(entry: Entry) -> bytes:
        return escaped_json_line(entry, clock.text(entry[0]))

    if compiled_json_lines is None:
        return b"".join(map(escaped, entries))
    return compiled_json_lines(entries, clock.offset_s, escaped)


def _compiled() -> Callable[[list[Entry], float, Callable[[Entry], bytes]], bytes] | None:
    if os.environ.get("MESH_PURE_PYTHON"):
        return None
    try:
        from mesh.telemetry import _log_line  # noqa: PLC0415 - it may not be there
    except ImportError:
        return None
    return _log_line.json_lines


compiled_json_lines = _compiled()
"""Asks its third argument for a line in which something has to be escaped, which is next to none. ``_log_line.c``."""


def escaped_json_line(entry: Entry, text: str) -> bytes:
    """One line, for any entry; ``text`` is its time."""
    (
        started_s, ended_s, upstream_s, method, target, version, status, flag, received, sent, forwarded_for, agent,
        request_id, authority, upstream, listener, downstream, trace_id, route, cluster, retries, grpc_status, error,
    ) = entry  # fmt: skip
    raw = (method, target, version, forwarded_for or b"", agent or b"", request_id, authority)
    # One conversion for all is a third of one for each. No NUL passes the codec; where one did, each goes by itself.
    texts = b"\0".join(raw).decode("ascii", "backslashreplace").split("\0")
    if len(texts) != len(raw):
        texts = [value.decode("ascii", "backslashreplace") for value in raw]
    line = Line(
        text,
        texts[0],
        texts[1],
        "HTTP/" + texts[2] if version else "-",
        status,
        flag or "-",
        received,
        sent,
        int((ended_s - started_s) * _US) / _MS,
        int(upstream_s * _US) / _MS if upstream_s else None,
        texts[3] or None,
        texts[4] or None,
        texts[5] or None,
        texts[6],
        _only_ascii(upstream) or None,
        listener,
        downstream,
        trace_id.decode() or None,
        _only_ascii(route) or None,
        _only_ascii(cluster) or None,
        retries,
        grpc_status,
        _only_ascii(error) or None,
    )
    return _encode(line) + b"\n"


def _only_ascii(text: str) -> str:
    return text if text.isascii() else text.encode("ascii", "backslashreplace").decode()


_PLAIN = bytes(c for c in range(0x20, 0x7F) if c not in b'"\\')


def text_lines(entries: list[Entry], clock: Clock) -> bytes:
    """Entries as lines of text."""
    return b"".join([text_line(entry, clock) for entry in entries])


def text_line(entry: Entry, clock: Clock) -> bytes:
    """An entry as Envoy's default format has it, with the mesh's own fields behind; unknown is ``-``."""
    (
        started_s, ended_s, upstream_s, method, target, version, status, flag, received, sent, forwarded_for, agent,
        request_id, authority, upstream, listener, downstream, trace_id, route, cluster, retries, grpc_status, error,
    ) = entry  # fmt: skip
    raw = (method, target, version, forwarded_for or b"-", agent or b"-", request_id or b"-", authority or b"-")
    joined = b"\0".join(raw)
    if joined.translate(None, _PLAIN) == b"\0" * (len(raw) - 1):  # nothing to escape: nearly always
        texts = joined.decode("ascii").split("\0")
    else:
        texts = [_printable(value) for value in raw]
    return (
        f'[{clock.text(started_s)}] "{texts[0]} {texts[1]} {"HTTP/" + texts[2] if version else "-"}" '
        f"{status} {flag or '-'} {received} {sent} {int((ended_s - started_s) * _MS + 0.5)} "
        f"{int(upstream_s * _MS + 0.5) if upstream_s else '-'} "
        f'"{texts[3]}" "{texts[4]}" "{texts[5]}" "{texts[6]}" "{_known(upstream)}" {listener} {downstream or "-"} '
        f'{trace_id.decode() or "-"} "{_known(route)}" "{_known(cluster)}" {retries} '
        f"{'-' if grpc_status is None else grpc_status} "
        f'"{_printable(error.encode("utf-8", "replace")) if error else "-"}"\n'
    ).encode("ascii", "backslashreplace")


_UNPRINTABLE = re.compile(rb"[^\x20\x21\x23-\x5b\x5d-\x7e]")  # and the quote and the backslash


def _printable(value: bytes | None) -> str:
    if not value:
        return "-"
    if _UNPRINTABLE.search(value):
        value = _UNPRINTABLE.sub(lambda found: b"\\x%02x" % found[0][0], value)
    return value.decode("ascii")


@functools.lru_cache(1024)
def _known(text: str) -> str:
    """One of few texts, printable."""
    return _printable(text.encode("utf-8", "replace"))


class AccessLog:
    """See the module. ``add`` is the only method on the request path."""

    def __init__(self, path: str, format_: str, *, max_unwritten_bytes: int = MAX_UNWRITTEN_BYTES) -> None:
        """``path`` ``-`` is standard output; ``format_`` is json or text. Nothing is opened before the first line."""
        self._make = json_lines if format_ == "json" else text_lines
        self._max_unwritten_bytes = max_unwritten_bytes
        self._entries: list[Entry] = []
        self._made: list[bytes] = []
        self._made_bytes = self._made_lines = 0
        self._timer: asyncio.TimerHandle | None = None
        self._refused = 0
        self._handed_over = 0
        self._writer = Writer(path)

    def add(self, entry: Entry) -> None:
        """Take a line in; where the writer is too far behind it is dropped and counted."""
        entries = self._entries
        entries.append(entry)
        if len(entries) >= BATCH:
            self._make_lines()
            if self._made_bytes >= WRITE_BYTES:
                self._hand_over()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def reopen(self) -> None:
        """Open the file anew before the next line (after a rotation)."""
        self._writer.wants_reopening = True

    @property
    def lines(self) -> int:
        """Lines written."""
        return self._writer.lines

    @property
    def dropped(self) -> int:
        """Lines lost."""
        return self._refused + self._writer.dropped

    async def close(self, deadline_s: float = CLOSE_S) -> None:
        """Write what is queued, for at most that long, and stop."""
        if self._timer is not None:
            self._timer.cancel()
        self._flush()
        await asyncio.to_thread(self._writer.close, deadline_s)

    def _flush(self) -> None:
        self._timer = None
        self._make_lines()
        self._hand_over()

    def _make_lines(self) -> None:
        entries, self._entries = self._entries, []  # first of all: what cannot be made must not be tried for ever
        if self._handed_over - self._writer.taken + self._made_bytes > self._max_unwritten_bytes:
            self._refused += len(entries)
        elif entries:
            data = self._make(entries, Clock(time.time() - time.monotonic()))
            self._made.append(data)
            self._made_bytes += len(data)
            self._made_lines += len(entries)

    def _hand_over(self) -> None:
        if self._made:
            self._writer.put(b"".join(self._made), self._made_lines)
            self._handed_over += self._made_bytes
            self._made.clear()
            self._made_bytes = self._made_lines = 0


class Writer:
    """Writes what it is given, in order, from a thread of its own. Never raises; a failure costs the lines.

    The thread is a daemon: a reader of standard output that has stalled for good must not keep the process alive.
    """

    def __init__(self, path: str) -> None:
        """The thread begins with the first ``put``."""
        self._path = path
        self._fd = -1
        self._work: queue.SimpleQueue[tuple[bytes, int] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closing = False
        self._warned_s = -WARN_EVERY_S
        self.wants_reopening = False
        # Each is changed by the thread alone.
        self.taken = 0
        self.lines = 0
        self.dropped = 0

    def put(self, data: bytes, lines: int) -> None:
        """Have ``data`` written soon."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
            self._thread.start()
        self._work.put((data, lines))

    def close(self, deadline_s: float) -> None:
        """Wait, for at most that long, until all is written. Blocks."""
        if self._thread is not None:
            self._is_closing = True
            self._work.put(None)
            self._thread.join(deadline_s)
            self._thread = None

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            data, lines = work
            try:
                self._write(data)
            except OSError as error:
                self.dropped += lines
                self._warn(error)
                self._close_file()
            else:
                self.lines += lines
            self.taken += len(data)
        self._close_file()

    def _write(self, data: bytes) -> None:
        fd = self._opened()
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:  # somebody made the pipe non-blocking
                select.select((), (fd,), (), 1.0)

    def _opened(self) -> int:
        if self._path == STANDARD_OUTPUT:
            return 1
        if self._fd >= 0 and (self.wants_reopening or self._is_rotated()):
            self._close_file()
        if self._fd < 0:
            self.wants_reopening = False
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        return self._fd

    def _is_rotated(self) -> bool:
        ours = os.fstat(self._fd)
        try:
            named = os.stat(self._path)  # noqa: PTH116 - beside fstat
        except FileNotFoundError:
            return True
        return (ours.st_dev, ours.st_ino) != (named.st_dev, named.st_ino)

    def _close_file(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    def _warn(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._warned_s >= WARN_EVERY_S:
            self._warned_s = now
            logger.warning("access log lines are being dropped (%d so far): %s", self.dropped, error)
