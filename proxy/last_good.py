"""The last good table on disk, for a cold start while the control server is dead.

Written whole to a new file that then takes the old one's place, so a crash or a full disk leaves the old one. A disk
that cannot be written to costs the cold start and nothing else: it is logged and counted.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from google.protobuf.message import DecodeError

from mesh.model.errors import InvalidError
from mesh.model.snapshot import Snapshot
from mesh.model.wire import push_from_snapshot, snapshot_from_push
from protos.mesh.v1 import discovery_pb2

logger = logging.getLogger(__name__)


class LastGood:
    """The file of one sidecar. Its methods block: call them in a thread."""

    def __init__(self, directory: Path, node: str) -> None:
        """``node`` names the file, so that sidecars may share a directory."""
        safe = "".join(c if c.isalnum() or c in "-." else "_" for c in node)
        self.path = directory / f"{safe}.table"
        self.write_failures = 0

    def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot; failing is logged, never raised."""
        fresh = self.path.with_suffix(".new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                file.write(push_from_snapshot(snapshot, "", 0.0).SerializeToString(deterministic=True))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
        except OSError as error:
            self.write_failures += 1
            logger.warning(
                "the last good table could not be kept in %s (%s): a restart without control server lacks it",
                self.path,
                error.strerror,
            )

    def load(self) -> Snapshot | None:
        """The kept snapshot; None where there is none that can be read."""
        try:
            return snapshot_from_push(discovery_pb2.SnapshotPush.FromString(self.path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, DecodeError, InvalidError) as error:
            logger.warning("the last good table in %s cannot be read: %s", self.path, error)
            return None
