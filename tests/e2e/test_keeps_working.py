"""It keeps working, on real processes: what dies, hangs or comes back empty costs no request."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.support.fleet import Fleet, get
from tests.support.process import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

AWAY_S = float(os.environ.get("MESH_TEST_AWAY_S", "8"))
"""How long the control server is dead under load; the release is tested with 60."""


async def test_a_dead_control_server_costs_no_request_and_is_obeyed_again_when_it_is_back(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        control = await fleet.control()
        old, new, caller = await asyncio.gather(
            fleet.instance("pay", version="v1", label="pay-1"),
            fleet.instance("pay", version="v2", label="pay-2"),
            fleet.sidecar("caller", "--data", str(tmp_path / "caller")),
        )
        nodes = (old.sidecar.node, new.sidecar.node, caller.node)
        await caller.until_usable("pay", 2)
        assert (await control.set_weights("pay", v1=100, v2=0)).is_acked_by_all
        async with fleet.load(caller, "pay") as load:
            await load.more(60)
            await control.kill()
            await load.run_for(AWAY_S)
            assert load.shares() == {"v1": 1.0}
            assert await caller.metric("mesh_control_connected") == 0
            await control.restart()
            await control.until_acked(*nodes)
            assert (await control.set_weights("pay", v1=0, v2=100)).is_acked_by_all
            await load.more(20)  # what was under way when the weights changed
            since = await load.more(60)
            assert load.shares(since) == {"v2": 1.0}
        assert not load.failures
