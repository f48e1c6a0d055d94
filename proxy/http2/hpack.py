"""HPACK (RFC 7541): header blocks in and out.

In: a native decoder behind a small wrapper (``jh2``'s, in Rust; where it is not to be had, ``hpack`` in Python), since
every block has to be decoded with the peer's own table. Out: without a table of our
own, so that the bytes of a field depend on nothing but the field, and nothing of it is kept (``octets.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from mesh.http.headers import Headers
from proxy.http2.errors import ConnectionFault, ErrorCode
from proxy.http2.octets import block_fault, pairs

NO_TABLE = b"\x20"
"""A dynamic table size update to 0 (§6.3): the first block of a connection says that we index nothing."""


class _Native(Protocol):
    max_header_list_size: int

    def decode(self, data: bytes, raw: bool = False) -> list[Any]: ...  # noqa: FBT001, FBT002 - theirs


class Decoder:
    """Reads the header blocks of one connection, in order."""

    __slots__ = ("_decoder", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        """``max_bytes``: of a header list, counted as RFC 9113 §6.5.2 does (32 more for each field)."""
        self.max_bytes = max_bytes
        self._decoder = _native().make()
        self._decoder.max_header_list_size = max_bytes

    def decode(self, block: bytes) -> Headers:
        """The fields of a block. Raises ConnectionFault: without the table nothing that follows can be read."""
        library = _native()
        fault = block_fault(block)
        if fault is not None:
            message = f"a header block that cannot be decoded (RFC 7541): {fault}"
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, message)
        try:
            return pairs(self._decoder.decode(block, raw=True))
        except library.too_large as error:
            message = f"a header list of more than {self.max_bytes} bytes"
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, message) from error
        except library.malformed as error:
            message = f"a header block that cannot be decoded (RFC 7541): {error}"
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, message) from error
        except BaseException as error:
            # jh2 panics in Rust where a block ends too early, and a panic is no Exception: that is sorted out before.
            if type(error).__name__ != "PanicException":
                raise
            message = "a header block that no decoder reads (RFC 7541)"
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, message) from None


class _Library(NamedTuple):
    """A decoder's maker, and what it raises."""

    make: Callable[[], _Native]
    too_large: type[Exception]
    malformed: tuple[type[Exception], ...]


@functools.cache
def _native() -> _Library:
    """Imported by the first connection that speaks HTTP/2."""
    try:
        from jh2 import _hazmat as native  # noqa: PLC0415
    except ImportError:
        import hpack as native  # noqa: PLC0415
    return _Library(native.Decoder, native.OversizedHeaderListError, (native.HPACKError, ValueError))
