"""With MESH_PURE_PYTHON=1 all that is compiled runs as the Python it is made of, and does the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
# What is there in two forms has only one here: that is no lack (MESH_REQUIRE).
PURE = os.environ | {"MESH_PURE_PYTHON": "1", "MESH_REQUIRE": ""}

CODE = """
import sys
import control.server, mesh.cli.main, proxy.sidecar
print([name for name, module in sys.modules.items()
       if name.partition(".")[0] in ("mesh", "proxy", "control") and not (module.__file__ or "").endswith(".py")])
"""


def test_nothing_compiled_is_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], env=PURE, cwd=REPO, check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "what",
    [
        "tests/integration/bugs_in_callbacks.py",
        "tests/integration/test_exchange.py",
        "tests/integration/test_http2.py",
        "tests/integration/test_websocket.py",
        "tests/conformance/test_http1_framing.py",
        "tests/unit/proxy",
    ],
)
def test_it_passes(what: str) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", what]
    done = subprocess.run(words, env=PURE, cwd=REPO, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
