"""HTTP/1.1 as bytes: heads in and out, strictly framed (RFC 9112). Pure: no sockets, no clock.

Heads go through llhttp (httptools), one parser per head and fed exactly one whole head, so that no parser state
carries over from one message to the next. What llhttp lets through is checked here: versions, Host, repeated or odd
Content-Length and Transfer-Encoding, counts. Heads are always rebuilt from the parsed form, never passed through.
Whatever two readers could understand differently is refused: requests with 400, responses with 502.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

import httptools

from mesh.http.headers import HOP_BY_HOP, Headers, list_members
from mesh.http.message import KNOWN_REQUEST_FIELDS, NOT_SENT, RequestHead, ResponseHead
from mesh.http.outcome import (
    BadRequest,
    ExpectationFailed,
    HeadersTooLarge,
    NotImplementedMethod,
    UpstreamProtocolError,
    UriTooLong,
    VersionNotSupported,
)

HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """How large a head may be."""

    line_bytes: int = 16 * 1024  # twice what RFC 9112 §3 asks for at least; most servers take 8 to 16 KiB
    head_bytes: int = 60 * 1024  # Envoy's max_request_headers_kb
    count: int = 100  # Envoy's max_headers_count


DEFAULT_LIMITS = HeadLimits()

# A bare LF, or a CR that ends no line (RFC 9112 §2.2); the last byte may be a CR whose LF is yet to come.
_BARE_CR_OR_LF = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_METHOD = re.compile(_TOKEN)
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
# RFC 3986 §3.2.2 without userinfo: name or IPv4, or a bracketed IPv6 address; then a port.
_AUTHORITY = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_FIELD_LINE = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
# Fields that must never come as a trailer: framing, routing, authentication (RFC 9110 §6.5.1).
_FORBIDDEN_TRAILERS = HOP_BY_HOP | frozenset(
    b"content-length host trailer expect content-encoding content-type content-range".split()
    + b"authorization cookie set-cookie".split()
)
_SPACE = 0x20
_MAX_LENGTH_DIGITS = 18  # below 2**63: no reader overflows

_FRAMING = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
_SET_ASIDE = _FRAMING | KNOWN_REQUEST_FIELDS
_RESPONSE_SET_ASIDE = HOP_BY_HOP | {b"content-length", NOT_SENT}


class _Fields:
    """Collects what llhttp reports of one head."""

    __slots__ = ("aside", "headers", "set_aside", "url")

    def __init__(self, set_aside: frozenset[bytes]) -> None:
        self.set_aside = set_aside
        self.url = b""
        self.headers: Headers = []
        self.aside: Headers = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in self.set_aside:
            self.aside.append((name, value))
        else:
            self.headers.append((name, value))


def check_partial_head(data: bytes, limits: HeadLimits = DEFAULT_LIMITS) -> None:
    """Refuse what can never become a good head, before its end has come. Raises BadRequest."""
    if _BARE_CR_OR_LF.search(data):
        message = "bare CR or LF in the head; lines end with CRLF (RFC 9112 §2.2)"
        raise BadRequest(message)
    if len(data) > limits.line_bytes and b"\r\n" not in data[: limits.line_bytes + 2]:
        message = f"the request line is longer than {limits.line_bytes} bytes"
        raise UriTooLong(message)
    if len(data) > limits.head_bytes:
        message = f"the head is larger than {limits.head_bytes} bytes"
        raise HeadersTooLarge(message)


def parse_request(head: bytes, limits: HeadLimits = DEFAULT_LIMITS) -> tuple[RequestHead, bool]:
    """Read one whole head, CRLFCRLF included; gives it and whether the client would keep the connection.

    Raises BadRequest (or one of its kinds) for whatever may not be forwarded.
    """
    line_end = head.find(b"\r\n")
    line = head[:line_end]
    is_11 = line.endswith(b" HTTP/1.1")
    if line.count(b" ") != 2 or line[0] <= _SPACE:  # llhttp takes more spaces, and an LF before the method
        message = "malformed request line (RFC 9112 §3): METHOD SP target SP HTTP/1.1"
        raise BadRequest(message)
    if not is_11 or line_end > limits.line_bytes or len(head) > limits.head_bytes:
        _check_request_line(head, line, is_11=is_11, limits=limits)
    fields = _Fields(_SET_ASIDE)
    parser = httptools.HttpRequestParser(fields)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # CONNECT or an Upgrade we do not follow: our own framing decides (RFC 9110 §7.8: it may be ignored)
    except httptools.HttpParserInvalidMethodError:
        raise _unknown_method(line) from None
    except httptools.HttpParserError as error:
        message = f"malformed request head: {error}"
        raise BadRequest(message) from error
    if b" \r\n" in head or b"\t\r\n" in head:
        _strip_values(fields)
    if len(fields.headers) + len(fields.aside) > limits.count:
        message = f"more than {limits.count} header fields"
        raise HeadersTooLarge(message)
    return _request_of(line, fields, is_11=is_11)


def _request_of(line: bytes, fields: _Fields, *, is_11: bool) -> tuple[RequestHead, bool]:
    method = line[: line.find(b" ")]
    known: dict[bytes, bytes] = {}
    request = RequestHead(method, fields.url, b"", fields.headers, known)
    keep_alive = is_11
    hosts = 0
    codings: list[bytes] | None = None
    for name, value in fields.aside:
        if name == b"host":
            hosts += 1
            request.authority = value
        elif name in KNOWN_REQUEST_FIELDS:
            known[name] = known[name] + b", " + value if name in known else value
        elif name == b"content-length":
            if request.content_length is not None:
                message = "more than one Content-Length (RFC 9112 §6.3)"
                raise BadRequest(message)
            request.content_length = _length(value, BadRequest)
        elif name == b"transfer-encoding":
            codings = [*(codings or ()), value]
        elif name == b"connection":
            keep_alive = _apply_connection(value, request.headers, known, keep_alive=keep_alive)
        elif name == b"expect":
            _apply_expect(request, value, is_11=is_11)
    if codings is not None:
        _apply_transfer_encoding(request, codings, is_11=is_11)
    elif request.content_length:
        request.has_body = True
    if not is_11:
        request.version = b"1.0"
    if hosts != 1 and (hosts or is_11):
        message = "exactly one Host field is needed (RFC 9112 §3.2)"
        raise BadRequest(message)
    target = request.target
    if target[:1] != b"/" or method == b"CONNECT":
        _apply_other_target_form(request)
    if b"#" in target:
        message = "the request target holds a fragment ('#', RFC 9112 §3.2)"
        raise BadRequest(message)
    if not _AUTHORITY.fullmatch(request.authority):
        message = f"Host {request.authority!r} is no host[:port] (RFC 9112 §3.2)"
        raise BadRequest(message)
    return request, keep_alive


def _check_request_line(head: bytes, line: bytes, *, is_11: bool, limits: HeadLimits) -> None:
    if len(line) > limits.line_bytes:
        message = f"the request line is longer than {limits.line_bytes} bytes"
        raise UriTooLong(message)
    if len(head) > limits.head_bytes:
        message = f"the head is larger than {limits.head_bytes} bytes"
        raise HeadersTooLarge(message)
    if is_11 or line.endswith(b" HTTP/1.0"):
        return
    version = line.rpartition(b" ")[2]
    if _VERSION.fullmatch(version):
        message = f"{version.decode('latin-1')} is not spoken here; use HTTP/1.1"
        raise VersionNotSupported(message)
    message = "malformed request line (RFC 9112 §3): METHOD SP target SP HTTP/1.1"
    raise BadRequest(message)


def _unknown_method(line: bytes) -> BadRequest:
    method = line.partition(b" ")[0]
    if _METHOD.fullmatch(method) and len(method) <= 32:
        return NotImplementedMethod(f"method {method.decode()} is not carried by this sidecar")
    return BadRequest("malformed method (RFC 9110 §9.1)")


def _strip_values(fields: _Fields) -> None:
    """Optional white space after a value is not part of it (RFC 9110 §5.5); llhttp leaves it on."""
    fields.headers[:] = [(name, value.rstrip(b" \t")) for name, value in fields.headers]
    fields.aside[:] = [(name, value.rstrip(b" \t")) for name, value in fields.aside]


def _length(value: bytes, error: type[BadRequest | UpstreamProtocolError]) -> int:
    if not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
        message = f"Content-Length {value[:40]!r} is not a number (RFC 9112 §6.2)"
        raise error(message)
    return int(value)


def _apply_connection(value: bytes, headers: Headers, known: dict[bytes, bytes], *, keep_alive: bool) -> bool:
    """Take out the fields that Connection names (RFC 9110 §7.6.1); gives what it says of persistence."""
    for member in list_members((value.lower(),)):
        if member == b"close":
            keep_alive = False
        elif member == b"keep-alive":
            keep_alive = True
        elif member not in _FRAMING:
            known.pop(member, None)
            headers[:] = [pair for pair in headers if pair[0] != member]
    return keep_alive


def _apply_expect(request: RequestHead, value: bytes, *, is_11: bool) -> None:
    if value.lower() != b"100-continue":
        message = f"Expect {value[:40]!r} is not known; only 100-continue is (RFC 9110 §10.1.1)"
        raise ExpectationFailed(message)
    request.expects_continue = is_11  # §10.1.1: a server ignores it in HTTP/1.0


def _apply_transfer_encoding(request: RequestHead, codings: list[bytes], *, is_11: bool) -> None:
    if request.content_length is not None:
        message = "Content-Length beside Transfer-Encoding (RFC 9112 §6.1)"
        raise BadRequest(message)
    if not is_11:
        message = "Transfer-Encoding in HTTP/1.0 (RFC 9112 §6.1)"
        raise BadRequest(message)
    if len(codings) != 1 or codings[0].lower() != b"chunked":
        message = f"Transfer-Encoding {b', '.join(codings)[:60]!r}: only one plain 'chunked' is taken (RFC 9112 §6.1)"
        raise BadRequest(message)
    request.has_body = True


def _apply_other_target_form(request: RequestHead) -> None:
    """Absolute-form wins over Host (RFC 9112 §3.2.2); asterisk-form is for OPTIONS only (§3.2.4)."""
    target = request.target
    if request.method == b"CONNECT":
        message = "CONNECT is not carried by this sidecar"
        raise NotImplementedMethod(message)
    if target[:7].lower() == b"http://":
        rest = target[7:]
        ends = [i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0]
        end = min(ends) if ends else len(rest)
        request.authority, path = rest[:end], rest[end:]
        if not request.authority:
            message = "the absolute target has no host (RFC 9110 §4.2.1)"
            raise BadRequest(message)
        if not path and request.method == b"OPTIONS":
            path = b"*"
        request.target = path if path[:1] in (b"/", b"*") else b"/" + path
    elif not (target == b"*" and request.method == b"OPTIONS"):
        message = f"request target {target[:60]!r} is none of the forms of RFC 9112 §3.2 that are taken here"
        raise BadRequest(message)


# --- responses ------------------------------------------------------------------------------------------------------

UNTIL_CLOSE = -1
CHUNKED = -2


def parse_response(head: bytes, method: bytes, limits: HeadLimits = DEFAULT_LIMITS) -> tuple[ResponseHead, int, bool]:
    """Read one whole head of a response to ``method``.

    Gives it, its framing (a length, CHUNKED or UNTIL_CLOSE) and whether the endpoint would keep the connection.
    Raises UpstreamProtocolError for whatever may not be forwarded.
    """
    is_11 = head.startswith(b"HTTP/1.1 ")
    if not is_11 and not head.startswith(b"HTTP/1.0 "):
        message = f"the answer does not begin with an HTTP/1.1 status line: {head[:20]!r}"
        raise UpstreamProtocolError(message)
    if not head[9:12].isdigit() or head[12:13] not in b" \r" or head[9:10] not in b"12345":
        message = f"the answer's status is not three digits: {head[:20]!r}"
        raise UpstreamProtocolError(message)
    fields = _Fields(_RESPONSE_SET_ASIDE)
    parser = httptools.HttpResponseParser(fields)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # we never asked for one: the status decides below
    except httptools.HttpParserError as error:
        message = f"malformed response head: {error}"
        raise UpstreamProtocolError(message) from error
    if b" \r\n" in head or b"\t\r\n" in head:
        _strip_values(fields)
    if len(fields.headers) + len(fields.aside) > limits.count:
        message = f"more than {limits.count} header fields in the answer"
        raise UpstreamProtocolError(message)
    return _response_of(int(head[9:12]), fields, method, is_11=is_11)


def _response_of(status: int, fields: _Fields, method: bytes, *, is_11: bool) -> tuple[ResponseHead, int, bool]:
    response = ResponseHead(status, fields.headers)
    keep_alive = is_11
    codings: list[bytes] | None = None
    for name, value in fields.aside:
        if name == b"content-length":
            if response.content_length is not None:
                message = "more than one Content-Length in the answer (RFC 9112 §6.3)"
                raise UpstreamProtocolError(message)
            response.content_length = _length(value, UpstreamProtocolError)
        elif name == b"transfer-encoding":
            codings = [*(codings or ()), value]
        elif name == b"connection":
            keep_alive = _apply_connection(value, response.headers, {}, keep_alive=keep_alive)
        elif name == NOT_SENT:
            response.not_sent = value == b"1"
    if codings is not None and (
        response.content_length is not None or not is_11 or len(codings) != 1 or codings[0].lower() != b"chunked"
    ):
        message = f"ambiguous framing of the answer: Transfer-Encoding {b', '.join(codings)[:60]!r} (RFC 9112 §6.1)"
        raise UpstreamProtocolError(message)
    if status == HTTPStatus.SWITCHING_PROTOCOLS:
        message = "the endpoint switched protocols without being asked (RFC 9110 §15.2.2)"
        raise UpstreamProtocolError(message)
    # RFC 9112 §6.3: these have no body whatever their fields say.
    if method == b"HEAD" or status < HTTPStatus.OK or status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        if status < HTTPStatus.OK or status == HTTPStatus.NO_CONTENT:
            response.content_length = None  # RFC 9110 §8.6: it may not stand there
        return response, 0, keep_alive
    if codings is not None:
        response.has_body = True
        return response, CHUNKED, keep_alive
    if response.content_length is not None:
        response.has_body = response.content_length > 0
        return response, response.content_length, keep_alive
    response.has_body = True
    return response, UNTIL_CLOSE, False


# --- out ------------------------------------------------------------------------------------------------------------

STATUS_LINES = {
    status: f"HTTP/1.1 {status} {HTTPStatus(status).phrase if status in set(HTTPStatus) else ''}\r\n".encode()
    for status in range(100, 600)
}
LAST_CHUNK = b"0\r\n\r\n"


def field_lines(headers: Headers) -> bytes:
    """Header fields as lines, each ended by CRLF."""
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])


def request_bytes(head: RequestHead, added: Headers) -> bytes:
    """A request head for the wire: ours rebuilt from the parsed form, with the fields the mesh adds."""
    lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (head.method, head.target, head.authority)]
    lines += [b"%b: %b\r\n" % pair for pair in head.headers]
    lines += [b"%b: %b\r\n" % pair for pair in added]
    if head.content_length is not None:
        lines.append(b"content-length: %d\r\n" % head.content_length)
    elif head.has_body:
        lines.append(b"transfer-encoding: chunked\r\n")
    lines.append(b"expect: 100-continue\r\n\r\n" if head.expects_continue else b"\r\n")
    return b"".join(lines)


def response_bytes(head: ResponseHead, framing: bytes) -> bytes:
    """A response head for the wire; ``framing`` are whole lines (length, coding, connection)."""
    lines = [STATUS_LINES[head.status]]
    lines += [b"%b: %b\r\n" % pair for pair in head.headers]
    lines.append(framing)
    lines.append(b"\r\n")
    return b"".join(lines)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; ``data`` is not empty (an empty one would end the body)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def last_chunk(trailers: Headers) -> bytes:
    """The end of a chunked body with its trailer section."""
    return b"0\r\n%b\r\n" % field_lines(trailers) if trailers else LAST_CHUNK


def parse_trailers(section: bytes, error: type[BadRequest | UpstreamProtocolError]) -> Headers:
    """Read a trailer section, given as its lines each ended by CRLF, the empty one left out."""
    trailers: Headers = []
    for line in section.split(b"\r\n")[:-1]:
        match = _FIELD_LINE.fullmatch(line)
        name = match[1].lower() if match else b""
        if match is None or name in _FORBIDDEN_TRAILERS:
            message = f"trailer field {line[:40]!r} is malformed or may not be one (RFC 9110 §6.5.1)"
            raise error(message)
        trailers.append((name, match[2]))
    return trailers
