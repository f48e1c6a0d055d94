"""Compiles what the packages have in C when a wheel, or an editable install, is made: hatchling's custom build hook.

Where there is no C compiler or no Python.h, the wheel is made without it and everything works, slower: each C file has
a twin in Python. MESH_COMPILE=no asks for that; MESH_COMPILE=must makes the lack of a compiler an error.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = ("proxy/http1/_splitter.c", "proxy/http2/_octets.c", "mesh/telemetry/_log_line.c")
FLAGS = ("-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2")
REMEDY = "sudo apt-get install gcc python3-dev, then install again"


class CompileHook(BuildHookInterface[Any]):
    """See the module."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a wheel is put together."""
        wish = os.environ.get("MESH_COMPILE", "")
        for name in SOURCES if wish != "no" else ():
            source = Path(self.root, name)
            target = source.with_name(source.stem + sysconfig.get_config_var("EXT_SUFFIX"))
            trouble = _compile(source, target)
            if trouble:
                message = f"{name} is not compiled, its twin in Python works instead: {trouble}"
                if wish == "must":
                    raise RuntimeError(message)
                self.app.display_warning(message)
                continue
            build_data["artifacts"].append(f"/{target.relative_to(self.root)}")
            build_data["pure_python"] = False
            build_data["infer_tag"] = True


def _compile(source: Path, target: Path) -> str:
    """Compile; says what went wrong, or nothing. The target appears whole or not at all."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        compiler = ["cc"]
    if shutil.which(compiler[0]) is None:
        return f"there is no C compiler ({REMEDY})"
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        return f"there is no Python.h in {include} ({REMEDY})"
    made = target.with_name(f".{target.name}.{os.getpid()}")
    done = subprocess.run(
        [*compiler, *FLAGS, f"-I{include}", str(source), "-o", str(made)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        made.unlink(missing_ok=True)
        return f"{compiler[0]} failed: {done.stderr.strip()[-500:]}"
    made.replace(target)
    return ""
