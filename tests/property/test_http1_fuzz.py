"""Both HTTP/1.1 parsers against bytes nobody would send: grammar-made messages, then mutilated.

Laws: nothing escapes ``data_received``; how the bytes were cut changes nothing; what is taken as a request or answer,
llhttp in its strict mode takes too, and as the same one; what is sent on, llhttp reads as what was taken.
``make fuzz`` runs many more examples than CI does.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httptools
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.http.headers import Headers
from mesh.http.message import RequestHead
from mesh.http.outcome import NoRoute
from mesh.model.name import Name
from proxy.trampoline import Trampoline
from tests.support.dialogue import AnswerReading, Conversation, Later

# --- the grammar ----------------------------------------------------------------------------------------------------

METHODS = st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"PURGE", b"PROPFIND"])
TARGETS = st.sampled_from(
    [b"/", b"/a/b?c=d", b"/%2F/../x", b"http://pay/x", b"HTTP://PAY:80", b"http://pay?q", b"*", b"/" + b"l" * 300]
)
VERSIONS = st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.2"])
FIELDS = st.sampled_from(
    [b"x-a: 1", b"X-A:\t2 ", b"x-b:", b'x-c: \xe9\x80, "q"', b"cookie: a=b; c=d", b"accept: */*", b"te: trailers",
     b"connection: close", b"Connection: keep-alive, x-a", b"expect: 100-continue", b"keep-alive: 5",
     b"x-forwarded-for: 1.2.3.4", b"via: 1.0 other", b"traceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"]
)  # fmt: skip
BODIES = st.binary(max_size=40)
NASTY = st.sampled_from(
    [b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\n\n", b" ", b"\t", b"\x00", b"\x7f", b"\xff", b":", b";", b",", b"0", b"+", b"-",
     b"content-length: 3\r\n", b"Content-Length: 0\r\n", b"transfer-encoding: chunked\r\n",
     b"Transfer-Encoding:\tchunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"host: other\r\n", b" folded\r\n",
     b"0\r\n\r\n", b"5\r\nhello\r\n", b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n", b"0x", b"ffffffffffffffff", b"HTTP/1.1"]
)  # fmt: skip


@st.composite
def chunked(draw) -> bytes:
    """A chunked body."""
    extension = draw(st.sampled_from([b"", b"", b";a", b';a="b"', b"; x = y"]))
    pieces = draw(st.lists(st.binary(min_size=1, max_size=20), max_size=3))
    size = draw(st.sampled_from([b"%x", b"%X", b"0%x"]))
    trailers = draw(st.sampled_from([b"", b"", b"x-t: 1\r\n", b"content-length: 1\r\n"]))
    body = b"".join(size % len(piece) + extension + b"\r\n" + piece + b"\r\n" for piece in pieces)
    return body + b"0" + extension + b"\r\n" + trailers + b"\r\n"


@st.composite
def framed(draw, begin: bytes) -> bytes:
    """``begin``, some fields, a body in one of the ways a body can be framed."""
    fields = draw(st.lists(FIELDS, max_size=4))
    kind = draw(st.sampled_from(["none", "length", "chunked"]))
    body = b""
    if kind == "length":
        body = draw(BODIES)
        fields.append(b"Content-Length: %d" % len(body))
    elif kind == "chunked":
        body = draw(chunked())
        fields.append(b"Transfer-Encoding: chunked")
    fields = draw(st.permutations(fields))
    return b"\r\n".join([begin, *fields, b"", b""]) + body


@st.composite
def requests(draw) -> bytes:
    line = b" ".join([draw(METHODS), draw(TARGETS), draw(VERSIONS)])
    return draw(framed(line + b"\r\nHost: pay"))


@st.composite
def answers(draw) -> bytes:
    status = draw(
        st.sampled_from([b"200 OK", b"204 No Content", b"304 Not Modified", b"404", b"503 ", b"100 Continue"])
    )
    return draw(framed(draw(VERSIONS) + b" " + status))


@st.composite
def mutilated(draw, messages: st.SearchStrategy[bytes]) -> bytes:
    """One to three messages in a row, with some bytes put in, taken out, doubled or replaced."""
    data = b"".join(draw(st.lists(messages, min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 12)))
        data = draw(
            st.sampled_from([
                data[:at] + draw(NASTY) + data[at:],
                data[:at] + data[end:],
                data[:at] + draw(NASTY) + data[end:],
                data[:end] + data[at:],
            ])
        )  # fmt: skip
    return data


# --- the oracle -----------------------------------------------------------------------------------------------------


@dataclass
class Message:
    """A message as llhttp sees it."""

    start: bytes = b""
    method: bytes = b""
    status: int = 0
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    is_whole: bool = False
    has_head: bool = False

    @property
    def own(self) -> Headers:
        """The fields, named in lower case, without what stands behind the body."""
        return [(name.lower(), value.strip(b" \t")) for name, value in self.headers]


class Llhttp:
    """Everything llhttp makes of some bytes, up to its first error."""

    def __init__(self, data: bytes, kind: Any) -> None:
        self.messages: list[Message] = []
        self.error: Exception | None = None
        self._parser = kind(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.error = error

    @property
    def whole(self) -> list[Message]:
        return [message for message in self.messages if message.is_whole]

    def on_message_begin(self) -> None:
        self.messages.append(Message())

    def on_url(self, url: bytes) -> None:
        self.messages[-1].start += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.messages[-1].has_head:
            self.messages[-1].headers.append((name, value))

    def on_headers_complete(self) -> None:
        message = self.messages[-1]
        message.has_head = True
        if isinstance(self._parser, httptools.HttpRequestParser):
            message.method = self._parser.get_method()
        else:
            message.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.messages[-1].body += body

    def on_message_complete(self) -> None:
        self.messages[-1].is_whole = True


DELIBERATE = (
    # RFC 9112 §7.1.1: extensions are ignored by who does not know them; BWS may stand in them. Ours end at CRLF, hold no
    # control characters and at most 256 bytes, and are never sent on.
    "chunk extension",
)
"""Where llhttp's refusal is not ours."""


def differs_on_purpose(theirs: Llhttp) -> bool:
    return any(reason in str(theirs.error) for reason in DELIBERATE)


def is_among(ours: Headers, theirs: Headers) -> bool:
    """All of ours stand in theirs, in the same order."""
    rest = iter(theirs)
    return all(field in rest for field in ours)


class NobodyElse:
    """A directory that knows no other service, and says so without a loop."""

    def __init__(self, trampoline: Trampoline) -> None:
        self._trampoline = trampoline

    def look_up(self, service: Name, answer: Any) -> None:
        self._trampoline.post(Later(partial(answer, NoRoute("unknown"))), None)

    def touch(self, services: set[Name]) -> None: ...

    def connect_failed(self, service: Name, endpoint_id: str) -> None: ...


def conversation() -> Conversation:
    talk = Conversation()
    talk.plane.directory = NobodyElse(talk.plane.trampoline)
    return talk


# --- requests -------------------------------------------------------------------------------------------------------


def outcome(data: bytes, cut: int) -> tuple[Any, ...]:
    talk = conversation().feed(data, cut)
    assert 500 not in talk.statuses, "a bug in the sidecar"
    return talk.requests, [status < 400 for status in talk.statuses], talk.is_over


@given(mutilated(requests()), st.integers(1, 7))
@example(b"GET / HTTP/1.1\r\nHost: pay\r\n\r", 1)
@example(b"\r\n\r\nGET / HTTP/1.1\r\nHost: pay\r\n\r\n", 1)
@example(b"\r\n\nGET / HTTP/1.1\r\nHost: pay\r\n\r\n", 1)
def test_requests_do_not_depend_on_how_the_bytes_were_cut(data: bytes, cut: int) -> None:
    assert outcome(data, 0) == outcome(data, cut) == outcome(data, 1)


@given(mutilated(requests()))
@example(b"GET /\t HTTP/1.1\r\nHost: pay\r\n\r\n")  # found: a tab in the target was sent on
@example(
    b"GET / HTTP/1.1\r\nHost: pay\r\nconnection: close\r\nConnection: keep-alive, x-a\r\n\r\n"
    b"GET / HTTP/1.1\r\nHost: pay\r\n\r\n"
)  # found: the second field took the close back
@example(b"OPTIONS HTTP://PAY:80 HTTP/1.1\r\nHost: pay\r\n\r\n")
def test_a_request_that_is_taken_is_the_same_to_llhttp_and_so_is_what_is_sent_on(data: bytes) -> None:
    talk = conversation().feed(data)
    assert 500 not in talk.statuses, "a bug in the sidecar"
    heads, forwarded = [taken.head for taken in talk.taken], [bytes(taken.sent) for taken in talk.taken]
    theirs = Llhttp(data, httptools.HttpRequestParser)
    for head, sent in zip(heads, forwarded, strict=True):
        again = Llhttp(sent, httptools.HttpRequestParser)
        assert again.error is None, (sent, again.error)
        assert len(again.messages) == 1, "one request became several"
        message = again.messages[0]
        assert (message.method, message.start) == (head.method, head.target)
        assert [value for name, value in message.own if name == b"host"] == [head.authority]
        assert is_among(list(head.headers), message.own)
        if not message.is_whole:
            assert message is again.messages[-1]
            assert sent is forwarded[-1], "only the last request may have a body that is still to come"
    # Requests that were answered by the sidecar itself (404, 501 …) are not in ``taken``: look for each of ours in order.
    rest = iter(theirs.messages)
    for head, sent in zip(heads, forwarded, strict=True):
        ours = Llhttp(sent, httptools.HttpRequestParser).messages[0]
        match = next((m for m in rest if m.method == head.method and is_same_target(m.start, head)), None)
        if (match is None or not match.is_whole) and differs_on_purpose(theirs):
            return
        assert match is not None, f"llhttp does not see {head!r}"
        assert is_among(list(head.headers), match.own)
        if ours.is_whole and not any(name == b"upgrade" for name, _ in match.own):
            assert (match.is_whole, match.body) == (True, ours.body)


def is_same_target(theirs: bytes, head: RequestHead) -> bool:
    """Absolute targets are sent on as a path, or as the asterisk they stand for (RFC 9112 §3.2.4)."""
    if head.target == b"*":
        return head.method == b"OPTIONS"
    if theirs[:7].lower() == b"http://":
        return theirs.endswith(head.target.removeprefix(b"/"))
    return theirs == head.target


# --- answers --------------------------------------------------------------------------------------------------------


def reading(data: bytes, method: bytes, cut: int) -> tuple[Any, ...]:
    read = AnswerReading(method).feed(data, cut)
    heads = [head.status for head in read.heads]
    return heads, read.informational, read.body if read.ended else b"", read.ended, read.error is None


@given(mutilated(answers()), st.sampled_from([b"GET", b"HEAD", b"POST"]), st.integers(1, 7))
def test_answers_do_not_depend_on_how_the_bytes_were_cut(data: bytes, method: bytes, cut: int) -> None:
    assert reading(data, method, 0) == reading(data, method, cut) == reading(data, method, 1)


@given(mutilated(answers()))
@example(b"HTTP/1.0 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")  # found: taken as interim
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1; x = y\r\n\x00\r\n0; x = y\r\n\r\n")
def test_an_answer_that_is_taken_whole_is_the_same_to_llhttp(data: bytes) -> None:
    read = AnswerReading(b"GET").feed(data)
    if not read.ended or read.informational:
        return  # llhttp takes a Connection: close of an interim answer for the end of the connection; here it is not
    theirs = Llhttp(data, httptools.HttpResponseParser)
    final = [message for message in theirs.messages if message.status >= 200]
    assert final, "llhttp does not see it"
    assert final[0].status == read.heads[0].status
    assert is_among(list(read.heads[0].fields.pairs), final[0].own)
    assert final[0].body == read.body or differs_on_purpose(theirs)
