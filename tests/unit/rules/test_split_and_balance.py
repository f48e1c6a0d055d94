"""The weighted split, and the choice of an endpoint."""

from dataclasses import dataclass
from random import Random

from mesh.rules.balance import least_request
from mesh.rules.split import Split


@dataclass(eq=False)
class Loaded:
    active: int


def test_shares_follow_weights() -> None:
    split, rng = Split(["a", "b", "c"], [1, 0, 3]), Random(1)
    drawn = [split.choose(rng.random) for _ in range(10_000)]
    assert drawn.count("b") == 0
    assert abs(drawn.count("c") - 7500) < 4 * (10_000 * 0.75 * 0.25) ** 0.5


def test_the_ends_of_the_draw_stay_within_the_choices() -> None:
    split = Split(["a", "b"], [1, 1])
    assert split.choose(lambda: 0.0) == "a"
    assert split.choose(lambda: 0.999_999_999) == "b"


def test_all_weights_zero_is_a_drain_and_no_choices_are_not() -> None:
    assert Split(["a"], [0]).is_drained
    assert Split(["a"], [0]).choose(lambda: 0.5) is None
    assert not Split([], []).is_drained


def test_the_less_loaded_of_two_is_picked() -> None:
    idle, busy = Loaded(0), Loaded(9)
    rng = Random(1)
    assert all(least_request([idle, busy], rng.random) is idle for _ in range(50))


def test_two_different_endpoints_are_drawn() -> None:
    one, other, third = Loaded(5), Loaded(5), Loaded(0)
    rng = Random(1)
    picks = [least_request([one, other, third], rng.random) for _ in range(3000)]
    assert picks.count(third) > 1900  # in two of three draws it is among the two, and wins


def test_the_tried_are_passed_over_while_another_is_left() -> None:
    first, second = Loaded(0), Loaded(9)
    assert least_request([first, second], Random(1).random, (first,)) is second
    assert least_request([first], Random(1).random, (first,)) is first
    assert least_request([], Random(1).random) is None
