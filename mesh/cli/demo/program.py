"""An HTTP service of the demo: an ordinary program that knows nothing of the mesh but ``http_proxy``.

``frontend`` calls ``reviews`` over HTTP, which calls ``ratings`` over gRPC. A program hands on the headers that tie a
trace together, as every service that wants traces has to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from urllib.parse import urlsplit

import aiohttp
import grpc
import grpc.aio
import uvloop
from aiohttp import web

from mesh.cli.demo.ratings import METHOD, SERVICE

CALLS = {"frontend": "reviews", "reviews": "ratings"}
GRPC = frozenset(("ratings",))
HANDED_ON = ("traceparent", "tracestate", "baggage", "x-request-id", "idempotency-key")
CALL_TIMEOUT_S = 10.0


class Program:
    """A service called ``name`` at ``version``, which asks ``CALLS[name]`` before it answers."""

    def __init__(self, name: str, version: str) -> None:
        """The client session is made when the loop runs."""
        self._name = name
        self._version = version
        self._next = CALLS.get(name)
        self._session: aiohttp.ClientSession | None = None
        self._channel: grpc.aio.Channel | None = None

    async def serve(self, port: int) -> None:
        """Answer on 127.0.0.1:``port`` until SIGTERM."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        app = web.Application()
        app.router.add_get("/healthz", self._health)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None)
        async with aiohttp.ClientSession(trust_env=True, timeout=timeout) as self._session:
            await runner.setup()
            if self._next in GRPC:
                # grpcio has a way of its own through HTTP proxies (CONNECT): here the sidecar is simply the server,
                # and the service's name stands where the call's authority belongs.
                sidecar = urlsplit(os.environ["http_proxy"]).netloc
                options = (("grpc.default_authority", self._next), ("grpc.enable_http_proxy", 0))
                self._channel = grpc.aio.insecure_channel(sidecar, options)
            await web.TCPSite(runner, "127.0.0.1", port).start()
            await stop.wait()
            await runner.cleanup()
            if self._channel is not None:
                await self._channel.close()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="well\n")

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        path = [{"service": self._name, "version": self._version}]
        if self._next is not None and self._session is not None:
            handed_on = {name: request.headers[name] for name in HANDED_ON if name in request.headers}
            if self._channel is not None:
                return await self._rated(path, handed_on)
            url = f"http://{self._next}{request.path}"
            try:
                async with self._session.request(request.method, url, data=body or None, headers=handed_on) as answer:
                    if answer.status != 200:
                        return web.Response(status=answer.status, body=await answer.read(), headers=_told(answer))
                    path += (await answer.json())["path"]
            except (aiohttp.ClientError, TimeoutError) as error:
                return web.Response(status=502, text=f"{self._name} could not call {self._next}: {error!r}\n")
        return web.json_response({"path": path})

    async def _rated(self, path: list[dict[str, str]], handed_on: dict[str, str]) -> web.Response:
        """What ratings says, over gRPC."""
        assert self._channel is not None  # noqa: S101 - the caller has looked
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(f"/{SERVICE}/{METHOD}")
        try:
            answer = await call(b"{}", metadata=tuple(handed_on.items()), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return web.Response(status=502, text=f"{self._next} answered {error.code().name}: {error.details()}\n")
        return web.json_response({"path": path + json.loads(answer)["path"]})


def _told(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: answer.headers[name] for name in ("proxy-status",) if name in answer.headers}


def main() -> None:
    """Entry point: ``python -m mesh.cli.demo.program NAME VERSION PORT``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("version")
    parser.add_argument("port", type=int)
    given = parser.parse_args()
    uvloop.run(Program(given.name, given.version).serve(given.port))


if __name__ == "__main__":
    main()
