"""Splits the head of an HTTP/1.1 message into its lines, those that mean something to the codec set apart.

There are two, which do the same: the one here, and ``_splitter.c``, compiled when the package is installed where a C
compiler is (12 of 31 µs that a request costs in Python go into this otherwise). Neither says why a head is malformed:
that is for the codec, once. All meaning stays in the codec; here are only characters and names.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Protocol, TypeAlias

Split: TypeAlias = tuple[bytes, list[bytes], list[tuple[int, bytes, bytes]]]
"""First line; lines to forward as they are; and (kind, lower-case name, value without outer blanks) of each other."""

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
TOKEN_PATTERN = re.compile(TOKEN)
# RFC 9110 §5.5: no control characters in values, but tab. With CR and LF: a head has none but those of its line ends.
CONTROLS = bytes(c for c in range(32) if c != 9) + b"\x7f"
MAX_NAMES = 2048
MAX_NAME_BYTES = 256


class HeadSplitter(Protocol):
    """What both are."""

    def split(self, head: bytes, /) -> Split | None:
        """Split one whole head, CRLFCRLF included; None where it is malformed.

        Malformed is: a control character other than tab, a CR or LF that is not part of a line's end (RFC 9112
        §2.2), or a field line that does not begin with a token and a colon (§5, §5.1).
        """


class PythonSplitter:
    """See HeadSplitter. ``kinds``: the lower-case names that are set apart, each with a number other than 0."""

    def __init__(self, kinds: dict[bytes, int]) -> None:
        """Take what the names mean."""
        self._kinds = kinds
        self.seen: dict[bytes, int] = {}
        """Good names, as spelled, with their kind or 0. Bounded."""

    def split(self, head: bytes, /) -> Split | None:
        """See HeadSplitter."""
        lines = head.split(b"\r\n")
        if len(head.translate(None, CONTROLS)) != len(head) - 2 * (len(lines) - 1) or head[-4:] != b"\r\n\r\n":
            return None
        plain: list[bytes] = []
        special: list[tuple[int, bytes, bytes]] = []
        kind_of = self.seen.get
        for line in lines[1:-2]:
            name, colon, value = line.partition(b":")
            kind = kind_of(name)
            if kind is None or not colon:
                if not colon or not TOKEN_PATTERN.fullmatch(name):
                    return None
                kind = self._learn(name)
            if kind:
                special.append((kind, name.lower(), value.strip(b" \t")))
            else:
                plain.append(line)
        return lines[0], plain, special

    def _learn(self, name: bytes) -> int:
        kind = self._kinds.get(name.lower(), 0)
        if len(name) <= MAX_NAME_BYTES:
            if len(self.seen) >= MAX_NAMES:
                self.seen.clear()
            self.seen[name] = kind
        return kind


def make_splitter(kinds: dict[bytes, int]) -> HeadSplitter:
    """The compiled one where there is one and MESH_PURE_PYTHON does not ask for the other."""
    return PythonSplitter(kinds) if _Compiled is None else _Compiled(kinds)


def _compiled() -> Callable[[dict[bytes, int]], HeadSplitter] | None:
    if os.environ.get("MESH_PURE_PYTHON"):
        return None
    try:
        from proxy.http1._splitter import Splitter  # noqa: PLC0415 - it may not be there
    except ImportError:
        return None
    return Splitter


_Compiled = _compiled()
IS_COMPILED = _Compiled is not None

if __name__ == "__main__" and not IS_COMPILED:
    sys.stderr.write(
        "Heads of messages are read in Python, a quarter slower than compiled. For the compiled reader:\n"
        "  sudo apt-get install gcc python3-dev && make clean setup\n"
    )
