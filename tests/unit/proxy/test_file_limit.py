"""Client connections are bounded by the files that a process may open."""

import logging
import resource

import pytest

from proxy.file_limit import connections_within_limit, raise_file_limit


@pytest.mark.parametrize(
    ("files", "listeners", "expected", "level"),
    [
        (resource.RLIM_INFINITY, 2, 20_000, None),
        (1_048_576, 2, 20_000, None),
        (20_000, 2, 4_690, logging.INFO),
        (1024, 2, 186, logging.WARNING),
        (100, 1, 1, logging.WARNING),
    ],
)
def test_what_is_left_for_clients(
    files: int, listeners: int, expected: int, level: int | None,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    caplog.set_level(logging.INFO)
    assert connections_within_limit(20_000, listeners) == expected
    assert [record.levelno for record in caplog.records] == ([] if level is None else [level])


def test_the_soft_limit_becomes_the_hard_one_and_the_old_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    was_set: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: was_set.append(limits))
    assert raise_file_limit() == 1024
    assert was_set == [(4096, 4096)]
