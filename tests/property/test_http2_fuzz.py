"""HTTP/2 from a grammar: what goes out is what the ``h2`` package reads, and no bytes do worse than end the connection."""

from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from hypothesis import given
from hypothesis import strategies as st

from mesh.http.headers import Headers
from mesh.http.outcome import ProxyError
from proxy.http2 import hpack, octets
from proxy.http2.codec import Connection
from proxy.http2.errors import ConnectionFault, StreamFault
from proxy.http2.frames import (
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from proxy.http2.messages import response_head, trailers
from proxy.http2.stream import Stream
from tests.support.http2 import GET, POST, frame, frames, settings
from tests.support.http2_peer import Owner, Peer

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=20).map(str.encode).filter(
    lambda name: name not in {b"connection", b"host", b"te", b"upgrade", b"keep-alive", b"expect", b"content-length"}
)  # fmt: skip
values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=200).map(str.encode)
fields = st.lists(st.tuples(names, values), max_size=20)
body = st.lists(st.binary(min_size=1, max_size=40_000), max_size=6)


class Sink:
    """A client of ours without owners."""

    def on_stream(self, stream: Stream, fields: Headers, *, ended: bool) -> None:
        raise AssertionError

    def on_goaway(self, code: int, message: bytes) -> None: ...

    def on_settings(self) -> None: ...

    def on_stream_over(self) -> None: ...


@given(fields, body, st.booleans(), st.sampled_from([1, 100, 16384, 65535, 2**20]))
def test_h2_reads_what_we_send(extra: Headers, pieces: list[bytes], has_trailers: bool, window: int) -> None:  # noqa: FBT001
    ours = Connection(Sink(), is_server=False)
    config = h2.config.H2Configuration(client_side=False, header_encoding=None)
    theirs = h2.connection.H2Connection(config)
    theirs.local_settings = h2.settings.Settings(
        client=False, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
    )
    theirs.initiate_connection()
    ours.feed(theirs.data_to_send())
    stream = ours.open()
    ours.send_headers(stream, [*POST, *extra], ended=not pieces and not has_trailers)
    for piece in pieces[:-1]:
        ours.send_data(stream, piece)
    trailers: Headers = [(b"sum", b"9")] if has_trailers else []
    if pieces or trailers:
        ours.send_last(stream, pieces[-1] if pieces else b"", trailers)
    got: dict[str, Any] = {"data": b"", "headers": None, "trailers": None, "ended": False}
    for _ in range(2_000):
        out = ours.take()
        for event in theirs.receive_data(out) if out else ():
            if isinstance(event, h2.events.RequestReceived):
                got["headers"] = [tuple(map(bytes, field)) for field in event.headers]
            elif isinstance(event, h2.events.DataReceived):
                got["data"] += event.data
                theirs.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                got["trailers"] = [tuple(map(bytes, field)) for field in event.headers]
            elif isinstance(event, h2.events.StreamEnded):
                got["ended"] = True
        back = theirs.data_to_send()
        if not out and not back:
            break
        ours.feed(back)
    assert got["headers"] == [*POST, *extra]
    assert got["data"] == b"".join(pieces)
    assert got["trailers"] == (trailers or None)
    assert got["ended"]


@given(fields, body, st.integers(1, 50))
def test_we_read_what_h2_sends_however_it_is_cut(extra: Headers, pieces: list[bytes], cut: int) -> None:
    config = h2.config.H2Configuration(client_side=True, header_encoding=None)
    theirs = h2.connection.H2Connection(config)
    theirs.initiate_connection()
    peer = Peer()
    peer.connection.out[:] = Connection(Sink(), is_server=True).out  # what a server says first
    theirs.receive_data(peer.connection.take())
    theirs.send_headers(1, [*POST, *extra], end_stream=not pieces)
    for index, piece in enumerate(pieces):
        for start in range(0, len(piece), 16384):
            is_last = index == len(pieces) - 1 and start + 16384 >= len(piece)
            theirs.send_data(1, piece[start : start + 16384], end_stream=is_last)
    data = theirs.data_to_send()
    peer.feed(data, cut if len(data) < 5_000 else 1_000 + cut)
    assert peer.fault is None
    assert not peer.resets
    assert b"".join(each[2] for each in peer.heard if each[0] == "data") == b"".join(pieces)  # type: ignore[misc]
    assert peer.heard[0][:3] == ("request", 1, b"POST")
    assert peer.heard[-1] == (("end", 1) if pieces else ("request", 1, b"POST", b"/", True))


kinds = st.integers(0, 11)
noise = st.one_of(
    st.tuples(kinds, st.integers(0, 255), st.sampled_from([0, 1, 2, 3, 5, 7, 2**31 - 1]), st.binary(max_size=40)).map(
        lambda each: frame(*each)
    ),
    st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([4, 5])).map(
        lambda each: frame(1, each[1], each[0], octets.encode(GET))
    ),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2**32 - 1)), max_size=4).map(lambda pairs: settings(*pairs)),
    st.binary(max_size=60),
)


@given(st.lists(noise, max_size=40), st.integers(0, 9))
def test_no_bytes_do_worse_than_end_the_connection(pieces: list[bytes], cut: int) -> None:
    data = PREFACE + settings() + b"".join(pieces)
    whole, cut_up = Peer().feed(data), Peer().feed(data, cut)
    assert (whole.heard, whole.resets, whole.fault and whole.fault.code) == (
        cut_up.heard, cut_up.resets, cut_up.fault and cut_up.fault.code,
    )  # fmt: skip
    assert len(whole.connection.streams) <= 100


@given(st.binary(max_size=300))
def test_no_header_block_does_worse(block: bytes) -> None:
    decoder = hpack.Decoder(10_000)
    try:
        for name, value in decoder.decode(block):
            assert isinstance(name, bytes)
            assert isinstance(value, bytes)
    except (ConnectionFault, StreamFault):
        pass


@given(fields)
def test_a_block_is_read_back_as_it_was(extra: Headers) -> None:
    pairs = [*GET, *extra, (b"authorization", b"x"), (b":status", b"200")]
    assert hpack.Decoder(100_000).decode(octets.encode(pairs)) == pairs
    assert h2_reads(octets.encode(pairs)) == pairs


def h2_reads(block: bytes) -> Headers:
    import hpack as theirs

    decoder = theirs.Decoder()
    return [(bytes(field[0]), bytes(field[1])) for field in decoder.decode(block, raw=True)]


assert h2.exceptions


# --- what a peer may not do: h2's verdict of each frame, and ours ------------------------------------------------------

FINE, STREAM, CONNECTION = range(3)
"""How bad a frame is: it is taken, ends its stream, or ends the connection."""

number = st.sampled_from([1, 1, 1, 3, 5, 2, 0])
increment = st.sampled_from([0, 1, 1000, 2**31 - 1]).map(lambda n: n.to_bytes(4, "big"))
a_head = st.sampled_from(
    [
        GET,
        POST,
        [*GET, (b"X-Upper", b"1")],
        [*GET, (b"connection", b"close")],
        [*GET, (b"te", b"gzip")],
        [(b"x-sum", b"1")],
        GET[1:],
        [GET[1], GET[0], *GET[2:], (b":path", b"/")],
        [*GET[:2], (b"x-early", b"1"), *GET[2:]],
    ]
)
a_setting = st.tuples(
    st.sampled_from([1, 2, 3, 4, 5, 6, 8, 9]), st.sampled_from([0, 1, 2, 100, 16_383, 16_384, 2**24, 2**31])
)
one_frame = st.one_of(
    st.builds(lambda s, f, flags: frame(1, flags, s, octets.encode(f)), number, a_head, st.sampled_from([4, 5, 0, 1])),
    st.builds(lambda s, flags, n: frame(0, flags, s, b"abc"[:n]), number, st.sampled_from([0, 1, 8]), st.integers(0, 3)),
    st.builds(lambda s, n: frame(3, 0, s, b"\0\0\0\x08"[:n]), number, st.sampled_from([4, 4, 4, 3])),
    st.builds(lambda s, n: frame(8, 0, s, n), number, increment),
    st.builds(lambda s, n: frame(8, 0, s, b"\0\0\0\1"[:n]), number, st.integers(3, 4)),
    st.builds(lambda pairs: settings(*pairs), st.lists(a_setting, max_size=2, unique_by=lambda each: each[0])),
    st.builds(lambda s, flags, size: frame(4, flags, s, b"\0" * size), st.sampled_from([0, 1]), st.sampled_from([0, 1]), st.sampled_from([0, 5])),
    st.builds(lambda s, size: frame(6, 0, s, b"\0" * size), st.sampled_from([0, 0, 1]), st.sampled_from([8, 8, 7])),
    st.builds(lambda s: frame(2, 0, s, b"\0" * 5), number),
    st.builds(lambda s, size: frame(7, 0, s, b"\0" * size), st.sampled_from([0, 0, 1]), st.sampled_from([8, 9, 7])),
    st.builds(lambda s, flags: frame(9, flags, s, b""), number, st.sampled_from([0, 4])),
    st.builds(lambda s: frame(5, 4, s, b"\0\0\0\2"), number),
    st.builds(lambda s: frame(0xBB, 0, s, b"x"), number),
)  # fmt: skip


def verdict_of_h2(theirs: h2.connection.H2Connection, data: bytes) -> int:
    try:
        theirs.receive_data(data)
    except h2.exceptions.ProtocolError:
        return CONNECTION
    sent = frames(theirs.data_to_send())
    return STREAM if any(kind == RST_STREAM for kind, *_ in sent) else FINE


def verdict_of_ours(peer: Peer, data: bytes) -> int:
    before = len(peer.sent), len(peer.heard)
    peer.feed(data)
    if peer.fault is not None:
        return CONNECTION
    if any(kind == RST_STREAM for kind, *_ in peer.sent[before[0] :]):
        return STREAM
    return STREAM if any(each[0] == "refused" for each in peer.heard[before[1] :]) else FINE


@given(st.lists(one_frame, min_size=1, max_size=12))
def test_what_h2_does_not_take_we_do_not_take_either(pieces: list[bytes]) -> None:
    """Up to the first frame of which either complains: from then on the two may be in different states.

    Where the RFC is with us, the grammar leaves out what h2 sees otherwise: it takes a head that ends its stream though
    its content-length promises a body, it knows only the last of two equal settings, and nothing behind a GOAWAY.
    """
    theirs = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
    theirs.initiate_connection()
    theirs.receive_data(PREFACE + settings())
    theirs.data_to_send()
    peer = Peer().feed(PREFACE + settings())
    for piece in pieces:
        if piece[3] == WINDOW_UPDATE and int.from_bytes(piece[5:9], "big") not in {0, *peer.connection.streams}:
            continue  # behind the end of a stream it is nobody's, whatever is in it
        ours, expected = verdict_of_ours(peer, piece), verdict_of_h2(theirs, piece)
        assert bool(ours) == bool(expected) or is_idle(peer), (piece, ours, expected)
        assert ours in (FINE, CONNECTION) or not concerns_all(piece), (piece, ours)
        if ours or expected or piece[3] == GOAWAY:
            return


def is_idle(peer: Peer) -> bool:
    """H2 takes some RST_STREAM there."""
    return peer.fault is not None and "on idle stream" in peer.fault.message


def concerns_all(piece: bytes) -> bool:
    """A fault in it is the connection's, whatever stream it names (RFC 9113 §6).

    How bad h2 finds it says nothing: to it most faults are the connection's.
    """
    return piece[3] in {SETTINGS, PUSH_PROMISE, PING, GOAWAY} or not any(piece[5:9])


an_answer = st.sampled_from(
    [
        [(b":status", b"200")],
        [(b":status", b"200")],
        [(b":status", b"103")],
        [(b"x-sum", b"1")],
        [(b":status", b"200"), (b"X-Upper", b"1")],
        [(b":status", b"200"), (b"connection", b"close")],
        [(b":status", b"200"), (b":path", b"/")],
        [(b"x", b"1"), (b":status", b"200")],
    ]
)
one_frame_of_a_server = st.one_of(
    st.builds(lambda s, f, flags: frame(1, flags, s, octets.encode(f)), number, an_answer, st.sampled_from([4, 5, 0, 1])),
    one_frame.filter(lambda piece: piece[3] != HEADERS),
)  # fmt: skip


class Judge(Owner):
    """Takes heads and trailers as the shell of an endpoint's stream does."""

    has_head = False

    def on_data(self, piece: bytes) -> None:
        self.peer.heard.append(("data", self.id))

    def on_headers(self, fields: Headers, *, ended: bool) -> None:
        try:
            if self.has_head:
                trailers(fields)
            else:
                self.has_head = response_head(fields, ended=ended).status >= 200
        except (ProxyError, StreamFault):
            self.peer.heard.append(("refused", self.id))


@given(st.lists(one_frame_of_a_server, min_size=1, max_size=12))
def test_what_h2_does_not_take_of_a_server_we_do_not_take_either(pieces: list[bytes]) -> None:
    """Two requests are under way, one of which is still being sent.

    What comes on one that is over is nobody's to us, which RFC 9113 §5.1 allows, and a fault to h2.
    """
    theirs = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
    theirs.initiate_connection()
    theirs.send_headers(1, GET, end_stream=True)
    theirs.send_headers(3, POST)
    theirs.receive_data(settings())
    theirs.data_to_send()
    peer = Peer(is_server=False).feed(settings())
    for each in (GET, POST):
        stream = peer.connection.open()
        stream.owner = Judge(peer, stream.id)
        peer.connection.send_headers(stream, each, ended=each is GET)
    peer.sent += frames(peer.connection.take())
    for piece in pieces:
        stream_id = int.from_bytes(piece[5:9], "big")
        if stream_id in (1, 3) and stream_id not in peer.connection.streams:
            return
        ours, expected = verdict_of_ours(peer, piece), verdict_of_h2(theirs, piece)
        assert bool(ours) == bool(expected) or is_idle(peer), (piece, ours, expected, peer.fault)
        assert ours in (FINE, CONNECTION) or not concerns_all(piece), (piece, ours)
        if ours or expected or piece[3] == GOAWAY:
            return
