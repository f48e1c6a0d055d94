"""Spans as tuples of raw values on the request path, and their OTLP bytes made in batches off it.

Hand-written protobuf: 2 to 4 µs a span, where the SDK's encoder takes 48. Attributes are built here, not on the
request path, and most of a span is the same as in the span before it: two parts of the tuple that take few values
are remembered with the bytes they became. The SDK is the oracle in the tests: our bytes decode to the spans its
encoder makes. Fields: opentelemetry/proto/trace/v1/trace.proto. Attributes: OpenTelemetry's stable HTTP conventions
and ``mesh.*`` (names.py; docs/metrics-and-spans.md says what each means).
"""

from __future__ import annotations

import re
import struct
from binascii import unhexlify
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mesh.telemetry import names

SERVER, CLIENT = 2, 3  # Span.SpanKind

AttributeValue = str | bytes | int | bool | float
Attributes = Iterable[tuple[str, AttributeValue]]

MAX_TARGET_BYTES = 2048
MAX_FIELD_BYTES = 256
"""What callers choose is cut to these on the request path, so that a full queue has a size."""

# https://opentelemetry.io/docs/specs/semconv/http/http-spans: any other is _OTHER, so that names stay few.
METHODS = frozenset(b"CONNECT DELETE GET HEAD OPTIONS PATCH POST PUT QUERY TRACE".split())
# The same page: credentials that travel in well-known query parameters are never recorded.
_CREDENTIALS = re.compile(rb"([?&](?:AWSAccessKeyId|Signature|sig|X-Goog-Signature)=)[^&#]*")
_DEFAULT_PORTS = {"http": 80, "https": 443}

_TIMES = struct.Struct("<BQBQ")
_MEMO_SIZE = 2048
_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200  # SpanFlags; the SDK's exporter sets the same
_FLAGS_ROOT = b"\x85\x01" + struct.pack("<I", _HAS_IS_REMOTE)
_FLAGS_CHILD = b"\x85\x01" + struct.pack("<I", _HAS_IS_REMOTE | _IS_REMOTE)
_STATUS_ERROR = b"\x7a\x02\x18\x02"  # status (15) { code (3): STATUS_CODE_ERROR }
_STATUS_UNSET = b"\x7a\x00"  # an unset status is an empty message, which the SDK writes too


class HttpSpan(NamedTuple):
    """One HTTP request as its server or its client saw it. What is empty or 0 is not known and not told.

    Ids are lower-case hex; ``parent_id`` b"" makes it a root. Times are monotonic seconds. ``status`` is what was
    answered; ``grpc_status`` is -1 but for a gRPC call; ``error_type`` is set where no endpoint's answer stands. The
    order is the encoder's: what is remembered together stands together.
    """

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    trace_state: bytes
    start_s: float
    end_s: float
    target: bytes
    authority: bytes
    user_agent: bytes
    scheme: str
    kind: int
    method: bytes
    version: bytes
    status: int
    grpc_status: int
    error_type: str
    flag: str
    cluster: str
    route: str
    resends: int
    retry_reason: str
    endpoint: str
    peer_address: str
    peer_port: int
    client_address: bytes


class TcpSpan(NamedTuple):
    """One TCP connection as its server or its client saw it, from its first moment to its last. See HttpSpan.

    It is a trace of its own: bytes have no place for a parent. ``received`` and ``sent`` are bytes from and to the
    client, as in the access log.
    """

    trace_id: bytes
    span_id: bytes
    start_s: float
    end_s: float
    kind: int
    server_address: str
    server_port: int
    client_address: str
    peer_address: str
    peer_port: int
    error_type: str
    flag: str
    cluster: str
    route: str
    endpoint: str
    received: int
    sent: int


Span = HttpSpan | TcpSpan
TCP_NAME = b"TCP"


class Encoder:
    """Makes ExportTraceServiceRequest messages. What it remembers is bounded."""

    def __init__(self, resource: Mapping[str, AttributeValue], scope: str, version: str) -> None:
        """``resource`` describes this process; ``scope`` and ``version`` name what instruments."""
        attributes = b"".join(_field(1, _key_value(k, v)) for k, v in resource.items())
        self._resource = _field(1, attributes)
        self._scope = _field(1, _field(1, scope.encode()) + _field(2, version.encode()))
        self._memo: dict[tuple[object, ...], bytes] = {}

    def encode(self, spans: Iterable[Span], offset_ns: int) -> bytes:
        """The request message for a batch; ``offset_ns`` makes Unix time of monotonic time."""
        return self.message(self.encode_spans(spans, offset_ns))

    def encode_spans(self, spans: Iterable[Span], offset_ns: int) -> bytes:
        """Some of a batch's spans, so that a large batch can be encoded in pieces; ``message`` makes it whole."""
        parts: list[bytes] = []
        for span in spans:
            payload = self._span(span, offset_ns) if isinstance(span, HttpSpan) else _connection(span, offset_ns)
            parts += (b"\x12", _varint(len(payload)), payload)
        return b"".join(parts)

    def message(self, spans: bytes) -> bytes:
        """The request message around the pieces of ``encode_spans``."""
        return _field(1, self._resource + _field(2, self._scope + spans))

    def _span(self, span: HttpSpan, offset_ns: int) -> bytes:
        trace_id, span_id, parent_id, trace_state, start_s, end_s, target, authority, _, scheme, kind = span[:11]
        memo = self._memo
        call_key: tuple[object, ...] = span[7:21]  # authority to retry_reason
        call = memo.get(call_key) or self._remember(call_key, _call(span))
        peer_key: tuple[object, ...] = span[21:]  # endpoint to client_address
        peer = memo.get(peer_key) or self._remember(peer_key, _peer(span))
        # Ids come as hex, so their field headers do too: one conversion for all.
        ids = (
            b"0a10%b1208%b2208%b" % (trace_id, span_id, parent_id)
            if parent_id
            else b"0a10%b1208%b" % (trace_id, span_id)
        )
        parts = [
            unhexlify(ids),
            _FLAGS_CHILD if parent_id else _FLAGS_ROOT,
            _TIMES.pack(0x39, int(start_s * 1e9) + offset_ns, 0x41, int(end_s * 1e9) + offset_ns),
            call,
            peer,
        ]
        if b"sig=" in target or b"ignature=" in target or b"AWSAccessKeyId=" in target:
            target = _CREDENTIALS.sub(rb"\1REDACTED", target)
        if kind == CLIENT:
            if target == authority:
                target = b""  # of CONNECT, whose target is the authority
            parts.append(_attribute(_URL_FULL, b"%b://%b%b" % (scheme.encode(), authority, target)))
        else:
            path, mark, query = target.partition(b"?")
            parts.append(_attribute(_URL_PATH, path))
            if mark:
                parts.append(_attribute(_URL_QUERY, query))
        if trace_state:
            parts.append(_field(3, _utf8(trace_state)))
        return b"".join(parts)

    def _remember(self, key: tuple[object, ...], encoded: bytes) -> bytes:
        if len(self._memo) >= _MEMO_SIZE:
            self._memo.clear()
        self._memo[key] = encoded
        return encoded


_SERVERS_FAULT = frozenset((2, 4, 12, 13, 14, 15))
"""Of gRPC's statuses those that are errors of a server (OpenTelemetry's conventions for gRPC)."""


def is_error(span: HttpSpan) -> bool:
    """The conventions' rules for the span's status: a server is not to blame for 4xx, a client's call failed by it."""
    if span.grpc_status > 0:
        return span.kind == CLIENT or span.grpc_status in _SERVERS_FAULT
    if span.kind == SERVER:
        return span.status >= 500 or (bool(span.error_type) and not 400 <= span.status < 500)
    return span.status >= 400 or bool(span.error_type)


def _call(span: HttpSpan) -> bytes:
    """All that many spans have in common: name, kind, status, who was asked and what came of it."""
    is_known = span.method in METHODS
    name = span.method if is_known else b"HTTP"
    failed = is_error(span)
    pairs: list[tuple[str, AttributeValue]] = [(names.METHOD, name if is_known else "_OTHER")]
    if not is_known:
        pairs.append((names.METHOD_ORIGINAL, span.method))
    if span.status:
        pairs.append((names.STATUS_CODE, span.status))
    if failed:
        code = span.grpc_status if span.grpc_status > 0 else span.status
        pairs.append((names.ERROR_TYPE, span.error_type or str(code)))
    if span.grpc_status >= 0:
        pairs += [(names.RPC_SYSTEM, "grpc"), (names.GRPC_STATUS, span.grpc_status)]
    if span.resends:
        pairs.append((names.RESEND_COUNT, span.resends))
    pairs += [
        (key, value)
        for key, value in (
            (names.PROTOCOL_VERSION, span.version),
            (names.MESH_FLAGS, span.flag),
            (names.MESH_CLUSTER, span.cluster),
            (names.MESH_ROUTE, span.route),
            (names.MESH_RETRY_REASON, span.retry_reason),
        )
        if value
    ]
    status = _STATUS_ERROR if failed else _STATUS_UNSET
    return _field(5, name) + b"\x30" + _varint(span.kind) + status + _attributes(pairs) + _caller(span)


def _connection(span: TcpSpan, offset_ns: int) -> bytes:
    """A whole span: there is one for each connection, which costs more than what could be remembered saves."""
    peer_port = span.peer_port if span.peer_address else 0
    given: list[tuple[str, AttributeValue]] = [
        (names.SERVER_ADDRESS, span.server_address),
        (names.SERVER_PORT, span.server_port),
        (names.CLIENT_ADDRESS, span.client_address),
        (names.PEER_ADDRESS, span.peer_address),
        (names.PEER_PORT, peer_port),
        (names.ERROR_TYPE, span.error_type),
        (names.MESH_FLAGS, span.flag),
        (names.MESH_CLUSTER, span.cluster),
        (names.MESH_ROUTE, span.route),
        (names.MESH_ENDPOINT, span.endpoint),
    ]
    pairs: list[tuple[str, AttributeValue]] = [
        (names.TRANSPORT, "tcp"),
        *((key, value) for key, value in given if value),
    ]
    pairs += [(names.MESH_BYTES_RECEIVED, span.received), (names.MESH_BYTES_SENT, span.sent)]
    return b"".join(
        (
            unhexlify(b"0a10%b1208%b" % (span.trace_id, span.span_id)),
            _FLAGS_ROOT,
            _TIMES.pack(0x39, int(span.start_s * 1e9) + offset_ns, 0x41, int(span.end_s * 1e9) + offset_ns),
            _field(5, TCP_NAME) + b"\x30" + _varint(span.kind),
            _STATUS_ERROR if span.error_type else _STATUS_UNSET,
            _attributes(pairs),
        )
    )


def _caller(span: HttpSpan) -> bytes:
    """Who asked whom, but for the target."""
    host, port = _host_and_port(span.authority)
    pairs: list[tuple[str, AttributeValue]] = []
    if span.kind == SERVER:
        pairs.append((names.URL_SCHEME, span.scheme))
    if host:
        pairs.append((names.SERVER_ADDRESS, host))
        port = port or (_DEFAULT_PORTS.get(span.scheme, 0) if span.kind == CLIENT else 0)
    if host and port:
        pairs.append((names.SERVER_PORT, port))
    if span.user_agent:
        pairs.append((names.USER_AGENT, span.user_agent))
    return _attributes(pairs)


def _peer(span: HttpSpan) -> bytes:
    """The other end of the connection."""
    pairs: list[tuple[str, AttributeValue]] = []
    if span.endpoint:
        pairs.append((names.MESH_ENDPOINT, span.endpoint))
    if span.peer_address:
        pairs += [(names.PEER_ADDRESS, span.peer_address), (names.PEER_PORT, span.peer_port)]
    if span.client_address:
        pairs.append((names.CLIENT_ADDRESS, span.client_address))
    return _attributes(pairs)


def _host_and_port(authority: bytes) -> tuple[bytes, int]:
    host, colon, port = authority.rpartition(b":")
    if colon and port.isdigit():
        return host.strip(b"[]"), int(port)
    return authority.strip(b"[]"), 0


# --- protobuf ---------------------------------------------------------------------------------------------------------


def _attributes(pairs: Attributes) -> bytes:
    return b"".join([_field(9, _key_value(key, value)) for key, value in pairs])


def _key_value(key: str, value: AttributeValue) -> bytes:
    if isinstance(value, bytes):
        encoded = _field(1, _utf8(value))
    elif isinstance(value, bool):
        encoded = b"\x10" + _varint(value)
    elif isinstance(value, int):
        encoded = b"\x18" + _varint(value & 0xFFFFFFFFFFFFFFFF)
    elif isinstance(value, float):
        encoded = b"\x21" + struct.pack("<d", value)
    else:
        encoded = _field(1, value.encode("utf-8", "replace"))
    return _field(1, key.encode()) + _field(2, encoded)


def _attribute(key: bytes, value: bytes) -> bytes:
    """A string attribute whose key is already a field; the hot half of ``_key_value``."""
    if not value.isascii():
        value = _utf8(value)
    size = len(value)
    if size < 0x60:  # all lengths fit one byte
        room = len(key) + size + 4
        if room < 0x80:
            return b"%b%c%b%c%c%c%c%b" % (b"\x4a", room, key, 0x12, size + 2, 0x0A, size, value)
    return _field(9, key + _field(2, _field(1, value)))


def _utf8(value: bytes) -> bytes:
    """Protobuf strings must be UTF-8; a header need not be."""
    return value if value.isascii() else value.decode("utf-8", "backslashreplace").encode()


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field; ``number`` is below 16."""
    return bytes((number << 3 | 2,)) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    if value < 0x80:  # one byte, the common case
        return _ONE_BYTE[value]
    parts = bytearray()
    while value > 0x7F:  # seven bits a byte
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


_ONE_BYTE = tuple(bytes((value,)) for value in range(0x80))
_URL_FULL = _field(1, names.URL_FULL.encode())
_URL_PATH = _field(1, names.URL_PATH.encode())
_URL_QUERY = _field(1, names.URL_QUERY.encode())
