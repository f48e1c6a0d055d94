"""Heads of HTTP/2 as values and back (RFC 9113 §8). Pure.

Strict as the HTTP/1.1 codec is: a field that two readers could understand differently ends the stream. What is about
one connection is not forwarded, and may not stand in HTTP/2 at all (§8.2.2).
"""

from __future__ import annotations

import re
from typing import Final

from mesh.http.connect import connect_to, is_target
from mesh.http.grpc import CALL_FIELDS, call_of
from mesh.http.headers import Fields, Headers
from mesh.http.message import HTTP2, KNOWN_REQUEST_FIELDS, NOT_SENT, RequestHead, ResponseHead
from mesh.http.outcome import (
    ExpectationFailed,
    HeadersTooLarge,
    UpstreamProtocolError,
    UriTooLong,
)
from proxy.http2.errors import ErrorCode, StreamFault
from proxy.http2.octets import HEADER_LIST_BYTES, is_well_formed, list_bytes, split_lines
from proxy.websocket import KEY

MAX_COUNT: Final = 100  # as in HTTP/1.1
MAX_TARGET: Final = 16 * 1024  # likewise
_MAX_PORT: Final = 65535
_FORBIDDEN: Final = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
_DROPPED: Final = frozenset(
    (b"host", b"te", b"proxy-authenticate", b"proxy-authorization", b"content-length", b"expect")
)
_SPECIAL: Final = _FORBIDDEN | _DROPPED | KNOWN_REQUEST_FIELDS | CALL_FIELDS | {b"cookie", b"content-type", b"trailer"}
_NOT_TRAILERS: Final = _DROPPED | frozenset(
    b"cookie set-cookie authorization content-type content-encoding content-range trailer x-mesh-not-sent".split()
)
_COMMON_METHODS: Final = frozenset((b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"PATCH", b"OPTIONS"))
_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}")
_TARGET: Final = re.compile(rb"[\x21\x22\x24-\x7e]+")
_AUTHORITY: Final = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]*|\[[0-9A-Fa-f:.]+\])(?::([0-9]{0,5}))?")


def request_head(fields: Headers, *, ended: bool) -> RequestHead:
    """The request that HEADERS begin. Raises StreamFault where it is malformed (§8.1.1), BadRequest where refused."""
    pseudo: dict[bytes, bytes] = {}
    plain: Headers = []
    known: dict[bytes, bytes] = {}
    host: bytes | None = None
    length: int | None = None
    cookies: list[bytes] = []
    wants_trailers = announces_trailers = expects = False
    saw_regular = False
    content_type = b""
    of_grpc: Headers = []
    _check(fields)
    for name, value in fields:
        if name[:1] == b":":
            if saw_regular or name in pseudo or name not in _REQUEST_PSEUDO:
                raise _malformed(f"{name.decode('latin-1')} out of place, repeated or unknown (§8.3.1)")
            pseudo[name] = value
            continue
        saw_regular = True
        if name not in _SPECIAL:
            plain.append((name, value))
        elif name == b"content-type":
            plain.append((name, value))
            content_type = value
        elif name in CALL_FIELDS:
            of_grpc.append((name, value))
        elif name in KNOWN_REQUEST_FIELDS:
            known[name] = known[name] + b", " + value if name in known else value
        elif name == b"cookie":
            cookies.append(value)
        elif name == b"content-length":
            if length is not None or not value.isdigit() or len(value) > 18:
                raise _malformed("content-length is no number, or stands there twice (§8.1.1)")
            length = int(value)
        elif name == b"te":
            if value.lower() != b"trailers":
                raise _malformed("te other than trailers (§8.2.2)")
            wants_trailers = True
        elif name == b"trailer":
            plain.append((name, value))
            announces_trailers = True
        elif name == b"host":
            if host is not None:
                raise _malformed("more than one host (§8.3.1)")
            host = value
        elif name == b"expect":
            if value.lower() != b"100-continue":
                message = f"Expect {value[:40]!r} is not known; only 100-continue is (RFC 9110 §10.1.1)"
                raise ExpectationFailed(message)
            expects = True
        elif name in _FORBIDDEN:
            raise _malformed(f"{name.decode()} is about a connection of HTTP/1.1 (§8.2.2)")
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    authority = pseudo.get(b":authority", host)
    if method not in _COMMON_METHODS and not _METHOD.fullmatch(method):
        raise _malformed(":method is missing or no token (§8.3.1)")
    protocol = pseudo.get(b":protocol")
    if method == b"CONNECT" and protocol is None:
        return _connect(pseudo, host, length, Fields(plain), known)
    if protocol is not None and (method != b"CONNECT" or ended or not _METHOD.fullmatch(protocol)):
        raise _malformed(":protocol without CONNECT, or with nothing to follow (RFC 8441 §4)")
    if b":scheme" not in pseudo or not _TARGET.fullmatch(path) or not (path[:1] == b"/" or (path, method) == _ASTERISK):
        raise _malformed(":scheme or :path is missing or malformed (§8.3.1)")
    if len(path) > MAX_TARGET:
        message = f"the path is longer than {MAX_TARGET} bytes"
        raise UriTooLong(message)
    if authority is None or not _is_authority(authority) or (host is not None and not _is_same(host, authority)):
        raise _malformed(":authority is missing, malformed, or not what host says (§8.3.1)")
    if ended and length:
        raise _malformed("no body where content-length says there is one (§8.1.1)")
    if cookies:
        plain.append((b"cookie", b"; ".join(cookies)))  # §8.2.3: for whoever reads it as one
    try:
        call = call_of(method, content_type, of_grpc) if content_type[:16] == b"application/grpc" else None
    except ValueError as error:
        raise _malformed(str(error)) from error
    if call is None:
        plain += of_grpc
    if protocol is not None:
        method = b"GET"  # as in HTTP/1.1, where the same request is an upgrade (RFC 6455 §4.1)
    head = RequestHead(method, path, authority, Fields(plain), known)
    head.grpc = call
    head.version = HTTP2
    head.content_length = length
    head.has_body = not ended and protocol is None
    head.upgrade = None if protocol is None else protocol.lower()
    head.expects_continue = expects
    head.wants_trailers = wants_trailers
    head.announces_trailers = announces_trailers
    return head


def _connect(
    pseudo: dict[bytes, bytes], host: bytes | None, length: int | None, fields: Fields, known: dict[bytes, bytes]
) -> RequestHead:
    """§8.5: an authority with its port, and neither scheme nor path; the stream's DATA are the tunnel's bytes."""
    authority = pseudo.get(b":authority", b"")
    if b":scheme" in pseudo or b":path" in pseudo or not is_target(authority) or length:
        raise _malformed("CONNECT with :scheme or :path, without host:port in :authority, or with a length (§8.5)")
    if host is not None and host.lower() != authority.lower():
        raise _malformed(":authority is not what host says (§8.3.1)")
    request = connect_to(authority, fields, known)
    request.version = HTTP2
    return request


def _is_same(host: bytes, authority: bytes) -> bool:
    """§8.3.1: one authority, however it is written; a port that is not said is HTTP's."""
    return host == authority or host.lower().removesuffix(b":80") == authority.lower().removesuffix(b":80")


def _is_authority(authority: bytes) -> bool:
    found = _AUTHORITY.fullmatch(authority)
    return found is not None and int(found[1] or 0) <= _MAX_PORT


def request_fields(head: RequestHead, added: list[bytes], scheme: bytes = b"http") -> Headers:
    """The fields of a request to an endpoint, with the lines (``name: value``) that the mesh adds."""
    plain = head.fields.pairs
    if head.upgrade is None:
        fields: Headers = [(b":method", head.method)]
    else:
        fields = [(b":method", b"CONNECT"), (b":protocol", head.upgrade)]
        plain = [pair for pair in plain if pair[0] != KEY]  # RFC 8441 §5: there is none
    fields += [(b":scheme", scheme), (b":path", head.target), (b":authority", head.authority), *plain]
    fields += split_lines(added)
    if head.content_length is not None:
        fields.append((b"content-length", b"%d" % head.content_length))
    if head.wants_trailers:
        fields.append((b"te", b"trailers"))
    if head.expects_continue:
        fields.append((b"expect", b"100-continue"))
    return fields


def response_head(fields: Headers, *, ended: bool) -> ResponseHead:
    """The answer that HEADERS begin (1xx too). Raises UpstreamProtocolError where it is malformed."""
    try:
        _check(fields)
    except (StreamFault, HeadersTooLarge) as fault:
        raise UpstreamProtocolError(fault.message) from fault
    status = fields[0][1]
    if len(status) != 3 or not status.isdigit() or not b"100" <= status <= b"599" or status == b"101":
        message = f"the answer's :status is {status[:20]!r} (RFC 9113 §8.3.2)"
        raise UpstreamProtocolError(message)
    plain: Headers = []
    length: int | None = None
    not_sent = announces_trailers = False
    for name, value in fields[1:]:
        if name[:1] == b":" or name in _FORBIDDEN:
            message = f"the answer's {name.decode('latin-1')} may not stand there (RFC 9113 §8.2.2, §8.3)"
            raise UpstreamProtocolError(message)
        if name == b"content-length":
            if length is not None or not value.isdigit() or len(value) > 18:
                message = "the answer's content-length is no number, or stands there twice"
                raise UpstreamProtocolError(message)
            length = int(value)
        elif name == NOT_SENT:
            not_sent = value == b"1"
        elif name not in _RESPONSE_SPECIAL:
            plain.append((name, value))
        elif name == b"trailer":
            plain.append((name, value))
            announces_trailers = True
    code = int(status)
    if code < 200 or code == 204:
        length = None  # RFC 9110 §8.6: it may not stand there
    head = ResponseHead(code, Fields(plain), length, has_body=not ended, not_sent=not_sent)
    head.announces_trailers = announces_trailers
    return head


def response_fields(head: ResponseHead) -> Headers:
    """The fields of an answer to a client."""
    fields: Headers = [(b":status", b"%d" % head.status), *head.fields.pairs]
    if head.content_length is not None:
        fields.append((b"content-length", b"%d" % head.content_length))
    return fields


def trailers(fields: Headers) -> Headers:
    """Trailers as they are forwarded: without what frames, routes or authenticates a message (RFC 9110 §6.5.1)."""
    try:
        _check(fields)
    except HeadersTooLarge as error:
        raise _malformed(error.message) from error
    for name, _ in fields:
        if name in _FORBIDDEN or name[:1] == b":":
            raise _malformed(f"{name.decode('latin-1')} in the trailers (§8.1, §8.2.2)")
    return [pair for pair in fields if pair[0] not in _NOT_TRAILERS]


_REQUEST_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority", b":protocol"))
_RESPONSE_SPECIAL: Final = frozenset((b"te", b"proxy-authenticate", b"proxy-authorization", b"trailer"))
"""All but the last are dropped."""
_ASTERISK: Final = (b"*", b"OPTIONS")


def _check(fields: Headers) -> None:
    """§8.2.1: names and values that no reader may misunderstand."""
    if len(fields) > MAX_COUNT and len([name for name, _ in fields if name != b"cookie"]) > MAX_COUNT:
        raise StreamFault(ErrorCode.ENHANCE_YOUR_CALM, f"more than {MAX_COUNT} fields")
    if not is_well_formed(fields):
        if list_bytes(fields) > HEADER_LIST_BYTES:
            message = f"the head has more than {HEADER_LIST_BYTES} bytes"
            raise HeadersTooLarge(message)
        bad = next(pair for pair in fields if not is_well_formed([pair]))
        raise _malformed(f"field {bad[0][:40]!r}: a name in capitals or no name, or a value with blanks at an end or a "
                         "control character in it (§8.2.1)")  # fmt: skip


def _malformed(message: str) -> StreamFault:
    return StreamFault(ErrorCode.PROTOCOL_ERROR, message)
