"""What a peer may cost: proxy/http2/budget.py. Whole connections are in tests/conformance/test_http2_floods.py."""

import pytest

from proxy.http2.budget import (
    BUDGET,
    BYTES_FOR_UPDATE,
    EARNED,
    LATE_FRAME,
    REMEMBERED,
    RESET_BUDGET,
    SMALL,
    UPDATES_BY_FRAME,
    UPDATES_DUE,
    Budget,
)
from proxy.http2.errors import ConnectionFault, ErrorCode


def left(budget: Budget) -> int:
    """How many frames more that achieve nothing it takes; none is left then."""
    for count in range(100_000):
        try:
            budget.spend()
        except ConnectionFault:
            return count
    raise AssertionError


def test_it_is_spent_by_frames_that_achieve_nothing() -> None:
    budget = Budget()
    budget.spend(BUDGET)
    with pytest.raises(ConnectionFault) as fault:
        budget.spend()
    assert fault.value.code is ErrorCode.ENHANCE_YOUR_CALM


def test_it_is_earned_back_up_to_what_it_was() -> None:
    budget = Budget()
    budget.spend(EARNED)
    for _ in range(100):
        budget.earn()
    assert left(budget) == BUDGET


def test_a_second_earns_a_tenth() -> None:
    budget = Budget()
    budget.spend(BUDGET)
    budget.tick()
    assert left(budget) == BUDGET // 10


def test_what_was_sent_pays_for_its_credit_beforehand() -> None:
    budget = Budget()
    budget.earn_by_sending(10 * BYTES_FOR_UPDATE)
    for _ in range(UPDATES_BY_FRAME + 10):
        budget.spend_update()
    assert left(budget) == BUDGET


def test_credit_for_nothing_is_spent() -> None:
    budget = Budget()
    for _ in range(BUDGET):
        budget.spend_update()
    with pytest.raises(ConnectionFault):
        budget.spend_update()


def test_what_was_sent_long_ago_pays_for_so_much_credit_and_no_more() -> None:
    budget = Budget()
    budget.earn_by_sending(1 << 30)
    budget.tick()
    for _ in range(UPDATES_DUE):
        budget.spend_update()
    assert left(budget) == BUDGET


def test_streams_that_are_given_up_have_a_budget_of_their_own() -> None:
    budget = Budget()
    for _ in range(RESET_BUDGET):
        budget.spend_reset()
    budget.earn_reset()
    budget.spend_reset()
    with pytest.raises(ConnectionFault):
        budget.spend_reset()
    assert left(budget) == BUDGET


def test_late_data_costs_nothing_within_the_window_there_was() -> None:
    budget = Budget()
    budget.remember_refused(1, 100 * LATE_FRAME)
    for _ in range(100):
        budget.spend_late_data(1, 1)
    assert left(budget) == BUDGET


@pytest.mark.parametrize(("flow", "spent"), [(0, 1), (1, 1), (SMALL - 1, 1), (SMALL, 0)])
def test_late_data_beyond_its_window_costs_where_it_is_small(flow: int, spent: int) -> None:
    budget = Budget()
    budget.remember_refused(1, 0)
    budget.spend_late_data(1, flow)
    assert left(budget) == BUDGET - spent


def test_a_second_reset_gives_no_window_anew() -> None:
    budget = Budget()
    budget.remember_refused(1, 0)
    budget.remember_refused(1, 1 << 20)
    budget.spend_late_data(1, 1)
    assert left(budget) == BUDGET - 1


def test_so_many_streams_are_remembered_the_last_ones() -> None:
    budget = Budget()
    for number in range(REMEMBERED + 1):
        budget.remember_refused(number, 0)
    assert [budget.is_refused(number) for number in (0, 1, REMEMBERED)] == [False, True, True]
