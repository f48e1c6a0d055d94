"""A real Prometheus scrapes a real sidecar and answers what Istio's dashboards ask it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.mesh import Program
from tests.support.needs import require
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.telemetry import endpoints, sidecar

pytestmark = [pytest.mark.e2e, pytest.mark.peer]


async def test_prometheus_scrapes_a_sidecar_and_answers_a_dashboards_query(tmp_path: Path) -> None:
    binary = require("prometheus")
    program, port = Program([200, 200, 500]), free_port()
    await program.start()
    services = {"pay": endpoints(program.port)}
    async with sidecar("shop", services=services) as caller:
        config = tmp_path / "prometheus.json"  # JSON is YAML
        target = caller.admin.removeprefix("http://")
        config.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
                    "scrape_configs": [{"job_name": "mesh", "static_configs": [{"targets": [target]}]}],
                }
            )
        )
        for _ in range(3):
            await caller.call("pay", method="POST", data=b"12345")
        command = (
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        )
        async with Process.start(binary, *command, log=tmp_path / "prometheus.log") as prometheus:

            async def asked(query: str) -> list[dict[str, Any]]:
                try:
                    async with (
                        aiohttp.ClientSession() as session,
                        session.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query}) as answer,
                    ):
                        return (await answer.json())["data"]["result"] if answer.status == 200 else []
                except aiohttp.ClientError:
                    return []

            by_code = 'sum(istio_requests_total{reporter="source",destination_service_name="pay"}) by (response_code)'
            await prometheus.until(lambda: asked(by_code), what="the first scrape", timeout_s=60)
            assert {r["metric"]["response_code"]: r["value"][1] for r in await asked(by_code)} == {
                "200": "2",
                "500": "1",
            }
            (up,) = await asked("up")
            assert up["value"][1] == "1"
            (size,) = await asked("sum(istio_request_bytes_sum)")
            assert size["value"][1] == "15"
            (quantile,) = await asked(
                "histogram_quantile(0.99, sum(istio_request_duration_milliseconds_bucket) by (le))"
            )
            assert 0 < float(quantile["value"][1]) <= 10_000
            (known,) = await asked('mesh_endpoints{service="pay",state="usable"}')
            assert known["value"][1] == "1"
    await program.stop()
