"""The two fields in which WebSocket's handshake differs between HTTP versions (RFC 6455 §4, RFC 8441 §5). Pure."""

from __future__ import annotations

import base64
import hashlib
import os

KEY = b"sec-websocket-key"
ACCEPT = b"sec-websocket-accept"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3


def new_key() -> bytes:
    """A key for a server that speaks HTTP/1.1, where the client's request came without one."""
    return base64.b64encode(os.urandom(16))


def accept_for(key: bytes) -> bytes:
    """What a server answers to that key (RFC 6455 §4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
