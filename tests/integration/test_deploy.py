"""What deploy/ holds is valid, safe by Kubernetes' and OpenShift's rules, and calls `mesh` with options that exist."""

import configparser
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from mesh.cli.main import main
from mesh.cli.sidecar import command as sidecar
from mesh.cli.sidecar_options import read_config
from tests.support.needs import REPO, require

DEPLOY = REPO / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMPOSE = DEPLOY / "compose" / "compose.yaml"
MANIFEST = DEPLOY / "kubernetes" / "demo.yaml"
HARDENED = {
    "DynamicUser": "yes", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes",
    "PrivateTmp": "yes", "CapabilityBoundingSet": "", "KillSignal": "SIGTERM", "Restart": "always",
}  # fmt: skip
LONGEST_DRAIN_S = 30 + 10  # --drain-s, then the time between SIGTERM and SIGKILL that `mesh run` gives its program


# --- the command lines ----------------------------------------------------------------------------------------------


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str
    parser.read_string(path.read_text())
    return parser


def env_file() -> dict[str, str]:
    lines = (DEPLOY / "systemd" / "reviews.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text()))


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for document in manifests():
        if document["kind"] == "Deployment":
            yield document["metadata"]["name"], document["spec"]["template"]["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Where a `mesh` command line stands, and what follows `mesh` in it."""
    for path in UNITS:
        yield path.name, unit(path)["Service"]["ExecStart"].replace("%i", "reviews").split()[1:]
    for name, service in yaml.safe_load(COMPOSE.read_text())["services"].items():
        yield f"compose {name}", service["command"]
    for name, pod in pods():
        for container in containers(pod):
            if "args" in container:
                assert "command" not in container
                values = {"$(POD_IP)": "10.0.0.7", "$(POD_NAME)": f"{name}-abc"}
                yield f"kubernetes {name}/{container['name']}", [values.get(word, word) for word in container["args"]]


@pytest.mark.parametrize("line", [pytest.param(line, id=where) for where, line in command_lines()])
def test_every_mesh_command_line_parses(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in env_file().items():
        monkeypatch.setenv(key, value)
    command = main.get_command(click.Context(main), line[0])
    assert command is not None
    context = command.make_context(f"mesh {line[0]}", line[1:], auto_envvar_prefix="MESH")
    if line[0] in ("sidecar", "run"):
        given = {key: value for key, value in context.params.items() if key not in ("log_level", "program")}
        assert read_config(given).drain_s + 10 <= LONGEST_DRAIN_S


def test_every_variable_of_the_example_is_an_option() -> None:
    known = {f"MESH_{param.name.upper()}" for param in sidecar.params if param.name}
    assert {key for key in env_file() if not key.startswith("OTEL_")} <= known


# --- systemd --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_units_are_hardened_and_stop_later_than_the_drain_ends(path: Path) -> None:
    service = unit(path)["Service"]
    assert {key: service.get(key) for key in HARDENED} == HARDENED
    assert service["StateDirectory"]
    if "sidecar" in path.name:
        words = service["ExecStart"].split()
        assert int(service["TimeoutStopSec"]) > float(words[words.index("--drain-s") + 1])


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_systemd_finds_nothing_wrong_with_the_units(path: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is absent — sudo apt-get install --no-install-recommends systemd")
    # Where the package is installed is not checked, but a program that is not there would be a complaint.
    mesh = Path(sys.executable).with_name("mesh")
    copy = tmp_path / path.name.replace("@.", "@reviews.")
    copy.write_text(path.read_text().replace("/opt/sidemesh/bin/mesh", str(mesh)))
    said = subprocess.run([analyze, "verify", "--man=no", copy], capture_output=True, text=True, check=False)
    assert [line for line in said.stderr.splitlines() if "sidemesh" in line] == []


# --- compose --------------------------------------------------------------------------------------------------------


def test_compose_takes_the_file(tmp_path: Path) -> None:
    said = subprocess.run(
        [require("docker-compose"), "-f", COMPOSE, "config", "--format", "json"],
        capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    config = yaml.safe_load(said.stdout)
    assert set(config["services"]) == {"control", "frontend", "reviews-v1", "reviews-v2", "ratings"}
    for name, service in config["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"], name
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name
        if name != "control":
            assert service["stop_grace_period"] in ("75s", "1m15s")


def test_the_image_copies_what_is_there_and_does_not_run_as_root() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            assert all((REPO / source).exists() for source in line.split()[1:-1]), line
    assert next(line for line in reversed(lines) if line.startswith("USER ")).split()[1].partition(":")[0].isdigit()
    kept = {line.removeprefix("!") for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()}
    copied = {s for line in lines if line.startswith("COPY ") and "--from" not in line for s in line.split()[1:-1]}
    assert copied <= kept


# --- Kubernetes -----------------------------------------------------------------------------------------------------


def test_the_manifest_is_valid() -> None:
    tool = Path(sys.executable).with_name("kubernetes-validate")
    said = subprocess.run([tool, "--strict", MANIFEST], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize(("name", "pod"), list(pods()), ids=lambda p: p if isinstance(p, str) else "")
def test_pods_keep_to_restricted_v2(name: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["automountServiceAccountToken"] is False
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"}
    assert all(volume.keys() == {"name", "emptyDir"} for volume in pod["volumes"])
    for container in containers(pod):
        # No runAsUser: OpenShift gives each namespace its own range.
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert all("hostPort" not in port for port in container.get("ports", ()))
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        writable = {mount["mountPath"] for mount in container.get("volumeMounts", ())}
        if "--data" in container.get("args", ()):
            assert container["args"][container["args"].index("--data") + 1] in writable


@pytest.mark.parametrize(
    ("name", "pod"), [p for p in pods() if p[0] != "control"], ids=lambda p: p if isinstance(p, str) else ""
)
def test_meshed_pods_have_a_native_sidecar_that_is_asked_whether_it_is_ready(name: str, pod: dict[str, Any]) -> None:
    (side,) = pod["initContainers"]
    assert side["restartPolicy"] == "Always"
    for probe in ("startupProbe", "readinessProbe"):
        assert "/ready" in side[probe]["exec"]["command"][-1]
    assert pod["terminationGracePeriodSeconds"] > LONGEST_DRAIN_S
    (program,) = pod["containers"]
    env = {variable["name"]: variable["value"] for variable in program["env"]}
    assert env["http_proxy"] == env["HTTP_PROXY"] == "http://127.0.0.1:15001"


def test_nothing_in_deploy_touches_iptables_or_asks_for_capabilities() -> None:
    for document in manifests():
        text = yaml.safe_dump(document).lower()
        assert "iptables" not in text
        assert "net_admin" not in text
