"""The wheel holds what the program needs, and the program needs nothing that only developers install; the sdist all."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, PackagePath
from importlib.metadata import files as files_of_distribution
from pathlib import Path

import pytest

from proxy.http1.splitter import IS_COMPILED

REPO = Path(__file__).resolve().parents[2]
PACKAGES = ("mesh", "proxy", "control", "protos")
ANY_PORTS = ("--inbound", "127.0.0.1:0", "--outbound", "127.0.0.1:0", "--admin", "127.0.0.1:0")
BESIDE = ("tests", "docs", "deploy")
"""What of the repository only the sdist has."""

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
        archive.extractall(directory / "unpacked")  # noqa: S202 - our own
    return directory / "unpacked"


def files(root: Path, *folders: str) -> set[Path]:
    """All files in these folders, without what Python and compilers leave there."""
    return {
        path.relative_to(root)
        for folder in folders
        for path in (root / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    assert files(wheel, *PACKAGES) == files(REPO, *PACKAGES)
    assert {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")} == set(PACKAGES)


def test_the_sdist_has_the_packages_and_what_documents_deploys_and_tests_them(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path]
    subprocess.run(build, cwd=REPO, check=True)
    (file,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        archive.extractall(tmp_path / "unpacked")  # noqa: S202 - our own; Debian 12 has no filters
    (root,) = (tmp_path / "unpacked").iterdir()
    assert files(root, *PACKAGES, *BESIDE) == files(REPO, *PACKAGES, *BESIDE)
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= {path.name for path in root.iterdir()}


@pytest.mark.parametrize("wish", ["must", "no"])
def test_a_wheel_is_made_with_a_compiler_and_without(wish: str, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    if wish == "must" and not IS_COMPILED:
        pytest.skip("no C compiler, or no Python.h: sudo apt-get install gcc python3-dev && make clean setup")
    subprocess.run(build, cwd=REPO, check=True, env=os.environ | {"MESH_COMPILE": wish})
    (file,) = tmp_path.glob("*.whl")
    assert file.name.endswith("-py3-none-any.whl") == (wish == "no")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "unpacked")  # noqa: S202 - our own
    compiled = list((tmp_path / "unpacked").rglob("*.so"))
    settings = tomllib.loads((REPO / "pyproject.toml").read_text())
    modules = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["modules"]
    names = [Path(source).stem for source in (*modules, *REPO.glob("mesh/*/*.c"), *REPO.glob("proxy/*/*.c"))]
    expected = [*names, "compiled__mypyc"] if wish == "must" else []
    assert sorted(path.name.partition(".")[0] for path in compiled) == sorted(expected)
    program = "from proxy.http1 import fields; print(type(fields.request_splitter).__module__)"
    run = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'unpacked')!r}); {program}"]
    done = subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ("proxy.http1._splitter" if wish == "must" else "proxy.http1.splitter")


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


def test_installed_where_nothing_else_is_it_gives_a_mesh_command_that_works(tmp_path: Path) -> None:
    """An environment of its own with the locked runtime dependencies, copied as they are installed here, and our wheel."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=REPO, check=True)
    (file,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env/bin/python"
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    target = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    for name in re.findall(r"^([a-z0-9-]+)==", (REPO / "requirements.lock").read_text(), re.MULTILINE):
        for part in _files_of(name):
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(part.locate(), target / part)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", file]
    subprocess.run(pip, check=True, capture_output=True)
    mesh = tmp_path / "env/bin/mesh"
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    said = subprocess.run([mesh, "--version"], cwd=tmp_path, env=env, check=True, capture_output=True, text=True)
    assert said.stdout.startswith("mesh, version ")
    for command in ("control", "sidecar", "run", "demo", "apply", "weights", "status", "why"):
        subprocess.run([mesh, command, "--help"], cwd=tmp_path, env=env, check=True, capture_output=True)
    job = [mesh, "run", "--service", "job", *ANY_PORTS, "--", "sh", "-c", "echo $http_proxy"]
    done = subprocess.run(job, cwd=tmp_path, env=env, check=True, capture_output=True, text=True)
    assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+\n", done.stdout)


def _files_of(name: str) -> list[PackagePath]:
    try:
        return [part for part in files_of_distribution(name) or () if ".." not in part.parts]
    except PackageNotFoundError:
        return []  # locked for another platform
