"""gRPC's own fields: timeouts, statuses, pushback."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.http.grpc import format_timeout, is_grpc_type, parse_timeout, pushback_s, status_in


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1S", 1.0), (b"250m", 0.25), (b"1000000u", 1.0), (b"5n", 5e-9), (b"2M", 120.0), (b"1H", 3600.0),
        (b"00000001S", 1.0), (b"000000001S", None), (b"S", None), (b"1", None), (b"-1S", None), (b"1s", None),
        (b"1.5S", None), (b" 1S", None), (b"", None),
    ],
)  # fmt: skip
def test_a_timeout_is_read(value: bytes, seconds: float | None) -> None:
    assert parse_timeout(value) == (None if seconds is None else pytest.approx(seconds))


@given(st.floats(0, 1e12))
def test_a_timeout_that_is_written_is_valid_and_never_longer(seconds: float) -> None:
    read = parse_timeout(format_timeout(seconds))
    assert read is not None
    assert read <= seconds * (1 + 1e-9)
    assert read >= min(seconds, 99_999_999 * 3600.0) * 0.99 - 2e-6


def test_a_time_that_is_over_is_zero() -> None:
    assert format_timeout(-1.0) == b"0u"


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        (b"application/grpc", True), (b"application/grpc+proto", True), (b"application/grpc;x=y", True),
        (b"application/grpc-web", False), (b"application/grpcx", False), (b"application/json", False),
    ],
)  # fmt: skip
def test_a_content_type_is_grpcs_or_not(value: bytes, is_one: bool) -> None:  # noqa: FBT001 - a row
    assert is_grpc_type(value) is is_one


def test_a_status_that_is_no_number_is_unknown() -> None:
    assert status_in([(b"x", b"1"), (b"grpc-status", b"14")]) == 14
    assert status_in([(b"grpc-status", b"fine")]) == 2
    assert status_in([]) is None


@pytest.mark.parametrize(
    ("value", "seconds"), [(b"0", 0.0), (b"1500", 1.5), (b"60001", -1.0), (b"-1", -1.0), (b"soon", -1.0), (b"", -1.0)]
)
def test_a_pushback_is_a_wait_or_a_no(value: bytes, seconds: float) -> None:
    assert pushback_s([(b"grpc-retry-pushback-ms", value)]) == seconds
    assert pushback_s([]) is None
