"""One request to an endpoint and its answer back: read this first.

``Exchange.run`` is the request path, top to bottom. It decides and never touches body bytes: those flow between the
two shells through ``RequestBody`` and ``Attempt``. It awaits nothing but ``event()``, so it runs without an asyncio
task (see ``trampoline.py``); each event only says "look again", and the loops look at what they wait for. No line
here knows a protocol version.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from mesh.http.headers import Headers
from mesh.http.message import RequestHead, ResponseHead
from mesh.http.outcome import (
    DiscoveryUnavailable,
    ExchangeTimeout,
    InternalError,
    InvalidBackend,
    NoHealthyEndpoint,
    NoRoute,
    Overflow,
    ProxyError,
    UpstreamReset,
    ZeroWeights,
)
from mesh.http.trace_context import Trace
from mesh.model.name import Name
from proxy.attempt import Attempt
from proxy.local_answer import LocalAnswer
from proxy.trampoline import WAITING, event, foreign_await

if TYPE_CHECKING:
    from proxy.dataplane import DataPlane
    from proxy.listener import Listener
    from proxy.ports import DownstreamStream, UpstreamStream
    from proxy.request_body import RequestBody
    from proxy.table import CompiledRule
    from proxy.upstream.endpoint import UpstreamEndpoint
    from proxy.upstream.service import Cluster

logger = logging.getLogger(__name__)

_WAKE = object()
"""An event without more to say: a timer, a lookup that is done."""


class Exchange:
    """See the module. What is public here is read by the recorder, the explainer and the admin page."""

    __slots__ = (
        "_coroutine",
        "answered",
        "attempt",
        "body",
        "cluster",
        "deadline_s",
        "downstream",
        "error",
        "flag",
        "listener",
        "plane",
        "request",
        "request_id",
        "resends",
        "retries",
        "rule",
        "span_id",
        "started_s",
        "status",
        "trace",
    )

    def __init__(
        self, listener: Listener, downstream: DownstreamStream, request: RequestHead, body: RequestBody | None
    ) -> None:
        """``body`` is None where the request has none."""
        self.plane: DataPlane = listener.plane
        self.listener = listener
        self.downstream = downstream
        self.request = request
        self.body = body
        self.rule: CompiledRule | None = None
        self.cluster: Cluster | None = None
        self.attempt: Attempt | None = None
        self.answered = False
        self.status = 0
        self.flag = ""
        self.error: ProxyError | None = None
        self.retries = 0
        self.resends = 0
        self.deadline_s = 0.0
        self.started_s = self.plane.clock()
        self.trace: Trace = self.plane.propagation.extract(request.known)
        self.span_id = b""
        self.request_id = b""
        self._coroutine: Coroutine[Any, Any, None] | None = None

    # --- the request path -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Carry the request to an endpoint of its route's backend, and the answer back."""
        try:
            rule = self.listener.route(self)  # LoopDetected 508, NoRoute 404 NR, NoTable 503 NR
            if isinstance(rule, Name):
                rule = await self._looked_up(rule)  # NoRoute 404 NR, DiscoveryUnavailable 503 NC
            self.rule = rule
            self._start_deadline(rule)  # ExchangeTimeout 504 UT is thrown in from here on
            cluster = self.cluster = self._choose(rule)  # InvalidBackend 500 NC, ZeroWeights 503 UH
            service = cluster.service
            if service.is_known is None:
                await self._endpoints_known(cluster)  # DiscoveryUnavailable 503 NC
            refusal = service.usage.refusal()
            if refusal is not None:
                raise _overflow(cluster, refusal)  # Overflow 503 UO
            service.last_used_s = self.started_s
            service.usage.requests += 1
            service.budget.requests += 1
            try:
                attempt = await self._send(rule, cluster)  # NoHealthyEndpoint 503 UH, or what the last attempt met
                await self._answer(attempt)  # UpstreamReset 503 UC where the answer breaks off
            finally:
                service.usage.requests -= 1
        except LocalAnswer as local:
            self._answer_locally(local)
        except ProxyError as error:
            self._refuse(error)
        except Exception as error:  # the outermost frame: a bug costs this exchange and no other
            logger.exception("bug on the request path")
            self._refuse(InternalError(f"bug in the sidecar ({type(error).__name__}: {error}); its log has the trace"))
        finally:
            self._end()

    def _choose(self, rule: CompiledRule) -> Cluster:
        backend = rule.split.choose(self.plane.random)
        if backend is None:
            if rule.split.is_drained:
                message = f"every backend of route {rule.label} has weight 0: it is drained; set a weight above 0"
                raise ZeroWeights(message)
            message = f"route {rule.label} has no backendRefs; add one"
            raise InvalidBackend(message)
        cluster = backend.cluster
        if cluster.service.is_known is False:
            message = f"route {rule.label} sends to {cluster.name}, which discovery does not know"
            raise InvalidBackend(message)
        return cluster

    async def _send(self, rule: CompiledRule, cluster: Cluster) -> Attempt:
        """Try endpoints until an answer stands; gives its attempt, or raises what the last one met."""
        tried: tuple[UpstreamEndpoint, ...] = ()
        retry, service, request = rule.retry, cluster.service, self.request
        skip_pool = False
        while True:
            endpoint = cluster.pick(self.plane.random, tried)
            if endpoint is None:
                if self.attempt is not None and self.attempt.error is not None:
                    raise self.attempt.error  # nobody else is left: the last outcome stands
                raise self._no_endpoint(cluster)
            if self.attempt is not None:
                self._give_up(self.attempt)
            attempt = self.attempt = Attempt(self, endpoint, self.plane.clock())
            outcome = await self._try(attempt, rule, skip_pool=skip_pool)
            if (
                isinstance(outcome, UpstreamReset)
                and attempt.reused
                and self._may_send_again(idempotent=request.is_idempotent)
            ):
                skip_pool = True  # a pooled connection that had gone stale says nothing of the endpoint: ask it afresh
                self.plane.on_attempt(self, attempt, "stale-connection")
                continue
            service.record(endpoint, outcome)
            reason = None
            if outcome.__class__ is not ResponseHead or outcome.not_sent or outcome.status in retry.codes:
                reason = self._retry_reason(rule, cluster, outcome)
            self.plane.on_attempt(self, attempt, reason)
            if reason is None:
                if isinstance(outcome, ProxyError):
                    raise outcome
                return attempt
            self.retries += 1
            tried += (endpoint,)
            await self._backoff(retry.wait_s(self.retries, self.plane.random))

    async def _try(self, attempt: Attempt, rule: CompiledRule, *, skip_pool: bool) -> ResponseHead | ProxyError:
        """One attempt, up to its answer's head."""
        endpoint, request, body = attempt.endpoint, self.request, self.body
        endpoint.active += 1
        endpoint.requests += 1
        stream: UpstreamStream | None = None if skip_pool else endpoint.take(certain=not request.is_idempotent)
        if stream is None:
            try:
                endpoint.connect_for(attempt)
            except Overflow as error:
                attempt.error = error
                return error
            while attempt.stream is None:
                await event()
                if attempt.error is not None:
                    return attempt.error
            stream = attempt.stream
        else:
            attempt.stream = stream
        added = self.listener.added_fields(self, attempt)
        if rule.per_try_s:
            attempt.deadline_s = self.plane.clock() + rule.per_try_s
            self.plane.deadlines.add(attempt)
        if body is None:
            stream.start(attempt, request, added, b"", ended=True)
        else:
            stream.start(attempt, request, added, body.begin_attempt(), ended=body.ended)
            body.attach(stream)
        while attempt.head is None and attempt.error is None:
            await event()
        if attempt.deadline_s:
            self.plane.deadlines.discard(attempt)
        return attempt.error or attempt.head or InternalError("an attempt ended without an outcome")

    async def _answer(self, attempt: Attempt) -> None:
        """Commit to the attempt's answer and see it through to its end."""
        head, downstream = attempt.head, self.downstream
        assert head is not None  # noqa: S101 - _send gives only attempts that were answered
        self.listener.finish_head(self, head)
        self.status = head.status
        self.answered = attempt.is_committed = True
        downstream.respond(head, attempt.pieces, attempt.trailers, ended=attempt.ended)
        if attempt.stream is not None:
            if downstream.is_writable:
                attempt.stream.resume_reading()
            else:
                attempt.stream.pause()
        while not attempt.ended:
            await event()
            if attempt.error is not None:
                raise attempt.error

    # --- steps of it that are rarely taken --------------------------------------------------------------------------

    async def _looked_up(self, name: Name) -> CompiledRule:
        """Wait until discovery has been asked for a service seen for the first time."""
        self.plane.look_up(self, name)
        await event()
        rule = self.listener.route(self)
        if isinstance(rule, Name):
            message = f"discovery told of {rule} and took it back; try again"
            raise DiscoveryUnavailable(message)
        return rule

    async def _endpoints_known(self, cluster: Cluster) -> None:
        """Wait for the first news of a service that a route names."""
        self.plane.look_up(self, cluster.service.name)
        try:
            await event()
        except NoRoute as error:
            message = f"backend {cluster.name} is not known to discovery"
            raise InvalidBackend(message) from error

    async def _backoff(self, wait_s: float) -> None:
        if wait_s <= 0.0:
            return
        over = [False]

        def wake() -> None:
            over[0] = True
            self.post(_WAKE)
            self.plane.trampoline.drain()

        timer = self.plane.call_later(wait_s, wake)
        try:
            while not over[0]:
                await event()
        finally:
            timer.cancel()

    def _retry_reason(self, rule: CompiledRule, cluster: Cluster, outcome: ResponseHead | ProxyError) -> str | None:
        """Why to try again; None where the outcome stands, with the response flag set if retries were used up."""
        reason = rule.retry.reason(outcome, idempotent=self.request.is_idempotent)
        if reason is None or not self._may_send_again(idempotent=True):
            return None
        if self.retries >= rule.retry.attempts:
            if rule.retry.attempts:
                self.flag = "URX"
            return None
        if not cluster.service.budget.try_spend(self.plane.clock()):
            self.flag = "URX"
            self.plane.on_budget_exhausted(cluster)
            return None
        return reason

    def _may_send_again(self, *, idempotent: bool) -> bool:
        return idempotent and (self.body is None or self.body.is_replayable)

    def _no_endpoint(self, cluster: Cluster) -> NoHealthyEndpoint:
        known = len(cluster.service.endpoints)
        return NoHealthyEndpoint(
            f"no healthy endpoint in {cluster.name}: discovery tells of {known} for the service; "
            f"see /clusters on the sidecar's admin port",
            not_sent=True,
        )

    def _give_up(self, attempt: Attempt) -> None:
        attempt.endpoint.active -= 1
        attempt.detach()
        if attempt.deadline_s:
            self.plane.deadlines.discard(attempt)
        if self.body is not None:
            self.body.detach()

    def _refuse(self, error: ProxyError) -> None:
        """Answer ourselves, or make a broken answer visible where one had begun."""
        self.error = error
        self.flag = self.flag or error.flag
        if self.answered:
            self.downstream.abort()
        else:
            self.answered = True
            self.status = error.http_status
            self.listener.refuse(self, error)

    def _answer_locally(self, local: LocalAnswer) -> None:
        self.answered = True
        self.status = local.head.status
        self.downstream.respond(local.head, local.pieces, [], ended=True)

    def _start_deadline(self, rule: CompiledRule) -> None:
        if rule.timeout_s:
            self.deadline_s = self.started_s + rule.timeout_s
            self.plane.deadlines.add(self)

    def _end(self) -> None:
        """Give everything back. Never awaits."""
        self._coroutine = None
        attempt, body = self.attempt, self.body
        if attempt is not None:
            attempt.endpoint.active -= 1
            if not attempt.ended or attempt.error is not None:
                attempt.detach()
            if attempt.deadline_s:
                self.plane.deadlines.discard(attempt)
        if self.deadline_s:
            self.plane.deadlines.discard(self)
        if body is not None:
            body.detach()
        self.plane.exchanges.discard(self)
        try:
            self.plane.record(self)
        finally:
            self.attempt = None  # an attempt knows its exchange: without the cycle both are freed here, not by the gc
            self.downstream.exchange_done(request_ended=body is None or body.ended)

    # --- what the shells and timers call ----------------------------------------------------------------------------

    def begin(self) -> None:
        """Run to the first wait. Called once."""
        self.plane.exchanges.add(self)
        self._coroutine = self.run()
        self.resume(None)

    def post(self, what: object) -> None:
        """Queue an event; it is delivered when the outermost callback drains."""
        self.plane.trampoline.ready.append((self, what))

    def resume(self, what: object) -> None:
        """See Resumable. The outermost frame of every exchange."""
        coroutine = self._coroutine
        if coroutine is None or (what.__class__ is Attempt and what is not self.attempt):
            return  # over already, or news of an attempt that was given up
        try:
            yielded = coroutine.throw(what) if isinstance(what, ProxyError) else coroutine.send(what)
            if yielded is not WAITING:
                coroutine.throw(foreign_await(yielded))
        except StopIteration:
            pass
        except Exception:
            logger.exception("bug at the end of an exchange")

    def on_deadline(self) -> None:
        """``timeouts.request`` has passed."""
        limit = self.rule.timeout_s if self.rule else 0.0
        self.post(ExchangeTimeout(f"no complete answer within timeouts.request ({limit:g} s)"))

    def on_informational(self, head: ResponseHead) -> None:
        """An endpoint sent a 1xx answer."""
        if not self.answered:
            self.downstream.send_informational(head)

    def on_upstream_writable(self, *, writable: bool) -> None:
        """The endpoint takes the request body (again), or is full."""
        if self.body is not None:
            self.body.on_writable(writable=writable)

    def on_downstream_writable(self, *, writable: bool) -> None:
        """The client takes the answer (again), or is slow: then the endpoint is paused."""
        attempt = self.attempt
        if attempt is not None and attempt.is_committed and attempt.stream is not None:
            if writable:
                attempt.stream.resume_reading()
            else:
                attempt.stream.pause()

    @property
    def request_trailers(self) -> Headers:
        """The trailers the client sent with its body."""
        return [] if self.body is None else self.body.trailers


def _overflow(cluster: Cluster, refusal: str) -> Overflow:
    return Overflow(f"{cluster.name}: {refusal}", not_sent=True)
