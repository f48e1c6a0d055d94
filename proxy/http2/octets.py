"""What HTTP/2 does octet by octet: join frames of data, write header blocks, look at fields.

There are two, which do the same: the functions here, and ``_octets.c``, compiled when the package is installed where a
C compiler is. All meaning stays in the codec; a field that is not well formed is named there, once.
"""

from __future__ import annotations

import os
import re
from struct import Struct
from typing import Any

from mesh.http.headers import Headers

# RFC 7541 appendix A, from index 1.
STATIC: tuple[tuple[bytes, bytes], ...] = (
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
HEADER_LIST_BYTES = 64 * 1024  # what HTTP/1.1 takes (60 KiB, 100 fields), counted as RFC 9113 §6.5.2 does
TABLE_BYTES = 4096  # of the peer's table (RFC 9113 §6.5.2): we never say otherwise
_LATE_UPDATE = "a change of the table's size behind a field (§4.2)"
_LARGE_TABLE = f"a table of more than {TABLE_BYTES} bytes (§6.3)"
_BAD_INTEGER = "a number without an end, or out of all bounds (§5.1)"
_BAD_PADDING = "a text in Huffman's code that ends within a symbol, or in anything but a few ones (§5.2)"
_ENDS_EARLY = "it ends within a field (§6)"
CREDENTIALS = frozenset((b"authorization", b"proxy-authorization", b"cookie", b"set-cookie"))
_WHOLE = {pair: index for index, pair in enumerate(STATIC, 1) if pair[1]}
_NAMES = {name: index for index, (name, _) in reversed(tuple(enumerate(STATIC, 1)))}
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_CONTROLS = bytes(c for c in range(0x20) if c != 0x09) + b"\x7f"
_BLANKS = (b" ", b"\t")
_HEAD = Struct(">BHBBL")


def join_data(buffer: bytes, position: int, /) -> tuple[bytes, int, int]:
    """A plain DATA frame and those of the same stream right behind it, as far as they are whole, as one.

    At ``position`` a whole frame begins. Gives the joined payload, the position behind, and how many were empty.
    """
    head = buffer[position + 3 : position + 9]  # kind, flags, stream
    pieces, empty, size = [], 0, len(buffer)
    while size - position >= 9 and buffer[position + 3 : position + 9] == head:
        length = int.from_bytes(buffer[position : position + 3], "big")
        end = position + 9 + length
        if end > size or length > 16_384:
            break
        if length:
            pieces.append(buffer[position + 9 : end])
        else:
            empty += 1
        position = end
    return b"".join(pieces), position, empty


def encode(fields: Headers, /) -> bytes:
    """A header block (RFC 7541) of these fields (lower-case names), in this order, that needs no table.

    Each is an entry of the static table, or a literal that is not indexed; credentials are never to be (§7.1.3).
    """
    return b"".join([_encode_field(pair) for pair in fields])


def block_fault(block: bytes, /) -> str | None:
    """What is wrong with a header block, of that which can be told without a table; None where nothing is.

    Native decoders forgive it, and two that forgive differently read two different heads (RFC 7541 §4.2, §5.1, §5.2).
    """
    position, size, at_start = 0, len(block), True
    while position < size:
        first = block[position]
        if first & 0xE0 == 0x20:
            number, position = _read_integer(block, position, 5)
            if not at_start:
                return _LATE_UPDATE
            if number > TABLE_BYTES:
                return _LARGE_TABLE
            strings = 0
        else:
            at_start = False
            prefix = 7 if first & 0x80 else 6 if first & 0x40 else 4
            number, position = _read_integer(block, position, prefix)
            strings = 0 if first & 0x80 else 1 if number else 2
        if position < 0:
            return _BAD_INTEGER
        for _ in range(strings):
            if position == size:
                return _ENDS_EARLY
            is_huffman = block[position] & 0x80
            number, position = _read_integer(block, position, 7)
            if position < 0:
                return _BAD_INTEGER
            if number > size - position:
                return _ENDS_EARLY
            if is_huffman and not _is_padded(block[position : position + number]):
                return _BAD_PADDING
            position += number
    return None


def pairs(fields: list[Any], /) -> Headers:
    """(name, value) of each field, which may hold more."""
    return [(field[0], field[1]) for field in fields]


def frame(kind: int, flags: int, number: int, payload: bytes, /) -> bytes:
    """A frame (RFC 9113 §4.1). The payload is at most 2^24-1 bytes, the stream's number at most 2^31-1."""
    size = len(payload)
    return _HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, number) + payload


def split_lines(lines: list[bytes], /) -> Headers:
    """(name, value) of each line ``name: value``."""
    return [(name, value) for name, _, value in [line.partition(b": ") for line in lines]]


def list_bytes(fields: Headers, /) -> int:
    """The size of a header list (RFC 9113 §6.5.2)."""
    return sum([len(name) + len(value) + 32 for name, value in fields])


def is_well_formed(fields: Headers, /) -> bool:
    """Tell whether names and values are as RFC 9113 §8.2.1 wants them, and HEADER_LIST_BYTES in all at most.

    A name may begin with a colon.
    """
    if list_bytes(fields) > HEADER_LIST_BYTES:
        return False
    for name, value in fields:
        if not _NAME.fullmatch(name[1:] if name[:1] == b":" else name):
            return False
        if value[:1] in _BLANKS or value[-1:] in _BLANKS or len(value.translate(None, _CONTROLS)) != len(value):
            return False
    return True


def _encode_field(pair: tuple[bytes, bytes]) -> bytes:
    name, value = pair
    index = _WHOLE.get(pair)
    if index is not None:
        return _integer(0x80, 7, index)
    pattern = 0x10 if name in CREDENTIALS else 0x00  # §6.2.3 and §6.2.2
    index = _NAMES.get(name)
    head = _integer(pattern, 4, index) if index is not None else _integer(pattern, 4, 0) + _string(name)
    return head + _string(value)


def _string(data: bytes) -> bytes:
    return _integer(0x00, 7, len(data)) + data


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


def _read_integer(block: bytes, position: int, prefix: int) -> tuple[int, int]:
    """§5.1: a number and the position behind it; that is -1 where it has no end, or more than five bytes."""
    limit = (1 << prefix) - 1
    number = block[position] & limit
    if number < limit:
        return number, position + 1
    for shift, byte in enumerate(block[position + 1 : position + 5]):
        number += (byte & 127) << 7 * shift
        if byte < 128:
            return number, position + 2 + shift
    return 0, -1


def _is_padded(text: bytes) -> bool:
    """§5.2: behind the last whole symbol there are fewer than eight bits, all ones; and EOS stands nowhere."""
    left = bits = position = 0  # of ``left`` the lowest ``bits`` are yet to be read
    while True:
        if bits < 30 and position < len(text):
            more = text[position : position + 8]
            left = left << 8 * len(more) | int.from_bytes(more, "big")
            bits, position = bits + 8 * len(more), position + 8
        left &= (1 << bits) - 1
        window = left >> bits - 30 if bits >= 30 else (left + 1 << 30 - bits) - 1  # as if ones followed
        length = next(length for length, limit in _HUFFMAN if window < limit)
        if length > bits:
            return bits < 8 and left == (1 << bits) - 1
        if window == _EOS:
            return False
        bits -= length


def _huffman() -> tuple[tuple[int, int], ...]:
    """For each length of a symbol the 30 bits that are too many to begin one: the code is a canonical one."""
    lengths, code, before = [], 0, 0
    for length, count in _OF_LENGTH:
        code = (code << length - before) + count
        lengths.append((length, code << 30 - length))
        before = length
    return tuple(lengths)


# RFC 7541 appendix B: how many symbols there are of each length, in bits.
_OF_LENGTH = (
    (5, 10), (6, 26), (7, 32), (8, 6), (10, 5), (11, 3), (12, 2), (13, 6), (14, 2), (15, 3), (19, 3), (20, 8), (21, 13),
    (22, 26), (23, 29), (24, 12), (25, 4), (26, 15), (27, 19), (28, 29), (30, 4),
)  # fmt: skip
_HUFFMAN = _huffman()
_EOS = (1 << 30) - 1

IS_COMPILED = False
if not os.environ.get("MESH_PURE_PYTHON"):
    try:
        from proxy.http2 import _octets
    except ImportError:
        pass
    else:
        join_data, encode, block_fault, pairs, is_well_formed, frame, split_lines, list_bytes = (
            _octets.join_data, _octets.encode, _octets.block_fault, _octets.pairs, _octets.is_well_formed,
            _octets.frame, _octets.split_lines, _octets.list_bytes,
        )  # fmt: skip
        IS_COMPILED = True
