"""What the demo shows: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from mesh.http.grpc import Status

PLAIN_EVERY_S = 2.0


@dataclass
class View:
    """The state that is shown; the scenario changes it, the display reads it."""

    step: str = "starting"
    weights: dict[str, int] = field(default_factory=dict)
    window: dict[str, Any] = field(default_factory=dict)
    rate: float = 0.0
    recent: dict[str, float] = field(default_factory=dict)
    failed: int = 0
    sidecars: list[tuple[str, str, str]] = field(default_factory=list)
    """(node, table version, state)"""


class Display:
    """Shows a View while something runs."""

    def __init__(self, view: View, console: Console) -> None:
        """Live where the console is a terminal."""
        self._view = view
        self._console = console
        self._began_s = time.monotonic()
        self._told_s = 0.0
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        """Begin to show."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays: something happened."""
        self._console.print(f"{self._elapsed():6.1f} s  {text}", highlight=False)

    def update(self) -> None:
        """Show the view as it is now."""
        if self._live is not None:
            self._live.update(self._render())
        elif time.monotonic() - self._told_s >= PLAIN_EVERY_S and self._view.window:
            self._told_s = time.monotonic()
            self.say(self._line())

    def _elapsed(self) -> float:
        return time.monotonic() - self._began_s

    def _shares(self) -> list[tuple[str, float, float]]:
        """(version, share set, share observed), in percent."""
        versions = self._view.window.get("versions", {})
        total_set, total_seen = sum(self._view.weights.values()), sum(versions.values())
        return [
            (
                version,
                100.0 * weight / total_set if total_set else 0.0,
                100.0 * versions.get(version, 0) / total_seen if total_seen else 0.0,
            )
            for version, weight in sorted(self._view.weights.items())
        ]

    def _line(self) -> str:
        view = self._view
        shares = "  ".join(f"{v} set {s:.0f}% seen {o:.1f}%" for v, s, o in self._shares())
        tables = sorted({version for _, version, _ in view.sidecars})
        return (
            f"{view.step}: {shares}  |  {view.rate:.0f} req/s, {view.failed} failed, "
            f"p50 {view.recent.get('p50_ms', 0):.1f} ms, p99 {view.recent.get('p99_ms', 0):.1f} ms  |  "
            f"{len(view.sidecars)} sidecars on table {', '.join(tables) or '-'}"
        )

    def _render(self) -> Group:
        view = self._view
        split = Table("reviews", "share set", "share observed", title=f"{view.step}", title_justify="left")
        for version, share, observed in self._shares():
            split.add_row(version, f"{share:.0f} %", f"{observed:.1f} %")
        sidecars = Table("sidecar", "table", "state")
        for row in view.sidecars:
            sidecars.add_row(*row)
        numbers = Text(
            f"{view.rate:.0f} requests/s   {view.failed} failed   "
            f"p50 {view.recent.get('p50_ms', 0):.1f} ms   p99 {view.recent.get('p99_ms', 0):.1f} ms   "
            f"{self._elapsed():.0f} s",
            style="bold red" if view.failed else "bold green",
        )
        return Group(split, numbers, sidecars)


def trace_tree(trace: dict[str, Any]) -> Tree:
    """A trace's spans as a tree: service, span, time and what the mesh says of it."""
    spans = sorted(trace["spans"], key=lambda s: s["start_ns"])
    ids = {s["span_id"] for s in spans}
    tree = Tree(f"trace {trace['trace_id']}: {len(spans)} spans of {len({s['instance'] for s in spans})} sidecars")

    def add(branch: Tree, span: dict[str, Any]) -> None:
        attributes = span["attributes"]
        status = attributes.get("http.response.status_code", attributes.get("error.type", "?"))
        if "rpc.grpc.status_code" in attributes:
            status = Status(int(attributes["rpc.grpc.status_code"])).name
        told = "  ".join(f"{k}={v}" for k, v in attributes.items() if k.startswith("mesh."))
        label = Text.assemble(
            (f"{span['instance']} ", "bold"),
            f"{span['kind']} {span['name']} → {status}  {span['duration_ms']:.2f} ms  ",
            (told, "dim"),
        )
        twig = branch.add(label)
        for child in spans:
            if child["parent_id"] == span["span_id"]:
                add(twig, child)

    for span in spans:
        if span["parent_id"] not in ids:
            add(tree, span)
    return tree
