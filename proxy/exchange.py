"""One request to an endpoint and its answer back: read this first.

``Exchange.run`` is the request path, top to bottom. It decides and never touches body bytes: those flow between the
two shells through ``RequestBody`` and ``Attempt``. It is a generator that yields where it has to wait and is resumed
by the trampoline (see ``trampoline.py``), so it needs no asyncio task; each event only says "look again", and the
loops look at what they wait for. What every request does stands in ``run`` itself, since each generator inside
another costs every resumption again; what few do is a step of its own. No line here knows a protocol version.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from typing import TYPE_CHECKING, Final, TypeAlias

from mesh.http.connect import TUNNEL
from mesh.http.grpc import FAILURES, PREVIOUS_ATTEMPTS, GrpcCall, Status, format_timeout
from mesh.http.headers import Headers
from mesh.http.message import HTTP2, IDEMPOTENT_METHODS, SWITCHED, TCP, WEBSOCKET, RequestHead, ResponseHead
from mesh.http.outcome import (
    ClientGone,
    DiscoveryUnavailable,
    ExchangeTimeout,
    InternalError,
    InvalidBackend,
    NeverRegistered,
    NoHealthyEndpoint,
    NoRoute,
    NotImplementedMethod,
    Overflow,
    ProxyError,
    UpstreamProtocolError,
    UpstreamReset,
    ZeroWeights,
)
from mesh.http.trace_context import Trace
from mesh.model.name import Name
from proxy.attempt import Attempt
from proxy.local_answer import LocalAnswer, grpc_status_fields
from proxy.websocket_relay import WebSocketRelay

if TYPE_CHECKING:
    from proxy.dataplane import DataPlane
    from proxy.listener import Listener
    from proxy.ports import BodySink, DownstreamStream, DownstreamTunnel, UpstreamStream
    from proxy.request_body import RequestBody
    from proxy.table import CompiledRule
    from proxy.upstream.endpoint import UpstreamEndpoint
    from proxy.upstream.service import Cluster, UpstreamService

logger = logging.getLogger(__name__)

STALE_CONNECTION: Final = "stale-connection"
HELD_HEAD_S: Final = 0.1  # a unary call that fails sends head and trailers together; a stream's caller waits no longer

Steps: TypeAlias = Generator[None, None, None]
"""What a generator of the request path is: it yields to wait, and looks again when it is resumed."""

_FAILURES: Final = 500  # answers from here on say something of the endpoint's health
_WAKE: Final = object()
"""An event without more to say: a timer, a lookup that is done."""


class Exchange:
    """See the module. What is public here is read by the recorder, the explainer and the admin page."""

    __slots__ = (
        "_steps",
        "answered",
        "attempt",
        "body",
        "cluster",
        "deadline_s",
        "downstream",
        "error",
        "flag",
        "grpc_status",
        "listener",
        "plane",
        "request",
        "request_id",
        "resends",
        "retries",
        "rule",
        "seen_tries",
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
        self.grpc_status: int | None = None
        """Of a gRPC call that is over: its answer's, or what our error is to its caller."""
        self.flag = ""
        self.error: ProxyError | None = None
        self.retries = 0
        self.resends = 0
        self.seen_tries = 0
        """Retries that followed upon an attempt which a program may have seen (gRPC A6: the others do not count)."""
        self.deadline_s = 0.0
        self.started_s = self.plane.clock()
        self.trace: Trace = self.plane.propagation.extract(request.known)
        self.span_id = b""
        self.request_id = b""
        self._steps: Steps | None = None

    # --- the request path -------------------------------------------------------------------------------------------

    def run(self) -> Steps:
        """Carry the request to an endpoint of its route's backend, and the answer back."""
        plane, listener, request, body = self.plane, self.listener, self.request, self.body
        usage = None
        try:
            found = listener.route(self)  # LoopDetected 508, NoRoute 404 NR, NoTable 503 NR
            if isinstance(found, Name):
                found = yield from self._looked_up(found)  # NoRoute 404 NR, DiscoveryUnavailable 503 NC
            rule = self.rule = found
            if rule.timeout_s or (request.grpc is not None and request.grpc.timeout_s):
                self.deadline_s = self.started_s + self._limit_s(rule)
                plane.deadlines.add(self, self.started_s)  # ExchangeTimeout 504 UT is thrown in from here on
            backend = rule.split.only or rule.split.choose(plane.random)
            if backend is None:
                raise _nothing_to_choose(rule)  # InvalidBackend 500 NC, ZeroWeights 503 UH
            cluster = self.cluster = backend.cluster
            service = cluster.service
            if not service.is_known:
                yield from self._endpoints_known(rule, cluster)  # InvalidBackend 500 NC, DiscoveryUnavailable 503 NC
            if service.usage.requests >= service.usage.max_requests:
                raise _overflow(cluster)  # Overflow 503 UO
            skip_pool = request.version == TCP  # which has no pool: each connection is its client's own
            if request.upgrade is not None and request.upgrade not in service.upgrades:
                if request.upgrade == TUNNEL:
                    skip_pool = True  # CONNECT, which the listener has allowed
                else:
                    self._decline_upgrade(cluster)  # NotImplementedMethod 501
            usage = service.usage
            usage.requests += 1
            service.budget.requests += 1
            service.last_used_s = self.started_s

            # Try endpoints until an answer stands.
            certain = request.method not in IDEMPOTENT_METHODS and not request.is_idempotent
            is_graded_at_end = False
            tried: tuple[UpstreamEndpoint, ...] = ()
            head: ResponseHead | None
            while True:
                endpoint = cluster.pick(plane.random, tried)
                if endpoint is None:
                    attempt, head = self._last_answer(cluster)  # NoHealthyEndpoint 503 UH, or what the last one met
                    break
                if self.attempt is None:
                    attempt = self.attempt = Attempt(self, endpoint, self.started_s)
                else:
                    attempt = self._next_attempt(self.attempt, endpoint)
                endpoint.active += 1
                endpoint.requests += 1
                http2 = endpoint.speaks_http2
                if http2 is None:
                    http2 = self.prefers_http2(service)
                attempt.http2 = http2
                stream: UpstreamStream | None = None if skip_pool else endpoint.take(certain=certain, http2=http2)
                if stream is None:
                    yield from self._connected(attempt)
                    stream = attempt.stream
                if stream is not None:
                    attempt.stream = stream
                    added: list[bytes] = [] if request.version == TCP else listener.added_fields(self, attempt)
                    if rule.per_try_s:
                        now = plane.clock()
                        attempt.deadline_s = now + rule.per_try_s
                        plane.deadlines.add(attempt, now)
                    if request.grpc is not None:
                        self._add_grpc_fields(request.grpc, attempt, added)
                    if body is None:
                        stream.start(attempt, request, added, b"", ended=True)
                    else:
                        stream.start(attempt, request, added, body.begin_attempt(), ended=body.ended)
                        body.attach(stream)
                    while attempt.head is None and attempt.error is None:
                        yield
                    if rule.holds_heads and request.grpc is not None:
                        yield from self._outcome_known(attempt)
                head = attempt.head
                if plane.times_answers:
                    attempt.answered_s = plane.clock()
                if (
                    head is not None
                    and attempt.error is None
                    and head.status < _FAILURES
                    and head.status not in rule.retry.codes
                    and not head.not_sent
                    and (request.grpc is None or _may_stand(rule, attempt))
                ):
                    if request.grpc is None and (attempt.ended or head.status == SWITCHED):
                        endpoint.outlier.consecutive_failures = 0
                    else:
                        is_graded_at_end = True  # its status, or its end, has yet to come
                    break
                reason = self._retry_reason(rule, cluster, attempt, tried)
                if reason is None:
                    if head is None or attempt.error is not None:
                        raise attempt.error or InternalError("an attempt ended without an outcome")
                    break
                plane.on_retry(self, attempt, reason)
                if attempt.deadline_s:
                    plane.deadlines.discard(attempt)
                if reason == STALE_CONNECTION:
                    skip_pool = True  # it says nothing of the endpoint: ask it afresh
                else:
                    self.retries += 1
                    if attempt.error is None or not attempt.error.not_sent:
                        self.seen_tries += 1
                    tried += (endpoint,)
                    if body is not None:
                        body.detach()  # what comes meanwhile is kept for the next attempt, and bounded
                    yield from self._backoff(self._wait_s(rule, attempt))

            # Commit to the answer and see it through to its end.
            if request.upgrade is not None and request.version == HTTP2 and 200 <= head.status < 300:
                message = f"{attempt.endpoint} answered {head.status} instead of changing the protocol"
                raise UpstreamProtocolError(message)  # to a CONNECT it would say that it had (RFC 8441 §5)
            listener.finish_head(self, attempt, head)
            self.status = head.status
            self.answered = attempt.is_committed = True
            if head.status == SWITCHED:  # an upgrade, CONNECT or TCP
                yield from self._tunnel(attempt, head)
                return
            self.downstream.respond(head, attempt.pieces, attempt.trailers, ended=attempt.ended)
            if not attempt.ended:
                self.on_downstream_writable(writable=self.downstream.is_writable)
                while not attempt.ended:
                    yield
                    if attempt.error is not None:
                        service.record(attempt.endpoint, attempt.error)
                        raise attempt.error  # UpstreamReset 503 UC, PerTryTimeout 504 UT: the answer breaks off
            if is_graded_at_end:
                service.record(attempt.endpoint, head, attempt.grpc_status)
        except LocalAnswer as local:
            self._answer_locally(local)
        except ProxyError as error:
            if error.__class__ is ExchangeTimeout:
                self._grade_silence(error)
            self._refuse(error)
        except Exception as error:  # the outermost frame: a bug costs this exchange and no other
            logger.exception("bug on the request path")
            self._refuse(InternalError.of(error))
        finally:
            if usage is not None:
                usage.requests -= 1
            self._end()

    def prefers_http2(self, service: UpstreamService) -> bool:
        """How to speak to an endpoint of which nothing is declared: over TLS its ALPN decides, if we offer HTTP/2."""
        request = self.request
        if request.upgrade or request.version == TCP:
            return False
        return service.tls is not None or (request.version == HTTP2 and self.listener.caller_spoke_http2(request))

    def _decline_upgrade(self, cluster: Cluster) -> None:
        """As if it had not been asked (RFC 9110 §7.8); in HTTP/2 there is no such answer (RFC 8441 §4)."""
        request = self.request
        if request.version == HTTP2:
            protocol = (request.upgrade or b"").decode("latin-1")
            message = f"{cluster.name}: tunnels of {protocol!r} are not carried; its policy names none (upgrades)"
            raise NotImplementedMethod(message)
        request.upgrade = None

    # --- tunnels ----------------------------------------------------------------------------------------------------

    def _tunnel(self, attempt: Attempt, head: ResponseHead) -> Steps:
        """Relay bytes both ways until both sides have ended. The route's timeouts were for the handshake."""
        self.plane.deadlines.discard(self)
        self.plane.deadlines.discard(attempt)
        if self.request.version == TCP:
            self.plane.recorder.on_connection(self)
        elif self.request.upgrade == TUNNEL:
            head = ResponseHead(200, head.fields)
            self.status = head.status
        stream = attempt.stream
        server: BodySink | None = stream
        relay: WebSocketRelay | None = None
        tunnel: DownstreamTunnel = self.downstream.open_tunnel(head, self)
        if self.request.upgrade == WEBSOCKET and stream is not None:
            tunnel = relay = WebSocketRelay(self, tunnel, stream)
            server = relay.to_server
        self.downstream = tunnel
        body = self.body = tunnel.body
        assert body is not None  # noqa: S101 - a tunnel has one
        try:
            if attempt.pieces:
                tunnel.send_data(b"".join(attempt.pieces))
                attempt.pieces.clear()
            if server is not None:
                early = body.begin_attempt()
                if early:
                    server.send_data(early)
                body.attach(server)
                if body.ended:
                    server.send_end([])
            if attempt.ended:
                tunnel.send_end([])
            if relay is not None and self.listener.tells_websockets:
                relay.tell()
            self.on_downstream_writable(writable=tunnel.is_writable)
            while not (attempt.ended and body.ended):
                if attempt.error is not None:
                    raise attempt.error
                yield
        finally:
            if relay is not None:
                relay.close()
            if stream is not None:
                stream.cancel()

    # --- what gRPC asks for besides ---------------------------------------------------------------------------------

    def _limit_s(self, rule: CompiledRule) -> float:
        """How long the whole exchange may take: by its rule, and by its caller's own deadline."""
        call = self.request.grpc
        return call.timeout_s if call is not None and self._is_callers_limit() else rule.timeout_s

    def _is_callers_limit(self) -> bool:
        """The caller's own deadline comes before ``timeouts.request``."""
        call, limit_s = self.request.grpc, 0.0 if self.rule is None else self.rule.timeout_s
        return call is not None and call.timeout_s > 0.0 and not 0.0 < limit_s <= call.timeout_s

    def _add_grpc_fields(self, call: GrpcCall, attempt: Attempt, added: list[bytes]) -> None:
        """What is left of the caller's time for this attempt, and how many came before it (gRPC A6)."""
        if call.timeout_s:
            until_s = min(self.deadline_s, attempt.deadline_s or self.deadline_s)
            added.append(b"grpc-timeout: " + format_timeout(until_s - self.plane.clock()))
        before = call.previous_attempts + self.seen_tries
        if before:
            added.append(b"%b: %d" % (PREVIOUS_ATTEMPTS, before))

    def _outcome_known(self, attempt: Attempt) -> Steps:
        """Hold a call's head until its first message, its trailers or 100 ms: a failing unary call has no message.

        Only where the call could be made again. A server that sends its head and then thinks costs those 100 ms once.
        """
        body = self.body
        if attempt.head is None or not (body is None or (body.ended and body.is_replayable)):
            return
        attempt.is_held = True
        over, timer = self._wake_after(HELD_HEAD_S)
        try:
            while not (attempt.ended or attempt.pieces or attempt.error or over[0]):
                yield
        finally:
            timer.cancel()
            attempt.is_held = False

    def _break_off(self, error: ProxyError) -> None:
        """An answer that has begun cannot be whole any more."""
        if self.request.grpc is not None and error.__class__ is not ClientGone:
            self.downstream.send_end(grpc_status_fields(error))  # gRPC has a place for it: the trailers
        else:
            self.downstream.abort()

    # --- steps of it that are rarely taken --------------------------------------------------------------------------

    def _looked_up(self, name: Name) -> Generator[None, None, CompiledRule]:
        """Wait until discovery has been asked for a service seen for the first time."""
        self.plane.look_up(self, name)
        yield
        rule = self.listener.route(self)
        if isinstance(rule, Name):
            message = f"discovery told of {rule} and took it back; try again"
            raise DiscoveryUnavailable(message)
        return rule

    def _endpoints_known(self, rule: CompiledRule, cluster: Cluster) -> Steps:
        """Wait for the first news of a service that a route names."""
        if cluster.service.is_known is False:
            message = f"route {rule.label} sends to {cluster.name}, which discovery does not know"
            raise InvalidBackend(message)
        self.plane.look_up(self, cluster.service.name)
        try:
            yield
        except (NoRoute, NeverRegistered) as error:
            message = f"route {rule.label} sends to {cluster.name}: {error}"
            raise InvalidBackend(message) from error

    def _next_attempt(self, before: Attempt, endpoint: UpstreamEndpoint) -> Attempt:
        before.endpoint.active -= 1
        before.detach()
        if before.deadline_s:
            self.plane.deadlines.discard(before)
        if self.body is not None:
            self.body.detach()
        attempt = self.attempt = Attempt(self, endpoint, self.plane.clock())
        return attempt

    def _connected(self, attempt: Attempt) -> Steps:
        """Wait for a connection: then the attempt has a stream, else its error."""
        if self.request.version == TCP or self.request.upgrade == TUNNEL:
            attempt.wants_fresh = True
            attempt.http2 = False  # whatever it says that requests may be spoken in
        try:
            attempt.endpoint.connect_for(attempt)
        except Overflow as error:
            attempt.error = error
        while attempt.stream is None and attempt.error is None:
            yield

    def _wait_s(self, rule: CompiledRule, attempt: Attempt) -> float:
        """Before the next try; a gRPC server may say it itself."""
        pushback_s = attempt.pushback_s
        return rule.retry.wait_s(self.retries, self.plane.random) if pushback_s is None else pushback_s

    def _backoff(self, wait_s: float) -> Steps:
        if wait_s <= 0.0:
            return
        over, timer = self._wake_after(wait_s)
        try:
            while not over[0]:
                yield
        finally:
            timer.cancel()

    def _wake_after(self, wait_s: float) -> tuple[list[bool], asyncio.TimerHandle]:
        """A timer that resumes us, and whether it has."""
        over = [False]

        def wake() -> None:
            over[0] = True
            self.post(_WAKE)
            self.plane.trampoline.drain()

        return over, self.plane.call_later(wait_s, wake)

    def _retry_reason(
        self, rule: CompiledRule, cluster: Cluster, attempt: Attempt, tried: tuple[UpstreamEndpoint, ...]
    ) -> str | None:
        """Why to try again; None where the outcome stands, with the response flag set if retries were used up."""
        outcome = attempt.error or attempt.head
        assert outcome is not None  # noqa: S101 - called with the outcome of an attempt
        grpc_status: int | None = None
        idempotent = self.request.is_idempotent
        is_stale = isinstance(outcome, UpstreamReset) and attempt.reused and self.resends == self.retries  # once
        if is_stale and self._may_send_again(idempotent=idempotent):
            return STALE_CONNECTION
        if self.request.grpc is not None:
            if attempt.error is not None:
                grpc_status = int(attempt.error.grpc_status)
            elif not attempt.pieces:
                grpc_status = attempt.grpc_status
        cluster.service.record(attempt.endpoint, outcome, grpc_status)
        reason = rule.retry.reason(outcome, idempotent=idempotent, grpc_status=grpc_status)
        if reason is None or not self._may_send_again(idempotent=True):
            return None
        if attempt.pushback_s is not None and attempt.pushback_s < 0.0:
            return None  # the server wants no retry
        if (
            attempt.error is None
            and not rule.retry.repeats_on_same
            and not cluster.has_other_than((*tried, attempt.endpoint))
        ):
            return None  # nobody else is left to ask: its answer stands
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

    def _last_answer(self, cluster: Cluster) -> tuple[Attempt, ResponseHead]:
        """Nobody is left to ask: what the last attempt brought stands, an answer or an error."""
        attempt = self.attempt
        if attempt is not None:
            if attempt.error is not None:
                raise attempt.error
            if attempt.head is not None:
                return attempt, attempt.head
        known = len(cluster.service.endpoints)
        message = (
            f"no healthy endpoint in {cluster.name}: discovery tells of {known} for the service; "
            f"see /clusters on the sidecar's admin port"
        )
        raise NoHealthyEndpoint(message, not_sent=True)

    def _refuse(self, error: ProxyError) -> None:
        """Answer ourselves, or make a broken answer visible where one had begun."""
        self.error = error
        self.flag = self.flag or error.flag
        if self.answered:
            self._break_off(error)
        else:
            self.answered = True
            self.status = error.http_status
            if self.request.grpc is not None and error.__class__ is not ClientGone:
                self.status = 200  # the outcome stands in gRPC's status
            self.listener.refuse(self, error)

    def _grade_silence(self, error: ProxyError) -> None:
        """Nobody's answer came in time: an endpoint's doing where it had the whole request and ``timeouts.request``."""
        attempt, cluster = self.attempt, self.cluster
        if attempt is None or cluster is None or attempt.stream is None or attempt.head is not None:
            return
        if (self.body is None or self.body.ended) and not self._is_callers_limit():
            cluster.service.record(attempt.endpoint, error)

    def _answer_locally(self, local: LocalAnswer) -> None:
        self.answered = True
        self.status = local.head.status
        self.downstream.respond(local.head, local.pieces, [], ended=True)

    def _end(self) -> None:
        """Give everything back. Never awaits."""
        self._steps = None
        attempt, body = self.attempt, self.body
        if self.request.grpc is not None:
            self.grpc_status = self._final_grpc_status(attempt)
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

    def _final_grpc_status(self, attempt: Attempt | None) -> int:
        if self.error is not None:
            return int(self.error.grpc_status)
        status = None if attempt is None else attempt.grpc_status
        return int(Status.UNKNOWN) if status is None else status

    # --- what the shells and timers call ----------------------------------------------------------------------------

    def begin(self) -> None:
        """Run to the first wait. Called once."""
        self.plane.exchanges.add(self)
        self._steps = self.run()
        self.resume(None)

    def post(self, what: object) -> None:
        """Queue an event; it is delivered when the outermost callback drains."""
        self.plane.trampoline.ready.append((self, what))

    def resume(self, what: object) -> None:
        """See Resumable. The outermost frame of every exchange."""
        steps, is_news = self._steps, what.__class__ is Attempt
        if steps is None or (is_news and what is not self.attempt):
            return  # over already, or news of an attempt that was given up
        try:
            if not is_news and isinstance(what, ProxyError):
                steps.throw(what)
            else:
                for _ in steps:  # once: asked like this it says that it is over without an exception
                    break
        except StopIteration:
            pass
        except Exception:
            logger.exception("bug at the end of an exchange")

    def on_deadline(self) -> None:
        """``timeouts.request`` has passed, or the caller's own deadline."""
        call = self.request.grpc
        limit, whose = 0.0 if self.rule is None else self.rule.timeout_s, "timeouts.request"
        if call is not None and self._is_callers_limit():
            limit, whose = call.timeout_s, "the caller's grpc-timeout"
        self.post(ExchangeTimeout(f"no complete answer within {whose} ({limit:g} s)"))

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


def _may_stand(rule: CompiledRule, attempt: Attempt) -> bool:
    """Tell whether a call's answer says nothing, so far, for which it might be made again."""
    status = None if attempt.pieces else attempt.grpc_status
    return status is None or not (status in FAILURES or status in rule.retry.grpc_codes)


def _nothing_to_choose(rule: CompiledRule) -> ProxyError:
    if rule.split.is_drained:
        return ZeroWeights(f"every backend of route {rule.label} has weight 0: it is drained; set a weight above 0")
    return InvalidBackend(f"route {rule.label} has no backendRefs; add one")


def _overflow(cluster: Cluster) -> Overflow:
    usage = cluster.service.usage
    message = f"{usage.requests} requests in flight, limits.maxRequests is {usage.limits.max_requests}"
    return Overflow(f"{cluster.name}: {message}", not_sent=True)
