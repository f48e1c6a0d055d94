"""The demo's gRPC service: an ordinary grpcio server that knows nothing of the mesh."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from typing import Any, Final

import grpc
import grpc.aio
import uvloop

SERVICE: Final = "sidemesh.demo.Ratings"
METHOD: Final = "Rate"

_Context = grpc.aio.ServicerContext[Any, Any]


class Ratings:
    """Rates a product. Messages are JSON here, so that the demo needs no generated code."""

    def __init__(self, version: str) -> None:
        """``version`` is told in each answer."""
        self._answer = json.dumps({"path": [{"service": "ratings", "version": version}]}).encode()

    async def rate(self, request: bytes, context: _Context) -> bytes:
        """The one method."""
        del request, context
        return self._answer

    async def serve(self, port: int) -> None:
        """Answer on 127.0.0.1:``port`` until SIGTERM."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(self.rate)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: method}),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await stop.wait()
        await server.stop(1.0)


def main() -> None:
    """Entry point: ``python -m mesh.cli.demo.ratings VERSION PORT``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("version")
    parser.add_argument("port", type=int)
    given = parser.parse_args()
    uvloop.run(Ratings(given.version).serve(given.port))


if __name__ == "__main__":
    main()
