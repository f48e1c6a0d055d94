"""The wheel holds what the program needs, and the program needs nothing that only developers install."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PACKAGES = ("mesh", "proxy", "control", "protos")

# Imports every module of the unpacked wheel (argv[1]) in this environment, in which each top-level module that belongs
# to no distribution of requirements.lock (argv[2:]) is refused.
IMPORT_ALL = """
import importlib, pkgutil, re, sys
from importlib.metadata import packages_distributions

unpacked, *runtime = sys.argv[1:]
ours = ("mesh", "proxy", "control", "protos")
sys.path.insert(0, unpacked)
refused = {
    module
    for module, owners in packages_distributions().items()
    if not {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & set(runtime)
}.difference(ours)

class Refuse:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"{name} is in no wheel that users install", name=name)

sys.meta_path.insert(0, Refuse)
for package in ours:
    found = importlib.import_module(package)
    assert found.__file__.startswith(unpacked), found.__file__
    for module in pkgutil.walk_packages(found.__path__, package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, unpacked."""
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory], cwd=REPO, check=True)
    (file,) = directory.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(directory / "unpacked")
    return directory / "unpacked"


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    def files(root: Path) -> set[Path]:
        return {
            path.relative_to(root)
            for package in PACKAGES
            for path in (root / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    assert files(wheel) == files(REPO)
    assert {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")} == set(PACKAGES)


def test_every_module_imports_with_the_locked_runtime_dependencies_alone(wheel: Path) -> None:
    runtime = re.findall(r"^([a-z0-9-]+)==", (REPO / "requirements.lock").read_text(), re.MULTILINE)
    result = subprocess.run(
        [sys.executable, "-P", "-c", IMPORT_ALL, wheel, *runtime],
        cwd=wheel,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
