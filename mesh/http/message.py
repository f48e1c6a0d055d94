"""The events all codecs speak: heads as values; body pieces are ``bytes`` and trailers are header lists.

Heads carry only what is end to end. Framing (length or not), connection-specific fields and the few fields the
mesh itself reads or writes are taken apart by the codec, so that ``exchange.py`` knows no protocol version.
"""

from __future__ import annotations

from typing import Final

from mesh.http.grpc import GrpcCall
from mesh.http.headers import Fields, Headers

METHODS: Final = frozenset(b"GET HEAD POST PUT DELETE OPTIONS TRACE PATCH CONNECT".split()) | frozenset(
    # WebDAV and its kin (IANA method registry): carried like any other, retried like none.
    b"PROPFIND PROPPATCH MKCOL COPY MOVE LOCK UNLOCK SEARCH REPORT MKCALENDAR ACL BIND REBIND UNBIND".split()
    + b"LINK UNLINK PURGE QUERY".split()
)
"""The methods of HTTP/1.1 that are carried. A word that is none of them may be another protocol's."""

# RFC 9110 §9.2.2.
IDEMPOTENT_METHODS: Final = frozenset((b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"))

# Fields that the mesh reads or rewrites on every request: codecs put them into ``RequestHead.known``.
KNOWN_REQUEST_FIELDS: Final = frozenset(
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

HTTP2: Final = b"2"
"""``RequestHead.version`` of a request that came over HTTP/2, as spans and logs call it."""

TCP: Final = b"tcp"
"""``RequestHead.version`` of what is no request but a connection: it carries bytes, and nothing is known of them."""

SWITCHED: Final = 101
"""``ResponseHead.status`` of an answer that a tunnel follows, in whatever protocol (HTTP/2 says 200)."""

WEBSOCKET: Final = b"websocket"

NOT_SENT: Final = b"x-mesh-not-sent"
"""On an inbound sidecar's own answer: the program cannot have seen the request (DESIGN.md)."""


class RequestHead:
    """A request up to its body.

    ``target`` is path and query as sent, ``authority`` host[:port] as sent. ``known`` holds KNOWN_REQUEST_FIELDS,
    repeated ones joined by ", " (RFC 9110 §5.3); ``fields`` all others. ``content_length`` is None where the body's
    length is not known beforehand; ``has_body`` False means that no body follows at all. ``wants_trailers``: its sender
    takes trailers (``te: trailers``), which gRPC asks for; ``announces_trailers``: it came over HTTP/2, and says that
    some will follow a body, which may have a length there. ``grpc`` is None unless it is a gRPC
    call: then its sender reads the outcome from gRPC's status. ``upgrade`` names the protocol that shall follow on the
    connection, or stream (RFC 9110 §7.8, RFC 8441): ``websocket``.
    """

    __slots__ = (
        "announces_trailers",
        "authority",
        "content_length",
        "expects_continue",
        "fields",
        "grpc",
        "has_body",
        "known",
        "method",
        "target",
        "upgrade",
        "version",
        "wants_trailers",
    )

    def __init__(
        self, method: bytes, target: bytes, authority: bytes, fields: Fields, known: dict[bytes, bytes] | None = None
    ) -> None:
        """A request without a body; whoever knows of one sets the attributes."""
        self.method = method
        self.target = target
        self.authority = authority
        self.fields = fields
        self.known = {} if known is None else known
        self.content_length: int | None = None
        self.has_body = False
        self.expects_continue = False
        self.wants_trailers = False
        self.announces_trailers = False
        self.grpc: GrpcCall | None = None
        self.upgrade: bytes | None = None
        self.version = b"1.1"

    @property
    def headers(self) -> Headers:
        """``fields`` as pairs."""
        return self.fields.pairs

    def header(self, name: bytes) -> bytes | None:
        """The first value of the field ``name`` (lower case), wherever it is kept."""
        value = self.known.get(name)
        return self.fields.get(name) if value is None else value

    @property
    def is_idempotent(self) -> bool:
        """Sending it twice does what sending it once does (RFC 9110 §9.2.2), or its sender says so by a key."""
        return self.method in IDEMPOTENT_METHODS or self.fields.get(b"idempotency-key") is not None


class ResponseHead:
    """A response up to its body; attributes as in ``RequestHead``. ``not_sent``: it carried NOT_SENT."""

    __slots__ = ("announces_trailers", "content_length", "fields", "has_body", "not_sent", "status")

    def __init__(
        self,
        status: int,
        fields: Fields | None = None,
        content_length: int | None = None,
        *,
        has_body: bool = False,
        not_sent: bool = False,
    ) -> None:
        """``has_body`` False: none follows, whatever ``content_length`` says (HEAD, 304)."""
        self.status = status
        self.fields = Fields() if fields is None else fields
        self.content_length = content_length
        self.has_body = has_body
        self.not_sent = not_sent
        self.announces_trailers = False

    @property
    def headers(self) -> Headers:
        """``fields`` as pairs."""
        return self.fields.pairs

    def __repr__(self) -> str:
        """For people."""
        return f"<ResponseHead {self.status} {self.fields!r}>"
