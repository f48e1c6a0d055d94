"""``mesh control``."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

import click

from control.config import DEFAULT_HTTP, DEFAULT_LISTEN, ControlConfig
from control.errors import StoreError
from control.registry import DEFAULT_LEASE_S
from control.server import ControlServer, ListenError
from mesh.cli.state import state_directory
from mesh.cli.verbatim import VerbatimCommand
from mesh.model.errors import InvalidError

_MEMORY = ":memory:"


@click.command(cls=VerbatimCommand)
@click.option(
    "--listen",
    envvar="MESH_LISTEN",
    default=DEFAULT_LISTEN,
    show_default=True,
    show_envvar=True,
    metavar="HOST:PORT",
    help="gRPC for sidecars and operators. Port 0 picks a free one.",
)
@click.option(
    "--http",
    envvar="MESH_HTTP",
    default=DEFAULT_HTTP,
    show_default=True,
    show_envvar=True,
    metavar="HOST:PORT",
    help="/metrics and /healthz. Port 0 picks a free one.",
)
@click.option(
    "--data",
    envvar="MESH_DATA",
    default=None,
    show_envvar=True,
    metavar="DIR",
    help=f"Where the table and its history are kept; {_MEMORY} keeps nothing.  "
    "[default: $XDG_STATE_HOME/sidemesh/control, else ~/.local/state/sidemesh/control]",
)
@click.option(
    "--consul",
    envvar="MESH_CONSUL",
    default=None,
    show_envvar=True,
    metavar="HOST:PORT|URL",
    help="A Consul agent to ask whether a subset has healthy endpoints, such as 127.0.0.1:8500. "
    "Its token: CONSUL_HTTP_TOKEN.",
)
@click.option(
    "--lease",
    envvar="MESH_LEASE",
    type=float,
    default=DEFAULT_LEASE_S,
    show_default=True,
    show_envvar=True,
    metavar="SECONDS",
    help="Longest lease of the embedded registry: who does not renew it is out.",
)
@click.option(
    "--log-level",
    envvar="MESH_LOG_LEVEL",
    type=click.Choice(("debug", "info", "warning", "error"), case_sensitive=False),
    default="info",
    show_default=True,
    show_envvar=True,
    help="How much to log (on stderr).",
)
def command(listen: str, http: str, data: str | None, consul: str | None, lease: float, log_level: str) -> None:
    """Run the control server.

    It keeps the routing table with its whole history, pushes it to every sidecar, is the registry of endpoints where
    there is no Consul, and serves operators. Sidecars go on with what they have while it is away.

    When it listens, one line goes to stdout:

      ready grpc=127.0.0.1:15010 http=127.0.0.1:15014

    Examples:
      mesh control
      mesh control --data /var/lib/sidemesh --consul http://127.0.0.1:8500
      mesh control --listen 127.0.0.1:0 --http 127.0.0.1:0 --data :memory:
      grpcurl -plaintext 127.0.0.1:15010 list
    """
    logging.basicConfig(
        stream=sys.stderr, level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        config = ControlConfig(listen, http, _directory(data), consul, lease)
        _run(config)
    except InvalidError as error:
        for violation in error.violations:
            click.echo(f"Error: --{violation.field}: {violation.message}", err=True)
        sys.exit(2)
    except (StoreError, ListenError) as error:
        raise click.ClickException(str(error)) from error


def _directory(data: str | None) -> Path | None:
    if data == _MEMORY:
        return None
    if data is not None:
        return Path(data)
    found = state_directory("control")
    if found is None:
        raise click.UsageError(f"there is no home directory to keep the table in; give --data DIR, or --data {_MEMORY}")
    return found


def _run(config: ControlConfig) -> None:
    """Serve until SIGTERM or SIGINT."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(config))
    else:
        uvloop.run(_serve(config))


async def _serve(config: ControlConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with ControlServer(config) as server, asyncio.TaskGroup() as tasks:
        failure = tasks.create_task(server.wait(), name="control failure")
        click.echo(f"ready grpc={server.grpc_address} http={server.http_address}")
        await stop.wait()
        failure.cancel()
