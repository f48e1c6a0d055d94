import asyncio

from mesh.telemetry.exporter import MAX_FORWARDED, Batch, Sent, SpanExporter
from mesh.telemetry.otel_settings import OtelSettings
from mesh.telemetry.spans import SERVER, Encoder, HttpSpan
from tests.support.process import until

SPAN = HttpSpan(
    b"1" * 32, b"2" * 16, b"", b"", 1.0, 2.0, b"/", b"pay", b"", "http", SERVER, b"GET", b"1.1", 200, -1, "", "", "", "",
    0, "", "", "127.0.0.1", 1, b"",
)  # fmt: skip


class Transport:
    """Answers with what the test lays down; waits while ``gate`` is shut."""

    def __init__(self, *answers: Sent) -> None:
        self.answers = list(answers)
        self.sent: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, batch: Batch) -> Sent:
        self.sent.append(batch.body)
        await self.gate.wait()
        return self.answers.pop(0) if self.answers else Sent()

    async def close(self) -> None:
        self.gate.set()


def exporter(transport: Transport, **settings: float) -> SpanExporter:
    values = {"delay_s": 3600.0, "max_queue": 8, "max_batch": 4, **settings}
    return SpanExporter(Encoder({}, "t", "0"), transport, OtelSettings("http://x", **values))  # type: ignore[arg-type]


async def test_a_full_batch_is_sent_without_waiting_for_the_delay() -> None:
    transport = Transport()
    spans = exporter(transport)
    spans.start()
    for _ in range(4):
        spans.add(SPAN)
    await until(lambda: spans.exported == 4, what="the batch to be sent")
    assert len(transport.sent) == 1
    await spans.close()


async def test_spans_beyond_the_queue_are_dropped_and_counted_while_the_backend_hangs() -> None:
    transport = Transport()
    transport.gate.clear()
    spans = exporter(transport)
    spans.start()
    for _ in range(4):
        spans.add(SPAN)
    await until(lambda: transport.sent, what="the first batch to be under way")
    for _ in range(10):
        spans.add(SPAN)
    assert spans.dropped == 2
    assert spans.queued == 12
    await spans.close(0.01)
    assert spans.exported == 0
    assert spans.dropped == 14


async def test_a_batch_that_fails_is_dropped_and_the_next_is_sent() -> None:
    transport = Transport(Sent("no"), Sent(rejected=1))
    spans = exporter(transport, delay_s=0.01)
    spans.start()
    spans.add(SPAN)
    await until(lambda: spans.dropped == 1, what="the first to fail")
    spans.add(SPAN)
    spans.add(SPAN)
    await until(lambda: spans.exported == 1, what="the second to be sent but for one")
    assert spans.dropped == 2
    await spans.close()


async def test_closing_sends_what_waits() -> None:
    transport = Transport()
    spans = exporter(transport)
    spans.start()
    for _ in range(3):
        spans.add(SPAN)
    await spans.close()
    assert spans.exported == 3


async def test_every_span_of_a_workers_batch_is_counted_whatever_becomes_of_it() -> None:
    transport = Transport(Sent("no"), Sent(rejected=2))
    spans = exporter(transport)
    spans.start()
    for count in (5, 7, 11):
        spans.forward(Batch(b"%d" % count, count))
    assert spans.queued == 23
    await until(lambda: not spans.queued, what="all three to be sent")
    assert transport.sent == [b"5", b"7", b"11"]
    assert (spans.exported, spans.dropped) == (5 + 11, 5 + 2)
    await spans.close()


async def test_a_workers_batch_beyond_the_queue_is_dropped_with_all_its_spans_counted() -> None:
    transport = Transport()
    transport.gate.clear()
    spans = exporter(transport)
    spans.start()
    spans.forward(Batch(b"first", 3))
    await until(lambda: transport.sent, what="the first batch to be under way")
    for _ in range(MAX_FORWARDED + 2):
        spans.forward(Batch(b"more", 3))
    assert spans.dropped == 2 * 3
    assert spans.queued == (1 + MAX_FORWARDED) * 3
    await spans.close(0.01)
    assert (spans.exported, spans.dropped, spans.queued) == (0, (3 + MAX_FORWARDED) * 3, 0)


async def test_closing_sends_what_workers_handed_over_last() -> None:
    transport = Transport()
    spans = exporter(transport)
    spans.start()
    spans.forward(Batch(b"last", 3))
    await spans.close()
    assert (transport.sent, spans.exported) == ([b"last"], 3)
