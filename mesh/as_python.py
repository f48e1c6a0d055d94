"""``MESH_PURE_PYTHON=1``: what was compiled is read as Python all the same, for those who look for a fault.

Some modules are compiled as they stand when the package is installed (hatch_build.py); their sources lie beside them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

PACKAGES = ("mesh", "proxy")


class _Sources:
    """A finder that gives a module's source, whatever lies beside it."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        del target
        package, _, module = name.rpartition(".")
        if package.partition(".")[0] in PACKAGES:
            for folder in path or ():
                source = Path(folder, f"{module}.py")
                if source.exists():
                    return spec_from_file_location(name, source)
        return None


def install() -> None:
    """From now on; what has been imported stays as it is."""
    sys.meta_path.insert(0, _Sources)
