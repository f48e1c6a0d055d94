"""Which sidecars a control server knows, kept beside the store: after a restart it expects them back.

Without it a server that has just started would take a change for accepted by all while nobody has reconnected yet.
Best effort: a write is tried at most every WRITE_EVERY_S and never holds anything up, and a file that cannot be read
is as good as none; what is lost then is only that expectation.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from pathlib import Path
from typing import Final

from control.hub import Hub
from control.subscription import SidecarInfo, Subscription
from mesh.model.name import Name

log = logging.getLogger(__name__)

FILE: Final = "sidecars.json"
WRITE_EVERY_S: Final = 0.2

_KEYS: Final = ("node", "namespace", "service", "service_version", "instance_id", "sidecar_version")


class Roster:
    """The file ``sidecars.json`` in ``directory``. Belongs to one event loop."""

    def __init__(self, directory: Path) -> None:
        """``directory`` is there already and this server's own (the store holds its lock)."""
        self._path = directory / FILE
        self._written = ""
        self._bell = asyncio.Event()
        self._has_failed = False
        self._turn = threading.Lock()  # a write that was left behind in its thread must not be the last one

    def read(self) -> list[SidecarInfo]:
        """The sidecars of the server before this one; none where there was none."""
        try:
            rows = json.loads(self._path.read_bytes())
            return [_info(row) for row in rows]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s cannot be read (%s): no sidecar is expected back", self._path, error)
            return []

    async def run(self, hub: Hub) -> None:
        """Keep the file as the hub is, until cancelled; what is new then is still written."""
        with hub.observing(self._ring):
            try:
                while True:
                    await self._bell.wait()
                    self._bell.clear()
                    await asyncio.to_thread(self._write, _text(hub))
                    await asyncio.sleep(WRITE_EVERY_S)
            finally:
                self._write(_text(hub))

    def _ring(self, _: Subscription) -> None:
        self._bell.set()

    def _write(self, text: str) -> None:
        with self._turn:
            self._write_in_turn(text)

    def _write_in_turn(self, text: str) -> None:
        if text == self._written:
            return
        fresh = self._path.with_suffix(".tmp")
        try:
            fresh.write_text(text)
            os.replace(fresh, self._path)  # noqa: PTH105 - Path.replace hides that it is atomic
        except OSError as error:
            if not self._has_failed:
                log.warning("%s cannot be written: %s; a restart will not know the sidecars", self._path, error)
            self._has_failed = True
            return
        self._written, self._has_failed = text, False


def _text(hub: Hub) -> str:
    rows = []
    for subscription in hub.sidecars():
        info = subscription.info
        where = ("", "") if info.service is None else (info.service.namespace, info.service.name)
        values = (info.node, *where, info.service_version, info.instance_id, info.sidecar_version)
        rows.append(dict(zip(_KEYS, values, strict=True)))
    return json.dumps(rows, indent=1) + "\n"


def _info(row: dict[str, str]) -> SidecarInfo:
    node, namespace, service, version, instance_id, sidecar_version = (str(row[key]) for key in _KEYS)
    name = Name(namespace, service) if service else None
    return SidecarInfo(node, name, version, instance_id, sidecar_version)
