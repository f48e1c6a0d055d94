"""Whatever a client sends and however it is cut: what was told stays told, and HTTP is never taken for bytes."""

from hypothesis import example, given
from hypothesis import strategies as st

from mesh.http.message import METHODS
from proxy.first_bytes import PREFACE_LINE, Spoken, spoken

methods = st.sampled_from(sorted(METHODS))
targets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=80).map(str.encode)
rest = st.binary(max_size=60)
requests = st.builds(lambda m, t, more: b"%b %b HTTP/1.1\r\n%b" % (m, t, more), methods, targets, rest)
prefaces = rest.map(lambda more: PREFACE_LINE + more)
nearly = st.builds(lambda m, t, more: b"%b %b%b" % (m, t, more), methods, targets, rest)


def told_at_each_cut(data: bytes) -> list[Spoken | None]:
    return [spoken(data[:end]) for end in range(len(data) + 1)]


@given(requests | prefaces)
def test_http_is_told_and_at_no_cut_taken_for_something_else(data: bytes) -> None:
    told = told_at_each_cut(data)
    assert told[-1] is Spoken.HTTP
    assert Spoken.BYTES not in told


@given(requests | prefaces | nearly | st.binary(max_size=100))
@example(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
@example(b"PROPFIND /\r\n")
@example(b"")
def test_what_was_told_no_further_byte_changes(data: bytes) -> None:
    told = told_at_each_cut(data)
    first = next((at for at, each in enumerate(told) if each is not None), len(told))
    assert len(set(told[first:])) <= 1
