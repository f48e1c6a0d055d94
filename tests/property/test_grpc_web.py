"""gRPC-Web: whatever the cut, the same frames; and what is sent back is what came, with its trailers."""

import base64
import struct

from hypothesis import example, given
from hypothesis import strategies as st

from mesh.http.grpc_web import AnswerEncoder, RequestDecoder
from mesh.http.headers import Headers
from mesh.http.outcome import BadRequest
from tests.support.grpc_web import decode_parts, message, read_frames

messages = st.lists(st.tuples(st.sampled_from([0, 1]), st.binary(max_size=300)), max_size=5)
cuts = st.lists(st.integers(1, 40), min_size=1, max_size=6)
names = st.from_regex(rb"\A[a-z0-9-]{1,12}\Z")
values = st.from_regex(rb"\A([!-~]([ -~]{0,20}[!-~])?)?\Z")


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """``data`` cut into pieces of these sizes, over and over."""
    found, at, number = [], 0, 0
    while at < len(data):
        found.append(data[at : at + sizes[number % len(sizes)]])
        at += sizes[number % len(sizes)]
        number += 1
    return found


def frames_of(of_messages: list[tuple[int, bytes]]) -> bytes:
    return b"".join(message(data, flags) for flags, data in of_messages)


@given(messages, cuts, cuts)
@example([(0, b"")], [1], [1])
def test_a_text_request_is_the_same_in_any_cut_of_bytes_and_of_base64(
    of_messages: list[tuple[int, bytes]], parts: list[int], sizes: list[int]
) -> None:
    frames = frames_of(of_messages)
    text = b"".join(map(base64.b64encode, pieces(frames, parts)))
    decoder = RequestDecoder(is_text=True)
    assert b"".join(map(decoder.feed, pieces(text, sizes))) == frames
    decoder.end()


@given(messages, cuts)
def test_a_binary_request_passes_as_it_is(of_messages: list[tuple[int, bytes]], sizes: list[int]) -> None:
    decoder = RequestDecoder(is_text=False)
    assert list(map(decoder.feed, cut := pieces(frames_of(of_messages), sizes))) == cut
    decoder.end()


def outcome(data: bytes, sizes: list[int], *, is_text: bool) -> tuple[bytes, str]:
    """What is known of a body before it is refused, and why it is."""
    decoder, taken = RequestDecoder(is_text=is_text), b""
    try:
        for piece in pieces(data, sizes):
            taken += decoder.feed(piece)
        decoder.end()
    except BadRequest as error:
        return taken, error.message
    return taken, ""


bodies = st.binary(max_size=60) | st.text("AQgw=+/\n", max_size=40).map(str.encode) | messages.map(frames_of)


@given(bodies, cuts, st.booleans())
@example(b"AA==", [1], True)
@example(b"\x80\0\0\0\0", [3], False)
def test_whether_a_body_is_refused_does_not_depend_on_its_cut(
    data: bytes,
    sizes: list[int],
    is_text: bool,  # noqa: FBT001 - drawn
) -> None:
    whole, why = outcome(data, [max(1, len(data))], is_text=is_text)
    cut, why_cut = outcome(data, sizes, is_text=is_text)
    assert bool(why) == bool(why_cut)
    if not why:
        assert whole == cut


@given(messages, cuts, st.booleans(), st.lists(st.tuples(names, values), max_size=4))
def test_an_answer_is_read_as_what_was_sent(
    of_messages: list[tuple[int, bytes]],
    sizes: list[int],
    is_text: bool,  # noqa: FBT001 - drawn
    trailers: Headers,
) -> None:
    encoder = AnswerEncoder(is_text=is_text)
    body = b"".join(map(encoder.feed, pieces(frames_of(of_messages), sizes)))
    assert encoder.may_end
    body += encoder.end(trailers)
    *read, last = read_frames(decode_parts(body) if is_text else body)
    assert read == of_messages
    assert last == (0x80, b"".join(b"%b: %b\r\n" % pair for pair in trailers))


@given(messages.filter(bool), st.integers(1, 400), cuts, st.booleans())
def test_an_answer_may_end_between_frames_only(
    of_messages: list[tuple[int, bytes]],
    length: int,
    sizes: list[int],
    is_text: bool,  # noqa: FBT001 - drawn
) -> None:
    frames = frames_of(of_messages)[:length]
    encoder = AnswerEncoder(is_text=is_text)
    for piece in pieces(frames, sizes):
        encoder.feed(piece)
    ends, at = {0}, 0
    for _, data in of_messages:
        at += 5 + len(data)
        ends.add(at)
    assert encoder.may_end == (len(frames) in ends)


@given(messages, cuts)
def test_each_frame_of_text_is_base64_for_itself(of_messages: list[tuple[int, bytes]], sizes: list[int]) -> None:
    """PROTOCOL-WEB: "the server runtime will always base64-encode and flush gRPC messages atomically"."""
    encoder = AnswerEncoder(is_text=True)
    encoded = b"".join(map(encoder.feed, pieces(frames_of(of_messages), sizes)))
    expected = b"".join(base64.b64encode(struct.pack(">BI", flags, len(data)) + data) for flags, data in of_messages)
    assert encoded == expected
