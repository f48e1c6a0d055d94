"""A reverse proxy as one writes it with aiohttp in an afternoon: what Python costs without care. No features."""

from __future__ import annotations

import asyncio
import itertools
import sys

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from tests.bench.peers import Command, Site

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length"}


def command(site: Site) -> Command:
    """The program is this module itself."""
    ports = ",".join(map(str, site.upstreams))
    return Command([sys.executable, "-m", "tests.bench.peers.plain_aiohttp", str(site.port), ports])


async def _proxy(port: int, upstreams: list[int]) -> None:
    turns = itertools.cycle(upstreams)
    timeout = ClientTimeout(total=15)
    async with ClientSession(
        connector=TCPConnector(limit=0), timeout=timeout, auto_decompress=False, skip_auto_headers=("User-Agent",)
    ) as session:

        async def forward(request: web.BaseRequest) -> web.StreamResponse:
            url = f"http://127.0.0.1:{next(turns)}{request.raw_path}"
            headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
            body = request.content if request.can_read_body else None
            async with session.request(request.method, url, headers=headers, data=body) as answer:
                out = web.StreamResponse(status=answer.status)
                out.headers.extend(
                    (name, value) for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP
                )
                out.content_length = answer.content_length
                await out.prepare(request)
                async for chunk in answer.content.iter_any():
                    await out.write(chunk)
                await out.write_eof()
                return out

        runner = web.ServerRunner(web.Server(forward, access_log=None, keepalive_timeout=3600))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_proxy(int(sys.argv[1]), [int(part) for part in sys.argv[2].split(",")]))
