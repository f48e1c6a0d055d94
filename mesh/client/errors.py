"""What a call may raise, and its making from gRPC's errors with their google.rpc details."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import grpc
from google.rpc import error_details_pb2, status_pb2

from mesh.model.errors import InvalidError, Violation


class MeshError(Exception):
    """The control server did not do what was asked; the message says why."""


class ConflictError(MeshError):
    """The table is at ``current_version``, not at the one that was expected."""

    def __init__(self, message: str, current_version: int) -> None:
        super().__init__(message)
        self.current_version = current_version


class NotFoundError(MeshError):
    """There is no such resource or version."""


class RefusedError(MeshError):
    """The mesh is not in a state for it. ``reason`` is a word for programs, such as NO_HEALTHY_ENDPOINT."""

    def __init__(self, message: str, reason: str, details: Mapping[str, str]) -> None:
        super().__init__(message)
        self.reason, self.details = reason, dict(details)


class UnreachableError(MeshError):
    """The control server could not be asked, or its answer was lost."""


class RpcFailure(Protocol):
    """What an error of either of gRPC's two kinds of channel tells."""

    def code(self) -> grpc.StatusCode:
        """The status."""

    def details(self) -> str | None:
        """The message."""

    def trailing_metadata(self) -> Iterable[Any] | None:
        """Pairs; google.rpc details are among them."""


def translate(target: str, error: RpcFailure) -> MeshError | InvalidError:
    """Our error for one of gRPC's, with what its google.rpc details say."""
    message = error.details() or error.code().name
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT:
            bad = _detail(error, error_details_pb2.BadRequest())
            fields = [Violation(v.field, v.description) for v in bad.field_violations]
            return InvalidError(fields or [Violation("", message)])
        case grpc.StatusCode.ABORTED:
            info = _detail(error, error_details_pb2.ErrorInfo())
            return ConflictError(message, int(info.metadata.get("current_version", "0")))
        case grpc.StatusCode.NOT_FOUND:
            return NotFoundError(message)
        case grpc.StatusCode.FAILED_PRECONDITION:
            info = _detail(error, error_details_pb2.ErrorInfo())
            return RefusedError(message, info.reason, info.metadata)
        case grpc.StatusCode.UNAVAILABLE:
            said = f"no answer from a control server at {target} (is `mesh control` running there?): {message}"
            return UnreachableError(said)
        case code:
            return UnreachableError(f"the control server at {target} answered {code.name}: {message}")


def _detail(error: RpcFailure, into: Any) -> Any:  # noqa: ANN401 - google.rpc has no types
    """The error's detail of the type of ``into``; ``into`` as it is where there is none."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(into):
                    return into
    return into
