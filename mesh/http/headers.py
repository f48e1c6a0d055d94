"""Header fields as ordered pairs of bytes: ``[(lower-case name, value), …]``, repeats and order kept.

Values are forwarded byte for byte. Names are lower-cased once, when parsed (RFC 9110 §5.1: case-insensitive).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

Headers = list[tuple[bytes, bytes]]

# RFC 9110 §7.6.1 and RFC 9112: fields that are about one connection and never forwarded. Transfer-Encoding and
# Content-Length are rebuilt from the parsed framing; Upgrade is served by tunnels only.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"proxy-connection",
        b"keep-alive",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"proxy-authenticate",
        b"proxy-authorization",
    )
)


def get(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The value of the first field called ``name`` (lower case), or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


def get_all(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """The values of all fields called ``name`` (lower case), in order."""
    return [value for key, value in headers if key == name]


def without(headers: Iterable[tuple[bytes, bytes]], *names: bytes) -> Headers:
    """A copy without the fields of these names (lower case)."""
    return [pair for pair in headers if pair[0] not in names]


def list_members(values: Sequence[bytes]) -> Iterator[bytes]:
    """The members of a comma-separated list field over all its lines, stripped, empties left out (RFC 9110 §5.6.1)."""
    for value in values:
        for member in value.split(b","):
            member = member.strip(b" \t")  # noqa: PLW2901 - the stripped member is what is meant
            if member:
                yield member
