"""The events all codecs speak: heads as values; body pieces are ``bytes`` and trailers are header lists.

Heads carry only what is end to end. Framing (length or not), connection-specific fields and the few fields the
mesh itself reads or writes are taken apart by the codec, so that ``exchange.py`` knows no protocol version.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mesh.http.headers import Headers, get

# RFC 9110 §9.2.2.
IDEMPOTENT_METHODS = frozenset((b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"))

# Fields that the mesh reads or rewrites on every request: codecs put them into ``RequestHead.known``.
KNOWN_REQUEST_FIELDS = frozenset(
    (
        b"traceparent",
        b"b3",
        b"x-b3-traceid",
        b"x-b3-spanid",
        b"x-b3-parentspanid",
        b"x-b3-sampled",
        b"x-b3-flags",
        b"via",
        b"x-request-id",
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"x-forwarded-host",
        b"x-mesh-explain",
        b"x-mesh-not-sent",
        b"proxy",
    )
)

NOT_SENT = b"x-mesh-not-sent"
"""On an inbound sidecar's own answer: the program cannot have seen the request (DESIGN.md)."""


@dataclass(slots=True)
class RequestHead:
    """A request up to its body.

    ``target`` is path and query as sent. ``authority`` is host[:port] as sent. ``content_length`` is None where the
    body's length is not known beforehand; ``has_body`` False means that no body follows at all.
    ``known`` holds KNOWN_REQUEST_FIELDS, repeated ones joined by ", " (RFC 9110 §5.3); ``headers`` all others.
    """

    method: bytes
    target: bytes
    authority: bytes
    headers: Headers
    known: dict[bytes, bytes]
    content_length: int | None = None
    has_body: bool = False
    expects_continue: bool = False
    version: bytes = b"1.1"

    def header(self, name: bytes) -> bytes | None:
        """The first value of the field ``name`` (lower case), wherever it is kept."""
        value = self.known.get(name)
        return get(self.headers, name) if value is None else value

    @property
    def is_idempotent(self) -> bool:
        """Sending it twice does what sending it once does (RFC 9110 §9.2.2), or its sender says so by a key."""
        return self.method in IDEMPOTENT_METHODS or get(self.headers, b"idempotency-key") is not None


@dataclass(slots=True)
class ResponseHead:
    """A response up to its body; fields as in ``RequestHead``. ``not_sent``: it carried NOT_SENT."""

    status: int
    headers: Headers = field(default_factory=list)
    content_length: int | None = None
    has_body: bool = False
    not_sent: bool = False
    proxy_status: bytes = b""
