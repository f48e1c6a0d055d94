"""The HTTP side: /metrics for Prometheus, /healthz for whoever asks whether this server works."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from control.hub import Hub
from control.metrics import render
from control.registry import Registry


def application(hub: Hub, registry: Registry, clock: Callable[[], float]) -> web.Application:
    """The pages; ``clock`` gives monotonic seconds."""

    async def metrics(request: web.Request) -> web.Response:
        del request
        return web.Response(
            body=render(hub, registry, clock()).encode(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def healthz(request: web.Request) -> web.Response:
        del request
        snapshot = hub.current.snapshot.id
        return web.json_response(
            {"status": "ok", "epoch": snapshot.epoch, "version": snapshot.version, "sidecars": hub.connected}
        )

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", healthz)
    return app
