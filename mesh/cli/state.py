"""Where programs keep what should outlive them, as the XDG Base Directory Specification says."""

from __future__ import annotations

import os
from pathlib import Path


def state_directory(what: str) -> Path | None:
    """``$XDG_STATE_HOME/sidemesh/WHAT``, or the same in ``~/.local/state``; None where there is no home either."""
    state = os.environ.get("XDG_STATE_HOME")
    try:
        return Path(state or Path.home() / ".local/state") / "sidemesh" / what
    except RuntimeError:  # Path.home() of a user that the system does not know
        return None
