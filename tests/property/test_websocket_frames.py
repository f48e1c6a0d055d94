"""Where WebSocket frames end does not depend on how their bytes were cut, nor does where ours stands between them."""

from itertools import accumulate, pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from mesh.http.headers import Headers
from proxy.websocket_frames import CLOSE, GOING_AWAY, FrameTracker, going_away
from proxy.websocket_relay import Direction

SIZES = (0, 1, 2, 125, 126, 127, 128, 200, 65535, 65536)  # RFC 6455 §5.2: where the length takes another form


def frame(size: int, *, masked: bool = True, first: int = 0x82, form: int = 0) -> bytes:
    """``form`` 126 or 127 says a length longer than it has to be, which is no rule of this proxy to refuse."""
    mask = 0x80 if masked else 0
    form = max(form, 127 if size > 0xFFFF else 126 if size > 125 else 0)
    head = bytes((first, mask | (form or size)))
    if form:
        head += size.to_bytes(2 if form == 126 else 8, "big")
    return head + (b"\x88\x81\x88\x80" if masked else b"") + b"\x88" * size  # which looks like a Close, and is none


some_frames = st.lists(
    st.builds(
        frame,
        st.sampled_from(SIZES),
        masked=st.booleans(),
        first=st.sampled_from([0x01, 0x00, 0x80, 0x81, 0xC2, 0x89, 0x8A]),
        form=st.sampled_from([0, 0, 126, 127]),
    ),
    max_size=6,
)
cuts = st.lists(st.integers(0, 200_000), max_size=12)


def pieces(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place for place in at if place < len(data))})
    return [data[start:end] for start, end in pairwise(places)]


class Sink:
    """Takes down what it is sent."""

    def __init__(self) -> None:
        self.data = b""
        self.ended = False

    def send_data(self, piece: bytes) -> None:
        assert piece
        self.data += piece

    def send_end(self, trailers: Headers) -> None:
        self.ended = not trailers


@given(frames=some_frames, at=cuts)
@example(frames=[frame(70_000), frame(0, masked=False), frame(126)], at=[1, 2, 9, 10, 70_014, 70_015, 70_017])
def test_any_cut_gives_the_same_boundaries(frames: list[bytes], at: list[int]) -> None:
    data = b"".join(frames)
    boundaries = list(accumulate(map(len, frames), initial=0))
    tracker, passed = FrameTracker(), 0
    for piece in pieces(data, at):
        next_ = min(b for b in boundaries if b >= passed)
        assert tracker.end_in(data[passed:]) == next_ - passed
        assert tracker.end_in(piece) == (next_ - passed if next_ <= passed + len(piece) else -1)
        tracker.follow(piece)
        passed += len(piece)
        assert tracker.is_between == (passed in boundaries)
        assert len(tracker._header) < 10
    assert tracker.is_between
    assert not tracker.has_closed


@given(data=st.binary(max_size=300), at=cuts)
def test_whatever_passes_is_followed_in_one_way(data: bytes, at: list[int]) -> None:
    """Also what is no WebSocket at all: nothing is raised, and little is kept."""
    whole, cut = FrameTracker(), FrameTracker()
    whole.follow(data)
    for piece in pieces(data, [place % 301 for place in at]):
        cut.follow(piece)
    assert (whole._left, whole._header, whole.has_closed) == (cut._left, cut._header, cut.has_closed)
    assert len(whole._header) < 10


@given(frames=some_frames, at=cuts, told_at=st.integers(0, 12), masks=st.booleans())
def test_a_close_comes_behind_the_frame_under_way_and_nothing_behind_it(
    *, frames: list[bytes], at: list[int], told_at: int, masks: bool
) -> None:
    sink, told = Sink(), []
    direction = Direction(sink, lambda: told.append(True), masks=masks)
    data, passed = b"".join(frames), 0
    parts = pieces(data, at)
    for number, piece in enumerate(parts):
        if number == min(told_at, len(parts) - 1):
            direction.tell()
            wanted = min(b for b in accumulate(map(len, frames), initial=0) if b >= passed)
        passed += len(piece)
        direction.send_data(piece)
    if not parts:
        direction.tell()
        wanted = 0
    direction.tell()
    assert sink.data[:wanted] == data[:wanted]
    assert code_of(sink.data[wanted:], masks=masks) == GOING_AWAY
    assert told == [True]
    direction.send_end([])
    assert (sink.ended, told) == (True, [True])


@given(before=some_frames, at=cuts, told_at=st.integers(0, 12))
def test_who_has_closed_by_itself_is_left_to_it(before: list[bytes], at: list[int], told_at: int) -> None:
    """The Close of the other side has come, in part at least, before ours could be sent."""
    sink, told = Sink(), []
    direction = Direction(sink, lambda: told.append(True), masks=True)
    data = b"".join(before)
    for piece in pieces(data, at):
        direction.send_data(piece)
    close = frame(2, first=CLOSE)
    cut = 1 + told_at % (len(close) - 1)
    direction.send_data(close[:cut])
    direction.tell()
    for piece in (close[cut : cut + 1], close[cut + 1 :]):
        if piece:
            direction.send_data(piece)
    assert sink.data == data + close
    assert told == [True]


def test_a_direction_that_has_ended_gets_no_close() -> None:
    sink, told = Sink(), []
    direction = Direction(sink, lambda: told.append(True), masks=True)
    direction.send_data(frame(5))
    direction.send_end([])
    direction.tell()
    assert (sink.data, told) == (frame(5), [True])


def code_of(data: bytes, *, masks: bool) -> int:
    """The status of a Close that is all of ``data``."""
    assert data[0] == CLOSE
    assert data[1] >> 7 == masks
    size, key, payload = data[1] & 127, data[2:6] if masks else bytes(4), data[6 if masks else 2 :]
    assert size == len(payload) <= 125
    plain = bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))
    assert plain[2:].isascii()
    return int.from_bytes(plain[:2], "big")


def test_each_mask_is_a_new_one() -> None:
    assert len({going_away(masks=True)[2:6] for _ in range(100)}) > 90
