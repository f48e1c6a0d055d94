"""Floods of HTTP/2 frames end with ENHANCE_YOUR_CALM, each with its CVE; what only looks like one does not."""

import pytest

from proxy.http2 import octets
from proxy.http2.budget import RESET_BUDGET
from proxy.http2.codec import CONCURRENT
from proxy.http2.errors import ErrorCode
from proxy.http2.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from tests.support.http2 import BOMB, BOMB_FIELD, FLOODS, GET, POST, START, credit, frame, frames, head, settings
from tests.support.http2_peer import Owner, Peer


@pytest.mark.parametrize(("piece", "start"), [pytest.param(*row[2:], id=f"{row[0]} {row[1]}") for row in FLOODS])
def test_a_flood_ends_with_enhance_your_calm(piece, start: bytes) -> None:
    peer = Peer().feed(start)
    for number in range(20_000):
        peer.feed(piece(number))
        if peer.fault:
            break
    assert peer.fault is not None
    assert peer.fault.code == ErrorCode.ENHANCE_YOUR_CALM
    assert len(peer.connection.streams) <= CONCURRENT


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_a_header_block_without_end_is_cut_off(size: int) -> None:
    """CVE-2024-27316: many CONTINUATION frames, empty or not."""
    peer = Peer().feed(START + frame(HEADERS, 0, 1, b""))
    for _ in range(1000):
        peer.feed(frame(CONTINUATION, 0, 1, b"\x00" * size))
        if peer.fault:
            break
    assert peer.fault is not None
    assert peer.fault.code == ErrorCode.ENHANCE_YOUR_CALM


def test_a_header_bomb_is_not_unpacked() -> None:
    """CVE-2016-6581: a large field put into the table once and referred to many times."""
    peer = Peer().feed(START + frame(HEADERS, END_HEADERS | END_STREAM, 1, BOMB + BOMB_FIELD * 5000))
    assert peer.fault is not None
    assert peer.fault.code == ErrorCode.ENHANCE_YOUR_CALM


def test_a_bomb_below_the_limit_is_refused_as_a_head_and_the_table_stays_in_step() -> None:
    peer = Peer().feed(START + frame(HEADERS, END_HEADERS | END_STREAM, 1, BOMB))
    for number in range(3, 103, 2):
        peer.feed(frame(HEADERS, END_HEADERS | END_STREAM, number, octets.encode(GET) + BOMB_FIELD * 40))
    peer.feed(head(103))
    assert peer.fault is None
    assert {each[0] for each in peer.heard[1:-1]} == {"refused"}
    assert peer.heard[-1][:2] == ("request", 103)


def starved() -> Peer:
    """A hundred streams, of whose answers the peer has let out nothing: what credit in crumbs is for (CVE-2019-9517)."""
    peer = Peer().feed(PREFACE + settings((4, 0)) + b"".join(head(2 * n + 1) for n in range(CONCURRENT)))
    peer.connection.send_window = 0
    for stream in tuple(peer.connection.streams.values()):
        peer.connection.send_headers(stream, [(b":status", b"200")], ended=False)
        peer.connection.send_data(stream, b"x" * 50_000)
    peer.sent.clear()
    peer.connection.take()
    return peer


def test_credit_for_the_connection_lets_out_once_what_a_read_brought() -> None:
    peer = starved()
    peer.connection.send_window = 0
    peer.feed(b"".join(credit(2 * n + 1, 1000) for n in range(CONCURRENT)) + credit(0, 1) * 300)
    sent = [len(payload) for kind, _, _, payload in peer.sent if kind == DATA]
    assert sent == [300]


def test_credit_for_streams_lets_out_each_once_for_what_a_read_brought() -> None:
    peer = starved()
    peer.connection.send_window = 1 << 20
    peer.feed((credit(1, 1) + credit(5, 2)) * 10)
    assert [(stream, len(payload)) for kind, _, stream, payload in peer.sent if kind == DATA] == [(1, 10), (5, 20)]
    assert not any(stream.is_paused for stream in peer.connection.streams.values())


def test_settings_that_raise_the_window_by_crumbs_let_out_once_behind_their_acknowledgements() -> None:
    peer = starved()
    peer.connection.send_window = 1 << 20
    peer.feed(b"".join(settings((4, n)) for n in range(1, 201)))
    assert [kind for kind, *_ in peer.sent] == [SETTINGS] * 200 + [DATA] * CONCURRENT
    assert {len(payload) for kind, _, _, payload in peer.sent if kind == DATA} == {200}


def test_a_turn_reads_so_many_frames_and_the_next_goes_on() -> None:
    peer = Peer().feed(START)
    data = b"".join(head(2 * n + 1, POST, END_HEADERS) + frame(DATA, PADDED, 2 * n + 1, b"\0x") * 20 for n in range(50))
    assert peer.connection.feed(data + data[:5]) is True
    assert len(peer.connection.streams) < 50
    assert peer.connection.feed(b"") is True
    assert peer.connection.feed(b"") is False
    assert len(peer.connection.streams) == 50
    assert sum(len(each[2]) for each in peer.heard if each[0] == "data") == 1000  # type: ignore[arg-type]


def test_credit_for_the_connection_in_crumbs_ends_with_enhance_your_calm() -> None:
    peer = starved()
    peer.feed(b"".join(credit(2 * n + 1, 1 << 20) for n in range(CONCURRENT)))
    for _ in range(100):
        peer.feed(credit(0, 1) * 500)
        if peer.fault:
            break
    assert peer.fault is not None
    assert peer.fault.code == ErrorCode.ENHANCE_YOUR_CALM


def test_a_peer_that_takes_byte_by_byte_is_served() -> None:
    """Nghttp -w1 -W1: silly, but it takes what it asks for."""
    peer = starved()
    peer.connection.send_window = 0
    for _ in range(5000):
        peer.feed(credit(0, 1) + credit(1, 1))
    assert peer.fault is None
    assert sum(len(payload) for kind, _, stream, payload in peer.sent if kind == DATA and stream == 1) == 5000


def test_what_is_on_its_way_of_streams_that_we_reset_is_no_flood() -> None:
    """Uploads that are refused early: the windows of them may be under way."""
    peer = Peer().feed(START)
    for number in range(1, 10_001, 2):
        peer.feed(head(number, POST, END_HEADERS))
        stream = peer.connection.streams[number]
        peer.connection.reset(stream, ErrorCode.NO_ERROR)
        peer.feed(frame(DATA, 0, number, b"x" * 16384) * 15 + frame(DATA, END_STREAM, number, b"x"))
    assert peer.fault is None


@pytest.mark.parametrize("size", [5, 64, 100, 1000])
def test_small_messages_on_their_way_of_many_streams_that_we_reset_are_no_flood(size: int) -> None:
    """A client that gives up its streaming calls costs those of others nothing, though its messages come in turns."""
    peer = Peer(is_server=False).feed(settings())
    streams = [peer.connection.open() for _ in range(CONCURRENT)]
    for stream in streams:
        stream.owner = Owner(peer, stream.id)
        peer.connection.send_headers(stream, GET, ended=True)
    for stream in streams[1:]:
        peer.feed(head(stream.id, [(b":status", b"200")], END_HEADERS))
        peer.connection.reset(stream, ErrorCode.CANCEL)
    for _ in range(50):
        for stream in streams[1:]:
            peer.feed(frame(DATA, 0, stream.id, b"x" * size))
    peer.feed(head(1, [(b":status", b"200")], END_HEADERS) + frame(DATA, END_STREAM, 1, b"whole"))
    assert peer.fault is None
    assert peer.heard[-2:] == [("data", 1, b"whole"), ("end", 1)]


@pytest.mark.parametrize("step", [256, 512, 1024, 4096])
def test_a_body_may_be_credited_in_small_steps(step: int) -> None:
    """On the stream and on the connection, all that a read brought at once."""
    size = 4 << 20
    peer = Peer().feed(START + head(1))
    stream = peer.connection.streams[1]
    peer.connection.send_headers(stream, [(b":status", b"200")], ended=False)
    peer.connection.send_last(stream, b"x" * size, [])
    taken = owed = 0
    while True:
        owed += sum(len(payload) for kind, _, _, payload in frames(peer.connection.take()) if kind == DATA)
        if owed < step:
            break
        taken += owed // step * step
        is_more = peer.connection.feed((credit(1, step) + credit(0, step)) * (owed // step))
        while is_more:
            is_more = peer.connection.feed(b"")
        owed %= step
    assert taken + owed == size


def test_a_large_window_may_be_credited_in_small_steps_after_all_was_sent() -> None:
    size = 8 << 20
    peer = Peer().feed(PREFACE + settings((4, size)) + credit(0, size) + head(1))
    stream = peer.connection.streams[1]
    peer.connection.send_headers(stream, [(b":status", b"200")], ended=False)
    peer.connection.send_data(stream, b"x" * size)
    for _ in range(size // 4096):
        peer.feed(credit(1, 4096) + credit(0, 4096))
    assert peer.fault is None


def test_a_full_transport_holds_bodies_back_whatever_credit_comes_and_nothing_else() -> None:
    peer = Peer().feed(PREFACE + settings((4, 1000)) + head(1) + head(3))
    first, second = (peer.connection.streams[number] for number in (1, 3))
    for stream in (first, second):
        peer.connection.send_headers(stream, [(b":status", b"200")], ended=False)
    peer.connection.send_data(first, b"a" * 1001)
    peer.connection.take()
    peer.sent.clear()
    peer.connection.hold()
    peer.feed(credit(1, 1) + credit(0, 1) + frame(PING, 0, 0, b"12345678"))
    peer.connection.send_data(second, b"b")
    peer.connection.send_last(second, b"b", [])
    peer.feed(b"")
    assert [kind for kind, *_ in peer.sent] == [PING]
    peer.connection.let_go()
    sent = [(stream, flags, payload) for kind, flags, stream, payload in frames(peer.connection.take()) if kind == DATA]
    assert sent == [(1, 0, b"a"), (3, 0, b"b"), (3, END_STREAM, b"b")]
    assert list(peer.connection.streams) == [1]


def test_to_give_up_answers_that_are_whole_is_no_rapid_reset() -> None:
    """Of a slow client, which leaves one page for the next."""
    peer = Peer().feed(START)
    for number in range(1, 4 * RESET_BUDGET, 2):
        peer.feed(head(number))
        stream = peer.connection.streams[number]
        peer.connection.send_headers(stream, [(b":status", b"200")], ended=False)
        peer.connection.send_last(stream, b"x" * 100_000, [])
        peer.feed(frame(RST_STREAM, 0, number, b"\0\0\0\x08"))
    assert peer.fault is None


def test_ordinary_traffic_earns_its_pings_and_window_updates() -> None:
    peer = Peer().feed(START)
    for number in range(1, 20_001, 2):
        peer.feed(head(number, POST, END_HEADERS) + frame(DATA, END_STREAM, number, b"x"))
        peer.feed(frame(PING, 0, 0, b"12345678") + frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"))
        stream = peer.connection.streams[number]
        peer.connection.send_headers(stream, [(b":status", b"200")], ended=True)
    assert peer.fault is None
    assert not peer.connection.streams


def test_more_streams_than_allowed_are_refused_and_the_rest_goes_on() -> None:
    peer = Peer().feed(START + b"".join(head(2 * n + 1, POST, END_HEADERS) for n in range(CONCURRENT + 5)))
    assert peer.resets == {2 * n + 1: ErrorCode.REFUSED_STREAM for n in range(CONCURRENT, CONCURRENT + 5)}
    peer.feed(frame(DATA, END_STREAM, 2 * CONCURRENT + 1, b"on its way"))  # before it heard of the reset
    assert peer.fault is None
