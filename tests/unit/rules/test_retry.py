"""Whether a failed attempt is made again, when, and within which budget."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.http.message import ResponseHead
from mesh.http.outcome import ClientGone, ConnectFailed, PerTryTimeout, ProxyError, UpstreamProtocolError, UpstreamReset
from mesh.model.policy import RetryBudgetPolicy
from mesh.model.route import Retry
from mesh.rules.retry import RetryBudget, RetryRule, backoff_s

# (outcome, idempotent by default, any method by default, idempotent with a stanza of 418, any method with it)
TABLE: list[tuple[ResponseHead | ProxyError, bool, bool, bool, bool]] = [
    (ConnectFailed("x"), True, True, True, True),
    (UpstreamReset("x", not_sent=True), True, True, True, True),
    (ResponseHead(503, not_sent=True), True, True, True, True),
    (UpstreamReset("x"), True, False, True, False),
    (PerTryTimeout("x"), True, False, True, False),
    (ResponseHead(502), True, False, False, False),
    (ResponseHead(503), True, False, False, False),
    (ResponseHead(504), True, False, False, False),
    (ResponseHead(500), False, False, False, False),
    (ResponseHead(418), False, False, True, True),
    (ResponseHead(200), False, False, False, False),
    (UpstreamProtocolError("x"), False, False, False, False),
    (ClientGone("x"), False, False, False, False),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: repr(row[0]))
def test_what_is_tried_again(row: tuple[ResponseHead | ProxyError, bool, bool, bool, bool]) -> None:
    default, stanza = RetryRule(None), RetryRule(Retry((418,)))
    found = [
        rule.reason(row[0], idempotent=idempotent) is not None
        for rule in (default, stanza)
        for idempotent in (True, False)
    ]
    assert found == list(row[1:])


def test_a_stanzas_504_stands_for_our_own_timeout_too() -> None:
    assert RetryRule(Retry((504,))).reason(PerTryTimeout("x"), idempotent=False) == "per-try-timeout"
    assert RetryRule(None).reason(PerTryTimeout("x"), idempotent=False) is None


@given(retry=st.integers(1, 40), configured=st.floats(0.001, 10), draw=st.floats(0, 1, exclude_max=True))
def test_a_configured_backoff_is_never_shorter_and_at_most_tenfold(retry: int, configured: float, draw: float) -> None:
    assert configured <= backoff_s(retry, configured, lambda: draw) <= 10 * configured


@given(retry=st.integers(1, 40), draw=st.floats(0, 1, exclude_max=True))
def test_the_default_backoff_is_full_jitter_up_to_its_cap(retry: int, draw: float) -> None:
    assert 0 <= backoff_s(retry, None, lambda: draw) <= min(0.025 * 2 ** (retry - 1), 0.25)


def test_a_quiet_cluster_may_retry_ten_times_a_second() -> None:
    budget = RetryBudget(RetryBudgetPolicy(percent=20, min_per_s=10))
    assert [budget.try_spend(100.0) for _ in range(11)] == [True] * 10 + [False]
    assert budget.try_spend(101.0)


def test_a_busy_cluster_may_retry_its_share_of_the_last_ten_seconds() -> None:
    budget = RetryBudget(RetryBudgetPolicy(percent=20, min_per_s=0))
    budget.try_spend(100.0)
    budget.requests = 100
    assert sum(budget.try_spend(105.0) for _ in range(50)) == 20
    assert not budget.try_spend(109.5)
    assert not budget.try_spend(120.0)


def test_what_the_floor_allows_does_not_count_against_the_share() -> None:
    budget = RetryBudget(RetryBudgetPolicy(percent=20, min_per_s=10))
    spent = 0
    for second in range(100, 120):
        budget.tick(second)
        budget.requests = 100
        spent += sum(budget.try_spend(second) for _ in range(100))
    assert abs(spent / 20 - 30) <= 1  # 20 % of 100 a second, and ten


def test_workers_share_the_floor() -> None:
    budget = RetryBudget(RetryBudgetPolicy(percent=0, min_per_s=10), shares=4)
    assert sum(budget.try_spend(100.0) for _ in range(20)) == 3


@given(
    st.integers(0, 100),
    st.integers(0, 20),
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 50), st.integers(0, 50)), max_size=30),
)
def test_retries_stay_within_budget(percent: int, floor: int, story: list[tuple[float, int, int]]) -> None:
    budget = RetryBudget(RetryBudgetPolicy(percent=percent, min_per_s=floor))
    now, requests, spent = 1000.0, 0, 0
    seconds = set()
    for wait, came, wanted in story:
        now += wait
        seconds.add(int(now))
        budget.tick(now)
        budget.requests += came
        requests += came
        spent += sum(budget.try_spend(now) for _ in range(wanted))
    assert spent <= requests * percent / 100 + floor * len(seconds) + 1


def test_the_wait_uses_the_stanzas_backoff() -> None:
    rng = Random(1)
    assert RetryRule(Retry((), 3, 0.5)).wait_s(1, rng.random) == 0.5
    assert RetryRule(None).wait_s(1, rng.random) <= 0.025
