"""The memory of names that do not exist."""

from mesh.discovery.resolution import NegativeCache
from mesh.model.name import Name


def n(number: int) -> Name:
    return Name("default", f"n{number}")


def test_a_name_is_held_for_its_time_and_not_longer() -> None:
    cache = NegativeCache(5, 10)
    cache.add(n(1), 100)
    assert cache.holds(n(1), 104.9)
    assert not cache.holds(n(1), 105)
    assert not cache.holds(n(2), 100)


def test_the_newest_stay_when_it_is_full() -> None:
    cache = NegativeCache(5, 3)
    for number in range(5):
        cache.add(n(number), number)
    assert [cache.holds(n(number), 4) for number in range(5)] == [False, False, True, True, True]
    assert len(cache) == 3


def test_a_name_that_is_found_missing_again_is_as_good_as_new() -> None:
    cache = NegativeCache(5, 2)
    cache.add(n(1), 0)
    cache.add(n(2), 1)
    cache.add(n(1), 2)
    cache.add(n(3), 3)
    assert cache.holds(n(1), 3)
    assert not cache.holds(n(2), 3)


def test_expiry_drops_the_old_ones_only() -> None:
    cache = NegativeCache(5, 10)
    cache.add(n(1), 0)
    cache.add(n(2), 3)
    cache.expire(6)
    assert len(cache) == 1
    cache.remove(n(2))
    cache.remove(n(2))
    assert len(cache) == 0
