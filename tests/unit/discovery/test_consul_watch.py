"""Dialogues with a WatchLoop; the agent's side was recorded from Consul 1.8.7."""

import random

import pytest

from mesh.discovery.backoff import Backoff
from mesh.discovery.base import Contact
from mesh.discovery.consul_watch import BURST, POLL_S, SLOWEST_LOOP_S, Answer, Mode, Query, Step, WatchLoop
from mesh.model.service import Endpoint

A, B = Endpoint("a", "a", 80), Endpoint("b", "b", 80)


class Dialogue:
    def __init__(self) -> None:
        self.loop = WatchLoop(random.Random(1), wait_s=32)
        self.now = 0.0

    def ask(self, *, may_block: bool = True) -> Query:
        return self.loop.ask(self.now, may_block=may_block)

    def hears(
        self, index: int, *endpoints: Endpoint, after_s: float = 0, has_leader: bool = True, age_s: float = 0
    ) -> Step:
        self.now += after_s
        return self.loop.answered(self.now, Answer(index, endpoints, has_leader, age_s))

    def fails(self, after_s: float = 0) -> float:
        self.now += after_s
        return self.loop.failed(self.now)

    def turn(self, index: int, *endpoints: Endpoint, after_s: float = 0) -> Step:
        """One query and its answer, then the pause."""
        self.ask()
        step = self.hears(index, *endpoints, after_s=after_s)
        self.now += step.pause_s
        return step


@pytest.fixture
def talk() -> Dialogue:
    return Dialogue()


def test_the_first_query_is_answered_at_once_and_resumes_contact(talk: Dialogue) -> None:
    assert talk.ask().mode is Mode.NOW
    assert talk.hears(10, A) == Step(Contact.RESUMED, 0.0, is_vouched_for=True)


def test_the_next_query_blocks_on_the_index_and_its_timeout_allows_for_the_agents_jitter(talk: Dialogue) -> None:
    talk.turn(10, A)
    query = talk.ask()
    assert (query.mode, query.index, query.wait_s) == (Mode.BLOCK, 10, 32)
    assert query.timeout_s > 32 + 32 / 16
    assert talk.hears(11, A, B, after_s=5) == Step(Contact.CONTINUOUS, 0.0, is_vouched_for=True)
    assert talk.ask().index == 11


def test_an_index_of_64_bits_is_kept(talk: Dialogue) -> None:
    talk.turn(16648083847831510874, A)
    assert talk.ask().index == 16648083847831510874


@pytest.mark.parametrize("index", [0, 9])
def test_an_index_that_is_zero_or_goes_backwards_starts_from_nothing(talk: Dialogue, index: int) -> None:
    talk.turn(10, A)
    assert talk.turn(index, after_s=32).contact is Contact.RESUMED
    assert talk.ask().mode is Mode.NOW
    assert talk.hears(12, A).contact is Contact.RESUMED
    talk.now += 1
    talk.ask()
    assert talk.hears(13, A, B, after_s=1).contact is Contact.CONTINUOUS


def test_an_agent_that_always_says_index_zero_is_not_hammered(talk: Dialogue) -> None:
    for _ in range(20):
        talk.turn(0, A)
    assert talk.now >= 19


def test_any_error_drops_the_index_and_resumes_contact(talk: Dialogue) -> None:
    talk.turn(53, A)
    talk.ask()
    talk.now += talk.fails(after_s=20)
    assert talk.ask() == Query(Mode.NOW)
    assert talk.hears(12).contact is Contact.RESUMED
    assert talk.ask().index == 12


def test_errors_are_answered_by_a_growing_jittered_pause_and_a_success_resets_it(talk: Dialogue) -> None:
    pauses = []
    for _ in range(12):
        talk.ask()
        pauses.append(talk.fails(after_s=2))
    assert pauses[0] <= 0.2
    assert 5 <= pauses[-1] <= 10
    assert all(later <= 10 for later in pauses)
    talk.turn(10, A)
    talk.ask()
    assert talk.fails(after_s=2) <= 0.2


def test_the_old_data_of_an_agent_that_gets_sigterm_is_followed_by_a_pause_not_a_spin(talk: Dialogue) -> None:
    talk.turn(10, A)
    talk.ask()
    step = talk.hears(10, A, after_s=0.3)  # 200, unchanged, though the wait was not over
    assert 0.7 <= step.pause_s <= 1.25


def test_a_wait_that_ran_out_without_a_change_is_followed_by_the_next_query_at_once(talk: Dialogue) -> None:
    talk.turn(10, A)
    for _ in range(50):
        assert talk.turn(10, A, after_s=33).pause_s == 0


def test_wakes_without_news_slow_down_to_one_in_five_seconds(talk: Dialogue) -> None:
    # On 1.8 a service that nobody registered wakes with every registration of any other.
    talk.turn(10)
    pauses = [talk.turn(11 + n, after_s=0.01).pause_s for n in range(8)]
    assert pauses[0] >= 0.9
    assert pauses == sorted(pauses) or pauses[-1] >= SLOWEST_LOOP_S - 0.1
    assert all(pause <= SLOWEST_LOOP_S * 1.25 for pause in pauses)


def test_news_is_followed_at_once_until_the_burst_is_spent(talk: Dialogue) -> None:
    talk.turn(10, A)
    free = 0
    while talk.turn(11 + free, *(A, B)[: 1 + free % 2], after_s=0.001).pause_s == 0:
        free += 1
    assert free <= BURST
    began = talk.now
    for n in range(100, 130):
        talk.turn(n, *(A, B)[: 1 + n % 2], after_s=0.001)
    assert (talk.now - began) / 30 >= 0.9  # one a second under churn


def test_without_a_connection_of_its_own_a_watch_polls_the_agents_cache(talk: Dialogue) -> None:
    talk.turn(10, A)
    assert talk.loop.wants_to_block(talk.now)
    assert talk.ask(may_block=False).mode is Mode.CACHED
    assert talk.hears(11, A, B).contact is Contact.CONTINUOUS
    assert POLL_S * 0.75 <= talk.loop.poll_pause_s() <= POLL_S * 1.25


def test_a_watch_whose_blocking_query_is_dropped_at_once_polls_for_a_while(talk: Dialogue) -> None:
    talk.turn(10, A)
    talk.ask()
    talk.now += talk.fails(after_s=0.01)
    assert talk.ask().mode is Mode.NOW
    assert talk.hears(10, A).pause_s >= POLL_S * 0.75
    talk.now += 2
    assert talk.ask().mode is Mode.CACHED
    assert talk.hears(11, B).contact is Contact.CONTINUOUS
    talk.now += 60
    assert talk.ask().mode is Mode.BLOCK


def test_what_consul_says_without_a_leader_or_from_an_old_cache_is_not_vouched_for(talk: Dialogue) -> None:
    talk.turn(10, A)
    talk.ask()
    step = talk.hears(11, after_s=5, has_leader=False)
    assert (step.contact, step.is_vouched_for) == (Contact.RESUMED, False)
    talk.ask()
    step = talk.hears(11, A, after_s=5, age_s=61)
    assert (step.contact, step.is_vouched_for) == (Contact.RESUMED, False)
    talk.ask()
    assert talk.hears(12, A, after_s=5) == Step(Contact.RESUMED, 0.0, is_vouched_for=True)


def test_backoff_never_overflows() -> None:
    backoff = Backoff(random.Random(0))
    assert all(backoff.next_s() <= 10 for _ in range(5000))
