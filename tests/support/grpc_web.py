"""A gRPC-Web client made by hand from PROTOCOL-WEB.md, over HTTP/1.1 and HTTP/2, as text and as binary."""

from __future__ import annotations

import asyncio
import base64
import re
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.settings

from tests.support.grpc_echo import GRPC
from tests.support.mesh import Mesh

UNARY, MANY, COLLECT = "/test.Echo/Unary", "/test.Echo/Many", "/test.Echo/Collect"
BINARY, TEXT = "application/grpc-web", "application/grpc-web-text"
WAIT_S = 10


def message(data: bytes, flags: int = 0) -> bytes:
    """A frame."""
    return struct.pack(">BI", flags, len(data)) + data


def read_frames(data: bytes) -> list[tuple[int, bytes]]:
    """(flags, content) of the whole frames that ``data`` is."""
    found, at = [], 0
    while at < len(data):
        flags, size = struct.unpack_from(">BI", data, at)
        found.append((flags, data[at + 5 : at + 5 + size]))
        at += 5 + size
    assert at == len(data), "a frame is not whole"
    return found


def decode_parts(text: bytes) -> bytes:
    """Base64 in parts that may each be padded."""
    return b"".join(base64.b64decode(part, validate=True) for part in re.findall(rb"[^=]+=*", text))


@dataclass
class Answer:
    """An answer as a page sees it."""

    status: int
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    http_trailers: list[tuple[str, str]] = field(default_factory=list)
    is_broken: bool = False
    """It broke off."""

    @property
    def is_text(self) -> bool:
        return self.headers["content-type"].startswith(TEXT)

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        body = bytes(self.body)
        return read_frames(decode_parts(body) if self.is_text else body)

    @property
    def messages(self) -> list[bytes]:
        return [content for flags, content in self.frames if not flags & 0x80]

    @property
    def trailers(self) -> dict[str, str]:
        """Those of the last frame, or of a head that is trailers at once; no answer may have both."""
        frames = self.frames
        if not frames:
            return {k: v for k, v in self.headers.items() if k.startswith("grpc-")}
        assert [flags for flags, _ in frames] == [*[flags & 1 for flags, _ in frames[:-1]], 0x80]
        assert "grpc-status" not in self.headers
        assert frames[-1][1].endswith(b"\r\n")
        lines = frames[-1][1].decode("latin-1").split("\r\n")[:-1]
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def code(self) -> int:
        return int(self.trailers["grpc-status"])


class Http1Call:
    """A call over HTTP/1.1; its body goes in chunks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def start(self, path: str, fields: Sequence[tuple[str, str]], authority: str, method: str = "POST") -> None:
        lines = [f"{method} {path} HTTP/1.1", f"host: {authority}", *(f"{k}: {v}" for k, v in fields)]
        self.writer.write("\r\n".join([*lines, "transfer-encoding: chunked\r\n\r\n"]).encode("latin-1"))

    async def send(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.writer.drain()

    def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")

    async def head(self) -> Answer:
        while True:
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ")[1])
            if status >= 200:
                break
        pairs = (line.partition(":") for line in lines[1:] if line)
        return Answer(status, {k.lower(): v.strip() for k, _, v in pairs})

    async def read(self, answer: Answer) -> bool:
        """Add what comes next to the answer's body; False at its end."""
        length = answer.headers.get("content-length")
        if length is not None:
            answer.body += await self.reader.readexactly(int(length))
            return False
        assert answer.headers["transfer-encoding"] == "chunked"
        try:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            answer.body += (await self.reader.readexactly(size + 2))[:-2]
        except (asyncio.IncompleteReadError, ConnectionError):
            answer.is_broken = True
            return False
        return bool(size)


class Http2Call:
    """The same over HTTP/2, with somebody else's codec."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._waiting: list[h2.events.Event] = []

    def start(self, path: str, fields: Sequence[tuple[str, str]], authority: str, method: str = "POST") -> None:
        pseudo = [(":method", method), (":scheme", "http"), (":path", path), (":authority", authority)]
        self._h2.send_headers(1, [*pseudo, *fields])
        self._flush()

    async def send(self, data: bytes) -> None:
        while data:
            size = min(self._h2.local_flow_control_window(1), self._h2.max_outbound_frame_size, len(data))
            if size:
                self._h2.send_data(1, data[:size])
                self._flush()
                data = data[size:]
                await self.writer.drain()
            else:
                self._waiting += await self._events()

    def end(self) -> None:
        self._h2.end_stream(1)
        self._flush()

    async def head(self) -> Answer:
        while True:
            event = await self._next()
            if isinstance(event, h2.events.ResponseReceived):
                fields = {str(name): str(value) for name, value in event.headers}
                return Answer(int(fields.pop(":status")), fields)
            assert not isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated), event

    async def read(self, answer: Answer) -> bool:
        """See Http1Call."""
        while True:
            event = await self._next()
            if isinstance(event, h2.events.DataReceived):
                answer.body += event.data
                self._h2.acknowledge_received_data(event.flow_controlled_length, 1)
                self._flush()
                if event.data:
                    return True
            elif isinstance(event, h2.events.TrailersReceived):
                answer.http_trailers = [(str(k), str(v)) for k, v in event.headers]
            elif isinstance(event, h2.events.StreamEnded):
                return False
            elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                answer.is_broken = True
                return False

    async def _next(self) -> h2.events.Event:
        while not self._waiting:
            self._waiting = await self._events()
        return self._waiting.pop(0)

    async def _events(self) -> list[h2.events.Event]:
        data = await self.reader.read(1 << 16)
        if not data:
            return [h2.events.ConnectionTerminated()]
        events = self._h2.receive_data(data)
        self._flush()
        return events

    def _flush(self) -> None:
        self.writer.write(self._h2.data_to_send())


Call = Http1Call | Http2Call
KINDS: dict[str, type[Call]] = {"http1": Http1Call, "http2": Http2Call}


@asynccontextmanager
async def connected(m: Mesh, protocol: str, port: int | None = None) -> AsyncIterator[Call]:
    """A connection into the outbound listener, or another one."""
    async with asyncio.timeout(2 * WAIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port or m.port)
        try:
            yield KINDS[protocol](reader, writer)
        finally:
            writer.transport.abort()


def as_sent(content_type: str, *messages: bytes) -> bytes:
    """A body; of text, each message is a part of its own."""
    if content_type.startswith(TEXT):
        return b"".join(base64.b64encode(message(each)) for each in messages)
    return b"".join(map(message, messages))


async def call(
    m: Mesh,
    protocol: str,
    content_type: str,
    path: str,
    *messages: bytes,
    body: bytes | None = None,
    fields: Sequence[tuple[str, str]] = (),
    authority: str = GRPC,
    port: int | None = None,
) -> Answer:
    """A whole call with its whole answer. ``body`` in place of messages is sent as it is."""
    async with connected(m, protocol, port) as client:
        client.start(path, [("content-type", content_type), ("x-grpc-web", "1"), *fields], authority)
        sent = as_sent(content_type, *messages) if body is None else body
        if sent:
            await client.send(sent)
        client.end()
        answer = await client.head()
        while await client.read(answer):
            pass
        return answer
