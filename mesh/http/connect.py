"""What CONNECT asks for (RFC 9110 §9.3.6): a tunnel to a host and port, told alike over both HTTP versions. Pure."""

from __future__ import annotations

import re

from mesh.http.headers import Fields
from mesh.http.message import RequestHead

METHOD = b"CONNECT"

TUNNEL = b"(connect)"
"""``RequestHead.upgrade`` of a CONNECT. It is no token, so that nobody can ask for it by Upgrade or :protocol."""

# RFC 9112 §3.2.3, authority-form: a host that is not empty, and a port that is not left out. No userinfo.
_TARGET = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_MAX_PORT = 65535


def is_target(target: bytes) -> bool:
    """Tell whether it is ``host:port`` (RFC 9110 §9.3.6: an empty or invalid port is to be refused)."""
    found = _TARGET.fullmatch(target)
    return found is not None and 0 < int(found[1]) <= _MAX_PORT


def make_connect(request: RequestHead) -> None:
    """Turn a head with that method and a good target into what the exchange carries.

    Nothing of it is forwarded; Host says nothing that the target does not, as with an absolute target.
    """
    request.authority = request.target
    request.upgrade = TUNNEL
    request.content_length = None
    request.has_body = request.expects_continue = False


def connect_to(authority: bytes, fields: Fields, known: dict[bytes, bytes]) -> RequestHead:
    """The same from HTTP/2, whose CONNECT has an authority and no path (RFC 9113 §8.5)."""
    request = RequestHead(METHOD, authority, authority, fields, known)
    make_connect(request)
    return request
