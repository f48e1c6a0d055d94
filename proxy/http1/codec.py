"""HTTP/1.1 as bytes: heads in and out, strictly framed (RFC 9112). Pure: no sockets, no clock.

Heads are read one whole head at a time: a splitter checks its characters and sets the lines apart that mean something
here; plain fields stay the checked line they are. That is faster than llhttp with a callback for each field, and
leaves no parser's lenience between us and the framing.
Heads are always rebuilt field by field, never passed through. Whatever two readers could understand differently is
refused: requests with 400, responses with 502.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

from mesh.http.connect import is_target, make_connect
from mesh.http.grpc import CALL_FIELDS, WEB_TYPE, web_call
from mesh.http.headers import Fields, Headers, list_members
from mesh.http.message import METHODS, SWITCHED, RequestHead, ResponseHead
from mesh.http.outcome import (
    BadRequest,
    ExpectationFailed,
    HeadersTooLarge,
    NotImplementedMethod,
    UpstreamProtocolError,
    UriTooLong,
    VersionNotSupported,
)
from proxy.http1.fields import (
    BARE_CR_OR_LF,
    CODING,
    CONNECTION,
    EXPECT,
    HOST,
    KNOWN,
    LENGTH,
    PERSISTENCE_ONLY,
    SAYS_NOT_SENT,
    TE,
    UPGRADE,
    apply_connection,
    malformed,
    read_length,
    request_splitter,
    response_splitter,
    too_large,
    upgrade_token,
)
from proxy.http1.limits import DEFAULT_LIMITS, HeadLimits
from proxy.http1.splitter import TOKEN_PATTERN, join_head

_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]")
# RFC 3986 §3.2.2 without userinfo: name or IPv4, or a bracketed IPv6 address; then a port.
_AUTHORITY: Final = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]*|\[[0-9A-Fa-f:.]+\])(?::([0-9]{0,5}))?")
_SLASH: Final = 0x2F
_MAX_PORT: Final = 65535
_MAX_SEEN: Final = 2048  # of what is remembered of peers' choosing
_MAX_SEEN_BYTES: Final = 256


def check_partial_head(data: bytes, limits: HeadLimits = DEFAULT_LIMITS, checked: int = 0) -> None:
    """Refuse what can never become a good head, before its end has come. Raises BadRequest.

    The first ``checked`` bytes are known to be good.
    """
    if BARE_CR_OR_LF.search(data, checked):
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
    split = request_splitter.split(head)
    line, plain, known, host, special, count = split or (head.partition(b"\r\n")[0], *_NOTHING)
    parts = line.split(b" ")
    if len(parts) != 3 or parts[2] != b"HTTP/1.1" or len(line) > limits.line_bytes:
        _check_request_line(line, limits)
    method, target, version = parts
    is_11 = version == b"HTTP/1.1"
    if method not in METHODS:
        raise _unknown_method(method)
    if len(head) > limits.head_bytes or count > limits.count:
        raise too_large(head, limits, BadRequest)
    if split is None:
        raise malformed(head, BadRequest)
    if (
        not target.isascii() or not target or target.find(b"#") >= 0 or target.find(b"\t") >= 0
    ):  # §3: some split at a tab
        message = f"request target {target[:60]!r} is none of the forms of RFC 9112 §3.2"
        raise BadRequest(message)
    if host is None:
        if is_11:
            raise _one_host()
        host = b""
    request = RequestHead(method, target, host, Fields(None, plain), known)
    keep_alive = is_11
    if special:
        keep_alive = _apply_special(request, special, is_11=is_11)
    if not is_11:
        request.version = b"1.0"
    if target[0] != _SLASH or method == b"CONNECT":
        if method == b"CONNECT":
            _apply_connect(request)
            return request, False
        _apply_other_target_form(request)
    if request.authority not in _good_authorities:
        _check_authority(request.authority)
    if method == b"POST" and WEB_TYPE in head:
        _apply_grpc_web(request)
    return request, keep_alive


_NOTHING: tuple[list[bytes], dict[bytes, bytes], None, list[tuple[int, bytes, bytes]], int] = ([], {}, None, [], 0)


def _one_host() -> BadRequest:
    return BadRequest("exactly one Host field is needed (RFC 9112 §3.2)")


def _apply_special(request: RequestHead, special: list[tuple[int, bytes, bytes]], *, is_11: bool) -> bool:
    """Take in the fields that frame the message or speak of the connection; gives whether it would be kept."""
    known = request.known
    keep_alive = is_11
    closes = False
    named: list[bytes] | None = None
    codings: list[bytes] | None = None
    upgrades: list[bytes] | None = None
    for kind, name, value in special:
        if kind == KNOWN:
            known[name] += b", " + value  # RFC 9110 §5.3
        elif kind == HOST:
            raise _one_host()
        elif kind == LENGTH:
            if request.content_length is not None:
                message = "more than one Content-Length (RFC 9112 §6.3)"
                raise BadRequest(message)
            request.content_length = read_length(value, BadRequest)
        elif kind == CODING:
            codings = [*(codings or ()), value]
        elif kind == CONNECTION:
            if value in PERSISTENCE_ONLY:
                keep_alive = PERSISTENCE_ONLY[value]
                closes = closes or not keep_alive
            else:
                named = [*(named or ()), value]
        elif kind == EXPECT:
            _apply_expect(request, value, is_11=is_11)
        elif kind == TE:
            request.wants_trailers = request.wants_trailers or b"trailers" in list_members([value.lower()])
        elif kind == UPGRADE:
            upgrades = [*(upgrades or ()), value]
    if named is not None:
        keep_alive = apply_connection(named, request.fields, known, keep_alive=keep_alive)
        if upgrades is not None and is_11 and codings is None and not request.content_length:
            request.upgrade = upgrade_token(upgrades, named)
    if closes:
        keep_alive = False  # RFC 9112 §9.3: whatever a second Connection field says
    if codings is not None:
        _apply_transfer_encoding(request, codings, is_11=is_11)
    elif request.content_length:
        request.has_body = True
    return keep_alive


_good_authorities: set[bytes] = set()


def _check_authority(authority: bytes) -> None:
    found = _AUTHORITY.fullmatch(authority)
    if not found or int(found[1] or 0) > _MAX_PORT:
        message = f"Host {authority[:80]!r} is no host[:port] (RFC 9112 §3.2)"
        raise BadRequest(message)
    if len(_good_authorities) >= _MAX_SEEN:
        _good_authorities.clear()
    _good_authorities.add(authority)


def _check_request_line(line: bytes, limits: HeadLimits) -> None:
    """A line that is not plainly HTTP/1.1: HTTP/1.0 passes, everything else is told what it is."""
    if len(line) > limits.line_bytes:
        message = f"the request line is longer than {limits.line_bytes} bytes"
        raise UriTooLong(message)
    parts = line.split(b" ")
    if len(parts) == 3 and parts[2] in (b"HTTP/1.0", b"HTTP/1.1"):
        return
    if len(parts) == 3 and _VERSION.fullmatch(parts[2]):
        message = f"{parts[2].decode('latin-1')} is not spoken here; use HTTP/1.1"
        raise VersionNotSupported(message)
    message = "malformed request line (RFC 9112 §3): METHOD SP target SP HTTP/1.1"
    raise BadRequest(message)


def _unknown_method(method: bytes) -> BadRequest:
    if TOKEN_PATTERN.fullmatch(method) and len(method) <= 32:
        return NotImplementedMethod(f"method {method.decode()} is not carried by this sidecar")
    return BadRequest("malformed method (RFC 9110 §9.1)")


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


def _apply_connect(request: RequestHead) -> None:
    """Bytes that follow belong to the tunnel, or to nobody.

    Where the tunnel is refused a client that did not wait would have what it sent for the other end read as requests
    here: such a connection is never kept.
    """
    _check_authority(request.authority)  # RFC 9112 §3.2: a Host that is none is refused, though nobody uses it
    if not is_target(request.target):
        message = f"CONNECT {request.target[:60]!r} names no host:port (RFC 9112 §3.2.3)"
        raise BadRequest(message)
    if request.has_body:
        message = "CONNECT has no body: Content-Length or Transfer-Encoding say that it has (RFC 9110 §9.3.6)"
        raise BadRequest(message)
    make_connect(request)


def _apply_grpc_web(request: RequestHead) -> None:
    """A head with that type somewhere in it may begin a gRPC-Web call: the last content-type tells."""
    content_type, of_call = b"", []
    for name, value in request.fields.pairs:
        if name == b"content-type":
            content_type = value
        elif name in CALL_FIELDS:
            of_call.append((name, value))
    try:
        request.grpc = web_call(request.method, content_type, of_call)
    except ValueError as error:
        raise BadRequest(str(error)) from error
    if request.grpc is not None and of_call:
        request.fields.remove(CALL_FIELDS)


# --- responses ------------------------------------------------------------------------------------------------------

UNTIL_CLOSE: Final = -1
CHUNKED: Final = -2


def parse_response(
    head: bytes, method: bytes, limits: HeadLimits = DEFAULT_LIMITS, upgrade: bytes | None = None
) -> tuple[ResponseHead, int, bool]:
    """Read one whole head of a response to ``method``, which asked to go on as ``upgrade``.

    Gives it, its framing (a length, CHUNKED or UNTIL_CLOSE) and whether the endpoint would keep the connection.
    Raises UpstreamProtocolError for whatever may not be forwarded.
    """
    split = response_splitter.split(head)
    line, plain, _, sized, special, count = split or (head.partition(b"\r\n")[0], *_NOTHING)
    is_11, status = _status_lines.get(line) or _read_status_line(line)
    if len(head) > limits.head_bytes or count > limits.count:
        raise too_large(head, limits, UpstreamProtocolError)
    if split is None:
        raise malformed(head, UpstreamProtocolError)
    response = ResponseHead(status, Fields(None, plain))
    if sized is not None:
        response.content_length = read_length(sized, UpstreamProtocolError)
    keep_alive = is_11
    closes = False
    named: list[bytes] | None = None
    codings: list[bytes] | None = None
    upgrades: list[bytes] | None = None
    for kind, _, value in special:
        if kind == LENGTH:
            message = "more than one Content-Length in the answer (RFC 9112 §6.3)"
            raise UpstreamProtocolError(message)
        if kind == CODING:
            codings = [*(codings or ()), value]
        elif kind == CONNECTION:
            if value in PERSISTENCE_ONLY:
                keep_alive = PERSISTENCE_ONLY[value]
                closes = closes or not keep_alive
            else:
                named = [*(named or ()), value]
        elif kind == SAYS_NOT_SENT:
            response.not_sent = value == b"1"
        elif kind == UPGRADE:
            upgrades = [*(upgrades or ()), value]
    if named is not None:
        keep_alive = apply_connection(named, response.fields, {}, keep_alive=keep_alive)
    if closes:
        keep_alive = False  # RFC 9112 §9.3: whatever a second Connection field says
    if status == SWITCHED and upgrade is not None and upgrade_token(upgrades or [], named or []) == upgrade:
        response.content_length = None
        return response, 0, False
    length = response.content_length
    if length is not None and codings is None and status not in _ODD_STATUSES and method != b"HEAD":
        response.has_body = length > 0
        return response, length, keep_alive
    return _framed(response, codings, method, is_11=is_11, keep_alive=keep_alive)


# Status lines seen, by their bytes: few in any service. Bounded like all that others fill.
_status_lines: dict[bytes, tuple[bool, int]] = {}
_ODD_STATUSES: Final = frozenset((*range(100, 200), 204, 304))  # RFC 9112 §6.3: without a body, whatever the fields say


def _read_status_line(line: bytes) -> tuple[bool, int]:
    is_11 = line.startswith(b"HTTP/1.1 ")
    if not is_11 and not line.startswith(b"HTTP/1.0 "):
        message = f"the answer does not begin with an HTTP/1.1 status line: {line[:20]!r}"
        raise UpstreamProtocolError(message)
    digits = line[9:12]
    if not digits.isdigit() or line[12:13] not in (b" ", b"") or not b"1" <= digits[:1] <= b"5":
        message = f"the answer's status is not three digits from 100 to 599: {line[:20]!r}"
        raise UpstreamProtocolError(message)
    if len(line) <= _MAX_SEEN_BYTES:
        if len(_status_lines) >= _MAX_SEEN:
            _status_lines.clear()
        _status_lines[line] = is_11, int(digits)
    return is_11, int(digits)


def _framed(
    response: ResponseHead, codings: list[bytes] | None, method: bytes, *, is_11: bool, keep_alive: bool
) -> tuple[ResponseHead, int, bool]:
    """How the body of an answer ends (RFC 9112 §6.3)."""
    if codings is not None and (
        response.content_length is not None or not is_11 or len(codings) != 1 or codings[0].lower() != b"chunked"
    ):
        message = f"ambiguous framing of the answer: Transfer-Encoding {b', '.join(codings)[:60]!r} (RFC 9112 §6.1)"
        raise UpstreamProtocolError(message)
    status = response.status
    if status == SWITCHED:
        message = "the endpoint switched to a protocol that it was not asked for (RFC 9110 §15.2.2)"
        raise UpstreamProtocolError(message)
    if status < 200 and not is_11:
        message = f"a {status} answer in HTTP/1.0, which has none: it may mean the last one (RFC 9110 §15.2)"
        raise UpstreamProtocolError(message)
    # These have no body whatever their fields say.
    if method == b"HEAD" or status in _ODD_STATUSES:
        if status < 200 or status == 204:
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

STATUS_LINES: Final = {
    status: f"HTTP/1.1 {status} {HTTPStatus(status).phrase if status in set(HTTPStatus) else ''}".encode()
    for status in range(100, 600)
}
LAST_CHUNK: Final = b"0\r\n\r\n"


def request_bytes(head: RequestHead, added: list[bytes]) -> bytes:
    """A request head for the wire, rebuilt field by field, with the lines (without CRLF) that the mesh adds."""
    front = (head.method, b" ", head.target, b" HTTP/1.1\r\nhost: ", head.authority)
    if is_chunked(head):
        framing = b"transfer-encoding: chunked\r\n"
    else:
        framing = b"" if head.content_length is None else b"content-length: %d\r\n" % head.content_length
    if head.expects_continue:
        framing += b"expect: 100-continue\r\n"
    if head.upgrade is not None:
        framing += upgrade_lines(head.upgrade)
    elif head.wants_trailers:
        framing += b"te: trailers\r\nconnection: te\r\n"  # RFC 9110 §10.1.4: it is about this connection
    return join_head(front, head.fields.lines, added, (framing, b"\r\n"))


def is_chunked(head: RequestHead) -> bool:
    """Tell how its body is framed: only chunks have a place for trailers, whatever is known of its length."""
    return head.has_body and (head.content_length is None or head.announces_trailers)


def upgrade_lines(protocol: bytes) -> bytes:
    """The fields that ask for, or announce, another protocol on this connection (RFC 9110 §7.8)."""
    return b"connection: upgrade\r\nupgrade: %b\r\n" % protocol


def response_bytes(head: ResponseHead, *tail: bytes) -> bytes:
    """A response head for the wire.

    ``tail``: its last lines (length, coding, connection), the empty one, and what of the body goes out with it.
    """
    return join_head((STATUS_LINES[head.status],), head.fields.lines, (), tail)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; ``data`` is not empty (an empty one would end the body)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def last_chunk(trailers: Headers) -> bytes:
    """The end of a chunked body with its trailer section."""
    return b"0\r\n%b\r\n" % b"".join([b"%b: %b\r\n" % pair for pair in trailers]) if trailers else LAST_CHUNK
