"""The trampoline's rules, each from a failure seen when it was broken."""

import gc
import logging
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from mesh.http.outcome import ExchangeTimeout, ProxyError
from mesh.model.name import Name
from proxy.exchange import Exchange
from proxy.trampoline import Trampoline
from tests.support.dialogue import Conversation


class Counter:
    """A resumable that takes down its events, and may have more to say."""

    def __init__(self, trampoline: Trampoline, more: int = 0) -> None:
        self.trampoline, self.more, self.events = trampoline, more, []  # type: ignore[var-annotated]
        self.depth = self.deepest = 0

    def resume(self, what: Any) -> None:
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        self.events.append(what)
        if self.more:
            self.more -= 1
            self.trampoline.post(self, self.more)
            self.trampoline.drain()  # as a callback inside a callback does
        self.depth -= 1


def test_nothing_is_resumed_before_the_outermost_callback_drains() -> None:
    trampoline = Trampoline()
    counter = Counter(trampoline)
    trampoline.post(counter, 1)
    assert counter.events == []
    trampoline.drain()
    assert counter.events == [1]


def test_ten_thousand_events_in_a_row_do_not_recurse() -> None:
    trampoline = Trampoline()
    counter = Counter(trampoline, more=10_000)
    trampoline.post(counter, "first")
    trampoline.drain()
    assert len(counter.events) == 10_001
    assert counter.deepest == 1


def test_an_error_in_one_resumable_does_not_keep_the_others_from_theirs(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def resume(self, what: Any) -> None:
            raise RuntimeError(what)

    trampoline = Trampoline()
    counter = Counter(trampoline)
    trampoline.post(Broken(), "x")
    trampoline.post(counter, "y")
    with caplog.at_level(logging.CRITICAL):
        trampoline.drain()
    assert counter.events == ["y"]


GET = b"GET / HTTP/1.1\r\nHost: pay\r\n\r\n"


def waiting_exchange(talk: Conversation) -> Exchange:
    """An exchange whose request body is not whole yet, so that it waits."""
    talk.feed(b"POST / HTTP/1.1\r\nHost: pay\r\nContent-Length: 3\r\n\r\na")
    exchange = talk.connection.exchange
    assert exchange is not None
    return exchange


def test_an_event_that_comes_too_late_is_dropped() -> None:
    talk = Conversation()
    exchange = waiting_exchange(talk)
    exchange.post(ExchangeTimeout("too late"))
    talk.plane.trampoline.drain()
    assert talk.statuses == [504]
    exchange.post(ExchangeTimeout("twice"))
    exchange.post(None)
    talk.plane.trampoline.drain()
    assert talk.statuses == [504]


def test_news_of_an_attempt_that_was_given_up_is_dropped() -> None:
    talk = Conversation()
    exchange = waiting_exchange(talk)
    old = exchange.attempt
    assert old is not None
    exchange.attempt = None
    old.on_error(ProxyError("old news"))
    talk.plane.trampoline.drain()
    assert talk.statuses == []
    exchange.attempt = old
    old.error = None
    talk.feed(b"bc")
    assert talk.statuses == [200]


BUGS = [
    ("clock", "plane.clock", GET, 500),
    ("directory", "plane.directory.look_up", GET.replace(b"pay", b"other"), 500),
    ("endpoint's transport", "upstream.write", GET, 500),
    ("client's transport", "transport.write", GET, None),
    ("recorder", "plane.record", GET, 200),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug[0])
def test_a_bug_on_the_path_costs_one_exchange_and_no_other(
    bug: tuple[str, str, bytes, int | None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, where, request, status = bug
    talk = Conversation()
    *path, name = where.split(".")
    owner: Any = SimpleNamespace(plane=talk.plane, transport=talk.transport, upstream=talk.upstream)
    for step in path:
        owner = getattr(owner, step)
    met = []

    def broken(*_: Any) -> Any:
        met.append(name)
        raise ZeroDivisionError(name)

    with monkeypatch.context() as patch, caplog.at_level(logging.CRITICAL):
        patch.setattr(owner, name, broken)
        talk.feed(request)
    assert met
    assert talk.statuses == ([] if status is None else [status])
    assert not talk.plane.exchanges
    assert Conversation(talk.plane).feed(GET).statuses == [200]
    assert talk.plane.services[Name("default", "pay")].usage.requests == 0


def test_an_exchange_that_is_dropped_leaves_nothing_behind() -> None:
    talk = Conversation()
    exchange = waiting_exchange(talk)
    seen = [weakref.ref(talk.transport), weakref.ref(talk.upstream), weakref.ref(exchange.plane.directory)]
    talk.connection.connection_lost(None)
    del exchange
    talk.taken.clear()
    gc.collect()
    assert not talk.plane.exchanges
    assert talk.plane.services[next(iter(talk.plane.services))].usage.requests == 0
    del talk
    gc.collect()
    assert [ref() for ref in seen] == [None] * 3


def test_pause_writing_inside_a_write_does_not_resume_anybody_twice() -> None:
    talk = Conversation()
    write = talk.transport.write

    def pausing(data: bytes) -> None:
        write(data)
        talk.connection.pause_writing()
        talk.connection.resume_writing()

    talk.transport.write = pausing  # type: ignore[method-assign]
    talk.feed(GET * 100)
    assert talk.statuses == [200] * 100
