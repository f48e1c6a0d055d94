"""The admin pages, on loopback: what this sidecar is, does and would do; for people and, as JSON, for programs.

``?format=json`` or ``Accept: application/json`` gives JSON; a browser gets a readable page. Whoever asks for neither
gets JSON too, but plain text from /ready and /live, as probes read it, and Prometheus' exposition from /metrics.
"""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from aiohttp import web

from mesh.http.connect import METHOD as CONNECT
from mesh.http.grpc import GrpcCall, is_grpc_type, read_web_type
from mesh.http.headers import Fields
from mesh.http.message import HTTP2, KNOWN_REQUEST_FIELDS, RequestHead
from mesh.http.outcome import ProxyError
from mesh.model.gateway_api import to_document
from mesh.telemetry.exposition import CONTENT_TYPE
from mesh.telemetry.samples import samples_of
from proxy.clusters import clusters_page
from proxy.explain import TCP_METHOD, LocalPort, add_workers, outcome_of, why, why_connection, why_tunnel
from proxy.scrape import chunks
from proxy.sidecar import bound_socket

if TYPE_CHECKING:
    from proxy.config import Address
    from proxy.sidecar import Sidecar

logger = logging.getLogger(__name__)

_Form = Literal["json", "page", "plain"]

TCP_SCHEME = "tcp"
HTTPS_PORT: Final = 443
_PLACE: Final = "\0"
"""Stands in a page where its body goes; never part of one."""

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>sidemesh {name}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}}
nav a{{margin-right:1rem}}pre{{background:#f4f4f5;padding:1rem;overflow:auto;border-radius:6px}}h1{{font-size:1.3rem}}
@media(prefers-color-scheme:dark){{body{{background:#18181b;color:#e4e4e7}}pre{{background:#27272a}}a{{color:#93c5fd}}}}</style>
<nav>{links}</nav><h1>{title}</h1><pre>{body}</pre></html>"""


class AdminServer:
    """The HTTP server of one sidecar's admin pages."""

    def __init__(self, sidecar: Sidecar) -> None:
        """Nothing listens before ``start``."""
        self._sidecar = sidecar
        self._runner: web.AppRunner | None = None
        self._pages: dict[str, Callable[[web.Request], Awaitable[Any]]] = {
            "clusters": self._clusters,
            "routes": self._routes,
            "config_dump": self._config_dump,
            "why": self._why,
            "stats": self._stats,
        }

    async def start(self) -> None:
        """Listen; the address is put into ``sidecar.addresses["admin"]``. Raises OSError where the port is taken."""
        app = web.Application()
        app.router.add_get("/", self._index)
        app.router.add_get("/live", self._live)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._metrics)
        for name in self._pages:
            app.router.add_get(f"/{name}", self._page)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        address: Address = self._sidecar.config.admin
        if not address.is_loopback:
            logger.warning(
                "!!! admin listens on %s WITHOUT TLS: whoever reaches it reads routes, endpoints and settings",
                address,
            )
        site = web.SockSite(self._runner, bound_socket(address))
        await site.start()
        self._sidecar.addresses["admin"] = type(address)(address.host, self._runner.addresses[0][1])

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    # --- pages ------------------------------------------------------------------------------------------------------

    async def _index(self, request: web.Request) -> web.StreamResponse:
        return self._render(request, str(self._sidecar.config.node), await self._overview())

    async def _page(self, request: web.Request) -> web.StreamResponse:
        name = request.path.strip("/")
        return self._render(request, name, await self._pages[name](request))

    async def _live(self, request: web.Request) -> web.StreamResponse:
        return self._state(request, "live", {"live": True}, "live")

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        sidecar = self._sidecar
        if sidecar.is_ready:
            return self._state(request, "ready", {"ready": True}, "ready")
        reason = "stopping" if sidecar.is_stopping else "no routing table yet"
        if not sidecar.is_stopping and sidecar.feed is not None and sidecar.feed.last_error:
            reason += f" (control server: {sidecar.feed.last_error})"
        return self._state(request, "ready", {"ready": False, "reason": reason}, f"not ready: {reason}", status=503)

    def _state(
        self, request: web.Request, title: str, value: dict[str, Any], plain: str, *, status: int = 200
    ) -> web.Response:
        if _form_of(request) == "plain":
            return web.Response(status=status, text=f"{plain}\n")
        response = self._render(request, title, value)
        response.set_status(status)
        return response

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        """Written as it is made: a whole scrape may be megabytes."""
        form = _form_of(request)
        kind = {"plain": CONTENT_TYPE, "json": "application/json; charset=utf-8", "page": "text/html; charset=utf-8"}
        response = web.StreamResponse(headers={"Content-Type": kind[form]})
        await response.prepare(request)
        start, between, end = "", "", ""
        if form == "page":
            start, _, end = self._page_of("metrics", _PLACE).partition(_PLACE)
        elif form == "json":
            start, between, end = "[\n", ",\n", "\n]\n"
        await response.write(start.encode())
        is_first = True
        async for chunk in chunks(self._sidecar):
            text = chunk.decode()
            if form == "page":
                text = html.escape(text)
            elif form == "json":
                text = ",\n".join(json.dumps(sample) for sample in samples_of(text))
            await response.write((text if is_first or not text else between + text).encode())
            is_first = is_first and not text
        await response.write(end.encode())
        await response.write_eof()
        return response

    async def _overview(self) -> dict[str, Any]:
        sidecar = self._sidecar
        feed, pool = sidecar.feed, sidecar.pool
        under_way = len(sidecar.plane.exchanges)
        workers: dict[str, Any] = {}
        if pool is not None:
            silent = await pool.count()
            under_way = int(pool.gauges.get("exchanges", 0))
            workers = {"workers": pool.names, "workers_without_answer": silent, "worker_restarts": pool.restarts}
        return {
            "node": sidecar.config.node,
            "service": str(sidecar.config.service),
            "version": sidecar.config.version,
            "ready": sidecar.is_ready,
            "listens": {name: str(address) for name, address in sidecar.addresses.items()},
            "table": str(sidecar.plane.table.id) if sidecar.plane.table else "none",
            "control": None
            if feed is None
            else {
                "connected": feed.is_connected,
                "acks": feed.acks,
                "nacks": feed.nacks,
                "last_error": feed.last_error,
            },
            "program": sidecar.plane.program_state,
            "registered": sidecar.registration is not None and sidecar.registration.is_registered,
            "registered_at": str(sidecar.registration.address or "") if sidecar.registration else "",
            "registration_error": sidecar.registration.error if sidecar.registration else "",
            "exchanges_under_way": under_way,
            **workers,
        }

    async def _clusters(self, _: web.Request) -> list[dict[str, Any]]:
        sidecar = self._sidecar
        reports = {r.service: r for r in sidecar.catalog.report()} if sidecar.catalog else {}
        return await clusters_page(sidecar.plane.services, reports, sidecar.pool)

    async def _routes(self, _: web.Request) -> list[dict[str, Any]]:
        table = self._sidecar.plane.table
        return [to_document(route) for route in (table.snapshot.routes if table and table.snapshot else ())]

    async def _config_dump(self, _: web.Request) -> dict[str, Any]:
        sidecar = self._sidecar
        table = sidecar.plane.table
        snapshot = table.snapshot if table else None
        settings = {field: _plain(getattr(sidecar.config, field)) for field in sidecar.config.__slots__}
        return {
            "settings": settings,
            "table": {
                "epoch": snapshot.id.epoch if snapshot else None,
                "version": snapshot.id.version if snapshot else None,
                "digest": snapshot.id.digest if snapshot else None,
                "resources": [to_document(r.value) for r in snapshot.resources] if snapshot else [],
            },
        }

    async def _stats(self, _: web.Request) -> dict[str, Any]:
        sidecar = self._sidecar
        recorder = sidecar.recorder
        silent = {} if sidecar.pool is None else {"workers_without_answer": await sidecar.pool.count()}
        return {
            "requests": [
                {"labels": series.labels, "status": status, "flag": flag, "count": cell.count,
                 "mean_ms": round(cell.duration_sum_ms / cell.count, 3)}
                for series in recorder.series.values()
                for (status, flag), cell in series.cells.items()
            ],
            "retries": dict(recorder.retries),
            "ejections": recorder.ejections,
            "retry_budget_exhausted": recorder.budget_exhausted,
            "discovery": dict(sidecar.catalog.counts) if sidecar.catalog else {},
            **silent,
        }  # fmt: skip

    async def _why(self, request: web.Request) -> dict[str, Any]:
        plane = self._sidecar.plane
        url = urlsplit(request.query.get("url", ""))
        if not url.netloc:
            usage = "/why?method=GET&url=http://reviews/path&header=name:value (header may be repeated)"
            return {"usage": f"{usage}, or for a TCP connection /why?url=tcp://db, or method=CONNECT"}
        authority = url.netloc.encode("latin-1", "replace")
        if url.scheme == TCP_SCHEME or request.query.get("method") == TCP_METHOD:
            return await self._explained(authority, lambda: why_connection(plane, authority, self._port_of(authority)))
        if request.query.get("method") == CONNECT.decode():
            has_port = authority.rpartition(b":")[2].isdigit()
            return await self._why_tunnel(authority if has_port else authority + b":%d" % HTTPS_PORT)
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        headers = [
            (name.strip().lower().encode("latin-1"), value.strip().encode("latin-1"))
            for name, _, value in (h.partition(":") for h in request.query.getall("header", []))
        ]
        head = RequestHead(
            request.query.get("method", "GET").encode("latin-1"),
            target.encode("latin-1", "replace"),
            authority,
            Fields([h for h in headers if h[0] not in KNOWN_REQUEST_FIELDS]),
            {name: value for name, value in headers if name in KNOWN_REQUEST_FIELDS},
        )
        content_type = head.header(b"content-type") or b""
        if is_grpc_type(content_type) or read_web_type(content_type) is not None:
            head.version, head.grpc = HTTP2, GrpcCall()
        return await self._explained(authority, lambda: why(plane, head))

    async def _why_tunnel(self, authority: bytes) -> dict[str, Any]:
        """What would become of a CONNECT."""
        outbound = self._sidecar.listeners.outbound
        try:
            outbound.route_connect(authority)
        except ProxyError:  # refused, whoever it is for: nobody is looked up
            return why_tunnel(outbound, authority)
        return await self._explained(authority, lambda: why_tunnel(outbound, authority))

    def _port_of(self, authority: bytes) -> LocalPort | None:
        """The local port for the service that ``authority`` names."""
        sidecar = self._sidecar
        name, _, _ = sidecar.plane.settings.names.parse(authority)
        listener = None if name is None else sidecar.listeners.upstreams.get(name)
        return None if listener is None else LocalPort(sidecar.addresses[f"upstream {name}"], listener)

    async def _explained(self, authority: bytes, explain: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``explain`` says once the service was looked up, with what the workers know."""
        plane, pool = self._sidecar.plane, self._sidecar.pool
        error = await plane.look_up_for(authority)
        answer = explain()
        if error is not None:
            answer["outcome"] = outcome_of(error)
        if pool is not None:
            states, silent = await pool.service_states()
            add_workers(answer, states, len(pool.names))
            answer["workers_without_answer"] = silent
        return answer

    # --- rendering --------------------------------------------------------------------------------------------------

    def _render(self, request: web.Request, title: str, value: Any) -> web.Response:  # noqa: ANN401 - any JSON value
        text = json.dumps(value, indent=2, default=str)
        if _form_of(request) != "page":
            return web.Response(text=text + "\n", content_type="application/json")
        return web.Response(text=self._page_of(title, html.escape(text)), content_type="text/html")

    def _page_of(self, title: str, body: str) -> str:
        """A whole page; ``body`` is markup already."""
        names = ["", "ready", "live", "metrics", *self._pages]
        links = "".join(f'<a href="/{name}">{name or "overview"}</a>' for name in names)
        return _PAGE.format(
            name=html.escape(self._sidecar.config.node), links=links, title=html.escape(title), body=body
        )


def _form_of(request: web.Request) -> _Form:
    """What the client asks for; ``plain`` where it has no wish."""
    wish = request.query.get("format")
    if wish == "json":
        return "json"
    accept = request.headers.get("Accept", "")
    if wish is None and "text/html" in accept:
        return "page"
    return "json" if wish is None and "application/json" in accept else "plain"


def _plain(value: Any) -> Any:  # noqa: ANN401 - any setting
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value if isinstance(value, (int, float, bool, type(None))) else str(value)
