"""Writes docs/configuration.md from the command line options, the settings and the policies in the code.

`make docs` runs it: ``python -m tests.tools.configuration_page > docs/configuration.md``. A test compares the two.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from types import ModuleType
from typing import Any

import click

from mesh.cli import sidecar_options
from mesh.cli.control import command as control
from mesh.cli.sidecar import command as sidecar
from mesh.discovery.catalog import CatalogSettings
from mesh.discovery.consul_client import ConsulConfig
from mesh.model import policy as policy_module
from mesh.model import validate
from mesh.model.policy import Limits, OutlierDetection, RetryBudgetPolicy, ServicePolicy
from proxy.config import LIMIT_KEYS, SidecarConfig
from proxy.http1.limits import ConnectionLimits, HeadLimits

PREFIX = "MESH"
FIELDS = {"data": "data_dir", "upstream": "upstreams", "suffix": "suffixes"}
"""Options whose field of SidecarConfig has another name."""
TOLD_MORE = ("check", "access_log")
"""Options whose line of help leaves out what the field's docstring says."""

FILE_KEYS = {
    "upstreams": "A mapping of service to local port: `upstreams: {ratings: 9001}`.",
    "services": "Endpoints, instead of Consul or a control server; the form is below.",
    "limits": "A mapping, below.",
    "routes": "A list of HTTPRoute and ServicePolicy documents, as [routes and policies](routes-and-policies.md) has them.",
}

EXAMPLE = """\
service: shop
outbound: 127.0.0.1:15001
access-log: all
upstreams: {ratings: 9001}
services:
  reviews:
    - {address: 127.0.0.1, port: 8001, version: v1}
    - {address: 127.0.0.1, port: 8002, version: v2}
  ratings:
    - {address: 127.0.0.1, port: 8001}
routes:
  - apiVersion: gateway.networking.k8s.io/v1
    kind: HTTPRoute
    metadata: {name: reviews}
    spec:
      parentRefs: [{group: "", kind: Service, name: reviews}]
      rules:
        - backendRefs:
            - name: reviews
              weight: 0
              filters: [{type: ExtensionRef, extensionRef: {group: mesh.sidemesh.dev, kind: Subset, name: v1}}]
            - name: reviews
              weight: 100
              filters: [{type: ExtensionRef, extensionRef: {group: mesh.sidemesh.dev, kind: Subset, name: v2}}]
"""


def page() -> str:
    """The whole page."""
    parts = [
        "# Configuration",
        "Written from the code by `make docs`; do not edit.",
        "## `mesh sidecar` and `mesh run`",
        (
            "A flag wins over its environment variable, that over the key in the file that `--config` names, that over the "
            "default. Everything wrong is told in one report. Addresses are HOST:PORT; port 0 picks a free one, which is "
            "logged and stands on the admin page. A variable for an option that may be repeated holds the values "
            "separated by spaces."
        ),
        table(("option", "variable", "key in the file", "default", "meaning"), sidecar_rows()),
        (
            "Besides: `CONSUL_HTTP_TOKEN`, `CONSUL_CACERT` for Consul, and the `OTEL_*` variables that "
            "[metrics and spans](metrics-and-spans.md) lists. SIGHUP opens the access log again, for logrotate."
        ),
        "### The file",
        "Keys are the options' names without dashes in front. Unknown keys are refused. In the file only:",
        table(("key", "meaning"), [(f"`{key}`", text) for key, text in FILE_KEYS.items()]),
        "`limits`, for each client connection; times in seconds, sizes in bytes:",
        table(("key", "default", "reason"), client_limit_rows()),
        "With endpoints and routes in it a sidecar needs neither control server nor Consul:",
        f"```yaml\n# sidecar.yaml\n{EXAMPLE}```",
        (
            "```sh\nmkdir v2 && echo 'reviews v2' > v2/index.html\n"
            "python3 -m http.server --bind 127.0.0.1 --directory v2 8002 &\nmesh sidecar --config sidecar.yaml &\n```"
        ),
        (
            "<!-- until: curl -sf http://127.0.0.1:15000/ready -->\n"
            "```console\n$ curl -s -x http://127.0.0.1:15001 http://reviews/\n…reviews v2\n```"
        ),
        (
            "An endpoint in `services` (here or in the file of `--services`, which is read again when it changes) has the "
            "keys `address`, `port`, `id`, `version`, `metadata`, `tags` and `health` (passing, warning, critical, leaving)."
        ),
        "## `mesh control`",
        table(("option", "variable", "default", "meaning"), control_rows()),
        (
            "Also `CONSUL_HTTP_TOKEN`. A control server and a sidecar read some variables of the same name (`MESH_DATA`, "
            "`MESH_CONSUL`, `MESH_LOG_LEVEL`): give each its own environment."
        ),
        "## Operator commands",
        table(
            ("variable", "option", "default"),
            [
                ("`MESH_CONTROL`", "`--control`", "`127.0.0.1:15010`"),
                ("`MESH_NAMESPACE`", "`--namespace`", "`default`"),
                ("`MESH_AUTHOR`", "`--author`", "user@host"),
                ("`MESH_ADMIN`", "`--admin` of `mesh why`", "`127.0.0.1:15000`"),
            ],
        ),
        "## ServicePolicy",
        (
            "Fields and their defaults as the code has them; what each means in a document stands in "
            "[routes and policies](routes-and-policies.md#servicepolicy)."
        ),
        table(("setting", "default", "reason"), policy_rows()),
        "## Fixed limits",
        "No settings yet; times in seconds, sizes in bytes.",
        table(("limit", "value", "reason"), limit_rows()),
        "Of a route or policy:",
        table(("limit", "value", "reason"), constants(validate)),
    ]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def sidecar_rows() -> Iterator[tuple[str, ...]]:
    """One row for each option of ``mesh sidecar``."""
    told = docstrings(SidecarConfig)
    defaults = {field.name: field.default for field in fields(SidecarConfig)}
    for option in sidecar.params:
        assert isinstance(option, click.Option)
        assert option.name
        flag = next(o for o in option.opts if o.startswith("--"))
        text, default = split_default(option.help or "")
        key = flag.removeprefix("--")
        field = FIELDS.get(option.name, option.name)
        more = told.get(field, "") if option.name in TOLD_MORE else ""
        if not default and field in defaults and isinstance(defaults[field], tuple):
            default = f"`{' '.join(defaults[field])}`"
        known = f"`{key}`" if key in sidecar_options._KEYS and key not in FILE_KEYS else "–"
        meaning = " ".join(filter(None, (text, choices(option), more)))
        yield f"`{flag}`", f"`{PREFIX}_{option.name.upper()}`", known, default or "–", meaning


def control_rows() -> Iterator[tuple[str, ...]]:
    """One row for each option of ``mesh control``."""
    for option in control.params:
        assert isinstance(option, click.Option)
        text, default = split_default(option.help or "")
        if not default and option.default is not None:
            default = f"`{option.default}`"
        flag = next(o for o in option.opts if o.startswith("--"))
        yield f"`{flag}`", f"`{option.envvar}`", default or "–", " ".join(filter(None, (text, choices(option))))


def split_default(text: str) -> tuple[str, str]:
    """The help text, and the default that stands in brackets at its end."""
    found = re.search(r"\s*\[(?:default: )?([^\]]*(?:\[[^\]]*\])?[^\]]*)\]$", text)
    return (text[: found.start()], f"`{found[1]}`" if found[1] != "required" else "required") if found else (text, "")


def choices(option: click.Option) -> str:
    """The words that an option takes."""
    if not isinstance(option.type, click.Choice):
        return ""
    return "One of " + ", ".join(f"`{word}`" for word in option.type.choices) + "."


def policy_rows() -> Iterator[tuple[str, str, str]]:
    """The settings of a ServicePolicy."""
    for kind in (OutlierDetection, Limits, RetryBudgetPolicy, ServicePolicy):
        for field, default, reason in settings(kind, inspect.getsource(policy_module)):
            if isinstance(default, (int, float)):
                yield f"`{kind.__name__}.{field}`", f"`{default}`", reason


def client_limit_rows() -> Iterator[tuple[str, str, str]]:
    """The keys of ``limits``."""
    told = {
        field: (default, reason)
        for kind in (HeadLimits, ConnectionLimits)
        for field, default, reason in settings(kind, "")
    }
    for key, field in LIMIT_KEYS.items():
        default, reason = told[field]
        yield f"`{key}`", f"`{default}`", reason


def limit_rows() -> Iterator[tuple[str, str, str]]:
    """Bounds that dataclasses hold."""
    for kind in (SidecarConfig, CatalogSettings, ConsulConfig):
        source = inspect.getsource(sys.modules[kind.__module__])
        for field, default, reason in settings(kind, source):
            if not isinstance(default, (int, float)) or isinstance(default, bool):
                continue
            if (kind is SidecarConfig and field != "check_interval_s") or (kind, field) == (CatalogSettings, "grace_s"):
                continue  # the others are options
            yield f"`{kind.__name__}.{field}`", f"`{default}`", reason or docstrings(kind).get(field, "")


def settings(kind: type[Any], source: str) -> Iterator[tuple[str, Any, str]]:
    """Each field of a dataclass with its default and the comment on its line."""
    body = inspect.getsource(kind)
    for field in fields(kind):
        if field.default is not MISSING:
            found = re.search(rf"^    {field.name}: [^\n]*?(?:\(\n[^\n]*)?  # ([^\n]+)$", body, re.MULTILINE)
            yield field.name, field.default, sentence(found[1]) if found else ""


def constants(module: ModuleType) -> Iterator[tuple[str, str, str]]:
    """Each MAX_… of a module."""
    source = inspect.getsource(module)
    for name, comment in re.findall(r"^(MAX_\w+): Final = [^#\n]+?(?:  # (.*))?$", source, re.MULTILINE):
        yield f"`{name}`", f"`{getattr(module, name):g}`", sentence(comment) or "Gateway API"


def docstrings(kind: type[Any]) -> dict[str, str]:
    """The strings below fields of a class, as one line each."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                found[name] = sentence(" ".join(said.replace("``", "`").split()))
    return found


def sentence(text: str) -> str:
    """With a full stop."""
    text = text.strip()
    return text if not text or text.endswith((".", "?", "!")) else text + "."


if __name__ == "__main__":
    sys.stdout.write(page())
