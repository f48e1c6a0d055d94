"""RFC 7541: what a header block means, and what it may not be, with the section beside each row.

Every row holds with either decoder: the native one, and the one in Python that stands in where it is not to be had.
"""

import sys
from collections.abc import Iterator

import pytest

from mesh.http.headers import Headers
from proxy.http2 import hpack
from proxy.http2.errors import ConnectionFault, ErrorCode


@pytest.fixture(params=["jh2", "hpack"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[hpack.Decoder]:
    if request.param == "hpack":
        monkeypatch.setitem(sys.modules, "jh2", None)
    hpack._native.cache_clear()
    made = hpack.Decoder(64 * 1024)
    assert type(made._decoder).__module__.partition(".")[0] == request.param
    yield made
    hpack._native.cache_clear()


DATE = (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT")
LOCATION = (b"location", b"https://www.example.com")
WWW = (b":authority", b"www.example.com")
GET: Headers = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/")]
CUSTOM: Headers = [
    (b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/index.html"), WWW, (b"custom-key", b"custom-value"),
]  # fmt: skip
ANSWERS: list[Headers] = [
    [(b":status", b"302"), (b"cache-control", b"private"), DATE, LOCATION],
    [(b":status", b"307"), (b"cache-control", b"private"), DATE, LOCATION],
    [
        (b":status", b"200"), (b"cache-control", b"private"), (b"date", b"Mon, 21 Oct 2013 20:13:22 GMT"), LOCATION,
        (b"content-encoding", b"gzip"),
        (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
    ],
]  # fmt: skip

SIZED = "3fe101"
"""The table shall have 256 bytes (6.3), as in the examples C.5 and C.6."""
FIRST_ANSWER = (
    SIZED + "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
    "6e1768747470733a2f2f7777772e6578616d706c652e636f6d"
)
THIRD_ANSWER = (
    "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a697077"
    "38666f6f3d4153444a4b48514b425a584f5157454f50495541585157454f49553b"
    "206d61782d6167653d333630303b2076657273696f6e3d31"
)
FIRST_HUFFMAN = (
    SIZED + "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e0"
    "82a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3"
)
THIRD_HUFFMAN = (
    "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960"
    "d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007"
)

# Blocks of one connection, in order, with the fields that each means.
READ: dict[str, list[tuple[str, Headers]]] = {
    "C.2.1": [("400a637573746f6d2d6b65790d637573746f6d2d686561646572", [(b"custom-key", b"custom-header")])],
    "C.2.2": [("040c2f73616d706c652f70617468", [(b":path", b"/sample/path")])],
    "C.2.3": [("100870617373776f726406736563726574", [(b"password", b"secret")])],
    "C.2.4": [("82", [(b":method", b"GET")])],
    "C.3": [
        ("828684410f7777772e6578616d706c652e636f6d", [*GET, WWW]),
        ("828684be58086e6f2d6361636865", [*GET, WWW, (b"cache-control", b"no-cache")]),
        ("828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565", CUSTOM),
    ],
    "C.4": [
        ("828684418cf1e3c2e5f23a6ba0ab90f4ff", [*GET, WWW]),
        ("828684be5886a8eb10649cbf", [*GET, WWW, (b"cache-control", b"no-cache")]),
        ("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf", CUSTOM),
    ],
    "C.5, with a table of 256 bytes (6.3)": [
        (FIRST_ANSWER, ANSWERS[0]),
        ("4803333037c1c0bf", ANSWERS[1]),
        (THIRD_ANSWER, ANSWERS[2]),
    ],
    "C.6, with a table of 256 bytes (6.3)": [
        (FIRST_HUFFMAN, ANSWERS[0]),
        ("4883640effc1c0bf", ANSWERS[1]),
        (THIRD_HUFFMAN, ANSWERS[2]),
    ],
    "4.2 two changes of size, at the beginning": [("203fe11f82", [(b":method", b"GET")])],
    "4.4 a field larger than the table empties it": [
        ("3f0140016101624003787878" + "20" + "79" * 32, [(b"a", b"b"), (b"xxx", b"y" * 32)]),
        ("82", [(b":method", b"GET")]),
    ],
    "6 nothing": [("", [])],
}

# (section, what, blocks before, the block)
REFUSED = [
    ("2.3.3", "an index beyond both tables", [], "fe"),
    ("2.3.3", "an index of a name beyond both tables", [], "7f000161"),
    ("4.2", "a change of the table's size behind a field", [], "8220"),
    ("4.4", "an entry that went with a change of the table's size", ["4001610162"], "20be"),
    ("5.1", "a number without an end", [], "ffffffffffff"),
    ("5.1", "a number out of all bounds", [], "ff8080808080808001"),
    ("5.2", "a text longer than its block", [], "000a6162"),
    ("5.2", "padding that is not ones", [], "0001618118"),
    ("5.2", "padding of eight bits and more", [], "000161821fff"),
    ("5.2", "the end of text within a text", [], "00016184ffffffff"),
    ("5.2", "a symbol cut off", [], "00016182ffc0"),
    ("6.1", "index 0", [], "80"),
    ("6.2", "it ends behind a name", [], "000161"),
    ("6.2", "it ends before a name", [], "40"),
    ("6.3", "a larger table than we allow", [], "3fe21f"),
]


@pytest.mark.parametrize("blocks", READ.values(), ids=READ)
def test_what_blocks_mean(decoder: hpack.Decoder, blocks: list[tuple[str, Headers]]) -> None:
    assert [decoder.decode(bytes.fromhex(block)) for block, _ in blocks] == [fields for _, fields in blocks]


@pytest.mark.parametrize(("before", "block"), [pytest.param(*row[2:], id=f"{row[0]} {row[1]}") for row in REFUSED])
def test_what_a_block_may_not_be(decoder: hpack.Decoder, before: list[str], block: str) -> None:
    for each in before:
        decoder.decode(bytes.fromhex(each))
    with pytest.raises(ConnectionFault) as refused:
        decoder.decode(bytes.fromhex(block))
    assert refused.value.code is ErrorCode.COMPRESSION_ERROR


def test_a_list_larger_than_allowed_is_not_unpacked(decoder: hpack.Decoder) -> None:
    decoder.decode(bytes.fromhex("400161" + "7f811e") + b"v" * 3968)
    with pytest.raises(ConnectionFault) as refused:
        decoder.decode(b"\xbe" * 20)
    assert refused.value.code is ErrorCode.ENHANCE_YOUR_CALM
