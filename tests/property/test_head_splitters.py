"""The two splitters of heads take the same heads and make the same of them, whatever the bytes."""

import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.http1 import splitter
from proxy.http1.splitter import TOKEN_PATTERN, PythonSplitter, Split
from tests.support.needs import REPO

HOST, GATHERED = 1, 3
KINDS = {b"host": HOST, b"content-length": 2, b"x-request-id": GATHERED, b"via": GATHERED, b"connection": 4, b"te": 5}

needs_compiled = pytest.mark.skipif(
    not splitter.IS_COMPILED,
    reason="the compiled splitter is not there: sudo apt-get install gcc python3-dev && make clean setup",
)

PIECES = st.sampled_from(
    [b"GET / HTTP/1.1", b"HTTP/1.1 200 OK", b"Host: pay", b"hOST:\tpay \t", b"content-length:5", b"Content-Length : 5",
     b"x-a: 1", b"Via: a", b"via:b ", b"X-Request-Id:", b"X-Request-Id: \t ", b"x-request-idd: 1", b"te", b"te:", b":", b": x", b"\r\n", b"\r\n",
     b"\r\n", b"\r\n\r\n", b"\r", b"\n", b" ", b"\t", b"\x00", b"\x1f", b"\x7f", b"\x80\xff", b"a" * 70, b"%b: %b" % (b"n" * 300, b"v")]
)  # fmt: skip


@st.composite
def heads(draw) -> bytes:
    """Mostly good heads, some mutilated, some no heads at all."""
    lines = draw(st.lists(PIECES, max_size=8))
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    for at, byte in draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=2)):
        head = head[: at % len(head)] + bytes([byte]) + head[at % len(head) + draw(st.integers(0, 1)) :]
    return draw(st.sampled_from([head, head, head, b"".join(lines), head[:-1], head + b"x"]))


@needs_compiled
@given(heads() | st.binary(max_size=60))
@example(b"")
@example(b"\r\n")
@example(b"\r\n\r\n")
@example(b"\r\n\r\n\r\n")
@example(b"GET / HTTP/1.1\r\n\r\n\r\n\r\n")
@example(b"x\r\nhost: a\r\n\r\nhost: b\r\n\r\n")
def test_both_make_the_same_of_every_head(head: bytes) -> None:
    from proxy.http1._splitter import Splitter

    assert Splitter(KINDS, GATHERED, HOST).split(head) == PythonSplitter(KINDS, GATHERED, HOST).split(head)


@given(heads())
def test_what_is_taken_is_put_together_again_from_its_parts(head: bytes) -> None:
    for split in (each.split(head) for each in splitters()):
        if split is None:
            continue
        first, plain, known, host, special, count = split
        assert head.startswith(first + b"\r\n")
        assert head.endswith(b"\r\n\r\n")
        lines = head[:-4].split(b"\r\n")[1:] if head != b"\r\n\r\n" else []
        assert sorted(plain) == sorted(line for line in lines if line.partition(b":")[0].lower() not in KINDS)
        others = [
            (KINDS[name.lower()], name.lower(), value.strip(b" \t"))
            for name, _, value in (line.partition(b":") for line in lines)
            if name.lower() in KINDS
        ]
        firsts = {}
        for field in others:
            firsts.setdefault(field[1], field)
        assert host == (firsts[b"host"][2] if b"host" in firsts else None)
        assert known == {name: value for kind, name, value in firsts.values() if kind == GATHERED}
        # Repeated ones are not joined here: a head of nothing else would cost the square of its length.
        assert special == [f for f in others if f[0] not in (GATHERED, HOST) or f is not firsts[f[1]]]
        assert count == len(lines)
        assert all(TOKEN_PATTERN.fullmatch(line.partition(b":")[0]) for line in plain)


def splitters() -> list[splitter.HeadSplitter]:
    return [splitter.make_splitter(KINDS, GATHERED, HOST), PythonSplitter(KINDS, GATHERED, HOST)]


def test_every_character_is_taken_or_refused_as_rfc_9110_says() -> None:
    token = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    for each in splitters():
        for code in range(256):
            byte = bytes([code])
            in_name: Split | None = each.split(b"GET / HTTP/1.1\r\nx%by: 1\r\n\r\n" % byte)
            in_value = each.split(b"GET / HTTP/1.1\r\nx: 1%b2\r\n\r\n" % byte)
            in_known = each.split(b"GET / HTTP/1.1\r\nte: 1%b2\r\n\r\n" % byte)
            assert (in_name is not None) == (byte in token or byte == b":"), byte
            assert (in_value is not None) == (code == 9 or 32 <= code != 127), byte
            assert (in_known is not None) == (in_value is not None), byte


@needs_compiled
def test_the_compiled_splitter_refuses_what_it_cannot_use() -> None:
    from proxy.http1._splitter import Splitter

    for wrong in ([], {"text": 1}, {b"%d" % i: 1 for i in range(65)}):
        with pytest.raises((TypeError, ValueError)):
            Splitter(wrong, GATHERED, HOST)  # type: ignore[arg-type]
    once = Splitter(KINDS, GATHERED, HOST)
    with pytest.raises(ValueError, match="once"):
        once.__init__(KINDS, GATHERED, HOST)  # type: ignore[misc]
    with pytest.raises(TypeError):
        once.split("text")  # type: ignore[arg-type]


@needs_compiled
def test_the_compiled_splitter_keeps_and_loses_no_memory() -> None:
    program = """
import gc, sys
from proxy.http1._splitter import Splitter, join_head
kinds = {b"host": 1000001, b"te": 1000002, b"via": 1000003}
heads = [b"GET / HTTP/1.1\\r\\nhost: a\\r\\nx: 1\\r\\n\\r\\n", b"GET / HTTP/1.1\\r\\nhost: a\\r\\nx: \\x00\\r\\n\\r\\n", b"x",
    b"GET / HTTP/1.1\\r\\nvia: a\\r\\nVia: b\\r\\nhost: a\\r\\nhost: b\\r\\nte: c\\r\\n\\r\\n"]
def work(times):
    for _ in range(times):
        each = Splitter(kinds, 1000003, 1000001)
        for head in heads:
            each.split(head)
        join_head((b"a", b"b"), [b"x: 1"], (), [b"", b"c"])
work(1000)
gc.collect()
before = sys.getallocatedblocks()
work(20_000)
gc.collect()
print(sys.getallocatedblocks() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True)
    assert abs(int(done.stdout)) < 100


@pytest.mark.parametrize(("pure", "expected"), [("", splitter.IS_COMPILED), ("1", False)])
def test_the_environment_chooses_python(pure: str, *, expected: bool) -> None:
    program = "from proxy.http1.splitter import IS_COMPILED; print(IS_COMPILED)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPO,
        env={"MESH_PURE_PYTHON": pure},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{expected}\n"


pieces = st.lists(st.binary(max_size=20), max_size=4)


@needs_compiled
@given(pieces, pieces, pieces.map(tuple), pieces)
def test_both_join_a_head_from_the_same_pieces(front, lines, added, tail) -> None:
    from proxy.http1._splitter import join_head

    joined = join_head(tuple(front), lines, added, tail)
    assert joined == b"".join(front) + b"\r\n" + b"".join(x + b"\r\n" for x in (*lines, *added)) + b"".join(tail)
    assert joined == b"\r\n".join((b"".join(front), *lines, *added, b"".join(tail)))  # what the twin does


@needs_compiled
def test_what_is_no_piece_is_a_type_error() -> None:
    from proxy.http1._splitter import join_head

    for wrong in ((), ([], [], []), ([], ["x"], [], []), ([], [], [], b"x"), ([None], [], [], [])):
        with pytest.raises(TypeError):
            join_head(*wrong)
