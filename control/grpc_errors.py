"""Errors as gRPC statuses with google.rpc details, so that programs need not read messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from control.errors import ConflictError, NotFoundError, PreconditionError, StoreError
from mesh.model.errors import InvalidError

DOMAIN: Final = "sidemesh.dev"
"""ErrorInfo.domain of every error that is ours."""

MAX_TEXT_BYTES: Final = 1500
"""Of one error. gRPC refuses trailers of more than 8 KiB by default, and a text stands in them three times: as
grpc-message (percent-encoded), as the message of the status, and in its details."""


async def abort_invalid(context: grpc.aio.ServicerContext[Any, Any], error: InvalidError) -> NoReturn:
    """End the call with INVALID_ARGUMENT and a BadRequest that lists every violation (as far as it fits)."""
    bad = error_details_pb2.BadRequest()
    size = 0
    for violation in error.violations:
        field, description = _clip(violation.field), _clip(violation.message)
        size += len(field.encode()) + len(description.encode()) + 8
        if size > MAX_TEXT_BYTES - 100 and bad.field_violations:
            break
        bad.field_violations.add(field=field, description=description)
    left_out = len(error.violations) - len(bad.field_violations)
    message = "\n".join(str(v) for v in error.violations[: len(bad.field_violations)])
    if left_out:
        message += f"\n… and {left_out} more"
    await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, message, bad)


async def abort_with(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
    """End the call with the status of one of our errors; any other error is raised again."""
    match error:
        case InvalidError():
            await abort_invalid(context, error)
        case ConflictError():
            details = {"current_version": str(error.current), "expected_version": str(error.expected)}
            await _abort(context, grpc.StatusCode.ABORTED, str(error), _info("VERSION_CONFLICT", details))
        case NotFoundError():
            await _abort(context, grpc.StatusCode.NOT_FOUND, str(error), _info("NOT_FOUND"))
        case PreconditionError():
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error), _info(error.reason, error.details))
        case StoreError():
            await _abort(context, grpc.StatusCode.UNAVAILABLE, str(error), _info("STORE_FAILED"))
        case _:
            raise error


def _info(reason: str, metadata: Mapping[str, str] | None = None) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(
        reason=reason, domain=DOMAIN, metadata={key: _clip(value) for key, value in (metadata or {}).items()}
    )


async def _abort(
    context: grpc.aio.ServicerContext[Any, Any], code: grpc.StatusCode, message: str, detail: Message
) -> NoReturn:
    message = _clip(message)
    packed = AnyMessage()
    packed.Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=[packed])
    await context.abort(code, message, trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),))
    raise AssertionError  # abort never returns


def _clip(text: str) -> str:
    """``text`` within the bounds of one error."""
    raw = text.encode()
    return text if len(raw) <= MAX_TEXT_BYTES else raw[:MAX_TEXT_BYTES].decode(errors="ignore") + " …"
