"""HTTP/2 (RFC 9113): the codec is pure, the shells beside it move bytes.

``codec.py`` and ``messages.py`` are compiled by mypyc as they stand where the package was installed with a C compiler.
``MESH_PURE_PYTHON=1`` has them read as Python all the same, as it does with all else that is compiled.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

COMPILED = ("codec", "messages")


class _AsPython:
    """A finder for the modules in COMPILED that gives their source, whatever lies beside it."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        del path, target
        package, _, module = name.rpartition(".")
        if package != __name__ or module not in COMPILED:
            return None
        return spec_from_file_location(name, Path(__file__).with_name(f"{module}.py"))


if os.environ.get("MESH_PURE_PYTHON"):
    sys.meta_path.insert(0, _AsPython)
