"""A page in a real Chromium calls a gRPC service through a sidecar, and reads what a page can read of it."""

import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mesh.model.service import Endpoint
from proxy.http1.limits import ConnectionLimits
from proxy.listener import OutboundListener
from tests.support.grpc_echo import GRPC, echo_server
from tests.support.mesh import mesh, name, serve
from tests.support.needs import require
from tests.support.process import Process

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# The page and the gRPC service are one origin: routes tell them apart.
ROUTES = """
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: web-calls}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules:
  - matches: [{method: {service: test.Echo}}]
    backendRefs: [{name: echo}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web-page}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules:
  - backendRefs: [{name: web}]
"""

PAGE = rb"""<!doctype html><title>gRPC-Web</title><script type="module">
const enc = new TextEncoder(), dec = new TextDecoder("latin1");
function frame(data) {
  const out = new Uint8Array(5 + data.length);
  new DataView(out.buffer).setUint32(1, data.length);
  out.set(data, 5);
  return out;
}
const toText = bytes => btoa(String.fromCharCode(...bytes));
const fromText = text => Uint8Array.from(text.match(/[^=]+=*/g).map(atob).join(""), c => c.charCodeAt(0));
function frames(bytes) {
  const found = [];
  for (let at = 0; at < bytes.length;) {
    const size = new DataView(bytes.buffer, bytes.byteOffset + at).getUint32(1);
    found.push([bytes[at], dec.decode(bytes.subarray(at + 5, at + 5 + size))]);
    at += 5 + size;
  }
  return found;
}
async function call(method, data, type, more = {}) {
  const body = frame(enc.encode(data)), isText = type.includes("-text");
  const answer = await fetch("/test.Echo/" + method, {
    method: "POST",
    headers: {"content-type": type, "x-grpc-web": "1", ...more},
    body: isText ? toText(body) : body,
  });
  const bytes = new Uint8Array(await answer.arrayBuffer());
  return {
    status: answer.status,
    type: answer.headers.get("content-type"),
    head: answer.headers.get("grpc-status"),
    frames: bytes.length ? frames(isText ? fromText(dec.decode(bytes)) : bytes) : [],
  };
}
const results = {};
try {
  for (const type of ["application/grpc-web+proto", "application/grpc-web-text+proto"]) {
    results[type] = {
      unary: await call("Unary", "hello", type),
      many: await call("Many", "3", type),
      fail: await call("Unary", "fail", type),
      late: await call("Unary", "hang", type, {"grpc-timeout": "200m"}),
      nobody: await call("None", "", type),
    };
  }
} catch (error) {
  results.error = String(error);
}
await fetch("/result", {method: "POST", body: JSON.stringify(results)});
</script>"""


async def test_a_page_calls_a_service_of_its_own_origin(tmp_path: Path) -> None:
    chromium = require("chromium")
    page = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n%b" % (len(PAGE), PAGE)
    async with (
        mesh().service("web", replies=[page]).routes(ROUTES).start() as m,
        echo_server() as (server, port),
        AsyncExitStack() as stack,
    ):
        m.plane.apply_endpoints(name(GRPC), (Endpoint("e0", "127.0.0.1", port),))
        listener = OutboundListener(m.plane, "sidemesh-out-web", ConnectionLimits(), service=name("web"))
        local_port = await serve(stack, listener)  # as --upstream web=PORT gives
        program = m.programs["web"][0]

        def results() -> list[bytes]:
            return [request.body for request in program.requests if request.line.startswith("POST /result ")]

        async with Process.start(
            chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-proxy-server",
            "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={tmp_path / 'profile'}",
            f"http://127.0.0.1:{local_port}/", log=tmp_path / "chromium.log",
        ) as browser:  # fmt: skip
            await browser.until(results, what="the page's results", timeout_s=45)
        told = json.loads(results()[0])
        assert "error" not in told, told
        for kind in ("application/grpc-web", "application/grpc-web-text"):
            seen = told[f"{kind}+proto"]
            assert {answer["status"] for answer in seen.values()} == {200}
            assert {answer["type"] for answer in seen.values()} == {kind}
            assert seen["unary"]["frames"][0] == [0, "hello"]
            assert seen["unary"]["frames"][1][0] == 0x80
            assert "grpc-status: 0\r\n" in seen["unary"]["frames"][1][1]
            assert [data for flags, data in seen["many"]["frames"] if not flags] == ["0", "1", "2"]
            assert [seen[key]["head"] for key in ("fail", "late", "nobody")] == ["9", "4", "12"]
        assert server.calls == 6
        assert m.cells()[GRPC, 0, ""] == 4
