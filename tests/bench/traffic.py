"""The requests: 1000 different ones, made beforehand, the same bytes for every proxy. Pure.

Ten routes, varying paths and queries, eight or nine header fields (about 480 bytes), a traceparent of its own on each
and a request id on half, as callers that are themselves traced send them. Their traces are all sampled, and each proxy
decides on its own which of them it records: Envoy records what both its caller and its own ratio want, so that this is
the one way in which it and we record the same share, and neither does any work for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

ROUTES = 10
SERVICE = "shop"
COUNT = 1000
_AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36",
    "python-httpx/0.27.0 (shop-frontend; build 20241105)",
    "okhttp/4.12.0 (Android 14; shop-app 7.31)",
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is asked for. ``body`` names what the upstream answers with: "", 64kib or 1mib."""

    body: str = ""
    closes: bool = False
    """Each request asks for its connection to be closed, so that the next needs a new one."""

    def requests(self) -> list[bytes]:
        """All of them, always the same."""
        rng = Random(7)
        return [self._request(index, rng) for index in range(COUNT)]

    def _request(self, index: int, rng: Random) -> bytes:
        path = f"/r{index % ROUTES}/{self.body or 'items'}/{rng.randrange(10**6)}?page={rng.randrange(50)}&sort=price"
        traceparent = f"00-{rng.getrandbits(128) | 1:032x}-{rng.getrandbits(64) | 1:016x}-01"
        fields = [
            ("Host", SERVICE),
            ("User-Agent", _AGENTS[index % len(_AGENTS)]),
            ("Accept", "application/json, text/plain;q=0.9, */*;q=0.5"),
            ("Accept-Language", "en-GB,en;q=0.8,de;q=0.5"),
            ("Cookie", f"session={rng.getrandbits(96):024x}; theme=dark"),
            ("X-Tenant", f"tenant-{index % 20}"),
            ("Cache-Control", "no-cache"),
            ("traceparent", traceparent),
        ]
        if index % 2:
            fields.append(("x-request-id", f"{rng.getrandbits(32):08x}-0000-4000-a000-{rng.getrandbits(48):012x}"))
        if self.closes:
            fields.append(("Connection", "close"))
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        return f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()


def wrk_script(requests: list[bytes]) -> str:
    """A script for wrk that sends the requests in turn and prints what happened as one line of figures."""
    quoted = ",\n".join('  "' + request.decode().replace("\r\n", "\\r\\n") + '"' for request in requests)
    return f"""local requests = {{
{quoted}
}}
local turn = 0
function request()
  turn = turn % {len(requests)} + 1
  return requests[turn]
end
function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.status, e.connect, e.read, e.write, e.timeout))
end
"""
