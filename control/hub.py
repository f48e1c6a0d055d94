"""The meeting point of the one table and all sidecars: who is connected, what each has, who waits for answers.

Every stream writes the same bytes object. Streams are told that there is something newer and fetch it when they can
write, so a slow one skips what it missed and delays nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from control.answers import Answer, Result, Waiting
from control.counters import Counters
from control.publication import Publication
from control.subscription import RECONNECT_GRACE_S, SidecarInfo, Subscription
from mesh.model.name import Name
from mesh.model.snapshot import Snapshot, SnapshotId

FORGET_DISCONNECTED_S: Final = 900.0
"""How long ``mesh status`` tells of a sidecar whose stream broke."""

MAX_DISCONNECTED: Final = 1000

EXPECT_BACK_S: Final = 3.0
"""So long a sidecar whose stream broke is asked all the same: if it lives, it has reconnected by then. One that this
server knows from before its own start may have waited longer: RECONNECT_GRACE_S."""


class Stream:
    """A connected sidecar's stream: its subscription and a bell that rings when there is something to send."""

    def __init__(self, subscription: Subscription) -> None:
        """Made by ``Hub.connect``."""
        self.subscription = subscription
        self.bell = asyncio.Event()
        self.over: str | None = None
        """Why there is nothing more to read, once that is so."""
        self.is_goodbye = False
        """It ended as it should: the sidecar closed its side."""
        self.replaced_by: str | None = None
        """The peer of a newer stream of the same node, which this one has to make way for."""


class Hub:
    """All sidecars and the newest publication. Belongs to one event loop; ``clock`` gives Unix seconds."""

    def __init__(self, snapshot: Snapshot, published_unix_s: float, clock: Callable[[], float]) -> None:
        """``snapshot`` is the store's newest."""
        self._clock = clock
        self._published = 0
        self.current = Publication.of(snapshot, self._next_nonce(snapshot), published_unix_s)
        self.counters = Counters()
        self._streams: dict[str, Stream] = {}
        self._gone: dict[str, Subscription] = {}
        self._expected: dict[str, float] = {}
        """Until when those without a stream are asked all the same."""
        self._waiting: set[Waiting] = set()
        self._observers: set[Callable[[Subscription], None]] = set()
        self._endpoint_bells: set[asyncio.Event] = set()

    # --- the table ---

    def publish(self, snapshot: Snapshot, published_unix_s: float) -> Waiting:
        """Make ``snapshot`` the current one and wake every stream. Never waits.

        The returned record collects the answers of all sidecars connected now, and of those lost a moment ago: they
        may well carry traffic by an older table. Hand it to ``answers``.
        """
        self.current = Publication.of(snapshot, self._next_nonce(snapshot), published_unix_s)
        self._expected = {node: until for node, until in self._expected.items() if until >= published_unix_s}
        waiting = Waiting(snapshot.id, published_unix_s, self._streams.keys() | self._expected.keys())
        self._waiting.add(waiting)
        for stream in self._streams.values():
            stream.bell.set()
        return waiting

    async def answers(self, waiting: Waiting, timeout_s: float) -> list[Answer]:
        """Wait until every sidecar of ``waiting`` has answered, at most ``timeout_s``; in order of node."""
        try:
            async with asyncio.timeout(timeout_s):
                await waiting.done.wait()
        except TimeoutError:
            now = self._clock()
            for node in list(waiting.open):
                gone = self._gone.get(node)
                state = (
                    ""
                    if gone is None
                    else f": {'' if gone.is_recalled else 'its control stream is broken, '}{gone.reason}"
                )
                waiting.record(node, Result.SILENT, f"no answer within {timeout_s:g} s{state}", now)
        finally:
            self._waiting.discard(waiting)
        return [waiting.answers[node] for node in sorted(waiting.answers)]

    def _next_nonce(self, snapshot: Snapshot) -> str:
        self._published += 1
        return f"{snapshot.id.version}-{self._published}"

    # --- the sidecars ---

    def expect(self, known: Iterable[SidecarInfo]) -> None:
        """Take in the sidecars of the server before this one: they carry traffic and are about to connect."""
        now = self._clock()
        for info in known:
            self._gone[info.node] = Subscription.recalled(info, now)
            self._expected[info.node] = now + RECONNECT_GRACE_S

    def connect(self, info: SidecarInfo, running: SnapshotId) -> Stream:
        """Take a sidecar's stream in. An older stream of the same node is told to make way."""
        self.counters.hellos += 1
        older = self._streams.pop(info.node, None)
        if older is not None:
            older.replaced_by = info.peer
            older.bell.set()
        before = older.subscription if older else self._gone.pop(info.node, None)
        self._gone.pop(info.node, None)
        self._expected.pop(info.node, None)
        subscription = Subscription(info, running=running, since=self._clock())
        if before is not None:
            # It says again what it sees right after this; until then the last word holds, as a drain may wait on it.
            subscription.endpoints = dict(before.endpoints)
        stream = Stream(subscription)
        stream.bell.set()
        self._streams[info.node] = stream
        return stream

    def disconnect(self, stream: Stream, *, why: str, is_goodbye: bool) -> None:
        """The stream has ended. A goodbye (the sidecar closed it in order) is forgotten, a break is remembered."""
        subscription, now = stream.subscription, self._clock()
        node = subscription.info.node
        if self._streams.get(node) is not stream:
            return
        del self._streams[node]
        subscription.disconnected(why, now)
        if not is_goodbye:
            self._gone[node] = subscription
            self._expected[node] = now + EXPECT_BACK_S
            self._forget(now)
        for waiting in self._waiting:
            waiting.record(node, Result.SILENT, "disconnected", now)
        self._tell(subscription)
        self._wake_endpoint_waiters()

    def _forget(self, now: float) -> None:
        old = [n for n, s in self._gone.items() if now - s.since > FORGET_DISCONNECTED_S]
        for node in old + list(self._gone)[: max(0, len(self._gone) - len(old) - MAX_DISCONNECTED)]:
            self._gone.pop(node, None)
            self._expected.pop(node, None)

    def take(self, stream: Stream) -> bytes | None:
        """What to write to this stream now, noted as sent; None where it has the newest already."""
        stream.bell.clear()
        publication, subscription = self.current, stream.subscription
        if subscription.nonce == publication.nonce:
            return None
        is_known = subscription.running == publication.snapshot.id
        subscription.pushed(publication.snapshot.id, publication.nonce, self._clock())
        self.counters.pushes += 1
        self.counters.resumed += is_known
        if is_known:
            self._settle(subscription, Result.ACKED, "")
        self._tell(subscription)
        body = publication.unchanged if is_known else publication.whole
        self.counters.pushed_bytes += len(body)
        return body

    def acked(self, stream: Stream, nonce: str) -> None:
        """Take an ACK."""
        subscription = stream.subscription
        if not subscription.acked(nonce, self._clock()):
            self.counters.stale_answers += 1
            return
        self.counters.acks += 1
        self._count_answer(subscription)
        self._settle(subscription, Result.ACKED, "")
        self._tell(subscription)

    def nacked(self, stream: Stream, nonce: str, reason: str, running: SnapshotId) -> None:
        """Take a NACK."""
        subscription = stream.subscription
        if not subscription.nacked(nonce, reason, running, self._clock()):
            self.counters.stale_answers += 1
            return
        self.counters.nacks += 1
        self._count_answer(subscription)
        self._settle(subscription, Result.NACKED, subscription.reason)
        self._tell(subscription)

    def _count_answer(self, subscription: Subscription) -> None:
        self.counters.observe_push(max(0.0, self._clock() - subscription.sent_at))

    def _settle(self, subscription: Subscription, result: Result, reason: str) -> None:
        """Hand an answer to those who wait for it. An answer to a later version answers the earlier ones too."""
        now = self._clock()
        for waiting in self._waiting:
            asked, got = waiting.snapshot, subscription.sent
            if got.epoch == asked.epoch and got.version >= asked.version:
                later = f"answered version {got.version}, which replaced it" if got.version > asked.version else ""
                waiting.record(subscription.info.node, result, reason or later, now)

    def saw_endpoints(self, stream: Stream, service: Name, ids: frozenset[str] | None) -> None:
        """Take an endpoint state; None: the service is no longer watched. Raises ProtocolError."""
        stream.subscription.saw_endpoints(service, ids)
        self._wake_endpoint_waiters()

    def _wake_endpoint_waiters(self) -> None:
        for bell in self._endpoint_bells:
            bell.set()

    def sidecars(self) -> list[Subscription]:
        """All known sidecars, connected ones and those lost lately, in order of node."""
        self._forget(self._clock())
        known = {node: stream.subscription for node, stream in self._streams.items()} | self._gone
        return [known[node] for node in sorted(known)]

    @property
    def connected(self) -> int:
        """How many sidecars have a stream now."""
        return len(self._streams)

    def who_may_send_to(self, service: Name, instance_id: str, asking: str) -> list[str]:
        """Nodes of the sidecars, without the ``asking`` one, that may still send to an instance, in order."""
        now = self._clock()
        return [
            subscription.info.node
            for subscription in self.sidecars()
            if subscription.info.node != asking and subscription.may_send_to(service, instance_id, now)
        ]

    # --- those who look on ---

    @contextmanager
    def endpoint_bell(self) -> Iterator[asyncio.Event]:
        """A bell that rings whenever an endpoint state was taken or a sidecar went."""
        bell = asyncio.Event()
        self._endpoint_bells.add(bell)
        try:
            yield bell
        finally:
            self._endpoint_bells.discard(bell)

    @contextmanager
    def observing(self, observer: Callable[[Subscription], None]) -> Iterator[None]:
        """Call ``observer`` with each sidecar whose state changes."""
        self._observers.add(observer)
        try:
            yield
        finally:
            self._observers.discard(observer)

    def _tell(self, subscription: Subscription) -> None:
        for observer in tuple(self._observers):
            observer(subscription)
