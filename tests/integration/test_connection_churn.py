"""Half-closes by the thousand do not end the process (never write_eof() on uvloop: dup and shutdown instead)."""

import sys
from pathlib import Path

import pytest

from tests.support.process import Process


@pytest.mark.parametrize("kind", ["http", "tcp"])
async def test_2000_connections_half_closed_and_reset_leave_a_living_process(tmp_path: Path, kind: str) -> None:
    command = (sys.executable, "-X", "dev", "-m", "tests.support.churn", "2000", kind)
    async with Process.start(*command, log=tmp_path / "churn.log") as churn:
        assert await churn.wait(timeout_s=60) == 0, churn.output()
        assert "none left" in churn.output()
        assert "Traceback" not in churn.output()
