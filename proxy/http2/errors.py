"""How an HTTP/2 connection or stream ends other than well (RFC 9113 §5.4, §7). Pure."""

from __future__ import annotations

from enum import IntEnum


class ErrorCode(IntEnum):
    """RFC 9113 §7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


def code_name(code: int) -> str:
    """For messages: the name, or the number of one that is not known."""
    return ErrorCode(code).name if code in set(ErrorCode) else f"error {code:#x}"


class ConnectionFault(Exception):
    """The peer broke a rule that ends the connection: GOAWAY with ``code``, then close (RFC 9113 §5.4.1)."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        """``message`` names the rule; it travels as the GOAWAY's debug data."""
        super().__init__(message)
        self.code = code
        self.message = message


class StreamFault(Exception):
    """The peer broke a rule that ends one stream: RST_STREAM with ``code`` (RFC 9113 §5.4.2)."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        """``message`` names the rule, for the log."""
        super().__init__(message)
        self.code = code
        self.message = message
