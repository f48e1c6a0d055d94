import math
from random import Random

import pytest

from tests.bench.stats import (
    NOTHING,
    Estimate,
    estimate,
    is_disturbed,
    percentile,
    ratios,
    rotated,
    verdict,
    worst,
)


def test_the_median_stands_with_an_interval_around_it():
    found = estimate([0.61, 0.62, 0.63, 0.64, 0.65, 0.66, 0.67])
    assert found.median == 0.64
    assert 0.61 <= found.low < 0.64 < found.high <= 0.67


def test_the_same_rounds_give_the_same_interval():
    assert estimate([1.0, 2.0, 3.0, 4.0]) == estimate([1.0, 2.0, 3.0, 4.0])


def test_one_round_has_an_interval_of_no_width():
    assert estimate([0.7]) == Estimate(0.7, 0.7, 0.7)


def test_one_wild_round_does_not_move_the_median():
    assert estimate([0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 9.0]).median == 0.6


def test_the_interval_holds_the_true_median_about_as_often_as_it_says():
    rng = Random(1)
    held = 0
    for _ in range(60):
        found = estimate([rng.gauss(1.0, 0.1) for _ in range(11)])
        held += found.low <= 1.0 <= found.high
    assert held >= 50


def test_no_rounds_are_no_figure_and_meet_no_bar():
    assert estimate([]) is NOTHING
    assert not NOTHING.exists
    assert verdict(NOTHING, 0.65) == "undecided"


def test_ratios_are_taken_within_a_round():
    assert ratios([30, 60], [60, 120]) == [0.5, 0.5]


def test_ratios_above_a_base_leave_out_a_round_that_has_none():
    assert ratios([150, 90, 200], [200, 100, 300], [100, 100, 100]) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("found", "bar", "expected"),
    [
        (Estimate(0.60, 0.55, 0.64), 0.65, "met"),
        (Estimate(0.60, 0.55, 0.65), 0.65, "met"),
        (Estimate(0.60, 0.55, 0.66), 0.65, "undecided"),
        (Estimate(0.70, 0.64, 0.75), 0.65, "undecided"),
        (Estimate(0.70, 0.66, 0.75), 0.65, "missed"),
        (Estimate(0.65, 0.65, 0.65), 0.65, "met"),
        (Estimate(0.70, 0.66, 0.75), None, "reported"),
    ],
)
def test_a_bar_is_met_or_missed_only_with_the_whole_interval(found, bar, expected):
    assert verdict(found, bar) == expected


def test_of_several_bars_the_worst_counts():
    assert worst(["met", "undecided", "reported"]) == "undecided"
    assert worst(["met", "missed", "undecided"]) == "missed"
    assert worst(["reported", "met"]) == "met"


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, False), (1.049, False), (0.94, True), (1.06, True)])
def test_twins_that_differ_tell_of_a_disturbed_run(ratio, expected):
    assert is_disturbed(ratio, 0.05) is expected


def test_twins_without_a_ratio_tell_of_a_disturbed_run():
    assert is_disturbed(math.nan, 0.05)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1), (0.995, 100)])
def test_percentiles_are_values_that_were_seen(share, expected):
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_in_as_many_rounds_as_names_each_is_first_once_and_last_once():
    names = ["a", "b", "c", "d"]
    orders = [rotated(names, number) for number in range(4)]
    assert sorted(order[0] for order in orders) == names
    assert sorted(order[-1] for order in orders) == names
    assert all(sorted(order) == names for order in orders)


def test_neighbours_change_sides_from_one_time_round_to_the_next():
    assert len({tuple(rotated(["a", "b", "c"], number)) for number in range(6)}) == 6
