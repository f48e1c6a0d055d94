"""A real Consul agent for one test."""

import json
import shutil
from pathlib import Path
from typing import Any, Self

import aiohttp

from tests.support.ports import free_ports
from tests.support.process import Process


class ConsulAgent:
    """A one-node Consul server on free loopback ports, started on entry and stopped on exit.

    It keeps its state under ``directory`` and its ports over restarts, so a test can choose what a restart loses.
    ``config`` is merged into the agent's configuration (JSON as Consul's documentation has it), its ports too.
    """

    def __init__(self, binary: Path, directory: Path, *, config: dict[str, Any] | None = None) -> None:
        self._binary = binary
        self._data = directory / "data"
        self._config = directory / "agent.json"
        self.log = directory / "agent.log"
        # Every port is given, or agents side by side collide on the defaults.
        self.http_port, grpc, dns, server, serf = free_ports(5)
        settings: dict[str, Any] = {
            "server": True,
            "bootstrap_expect": 1,
            "node_name": "n",
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "data_dir": str(self._data),
            "ports": {
                "http": self.http_port,
                "grpc": grpc,
                "dns": dns,
                "server": server,
                "serf_lan": serf,
                "serf_wan": -1,
            },
            "connect": {"enabled": True},
            "performance": {"raft_multiplier": 1},  # a leader in 2 s rather than in 10
            "disable_update_check": True,
        }
        ports = settings["ports"] | (config or {}).get("ports", {})
        self._config.write_text(json.dumps(settings | (config or {}) | {"ports": ports}))
        self.process: Process | None = None
        self._session: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def pid(self) -> int:
        return self._running().pid

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(self.url, timeout=aiohttp.ClientTimeout(total=5))
        try:
            await self.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process:
            await self.process.stop()
        if self._session:
            await self._session.close()

    async def start(self) -> None:
        """Start the agent and wait until its leader has all that was written before, so that reads and writes work."""
        self.process = Process.start(self._binary, "agent", f"-config-file={self._config}", log=self.log)
        await self.process.until(self._has_leader, what="Consul to elect its leader", timeout_s=30)

    async def stop(self) -> None:
        """End it in order (SIGTERM)."""
        await self._running().stop()

    async def kill(self) -> None:
        """End it as a crash would (SIGKILL)."""
        await self._running().kill()

    async def restart(self, *, clean: bool) -> None:
        """Stop it if it runs and start it on the same ports, with an empty state if ``clean``."""
        await self._running().stop()
        if clean:
            shutil.rmtree(self._data)
        await self.start()

    async def get(self, path: str, **query: str) -> Any:
        """The decoded answer to GET ``path`` (with /v1); ClientResponseError when Consul refuses."""
        assert self._session
        async with self._session.get(path, params=query, raise_for_status=True) as response:
            return await response.json()

    async def put(self, path: str, body: object = None, **query: str) -> None:
        """PUT ``body`` as JSON to ``path`` (with /v1); ClientResponseError when Consul refuses."""
        assert self._session
        async with self._session.put(path, json=body, params=query, raise_for_status=True):
            pass

    async def _has_leader(self) -> bool:
        # A leader is known before it has read its log to the end, and answers 404 for a key that is there: only a
        # consistent read waits for that (and is refused until then).
        try:
            if not await self.get("/v1/status/leader"):
                return False
            await self.get("/v1/catalog/nodes", consistent="")  # an empty list where ACLs hide them: that will do
        except aiohttp.ClientError:
            return False
        return True

    def _running(self) -> Process:
        assert self.process, "used outside its `async with`"
        return self.process
