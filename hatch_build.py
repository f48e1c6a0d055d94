"""Compiles what pays when a wheel, or an editable install, is made: hatchling's custom build hook.

Some is in C, each file with a twin in Python. What a request passes through is Python that mypyc compiles as it stands
(pyproject.toml names the modules), which takes a minute. Where there is no C compiler, no Python.h or no mypyc, the
wheel is made without it and everything works, slower. MESH_COMPILE=no asks for that; MESH_COMPILE=must makes the lack
of a compiler an error.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = ("proxy/http1/_splitter.c", "proxy/http2/_octets.c", "mesh/telemetry/_log_line.c")
FLAGS = ("-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2")
LIBRARY = "mesh/compiled__mypyc"
"""What mypyc makes of the modules; beside each of them it leaves a shim that is imported in its place."""
MYPYC = """
import sys
from mypyc.build import mypycify
from setuptools import setup
made, *modules = sys.argv[1:]
sys.argv[1:] = ["-q", "build_ext", "--build-lib", made, "--build-temp", made]
options = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent", "--cache-dir", made]
setup(name="x", py_modules=[], packages=[], ext_modules=mypycify(
    [*options, *modules], opt_level="2", debug_level="0", group_name="mesh.compiled", target_dir=made))
"""
REMEDY = "sudo apt-get install gcc python3-dev, then install again"


class CompileHook(BuildHookInterface[Any]):
    """See the module."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a wheel is put together."""
        wish = os.environ.get("MESH_COMPILE", "")
        root, suffix = Path(self.root), sysconfig.get_config_var("EXT_SUFFIX")
        if wish == "no":
            return
        for name in SOURCES:
            target = root.joinpath(name).with_suffix(suffix)
            self._take([target], _compile(root / name, target), name, wish, build_data)
        modules = self.config["modules"]
        targets = [root.joinpath(name).with_suffix(suffix) for name in (*modules, LIBRARY)]
        self._take(targets, _compile_modules(root, modules, targets), "the request path", wish, build_data)

    def _take(self, targets: list[Path], trouble: str, what: str, wish: str, build_data: dict[str, Any]) -> None:
        if trouble:
            message = f"{what} is not compiled, Python does it instead: {trouble}"
            if wish == "must":
                raise RuntimeError(message)
            self.app.display_warning(message)
            return
        build_data["artifacts"] += [f"/{target.relative_to(self.root)}" for target in targets]
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def _lacks() -> str:
    """What is missing to compile anything, or nothing."""
    if _compiler() is None:
        return f"there is no C compiler ({REMEDY})"
    include = sysconfig.get_path("include")
    return "" if Path(include, "Python.h").exists() else f"there is no Python.h in {include} ({REMEDY})"


def _compiler() -> list[str] | None:
    for words in (shlex.split(sysconfig.get_config_var("CC") or "cc"), ["cc"]):
        if shutil.which(words[0]) is not None:
            return words
    return None


def _compile(source: Path, target: Path) -> str:
    """Compile; says what went wrong, or nothing. The target appears whole or not at all."""
    trouble, compiler = _lacks(), _compiler()
    if trouble or compiler is None:
        return trouble
    made = target.with_name(f".{target.name}.{os.getpid()}")
    done = subprocess.run(
        [*compiler, *FLAGS, f"-I{sysconfig.get_path('include')}", str(source), "-o", str(made)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        made.unlink(missing_ok=True)
        return f"{compiler[0]} failed: {done.stderr.strip()[-500:]}"
    made.replace(target)
    return ""


def _compile_modules(root: Path, modules: list[str], targets: list[Path]) -> str:
    """The same with mypyc; the library comes first, so that no shim ever finds none."""
    trouble = _lacks()
    if trouble:
        return trouble
    made_of = max((root / name).stat().st_mtime for name in (*modules, "pyproject.toml", Path(__file__).name))
    if all(target.exists() and target.stat().st_mtime > made_of for target in targets):
        return ""
    with tempfile.TemporaryDirectory() as made:
        done = subprocess.run(
            [sys.executable, "-c", MYPYC, made, *modules],
            cwd=root,
            env=os.environ | {"CC": shlex.join(_compiler() or ["cc"])},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return f"mypyc failed: {(done.stderr or done.stdout).strip()[-500:]}"
        for target in reversed(targets):
            fresh = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.copyfile(Path(made, target.relative_to(root)), fresh)
            fresh.replace(target)
    return ""
