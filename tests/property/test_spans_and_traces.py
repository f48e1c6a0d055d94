"""What must hold of every span, trace context and histogram, with OpenTelemetry's SDK as the oracle."""

from __future__ import annotations

import string
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from mesh.http.trace_context import Format, Propagation, parse_traceparent
from mesh.telemetry.exposition import request_families
from mesh.telemetry.metrics import DURATION_BOUNDS_MS, SIZE_BOUNDS_BYTES, RequestSeries
from mesh.telemetry.spans import CLIENT, SERVER, Encoder, HttpSpan, TcpSpan

OFFSET_NS = 1_700_000_000_000_000_000
RESOURCE = {"service.name": "shop", "answer": 42, "is_test": True, "share": 0.25}

hex_of = {n: st.integers(1, 2 ** (4 * n) - 1).map(lambda v, n=n: b"%0*x" % (n, v)) for n in (16, 32)}
words = st.text(string.ascii_letters + string.digits + "-:/", max_size=200)
octets = st.binary(max_size=200).map(lambda b: bytes(c for c in b if c > 0x20 and c != 0x7F))
paths = octets.map(lambda b: b"/" + b.replace(b"?", b""))

http_spans = st.builds(
    HttpSpan,
    trace_id=hex_of[32],
    span_id=hex_of[16],
    parent_id=st.just(b"") | hex_of[16],
    trace_state=st.just(b"") | st.just(b"a=b,c=d"),
    start_s=st.floats(0, 1e6),
    end_s=st.floats(0, 1e6),
    target=paths | st.tuples(paths, octets).map(b"?".join) | st.just(b"pay:8080"),  # of CONNECT, its authority
    authority=st.sampled_from([b"", b"pay", b"pay:8080", b"[::1]:80", b"[::1]"]),
    user_agent=octets,
    scheme=st.sampled_from(["http", "https"]),
    kind=st.sampled_from([SERVER, CLIENT]),
    method=st.sampled_from([b"GET", b"POST", b"PURGE"]),
    version=st.sampled_from([b"1.1", b"1.0", b"2", b""]),
    status=st.just(0) | st.integers(100, 599),
    grpc_status=st.sampled_from([-1, -1, 0, 2, 5, 14]),
    error_type=st.sampled_from(["", "connection_refused"]),
    flag=st.sampled_from(["", "UF"]),
    cluster=words,
    route=words,
    resends=st.integers(0, 5),
    retry_reason=st.sampled_from(["", "reset"]),
    endpoint=words,
    peer_address=st.sampled_from(["", "10.0.0.1"]),
    peer_port=st.integers(0, 65535),
    client_address=st.sampled_from([b"", b"10.1.1.1"]),
)


tcp_spans = st.builds(
    TcpSpan,
    trace_id=hex_of[32],
    span_id=hex_of[16],
    start_s=st.floats(0, 1e6),
    end_s=st.floats(0, 1e6),
    kind=st.sampled_from([SERVER, CLIENT]),
    server_address=st.sampled_from(["", "db"]),
    server_port=st.integers(0, 65535),
    client_address=st.sampled_from(["", "10.1.1.1"]),
    peer_address=st.sampled_from(["", "10.0.0.1"]),
    peer_port=st.integers(1, 65535),
    error_type=st.sampled_from(["", "connection_refused"]),
    flag=st.sampled_from(["", "UF"]),
    cluster=words,
    route=words,
    endpoint=words,
    received=st.integers(0, 2**63 - 1),
    sent=st.integers(0, 2**63 - 1),
)


def text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def hidden(target: str) -> str:
    import re

    return re.sub(r"([?&](?:AWSAccessKeyId|Signature|sig|X-Goog-Signature)=)[^&#]*", r"\1REDACTED", target)


def expected_attributes(s: HttpSpan) -> dict[str, object]:
    """The conventions once more, written for reading."""
    known = s.method in {b"GET", b"POST"}
    host, port = {
        b"": ("", 0), b"pay": ("pay", 0), b"pay:8080": ("pay", 8080), b"[::1]:80": ("::1", 80), b"[::1]": ("::1", 0)
    }[s.authority]  # fmt: skip
    if s.kind == CLIENT and host:
        port = port or {"http": 80, "https": 443}[s.scheme]
    target = text(s.target)
    path, _, query = hidden(target).partition("?")
    found: dict[str, object] = {
        "http.request.method": text(s.method) if known else "_OTHER",
        "http.request.method_original": None if known else text(s.method),
        "http.response.status_code": s.status,
        "rpc.system": "grpc" if s.grpc_status >= 0 else None,
        "http.request.resend_count": s.resends,
        "error.type": (s.error_type or str(s.grpc_status if s.grpc_status > 0 else s.status)) if failed(s) else None,
        "network.protocol.version": text(s.version),
        "network.peer.address": s.peer_address,
        "network.peer.port": s.peer_port if s.peer_address else None,
        "server.address": host,
        "server.port": port,
        "user_agent.original": text(s.user_agent),
        "client.address": text(s.client_address),
        "mesh.cluster": s.cluster,
        "mesh.endpoint": s.endpoint,
        "mesh.route": s.route,
        "mesh.response_flags": s.flag,
        "mesh.retry_reason": s.retry_reason,
    }
    found = {k: v for k, v in found.items() if v}
    if s.peer_address:
        found["network.peer.port"] = s.peer_port
    if s.grpc_status >= 0:
        found["rpc.grpc.status_code"] = s.grpc_status
    if s.kind == CLIENT:
        found["url.full"] = f"{s.scheme}://{text(s.authority)}{hidden(target) if s.target != s.authority else ''}"
    else:
        found |= {"url.path": path, "url.scheme": s.scheme}
        if b"?" in s.target:
            found["url.query"] = query
    return found


def attributes_of_a_connection(s: TcpSpan) -> dict[str, object]:
    found = {
        "network.transport": "tcp",
        "server.address": s.server_address,
        "server.port": s.server_port,
        "client.address": s.client_address,
        "network.peer.address": s.peer_address,
        "network.peer.port": s.peer_port if s.peer_address else None,
        "error.type": s.error_type,
        "mesh.response_flags": s.flag,
        "mesh.cluster": s.cluster,
        "mesh.route": s.route,
        "mesh.endpoint": s.endpoint,
    }
    return {k: v for k, v in found.items() if v} | {"mesh.bytes_received": s.received, "mesh.bytes_sent": s.sent}


def failed(s: HttpSpan) -> bool:
    if s.grpc_status > 0:
        return s.kind == CLIENT or s.grpc_status in (2, 4, 12, 13, 14, 15)
    if s.kind == CLIENT:
        return s.status >= 400 or s.error_type != ""
    return s.status >= 500 or (s.error_type != "" and not 400 <= s.status < 500)


def as_sdk_span(s: HttpSpan) -> ReadableSpan:
    def context(span_id: bytes, *, is_remote: bool) -> SpanContext:
        state = TraceState.from_header([s.trace_state.decode()] if s.trace_state else [])
        return SpanContext(int(s.trace_id, 16), int(span_id, 16), is_remote, TraceFlags(1), state)

    return ReadableSpan(
        name=text(s.method) if s.method != b"PURGE" else "HTTP",
        context=context(s.span_id, is_remote=False),
        parent=context(s.parent_id, is_remote=True) if s.parent_id else None,
        resource=Resource(RESOURCE),
        attributes=expected_attributes(s),
        kind=SpanKind.SERVER if s.kind == SERVER else SpanKind.CLIENT,
        instrumentation_scope=InstrumentationScope("sidemesh", "0.1.0"),
        status=Status(StatusCode.ERROR if failed(s) else StatusCode.UNSET),
        start_time=int(s.start_s * 1e9) + OFFSET_NS,
        end_time=int(s.end_s * 1e9) + OFFSET_NS,
    )


def as_sdk_span_of_a_connection(s: TcpSpan) -> ReadableSpan:
    return ReadableSpan(
        name="TCP",
        context=SpanContext(int(s.trace_id, 16), int(s.span_id, 16), is_remote=False, trace_flags=TraceFlags(1)),
        resource=Resource(RESOURCE),
        attributes=attributes_of_a_connection(s),
        kind=SpanKind.SERVER if s.kind == SERVER else SpanKind.CLIENT,
        instrumentation_scope=InstrumentationScope("sidemesh", "0.1.0"),
        status=Status(StatusCode.ERROR if s.error_type else StatusCode.UNSET),
        start_time=int(s.start_s * 1e9) + OFFSET_NS,
        end_time=int(s.end_s * 1e9) + OFFSET_NS,
    )


def in_order(message: object) -> object:
    """The same with attributes sorted: their order means nothing."""
    for resource_spans in message.resource_spans:
        resource_spans.resource.attributes.sort(key=lambda a: a.key)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                span.attributes.sort(key=lambda a: a.key)
    return message


@given(st.lists(http_spans | tcp_spans, min_size=1, max_size=3))
def test_our_bytes_decode_to_the_spans_the_sdks_encoder_makes(spans: list[HttpSpan | TcpSpan]) -> None:
    encoder = Encoder(RESOURCE, "sidemesh", "0.1.0")
    for _ in range(2):  # the second time from memory
        ours = ExportTraceServiceRequest.FromString(encoder.encode(spans, OFFSET_NS))
        sdk = [as_sdk_span(s) if isinstance(s, HttpSpan) else as_sdk_span_of_a_connection(s) for s in spans]
        theirs = ExportTraceServiceRequest.FromString(encode_spans(sdk).SerializeToString())
        assert in_order(ours) == in_order(theirs)


@given(
    formats=st.sampled_from([(Format.W3C,), (Format.B3,), (Format.B3_MULTI,), (Format.B3, Format.W3C), tuple(Format)]),
    trace_id=hex_of[32],
    span_id=hex_of[16],
    sampled=st.booleans(),
)
def test_extract_after_inject_gives_the_same_context(
    *, formats: tuple[Format, ...], trace_id: bytes, span_id: bytes, sampled: bool
) -> None:
    propagation = Propagation(0.5, Random(1), formats)
    given_ = {b"traceparent": b"00-%b-%b-%02x" % (trace_id, b"1" * 16, sampled)}
    trace = Propagation(0.5, Random(1)).extract(given_)
    again = propagation.extract(dict(line.split(b": ") for line in propagation.inject(trace, span_id, {})))
    assert (again.trace_id, again.parent_id, again.sampled) == (trace_id, span_id, sampled)


@given(trace_id=st.integers(1, 2**128 - 1), ratio=st.floats(0, 1), parent=st.sampled_from([None, True, False]))
@example(trace_id=2**64 - 1, ratio=1.0, parent=None)
@example(trace_id=2**63, ratio=0.5, parent=None)
def test_the_decision_is_the_sdks(*, trace_id: int, ratio: float, parent: bool | None) -> None:
    propagation = Propagation(ratio, FixedRandom(trace_id))  # type: ignore[arg-type]
    known, context = {}, None
    if parent is not None:
        known = {b"traceparent": b"00-%032x-%016x-%02x" % (trace_id, 5, parent)}
        flags = TraceFlags(int(parent))
        context = set_span_in_context(NonRecordingSpan(SpanContext(trace_id, 5, is_remote=True, trace_flags=flags)))
    theirs = ParentBased(TraceIdRatioBased(ratio)).should_sample(context, trace_id, "span")
    assert propagation.extract(known).sampled == theirs.decision.is_sampled()


class FixedRandom:
    """Gives the trace id that the test wants."""

    def __init__(self, value: int) -> None:
        self.value = value

    def getrandbits(self, bits: int) -> int:
        return self.value & (2**bits - 1)


@given(st.binary(max_size=80) | st.text("0123456789abcdef-, ", max_size=70).map(str.encode))
@example(b"00-" + b"1" * 32 + b"-" + b"1" * 16 + b"-01\n")
def test_whatever_is_read_as_a_traceparent_has_ids_of_the_right_form(value: bytes) -> None:
    parent = parse_traceparent(value)
    if parent is not None:
        assert len(parent.trace_id) == 32
        assert len(parent.span_id) == 16
        assert int(parent.trace_id, 16)
        assert int(parent.span_id, 16)


@given(
    st.lists(
        st.tuples(
            st.integers(100, 599),
            st.sampled_from(["", "UF"]),
            st.floats(0, 1e6),
            st.integers(0, 2**40),
            st.integers(0, 2**40),
        ),
        max_size=30,
    )
)
def test_every_histogram_counts_each_request_once_and_in_its_bucket(requests: list[tuple]) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    series = RequestSeries({"reporter": "source"})
    for request in requests:
        series.record(*request)
    cells = [(f'{series.text},status="{status}",flag="{flag}"', cell) for (status, flag), cell in series.cells.items()]
    families = {f.name: f for f in text_string_to_metric_families("".join(request_families(cells)))}
    for (status, flag), cell in series.cells.items():
        mine = [r for r in requests if r[:2] == (status, flag)]
        assert cell.count == len(mine)
        for name, column, bounds in (
            ("istio_request_duration_milliseconds", 2, DURATION_BOUNDS_MS),
            ("istio_request_bytes", 3, SIZE_BOUNDS_BYTES),
            ("istio_response_bytes", 4, SIZE_BOUNDS_BYTES),
        ):
            samples = [
                s for s in families[name].samples if (s.labels["status"], s.labels["flag"]) == (str(status), flag)
            ]
            told = {s.labels.get("le", s.name.rpartition("_")[2]): s.value for s in samples}
            values = [r[column] for r in mine]
            assert told.pop("count") == told.pop("+Inf") == len(values)
            assert told.pop("sum") == pytest.approx(sum(values))
            assert {float(le): v for le, v in told.items()} == {
                float(bound): sum(v <= bound for v in values) for bound in bounds
            }


nearly_plain = st.builds(
    lambda parts, at, octet, cut: (b"-".join(parts)[:at] + octet + b"-".join(parts)[at + 1 :])[:cut],
    st.tuples(
        st.sampled_from([b"00", b"01", b"ff"]),
        hex_of[32] | st.just(b"0" * 32),
        hex_of[16] | st.just(b"0" * 16),
        st.sampled_from([b"00", b"01", b"02", b"ff"]),
    ),
    st.integers(0, 60),
    st.sampled_from([b"-", b"0", b"a", b"A", b"g", b" ", b"", b"--", b"\xff"]),
    st.integers(50, 60),
)


@given(nearly_plain)
@example(b"00-" + b"0" * 32 + b"-" + b"1" * 16 + b"-01")
@example(b"00-" + b"1" * 32 + b"-" + b"0" * 16 + b"-01")
@example(b"00-" + b"1" * 20 + b"-" + b"1" * 28 + b"-01")
@example(b"00-" + b"1" * 32 + b"-" + b"1" * 15 + b"-101")
@example(b"00-" + b"1" * 32 + b"-" + b"1" * 17 + b"-1")
@example(b"0-1" + b"1" * 32 + b"-" + b"1" * 16 + b"-01")
def test_the_short_way_reads_what_the_grammar_reads(value: bytes) -> None:
    parent = parse_traceparent(value)
    trace = Propagation(0.0, Random(1)).extract({b"traceparent": value})
    assert trace.parent_id == (b"" if parent is None else parent.span_id)
    if parent is not None:
        assert (trace.trace_id, trace.flags) == (parent.trace_id, parent.flags)
