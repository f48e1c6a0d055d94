"""``mesh why``: which route, rule, backend and endpoints a request or a connection takes, and why the others lost."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import click

from mesh.cli.output import print_value
from mesh.cli.verbatim import VerbatimCommand

TIMEOUT_S = 5.0


@click.command(cls=VerbatimCommand)
@click.argument("method")
@click.argument("url")
@click.option("-H", "--header", multiple=True, metavar="NAME:VALUE", help="A header of the request; repeatable.")
@click.option(
    "--admin",
    envvar="MESH_ADMIN",
    default="127.0.0.1:15000",
    show_default=True,
    show_envvar=True,
    metavar="HOST:PORT",
    help="Admin address of the calling service's sidecar.",
)
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True)
def command(method: str, url: str, header: tuple[str, ...], admin: str, output: str) -> None:
    """Explain which route and endpoint a request, a TCP connection or a tunnel would take.

    Asks the sidecar of the calling service; nothing is sent to the service itself.

    mesh why GET http://reviews/products/1 -H 'x-user: ada'

    mesh why TCP tcp://db

    mesh why CONNECT https://api.example:443
    """
    asked = urlsplit(url)
    if not asked.netloc:
        raise click.UsageError(f"{url!r} is no absolute URL; write http://SERVICE/PATH, or tcp://SERVICE")
    if (method.upper() == "TCP") is not (asked.scheme == "tcp"):
        raise click.UsageError(
            f"{method} {url} is neither a request nor a connection; write: mesh why TCP tcp://SERVICE"
        )
    if method.upper() == "CONNECT" and (asked.path.strip("/") or asked.query or header):
        raise click.UsageError("a tunnel has a host and a port, and nothing else by which to choose: https://HOST:PORT")
    if asked.scheme == "tcp" and (asked.path.strip("/") or asked.query or header):
        raise click.UsageError("a TCP connection has no path, query or headers by which to choose: tcp://SERVICE")
    answer = asyncio.run(_ask(admin, method, url, header))
    if output != "text":
        print_value(answer, output)
        return
    for line in as_text(answer):
        click.echo(line)


async def _ask(admin: str, method: str, url: str, headers: tuple[str, ...]) -> dict[str, Any]:
    query = [("method", method), ("url", url), *(("header", h) for h in headers)]
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.get(f"http://{admin}/why", params=query) as answer,
        ):
            found: dict[str, Any] = await answer.json()
            return found
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        message = f"no sidecar's admin port answers at {admin} ({error}); name it with --admin or MESH_ADMIN"
        raise click.ClickException(message) from error


def as_text(answer: dict[str, Any]) -> list[str]:
    """The answer for people."""
    asked = answer["request"]
    scheme = {"TCP": "tcp://", "CONNECT": ""}.get(asked["method"], "http://")
    what = f"{asked['method']} {scheme}{asked['authority']}{asked['target']}"
    lines = [f"{what}  (table {answer.get('table', 'none')})"]
    lines.append(f"outcome: {answer['outcome']}")
    if "local_port" in answer:
        lines.append(f"port:    {answer['local_port'] or 'none'}")
    if "route" in answer:
        lines.append(f"route:   {answer['route']}")
    lines += [f"  {c['rule']:24} {c['match']:40} {c['verdict']}" for c in answer.get("candidates", [])]
    for backend in answer.get("backends", []):
        lines.append(f"backend: {backend['cluster']}  weight {backend['weight']} = {backend['share_percent']:g} %")
        lines += [
            f"  {e['id']:24} {e['address']:22} active {e['active']}  {e['verdict']}" for e in backend["endpoints"]
        ]
    if "retry" in answer:
        retry = answer["retry"]
        codes = ", ".join(map(str, retry["codes"])) or "none"
        lines.append(f"retries: {retry['attempts']} more, codes {codes} for {retry['for']}; {retry['besides']}")
    if "timeouts" in answer:
        times = answer["timeouts"]
        lines.append(
            f"timeout: request {times['request_s'] or 'none'}, each try {times['backend_request_s'] or 'none'}"
        )
    return lines
