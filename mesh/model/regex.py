r"""Regular expressions of routes: RE2, full match, bounded.

RE2 runs in time linear in what it reads; Python's ``re`` can stop the whole loop on a 27-byte path. A pattern is
bounded in length and in the size of its compiled program, as a table comes from outside and every sidecar compiles
all of it.

What is matched is bytes off the wire, so every byte counts as one character (RE2's Latin-1 mode): ``.`` also takes
bytes that are no UTF-8 and line breaks, else a value with such a byte would slip past a rule that says ``.*``. The
pattern itself is ASCII; other bytes are written ``\xC3\xA9``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import re2

MAX_PATTERN_BYTES: Final = 512
MAX_PROGRAM_SIZE: Final = 1000  # RE2 instructions; Envoy's re2.max_program_size.error_level is of this order
_MAX_MEM_BYTES: Final = 1 << 20  # RE2's own cap, for program and matching cache of one pattern


class RegexError(ValueError):
    """The pattern is not one this mesh runs; the message says why."""


class _Compiled(Protocol):
    """What is used of a compiled RE2 pattern (the package has no types of its own)."""

    programsize: int

    def fullmatch(self, text: bytes, /) -> object | None: ...


class Regex:
    """A compiled pattern; equal patterns share one."""

    __slots__ = ("_compiled", "pattern")

    def __init__(self, pattern: str, compiled: _Compiled) -> None:
        """Made by ``compile_regex``."""
        self.pattern = pattern
        self._compiled = compiled

    def fullmatch(self, text: bytes | str) -> bool:
        """Tell whether the whole of ``text`` matches. A str is taken as Latin-1 where it can be, else as UTF-8."""
        raw = text if isinstance(text, bytes) else _encode(text)
        return self._compiled.fullmatch(raw) is not None

    def __repr__(self) -> str:
        """The pattern, for people."""
        return f"Regex({self.pattern!r})"


def _encode(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


def _options() -> re2.Options:
    import re2  # noqa: PLC0415 - 2 MiB of every process, which nobody needs before a route has a pattern

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.dot_nl = True
    options.never_capture = True
    options.log_errors = False  # RE2 would write to stderr; the error is raised anyway
    options.max_mem = _MAX_MEM_BYTES
    return options


@lru_cache(maxsize=1024)
def compile_regex(pattern: str) -> Regex:
    """Compile ``pattern`` for full matches. Raises RegexError with what is wrong and what would be right."""
    if not pattern.isascii():
        message = (
            "write characters other than ASCII as bytes, such as \\xC3\\xA9: paths and headers are matched as sent"
        )
        raise RegexError(message)
    if len(pattern) > MAX_PATTERN_BYTES:
        message = f"the pattern has {len(pattern)} bytes, at most {MAX_PATTERN_BYTES} are taken"
        raise RegexError(message)
    import re2  # noqa: PLC0415 - as in _options

    try:
        compiled = re2.compile(pattern.encode(), _options())
    except re2.error as error:
        raise RegexError(f"not an RE2 pattern: {_reason(error)}") from error
    if compiled.programsize > MAX_PROGRAM_SIZE:
        message = (
            f"the pattern compiles to {compiled.programsize} steps, at most {MAX_PROGRAM_SIZE} are taken; "
            "shorten its repetitions"
        )
        raise RegexError(message)
    return Regex(pattern, compiled)


def _reason(error: re2.error) -> str:
    """RE2's own words; the binding hands them over as bytes."""
    detail = error.args[0] if error.args else "unknown error"
    return detail.decode("ascii", "replace") if isinstance(detail, bytes) else str(detail)
