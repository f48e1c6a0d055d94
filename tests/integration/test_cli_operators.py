"""The operator commands as a person runs them: real processes against a real `mesh control`."""

import asyncio
import json
import os
import re
import sys
from dataclasses import dataclass

import pytest
import yaml

from tests.support.control import REVIEWS, FakeSidecar, background, register
from tests.support.process import Process

ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews}
spec:
  parentRefs: [{kind: Service, group: "", name: reviews}]
  rules:
  - name: api
    matches: [{path: {value: /api}}]
    retry: {codes: [503], attempts: 2}
    backendRefs: &both
    - name: reviews
      weight: 1
      filters: [{type: ExtensionRef, extensionRef: {group: mesh.sidemesh.dev, kind: Subset, name: v1}}]
    - name: reviews
      weight: 1
      filters: [{type: ExtensionRef, extensionRef: {group: mesh.sidemesh.dev, kind: Subset, name: v2}}]
  - backendRefs: *both
"""
POLICY = "\n---\n{apiVersion: mesh.sidemesh.dev/v1, kind: ServicePolicy, metadata: {name: reviews}}\n"


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


class Shell:
    """Runs `mesh` commands against one control server."""

    def __init__(self, address, directory):
        self.address = address
        self.directory = directory
        self.env = {**os.environ, "MESH_CONTROL": address, "MESH_AUTHOR": "alice", "COLUMNS": "200"}

    async def start(self, *args, stdin=asyncio.subprocess.DEVNULL, **env):
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mesh.cli.main", *args),
            env=self.env | env,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def __call__(self, line, stdin="", **env):
        pipe = asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL
        process = await self.start(*line.split(), stdin=pipe, **env)
        out, err = await asyncio.wait_for(process.communicate(stdin.encode() or None), 30)
        return Done(process.returncode, out.decode(), err.decode())


@pytest.fixture
async def mesh(tmp_path):
    process = Process.start(
        *(sys.executable, "-m", "mesh.cli.main", "control", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"),
        *("--data", ":memory:"),
        log=tmp_path / "control.log",
    )
    async with process:
        await process.until_logged("ready grpc=")
        address = re.search(r"ready grpc=(\S+)", process.output())[1]
        await register(address, REVIEWS, ["v1", "v2"])
        yield Shell(address, tmp_path)


@pytest.fixture
async def sidecar(mesh):
    async with FakeSidecar(mesh.address, "side", REVIEWS, "v1") as sidecar:
        await (await sidecar.connect()).accept()
        yield sidecar


async def test_apply_get_and_delete(mesh, sidecar):
    sidecar.keep_accepting()
    done = await mesh("apply -f -", ROUTE + POLICY)
    assert done.code == 0
    assert "HTTPRoute reviews created" in done.out
    assert "ServicePolicy reviews created" in done.out
    assert re.search(r"version 1 → 2: 1 of 1 sidecars acked, the last answer came after \d+ ms", done.out)
    assert "warning: HTTPRoute/reviews rule api: its retry stanza repeats POST and PATCH too" in done.err

    done = await mesh("get")
    assert re.search(
        r"^HTTPRoute +default +reviews +reviews +api: reviews:v1=1 reviews:v2=1; 1: ", done.out, re.MULTILINE
    )
    assert re.search(r"^ServicePolicy +default +reviews", done.out, re.MULTILINE)
    done = await mesh("get route reviews -o yaml")
    assert yaml.safe_load(done.out)["spec"]["rules"][0]["name"] == "api"
    assert (await mesh("get policy reviews -o json")).json["kind"] == "ServicePolicy"
    listed = (await mesh("get routes -o json")).json
    assert (listed["version"], [item["kind"] for item in listed["items"]]) == (2, ["HTTPRoute"])
    assert (await mesh("get -n shop -o json")).json["items"] == []
    assert (await mesh("get -o json --at-version 1")).json["items"] == []

    # What is printed can be applied as it is.
    again = await mesh("apply -f -", (await mesh("get -o yaml")).out)
    assert "nothing to change: the table stays at version 2" in again.out

    done = await mesh("delete route reviews --dry-run")
    assert (done.code, done.out) == (0, "HTTPRoute reviews would be deleted\ndry run: the table stays at version 2\n")
    assert (await mesh("delete route reviews --reason gone")).code == 0
    done = await mesh("delete route reviews")
    assert (done.code, done.err) == (1, "Error: there is no HTTPRoute reviews\n")
    done = await mesh("get route reviews")
    assert done.code == 1


async def test_weights_are_set_and_shown(mesh, sidecar):
    sidecar.keep_accepting()
    done = await mesh("weights set reviews v1=90 v2=10")
    assert done.code == 0
    assert "HTTPRoute reviews created" in done.out
    done = await mesh("weights get reviews")
    assert re.search(r"^reviews +reviews/0 +reviews:v1 +90 +90 %$", done.out, re.MULTILINE)
    assert re.search(r"^reviews +reviews/0 +reviews:v2 +10 +10 %$", done.out, re.MULTILINE)
    shown = (await mesh("weights get -o json")).json
    assert shown["rules"][0]["backends"] == [
        {"service": "reviews", "subset": "v1", "weight": 90, "port": None},
        {"service": "reviews", "subset": "v2", "weight": 10, "port": None},
    ]
    done = await mesh("weights set reviews v1=0 v2=100 --dry-run --expect-version 2 -o json")
    assert (done.code, done.json["version"], done.json["dry_run"]) == (0, 2, True)
    assert done.json["changes"][0]["action"] == "updated"


async def test_one_of_several_rules_is_named(mesh):
    await mesh("apply -f -", ROUTE)
    done = await mesh("weights set reviews v1=90 v2=10")
    assert done.code == 1
    assert "several rules carry v1 and v2 of reviews: reviews/api (v1=1 v2=1); reviews/1 (v1=1 v2=1)" in done.err
    assert (await mesh("weights set reviews v1=90 v2=10 --route reviews/1")).code == 0
    rules = (await mesh("weights get reviews -o yaml")).out
    assert [[b["weight"] for b in rule["backends"]] for rule in yaml.safe_load(rules)["rules"]] == [[1, 1], [90, 10]]


async def test_a_subset_without_a_healthy_endpoint_needs_force(mesh):
    done = await mesh("weights set reviews v1=90 v3=10")
    assert done.code == 1
    assert "subset v3 of reviews has no healthy endpoint" in done.err
    assert "--force" in done.err
    assert (await mesh("weights set reviews v1=90 v3=10 --force")).code == 0


async def test_a_conflict_tells_the_current_version_and_changes_nothing(mesh):
    await mesh("weights set reviews v1=1")
    done = await mesh("weights set reviews v1=2 --expect-version 1")
    assert done.code == 1
    assert "current version: 2" in done.err
    assert (await mesh("weights get -o json")).json["version"] == 2


async def test_a_change_that_is_not_acked_stays_and_tells_how_to_undo_it(mesh, sidecar):
    changing = background(mesh("weights set reviews v1=1 v2=2"))
    await sidecar.nack(await sidecar.push(), "regex not known here")
    done = await changing
    assert done.code == 3
    assert re.search(r"^side +nacked +\d+ ms +regex not known here$", done.out, re.MULTILINE)
    assert "Version 2 is stored, but 1 of 1 sidecars did not take it (side: nacked)" in done.err
    undo = re.search(r"^  mesh (rollback 1 --expect-version 2 --control \S+)$", done.err, re.MULTILINE)[1]
    rolling = background(mesh(undo))
    await sidecar.ack(await sidecar.push())
    assert (await rolling).code == 0
    assert (await mesh("get -o json")).json == {"version": 3, "items": []}


async def test_a_silent_sidecar_is_waited_for_as_long_as_asked(mesh, sidecar):
    done = await mesh("weights set reviews v1=1 --timeout 0.3 -o json")
    assert done.code == 3
    (answer,) = done.json["answers"]
    assert (answer["node"], answer["result"]) == ("side", "silent")
    assert 250 < answer["took_ms"] < 3000
    assert done.json["all_acked"] is False
    assert done.json["rollback"].startswith("mesh rollback 1 --expect-version 2")
    done = await mesh("weights set reviews v1=2 --timeout 0")
    assert done.code == 3
    assert "0 of 1 sidecars acked, no answer came" in done.out


async def test_history_and_rollback(mesh):
    await mesh("weights set reviews v1=1 --reason first", MESH_AUTHOR="bob")
    await mesh("weights set reviews v1=2")
    done = await mesh("history")
    assert re.search(r"^3 +\S+Z +alice +HTTPRoute reviews updated +-$", done.out, re.MULTILINE)
    assert re.search(r"^2 +\S+Z +bob +HTTPRoute reviews created +first$", done.out, re.MULTILINE)
    assert [r["version"] for r in (await mesh("history --limit 1 --before 3 -o json")).json] == [2]
    done = await mesh("rollback --dry-run")
    assert "HTTPRoute reviews would be updated" in done.out
    assert (await mesh("rollback 2 --author carol")).code == 0
    newest = (await mesh("history --limit 1 -o json")).json[0]
    assert (newest["version"], newest["author"], newest["reason"]) == (4, "carol", "rollback to version 2")
    assert (await mesh("weights get -o json")).json["rules"][0]["backends"][0]["weight"] == 1
    done = await mesh("rollback 99")
    assert (done.code, done.err) == (1, "Error: there is no version 99 to go back to\n")


async def test_status_shows_every_sidecar(mesh, sidecar):
    done = await mesh("status")
    assert "table: version 1 of store" in done.out
    assert re.search(r"^side +reviews +v1 +v1 +acked +\d+s +-$", done.out, re.MULTILINE)
    shown = (await mesh("status -o json")).json
    assert shown["sidecars"][0]["state"] == "acked"
    assert yaml.safe_load((await mesh("status -o yaml")).out)["version"] == 1


async def test_watch_follows_until_it_is_ended(mesh, sidecar):
    watching = await mesh.start("watch", "-o", "json")
    lines = [json.loads(await asyncio.wait_for(watching.stdout.readline(), 10)) for _ in range(2)]
    assert lines[0]["revision"]["version"] == 1
    assert lines[1]["sidecar"]["node"] == "side"
    await mesh("weights set reviews v1=1 --timeout 0")
    line = json.loads(await asyncio.wait_for(watching.stdout.readline(), 10))
    assert line["revision"]["changes"][0]["action"] == "created"
    watching.send_signal(2)
    await asyncio.wait_for(watching.communicate(), 10)
    assert watching.returncode == 130
    plain = await mesh.start("watch")
    first = (await asyncio.wait_for(plain.stdout.readline(), 10)).decode()
    assert re.match(r"\S+Z  version 2 by alice: HTTPRoute reviews created", first)
    plain.terminate()
    await plain.communicate()


async def test_namespaces(mesh):
    assert (await mesh("weights set reviews v1=1 -n shop --force")).code == 0
    assert (await mesh("weights set shop/reviews v1=2 --force")).code == 0
    assert [item["metadata"]["namespace"] for item in (await mesh("get -n shop -o json")).json["items"]] == ["shop"]
    assert (await mesh("get route reviews -n shop -o json")).json["metadata"]["namespace"] == "shop"
    assert (await mesh("delete route shop/reviews")).code == 0


async def test_a_file_a_folder_and_several_of_them(mesh):
    folder = mesh.directory / "routes"
    folder.mkdir()
    (folder / "one.yaml").write_text(ROUTE)
    (mesh.directory / "policy.yaml").write_text(POLICY)
    done = await mesh(f"apply -f {folder} -f {mesh.directory / 'policy.yaml'} -o json")
    assert done.code == 0
    assert {change["kind"] for change in done.json["changes"]} == {"HTTPRoute", "ServicePolicy"}


async def test_what_is_not_valid_is_refused_by_field_before_anything_is_sent(mesh):
    done = await mesh("apply -f -", ROUTE.replace("value: /api", "value: api").replace("attempts: 2", "attempts: 99"))
    assert done.code == 2
    assert "stdin: HTTPRoute/reviews.rules[0].matches[0].path.value: 'api' does not start with '/'" in done.err
    assert "stdin: HTTPRoute/reviews.rules[0].retry.attempts: 99 is not within 0 to 10" in done.err
    assert (await mesh("history -o json")).json[0]["version"] == 1
