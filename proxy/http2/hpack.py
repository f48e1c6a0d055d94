"""HPACK (RFC 7541): header blocks in and out.

In: a native decoder behind a small wrapper (``jh2``'s, in Rust; where it is not to be had, ``hpack`` in Python), since
every block has to be decoded with the peer's own table. Out: without a table of our own. Each field is a literal that
is not indexed, or an entry of the static table, so that the bytes of a field depend on nothing but the field and can be
remembered. Never remembered, and marked as never to be indexed (§7.1.3), is what credentials travel in; not remembered
is what differs with every request, which would only push out the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from mesh.http.headers import Headers
from proxy.http2.errors import ConnectionFault, ErrorCode

MAX_REMEMBERED = 4096
MAX_REMEMBERED_BYTES = 256
_CREDENTIALS = frozenset((b"authorization", b"proxy-authorization", b"cookie", b"set-cookie"))
_VARYING = frozenset((b"traceparent", b"tracestate", b"x-request-id", b":path", b"b3", b"x-b3-traceid", b"x-b3-spanid"))

# RFC 7541 appendix A, from index 1.
_STATIC: tuple[tuple[bytes, bytes], ...] = (
    (b":authority", b""), (b":method", b"GET"), (b":method", b"POST"), (b":path", b"/"), (b":path", b"/index.html"),
    (b":scheme", b"http"), (b":scheme", b"https"), (b":status", b"200"), (b":status", b"204"), (b":status", b"206"),
    (b":status", b"304"), (b":status", b"400"), (b":status", b"404"), (b":status", b"500"), (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"), (b"accept-language", b""), (b"accept-ranges", b""), (b"accept", b""),
    (b"access-control-allow-origin", b""), (b"age", b""), (b"allow", b""), (b"authorization", b""),
    (b"cache-control", b""), (b"content-disposition", b""), (b"content-encoding", b""), (b"content-language", b""),
    (b"content-length", b""), (b"content-location", b""), (b"content-range", b""), (b"content-type", b""),
    (b"cookie", b""), (b"date", b""), (b"etag", b""), (b"expect", b""), (b"expires", b""), (b"from", b""),
    (b"host", b""), (b"if-match", b""), (b"if-modified-since", b""), (b"if-none-match", b""), (b"if-range", b""),
    (b"if-unmodified-since", b""), (b"last-modified", b""), (b"link", b""), (b"location", b""), (b"max-forwards", b""),
    (b"proxy-authenticate", b""), (b"proxy-authorization", b""), (b"range", b""), (b"referer", b""), (b"refresh", b""),
    (b"retry-after", b""), (b"server", b""), (b"set-cookie", b""), (b"strict-transport-security", b""),
    (b"transfer-encoding", b""), (b"user-agent", b""), (b"vary", b""), (b"via", b""), (b"www-authenticate", b""),
)  # fmt: skip
_WHOLE = {pair: index for index, pair in enumerate(_STATIC, 1) if pair[1]}
_NAMES = {name: index for index, (name, _) in reversed(tuple(enumerate(_STATIC, 1)))}

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
        try:
            return [(field[0], field[1]) for field in self._decoder.decode(block, raw=True)]
        except library.too_large as error:
            message = f"a header list of more than {self.max_bytes} bytes"
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, message) from error
        except library.malformed as error:
            message = f"a header block that cannot be decoded (RFC 7541): {error}"
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, message) from error
        except BaseException as error:
            # jh2 panics in Rust where a block ends too early, and a panic is no Exception.
            if type(error).__name__ != "PanicException":
                raise
            message = "a header block that ends too early (RFC 7541)"
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


_remembered: dict[tuple[bytes, bytes], bytes] = {}


def encode(fields: Headers) -> bytes:
    """A block of these fields (lower-case names), in this order."""
    find = _remembered.get
    return b"".join([find(pair) or _encode_field(pair) for pair in fields])


def _encode_field(pair: tuple[bytes, bytes]) -> bytes:
    name, value = pair
    if name in _CREDENTIALS:
        return _literal(0x10, 4, name, value)  # §6.2.3: never indexed
    index = _WHOLE.get(pair)
    encoded = _integer(0x80, 7, index) if index is not None else _literal(0x00, 4, name, value)
    if len(encoded) <= MAX_REMEMBERED_BYTES and name not in _VARYING:
        if len(_remembered) >= MAX_REMEMBERED:
            _remembered.clear()
        _remembered[pair] = encoded
    return encoded


def _literal(pattern: int, prefix: int, name: bytes, value: bytes) -> bytes:
    index = _NAMES.get(name)
    head = _integer(pattern, prefix, index) if index is not None else _integer(pattern, prefix, 0) + _string(name)
    return head + _string(value)


def _string(data: bytes) -> bytes:
    size = len(data)
    return (bytes((size,)) if size < 127 else _integer(0x00, 7, size)) + data


def _integer(pattern: int, prefix: int, value: int) -> bytes:
    """§5.1: ``value`` in the low ``prefix`` bits of a byte that begins with ``pattern``, continued in sevens."""
    limit = (1 << prefix) - 1
    if value < limit:
        return bytes((pattern | value,))
    out = bytearray((pattern | limit,))
    value -= limit
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
