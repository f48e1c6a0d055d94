"""Sends batches of spans to an OTLP backend, off the request path.

Spans wait in one bounded list: a slow or dead backend costs no request, it costs spans, and those are counted. One
batch is under way at a time; a backend that says it is busy is asked again once, then the batch is dropped. A batch
is encoded in pieces, so that it never holds the loop for longer than a few hundred µs. Neither transport reads proxy
variables: HTTP_PROXY of a wrapped program names this very sidecar.

Worker processes encode their own batches and hand them to their parent, whose exporter sends them on: so whether the
backend took a span is known, and counted, in one place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import NamedTuple, Protocol

from mesh.tasks import Tasks
from mesh.telemetry.otel_settings import OtelSettings
from mesh.telemetry.spans import Encoder, Span

logger = logging.getLogger(__name__)

WARN_EVERY_S = 60.0
PIECE = 64  # spans encoded at a stretch: about 0.2 ms
CLOSE_S = 2.0
MAX_FORWARDED = 32  # batches of workers that wait: as many spans as 8 queues of the usual size hold


class Batch(NamedTuple):
    """An encoded batch and how many spans are in it."""

    body: bytes
    spans: int


class Sent:
    """What became of a batch: ``failure`` None means that it was taken, but for ``rejected`` spans of it."""

    __slots__ = ("failure", "rejected")

    def __init__(self, failure: str | None = None, rejected: int = 0) -> None:
        """Taken whole, unless told otherwise."""
        self.failure = failure
        self.rejected = rejected


class SpanTransport(Protocol):
    """Carries one encoded batch."""

    async def send(self, batch: Batch) -> Sent:
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
        self._queue: list[Span] = []
        self._forwarded: deque[Batch] = deque()
        self._wake = asyncio.Event()
        self._tasks = Tasks("spans")
        self._sender: asyncio.Task[None] | None = None
        self._is_closing = False
        self._under_way = 0
        self._warned_s = -WARN_EVERY_S
        self.exported = 0
        self.dropped = 0

    def add(self, span: Span) -> None:
        """Queue a span; one too many is dropped and counted."""
        queue = self._queue
        queued = len(queue)
        if queued >= self._max_queue:
            self.dropped += 1
            return
        queue.append(span)
        if queued + 1 == self._max_batch:
            self._wake.set()

    def forward(self, batch: Batch) -> None:
        """Queue what a worker process has encoded; a batch too many is dropped and its spans are counted."""
        if len(self._forwarded) >= MAX_FORWARDED:
            self.dropped += batch.spans
            return
        self._forwarded.append(batch)
        self._wake.set()

    @property
    def queued(self) -> int:
        """Spans that wait or are being sent."""
        return len(self._queue) + sum(batch.spans for batch in self._forwarded) + self._under_way

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
        if left := self.queued:
            logger.warning("%d spans were not sent before the end", left)
            self.dropped += left
            self._queue.clear()
            self._forwarded.clear()
        await self._transport.close()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._settings.delay_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            while self._forwarded:
                batch = self._forwarded.popleft()
                await self._deliver(batch.spans, batch.body)
            while self._queue:
                await self._flush()
                if len(self._queue) < self._max_batch and not self._is_closing:
                    break
            if self._is_closing:
                return

    async def _flush(self) -> None:
        spans = self._queue[: self._max_batch]
        del self._queue[: len(spans)]
        await self._deliver(len(spans), spans)

    async def _deliver(self, count: int, batch: bytes | list[Span]) -> None:
        """Send ``count`` spans, encoded by a worker or not yet, and count what became of them."""
        self._under_way = count
        sent = Sent("the sidecar stopped")
        try:
            body = batch if isinstance(batch, bytes) else await self._encoded(batch)
            sent = await self._transport.send(Batch(body, count))
        finally:
            self._under_way = 0
            lost = count if sent.failure is not None else min(sent.rejected, count)
            self.exported += count - lost
            self.dropped += lost
        if lost:
            self._warn(sent.failure or f"the backend rejected {lost} spans")

    async def _encoded(self, batch: list[Span]) -> bytes:
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
