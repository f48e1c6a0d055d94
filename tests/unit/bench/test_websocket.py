import pytest

from tests.bench.websocket import (
    CLIENT_FRAME_BYTES,
    COUNT,
    FROM_SERVER,
    MESSAGE,
    WebSocketError,
    answer_to,
    check_from_client,
    client_frames,
    known_frames,
    upgrade_request,
)


def test_frames_differ_and_are_the_same_each_time():
    frames = client_frames(3)
    assert len(set(frames)) == COUNT
    assert frames == client_frames(3)
    assert frames != client_frames(4)


def test_the_echo_knows_the_frames_of_its_clients():
    assert len(known_frames(8)) == 8 * COUNT
    assert set(client_frames(7)) < known_frames(8)


def test_a_frame_is_masked_as_rfc_6455_says():
    """Section 5.2 and 5.3, taken apart byte by byte."""
    frame = client_frames(0)[0]
    assert frame[0] == 0x82  # final, binary
    assert frame[1] == 0x80 | 126  # masked, a length of 16 bits
    assert int.from_bytes(frame[2:4], "big") == len(MESSAGE) == 1024
    key = frame[4:8]
    assert bytes(byte ^ key[index % 4] for index, byte in enumerate(frame[8:])) == MESSAGE
    assert len(frame) == CLIENT_FRAME_BYTES


def test_the_echo_is_the_message_without_a_mask():
    assert FROM_SERVER == b"\x82\x7e\x04\x00" + MESSAGE


def test_the_echo_takes_the_message_and_no_other():
    for frame in client_frames(0):
        check_from_client(frame)
    for at in (0, 1, 5, 500, CLIENT_FRAME_BYTES - 1):
        wrong = bytearray(client_frames(0)[0])
        wrong[at] ^= 1
        with pytest.raises(WebSocketError):
            check_from_client(bytes(wrong))


def test_a_handshake_is_answered_as_in_rfc_6455():
    """The example of section 1.3."""
    head = b"GET /chat HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    answer = answer_to(head)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer
    assert answer_to(upgrade_request(7)).startswith(b"HTTP/1.1 101 ")


def test_whoever_only_asks_whether_it_is_there_is_told_so():
    assert answer_to(b"GET /r0/items/1 HTTP/1.1\r\nHost: shop\r\n\r\n").startswith(b"HTTP/1.1 200 ")
