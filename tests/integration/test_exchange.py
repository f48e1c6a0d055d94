"""The request path on real sockets: what comes back, what is repeated, what is broken off."""

import asyncio
import json

import pytest

from mesh.model.policy import Limits, OutlierDetection, ServicePolicy, TlsPolicy
from mesh.model.route import Retry
from tests.support.control import background
from tests.support.mesh import Request, mesh, name
from tests.support.process import until

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def test_a_request_reaches_the_service_its_host_names() -> None:
    async with mesh().service("pay").start() as m:
        answer = await m.get("pay", "/charge?x=%2F")
        assert (answer.status, answer.body) == (200, b"hello")
        assert m.programs["pay"][0].requests[0].line == "GET /charge?x=%2F HTTP/1.1"
        assert m.cells() == {("pay", 200, ""): 1}


async def test_an_absolute_target_wins_over_host() -> None:
    async with mesh().service("pay").service("other").start() as m:
        answer = await m.get("other", "http://pay/charge")
        assert answer.status == 200
        assert m.programs["pay"][0].requests[0].line == "GET /charge HTTP/1.1"
        assert m.programs["pay"][0].requests[0].fields("host") == ["pay"]
        assert not m.programs["other"][0].requests


@pytest.mark.parametrize("host", ["pay:80", "pay.service.consul", "PAY", "pay.", "pay.default.service.consul:8080"])
async def test_every_form_of_a_services_name_is_understood(host: str) -> None:
    async with mesh().service("pay").start() as m:
        assert (await m.get(host)).status == 200


async def test_an_unknown_name_gets_404_with_what_to_do() -> None:
    async with mesh().service("pay").start() as m:
        answer = await m.get("nobody")
        assert (answer.status, answer.flag) == (404, "NR")
        assert b"register it" in answer.body
        assert m.directory.lookups == [name("nobody")]


async def test_a_name_that_cannot_be_a_service_is_never_looked_up() -> None:
    async with mesh().service("pay").start() as m:
        assert (await m.get("not_a.label.example")).status == 404
        assert m.directory.lookups == []


async def test_without_a_table_nothing_is_routed() -> None:
    async with mesh().service("pay").without_table().start() as m:
        answer = await m.get("pay")
        assert (answer.status, answer.flag) == (503, "NR")
        assert not m.programs["pay"][0].requests


async def test_fields_are_forwarded_in_order_and_byte_for_byte() -> None:
    async with mesh().service("pay").start() as m:
        await m.get("pay", headers=["x-b: 1", "X-A: caf\xe9 \x80", "x-b: 2", "cookie: a=b; c=d"])
        seen = m.programs["pay"][0].requests[0]
        assert seen.fields("x-b") == ["1", "2"]
        assert b"X-A: caf\xe9 \x80\r\n" in seen.head
        assert seen.fields("cookie") == ["a=b; c=d"]


async def test_hop_by_hop_fields_stay_on_their_hop() -> None:
    async with mesh().service("pay").start() as m:
        headers = ["connection: keep-alive, x-private", "x-private: 1", "keep-alive: 5", "te: gzip",
                   "proxy-authorization: secret", "proxy-connection: keep-alive", "upgrade: h2c"]  # fmt: skip
        assert (await m.get("pay", headers=headers)).status == 200
        seen = m.programs["pay"][0].requests[0]
        for field in (
            "connection",
            "x-private",
            "keep-alive",
            "te",
            "proxy-authorization",
            "proxy-connection",
            "upgrade",
        ):
            assert seen.fields(field) == [], field


async def test_a_request_with_upgrade_and_a_body_is_served_as_ordinary_http() -> None:
    async with mesh().service("pay").start() as m:
        answer = await m.get("pay", method="POST", headers=["connection: upgrade", "upgrade: h2c"], body=b"12345")
        assert answer.status == 200
        assert [r.body for r in m.programs["pay"][0].requests] == [b"12345"]


@pytest.mark.parametrize(("method", "status"), [("OPTIONS", 200), ("TRACE", 405)])
async def test_max_forwards_counts_down_and_ends_the_request_at_zero(method: str, status: int) -> None:
    async with mesh().service("pay", sidecar=True).start() as m:
        assert (await m.get("pay", method=method, headers=["max-forwards: 5"])).status == 200
        assert m.programs["pay"][0].requests[0].fields("max-forwards") == ["3"]  # two sidecars
        for left in ("0", "1"):
            answer = await m.get("pay", method=method, headers=[f"max-forwards: {left}"])
            assert (answer.status, b"Max-Forwards: 0" in answer.body) == (status, True)
        assert len(m.programs["pay"][0].requests) == 1
        assert (await m.get("pay", headers=["max-forwards: 0"])).status == 200  # for other methods it means nothing


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with mesh().service("pay", replies=[200, 404, 500]).start() as m:
        client = await m.connect()
        client.send(
            b"GET /1 HTTP/1.1\r\nhost: pay\r\n\r\nGET /2 HTTP/1.1\r\nhost: pay\r\n\r\nGET /3 HTTP/1.1\r\nhost: pay\r\n\r\n"
        )
        assert [(await client.receive()).status for _ in range(3)] == [200, 404, 500]


async def test_ten_thousand_pipelined_local_answers_do_not_recurse() -> None:
    async with mesh().service("pay").start() as m:
        client = await m.connect()
        client.send(b"GET / HTTP/1.1\r\nhost: a_b\r\n\r\n" * 10_000)
        for _ in range(10_000):
            assert (await client.receive()).status == 404


async def test_chunked_bodies_and_trailers_pass_both_ways() -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        request.body = await request.reader.readuntil(b"0\r\nx-sum: 9\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nx-end: yes\r\n\r\n"
        )

    async with mesh().service("pay", replies=[reply]).start() as m:
        client = await m.connect()
        client.send(
            b"POST / HTTP/1.1\r\nhost: pay\r\ntransfer-encoding: chunked\r\n\r\n4\r\nwxyz\r\n0\r\nx-sum: 9\r\n\r\n"
        )
        answer = await client.receive()
        assert (answer.body, answer.trailers) == (b"abcde", [("x-end", "yes")])
        assert m.programs["pay"][0].requests[0].body == b"4\r\nwxyz\r\n0\r\nx-sum: 9\r\n\r\n"


async def test_100_continue_goes_through_before_the_body_is_sent() -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        assert request.fields("expect") == ["100-continue"]
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.body = await request.reader.readexactly(5)
        writer.write(OK)

    async with mesh().service("pay", replies=[reply]).start() as m:
        client = await m.connect()
        client.send(b"POST / HTTP/1.1\r\nhost: pay\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n")
        assert (await client.receive_head()).status == 100
        client.send(b"12345")
        assert (await client.receive()).body == b"ok"


async def test_the_answer_may_begin_and_end_before_the_request_does() -> None:
    async def reply(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await writer.drain()
        writer.close()

    async with mesh().service("pay", replies=[reply, 200]).start() as m:
        client = await m.connect()
        client.send(b"POST / HTTP/1.1\r\nhost: pay\r\ncontent-length: 1000\r\n\r\n" + b"x" * 500)
        answer = await client.receive()
        assert (answer.status, answer.body) == (413, b"big")
        client.send(b"x" * 500 + b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        assert (await client.receive()).status == 200  # the rest of the body was read away, the connection lives


async def test_both_bodies_may_flow_at_once() -> None:
    async def echo(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n")
        for _ in range(3):
            writer.write(await request.reader.readexactly(4))
            await writer.drain()

    async with mesh().service("pay", replies=[echo]).start() as m:
        client = await m.connect()
        client.send(b"POST / HTTP/1.1\r\nhost: pay\r\ncontent-length: 12\r\n\r\n")
        assert (await client.receive_head()).status == 200
        for part in (b"abcd", b"efgh", b"ijkl"):
            client.send(part)
            async with asyncio.timeout(5):
                assert await client.reader.readexactly(4) == part


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_head_answer_has_no_body_and_keeps_its_length(method: str) -> None:
    async with (
        mesh()
        .service("pay", replies=[b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + (b"ok" if method == "GET" else b"")])
        .start() as m
    ):
        client = await m.connect()
        for _ in range(2):
            client.send(f"{method} / HTTP/1.1\r\nhost: pay\r\n\r\n".encode())
            answer = await client.receive(method)
            assert (answer.status, answer.get("content-length")) == (200, "2")


async def test_a_body_that_ends_with_its_connection_reaches_both_kinds_of_clients() -> None:
    async with mesh().service("pay", replies=[b"HTTP/1.1 200 OK\r\n\r\nuntil the end"]).start() as m:
        assert (await m.get("pay")).body == b"until the end"
        client = await m.connect()
        client.send(b"GET / HTTP/1.0\r\nhost: pay\r\n\r\n")
        assert (await client.receive()).body == b"until the end"
        assert await client.ended()


async def test_an_http_1_0_client_is_closed_unless_it_asks_to_be_kept() -> None:
    async with mesh().service("pay").start() as m:
        client = await m.connect()
        client.send(b"GET / HTTP/1.0\r\nhost: pay\r\nconnection: keep-alive\r\n\r\n")
        assert (await client.receive()).get("connection") == "keep-alive"
        client.send(b"GET / HTTP/1.0\r\nhost: pay\r\n\r\n")
        assert (await client.receive()).get("connection") == "close"
        assert await client.ended()


async def test_connections_to_an_endpoint_are_reused() -> None:
    async with mesh().service("pay").start() as m:
        for _ in range(5):
            await m.get("pay")
        assert m.programs["pay"][0].connections == 1


async def test_a_stale_pooled_connection_never_shows() -> None:
    async with mesh().service("pay").start() as m:
        for method in ("GET", "POST", "GET", "POST"):
            m.programs["pay"][0].close_connections()
            body = b"abc" if method == "POST" else b""
            assert (await m.get("pay", method=method, body=body)).status == 200


# --- retries --------------------------------------------------------------------------------------------------------


async def test_an_idempotent_request_is_tried_again_after_503() -> None:
    async with mesh().programs("pay", [503], [200]).start() as m:
        assert {(await m.get("pay")).status for _ in range(8)} == {200}


async def test_a_post_is_not_tried_again_after_503() -> None:
    async with mesh().programs("pay", [503]).start() as m:
        assert (await m.get("pay", method="POST", body=b"x")).status == 503
        assert len(m.programs["pay"][0].requests) == 1


async def test_a_post_with_an_idempotency_key_is_tried_again() -> None:
    async with mesh().programs("pay", [503], [503]).start() as m:
        answer = await m.get("pay", method="POST", body=b"abc", headers=["idempotency-key: 1"])
        assert answer.status == 503
        assert [[r.body for r in program.requests] for program in m.programs["pay"]] == [[b"abc"], [b"abc"]]


async def test_without_a_stanza_an_answer_is_not_asked_for_again_where_it_came_from() -> None:
    async with mesh().service("pay", replies=[503, 200]).start() as m:
        answer = await m.get("pay")
        assert (answer.status, answer.body, answer.flag) == (503, b"hello", "")
        assert len(m.programs["pay"][0].requests) == 1


async def test_the_last_answer_stands_when_nobody_is_left_after_the_backoff() -> None:
    retry = Retry((503,), 1, 0.3)
    async with mesh().service("pay", replies=[503]).rule("pay", retry=retry).start() as m:
        asked = background(m.get("pay"))
        await until(lambda: m.programs["pay"][0].requests, what="the first try")
        await until(lambda: m.recorder.retries["503"] == 1, what="the backoff")
        m.plane.apply_endpoints(name("pay"), ())
        answer = await asked
        assert (answer.status, answer.body, answer.flag) == (503, b"hello", "")


async def test_a_reset_is_repeated_for_idempotent_requests_only_whatever_the_stanza_says() -> None:
    async def reset(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with mesh().service("pay", replies=[reset, 200]).retries(2).start() as m:
        assert (await m.get("pay")).status == 200
    async with mesh().service("pay", replies=[reset, 200]).retries(2).start() as m:
        assert (await m.get("pay", method="POST", body=b"x")).status == 503
        assert len(m.programs["pay"][0].requests) == 1


async def test_a_refused_connection_is_tried_elsewhere_whatever_the_method() -> None:
    async with mesh().service("pay", versions=["v1", "v2"]).start() as m:
        await m.programs["pay"][0].stop()
        for _ in range(6):
            assert (await m.get("pay", method="POST", body=b"x")).status == 200


async def test_a_program_dead_behind_a_living_sidecar_does_not_fail_its_callers() -> None:
    async with mesh().service("pay", versions=["v1", "v2"], sidecar=True).start() as m:
        await m.programs["pay"][0].stop()
        answers = [await m.get("pay", method="POST", body=b"x") for _ in range(6)]
        assert {a.status for a in answers} == {200}
        assert all(a.get("x-mesh-not-sent") is None for a in answers)


async def test_an_explicit_stanza_holds_for_every_method_and_only_its_codes() -> None:
    async with mesh().service("pay", replies=[500, 200]).retries(1, 500).start() as m:
        assert (await m.get("pay", method="POST", body=b"x")).status == 200
    async with mesh().service("pay", replies=[503, 200]).retries(1, 500).start() as m:
        assert (await m.get("pay")).status == 503


async def test_the_last_answer_stands_when_attempts_are_used_up() -> None:
    async with mesh().service("pay", replies=[503]).retries(3, 503).start() as m:
        answer = await m.get("pay")
        assert (answer.status, answer.body, len(m.programs["pay"][0].requests)) == (503, b"hello", 4)
        assert m.cells() == {("pay", 503, "URX"): 1}


async def test_a_body_over_the_cap_is_sent_once() -> None:
    async with mesh().service("pay", replies=[503]).start() as m:
        assert (await m.get("pay", method="PUT", body=b"x" * 100_000)).status == 503
        assert len(m.programs["pay"][0].requests) == 1


async def test_retries_stay_within_the_budget() -> None:
    async with mesh().programs("pay", [503], [503], [503]).start() as m:
        for _ in range(40):
            await m.get("pay")
        sent = sum(len(program.requests) for program in m.programs["pay"])
        assert 50 <= sent <= 40 + 8 + 10 * 2 + 10  # 20 % and ten a second, for the second or two it may take
        assert m.recorder.budget_exhausted > 0


async def test_each_try_has_its_own_timeout() -> None:
    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        await request.reader.read()
        writer.close()

    async with mesh().service("pay", replies=[slow, 200]).rule("pay", retry=Retry((), 1, 0.0), try_s=0.1).start() as m:
        assert (await m.get("pay")).status == 200
        assert len(m.programs["pay"][0].requests) == 2


async def test_a_try_that_answers_but_not_in_full_breaks_off_at_its_timeout() -> None:
    async def dribble(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        await request.reader.read()
        writer.close()

    async with mesh().service("pay", replies=[dribble]).rule("pay", try_s=0.1).start() as m:
        client = await m.connect()
        client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        with pytest.raises(asyncio.IncompleteReadError):
            await client.receive()
        assert m.cells() == {("pay", 200, "UT"): 1}


async def test_the_request_timeout_ends_everything_with_504() -> None:
    async def never(request: Request, writer: asyncio.StreamWriter) -> None:
        await request.reader.read()
        writer.close()

    async with mesh().service("pay", replies=[never]).rule("pay", request_s=0.15).start() as m:
        answer = await m.get("pay")
        assert (answer.status, answer.flag) == (504, "UT")


# --- what breaks ----------------------------------------------------------------------------------------------------


async def test_an_answer_that_breaks_off_is_never_taken_for_whole() -> None:
    async def half(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()

    async with mesh().service("pay", replies=[half]).start() as m:
        client = await m.connect()
        client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        with pytest.raises(asyncio.IncompleteReadError):
            await client.receive()
        assert m.cells() == {("pay", 200, "UC"): 1}


async def test_a_reset_before_the_answer_is_503_for_what_may_not_be_repeated() -> None:
    async def reset(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with mesh().service("pay", replies=[reset]).start() as m:
        answer = await m.get("pay", method="POST", body=b"x")
        assert (answer.status, answer.flag) == (503, "UC")
        assert len(m.programs["pay"][0].requests) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_an_ambiguous_answer_is_502_and_nothing_of_it_is_passed_on(raw: bytes) -> None:
    async with mesh().service("pay", replies=[raw]).start() as m:
        answer = await m.get("pay", method="POST", body=b"x")
        assert (answer.status, answer.flag) == (502, "UPE")


async def test_a_client_that_goes_away_ends_the_attempt() -> None:
    gone = asyncio.Event()

    async def wait(request: Request, _: asyncio.StreamWriter) -> None:
        await request.reader.read()
        gone.set()

    async with mesh().service("pay", replies=[wait]).start() as m:
        client = await m.connect()
        client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        await m.programs["pay"][0].wait_for_requests(1)
        client.close()
        async with asyncio.timeout(5):
            await gone.wait()
        assert m.cells() == {("pay", 499, "DC"): 1}
        assert not m.plane.exchanges


async def test_a_loop_is_refused() -> None:
    async with mesh().service("pay").start() as m:
        answer = await m.get("pay", headers=["via: 1.1 other, 1.1 sidemesh-out-test"])
        assert answer.status == 508


async def test_requests_over_the_limit_are_refused_at_once() -> None:
    async def hold(request: Request, writer: asyncio.StreamWriter) -> None:
        await request.reader.read()
        writer.close()

    async with (
        mesh()
        .service("pay", replies=[hold])
        .policy(ServicePolicy(name("pay"), limits=Limits(max_requests=1)))
        .start() as m
    ):
        first = await m.connect()
        first.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        await m.programs["pay"][0].wait_for_requests(1)
        answer = await m.get("pay")
        assert (answer.status, answer.flag) == (503, "UO")


async def test_an_endpoint_that_keeps_failing_is_ejected() -> None:
    policy = ServicePolicy(name("pay"), outlier_detection=OutlierDetection(consecutive_failures=2, base_ejection_s=60))
    async with mesh().programs("pay", [500], [200], [200]).policy(policy).start() as m:
        for _ in range(30):
            await m.get("pay")
        assert len(m.programs["pay"][0].requests) == 2
        assert m.recorder.ejections == 1


# --- routing --------------------------------------------------------------------------------------------------------

CANARY = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: pay}
spec:
  parentRefs: [{kind: Service, name: pay}]
  rules:
  - matches: [{headers: [{name: x-user, value: ada}]}]
    backendRefs: [{name: pay, filters: [{type: ExtensionRef, extensionRef: {group: mesh.sidemesh.dev, kind: Subset, name: v2}}]}]
  - backendRefs:
    - {name: pay, weight: 3, filters: [{type: ExtensionRef, extensionRef: {group: mesh.sidemesh.dev, kind: Subset, name: v1}}]}
    - {name: pay, weight: 1, filters: [{type: ExtensionRef, extensionRef: {group: mesh.sidemesh.dev, kind: Subset, name: v2}}]}
"""


async def test_weights_split_traffic_between_subsets() -> None:
    async with mesh().service("pay", versions=["v1", "v2"]).routes(CANARY).start() as m:
        client = await m.connect()
        for _ in range(400):
            client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
            assert (await client.receive()).status == 200
        v1, v2 = (len(p.requests) for p in m.programs["pay"])
        assert v1 + v2 == 400
        assert abs(v2 - 100) < 4 * (400 * 0.25 * 0.75) ** 0.5


async def test_a_header_chooses_the_canary_and_the_decision_is_told() -> None:
    async with mesh().service("pay", versions=["v1", "v2"]).routes(CANARY).start() as m:
        for _ in range(10):
            answer = await m.get("pay", headers=["x-user: ada", "x-mesh-explain: 1"])
            record = json.loads(answer.get("x-mesh-explain") or "{}")
            assert (record["route"], record["cluster"]) == ("pay/0", "pay:v2")
        seen = m.programs["pay"][1].requests
        assert len(seen) == 10
        assert seen[0].fields("x-mesh-explain") == []


async def test_routes_of_which_none_matches_refuse_the_request() -> None:
    route = CANARY.replace(
        "  - backendRefs:\n    - {name: pay, weight: 3",
        "  - matches: [{path: {value: /only}}]\n    backendRefs:\n    - {name: pay, weight: 3",
    )
    async with mesh().service("pay", versions=["v1", "v2"]).routes(route).start() as m:
        assert (await m.get("pay", "/only/this")).status == 200
        answer = await m.get("pay", "/other")
        assert (answer.status, answer.flag) == (404, "NR")


async def test_all_weights_zero_is_503_and_an_empty_subset_too() -> None:
    drained = CANARY.replace("weight: 3", "weight: 0").replace("weight: 1", "weight: 0")
    async with mesh().service("pay", versions=["v1", "v2"]).routes(drained).start() as m:
        answer = await m.get("pay")
        assert (answer.status, answer.flag) == (503, "UH")
    async with mesh().service("pay", versions=["v1"]).routes(CANARY).start() as m:
        answer = await m.get("pay", headers=["x-user: ada"])
        assert (answer.status, answer.flag) == (503, "UH")


async def test_who_waits_at_the_connection_limit_is_served_when_a_connection_closes() -> None:
    async def once(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()

    policy = ServicePolicy(name("pay"), limits=Limits(max_connections=1))
    async with mesh().service("pay", replies=[once]).policy(policy).start() as m:
        answers = await asyncio.gather(*(m.get("pay") for _ in range(4)))
        assert [a.status for a in answers] == [200] * 4
        assert m.plane.services[name("pay")].usage.pending == 0


async def test_what_a_client_sends_between_two_attempts_is_not_lost() -> None:
    """Its body goes on arriving while the backoff runs, and the second endpoint gets the whole of it."""

    async def early_503(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()

    async with (
        mesh()
        .service("pay", replies=[early_503, 200])
        .rule("pay", retry=Retry((503,), attempts=2, backoff_s=1.0))
        .start() as m
    ):
        client = await m.connect()

        def send(piece: bytes) -> None:
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))

        client.send(b"POST / HTTP/1.1\r\nhost: pay\r\ntransfer-encoding: chunked\r\n\r\n")
        send(b"a" * 10_000)
        (program,) = m.programs["pay"]
        await until(lambda: any(exchange.retries for exchange in m.plane.exchanges), what="the backoff to begin")
        send(b"b" * 60_000)  # with which more has come than is kept to be sent again
        await asyncio.sleep(0.05)
        send(b"c" * 1_000)
        client.send(b"0\r\n\r\n")
        answer = await client.receive()
        assert answer.status == 200
        assert program.requests[-1].body == b"a" * 10_000 + b"b" * 60_000 + b"c" * 1_000


async def test_a_new_tls_policy_does_not_touch_what_is_under_way() -> None:
    started = asyncio.Event()
    goes_on = asyncio.Event()

    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        started.set()
        await goes_on.wait()
        writer.write(OK)
        await writer.drain()

    async with mesh().service("pay", replies=[slow]).start() as m:
        service = m.plane.services[name("pay")]
        answer = background(m.get("pay"))
        await started.wait()
        service.set_policy(ServicePolicy(name("pay"), tls=TlsPolicy("pay", "", "", "")))
        goes_on.set()
        assert (await asyncio.wait_for(answer, 10)).status == 200
        await until(lambda: not service.usage.connections, what="the plain connection to be closed")
        assert all(endpoint.is_known for endpoint in service.endpoints.values())
