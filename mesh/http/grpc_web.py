"""gRPC-Web, in which browsers call gRPC services: its heads and bytes to gRPC's, and answers back. Pure.

A page can neither see trailers nor choose HTTP/2. So the trailers of an answer are the last frame of its body, with the
flag 0x80, and the body may be base64 (``…-text``) for readers of text. All else is gRPC's: the same frames (a flag, the
message's length in four octets, the message), statuses, deadlines and metadata.

Messages pass as they come, whatever their length; at most the 5 octets of a frame's prefix are kept. What is looked at
is where frames end: a status that follows half a message could not be told from the message's rest.

Source: grpc/doc/PROTOCOL-WEB.md.
"""

from __future__ import annotations

import binascii
import struct
from typing import Final

from mesh.http.grpc import WEB_TYPE, is_grpc_type, read_web_type
from mesh.http.headers import Headers, list_members
from mesh.http.message import HTTP2, RequestHead, ResponseHead
from mesh.http.outcome import BadRequest

TRAILERS_FLAG: Final = 0x80
_COMPRESSED: Final = 0x01
_PREFIX_BYTES: Final = 5
# What a gRPC call does not say: which form of gRPC-Web is wanted, and HTTP's own codings, which would hide the frames.
_ABOUT_THE_BODY: Final[tuple[bytes, ...]] = (b"content-type", b"accept", b"accept-encoding")


# --- heads ----------------------------------------------------------------------------------------------------------


def to_grpc(request: RequestHead) -> tuple[bool, bool]:
    """Make the head of a gRPC-Web call (``request.grpc.web``) that of the gRPC call it stands for.

    Gives whether its body is text, and whether the answer's shall be: as ``accept`` says, else as the request's is.
    The version becomes HTTP/2's, whatever brought the call here: whom it goes to next is to speak that.
    """
    call = request.grpc
    form = None if call is None else read_web_type(call.web)
    if form is None:
        message = "no gRPC-Web call"
        raise ValueError(message)
    is_text, suffix = form
    fields = request.fields
    accepted = [value for name, value in fields.pairs if name == b"accept"]
    forms = [form[0] for form in map(read_web_type, list_members(accepted)) if form is not None]
    fields.remove(_ABOUT_THE_BODY)
    fields.append(b"content-type", b"application/grpc" + suffix)
    request.content_length = None  # text is longer than what it says, and gRPC needs no length
    request.wants_trailers = True
    request.upgrade = None
    request.version = HTTP2
    return is_text, forms[0] if forms else is_text


def is_grpc_answer(head: ResponseHead) -> bool:
    """Tell whether gRPC's frames, or its status, follow: else it is somebody's ordinary answer, an error page say."""
    return head.status == 200 and is_grpc_type(head.fields.get(b"content-type") or b"")


def to_web(head: ResponseHead, *, is_text: bool) -> None:
    """Make the head of a gRPC answer that of a gRPC-Web one; how long its body is, is not said."""
    grpc_type = head.fields.get(b"content-type") or b""
    head.fields.remove((b"content-type", b"trailer"))
    head.fields.append(b"content-type", WEB_TYPE + (b"-text" if is_text else b"") + grpc_type[16:])
    head.content_length = None


# --- bodies ---------------------------------------------------------------------------------------------------------


class FrameCursor:
    """Where in a stream of frames its reader stands. ``flags`` are those of all frames so far, one beside another."""

    __slots__ = ("_left", "_prefix", "flags")

    def __init__(self) -> None:
        """Before the first frame."""
        self._prefix = b""
        self._left = 0
        self.flags = 0

    @property
    def is_between_frames(self) -> bool:
        """No frame has begun that has not ended."""
        return not self._left and not self._prefix

    def advance(self, data: bytes) -> list[int]:
        """Go on by ``data``; gives the positions in it at which frames end."""
        ends: list[int] = []
        at, size = 0, len(data)
        while at < size:
            if self._left:
                step = min(self._left, size - at)
                at += step
                self._left -= step
            else:
                piece = data[at : at + _PREFIX_BYTES - len(self._prefix)]
                at += len(piece)
                self._prefix += piece
                if len(self._prefix) < _PREFIX_BYTES:
                    break
                flags, self._left = struct.unpack(">BI", self._prefix)
                self.flags |= flags
                self._prefix = b""
            if not self._left:
                ends.append(at)
        return ends


class RequestDecoder:
    """Takes a request's body in any cut and gives the gRPC frames in it. Both methods raise BadRequest."""

    __slots__ = ("_cursor", "_is_text", "_quantum")

    def __init__(self, *, is_text: bool) -> None:
        """``is_text``: it is base64, of one or more parts that may each be padded."""
        self._cursor = FrameCursor()
        self._is_text = is_text
        self._quantum = b""

    def feed(self, piece: bytes) -> bytes:
        """What is known of the frames with this piece; empty where it takes more to know."""
        frames = self._decode(piece) if self._is_text else piece
        cursor = self._cursor
        cursor.advance(frames)
        if cursor.flags & ~_COMPRESSED:
            what = "trailers, which only answers have" if cursor.flags & TRAILERS_FLAG else "unknown flags"
            message = f"a gRPC-Web request's frame has {what} (flags 0x{cursor.flags:02x})"
            raise BadRequest(message)
        return frames

    def end(self) -> None:
        """There is no more of it."""
        if self._quantum:
            message = "a gRPC-Web request ends within a quantum of base64; padding is not left out"
            raise BadRequest(message)
        if not self._cursor.is_between_frames:
            message = "a gRPC-Web request ends within a frame"
            raise BadRequest(message)

    def _decode(self, piece: bytes) -> bytes:
        text = self._quantum + piece
        whole = len(text) & ~3
        self._quantum = text[whole:]
        decoded: list[bytes] = []
        start = 0
        try:
            while start < whole:
                pad = text.find(b"=", start, whole)
                end = whole if pad < 0 else (pad | 3) + 1  # a part ends with the quantum that is padded
                decoded.append(binascii.a2b_base64(text[start:end], strict_mode=True))
                start = end
        except binascii.Error as error:
            message = f"a gRPC-Web request's text is no base64: {error}"
            raise BadRequest(message) from error
        return b"".join(decoded)


class AnswerEncoder:
    """Gives an answer's gRPC frames as the body of a gRPC-Web answer, in any cut."""

    __slots__ = ("_cursor", "_is_text", "_rest")

    def __init__(self, *, is_text: bool) -> None:
        """``is_text``: as base64, each frame a part of its own, so that a reader needs nothing of the next."""
        self._cursor = FrameCursor()
        self._is_text = is_text
        self._rest = b""

    @property
    def may_end(self) -> bool:
        """Every frame so far is whole."""
        return self._cursor.is_between_frames

    def feed(self, piece: bytes) -> bytes:
        """Go on; what it gives may be empty."""
        ends = self._cursor.advance(piece)
        if not self._is_text:
            return piece
        encoded: list[bytes] = []
        start = 0
        for end in ends:
            encoded.append(_base64(self._rest + piece[start:end]))
            self._rest, start = b"", end
        rest = self._rest + piece[start:]
        whole = len(rest) // 3 * 3
        encoded.append(_base64(rest[:whole]))
        self._rest = rest[whole:]
        return b"".join(encoded)

    def end(self, trailers: Headers) -> bytes:
        """The last frame: the trailers. Only where ``may_end``."""
        block = b"".join([b"%b: %b\r\n" % pair for pair in trailers])
        frame = struct.pack(">BI", TRAILERS_FLAG, len(block)) + block
        return _base64(frame) if self._is_text else frame


def _base64(data: bytes) -> bytes:
    return binascii.b2a_base64(data, newline=False)
