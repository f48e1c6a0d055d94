"""The two makings of what HTTP/2 does octet by octet do the same, whatever the bytes."""

import importlib
import os
import subprocess
import sys

import hpack
import pytest
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.http2 import octets
from tests.support.http2 import frame
from tests.support.needs import REPO


def python_twin():
    """The module as it is where nothing is compiled."""
    source = importlib.util.find_spec("proxy.http2.octets")
    assert source is not None
    assert source.loader is not None
    module = importlib.util.module_from_spec(source)
    os.environ["MESH_PURE_PYTHON"] = "1"
    try:
        source.loader.exec_module(module)
    finally:
        del os.environ["MESH_PURE_PYTHON"]
    assert not module.IS_COMPILED
    return module


PYTHON = python_twin()
needs_compiled = pytest.mark.skipif(
    not octets.IS_COMPILED, reason="nothing is compiled: sudo apt-get install gcc python3-dev && make clean setup"
)

names = st.sampled_from(
    [name for name, _ in octets.STATIC] + [b"x", b"cookies", b"x-" + b"a" * 40, b"", b":", b"a" * 25]
)
values = st.sampled_from([value for _, value in octets.STATIC]) | st.binary(max_size=40) | st.just(b"v" * 20_000)
fields = st.lists(st.tuples(names | st.binary(max_size=8), values), max_size=6)


@needs_compiled
@given(fields)
def test_blocks_are_the_same(given_fields) -> None:
    assert octets.encode(given_fields) == PYTHON.encode(given_fields)


@needs_compiled
@given(fields)
@example([(b"a", b"x\x00")])
@example([(b":", b"")])
@example([(b"a", b" x")])
@example([(b"a", b"x\t")])
@example([(b"a", b"\x7f")])
def test_the_same_fields_are_well_formed(given_fields) -> None:
    assert octets.is_well_formed(given_fields) is PYTHON.is_well_formed(given_fields)


@st.composite
def blocks(draw: st.DrawFn) -> bytes:
    """A header block as peers write them, with Huffman's code, and then perhaps a few bytes of it changed."""
    writer = hpack.Encoder()
    writer.header_table_size = draw(st.sampled_from([4096, 0, 100]))
    block = bytearray(b"".join(writer.encode(draw(fields), huffman=draw(st.booleans())) for _ in range(2)))
    for _ in range(draw(st.integers(0, 2))):
        if block:
            block[draw(st.integers(0, len(block) - 1))] = draw(st.integers(0, 255))
    return bytes(block[: len(block) - draw(st.integers(0, 2))])


@needs_compiled
@given(blocks() | st.binary(max_size=60))
def test_the_same_is_wrong_with_a_block(block: bytes) -> None:
    assert octets.block_fault(block) == PYTHON.block_fault(block)


@given(blocks() | st.binary(max_size=60))
def test_what_another_decoder_refuses_for_its_form_is_refused(block: bytes) -> None:
    """The decoder in Python is strict; ours may only be stricter, and never where a block is as it was written."""
    try:
        hpack.Decoder(max_header_list_size=1 << 30).decode(block, raw=True)
    except hpack.InvalidTableIndexError:
        return  # of that nothing can be told without the table
    except (hpack.HPACKError, ValueError, IndexError):
        assert octets.block_fault(block)


@given(fields, st.booleans())
def test_nothing_is_wrong_with_a_block_as_it_was_written(given_fields, huffman: bool) -> None:  # noqa: FBT001
    assert octets.block_fault(hpack.Encoder().encode(given_fields, huffman=huffman)) is None


@pytest.mark.parametrize("symbol", range(257))
def test_the_end_of_every_symbol_is_known(symbol: int) -> None:
    """RFC 7541 appendix B, by the codes of another package. EOS (256) itself may not stand there."""
    code, length = REQUEST_CODES[symbol], REQUEST_CODES_LENGTH[symbol]
    spare = -length % 8
    text = ((code + 1 << spare) - 1).to_bytes((length + spare) // 8, "big")
    field = b"\x00\x01a" + bytes((0x80 | len(text),)) + text
    assert (octets.block_fault(field) is None) is (symbol != 256)
    if 0 < spare < 5:  # else another symbol may fit
        assert octets.block_fault(field[:-1] + bytes((field[-1] ^ 1,)))


frames = st.lists(
    st.builds(
        frame,
        st.sampled_from([0, 0, 0, 1, 8]),
        st.sampled_from([0, 0, 0, 1]),
        st.sampled_from([1, 1, 1, 3]),
        st.binary(max_size=5) | st.just(b""),
    ),
    min_size=1,
    max_size=8,
).map(b"".join)


@needs_compiled
@given(frames, st.integers(0, 40), st.integers(0, 30))
def test_frames_are_joined_alike_wherever_the_bytes_end(data: bytes, cut: int, position: int) -> None:
    data = data[: max(9, len(data) - cut)]
    if len(data) - position < 9:
        return
    assert octets.join_data(data, position) == PYTHON.join_data(data, position)


@needs_compiled
@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=300))
def test_frames_are_the_same(kind: int, flags: int, number: int, payload: bytes) -> None:
    assert octets.frame(kind, flags, number, payload) == PYTHON.frame(kind, flags, number, payload)


@needs_compiled
@given(
    st.lists(st.binary(max_size=12) | st.sampled_from([b"via: 1.1 x", b"a:b: c", b"a: b: c", b"a:", b": ", b":: x"]))
)
def test_lines_are_split_alike(lines: list[bytes]) -> None:
    assert octets.split_lines(lines) == PYTHON.split_lines(lines)
    assert octets.list_bytes(PYTHON.split_lines(lines)) == PYTHON.list_bytes(PYTHON.split_lines(lines))


@needs_compiled
@given(st.lists(st.tuples(st.binary(max_size=3), st.binary(max_size=3), st.booleans()), max_size=4))
def test_pairs_are_the_same(triples) -> None:
    assert octets.pairs(triples) == PYTHON.pairs(triples)


@needs_compiled
@pytest.mark.parametrize(
    "call",
    [
        lambda: octets.encode((b"a", b"b")),
        lambda: octets.encode([b"ab"]),
        lambda: octets.encode([("a", "b")]),
        lambda: octets.is_well_formed([(b"a",)]),
        lambda: octets.join_data("text", 0),
        lambda: octets.join_data(b"short", 0),
        lambda: octets.join_data(b"x" * 20, 12),
        lambda: octets.join_data(b"x" * 20, -1),
        lambda: octets.pairs([1]),
        lambda: octets.frame(256, 0, 1, b""),
        lambda: octets.frame(0, 0, 2**31, b""),
        lambda: octets.frame(0, 0, -1, b""),
        lambda: octets.frame(0, 0, 1, "text"),
        lambda: octets.split_lines(["text"]),
        lambda: octets.list_bytes([1]),
        lambda: octets.block_fault("text"),
    ],
)
def test_what_is_no_list_of_fields_is_an_error_and_no_crash(call) -> None:
    with pytest.raises((TypeError, ValueError)):
        call()


def test_everything_works_where_nothing_is_compiled() -> None:
    program = (
        "from proxy.http2 import octets; from proxy.http2.codec import Connection;"
        "assert not octets.IS_COMPILED; print(octets.encode([(b':method', b'GET')]).hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"MESH_PURE_PYTHON": "1"}, cwd=REPO, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "82\n"
