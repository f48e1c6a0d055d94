"""What a program's calls out of its sidecar meet: first requests, backends nobody runs, hosts outside the mesh."""

import asyncio
import contextlib
import json
import signal
import ssl
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.support.certificates import Authority
from tests.support.consul import ConsulAgent
from tests.support.fleet import MESH, Fleet, SidecarProcess, get, patched
from tests.support.needs import require
from tests.support.ports import free_port
from tests.support.process import until

pytestmark = pytest.mark.e2e

WORKERS = pytest.mark.parametrize("workers", [1, 2])
LOOPBACK_ALLOWED = patched("import proxy.directory; proxy.directory._may_go_to = lambda address: True")


async def register(consul: ConsulAgent, service: str, port: int) -> None:
    await consul.put("/v1/agent/service/register", {"Name": service, "Address": "127.0.0.1", "Port": port})


@WORKERS
async def test_any_number_of_first_requests_share_one_lookup(tmp_path: Path, consul: ConsulAgent, workers: int) -> None:
    async with Fleet(tmp_path, workers=workers) as fleet:
        fleet.consul_url = consul.url
        _, port = await fleet.program("pay")
        await register(consul, "pay", port)
        caller = await fleet.sidecar("caller")
        answers = await asyncio.gather(*(get(caller.url(), {"host": "pay"}) for _ in range(200)))
        assert [str(answer) for answer in answers if answer.status != 200] == []


async def test_the_share_of_a_backend_that_nobody_ever_registered_gets_500_until_it_is_there(
    tmp_path: Path, consul: ConsulAgent
) -> None:
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "pay"},
        "spec": {
            "parentRefs": [{"kind": "Service", "group": "", "name": "pay"}],
            "rules": [{"backendRefs": [{"name": "pay", "port": 80}, {"name": "newcomer", "port": 80}]}],
        },
    }  # fmt: skip
    config = tmp_path / "caller.yaml"
    config.write_text(json.dumps({"routes": [route]}))
    async with Fleet(tmp_path) as fleet:
        fleet.consul_url = consul.url
        _, port = await fleet.program("pay")
        await register(consul, "pay", port)
        caller = await fleet.sidecar("caller", "--config", str(config))

        async def answers() -> set[tuple[int, str]]:
            found = await asyncio.gather(*(get(caller.url(), {"host": "pay"}) for _ in range(40)))
            return {(answer.status, answer.flag) for answer in found}

        assert await answers() == {(200, ""), (500, "NC")}
        await register(consul, "newcomer", port)

        async def is_whole() -> bool:
            return await answers() == {(200, "")}

        await until(is_whole, what="the newcomer to get its share")
        await consul.put("/v1/agent/service/deregister/newcomer", {})

        # Who was there once is no invalid backend: it may come back.
        async def is_down() -> bool:
            return (503, "UH") in await answers()

        async with Fleet(tmp_path / "short") as other:
            (tmp_path / "short").mkdir()
            other.consul_url = consul.url
            await register(consul, "newcomer", port)
            short = await other.sidecar("short", "--config", str(config), "--grace-s", "0.2")
            caller = short
            await until(is_whole, what="the newcomer to get its share again")
            await consul.put("/v1/agent/service/deregister/newcomer", {})
            await until(is_down, what="its grace time to end")
            assert await answers() == {(200, ""), (503, "UH")}


async def test_sidecars_speak_http2_to_each_other(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        await fleet.control()
        await fleet.instance("pay")
        caller = await fleet.sidecar("caller")
        await caller.until_usable("pay", 1)
        answers = await asyncio.gather(*(get(caller.url(), {"host": "pay"}) for _ in range(50)))
        for answer in answers:
            assert answer.status == 200, str(answer)
            assert answer.headers["via"].startswith("2.0 sidemesh-out-")  # how the other sidecar answered


async def test_a_sidecar_without_discovery_says_500_for_a_backend_no_file_names(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        _, port = await fleet.program("pay")
        config = tmp_path / "caller.json"
        config.write_text(
            json.dumps(
                {
                    "services": {"pay": [{"id": "pay", "address": "127.0.0.1", "port": port}]},
                    "routes": [
                        {
                            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                            "metadata": {"name": "pay"},
                            "spec": {
                                "parentRefs": [{"kind": "Service", "group": "", "name": "pay"}],
                                "rules": [{"backendRefs": [{"name": "nobody", "port": 80}]}],
                            },
                        }
                    ],
                }
            )
        )  # fmt: skip
        caller = await fleet.sidecar("caller", "--config", str(config))
        answer = await get(caller.url(), {"host": "pay"})
        assert (answer.status, answer.flag) == (500, "NC")
        assert b"nobody" in answer.body


@WORKERS
async def test_egress_goes_where_dns_says_and_never_to_loopback(tmp_path: Path, workers: int) -> None:
    async with Fleet(tmp_path, workers=workers) as fleet:
        _, port = await fleet.program("outside")
        denied, allowed, patched_ = await asyncio.gather(
            fleet.sidecar("denied"),
            fleet.sidecar("allowed", "--egress", "allow"),
            fleet.sidecar("patched", "--egress", "allow", entry=LOOPBACK_ALLOWED),
        )
        answer = await get(denied.url(), {"host": f"localhost:{port}"})
        assert (answer.status, answer.flag) == (404, "NR")
        assert b"--egress allow" in answer.body
        for host in ("localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433", "127.1"):
            answer = await get(allowed.url(), {"host": f"{host}:{port}"})
            assert (host, answer.status, answer.flag) == (host, 404, "NR")
        answer = await get(allowed.url(), {"host": "no-such-host.invalid"})
        assert (answer.status, answer.flag) == (404, "NR")
        if workers == 1:  # fresh worker processes know nothing of the patch, and need not
            answers = await asyncio.gather(*(get(patched_.url(), {"host": f"localhost:{port}"}) for _ in range(100)))
            assert {(answer.status, answer.told["service"]) for answer in answers} == {(200, "outside")}


async def raw(sidecar: SidecarProcess, data: bytes) -> bytes:
    """Everything that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.outbound)
    with contextlib.closing(writer):
        writer.write(data)
        async with asyncio.timeout(10):
            return await reader.read()


async def connect(sidecar: SidecarProcess, target: str) -> tuple[int, str, str]:
    """A CONNECT that is refused: its status, flag and message."""
    head, _, body = (await raw(sidecar, f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n".encode())).partition(
        b"\r\n\r\n"
    )
    flag = head.partition(b'details="')[2].partition(b" ")[0]
    return int(head.split(b" ", 2)[1]), flag.decode(), body.decode()


@WORKERS
async def test_connect_goes_where_egress_goes_and_to_the_ports_it_is_told(tmp_path: Path, workers: int) -> None:
    async with Fleet(tmp_path, workers=workers) as fleet:
        services = str(fleet.services_file(pay=1))
        options = ("--egress", "allow", "--services", services)
        off, on = await asyncio.gather(
            fleet.sidecar("off", *options), fleet.sidecar("on", *options, "--egress-connect", "443,8443")
        )
        status, _, said = await connect(off, "example.org:443")
        assert (status, "--egress-connect" in said) == (501, True)
        for host in ("localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433", "127.1"):
            status, flag, said = await connect(on, f"{host}:443")
            assert (host, status, flag, "loopback" in said) == (host, 404, "NR", True)
        for target, status, words in (
            ("169.254.169.254:443", 404, "link-local"),
            ("no-such-host.invalid:8443", 404, "DNS"),
            ("example.org:22", 403, "only to 443, 8443"),
            ("pay:443", 403, "is a service of the mesh"),
        ):
            found, flag, said = await connect(on, target)
            assert (target, found, flag, words in said) == (target, status, "NR", True), said


async def test_curl_reaches_a_tls_server_through_its_sidecar(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("localhost"))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET /hold "):
                await reader.read()  # until its client is gone
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\noutside")

    async with Fleet(tmp_path) as fleet, await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        port, own = server.sockets[0].getsockname()[1], free_port()
        log = tmp_path / "access.log"
        sidecar = await fleet.sidecar(
            "caller", "--outbound", f"127.0.0.1:{own}", "--egress", "allow", "--egress-connect", f"{port},{own}",
            "--access-log", "all", "--access-log-path", str(log), "--drain-s", "1", entry=LOOPBACK_ALLOWED,
        )  # fmt: skip

        async def curl(path: str, *options: str) -> asyncio.subprocess.Process:
            words = (require("curl"), "-sS", "--cacert", str(authority.certificate), *options)
            return await asyncio.create_subprocess_exec(
                *words, f"https://localhost:{port}{path}", env={"https_proxy": f"http://127.0.0.1:{own}"},
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip

        for options in ((), ("--proxy-http2",) if await knows(require("curl"), "--proxy-http2") else ()):
            said, wrong = await (await curl("/", *options)).communicate()
            assert (said, wrong) == (b"outside", b"")

        # A way out that comes back is none.
        status, flag, message = await connect(sidecar, f"127.0.0.1:{own}")
        assert (status, flag, "own listener" in message) == (404, "NR", True)

        # A drain waits for a tunnel under way, for as long as it may.
        held = await curl("/hold")
        await until(partial(under_way, sidecar), what="the tunnel")
        sidecar.process.signal(signal.SIGTERM)
        assert await sidecar.process.wait() == 0
        assert "1 exchanges are given up" in sidecar.process.output()
        assert (await held.communicate())[0] == b""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    tunnels = [line for line in lines if line["method"] == "CONNECT" and line["response_code"] == 200]
    assert tunnels[0]["authority"] == f"localhost:{port}"
    assert tunnels[0]["upstream_host"] == f"127.0.0.1:{port}"
    assert tunnels[0]["bytes_sent"] > 100


async def knows(program: str, option: str) -> bool:
    asked = await asyncio.create_subprocess_exec(program, "--help", "all", stdout=asyncio.subprocess.PIPE)
    return option.encode() in (await asked.communicate())[0]


async def under_way(sidecar: SidecarProcess) -> bool:
    return await sidecar.metric("mesh_exchanges_under_way") >= 1


async def test_why_says_what_then_happens(tmp_path: Path) -> None:
    def route(name: str, *backends: tuple[str, str | None, int]) -> dict[str, object]:
        refs = [
            {
                "name": service, "port": 80, "weight": weight,
                **({"filters": [{"type": "ExtensionRef", "extensionRef": {
                    "group": "mesh.sidemesh.dev", "kind": "Subset", "name": subset}}]} if subset else {}),
            }
            for service, subset, weight in backends
        ]  # fmt: skip
        rule = {"backendRefs": refs, "matches": [{"path": {"type": "PathPrefix", "value": f"/{name}"}}]}
        parents = [{"kind": "Service", "group": "", "name": "pay"}]
        return {
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name},
            "spec": {"parentRefs": parents, "rules": [rule]},
        }  # fmt: skip

    async with Fleet(tmp_path) as fleet:
        _, port = await fleet.program("pay")
        config = tmp_path / "caller.json"
        document = {
            "services": {
                "pay": [{"id": "pay", "address": "127.0.0.1", "port": port, "version": "v1"}],
                "sick": [{"id": "sick", "address": "127.0.0.1", "port": port, "health": "critical"}],
            },
            "routes": [
                route("whole", ("pay", None, 1)),
                route("v9", ("pay", "v9", 1)),
                route("ghost", ("nobody", None, 1)),
                route("sick", ("sick", None, 1)),
                route("drained", ("pay", None, 0)),
                route("half", ("pay", None, 1), ("sick", None, 1)),
            ],
        }
        config.write_text(json.dumps(document))
        caller = await fleet.sidecar("caller", "--config", str(config))

        async def outcome(host: str, path: str) -> str:
            found = await get(f"http://127.0.0.1:{caller.admin}/why?url=http://{host}/{path}&format=json")
            return str(found.told["outcome"])

        for host, path in (
            ("pay", "whole"), ("pay", "v9"), ("pay", "ghost"), ("pay", "sick"), ("pay", "drained"), ("pay", "none"),
            ("sick", ""), ("nobody", ""), ("unheard-of", ""), ("example.com", ""), ("not_a.label", ""),
        ):  # fmt: skip
            said = await outcome(host, path)
            answer = await get(caller.url(f"/{path}"), {"host": host})
            expected = "forwarded" if answer.status == 200 else f"{answer.status} {answer.flag}:"
            assert said.startswith(expected), (host, path, said, str(answer))
        words = (*MESH, "why", "GET", "http://pay/whole", "--admin", f"127.0.0.1:{caller.admin}", "-o", "yaml")
        asked = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        assert yaml.safe_load((await asked.communicate())[0])["outcome"] == await outcome("pay", "whole")
        assert await outcome("pay", "half") == "50 % forwarded; 50 % 503 UH: sick has no healthy endpoint"


@WORKERS
async def test_a_port_of_a_services_own_goes_there_whatever_host_says(tmp_path: Path, workers: int) -> None:
    async with Fleet(tmp_path, workers=workers) as fleet:
        _, pay = await fleet.program("pay")
        _, ratings = await fleet.program("ratings")
        own = free_port()
        services = str(fleet.services_file(pay=pay, ratings=ratings))
        caller = await fleet.sidecar("caller", "--services", services, "--upstream", f"ratings={own}")
        for host in ("pay", "nobody", "127.0.0.1", "db.example:5432"):
            answer = await get(f"http://127.0.0.1:{own}/", {"host": host})
            assert (answer.status, answer.told["service"]) == (200, "ratings")
        assert (await get(caller.url(), {"host": "pay"})).told["service"] == "pay"


async def test_who_says_not_sent_without_being_a_sidecar_is_not_believed_through_one(tmp_path: Path) -> None:
    """The program answers 503 and claims never to have seen the request: its sidecar knows better."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):  # the check only connects
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 503 No\r\nx-mesh-not-sent: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    async with Fleet(tmp_path) as fleet, await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        pay = await fleet.sidecar("pay", "--port", str(server.sockets[0].getsockname()[1]))
        caller = await fleet.sidecar("caller", "--services", str(fleet.services_file(pay=pay.inbound)))
        said = await get(caller.url(), {"host": "pay", "x-mesh-not-sent": "1"}, method="POST", data=b"x")
        assert (said.status, said.headers.get("x-mesh-not-sent")) == (503, None)
        posts = [head for head in asked if head.startswith(b"POST")]
        assert len(posts) == 1
        assert b"not-sent" not in posts[0]


async def test_a_flood_of_unknown_names_leaves_connections_and_memory_flat(tmp_path: Path, consul: ConsulAgent) -> None:
    async with Fleet(tmp_path) as fleet:
        fleet.consul_url = consul.url
        _, port = await fleet.program("pay")
        await register(consul, "pay", port)
        caller = await fleet.sidecar("caller")

        async def flood(first: int) -> set[int]:
            found: set[int] = set()
            for start in range(first, first + 2000, 50):
                names = [f"name-{number}" for number in range(start, start + 50)]
                found |= {a.status for a in await asyncio.gather(*(get(caller.url(), {"host": n}) for n in names))}
            return found

        assert await flood(0) <= {404, 503}
        before = caller.rss_bytes()
        assert await flood(2000) <= {404, 503}
        assert caller.rss_bytes() - before < 4 * 1024 * 1024
        assert connections_to(caller.process.pid, int(consul.url.rpartition(":")[2])) <= 20
        assert (await caller.page("stats"))["discovery"]["on_demand"] == 0
        assert (await get(caller.url(), {"host": "pay"})).status == 200


def connections_to(pid: int, port: int) -> int:
    """How many connections a process has to a port of loopback."""
    links = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(each.readlink()))
    inodes = {link[8:-1] for link in links if link.startswith("socket:")}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[9] in inodes for row in rows)
