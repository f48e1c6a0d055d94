"""``mesh demo``: a whole mesh of real processes on this machine, and a canary rolled out on it."""

from __future__ import annotations

import asyncio
import sys

import click
from rich.console import Console

from mesh.cli.demo.scenario import Demo, Timing


@click.command()
@click.option(
    "--consul", is_flag=True, help="Discover through a real Consul agent ($MESH_CONSUL_BIN, or consul on PATH)."
)
@click.option("--keep", is_flag=True, help="Leave the mesh running at the end and print commands to play with.")
@click.option("--rate", type=float, default=Timing().rate, show_default=True, help="Requests a second.")
def command(*, consul: bool, keep: bool, rate: float) -> None:
    """Start a whole mesh on this machine and watch a canary roll out.

    A control server, frontend, reviews v1 and v2, two ratings, each program with its own sidecar, a load generator
    and a trace collector: all real processes on loopback. reviews moves from v1 to v2 in four steps; on the way a
    program and a whole instance are killed. Ends by itself within a minute; exit code 0 only if no request failed.
    """
    console = Console(soft_wrap=not sys.stdout.isatty())
    try:
        code = asyncio.run(Demo(console, Timing(rate=rate), consul=consul, keep=keep).run())
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
