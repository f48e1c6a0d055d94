"""The lock files fit pyproject.toml, and say nothing of where they were made."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPO = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
RUNTIME = PROJECT["project"]["dependencies"]
GROUPS = PROJECT["dependency-groups"]
LOCKS = ["requirements.lock", "requirements-dev.lock", "requirements-peers.lock"]


def locked(name: str) -> dict[str, Version]:
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^ ;]+)", (REPO / name).read_text(), re.MULTILINE)
    return {canonicalize_name(package): Version(version) for package, version in pins}


@pytest.mark.parametrize(
    ("lock", "asked"),
    [
        ("requirements.lock", RUNTIME),
        ("requirements-dev.lock", RUNTIME + GROUPS["dev"] + PROJECT["build-system"]["requires"]),
        ("requirements-peers.lock", GROUPS["peers"]),
    ],
)
def test_what_pyproject_asks_for_is_locked_at_a_version_it_allows(lock: str, asked: list[str]) -> None:
    pins = locked(lock)
    for text in asked:
        requirement = Requirement(text)
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{text} is not in {lock}: run `make lock`"
        assert requirement.specifier.contains(pin), f"{text}, but {lock} has {pin}: run `make lock`"


def test_tests_run_with_the_versions_that_users_get() -> None:
    runtime, dev = locked("requirements.lock"), locked("requirements-dev.lock")
    assert {name: dev.get(name) for name in runtime} == runtime


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_file_names_no_address_and_hashes_everything(lock: str) -> None:
    text = (REPO / lock).read_text()
    assert "://" not in text
    entries = re.split(r"\n(?=\S)", text.strip())
    assert all("--hash=sha256:" in entry for entry in entries if not entry.startswith("#"))


@pytest.mark.parametrize("lock", LOCKS)
def test_xds_protos_is_locked_nowhere(lock: str) -> None:
    """It overwrites files of opentelemetry-proto and googleapis-common-protos."""
    assert "xds-protos" not in locked(lock)
