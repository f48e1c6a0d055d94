from random import Random
from typing import Any

from mesh.model.name import Name
from mesh.telemetry.exporter import Batch
from mesh.telemetry.spans import SERVER, HttpSpan
from proxy.config import SidecarConfig
from proxy.telemetry import Telemetry
from proxy.worker import Deltas, LinkTransport

SPAN = HttpSpan(
    b"1" * 32, b"2" * 16, b"", b"", 1.0, 2.0, b"/", b"pay", b"", "http", SERVER, b"GET", b"1.1", 200, -1, "", "", "", "",
    0, "", "", "127.0.0.1", 1, b"",
)  # fmt: skip


class LinkOfTest:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def send(self, *message: Any) -> None:
        self.sent.append(message)


def telemetry(link: Any) -> Telemetry:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_BSP_MAX_QUEUE_SIZE": "4"}
    config = SidecarConfig(Name("default", "pay"))
    return Telemetry(config, environ, Random(1), lambda _: LinkTransport(link))


async def test_a_worker_tells_each_span_it_dropped_once() -> None:
    worker = telemetry(LinkOfTest())
    deltas = Deltas(worker)
    assert worker.exporter is not None
    for _ in range(7):
        worker.exporter.add(SPAN)
    assert deltas.take().counters == {("spans_dropped", ""): 3}
    assert deltas.take().counters == {}
    worker.exporter.add(SPAN)
    assert deltas.take().counters == {("spans_dropped", ""): 1}
    await worker.close()


async def test_a_worker_hands_over_a_batch_with_the_number_of_its_spans() -> None:
    link = LinkOfTest()
    worker = telemetry(link)
    assert worker.exporter is not None
    worker.start()
    for _ in range(3):
        worker.exporter.add(SPAN)
    await worker.close()
    ((kind, batch),) = link.sent
    assert kind == "spans"
    assert isinstance(batch, Batch)
    assert batch.spans == 3
