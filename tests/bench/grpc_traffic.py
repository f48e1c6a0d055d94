"""gRPC calls, made beforehand, the same bytes for every proxy. Pure.

Ten routes with two methods each, ten header fields, a traceparent of its own on each call, a message of 20 bytes. The
header blocks are what grpc-go's and grpc-java's encoders make of them: every field goes into the dynamic table, the
traceparents too, so that the same index means something else each time and no proxy can remember what a block meant.
"""

from __future__ import annotations

import functools
from random import Random

from hpack import Encoder

from tests.bench.traffic import ROUTES, SERVICE

COUNT = 500  # of each connection
UNARY_BYTES, STREAM_BYTES = 20, 100
PREFIX_BYTES = 5
EMPTY_TABLE = b"\x20\x3f\xe1\x1f"
"""RFC 7541 §6.3, §4.2: the table may hold nothing, which empties it, and then 4096 bytes as before."""
_METHODS = ("GetItem", "AddItem")

Fields = list[tuple[str, str]]


@functools.cache
def message(size_bytes: int) -> bytes:
    """A message with its prefix: not compressed, its length."""
    return b"\0" + size_bytes.to_bytes(4, "big") + (b"0123456789abcdef" * (size_bytes // 16 + 1))[:size_bytes]


def calls(connection: int, count: int = COUNT) -> list[Fields]:
    """The fields of each call of a connection, always the same."""
    rng = Random(f"calls-{connection}")
    return [_call(index, rng) for index in range(count)]


def _call(index: int, rng: Random) -> Fields:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"/r{index % ROUTES}/shop.v1.Cart/{_METHODS[index // ROUTES % len(_METHODS)]}"),
        (":authority", SERVICE),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-go/1.67.1"),
        ("te", "trailers"),
        ("grpc-accept-encoding", "gzip"),
        ("x-tenant", f"tenant-{index % 20}"),
        ("traceparent", f"00-{rng.getrandbits(128) | 1:032x}-{rng.getrandbits(64) | 1:016x}-01"),
    ]


def blocks(requests: list[Fields]) -> list[bytes]:
    """Their header blocks. The first empties the dynamic table, so that after the last one it may come again."""
    encoder = Encoder()
    return [EMPTY_TABLE * (index == 0) + encoder.encode(fields) for index, fields in enumerate(requests)]
