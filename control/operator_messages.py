"""What the operator API answers with, as messages."""

from __future__ import annotations

from typing import Final

from control.answers import Answer, Result
from control.ledger import Outcome
from control.store.base import Action, Change, Revision
from control.subscription import State, Subscription
from mesh.model.wire import encode_duration, encode_kind, encode_name, encode_snapshot_id, encode_timestamp
from protos.mesh.v1 import operator_pb2

_ACTIONS: Final = {
    Action.CREATED: operator_pb2.ResourceChange.ACTION_CREATED,
    Action.UPDATED: operator_pb2.ResourceChange.ACTION_UPDATED,
    Action.DELETED: operator_pb2.ResourceChange.ACTION_DELETED,
    Action.UNCHANGED: operator_pb2.ResourceChange.ACTION_UNCHANGED,
}
_RESULTS: Final = {
    Result.ACKED: operator_pb2.SidecarAnswer.RESULT_ACKED,
    Result.NACKED: operator_pb2.SidecarAnswer.RESULT_NACKED,
    Result.SILENT: operator_pb2.SidecarAnswer.RESULT_SILENT,
}
_STATES: Final = {
    State.PENDING: operator_pb2.SidecarStatus.STATE_PENDING,
    State.ACKED: operator_pb2.SidecarStatus.STATE_ACKED,
    State.NACKED: operator_pb2.SidecarStatus.STATE_NACKED,
    State.DISCONNECTED: operator_pb2.SidecarStatus.STATE_DISCONNECTED,
}


def change_response(outcome: Outcome) -> operator_pb2.ChangeResponse:
    """The answer to a change."""
    return operator_pb2.ChangeResponse(
        previous_version=outcome.previous_version,
        version=outcome.version,
        changes=[change_message(change) for change in outcome.plan.changes],
        warnings=outcome.plan.warnings,
        answers=[answer_message(answer) for answer in outcome.answers],
    )


def change_message(change: Change) -> operator_pb2.ResourceChange:
    """One resource's part in a change."""
    return operator_pb2.ResourceChange(
        kind=encode_kind(change.kind), name=encode_name(change.name), action=_ACTIONS[change.action]
    )


def answer_message(answer: Answer) -> operator_pb2.SidecarAnswer:
    """One sidecar's answer."""
    return operator_pb2.SidecarAnswer(
        node=answer.node, result=_RESULTS[answer.result], reason=answer.reason, took=encode_duration(answer.took_s)
    )


def revision_message(revision: Revision) -> operator_pb2.Revision:
    """One entry of the history."""
    return operator_pb2.Revision(
        version=revision.version,
        when=encode_timestamp(revision.when_unix_s),
        author=revision.author,
        reason=revision.reason,
        changes=[change_message(change) for change in revision.changes],
    )


def sidecar_message(subscription: Subscription) -> operator_pb2.SidecarStatus:
    """One sidecar's state."""
    info = subscription.info
    message = operator_pb2.SidecarStatus(
        node=info.node,
        service_version=info.service_version,
        instance_id=info.instance_id,
        sidecar_version=info.sidecar_version,
        state=_STATES[subscription.state],
        running=encode_snapshot_id(subscription.running),
        reason=subscription.reason,
        since=encode_timestamp(subscription.since),
        peer=info.peer,
    )
    if info.service is not None:
        message.service.CopyFrom(encode_name(info.service))
    return message
