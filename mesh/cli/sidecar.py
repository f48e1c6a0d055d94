"""``mesh sidecar``: run a sidecar in the foreground until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import Any

import click
import uvloop

from mesh.cli.sidecar_options import read_config, sidecar_options
from mesh.cli.verbatim import VerbatimCommand
from mesh.model.errors import InvalidError
from mesh.telemetry.otel_settings import read_otel
from proxy.admin import AdminServer
from proxy.config import SidecarConfig
from proxy.drain import drain
from proxy.file_limit import raise_file_limit
from proxy.listeners import load_certificates
from proxy.memory import settle_memory
from proxy.sidecar import Sidecar

logger = logging.getLogger(__name__)


@click.command(cls=VerbatimCommand, context_settings={"auto_envvar_prefix": "MESH"})
@sidecar_options
def command(**options: Any) -> None:  # noqa: ANN401 - click's
    """Run a sidecar beside a service.

    The program keeps its own port; other services reach it through --inbound, and it reaches them through
    --outbound: http://127.0.0.1:15001 with the service's name as Host, or as HTTP_PROXY. Every option can stand in
    the environment (MESH_SERVICE, MESH_PORT …) or in the file named by --config.

    With the control server's own discovery:
      mesh sidecar --service reviews --port 8080 --version v1 --control 127.0.0.1:15010
    With Consul for discovery:
      mesh sidecar --service reviews --port 8080 --consul http://127.0.0.1:8500 --control 127.0.0.1:15010
    From one file, with nothing else running:
      mesh sidecar --config sidecar.yaml
    """
    config = checked_config(options)
    configure_logging(config.log_level)
    sys.exit(uvloop.run(serve(config)))


def configure_logging(level: str) -> None:
    """Log lines to standard error."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )


def checked_config(options: dict[str, Any]) -> SidecarConfig:
    """The configuration, or a usage error that names everything wrong."""
    try:
        read_otel(os.environ)
        config = read_config(options)
        load_certificates(config)
    except InvalidError as error:
        message = "the settings are not valid:\n" + "\n".join(f"  {v}" for v in error.violations)
        raise click.UsageError(message) from error
    return config


async def serve(config: SidecarConfig) -> int:
    """Run until told to stop, drain, stop; gives the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    raise_file_limit()
    sidecar = Sidecar(config)
    loop.add_signal_handler(signal.SIGHUP, sidecar.reopen_logs)  # logrotate's postrotate
    admin = AdminServer(sidecar)
    try:
        await sidecar.start()
        await admin.start()
    except OSError as error:
        logger.error("%s", error.strerror or error)  # noqa: TRY400 - the message says it all
        await admin.close()
        await sidecar.close()
        return 1
    settle_memory()
    await stop.wait()
    await drain(sidecar, program_stays=True)
    await sidecar.close()
    await admin.close()
    return 0
