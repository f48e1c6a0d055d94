"""A Python client for operators: everything the ``mesh`` command does, as calls.

    async with MeshClient("127.0.0.1:15010") as mesh:
        change = await mesh.set_weights(Name.parse("reviews"), {"v1": 90, "v2": 10})
        if not change.is_acked_by_all:
            await mesh.rollback(change.previous_version)

``SyncMeshClient`` has the same calls without ``await``, for scripts and programs that have no event loop.

Every call raises one of: ``InvalidError`` (what was asked cannot be; each field named), ``ConflictError`` (the table
has moved on), ``NotFoundError``, ``RefusedError`` (not now; the message says why and what to do), ``UnreachableError``.
All but InvalidError are ``MeshError``. After any of them nothing has changed, except that of ``UnreachableError``
nobody knows: look with ``status`` or ``history``.
"""

from mesh.client.aio import MeshClient
from mesh.client.errors import ConflictError, MeshError, NotFoundError, RefusedError, UnreachableError
from mesh.client.requests import CALL_TIMEOUT_S, DEFAULT_CONTROL, default_author
from mesh.client.sync import SyncMeshClient
from mesh.client.values import (
    DEFAULT_WAIT_S,
    Answer,
    Change,
    ChangeResult,
    Event,
    Options,
    Revision,
    RuleWeights,
    SidecarStatus,
    Status,
    Table,
)

__all__ = [
    "CALL_TIMEOUT_S",
    "DEFAULT_CONTROL",
    "DEFAULT_WAIT_S",
    "Answer",
    "Change",
    "ChangeResult",
    "ConflictError",
    "Event",
    "MeshClient",
    "MeshError",
    "NotFoundError",
    "Options",
    "RefusedError",
    "Revision",
    "RuleWeights",
    "SidecarStatus",
    "Status",
    "SyncMeshClient",
    "Table",
    "UnreachableError",
    "default_author",
]
