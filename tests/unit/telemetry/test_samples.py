"""The exposition read back must say what was written, whatever the labels hold."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.telemetry.exposition import family
from mesh.telemetry.names import COUNTER, Metric
from mesh.telemetry.samples import samples_of

THINGS = Metric("things_total", COUNTER, "Things.", ("kind", "where"))


@given(
    st.lists(
        st.tuples(
            st.tuples(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])), st.text('"\\\n{}=, ab')),
            st.integers(0, 2**60) | st.floats(allow_nan=False, allow_infinity=False),
        ),
        max_size=20,
    )
)
def test_samples_come_back_as_they_were_written(samples):
    back = list(samples_of(family(THINGS, samples)))
    assert [(s["name"], s["labels"], s["value"]) for s in back] == [
        ("things_total", {"kind": kind, "where": where}, value) for (kind, where), value in samples
    ]


def test_a_line_without_labels_and_numbers_json_does_not_know():
    assert list(samples_of("# TYPE x gauge\nx 1.5\ny +Inf\nz NaN\n")) == [
        {"name": "x", "labels": {}, "value": 1.5},
        {"name": "y", "labels": {}, "value": "+Inf"},
        {"name": "z", "labels": {}, "value": "NaN"},
    ]
