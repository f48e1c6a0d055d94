"""WebSocket frames (RFC 6455) for the bench's own client and echo: one size, made beforehand. Pure.

A message is 1 KiB, which is what chat and market data have at most. The client's are masked, each with a key of its
own, so that no two frames in a row are alike; the echo takes the mask off and compares.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha1
from random import Random

from tests.bench.traffic import SERVICE

MESSAGE_BYTES = 1024
COUNT = 16  # frames with different masks, of each connection
KEY_BYTES = 4
MESSAGE = b"0123456789abcdef" * (MESSAGE_BYTES // 16)
_LENGTH = MESSAGE_BYTES.to_bytes(2, "big")
FROM_SERVER = b"\x82\x7e" + _LENGTH + MESSAGE  # §5.2: final, binary, a length of 16 bits
_CLIENT_START = b"\x82\xfe" + _LENGTH  # the same, masked
CLIENT_FRAME_BYTES = len(_CLIENT_START) + KEY_BYTES + MESSAGE_BYTES
_PLAIN = int.from_bytes(MESSAGE, "big")
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # §1.3


class WebSocketError(Exception):
    """The other side said something that it should not have said here."""


def client_frames(connection: int, count: int = COUNT) -> list[bytes]:
    """A connection's messages, always the same."""
    rng = Random(f"frames-{connection}")
    return [_masked(rng.randbytes(KEY_BYTES)) for _ in range(count)]


def known_frames(connections: int) -> frozenset[bytes]:
    """All frames of so many connections: to look one up costs a fifth of taking its mask off."""
    return frozenset(frame for number in range(connections) for frame in client_frames(number))


def _masked(key: bytes) -> bytes:
    return _CLIENT_START + key + _xor(key, _PLAIN)


def _xor(key: bytes, data: int) -> bytes:
    """§5.3, for the whole message at once."""
    return (data ^ int.from_bytes(key * (MESSAGE_BYTES // KEY_BYTES), "big")).to_bytes(MESSAGE_BYTES, "big")


def check_from_client(frame: bytes) -> None:
    """See that a frame is the message, masked. Raises WebSocketError."""
    start = len(_CLIENT_START)
    key, payload = frame[start : start + KEY_BYTES], frame[start + KEY_BYTES :]
    if not frame.startswith(_CLIENT_START) or _xor(key, int.from_bytes(payload, "big")) != MESSAGE:
        raise WebSocketError(f"a message is not what the client sends: {frame[:40]!r}")


def upgrade_request(connection: int) -> bytes:
    """The opening handshake (§4.1)."""
    key = b64encode(Random(f"key-{connection}").randbytes(16)).decode()
    fields = f"Host: {SERVICE}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}"
    return f"GET /r{connection % 10}/chat HTTP/1.1\r\n{fields}\r\n\r\n".encode()


def answer_to(head: bytes) -> bytes:
    """The echo's answer to a request's head: 101 to a handshake, 200 to whoever only asks whether it is there."""
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    if fields.get(b"upgrade", b"").strip() != b"websocket":
        return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    key = next(line[18:].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:"))
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: " + b64encode(sha1(key + _GUID, usedforsecurity=False).digest()) + b"\r\n\r\n"
    )
