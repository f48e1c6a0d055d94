"""Sends batches of spans to an OTLP backend, off the request path.

Spans wait in one bounded list: a slow or dead backend costs no request, it costs spans, and those are counted. One
batch is under way at a time; a backend that says it is busy is asked again once, then the batch is dropped.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
from typing import Protocol

from mesh.tasks import Tasks
from mesh.telemetry.otel_settings import OtelSettings
from mesh.telemetry.spans import Encoder, Span

logger = logging.getLogger(__name__)

RETRY_STATUSES = (429, 502, 503, 504)  # OTLP specification: retryable
RETRY_WAIT_S = 1.0
WARN_EVERY_S = 60.0


class SpanTransport(Protocol):
    """Carries one encoded batch."""

    async def send(self, body: bytes) -> str | None:
        """Deliver it; gives why it was not, None if it was. Raises nothing but CancelledError."""

    async def close(self) -> None:
        """Let go of connections."""


class SpanExporter:
    """The queue and the sender. ``add`` is the only method on the request path."""

    def __init__(self, encoder: Encoder, transport: SpanTransport, settings: OtelSettings) -> None:
        """Nothing is sent before ``start``."""
        self._encoder = encoder
        self._transport = transport
        self._settings = settings
        self._queue: list[Span] = []
        self._wake = asyncio.Event()
        self._tasks = Tasks("spans")
        self._warned_s = -WARN_EVERY_S
        self.exported = 0
        self.dropped = 0

    def add(self, span: Span) -> None:
        """Queue a span; one too many is dropped and counted."""
        queue = self._queue
        if len(queue) >= self._settings.max_queue:
            self.dropped += 1
            return
        queue.append(span)
        if len(queue) == self._settings.max_batch:
            self._wake.set()

    @property
    def queued(self) -> int:
        """Spans that wait."""
        return len(self._queue)

    def start(self) -> None:
        """Begin to send."""
        self._tasks.start(self._run(), "export")

    async def close(self, deadline_s: float = 2.0) -> None:
        """Send what is queued, for at most that long, and stop."""
        await self._tasks.close()
        try:
            async with asyncio.timeout(deadline_s):
                while self._queue:
                    await self._flush()
        except TimeoutError:
            logger.warning("%d spans were not sent before the end", len(self._queue))
            self.dropped += len(self._queue)
        await self._transport.close()

    async def _run(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), self._settings.delay_s)
            except TimeoutError:
                pass
            self._wake.clear()
            while self._queue:
                await self._flush()
                if len(self._queue) < self._settings.max_batch:
                    break

    async def _flush(self) -> None:
        batch = self._queue[: self._settings.max_batch]
        del self._queue[: len(batch)]
        failure: str | None = "cancelled"
        try:
            failure = await self._transport.send(self._encoder.encode(batch))
        finally:
            if failure is None:
                self.exported += len(batch)
            else:
                self.dropped += len(batch)
        if failure is not None:
            now = asyncio.get_running_loop().time()
            if now - self._warned_s >= WARN_EVERY_S:
                self._warned_s = now
                logger.warning("spans are being dropped (%d so far): %s", self.dropped, failure)


class HttpTransport:
    """OTLP over HTTP, binary protobuf."""

    def __init__(self, settings: OtelSettings) -> None:
        """The session is made at the first batch."""
        import aiohttp  # noqa: PLC0415 - worker processes hand their spans to the parent and never load it

        self._aiohttp = aiohttp
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def send(self, body: bytes) -> str | None:
        """See SpanTransport."""
        settings, aiohttp = self._settings, self._aiohttp
        headers = {"content-type": "application/x-protobuf", **settings.headers}
        if settings.is_gzipped:
            body = await asyncio.to_thread(gzip.compress, body)
            headers["content-encoding"] = "gzip"
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=settings.timeout_s)
            self._session = aiohttp.ClientSession(trust_env=False, timeout=timeout, auto_decompress=False)
        failure: str | None = None
        for wait_s in (RETRY_WAIT_S, None):
            try:
                async with self._session.post(settings.endpoint, data=body, headers=headers) as answer:
                    await answer.read()
                    if answer.status < 300:  # noqa: PLR2004 - 2xx
                        return None
                    failure = f"{settings.endpoint} answered {answer.status}"
                    if answer.status not in RETRY_STATUSES:
                        return failure
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = f"{settings.endpoint}: {error or type(error).__name__}"
            if wait_s is not None:
                await asyncio.sleep(wait_s)
        return failure

    async def close(self) -> None:
        """See SpanTransport."""
        if self._session is not None:
            await self._session.close()


class GrpcTransport:
    """OTLP over gRPC; the message is passed as the bytes it already is."""

    def __init__(self, settings: OtelSettings) -> None:
        """The channel connects at the first batch."""
        import grpc  # noqa: PLC0415 - see HttpTransport
        import grpc.aio  # noqa: PLC0415

        self._grpc = grpc
        self._settings = settings
        self._channel = grpc.aio.insecure_channel(settings.endpoint, options=(("grpc.enable_http_proxy", 0),))
        self._export = self._channel.unary_unary(
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            request_serializer=_as_it_is,
            response_deserializer=_as_it_is,
        )

    async def send(self, body: bytes) -> str | None:
        """See SpanTransport."""
        try:
            await self._export(body, timeout=self._settings.timeout_s, metadata=tuple(self._settings.headers.items()))
        except self._grpc.aio.AioRpcError as error:
            return f"{self._settings.endpoint}: {error.code().name} {error.details()}"
        return None

    async def close(self) -> None:
        """See SpanTransport."""
        await self._channel.close(None)


def _as_it_is(body: bytes) -> bytes:
    return body


def make_transport(settings: OtelSettings) -> SpanTransport:
    """The transport that the settings ask for."""
    return GrpcTransport(settings) if settings.protocol == "grpc" else HttpTransport(settings)
