"""``mesh demo``: a whole mesh of real processes on this machine, and a canary rolled out on it."""

from __future__ import annotations

import asyncio
import signal
import sys

import click
from rich.console import Console

from mesh.cli.demo.scenario import Demo, Timing

PIPED_WIDTH = 400


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
    # A trace's lines are long: piped, they stay whole.
    console = Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH)
    try:
        code = asyncio.run(_run(Demo(console, Timing(rate=rate), consul=consul, keep=keep)))
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


async def _run(demo: Demo) -> int:
    """Run it; SIGTERM and SIGHUP stop everything in order, as Ctrl-C does."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None  # noqa: S101 - a coroutine that runs has one
    told: list[int] = []

    def stop(number: int) -> None:
        told.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    try:
        return await demo.run()
    except asyncio.CancelledError:
        if not told:
            raise
        return 128 + told[0]
