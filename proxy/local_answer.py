"""An answer that the sidecar gives for itself and that is no failure: its health, say."""

from __future__ import annotations

from urllib.parse import quote

from mesh.http.headers import Fields, Headers
from mesh.http.message import ResponseHead
from mesh.http.outcome import ProxyError

# gRPC over HTTP/2: Percent-Encoded leaves the printable ASCII but for the percent sign.
_GRPC_SAFE = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) != "%")


class LocalAnswer(Exception):
    """Raised on the request path by whoever knows the answer already."""

    def __init__(self, status: int, text: str) -> None:
        """``text`` is the whole body, sent as text/plain."""
        super().__init__(text)
        self.head, self.pieces = text_answer(status, text)


def grpc_answer(error: ProxyError) -> tuple[ResponseHead, list[bytes]]:
    """The same for a gRPC caller: the outcome stands in ``grpc-status``, and there is nothing else (trailers only)."""
    return ResponseHead(200, Fields([(b"content-type", b"application/grpc"), *grpc_status_fields(error)])), []


def grpc_status_fields(error: ProxyError) -> Headers:
    """An error as gRPC's status, which stands in the trailers."""
    message = quote(f"sidemesh: {error.flag}: {error.message}", safe=_GRPC_SAFE).encode()
    return [(b"grpc-status", b"%d" % error.grpc_status), (b"grpc-message", message)]


def text_answer(status: int, text: str) -> tuple[ResponseHead, list[bytes]]:
    """A complete text/plain answer."""
    body = text.encode()
    fields = Fields(lines=[b"content-type: text/plain; charset=utf-8"])
    return ResponseHead(status, fields, content_length=len(body), has_body=bool(body)), [body]
