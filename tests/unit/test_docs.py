"""The pages in docs/ say what the code has."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.hub import Hub
from control.metrics import render as metrics_page
from control.registry import Registry
from mesh.cli.main import COMMANDS
from mesh.cli.sidecar_options import read_config
from mesh.http.outcome import ProxyError
from mesh.model.gateway_api import parse
from mesh.model.name import Name
from mesh.model.policy import ServicePolicy
from mesh.model.policy_document import policy_spec
from mesh.model.snapshot import make_snapshot
from tests.tools.configuration_page import EXAMPLE, page

REPO = Path(__file__).resolve().parents[2]
DOCS = REPO / "docs"


def outcomes(base: type[ProxyError] = ProxyError) -> Iterator[type[ProxyError]]:
    for child in base.__subclasses__():
        yield child
        yield from outcomes(child)


def test_the_configuration_page_is_what_the_code_gives() -> None:
    assert (DOCS / "configuration.md").read_text() == page(), "run `make docs`"


def test_the_example_of_a_file_is_a_valid_configuration(tmp_path: Path) -> None:
    (tmp_path / "sidecar.yaml").write_text(EXAMPLE)
    config = read_config({"config": tmp_path / "sidecar.yaml"})
    assert config.upstreams == {Name("default", "ratings"): 9001}
    assert config.routes


def test_troubleshooting_has_every_outcome_with_its_status_and_flag() -> None:
    rows = re.findall(
        r"^\| (\d+) \| `(\S+)` \| `(\w+)` \| (.+?) \| (.+?) \|$",
        (DOCS / "troubleshooting.md").read_text(),
        re.MULTILINE,
    )
    told = {name: (int(status), flag) for status, flag, name, *_ in rows}
    # Those of this package: tests define outcomes of their own.
    ours = {c.__name__: (c.http_status, c.flag) for c in outcomes() if c.__module__ == "mesh.http.outcome"}
    assert told == ours


def test_routes_and_policies_has_every_field_of_a_policy_with_its_default() -> None:
    text = (DOCS / "routes-and-policies.md").read_text()
    for key, value in policy_spec(ServicePolicy(Name.parse("x"))).items():
        for name, default in value.items() if isinstance(value, dict) else [("", value)]:
            assert f"| `{f'{key}.{name}' if name else key}` | `{default}` |" in text


@pytest.mark.parametrize("name", ["routes-and-policies.md"])
def test_the_documents_shown_are_taken(name: str) -> None:
    (document,) = re.findall(r"```yaml\n# reviews.yaml\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)
    assert len(parse(document).values) == 2


def test_every_command_is_on_some_page() -> None:
    text = "".join(path.read_text() for path in [REPO / "README.md", *DOCS.glob("*.md")])
    for command in COMMANDS:
        assert f"mesh {command}" in text


def test_the_metrics_of_the_control_server_are_those_it_has() -> None:
    text = metrics_page(Hub(make_snapshot("e", 1, ()), 0.0, lambda: 0.0), Registry("e", 0.0), 0.0)
    has = dict(re.findall(r"^# HELP (\w+) (.+)$", text, re.MULTILINE))
    rows = re.findall(
        r"^\| `(mesh_control_\w+)` \| \w+ \| [^|]+ \| (.+) \|$",
        (DOCS / "metrics-and-spans.md").read_text(),
        re.MULTILINE,
    )
    assert {name: meaning for name, meaning in rows if name != "mesh_control_connected"} == has
