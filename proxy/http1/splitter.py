"""Splits the head of an HTTP/1.1 message into its lines, those that mean something to the codec set apart; joins one.

There are two, which do the same: the one here, and ``_splitter.c``, compiled when the package is installed where a C
compiler is (12 of 31 µs that a request costs in Python go into this otherwise). Neither says why a head is malformed:
that is for the codec, once. All meaning stays in the codec; here are only characters and names.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

Split: TypeAlias = tuple[bytes, list[bytes], dict[bytes, bytes], bytes | None, list[tuple[int, bytes, bytes]], int]
"""The first line; lines to forward as they are; what was gathered; the first value of the single kind; (kind,
lower-case name, value) of every other field; how many fields there were. Values are without outer blanks."""

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
    """See HeadSplitter. ``kinds``: the lower-case names that are set apart, each with a number other than 0.

    Fields of the kind ``gathered`` go into a dict by their name; of the kind ``single`` a message has one as a rule,
    which is given by itself. What is repeated of either stands with the rest: nothing is joined before it is counted.
    """

    def __init__(self, kinds: dict[bytes, int], gathered: int, single: int) -> None:
        """Take what the names mean."""
        self._kinds = kinds
        self._gathered = gathered
        self._single = single
        self.seen: dict[bytes, int] = {}
        """Good names, as spelled, with their kind or 0. Bounded."""

    def split(self, head: bytes, /) -> Split | None:
        """See HeadSplitter."""
        lines = head.split(b"\r\n")
        if len(head.translate(None, CONTROLS)) != len(head) - 2 * (len(lines) - 1) or head[-4:] != b"\r\n\r\n":
            return None
        plain: list[bytes] = []
        known: dict[bytes, bytes] = {}
        single: bytes | None = None
        special: list[tuple[int, bytes, bytes]] = []
        kind_of = self.seen.get
        for line in lines[1:-2]:
            name, colon, value = line.partition(b":")
            kind = kind_of(name)
            if kind is None or not colon:
                if not colon or not TOKEN_PATTERN.fullmatch(name):
                    return None
                kind = self._learn(name)
            if not kind:
                plain.append(line)
                continue
            name, value = name.lower(), value.strip(b" \t")
            if kind == self._gathered and name not in known:
                known[name] = value
            elif kind == self._single and single is None:
                single = value
            else:
                special.append((kind, name, value))
        return lines[0], plain, known, single, special, len(lines) - 3

    def _learn(self, name: bytes) -> int:
        kind = self._kinds.get(name.lower(), 0)
        if len(name) <= MAX_NAME_BYTES:
            if len(self.seen) >= MAX_NAMES:
                self.seen.clear()
            self.seen[name] = kind
        return kind


def make_splitter(kinds: dict[bytes, int], gathered: int, single: int) -> HeadSplitter:
    """The compiled one where there is one and MESH_PURE_PYTHON does not ask for the other. See PythonSplitter."""
    return (PythonSplitter if _Compiled is None else _Compiled)(kinds, gathered, single)


def join_head(
    front: Sequence[bytes], lines: Sequence[bytes], added: Sequence[bytes], tail: Sequence[bytes], /
) -> bytes:
    """A head: the pieces of its first line; field lines; more of them; and the pieces behind the last CRLF."""
    return b"\r\n".join((b"".join(front), *lines, *added, b"".join(tail)))


def _compiled() -> Callable[[dict[bytes, int], int, int], HeadSplitter] | None:
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
        "Nothing is compiled: requests cost half as much again. To have them compiled:\n"
        "  sudo apt-get install gcc python3-dev && make clean setup\n"
    )
