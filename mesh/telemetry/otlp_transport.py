"""The ways to an OTLP backend: HTTP and gRPC. Loaded by the process that exports; workers hand it their batches."""

from __future__ import annotations

import asyncio
import gzip
import logging
from pathlib import Path

import aiohttp
import grpc
import grpc.aio

from mesh.telemetry.exporter import Batch, Sent, SpanTransport
from mesh.telemetry.otel_settings import OtelSettings

logger = logging.getLogger(__name__)

RETRY_STATUSES = (429, 502, 503, 504)  # OTLP specification: retryable
RETRY_CODES = ("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")  # the same
RETRY_WAIT_S = 1.0
MAX_RETRY_WAIT_S = 5.0


class HttpTransport:
    """OTLP over HTTP, binary protobuf."""

    def __init__(self, settings: OtelSettings) -> None:
        """The session is made at the first batch."""
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def send(self, batch: Batch) -> Sent:
        """See SpanTransport."""
        settings, body = self._settings, batch.body
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

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            settings = self._settings
            timeout = aiohttp.ClientTimeout(total=settings.timeout_s or None)
            connector = aiohttp.TCPConnector(ssl=settings.ssl_context() if settings.is_secure else True, limit=1)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=False, timeout=timeout)
        return self._session


class GrpcTransport:
    """OTLP over gRPC; the message is passed as the bytes it already is."""

    def __init__(self, settings: OtelSettings) -> None:
        """The channel connects at the first batch. Raises OSError where a certificate cannot be read."""
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

    async def send(self, batch: Batch) -> Sent:
        """See SpanTransport."""
        settings = self._settings
        failure = ""
        for is_last in (False, True):
            try:
                told = await self._export(
                    batch.body, timeout=settings.timeout_s or None, metadata=tuple(settings.headers.items())
                )
                return Sent(rejected=_rejected(told))
            except grpc.aio.AioRpcError as error:
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
