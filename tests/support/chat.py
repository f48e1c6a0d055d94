"""A WebSocket server and its clients, with aiohttp at both ends, and a mesh between them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from mesh.model.service import Endpoint
from proxy.http1.limits import ConnectionLimits
from tests.support.mesh import Mesh, mesh, name


class Chat:
    """A server that echoes each message, and closes as it is told; it keeps what it was asked with."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.open = 0
        self.closed: list[int | None] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if request.headers.get("x-user") == "mallory":
            return web.Response(status=403, text="not you")
        socket = web.WebSocketResponse(protocols=("chat",), max_msg_size=0)
        await socket.prepare(request)
        self.open += 1
        try:
            async for message in socket:
                if message.data == "close":
                    await socket.close(code=4000, message=b"as told")
                elif message.data == "drop":
                    assert request.transport is not None
                    request.transport.abort()
                elif message.type is aiohttp.WSMsgType.BINARY:
                    await socket.send_bytes(message.data)
                else:
                    await socket.send_str(f"{message.data}!")
        finally:
            self.open -= 1
            self.closed.append(socket.close_code)
        return socket


@asynccontextmanager
async def chat_server() -> AsyncIterator[tuple[Chat, int]]:
    chat, app = Chat(), web.Application()
    app.router.add_get("/chat", chat.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    try:
        yield chat, site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def chat_mesh(limits: ConnectionLimits | None = None) -> AsyncIterator[tuple[Mesh, Chat, aiohttp.ClientSession]]:
    builder = mesh() if limits is None else mesh().limits(limits)
    async with builder.start() as m, chat_server() as (chat, port), aiohttp.ClientSession() as session:
        m.plane.apply_endpoints(name("chat"), (Endpoint("c", "127.0.0.1", port),))
        yield m, chat, session


def connect(session: aiohttp.ClientSession, m: Mesh, **more: str) -> "aiohttp.client._WSRequestContextManager":
    headers = {"host": "chat", **{key.replace("_", "-"): value for key, value in more.items()}}
    return session.ws_connect(
        f"http://127.0.0.1:{m.port}/chat?a=b", headers=headers, protocols=["chat"], max_msg_size=0
    )


def text(data: bytes) -> bytes:
    """A masked text frame (RFC 6455 §5.2), with a mask of zeros."""
    return bytes((0x81, 0x80 | len(data))) + bytes(4) + data
