"""The control server's metrics in Prometheus' text format."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator

from control.counters import PUSH_BUCKETS_S
from control.hub import Hub
from control.registry import Registry
from control.subscription import State


def render(hub: Hub, registry: Registry, now: float) -> str:
    """One scrape; ``now`` is monotonic seconds."""
    return "".join(f"{line}\n" for line in _lines(hub, registry, now))


def _lines(hub: Hub, registry: Registry, now: float) -> Iterator[str]:
    counters, snapshot = hub.counters, hub.current.snapshot
    states = Tally(subscription.state for subscription in hub.sidecars())
    yield from _head("mesh_control_sidecars", "gauge", "Sidecars by where they stand with the current table.")
    for state in State:
        yield f'mesh_control_sidecars{{state="{state.value}"}} {states[state]}'
    yield from _one("mesh_control_connected_sidecars", "gauge", "Sidecars with a stream now.", hub.connected)
    yield from _one("mesh_control_table_version", "gauge", "Version of the newest table.", snapshot.id.version)
    yield from _one("mesh_control_table_resources", "gauge", "Resources in it.", len(snapshot.resources))
    yield from _one("mesh_control_table_bytes", "gauge", "Size of a push of it.", len(hub.current.whole))
    yield from _one("mesh_control_hellos_total", "counter", "Streams that sidecars began.", counters.hellos)
    yield from _one("mesh_control_pushes_total", "counter", "Pushes sent.", counters.pushes)
    yield from _one("mesh_control_pushes_unchanged_total", "counter", "Pushes without a table.", counters.resumed)
    yield from _one("mesh_control_pushed_bytes_total", "counter", "Bytes of all pushes.", counters.pushed_bytes)
    yield from _one("mesh_control_acks_total", "counter", "Pushes that a sidecar took.", counters.acks)
    yield from _one("mesh_control_nacks_total", "counter", "Pushes that a sidecar refused.", counters.nacks)
    yield from _one(
        "mesh_control_stale_answers_total",
        "counter",
        "Answers to a push that was not the last.",
        counters.stale_answers,
    )
    name = "mesh_control_push_seconds"
    yield from _head(name, "histogram", "From writing a push to a sidecar to its answer.")
    for bound, count in zip(PUSH_BUCKETS_S, counters.push_seconds_counts, strict=True):
        yield f'{name}_bucket{{le="{bound:g}"}} {count}'
    yield f'{name}_bucket{{le="+Inf"}} {counters.push_seconds_count}'
    yield f"{name}_sum {counters.push_seconds_sum:.6f}"
    yield f"{name}_count {counters.push_seconds_count}"
    yield from _one("mesh_control_registry_instances", "gauge", "Instances with a lease.", len(registry))
    yield from _one(
        "mesh_control_registry_settled", "gauge", "1 once a lease has passed.", int(registry.is_settled(now))
    )


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _one(name: str, kind: str, text: str, value: int) -> Iterator[str]:
    yield from _head(name, kind, text)
    yield f"{name} {value}"
