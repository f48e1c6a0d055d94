"""Where WebSocket's frames end in the bytes that pass (RFC 6455 §5.2), and the frame that says we go away. Pure.

A frame of ours may only stand between two others. Which byte that is can be told by nobody who has not followed the
lengths from the start, so they are always followed: two bytes are looked at for a short frame, four or ten for longer
ones, none of a payload, and up to nine bytes of a header that is cut are kept.
"""

from __future__ import annotations

import os
from typing import Final

CLOSE: Final = 0x88  # FIN and opcode 8; control frames are in one piece, and extensions use no bit of them (§5.5, §5.8)
GOING_AWAY: Final = 1001  # §7.4.1: "such as a server going down"
_REASON: Final = b"the sidecar drains; connect again"  # with the code at most 125 bytes (§5.5)
_MASK_BYTES: Final = 4
# By the second byte of a frame, its mask bit and its length: the bytes of the whole frame, or 0 where the length stands
# behind; and what surrounds the payload where two more bytes say its length.
_SHORT: Final[tuple[int, ...]] = tuple(
    (2 + (n & 127) + (_MASK_BYTES if n & 128 else 0)) if n & 127 < 126 else 0 for n in range(256)
)
_MEDIUM: Final[tuple[int, ...]] = tuple(4 + (_MASK_BYTES if n & 128 else 0) for n in range(256))


class FrameTracker:
    """One direction of a WebSocket. ``has_closed``: a Close has passed, behind which there are no frames (§5.5.1)."""

    __slots__ = ("_header", "_left", "has_closed")

    def __init__(self) -> None:
        """Nothing has passed."""
        self._header = b""
        self._left = 0
        self.has_closed = False

    @property
    def is_between(self) -> bool:
        """No frame is under way."""
        return not (self._left or self._header)

    def follow(self, data: bytes) -> None:
        """Take note of the next bytes, however they are cut."""
        position, size = self._left, len(data)
        if size < position:
            self._left = position - size
            return
        if self._header:
            data, self._header = self._header + data, b""
            size = len(data)
        try:
            while position < size:
                second = data[position + 1]
                if data[position] == CLOSE:
                    self.has_closed = True
                if second & 127 == 126:
                    position += _MEDIUM[second] + (data[position + 2] << 8 | data[position + 3])
                else:
                    position += _SHORT[second] or _long(data, position)
        except IndexError:  # a header that is cut
            self._header = data[position:]
            position = size
        self._left = position - size

    def end_in(self, data: bytes) -> int:
        """How many of the next bytes belong to the frame under way: 0 between frames, -1 where it does not end in them.

        They are not followed.
        """
        if self._header:
            whole = self._header + data
            try:
                end = _length(whole) - len(self._header)
            except IndexError:
                return -1
        else:
            end = self._left
        return end if end <= len(data) else -1


def _length(data: bytes) -> int:
    """The bytes of the frame that ``data`` begin. Raises IndexError where that cannot be told yet."""
    second = data[1]
    if second & 127 == 126:
        return _MEDIUM[second] + (data[2] << 8 | data[3])
    return _SHORT[second] or _long(data, 0)


def _long(data: bytes, position: int) -> int:
    """The same of a frame whose length has eight bytes."""
    length = data[position + 2 : position + 10]
    if len(length) < 8:
        raise IndexError
    return 10 + (_MASK_BYTES if data[position + 1] & 128 else 0) + int.from_bytes(length, "big")


def going_away(*, masks: bool) -> bytes:
    """A Close that tells its reader to go elsewhere. ``masks``: as a client has to (§5.3), with a key of its own."""
    payload = GOING_AWAY.to_bytes(2, "big") + _REASON
    if not masks:
        return bytes((CLOSE, len(payload))) + payload
    key = os.urandom(_MASK_BYTES)  # §5.3: nobody may foresee it
    masked = bytes(byte ^ key[index % _MASK_BYTES] for index, byte in enumerate(payload))
    return bytes((CLOSE, 0x80 | len(payload))) + key + masked
