"""Header fields of HTTP/1.1: what each is to the codec, what holds for all of them, and trailers. Pure."""

from __future__ import annotations

import re
from typing import Final

from mesh.http.headers import HOP_BY_HOP, Fields, Headers, list_members
from mesh.http.message import KNOWN_REQUEST_FIELDS, NOT_SENT
from mesh.http.outcome import BadRequest, HeadersTooLarge, UpstreamProtocolError
from proxy.http1.limits import HeadLimits
from proxy.http1.splitter import CONTROLS, TOKEN_PATTERN, make_splitter

HEAD_END: Final = b"\r\n\r\n"


# A bare LF, or a CR that ends no line (RFC 9112 §2.2); the last byte may be a CR whose LF is yet to come.
BARE_CR_OR_LF: Final = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
# Fields that must never come as a trailer: framing, routing, authentication (RFC 9110 §6.5.1).
_FORBIDDEN_TRAILERS: Final = HOP_BY_HOP | frozenset(
    b"content-length host trailer expect content-encoding content-type content-range".split()
    + b"authorization cookie set-cookie".split()
)
# Nearly every Connection field is one of these, and names no other field.
PERSISTENCE_ONLY: Final = {b"keep-alive": True, b"Keep-Alive": True, b"close": False, b"Close": False}
_MAX_LENGTH_DIGITS: Final = 18  # below 2**63: no reader overflows

_FRAMING: Final = HOP_BY_HOP | {b"host", b"content-length", b"expect"}

# What a field is to the codec. PLAIN ones are forwarded as they are.
PLAIN: Final = 0
HOST: Final = 1
LENGTH: Final = 2
CODING: Final = 3
CONNECTION: Final = 4
EXPECT: Final = 5
DROPPED: Final = 6
KNOWN: Final = 7
SAYS_NOT_SENT: Final = 8
UPGRADE: Final = 9
TE: Final = 10
REQUEST_KINDS: Final = {
    **dict.fromkeys(HOP_BY_HOP, DROPPED),
    **dict.fromkeys(KNOWN_REQUEST_FIELDS, KNOWN),
    b"host": HOST,
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"connection": CONNECTION,
    b"expect": EXPECT,
    b"upgrade": UPGRADE,
    b"te": TE,
}
RESPONSE_KINDS: Final = {
    **dict.fromkeys(HOP_BY_HOP, DROPPED),
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"connection": CONNECTION,
    b"upgrade": UPGRADE,
    NOT_SENT: SAYS_NOT_SENT,
}
request_splitter = make_splitter(REQUEST_KINDS, gathered=KNOWN, single=HOST)
response_splitter = make_splitter(RESPONSE_KINDS, gathered=KNOWN, single=LENGTH)


def too_large(
    head: bytes, limits: HeadLimits, error: type[BadRequest | UpstreamProtocolError]
) -> BadRequest | UpstreamProtocolError:
    """Say how a head exceeds the limits."""
    what = f"{limits.head_bytes} bytes" if len(head) > limits.head_bytes else f"{limits.count} header fields"
    return (HeadersTooLarge if error is BadRequest else error)(f"the head has more than {what}")


def malformed(head: bytes, error: type[BadRequest | UpstreamProtocolError]) -> BadRequest | UpstreamProtocolError:
    """Say what is wrong with a head that no splitter takes."""
    lines = head.split(b"\r\n")
    if len(head.translate(None, CONTROLS)) != len(head) - 2 * (len(lines) - 1):
        return error("bare CR, bare LF or another control character in the head (RFC 9112 §2.2, RFC 9110 §5.5)")
    bad = next((line for line in lines[1:-2] if not TOKEN_PATTERN.fullmatch(line[: max(0, line.find(b":"))])), b"")
    return error(f"malformed header field {bad[:40]!r} (RFC 9112 §5: name, colon, value, nothing before the colon)")


def read_length(value: bytes, error: type[BadRequest | UpstreamProtocolError]) -> int:
    """The number in a Content-Length field. Raises ``error`` for anything but digits."""
    if not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
        message = f"Content-Length {value[:40]!r} is not a number (RFC 9112 §6.2)"
        raise error(message)
    return int(value)


def apply_connection(values: list[bytes], fields: Fields, known: dict[bytes, bytes], *, keep_alive: bool) -> bool:
    """Take out the fields that Connection names (RFC 9110 §7.6.1), but never those that frame the message.

    Gives what it says of the connection's life (RFC 9112 §9.3).
    """
    members = set(list_members([value.lower() for value in values]))
    named = members - _FRAMING - {b"close", b"keep-alive"}
    if named:
        fields.remove(named)
        for name in named:
            known.pop(name, None)
    return False if b"close" in members else keep_alive or b"keep-alive" in members


def upgrade_token(values: list[bytes], connection: list[bytes]) -> bytes | None:
    """The one protocol that Upgrade names and Connection speaks of (RFC 9110 §7.8), in lower case."""
    tokens = list_members(values)
    if len(tokens) != 1 or not all(map(TOKEN_PATTERN.fullmatch, tokens[0].split(b"/", 1))):
        return None
    return tokens[0].lower() if b"upgrade" in list_members([value.lower() for value in connection]) else None


def parse_trailers(section: bytes, error: type[BadRequest | UpstreamProtocolError]) -> Headers:
    """Read a trailer section, given as its lines each ended by CRLF, the empty one left out."""
    trailers: Headers = []
    lines = section.split(b"\r\n")
    if len(section.translate(None, CONTROLS)) != len(section) - 2 * (len(lines) - 1):
        message = "control character in the trailer section (RFC 9110 §5.5)"
        raise error(message)
    for line in lines[:-1]:
        name, colon, value = line.partition(b":")
        lower = name.lower()
        if not colon or not TOKEN_PATTERN.fullmatch(name) or lower in _FORBIDDEN_TRAILERS:
            message = f"trailer field {line[:40]!r} is malformed or may not be one (RFC 9110 §6.5.1)"
            raise error(message)
        trailers.append((lower, value.strip(b" \t")))
    return trailers
