"""What the mesh has to know of gRPC over HTTP/2: timeouts, statuses, and what a server says about retries. Pure.

Source: grpc/doc/PROTOCOL-HTTP2.md, grpc/doc/statuscodes.md and gRPC's proposal A6 (client retries). What browsers speak
instead stands in ``grpc_web.py``; here is only how a head tells of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

TIMEOUT: Final = b"grpc-timeout"
STATUS: Final = b"grpc-status"
PUSHBACK: Final = b"grpc-retry-pushback-ms"
PREVIOUS_ATTEMPTS: Final = b"grpc-previous-rpc-attempts"
CALL_FIELDS: Final = frozenset((TIMEOUT, PREVIOUS_ATTEMPTS))
"""What a call says to the next hop only, which writes it anew."""

_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_DIGITS: Final = 10**8
_AFTER_TYPE: Final[tuple[bytes, ...]] = (b"", b"+", b";")  # not "-": gRPC-Web is another protocol
WEB_TYPE: Final = b"application/grpc-web"
_WEB_TYPE: Final = re.compile(rb"application/grpc-web(-text)?(\+[0-9a-z.-]+)?[ \t]*(?:;.*)?")
MAX_PUSHBACK_MS: Final = 60_000  # ours: who asks for more is not waited for


class Status(IntEnum):
    """gRPC's status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


FAILURES: Final = frozenset((Status.UNKNOWN, Status.INTERNAL, Status.UNAVAILABLE, Status.DATA_LOSS))
"""What says something of the server's health. DEADLINE_EXCEEDED does not: the caller chose how long it may take."""


@dataclass
class GrpcCall:
    """What a call says of itself: ``timeout_s`` is 0 where it has no deadline, ``previous_attempts`` its caller's.

    ``web`` is the content-type of a call that is made in gRPC-Web, else empty.
    """

    timeout_s: float = 0.0
    previous_attempts: int = 0
    web: bytes = b""


def is_grpc_type(content_type: bytes) -> bool:
    """Tell whether a message of that content-type is gRPC's: ``application/grpc``, ``application/grpc+proto``."""
    return content_type[:16] == b"application/grpc" and content_type[16:17] in _AFTER_TYPE


def read_web_type(content_type: bytes) -> tuple[bool, bytes] | None:
    """Whether a gRPC-Web message of that content-type is text, and its ``+proto`` or such; None where it is none."""
    match = _WEB_TYPE.fullmatch(content_type)
    return None if match is None else (match[1] is not None, match[2] or b"")


def call_of(method: bytes, content_type: bytes, fields: list[tuple[bytes, bytes]]) -> GrpcCall | None:
    """The call that a request of HTTP/2 begins; ``fields`` are those of CALL_FIELDS. None where it is no call.

    Raises ValueError, with what is wrong, where its deadline is none.
    """
    if is_grpc_type(content_type):
        return _read_call(fields) if fields else GrpcCall()
    return web_call(method, content_type, fields)


def web_call(method: bytes, content_type: bytes, fields: list[tuple[bytes, bytes]]) -> GrpcCall | None:
    """The same of gRPC-Web, which any version of HTTP carries. It is a POST: a GET of that type asks for something."""
    if method != b"POST" or _WEB_TYPE.fullmatch(content_type) is None:
        return None
    call = _read_call(fields)
    call.web = content_type
    return call


def _read_call(fields: Iterable[tuple[bytes, bytes]]) -> GrpcCall:
    """What the fields of a call say that every hop writes anew."""
    call = GrpcCall()
    for name, value in fields:
        if name == TIMEOUT:
            timeout_s = parse_timeout(value)
            if timeout_s is None:
                message = f"grpc-timeout {value[:20]!r} is none"
                raise ValueError(message)
            call.timeout_s = max(timeout_s, 1e-6)
        elif value.isdigit() and len(value) < 6:
            call.previous_attempts = int(value)
    return call


def parse_timeout(value: bytes) -> float | None:
    """The seconds of a ``grpc-timeout``; None where it is none."""
    match = _TIMEOUT.fullmatch(value)
    return None if match is None else int(match[1]) * _UNITS[match[2]]


def format_timeout(seconds: float) -> bytes:
    """A ``grpc-timeout`` of that many seconds, never more, in the finest unit that eight digits leave room for."""
    for unit in (b"u", b"m", b"S", b"M"):
        count = int(max(0.0, seconds) / _UNITS[unit])
        if count < _DIGITS:
            return b"%d%b" % (count, unit)
    return b"%dH" % min(int(seconds / _UNITS[b"H"]), _DIGITS - 1)


def status_in(fields: Iterable[tuple[bytes, bytes]]) -> int | None:
    """The ``grpc-status`` of trailers, or of a head that is trailers at once; None where none is there."""
    for name, value in fields:
        if name == STATUS:
            return int(value) if value.isdigit() and len(value) <= 10 else Status.UNKNOWN
    return None


def pushback_s(fields: Iterable[tuple[bytes, bytes]]) -> float | None:
    """How long the server wants to be left alone before a retry. Negative: for ever. None: it says nothing (A6)."""
    for name, value in fields:
        if name == PUSHBACK:
            if value.isdigit() and int(value[:9]) <= MAX_PUSHBACK_MS:
                return int(value[:9]) / 1000.0
            return -1.0
    return None
