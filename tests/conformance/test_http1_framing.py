"""RFC 9110 and 9112 as tables: what is taken, what is refused, and that it does not depend on how the bytes were cut.

Nothing ambiguous is ever forwarded: a refused row must not have reached the service, and ends the connection.
"""

import pytest

from mesh.http.outcome import UpstreamProtocolError, UpstreamReset
from proxy.http1 import codec, fields
from proxy.http1.splitter import IS_COMPILED, PythonSplitter
from tests.support.dialogue import AnswerReading, Conversation


@pytest.fixture(
    autouse=True,
    params=["python", pytest.param("compiled", marks=pytest.mark.skipif(not IS_COMPILED, reason="not compiled here"))],
)
def splitter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds with either splitter of heads."""
    if request.param == "python":
        monkeypatch.setattr(codec, "request_splitter", PythonSplitter(fields.REQUEST_KINDS, fields.KNOWN, fields.HOST))
        monkeypatch.setattr(
            codec, "response_splitter", PythonSplitter(fields.RESPONSE_KINDS, fields.KNOWN, fields.LENGTH)
        )


H = b"Host: pay\r\n"
POST = b"POST /p HTTP/1.1\r\n" + H

# (RFC section, what it is about, bytes, status)
REFUSED_REQUESTS = [
    ("9112 §2.2", "bare LF after the request line", b"GET / HTTP/1.1\nHost: pay\r\n\r\n", 400),
    ("9112 §2.2", "bare LF only", b"GET / HTTP/1.1\nHost: pay\n\n", 400),
    ("9112 §2.2", "bare LF before the request line", b"\nGET / HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9112 §2.2", "bare CR in the request line", b"GET /\r HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9112 §2.2", "bare CR in a value", b"GET / HTTP/1.1\r\n" + H + b"x: a\rb\r\n\r\n", 400),
    ("9112 §2.2", "white space before the first field", b"GET / HTTP/1.1\r\n x: 1\r\n" + H + b"\r\n", 400),
    ("9112 §2.3", "HTTP/0.9", b"GET /\r\n\r\n", 400),
    ("9112 §2.3", "HTTP/2.0", b"GET / HTTP/2.0\r\n" + H + b"\r\n", 505),
    ("9112 §2.3", "HTTP/1.2", b"GET / HTTP/1.2\r\n" + H + b"\r\n", 505),
    ("9112 §2.3", "HTTP/1.10", b"GET / HTTP/1.10\r\n" + H + b"\r\n", 400),
    ("9112 §2.3", "lower-case version", b"GET / http/1.1\r\n" + H + b"\r\n", 400),
    ("9112 §2.3", "another protocol's version", b"GET / RTSP/1.0\r\n" + H + b"\r\n", 400),
    ("9112 §3", "two spaces", b"GET  / HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9112 §3", "tab for space", b"GET\t/ HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9112 §3", "space at the end", b"GET / HTTP/1.1 \r\n" + H + b"\r\n", 400),
    ("9112 §3", "space in the target", b"GET /a b HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9110 §9.1", "method is no token", b"GE(T / HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9110 §9.1", "unknown method", b"BREW / HTTP/1.1\r\n" + H + b"\r\n", 501),
    ("9110 §9.3.6", "CONNECT where it is not carried", b"CONNECT pay:80 HTTP/1.1\r\n" + H + b"\r\n", 501),
    ("9110 §9.3.6", "the same in HTTP/1.0", b"CONNECT [::1]:443 HTTP/1.0\r\n\r\n", 501),
    ("9110 §9.3.6", "CONNECT without a port", b"CONNECT example.org HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9110 §9.3.6", "CONNECT with an empty port", b"CONNECT example.org: HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9110 §9.3.6", "CONNECT without a host", b"CONNECT :443 HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9110 §9.3.6", "CONNECT to port 0", b"CONNECT example.org:0 HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9110 §9.3.6", "CONNECT to a port out of range", b"CONNECT example.org:65536 HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9110 §9.3.6", "CONNECT to a port in words", b"CONNECT example.org:https HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9110 §9.3.6", "CONNECT with userinfo", b"CONNECT me@example.org:443 HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9110 §9.3.6", "CONNECT with a path", b"CONNECT example.org:443/x HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9110 §9.3.6", "CONNECT in origin-form", b"CONNECT /x HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9110 §9.3.6", "CONNECT in absolute-form", b"CONNECT https://example.org:443/ HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9110 §9.3.6", "CONNECT with an asterisk", b"CONNECT * HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9110 §9.3.6", "CONNECT to IPv6 without brackets", b"CONNECT ::1:443 HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9110 §9.3.6", "CONNECT to two hosts", b"CONNECT a:443,b:443 HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9110 §9.3.6", "CONNECT with a length", b"CONNECT a.b:443 HTTP/1.1\r\n" + H + b"Content-Length: 4\r\n\r\n", 400),
    (
        "9110 §9.3.6",
        "CONNECT with chunks",
        b"CONNECT a.b:443 HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n",
        400,
    ),
    ("9112 §3.2", "CONNECT without Host", b"CONNECT a.b:443 HTTP/1.1\r\n\r\n", 400),
    ("9112 §3.2", "CONNECT with a Host that is none", b"CONNECT a.b:443 HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    ("9112 §3.2", "no Host", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("9112 §3.2", "two Hosts", b"GET / HTTP/1.1\r\n" + H + H + b"\r\n", 400),
    ("9112 §3.2", "two Hosts in HTTP/1.0", b"GET / HTTP/1.0\r\n" + H + H + b"\r\n", 400),
    ("9112 §3.2", "Host with a path", b"GET / HTTP/1.1\r\nHost: pay/x\r\n\r\n", 400),
    ("9112 §3.2", "Host with user", b"GET / HTTP/1.1\r\nHost: me@pay\r\n\r\n", 400),
    ("9112 §3.2", "Host with a list", b"GET / HTTP/1.1\r\nHost: pay, other:1:2\r\n\r\n", 400),
    ("9112 §3.2", "fragment", b"GET /#x HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9112 §3.2", "no leading slash", b"GET x HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9112 §3.2.2", "absolute target without a host", b"GET http:///x HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9112 §3.2.2", "absolute target with user", b"GET http://me@pay/ HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9112 §3.2.2", "https through a clear proxy", b"GET https://pay/ HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9110 §4.2.1", "port out of range", b"GET / HTTP/1.1\r\nHost: pay:65536\r\n\r\n", 400),
    ("9112 §2.2", "empty lines without end", b"\r\n" * 9 + b"GET / HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9112 §3.2.4", "asterisk with GET", b"GET * HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9112 §5.1", "space before colon", b"GET / HTTP/1.1\r\n" + H + b"x : 1\r\n\r\n", 400),
    ("9112 §5.1", "no colon", b"GET / HTTP/1.1\r\n" + H + b"nonsense\r\n\r\n", 400),
    ("9110 §5.1", "empty name", b"GET / HTTP/1.1\r\n" + H + b": 1\r\n\r\n", 400),
    ("9110 §5.1", "name is no token", b"GET / HTTP/1.1\r\n" + H + b"x(y): 1\r\n\r\n", 400),
    ("9110 §5.1", "non-ASCII name", b"GET / HTTP/1.1\r\n" + H + b"x\xe9: 1\r\n\r\n", 400),
    ("9112 §5.2", "obs-fold", b"GET / HTTP/1.1\r\n" + H + b"x: 1\r\n 2\r\n\r\n", 400),
    ("9112 §5.2", "obs-fold with a tab", b"GET / HTTP/1.1\r\n" + H + b"x: 1\r\n\t2\r\n\r\n", 400),
    ("9110 §5.5", "NUL in a value", b"GET / HTTP/1.1\r\n" + H + b"x: a\x00b\r\n\r\n", 400),
    ("9110 §5.5", "control character in a value", b"GET / HTTP/1.1\r\n" + H + b"x: a\x01b\r\n\r\n", 400),
    ("9110 §5.5", "DEL in a value", b"GET / HTTP/1.1\r\n" + H + b"x: a\x7fb\r\n\r\n", 400),
    ("9112 §3", "NUL in the target", b"GET /\x00 HTTP/1.1\r\n" + H + b"\r\n", 400),
    ("9112 §3", "non-ASCII in the target", b"GET /\xe9 HTTP/1.1\r\n" + H + b"\r\n", 400),
    (
        "9112 §6.1",
        "Content-Length and Transfer-Encoding",
        POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "9112 §6.1",
        "the same the other way round",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "9112 §6.1",
        "Transfer-Encoding in HTTP/1.0",
        b"POST / HTTP/1.0\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("9112 §6.1", "chunked twice", POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    (
        "9112 §6.1",
        "two Transfer-Encodings",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("9112 §6.1", "chunked is not last", POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400),
    ("9112 §6.1", "another coding", POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    ("9112 §6.1", "identity", POST + b"Transfer-Encoding: identity\r\n\r\n", 400),
    ("9112 §6.1", "almost chunked", POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    ("9112 §6.1", "chunked in quotes", POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', 400),
    ("9112 §6.1", "chunked with a vertical tab", POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    ("9112 §6.1", "empty Transfer-Encoding", POST + b"Transfer-Encoding:\r\n\r\n", 400),
    ("9112 §6.2", "two Content-Lengths", POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", 400),
    ("9112 §6.2", "the same Content-Length twice", POST + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd", 400),
    ("9112 §6.2", "a list of Content-Lengths", POST + b"Content-Length: 4, 4\r\n\r\nabcd", 400),
    ("9112 §6.2", "negative Content-Length", POST + b"Content-Length: -1\r\n\r\n", 400),
    ("9112 §6.2", "signed Content-Length", POST + b"Content-Length: +4\r\n\r\nabcd", 400),
    ("9112 §6.2", "hexadecimal Content-Length", POST + b"Content-Length: 0x4\r\n\r\nabcd", 400),
    ("9112 §6.2", "Content-Length with an underscore", POST + b"Content-Length: 1_0\r\n\r\n0123456789", 400),
    ("9112 §6.2", "empty Content-Length", POST + b"Content-Length:\r\n\r\n", 400),
    ("9112 §6.2", "Content-Length out of range", POST + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
    ("9110 §10.1.1", "unknown expectation", POST + b"Content-Length: 1\r\nExpect: miracles\r\n\r\n", 417),
]

CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
REFUSED_CHUNKS = [
    ("9112 §7.1", "no size", b"\r\nabc\r\n0\r\n\r\n"),
    ("9112 §7.1", "size is no hexadecimal", b"xyz\r\nabc\r\n0\r\n\r\n"),
    ("9112 §7.1", "size with 0x", b"0x3\r\nabc\r\n0\r\n\r\n"),
    ("9112 §7.1", "signed size", b"+3\r\nabc\r\n0\r\n\r\n"),
    ("9112 §7.1", "space before the size", b" 3\r\nabc\r\n0\r\n\r\n"),
    ("9112 §7.1", "space behind the size", b"3 \r\nabc\r\n0\r\n\r\n"),
    ("9112 §7.1", "bare LF behind the size", b"3\nabc\r\n0\r\n\r\n"),
    ("9112 §7.1", "bare CR in an extension", b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
    ("9112 §7.1", "size too large to hold", b"10000000000000000\r\nabc\r\n0\r\n\r\n"),
    ("9112 §7.1", "chunk longer than its size", b"3\r\nabcd\r\n0\r\n\r\n"),
    ("9112 §7.1", "chunk ends with LF", b"3\r\nabc\n0\r\n\r\n"),
    ("9112 §7.1.1", "endless extension", b"3;" + b"a" * 1000 + b"\r\nabc\r\n0\r\n\r\n"),
    ("9112 §7.1.2", "trailer without colon", b"0\r\nnonsense\r\n\r\n"),
    ("9112 §7.1.2", "bare LF in the trailers", b"0\r\nx: 1\nn: 2\r\n\r\n"),
    ("9112 §7.1.2", "space before colon in a trailer", b"0\r\nx : 1\r\n\r\n"),
    ("9110 §6.5.1", "framing in the trailers", b"0\r\nContent-Length: 5\r\n\r\n"),
    ("9110 §6.5.1", "Transfer-Encoding in the trailers", b"0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ("9110 §6.5.1", "Host in the trailers", b"0\r\nHost: other\r\n\r\n"),
    ("9112 §7.1.2", "folded trailer", b"0\r\nx: 1\r\n y\r\n\r\n"),
]

# (RFC section, what it is about, bytes, [(method, target, body)])
TAKEN_REQUESTS = [
    ("9112 §2.2", "an empty line before the request", b"\r\nGET / HTTP/1.1\r\n" + H + b"\r\n", [(b"GET", b"/", b"")]),
    ("9112 §2.3", "HTTP/1.0", b"GET / HTTP/1.0\r\n" + H + b"\r\n", [(b"GET", b"/", b"")]),
    ("9112 §3.2.2", "absolute target", b"GET http://pay/x?y HTTP/1.1\r\nHost: other\r\n\r\n", [(b"GET", b"/x?y", b"")]),
    ("9112 §3.2.2", "absolute target without a path", b"GET http://pay HTTP/1.1\r\nHost: a\r\n\r\n", [(b"GET", b"/", b"")]),
    ("9112 §3.2.2", "absolute target, only a query", b"GET http://pay?q HTTP/1.1\r\nHost: a\r\n\r\n", [(b"GET", b"/?q", b"")]),
    ("9112 §3.2.4", "asterisk with OPTIONS", b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n", [(b"OPTIONS", b"*", b"")]),
    ("9112 §3.2.4", "absolute OPTIONS", b"OPTIONS http://pay HTTP/1.1\r\nHost: a\r\n\r\n", [(b"OPTIONS", b"*", b"")]),
    ("9110 §5.5", "blanks around a value", b"GET / HTTP/1.1\r\nHost: \t pay \t\r\n\r\n", [(b"GET", b"/", b"")]),
    ("9110 §5.5", "high bytes in a value", b"GET / HTTP/1.1\r\n" + H + b"x: \xe9\x80\xff\r\n\r\n", [(b"GET", b"/", b"")]),
    ("9112 §6.2", "length", POST + b"Content-Length: 3\r\n\r\nabc", [(b"POST", b"/p", b"abc")]),
    ("9112 §6.2", "leading zeros", POST + b"Content-Length: 0003\r\n\r\nabc", [(b"POST", b"/p", b"abc")]),
    ("9112 §6.2", "length of zero", POST + b"Content-Length: 0\r\n\r\n", [(b"POST", b"/p", b"")]),
    ("9112 §6.3", "neither length nor coding", POST + b"\r\n", [(b"POST", b"/p", b"")]),
    ("9112 §7.1", "chunks", CHUNKED + b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", [(b"POST", b"/p", b"abc0123456789")]),
    ("9112 §7.1", "upper case coding", POST + b"Transfer-Encoding: Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", [(b"POST", b"/p", b"a")]),
    ("9112 §7.1.1", "extensions", CHUNKED + b'3;a=b;c="d e"\r\nabc\r\n0;x\r\n\r\n', [(b"POST", b"/p", b"abc")]),
    ("9112 §7.1", "leading zeros in a size", CHUNKED + b"0003\r\nabc\r\n000\r\n\r\n", [(b"POST", b"/p", b"abc")]),
    ("9112 §7.1.2", "trailers", CHUNKED + b"1\r\na\r\n0\r\nx: 1\r\ny: 2\r\n\r\n", [(b"POST", b"/p", b"a")]),
    ("9112 §9.3.2", "pipelined", POST + b"Content-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\n" + H + b"\r\n",
     [(b"POST", b"/p", b"abc"), (b"GET", b"/2", b"")]),
    ("9112 §9.3.2", "pipelined behind chunks", CHUNKED + b"1\r\na\r\n0\r\n\r\nGET /2 HTTP/1.1\r\n" + H + b"\r\n",
     [(b"POST", b"/p", b"a"), (b"GET", b"/2", b"")]),
    ("9110 §7.8", "Upgrade with a body", POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\n" + H + b"\r\n",
     [(b"POST", b"/p", b"abc"), (b"GET", b"/2", b"")]),
]  # fmt: skip

CUTS = [0, 1, 2, 3, 7]


def label(row: tuple[object, ...]) -> str:
    return f"{row[0]} {row[1]}"


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("row", REFUSED_REQUESTS, ids=label)
def test_a_request_that_could_be_misread_is_refused(row: tuple[str, str, bytes, int], cut: int) -> None:
    smuggled = b"GET /smuggled HTTP/1.1\r\n" + H + b"\r\n"
    talk = Conversation().feed(row[2] + smuggled, cut)
    assert talk.statuses == [row[3]]
    assert talk.taken == []
    assert talk.is_over


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("row", REFUSED_CHUNKS, ids=label)
def test_a_body_that_could_be_misread_never_becomes_a_whole_request(row: tuple[str, str, bytes], cut: int) -> None:
    talk = Conversation().feed(CHUNKED + row[2] + b"GET /smuggled HTTP/1.1\r\n" + H + b"\r\n", cut)
    assert talk.statuses == [400]
    assert talk.requests == []
    assert talk.is_over


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("row", TAKEN_REQUESTS, ids=label)
def test_a_good_request_is_understood(row: tuple[str, str, bytes, list[tuple[bytes, bytes, bytes]]], cut: int) -> None:
    talk = Conversation().feed(row[2], cut)
    assert talk.requests == row[3]
    assert talk.statuses == [200] * len(row[3])


def test_values_keep_their_bytes_and_lose_the_blanks_around_them() -> None:
    talk = Conversation().feed(b"GET / HTTP/1.1\r\n" + H + b"X-A: \t a b\xff \t\r\nx-a:\r\n\r\n")
    assert list(talk.taken[0].head.headers) == [(b"x-a", b"a b\xff"), (b"x-a", b"")]


LIMITED = [
    ("request line", b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + H + b"\r\n", 414),
    ("head", b"GET / HTTP/1.1\r\n" + H + b"x: " + b"a" * 70_000 + b"\r\n\r\n", 431),
    ("count", b"GET / HTTP/1.1\r\n" + H + b"x: 1\r\n" * 101 + b"\r\n", 431),
    ("head without an end", b"GET / HTTP/1.1\r\n" + b"x: 1\r\n" * 20_000, 431),
    ("line without an end", b"GET /" + b"a" * 70_000, 414),
]


@pytest.mark.parametrize("row", LIMITED, ids=lambda row: row[0])
@pytest.mark.parametrize("cut", [0, 1000])
def test_a_head_over_its_limit_is_refused(row: tuple[str, bytes, int], cut: int) -> None:
    talk = Conversation().feed(row[1], cut)
    assert (talk.statuses, talk.taken, talk.is_over) == ([row[2]], [], True)


# --- answers --------------------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
REFUSED_ANSWERS = [
    ("9112 §4", "no status line", b"nonsense\r\n\r\n"),
    ("9112 §4", "HTTP/2.0", b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ("9112 §4", "ICY", b"ICY 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ("9112 §4", "two digits", b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"),
    ("9112 §4", "four digits", b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"),
    ("9112 §4", "status out of range", b"HTTP/1.1 999 OK\r\nContent-Length: 0\r\n\r\n"),
    ("9112 §2.2", "bare LF", b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n"),
    ("9112 §5.1", "space before colon", OK + b"Content-Length : 2\r\n\r\nok"),
    ("9112 §5.2", "obs-fold", OK + b"X: 1\r\n 2\r\nContent-Length: 0\r\n\r\n"),
    ("9110 §5.5", "NUL in a value", OK + b"X: \x00\r\nContent-Length: 0\r\n\r\n"),
    ("9112 §6.1", "length and coding", OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("9112 §6.1", "chunked twice", OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    ("9112 §6.1", "two codings", OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("9112 §6.1", "unknown coding", OK + b"Transfer-Encoding: gzip\r\n\r\n"),
    ("9112 §6.1", "coding in HTTP/1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("9112 §6.2", "two lengths", OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok"),
    ("9112 §6.2", "length is no number", OK + b"Content-Length: two\r\n\r\nok"),
    ("9110 §15.2", "informational without end", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 65),
    ("9110 §15.2.2", "switched unasked", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"),
]
TAKEN_ANSWERS = [
    ("9112 §6.2", "length", b"GET", OK + b"Content-Length: 2\r\n\r\nok", b"ok", True),
    ("9112 §7.1", "chunks", b"GET", OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: 1\r\n\r\n", b"ok", True),
    ("9112 §6.3", "HEAD", b"HEAD", OK + b"Content-Length: 2\r\n\r\n", b"", True),
    ("9112 §6.3", "204", b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    ("9112 §6.3", "204 with a length", b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", b"", True),
    ("9112 §6.3", "304 with a length", b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"", True),
    ("9110 §15.2", "informational first", b"GET", b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok", b"ok", True),
    ("9110 §15.2", "informational often", b"GET", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 64 + OK + b"Content-Length: 2\r\n\r\nok", b"ok", True),
    ("9112 §9.3", "Connection: close", b"GET", OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
    ("9112 §9.3", "HTTP/1.0", b"GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
    ("9112 §9.3", "HTTP/1.0 kept", b"GET", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", b"ok", True),
    ("9112 §4", "no reason phrase", b"GET", b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok", b"ok", True),
    ("9112 §9.2", "more than was asked for", b"GET", OK + b"Content-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n", b"ok", False),
]  # fmt: skip


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("row", REFUSED_ANSWERS, ids=label)
def test_an_answer_that_could_be_misread_is_refused(row: tuple[str, str, bytes], cut: int) -> None:
    reading = AnswerReading().feed(row[2], cut)
    assert isinstance(reading.error, UpstreamProtocolError)
    assert reading.heads == []
    assert reading.transport.is_closed
    assert reading.released == 0


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("row", TAKEN_ANSWERS, ids=label)
def test_a_good_answer_is_understood(row: tuple[str, str, bytes, bytes, bytes, bool], cut: int) -> None:
    reading = AnswerReading(row[2]).feed(row[3], cut)
    assert (reading.error, reading.ended, reading.body) == (None, True, row[4])
    if not (row[1] == "more than was asked for" and cut):  # cut, the rest meets an idle connection: closed as well
        assert reading.released == int(row[5])
    assert reading.transport.is_closed == (not row[5])


def test_an_answer_without_length_ends_with_its_connection() -> None:
    reading = AnswerReading().feed(OK + b"\r\nun").feed(b"til")
    assert not reading.ended
    assert reading.end().ended
    assert reading.body == b"until"


@pytest.mark.parametrize(
    "data",
    [b"", b"HTTP/1.1 200", OK + b"Content-Length: 5\r\n\r\nabc", OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"],
)
def test_an_answer_that_breaks_off_is_an_error(data: bytes) -> None:
    reading = AnswerReading().feed(data).end()
    assert isinstance(reading.error, UpstreamReset)
    assert not reading.ended
