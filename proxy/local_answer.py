"""An answer that the sidecar gives for itself and that is no failure: its health, say."""

from __future__ import annotations

from mesh.http.headers import Fields
from mesh.http.message import ResponseHead


class LocalAnswer(Exception):
    """Raised on the request path by whoever knows the answer already."""

    def __init__(self, status: int, text: str) -> None:
        """``text`` is the whole body, sent as text/plain."""
        super().__init__(text)
        self.head, self.pieces = text_answer(status, text)


def text_answer(status: int, text: str) -> tuple[ResponseHead, list[bytes]]:
    """A complete text/plain answer."""
    body = text.encode()
    fields = Fields(lines=[b"content-type: text/plain; charset=utf-8"])
    return ResponseHead(status, fields, content_length=len(body), has_body=bool(body)), [body]
