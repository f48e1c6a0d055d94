"""``mesh apply``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mesh.cli.shared import (
    EXIT_INVALID,
    ask,
    change_options,
    control_option,
    fail,
    namespace_option,
    output_option,
    tell_change,
)
from mesh.cli.verbatim import VerbatimCommand
from mesh.client import Options
from mesh.model.errors import InvalidError
from mesh.model.gateway_api import Documents, parse


@click.command(cls=VerbatimCommand)
@click.option(
    "-f",
    "--filename",
    "sources",
    multiple=True,
    required=True,
    metavar="FILE",
    help="A file with one or more YAML documents, a folder of *.yaml, or - for stdin. May be repeated.",
)
@namespace_option
@change_options
@output_option
@control_option
def command(sources: tuple[str, ...], namespace: str, output: str, control: str, author: str, change: Options) -> None:
    """Create or replace routes and policies from YAML, all or none.

    Routes are Gateway API HTTPRoutes with a Service as parent; policies are ServicePolicies. What is not built yet
    is refused with the field named, never ignored. A route that is not in the files stays as it is.

    Examples:
      mesh apply -f routes.yaml
      mesh apply -f routes/ --dry-run
      mesh apply -f routes.yaml --expect-version 41 --reason "canary for v2"
      kubectl get httproute reviews -o yaml | mesh apply -f -

    A route that splits reviews 90 to 10 between two versions:
      apiVersion: gateway.networking.k8s.io/v1
      kind: HTTPRoute
      metadata: {name: reviews}
      spec:
        parentRefs: [{kind: Service, group: "", name: reviews}]
        rules:
        - backendRefs:
          - name: reviews
            weight: 90
            filters: [{type: ExtensionRef, extensionRef: {group: mesh.sidemesh.dev, kind: Subset, name: v1}}]
          - name: reviews
            weight: 10
            filters: [{type: ExtensionRef, extensionRef: {group: mesh.sidemesh.dev, kind: Subset, name: v2}}]

    Exit codes: 0 every sidecar took it; 1 not done; 2 not valid; 3 stored, but not every sidecar took it.
    """
    documents = _read(sources, namespace)
    for note in documents.notes:
        click.echo(f"note: {note}", err=True)
    result = ask(control, lambda mesh: mesh.apply(documents.values, change), author)
    tell_change(result, output, is_dry_run=change.dry_run, control=control)


def _read(sources: tuple[str, ...], namespace: str) -> Documents:
    """All documents of all sources; every problem of every file is told before the command ends."""
    values: list[Any] = []
    notes: list[str] = []
    problems = []
    for source, text in _texts(sources):
        try:
            documents = parse(text, namespace)
        except InvalidError as error:
            problems += [f"  {source}: {violation}" for violation in error.violations]
            continue
        values += documents.values
        notes += documents.notes
    if problems:
        fail("\n".join(problems), "not valid, nothing was sent:", EXIT_INVALID)
    return Documents(tuple(values), tuple(notes))


def _texts(sources: tuple[str, ...]) -> list[tuple[str, str]]:
    texts = []
    for source in sources:
        try:
            if source == "-":
                texts.append(("stdin", sys.stdin.read()))
                continue
            path = Path(source)
            files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) if path.is_dir() else [path]
            if not files:
                fail(f"{source} holds no *.yaml", code=EXIT_INVALID)
            texts += [(str(file), file.read_text(encoding="utf-8")) for file in files]
        except (OSError, UnicodeDecodeError) as error:
            fail(f"cannot read {source}: {error}", code=EXIT_INVALID)
    return texts
