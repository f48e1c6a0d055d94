import pytest

from control.config import ControlConfig, is_loopback, split_address
from mesh.model.errors import InvalidError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:15010", ("127.0.0.1", 15010)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:80", ("localhost", 80)),
        ("::1:80", None),
        ("15010", None),
        (":15010", None),
        ("a:", None),
        ("a:65536", None),
        ("a:-1", None),
    ],
)
def test_addresses(text, address):
    assert split_address(text) == address


def test_loopback_is_what_only_this_machine_reaches():
    assert [
        is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost", "0.0.0.0", "10.0.0.1", "::")
    ] == [True] * 4 + [False] * 3


def test_every_bad_setting_is_told_at_once():
    with pytest.raises(InvalidError) as refused:
        ControlConfig("x", "y:z", consul="ftp://x", lease_s=0)
    assert [v.field for v in refused.value.violations] == ["listen", "http", "lease", "consul"]


@pytest.mark.parametrize("consul", ["http://127.0.0.1:8500", "127.0.0.1:8500", None])
def test_good_settings_are_taken(consul):
    assert ControlConfig(consul=consul).lease_s == 10
