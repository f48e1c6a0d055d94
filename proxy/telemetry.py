"""A sidecar's telemetry, put together: what records, where spans and log lines go, and whose word counts.

``OTEL_*`` variables win over the sidecar's own settings where they are set, so that one environment configures a
program and its sidecar alike. Without an endpoint for spans none is recorded, and trace context passes through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from mesh.http.trace_context import Format, Propagation
from mesh.telemetry.accesslog import AccessLog
from mesh.telemetry.exporter import SpanExporter, SpanTransport
from mesh.telemetry.otel_settings import OtelSettings, read_otel
from mesh.telemetry.resource import resource_attributes
from mesh.telemetry.spans import Encoder
from mesh.version import VERSION
from proxy.config import SidecarConfig
from proxy.recorder import Recorder

SCOPE = "sidemesh"

TransportMaker = Callable[[OtelSettings], SpanTransport]


class Telemetry:
    """See the module. ``exporter`` and ``log`` are None where they are off."""

    def __init__(
        self, config: SidecarConfig, environ: Mapping[str, str], rng: Random, transport: TransportMaker
    ) -> None:
        """Build; nothing is opened yet. Raises InvalidError for a wrong OTEL_* variable.

        ``transport`` makes what carries the batches: to the backend, or to the process that speaks to it.
        """
        otel = read_otel(environ)
        self.exporter: SpanExporter | None = None
        if otel.endpoint:
            resource = resource_attributes(
                environ,
                service=config.service.name,
                namespace=config.service.namespace,
                instance=config.instance,
                version=config.version,
                sdk_version=VERSION,
            )
            self.exporter = SpanExporter(Encoder(resource, SCOPE, VERSION), transport(otel), otel)
        self.log: AccessLog | None = None
        if config.access_log != "off":
            self.log = AccessLog(config.access_log_path, config.access_log_format)
        self.recorder = Recorder(
            config.service,
            version=config.version,
            spans=self.exporter,
            log=self.log,
            log_mode=config.access_log,
            traces_tcp=config.trace_tcp,
        )
        self.propagation = Propagation(
            config.trace_ratio if otel.ratio is None else otel.ratio,
            rng,
            tuple(Format(f) for f in (config.trace_formats if otel.formats is None else otel.formats)),
            follows_parent=otel.follows_parent,
            records=self.exporter is not None,
        )

    def start(self) -> None:
        """Begin to send."""
        if self.exporter is not None:
            self.exporter.start()

    def reopen(self) -> None:
        """Open the access log anew, as after a rotation (SIGHUP)."""
        if self.log is not None:
            self.log.reopen()

    async def close(self) -> None:
        """Send and write what is left, within some seconds."""
        if self.exporter is not None:
            await self.exporter.close()
        if self.log is not None:
            await self.log.close()
