"""An HTTP/2 endpoint made of frames written by hand, so that it can do what no real server does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mesh.http.headers import Headers
from proxy.http2 import octets
from proxy.http2.frames import ACK, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS
from tests.support.hang_up import until_hung_up
from tests.support.http2 import frame, settings

OK: Headers = [(b":status", b"200")]
Handler = Callable[["Talk", int, bool], Awaitable[None]]
"""Called with each head: the connection, its stream, and whether that was all."""


@dataclass
class Talk:
    """One connection, as the endpoint sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    received: list[tuple[int, int, int, bytes]] = field(default_factory=list)

    def send(self, *sent: bytes) -> None:
        self.writer.write(b"".join(sent))

    def answer(self, stream: int, body: bytes = b"ok", fields: Headers = OK, trailers: Headers | None = None) -> None:
        """A head, a body and, if given, trailers."""
        self.send(head(stream, fields), frame(0, 0 if trailers else END_STREAM, stream, body))
        if trailers:
            self.send(head(stream, trailers, ended=True))


def head(stream: int, fields: Headers, *, ended: bool = False) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if ended else 0), stream, octets.encode(fields))


class Endpoint:
    """Where it listens, and what came."""

    def __init__(self, handler: Handler, offered: tuple[tuple[int, int], ...]) -> None:
        self._handler, self._offered = handler, offered
        self.port = 0
        self.talks: list[Talk] = []
        self.tasks: list[asyncio.Task[None] | None] = []
        self.heads = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = Talk(reader, writer)
        self.talks.append(talk)
        self.tasks.append(asyncio.current_task())
        async with until_hung_up(writer):
            assert await reader.readexactly(len(PREFACE)) == PREFACE
            talk.send(settings(*self._offered))
            while True:
                start = await reader.readexactly(9)
                kind, flags, stream = start[3], start[4], int.from_bytes(start[5:9], "big")
                payload = await reader.readexactly(int.from_bytes(start[:3], "big"))
                talk.received.append((kind, flags, stream, payload))
                if kind == SETTINGS and not flags & ACK:
                    talk.send(frame(SETTINGS, ACK, 0))
                if kind == HEADERS:
                    self.heads += 1
                    await self._handler(talk, stream, bool(flags & END_STREAM))


@asynccontextmanager
async def http2_endpoint(handler: Handler, *offered: tuple[int, int]) -> AsyncIterator[Endpoint]:
    """``offered``: its settings."""
    endpoint = Endpoint(handler, offered)
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0)
    endpoint.port = server.sockets[0].getsockname()[1]
    try:
        yield endpoint
    finally:
        server.close()
        tasks = [task for task in endpoint.tasks if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
