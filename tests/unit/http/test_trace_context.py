from random import Random

import pytest

from mesh.http.trace_context import Format, Propagation, parse_b3, parse_b3_multi, parse_traceparent

TRACE, SPAN = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"
GOOD = b"00-%b-%b-01" % (TRACE, SPAN)


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (GOOD, b"01"),
        (b"00-%b-%b-00" % (TRACE, SPAN), b"00"),
        (b"00-%b-%b-03" % (TRACE, SPAN), b"03"),  # level 2 §4.3: the random flag is kept
        (b"00-%b-%b-ff" % (TRACE, SPAN), b"03"),  # unknown flags are set to zero
        (b"cc-%b-%b-01" % (TRACE, SPAN), b"01"),  # §3.2.2.5: a later version, read as far as 00 goes
        (b"cc-%b-%b-01-what-the-future-brings" % (TRACE, SPAN), b"01"),
    ],
)
def test_a_wellformed_traceparent_is_read(value: bytes, flags: bytes) -> None:
    parent = parse_traceparent(value)
    assert parent is not None
    assert (parent.trace_id, parent.span_id, parent.flags) == (TRACE, SPAN, flags)
    assert parent.sampled == (flags in {b"01", b"03"})


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        GOOD + b"-more",  # version 00 has exactly four fields
        GOOD + b"\n",
        b" " + GOOD,
        GOOD.upper(),
        b"ff" + GOOD[2:],
        b"cc" + GOOD[2:] + b".more",
        b"0" + GOOD[2:],
        GOOD + b", " + GOOD,  # sent twice
        b"00-%b-%b-01" % (b"0" * 32, SPAN),
        b"00-%b-%b-01" % (TRACE, b"0" * 16),
        b"00-%b-%b-0x" % (TRACE, SPAN),
        b"00-%b-%b-1" % (TRACE, SPAN),
        b"00-%b-%b-01" % (TRACE[:-1] + b"_", SPAN),
    ],
)
def test_a_malformed_traceparent_begins_a_new_trace(value: bytes) -> None:
    assert parse_traceparent(value) is None
    trace = Propagation(1.0, Random(1)).extract({b"traceparent": value})
    assert trace.trace_id != TRACE
    assert trace.parent_id == b""
    assert trace.sampled


@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (TRACE + b"-" + SPAN, None),
        (TRACE + b"-" + SPAN + b"-1", True),
        (TRACE + b"-" + SPAN + b"-0", False),
        (TRACE + b"-" + SPAN + b"-d", True),
        (TRACE + b"-" + SPAN + b"-1-" + SPAN, True),
        (TRACE.upper() + b"-" + SPAN, None),
    ],
)
def test_single_b3_is_read(*, value: bytes, sampled: bool | None) -> None:
    parent = parse_b3(value)
    assert parent is not None
    assert (parent.trace_id, parent.span_id, parent.sampled) == (TRACE, SPAN, sampled)


@pytest.mark.parametrize("value", [b"0", b"1", b"d", b"", TRACE, b"x-y", b"-".join([TRACE, SPAN, b"1", SPAN, b"more"])])
def test_single_b3_without_two_good_ids_is_none(value: bytes) -> None:
    assert parse_b3(value) is None


def test_a_64_bit_b3_trace_id_is_padded() -> None:
    parent = parse_b3_multi({b"x-b3-traceid": TRACE[16:], b"x-b3-spanid": SPAN, b"x-b3-flags": b"1"})
    assert parent is not None
    assert parent.trace_id == b"0" * 16 + TRACE[16:]
    assert parent.sampled is True


def test_a_b3_caller_that_leaves_the_decision_gets_the_ratios() -> None:
    known = {b"b3": TRACE + b"-" + SPAN}
    assert Propagation(1.0, Random(1), (Format.B3,)).extract(known).sampled
    assert not Propagation(0.0, Random(1), (Format.B3,)).extract(known).sampled


def test_the_first_format_found_is_read_and_all_are_written() -> None:
    propagation = Propagation(0.0, Random(1), (Format.W3C, Format.B3, Format.B3_MULTI))
    trace = propagation.extract({b"b3": TRACE + b"-" + SPAN + b"-1", b"traceparent": b"broken"})
    assert propagation.inject(trace, b"1" * 16, {}) == [
        b"traceparent: 00-%b-1111111111111111-01" % TRACE,
        b"b3: %b-1111111111111111-1" % TRACE,
        b"x-b3-traceid: " + TRACE,
        b"x-b3-spanid: 1111111111111111",
        b"x-b3-sampled: 1",
    ]


def test_fields_of_a_format_not_spoken_pass_and_those_of_a_spoken_one_do_not() -> None:
    propagation = Propagation(0.0, Random(1), (Format.B3_MULTI,))
    known = {b"traceparent": GOOD, b"x-b3-parentspanid": SPAN, b"via": b"1.1 x"}
    fields = dict(line.split(b": ") for line in propagation.inject(propagation.extract(known), SPAN, known))
    assert fields[b"traceparent"] == GOOD
    assert b"x-b3-parentspanid" not in fields
    assert b"via" not in fields


def test_without_formats_everything_passes_and_nothing_is_added() -> None:
    propagation = Propagation(1.0, Random(1), ())
    known = {b"traceparent": GOOD}
    trace = propagation.extract(known)
    assert trace.trace_id != TRACE
    assert propagation.inject(trace, SPAN, known) == [b"traceparent: " + GOOD]


@pytest.mark.parametrize(
    ("records", "flags", "passes"), [(True, b"01", False), (True, b"00", True), (False, b"01", True)]
)
def test_the_callers_span_id_goes_on_where_no_span_of_ours_stands_below_it(
    *, records: bool, flags: bytes, passes: bool
) -> None:
    propagation = Propagation(0.0, Random(1), records=records)
    trace = propagation.extract({b"traceparent": GOOD[:-2] + flags})
    assert (propagation.outgoing_span_id(trace) == SPAN) == passes


def test_a_sampler_of_its_own_ignores_the_callers_decision() -> None:
    always_off = Propagation(0.0, Random(1), follows_parent=False)
    trace = always_off.extract({b"traceparent": GOOD})
    assert (trace.trace_id, trace.sampled) == (TRACE, False)
    assert always_off.inject(trace, SPAN, {}) == [b"traceparent: " + GOOD[:-2] + b"00"]
