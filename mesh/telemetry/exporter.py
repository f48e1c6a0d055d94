"""Sends batches of spans to an OTLP backend, off the request path.

Spans wait in one bounded list: a slow or dead backend costs no request, it costs spans, and those are counted. One
batch is under way at a time; a backend that says it is busy is asked again once, then the batch is dropped. A batch
is encoded in pieces, so that it never holds the loop for longer than a few hundred µs. Neither transport reads proxy
variables: HTTP_PROXY of a wrapped program names this very sidecar.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import time
from pathlib import Path
from typing import Protocol

from mesh.tasks import Tasks
from mesh.telemetry.otel_settings import OtelSettings
from mesh.telemetry.spans import Encoder, HttpSpan

logger = logging.getLogger(__name__)

RETRY_STATUSES = (429, 502, 503, 504)  # OTLP specification: retryable
RETRY_CODES = ("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")  # the same
RETRY_WAIT_S = 1.0
MAX_RETRY_WAIT_S = 5.0
WARN_EVERY_S = 60.0
PIECE = 64  # spans encoded at a stretch: about 0.2 ms
CLOSE_S = 2.0


class Sent:
    """What became of a batch: ``failure`` None means that it was taken, but for ``rejected`` spans of it."""

    __slots__ = ("failure", "rejected")

    def __init__(self, failure: str | None = None, rejected: int = 0) -> None:
        """Taken whole, unless told otherwise."""
        self.failure = failure
        self.rejected = rejected


class SpanTransport(Protocol):
    """Carries one encoded batch."""

    async def send(self, body: bytes) -> Sent:
        """Deliver it. Raises nothing but CancelledError."""

    async def close(self) -> None:
        """Let go of connections."""


class SpanExporter:
    """The queue and the sender. ``add`` is the only method on the request path."""

    def __init__(self, encoder: Encoder, transport: SpanTransport, settings: OtelSettings) -> None:
        """Nothing is sent before ``start``."""
        self._encoder = encoder
        self._transport = transport
        self._settings = settings
        self._max_queue = settings.max_queue
        self._max_batch = settings.max_batch
        self._queue: list[HttpSpan] = []
        self._wake = asyncio.Event()
        self._tasks = Tasks("spans")
        self._sender: asyncio.Task[None] | None = None
        self._is_closing = False
        self._under_way = 0
        self._warned_s = -WARN_EVERY_S
        self.exported = 0
        self.dropped = 0

    def add(self, span: HttpSpan) -> None:
        """Queue a span; one too many is dropped and counted."""
        queue = self._queue
        queued = len(queue)
        if queued >= self._max_queue:
            self.dropped += 1
            return
        queue.append(span)
        if queued + 1 == self._max_batch:
            self._wake.set()

    @property
    def queued(self) -> int:
        """Spans that wait or are being sent."""
        return len(self._queue) + self._under_way

    def start(self) -> None:
        """Begin to send."""
        self._sender = self._tasks.start(self._run(), "export")

    async def close(self, deadline_s: float = CLOSE_S) -> None:
        """Send what is queued, for at most that long, and stop."""
        self._is_closing = True
        self._wake.set()
        if self._sender is not None:
            await asyncio.wait((self._sender,), timeout=deadline_s)
        await self._tasks.close()
        if self._queue:
            logger.warning("%d spans were not sent before the end", len(self._queue))
            self.dropped += len(self._queue)
            self._queue.clear()
        await self._transport.close()

    async def _run(self) -> None:
        while not self._is_closing:
            try:
                async with asyncio.timeout(self._settings.delay_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            while self._queue:
                await self._flush()
                if len(self._queue) < self._max_batch and not self._is_closing:
                    break

    async def _flush(self) -> None:
        batch = self._queue[: self._max_batch]
        del self._queue[: len(batch)]
        self._under_way = len(batch)
        sent = Sent("the sidecar stopped")
        try:
            sent = await self._transport.send(await self._encoded(batch))
        finally:
            self._under_way = 0
            lost = len(batch) if sent.failure is not None else min(sent.rejected, len(batch))
            self.exported += len(batch) - lost
            self.dropped += lost
        if lost:
            self._warn(sent.failure or f"the backend rejected {lost} spans")

    async def _encoded(self, batch: list[HttpSpan]) -> bytes:
        offset_ns = time.time_ns() - time.monotonic_ns()
        pieces: list[bytes] = []
        for start in range(0, len(batch), PIECE):
            pieces.append(self._encoder.encode_spans(batch[start : start + PIECE], offset_ns))
            await asyncio.sleep(0)
        return self._encoder.message(b"".join(pieces))

    def _warn(self, failure: str) -> None:
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

    async def send(self, body: bytes) -> Sent:
        """See SpanTransport."""
        settings, aiohttp = self._settings, self._aiohttp
        headers = {"content-type": "application/x-protobuf", **settings.headers}
        if settings.is_gzipped:
            body = await asyncio.to_thread(gzip.compress, body)
            headers["content-encoding"] = "gzip"
        failure = ""
        for is_last in (False, True):
            wait_s = RETRY_WAIT_S
            try:
                session = self._opened()
                async with session.post(settings.endpoint, data=body, headers=headers, allow_redirects=False) as answer:
                    told = await answer.read()
                    if answer.status < 300:  # 2xx
                        return Sent(rejected=_rejected(told))
                    failure = f"{settings.endpoint} answered {answer.status}"
                    if answer.status not in RETRY_STATUSES:
                        break
                    after = answer.headers.get("retry-after", "")
                    wait_s = min(float(after), MAX_RETRY_WAIT_S) if after.isdigit() else RETRY_WAIT_S
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                failure = f"{settings.endpoint}: {str(error) or type(error).__name__}"
            if not is_last:
                await asyncio.sleep(wait_s)
        return Sent(failure)

    async def close(self) -> None:
        """See SpanTransport."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:  # type: ignore[name-defined]  # noqa: F821 - imported in __init__
        if self._session is None:
            aiohttp, settings = self._aiohttp, self._settings
            timeout = aiohttp.ClientTimeout(total=settings.timeout_s or None)
            connector = aiohttp.TCPConnector(ssl=settings.ssl_context() if settings.is_secure else True, limit=1)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=False, timeout=timeout)
        return self._session


class GrpcTransport:
    """OTLP over gRPC; the message is passed as the bytes it already is."""

    def __init__(self, settings: OtelSettings) -> None:
        """The channel connects at the first batch. Raises OSError where a certificate cannot be read."""
        import grpc  # noqa: PLC0415 - see HttpTransport
        import grpc.aio  # noqa: PLC0415

        self._grpc = grpc
        self._settings = settings
        options = (("grpc.enable_http_proxy", 0),)
        compression = grpc.Compression.Gzip if settings.is_gzipped else None
        if settings.is_secure:
            credentials = grpc.ssl_channel_credentials(
                *(Path(name).read_bytes() if name else None
                  for name in (settings.ca_file, settings.key_file, settings.certificate_file))
            )  # fmt: skip
            self._channel = grpc.aio.secure_channel(settings.endpoint, credentials, options, compression)
        else:
            self._channel = grpc.aio.insecure_channel(settings.endpoint, options, compression)
        self._export = self._channel.unary_unary(
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            request_serializer=_as_it_is,
            response_deserializer=_as_it_is,
        )

    async def send(self, body: bytes) -> Sent:
        """See SpanTransport."""
        settings = self._settings
        failure = ""
        for is_last in (False, True):
            try:
                told = await self._export(
                    body, timeout=settings.timeout_s or None, metadata=tuple(settings.headers.items())
                )
                return Sent(rejected=_rejected(told))
            except self._grpc.aio.AioRpcError as error:
                failure = f"{settings.endpoint}: {error.code().name} {error.details()}"
                if error.code().name not in RETRY_CODES:
                    break
            if not is_last:
                await asyncio.sleep(RETRY_WAIT_S)
        return Sent(failure)

    async def close(self) -> None:
        """See SpanTransport."""
        await self._channel.close(None)


def _as_it_is(body: bytes) -> bytes:
    return body


def _rejected(answer: bytes) -> int:
    """How many spans a backend that took the batch did not keep (OTLP "partial success"); mostly it says nothing."""
    if not answer:
        return 0
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - see HttpTransport
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: PLC0415
        ExportTraceServiceResponse,
    )

    try:
        return int(ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans)
    except DecodeError:
        return 0  # a 2xx whose body is something else: it was taken


def make_transport(settings: OtelSettings) -> SpanTransport:
    """The transport that the settings ask for."""
    return GrpcTransport(settings) if settings.protocol == "grpc" else HttpTransport(settings)
