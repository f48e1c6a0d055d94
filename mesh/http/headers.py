"""Header fields as ordered pairs of bytes: ``[(lower-case name, value), …]``, repeats and order kept.

Values are forwarded byte for byte. ``Fields`` holds them in two forms, as pairs and as HTTP/1.1 lines, and makes each
from the other only when somebody asks: between two HTTP/1.1 connections nobody reads most fields.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

Headers = list[tuple[bytes, bytes]]

# RFC 9110 §7.6.1 and RFC 9112: fields that are about one connection and never forwarded. Transfer-Encoding and
# Content-Length are rebuilt from the parsed framing; Upgrade is served by tunnels only.
HOP_BY_HOP: Final = frozenset(
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


class Fields:
    """A head's fields. Whoever makes one of lines has checked them: a token, a colon, a value without CR, LF, controls.

    ``lines`` carry no CRLF, and names in them are spelled as they came (RFC 9110 §5.1: case-insensitive).
    """

    __slots__ = ("_lines", "_pairs")

    def __init__(self, pairs: Headers | None = None, lines: list[bytes] | None = None) -> None:
        """Give one of the two; none is no fields. The list given is owned from now on."""
        self._pairs = pairs
        self._lines = [] if pairs is None and lines is None else lines

    @property
    def pairs(self) -> Headers:
        """The fields as pairs; do not change the list."""
        pairs = self._pairs
        if pairs is None:
            pairs = self._pairs = [
                (name.lower(), value.strip(b" \t"))
                for name, _, value in [line.partition(b":") for line in self._lines or ()]
            ]
        return pairs

    @property
    def lines(self) -> list[bytes]:
        """The fields as lines; do not change the list."""
        lines = self._lines
        if lines is None:
            lines = self._lines = [b"%b: %b" % pair for pair in self._pairs or ()]
        return lines

    def append(self, name: bytes, value: bytes) -> None:
        """Put a field behind the others; ``name`` is lower case."""
        if self._lines is not None:
            self._lines.append(b"%b: %b" % (name, value))
        if self._pairs is not None:
            self._pairs.append((name, value))

    def append_line(self, line: bytes) -> None:
        """Put a field behind the others, given as a line."""
        if self._lines is not None:
            self._pairs = None
            self._lines.append(line)
        else:
            name, _, value = line.partition(b":")
            self._pairs = [*self.pairs, (name.lower(), value.strip(b" \t"))]

    def remove(self, names: Collection[bytes]) -> None:
        """Take out all fields of these names (lower case)."""
        self._pairs = [pair for pair in self.pairs if pair[0] not in names]
        self._lines = None

    def get(self, name: bytes) -> bytes | None:
        """The first value of ``name`` (lower case), or None."""
        return get(self.pairs, name)

    def __len__(self) -> int:
        """How many fields there are."""
        return len(self.pairs if self._lines is None else self._lines)

    def __repr__(self) -> str:
        """The pairs, for people."""
        return f"Fields({self.pairs!r})"


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


def list_members(values: Sequence[bytes]) -> list[bytes]:
    """The members of a comma-separated list field over all its lines, stripped, empties left out (RFC 9110 §5.6.1)."""
    members = [member.strip(b" \t") for value in values for member in value.split(b",")]
    return [member for member in members if member]
