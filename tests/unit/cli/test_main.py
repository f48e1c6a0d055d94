import subprocess
import sys

import pytest
from click.testing import CliRunner

from mesh.cli import main as cli
from mesh.cli.main import COMMANDS, Entry, main

OPERATOR_COMMANDS = ["apply", "get", "delete", "weights", "status", "watch", "history", "rollback"]


def run(*args, **env):
    return CliRunner(env={"MESH_CONTROL": "127.0.0.1:9", **env}).invoke(main, args)


def test_help_lists_every_command_and_imports_none():
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from mesh.cli.main import main\n"
        "print(CliRunner().invoke(main, ['--help']).output)\n"
        "slow = {'grpc', 'aiohttp', 'yaml', 'uvloop', 'mesh.cli.control', 'mesh.cli.apply'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, entry in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert entry.line[:40] in done.stdout


@pytest.mark.parametrize("name", ["control", *OPERATOR_COMMANDS])
def test_every_help_teaches_with_examples(name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert f"mesh {name}" in result.output
    assert "\b" not in result.output


@pytest.mark.parametrize("name", ["set", "get"])
def test_the_weights_subcommands_have_examples_of_their_own(name):
    assert f"mesh weights {name}" in run("weights", name, "--help").output


def test_a_command_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "absent", Entry("absent_module", "Not there."))
    result = run("absent")
    assert result.exit_code == 1
    assert "`mesh absent` is not part of this installation" in result.output


def test_a_command_whose_own_import_fails_is_not_taken_for_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "mesh.cli.output", None)
    monkeypatch.delitem(sys.modules, "mesh.cli.history", raising=False)
    monkeypatch.delitem(sys.modules, "mesh.cli.shared", raising=False)
    assert isinstance(run("history").exception, ImportError)


def test_an_unknown_command_is_a_usage_error():
    assert run("nonsense").exit_code == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["weights", "set", "reviews"], "Missing argument 'WEIGHTS"),
        (["weights", "set", "reviews", "v1"], "SUBSET=WEIGHT"),
        (["weights", "set", "reviews", "v1=-1"], "SUBSET=WEIGHT"),
        (["weights", "set", "reviews", "v1=1000001"], "0 to 1000000"),
        (["weights", "set", "reviews", "v1=1", "v1=2"], "given twice"),
        (["weights", "set", "Reviews", "v1=1"], "DNS label"),
        (["weights", "get", "-n", "No", "reviews"], "DNS label"),
        (["get", "pod"], "there are route, grpcroute, tcproute and policy"),
        (["delete", "route"], "Missing argument 'NAME'"),
        (["rollback", "0"], "0 is not in the range"),
        (["history", "--limit", "0"], "0 is not in the range"),
        (["apply"], "Missing option '-f'"),
        (["status", "-o", "xml"], "'xml' is not one of"),
        (["rollback", "--timeout", "-1"], "-1"),
    ],
)
def test_bad_arguments_are_usage_errors(args, words):
    result = run(*args)
    assert result.exit_code == 2
    assert words in result.output


def test_an_apply_of_bad_files_tells_all_problems_of_all_files_and_sends_nothing(tmp_path):
    (tmp_path / "a.yaml").write_text("kind: Pod\n")
    (tmp_path / "b.yml").write_text("a: [")
    result = run("apply", "-f", str(tmp_path))
    assert result.exit_code == 2
    assert "a.yaml: kind: 'Pod' is none of HTTPRoute, GRPCRoute, TCPRoute, ServicePolicy" in result.output
    assert "b.yml: not YAML" in result.output
    assert "nothing was sent" in result.output


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_told(tmp_path, name):
    result = run("apply", "-f", str(tmp_path / name))
    assert result.exit_code == 2
    assert "Error:" in result.output


@pytest.mark.parametrize(
    "args", [["status"], ["get"], ["weights", "get"], ["history"], ["watch"], ["rollback"], ["delete", "route", "a"]]
)
def test_a_control_server_that_is_not_there_is_told_with_what_to_do(args):
    result = run(*args)
    assert result.exit_code == 1
    assert "no answer from a control server at 127.0.0.1:9" in result.output
    assert "mesh control" in result.output


def test_bad_settings_of_the_control_server_are_told_at_once():
    result = run("control", "--listen", "nowhere", "--lease", "0", "--consul", "ftp://x")
    assert result.exit_code == 2
    for word in ("--listen", "--lease", "--consul"):
        assert word in result.output
