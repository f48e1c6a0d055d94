"""Trace context on the wire: W3C traceparent and B3, and the sampling decision.

The decision is the parent's flag, else a ratio on the low 64 bits of the trace id, exactly as the OpenTelemetry
SDK's ``ParentBased(TraceIdRatioBased)`` decides, so that both agree on every trace. Baggage and tracestate are
ordinary headers here and pass untouched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from random import Random

# W3C Trace Context §3.2.2: version 00 has exactly four fields; a later version may append more after a dash.
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_HEX16_OR_32 = re.compile(rb"[0-9a-f]{32}|[0-9a-f]{16}")
_HEX16 = re.compile(rb"[0-9a-f]{16}")
_ZERO_TRACE = b"0" * 32
_ZERO_SPAN = b"0" * 16


class Format(Enum):
    """Header formats a sidecar reads and writes."""

    W3C = "tracecontext"
    B3 = "b3"
    B3_MULTI = "b3multi"


@dataclass(frozen=True, slots=True)
class Parent:
    """The caller's context: lower-case hex ids. ``sampled`` None: the caller left the decision to us (B3 only)."""

    trace_id: bytes
    span_id: bytes
    sampled: bool | None


def parse_traceparent(value: bytes) -> Parent | None:
    """Read a traceparent field; None for a malformed one, which is then treated as absent (§3.2.2.5)."""
    match = _TRACEPARENT.fullmatch(value)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more) or trace_id == _ZERO_TRACE or span_id == _ZERO_SPAN:
        return None
    return Parent(trace_id, span_id, bool(int(flags, 16) & 1))


def parse_b3(value: bytes) -> Parent | None:
    """Read a single b3 field: ``{trace}-{span}[-{sampled}[-{parent}]]``; a bare decision has no ids and gives None."""
    parts = value.split(b"-")
    if len(parts) < 2:
        return None
    return _b3_parent(parts[0], parts[1], parts[2] if len(parts) > 2 else None)


def parse_b3_multi(fields: Mapping[bytes, bytes]) -> Parent | None:
    """Read the X-B3-* fields out of ``fields`` (lower-case names)."""
    sampled = b"d" if fields.get(b"x-b3-flags") == b"1" else fields.get(b"x-b3-sampled")
    return _b3_parent(fields.get(b"x-b3-traceid", b""), fields.get(b"x-b3-spanid", b""), sampled)


def _b3_parent(trace_id: bytes, span_id: bytes, sampled: bytes | None) -> Parent | None:
    trace_id, span_id = trace_id.lower(), span_id.lower()
    if not _HEX16_OR_32.fullmatch(trace_id) or not _HEX16.fullmatch(span_id):
        return None
    trace_id = trace_id.rjust(32, b"0")
    if trace_id == _ZERO_TRACE or span_id == _ZERO_SPAN:
        return None
    decision = None if sampled is None else sampled in (b"1", b"d", b"true", b"True")
    return Parent(trace_id, span_id, decision)


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace an exchange belongs to. ``parent_id`` is b"" for a trace that begins here."""

    trace_id: bytes
    parent_id: bytes
    sampled: bool


class Propagation:
    """Reads the caller's context, decides on sampling and writes our context: formats by choice."""

    __slots__ = ("_bits", "_bound", "_readers", "_rng", "inject")

    def __init__(self, ratio: float, rng: Random, formats: tuple[Format, ...] = (Format.W3C,)) -> None:
        """``ratio`` (0 to 1) is for traces that begin here. The first of ``formats`` found is read; all are written."""
        self._bound = round(ratio * 2**64)
        self._rng = rng
        self._bits = rng.getrandbits
        self._readers = tuple(_READERS[f] for f in formats)
        self.inject: Callable[[Trace, bytes], list[tuple[bytes, bytes]]] = (
            _inject_w3c if formats == (Format.W3C,) else _injector(formats)
        )
        """``inject(trace, span_id)`` gives the fields to send with a request whose CLIENT span is ``span_id``."""

    def extract(self, known: Mapping[bytes, bytes]) -> Trace:
        """The trace of a request with these KNOWN_REQUEST_FIELDS; a new one where they carry none."""
        for read in self._readers:
            parent = read(known)
            if parent is not None:
                sampled = self._is_in_ratio(parent.trace_id) if parent.sampled is None else parent.sampled
                return Trace(parent.trace_id, parent.span_id, sampled)
        trace_id = b"%032x" % (self._bits(128) or 1)
        return Trace(trace_id, b"", self._is_in_ratio(trace_id))

    def new_span_id(self) -> bytes:
        """A random span id, 16 hex digits, never zero."""
        return b"%016x" % (self._bits(64) or 1)

    def _is_in_ratio(self, trace_id: bytes) -> bool:
        return int(trace_id[16:], 16) < self._bound


def _read_w3c(known: Mapping[bytes, bytes]) -> Parent | None:
    value = known.get(b"traceparent")
    return None if value is None else parse_traceparent(value)


def _read_b3(known: Mapping[bytes, bytes]) -> Parent | None:
    value = known.get(b"b3")
    return None if value is None else parse_b3(value)


def _inject_w3c(trace: Trace, span_id: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"traceparent", b"00-%b-%b-0%d" % (trace.trace_id, span_id, trace.sampled))]


def _inject_b3(trace: Trace, span_id: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"b3", b"%b-%b-%d" % (trace.trace_id, span_id, trace.sampled))]


def _inject_b3_multi(trace: Trace, span_id: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-b3-traceid", trace.trace_id),
        (b"x-b3-spanid", span_id),
        (b"x-b3-sampled", b"1" if trace.sampled else b"0"),
    ]


_READERS = {Format.W3C: _read_w3c, Format.B3: _read_b3, Format.B3_MULTI: parse_b3_multi}
_INJECTORS = {Format.W3C: _inject_w3c, Format.B3: _inject_b3, Format.B3_MULTI: _inject_b3_multi}


def _injector(formats: tuple[Format, ...]) -> Callable[[Trace, bytes], list[tuple[bytes, bytes]]]:
    writers = [_INJECTORS[f] for f in formats]

    def inject(trace: Trace, span_id: bytes) -> list[tuple[bytes, bytes]]:
        return [pair for write in writers for pair in write(trace, span_id)]

    return inject
