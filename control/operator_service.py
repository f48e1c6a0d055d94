"""Operator: the gRPC shell around the ledger. What operators do: see, change, rehearse and undo the table."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc.aio

from control.errors import NotFoundError, RefusedError, StoreError
from control.event_feed import EventFeed
from control.grpc_errors import abort_with
from control.hub import Hub
from control.known_endpoints import KnownEndpoints
from control.ledger import DEFAULT_WAIT_S, Ledger, Options
from control.long_calls import STOPPING, LongCalls
from control.operator_messages import change_response, revision_message, sidecar_message
from control.planning import Plan, plan_apply, plan_delete
from control.weights import rules_on, set_weights
from mesh.model.errors import InvalidError, Violation
from mesh.model.name import Name, is_label
from mesh.model.policy import ServicePolicy
from mesh.model.route import Route
from mesh.model.snapshot import Kind, Snapshot
from mesh.model.validate import check_name
from mesh.model.wire import (
    decode_duration,
    decode_kind,
    decode_name,
    decode_policy,
    decode_route,
    encode_backend_ref,
    encode_name,
    encode_policy,
    encode_route,
    encode_snapshot_id,
)
from protos.mesh.v1 import operator_pb2, operator_pb2_grpc, resource_pb2

log = logging.getLogger(__name__)

DEFAULT_HISTORY: Final = 20
MAX_HISTORY: Final = 1000
MAX_TEXT: Final = 1000

_Context = grpc.aio.ServicerContext[Any, Any]
_T = TypeVar("_T")
_M = TypeVar("_M", resource_pb2.Route, resource_pb2.ServicePolicy)


class OperatorService(operator_pb2_grpc.OperatorServicer):
    """See protos/mesh/v1/operator.proto for what each call means."""

    def __init__(
        self,
        ledger: Ledger,
        hub: Hub,
        endpoints: KnownEndpoints,
        long_calls: LongCalls,
        clock: Callable[[], float],
    ) -> None:
        """``clock`` gives Unix seconds."""
        self._ledger = ledger
        self._hub = hub
        self._endpoints = endpoints
        self._long_calls = long_calls
        self._clock = clock

    async def Apply(self, request: operator_pb2.ApplyRequest, context: _Context) -> operator_pb2.ChangeResponse:
        """Create or replace routes and policies, all or none."""

        async def work() -> operator_pb2.ChangeResponse:
            values = _values(request)

            async def planner(current: Snapshot) -> Plan:
                return plan_apply(current, values, self._clock())

            return change_response(await self._ledger.change(planner, _options(request.options, context)))

        return await _answer(work, context)

    async def Delete(self, request: operator_pb2.DeleteRequest, context: _Context) -> operator_pb2.ChangeResponse:
        """Delete one route or policy."""

        async def work() -> operator_pb2.ChangeResponse:
            kind, name = decode_kind(request.kind), _checked(request.name)

            async def planner(current: Snapshot) -> Plan:
                return plan_delete(current, kind, name)

            return change_response(await self._ledger.change(planner, _options(request.options, context)))

        return await _answer(work, context)

    async def SetWeights(
        self, request: operator_pb2.SetWeightsRequest, context: _Context
    ) -> operator_pb2.ChangeResponse:
        """Set the weights of the subsets of a service."""

        async def work() -> operator_pb2.ChangeResponse:
            options = _options(request.options, context)
            service, weights = decode_name(request.service), _weights(request)

            async def planner(current: Snapshot) -> Plan:
                route = set_weights(current, service, weights, request.route, force=options.is_forced)
                if not options.is_forced:
                    # A subset that gets nothing may be empty: that is how a dead one is taken out of a split.
                    named = [subset for subset, weight in weights.items() if weight]
                    await self._endpoints.require_healthy(current, service, named)
                return plan_apply(current, [route], self._clock())

            return change_response(await self._ledger.change(planner, options))

        return await _answer(work, context)

    async def Rollback(self, request: operator_pb2.RollbackRequest, context: _Context) -> operator_pb2.ChangeResponse:
        """Make the table of an earlier version the newest one."""

        async def work() -> operator_pb2.ChangeResponse:
            options = _options(request.options, context)
            return change_response(await self._ledger.rollback(request.to_version, options))

        return await _answer(work, context)

    async def Get(self, request: operator_pb2.GetRequest, context: _Context) -> operator_pb2.GetResponse:
        """One route or policy."""

        async def work() -> operator_pb2.GetResponse:
            kind, name = decode_kind(request.kind), _checked(request.name)
            snapshot = self._ledger.snapshot
            for resource in snapshot.resources:
                if (resource.kind, resource.name) == (kind, name):
                    return _get_response(snapshot.id.version, resource.value)
            message = f"there is no {kind.value} {name}"
            raise NotFoundError(message)

        return await _answer(work, context)

    async def List(self, request: operator_pb2.ListRequest, context: _Context) -> operator_pb2.ListResponse:
        """All routes and policies, or those of one kind or namespace."""

        async def work() -> operator_pb2.ListResponse:
            kind = decode_kind(request.kind) if request.kind else None
            if request.namespace and not is_label(request.namespace):
                _raise([Violation("namespace", f"{request.namespace!r:.80} is no DNS label")])
            snapshot = await self._ledger.snapshot_at(request.version)
            wanted = [
                resource
                for resource in snapshot.resources
                if kind in (None, resource.kind) and request.namespace in ("", resource.name.namespace)
            ]
            return operator_pb2.ListResponse(
                version=snapshot.id.version,
                routes=[encode_route(r.value) for r in wanted if isinstance(r.value, Route)],
                policies=[encode_policy(r.value) for r in wanted if isinstance(r.value, ServicePolicy)],
            )

        return await _answer(work, context)

    async def GetWeights(
        self, request: operator_pb2.GetWeightsRequest, context: _Context
    ) -> operator_pb2.GetWeightsResponse:
        """The backends of every rule on a service, with their weights."""

        async def work() -> operator_pb2.GetWeightsResponse:
            snapshot = self._ledger.snapshot
            service = decode_name(request.service) if request.HasField("service") else None
            if service is not None:
                _raise(list(check_name(service, "service")))
            rules = [
                operator_pb2.RuleWeights(
                    service=encode_name(parent),
                    route=encode_name(found.route.name),
                    rule=found.route.rule_label(found.index),
                    kind=found.route.kind.value,
                    backend_refs=[encode_backend_ref(ref) for ref in found.rule.backend_refs],
                )
                for found in rules_on(snapshot, service)
                for parent in dict.fromkeys(parent.service for parent in found.route.parents)
                if service in (None, parent)
            ]
            return operator_pb2.GetWeightsResponse(version=snapshot.id.version, rules=rules)

        return await _answer(work, context)

    async def History(self, request: operator_pb2.HistoryRequest, context: _Context) -> operator_pb2.HistoryResponse:
        """Who changed what, when and why; newest first."""

        async def work() -> operator_pb2.HistoryResponse:
            limit = min(request.limit or DEFAULT_HISTORY, MAX_HISTORY)
            revisions = await self._ledger.revisions(limit, request.before_version or None)
            return operator_pb2.HistoryResponse(revisions=[revision_message(revision) for revision in revisions])

        return await _answer(work, context)

    async def Status(self, request: operator_pb2.StatusRequest, context: _Context) -> operator_pb2.StatusResponse:
        """Which sidecars run which version."""
        del request, context
        return operator_pb2.StatusResponse(
            current=encode_snapshot_id(self._ledger.snapshot.id),
            sidecars=[sidecar_message(subscription) for subscription in self._hub.sidecars()],
        )

    async def Watch(
        self, request: operator_pb2.WatchEventsRequest, context: _Context
    ) -> AsyncIterator[operator_pb2.Event]:
        """The state now, then every change of the table and of what the sidecars run."""
        del request
        feed = EventFeed(self._clock)
        with self._long_calls.ringing(feed.bell), self._ledger.observing(feed.revised), self._hub.observing(feed.moved):
            feed.revised(self._ledger.newest)
            for subscription in self._hub.sidecars():
                feed.moved(subscription)
            while not self._long_calls.is_ending and not feed.is_over:
                for event in feed.take():
                    yield event
                await feed.bell.wait()
        if self._long_calls.is_ending:
            await context.abort(grpc.StatusCode.UNAVAILABLE, STOPPING)
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "this client did not keep up with the events; watch again"
        )


async def _answer(work: Callable[[], Awaitable[_T]], context: _Context) -> _T:
    """Run ``work``; our errors become statuses with details."""
    try:
        return await work()
    except (InvalidError, RefusedError, StoreError) as error:
        await abort_with(context, error)


def _checked(message: resource_pb2.Name) -> Name:
    """The name of a resource. Raises InvalidError."""
    name = decode_name(message)
    _raise(list(check_name(name, "name")))
    return name


def _raise(problems: list[Violation]) -> None:
    if problems:
        raise InvalidError(problems)


def _options(message: operator_pb2.ChangeOptions, context: _Context) -> Options:
    """The options of a change. Without an author the peer's address stands in the history."""
    problems = [
        Violation(f"options.{key}", f"has more than {MAX_TEXT} characters")
        for key in ("author", "reason")
        if len(getattr(message, key)) > MAX_TEXT
    ]
    wait_s = decode_duration(message.wait) if message.HasField("wait") else DEFAULT_WAIT_S
    if wait_s < 0:
        problems.append(Violation("options.wait", "is negative"))
    _raise(problems)
    return Options(
        author=message.author or str(context.peer()),
        reason=message.reason,
        expect_version=message.expect_version if message.HasField("expect_version") else None,
        is_dry_run=message.dry_run,
        wait_s=wait_s,
        is_forced=message.force,
    )


def _values(request: operator_pb2.ApplyRequest) -> list[Route | ServicePolicy]:
    """All resources of the request; every one that cannot be read is reported."""
    values: list[Route | ServicePolicy] = []
    problems: list[Violation] = []

    def read(kind: Kind, message: _M, decode: Callable[[_M], Route | ServicePolicy]) -> None:
        try:
            values.append(decode(message))
        except InvalidError as error:
            label = f"{kind.value}/{decode_name(message.name)}"
            problems.extend(Violation(f"{label}.{v.field}", v.message) for v in error.violations)

    for route in request.routes:
        read(Kind.ROUTE, route, decode_route)
    for policy in request.policies:
        read(Kind.SERVICE_POLICY, policy, decode_policy)
    if not values and not problems:
        problems.append(Violation("routes", "the request names no route and no policy"))
    _raise(problems)
    return values


def _weights(request: operator_pb2.SetWeightsRequest) -> dict[str, int]:
    weights: dict[str, int] = {}
    problems = []
    for i, item in enumerate(request.weights):
        if item.subset in weights:
            problems.append(Violation(f"weights[{i}].subset", f"{item.subset!r} is given twice"))
        if not item.HasField("weight"):
            problems.append(Violation(f"weights[{i}].weight", "must be given; 0 sends nothing"))
        weights[item.subset] = item.weight
    _raise(problems)
    return weights


def _get_response(version: int, value: Route | ServicePolicy) -> operator_pb2.GetResponse:
    if isinstance(value, Route):
        return operator_pb2.GetResponse(version=version, route=encode_route(value))
    return operator_pb2.GetResponse(version=version, policy=encode_policy(value))
