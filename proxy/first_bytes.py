"""What a connection's first bytes tell of its protocol: HTTP, or something that only its two ends know. Pure.

HTTP is told by its request line up to the version (RFC 9112 §3), or by the whole first line of HTTP/2's preface
(RFC 9113 §3.4), and not by the method alone: Redis' inline commands, RTSP and SIP begin with words of HTTP too. Each
byte that rules HTTP out decides at once; most protocols need one. Empty lines before a request, which RFC 9112 §2.2
lets a server ignore, are taken for something else, since other protocols begin so.
"""

from __future__ import annotations

import re
from enum import Enum

from mesh.http.message import METHODS

PREFACE_LINE = b"PRI * HTTP/2.0\r\n"
VERSION = b"HTTP/1."
MAX_LINE_BYTES = 16 * 1024  # as ``limits.request-line-bytes``: a longer target is HTTP's to refuse

_BEGINNINGS = frozenset(method[:end] for method in METHODS for end in range(1, len(method) + 1))
_LONGEST_METHOD = max(map(len, METHODS))
_TARGET = re.compile(rb"[!-~\x80-\xff]*")


class Spoken(Enum):
    """What a client speaks."""

    HTTP = "HTTP"
    """HTTP/1.1 or HTTP/2, which the HTTP/1.1 shell tells apart itself."""
    BYTES = "bytes"
    """Anything else: it passes as it is."""


def spoken(data: bytes) -> Spoken | None:
    """What begins with ``data``; None where more bytes are needed to tell. What was told, no further byte changes."""
    if PREFACE_LINE.startswith(data[: len(PREFACE_LINE)]):
        return None if len(data) < len(PREFACE_LINE) else Spoken.HTTP
    space = data.find(b" ", 0, _LONGEST_METHOD + 1)
    if space < 0:
        return None if data in _BEGINNINGS else Spoken.BYTES
    if data[:space] not in METHODS:
        return Spoken.BYTES
    begin = space + 1
    found = _TARGET.match(data, begin, begin + MAX_LINE_BYTES)
    assert found is not None  # noqa: S101 - it matches nothing, too
    end = found.end()
    if end - begin == MAX_LINE_BYTES:
        return Spoken.HTTP
    if end == len(data):
        return None
    if end == begin or data[end] != 0x20:
        return Spoken.BYTES
    version = data[end + 1 : end + 1 + len(VERSION)]
    if version == VERSION:
        return Spoken.HTTP
    return None if VERSION.startswith(version) else Spoken.BYTES


def likely(data: bytes) -> Spoken:
    """What is to be assumed of a client that has sent ``data`` and fallen silent.

    After a method and a space it is HTTP that is slow. Less than that, or nothing, may be all that another protocol's
    client says before it is answered.
    """
    return spoken(data) or (Spoken.HTTP if b" " in data else Spoken.BYTES)
