"""What all operator commands share: options, errors as exit codes, and how a change is told.

Exit codes: 0 done (and every sidecar took it), 1 not done, 2 what was asked cannot be, 3 stored, but not every sidecar
took it.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn, TypeVar

import click

from mesh.cli.output import FORMATS, Column, as_time, print_rows, print_value
from mesh.client import (
    DEFAULT_CONTROL,
    Change,
    ChangeResult,
    ConflictError,
    MeshClient,
    MeshError,
    Options,
    RefusedError,
    Revision,
    SidecarStatus,
    default_author,
)
from mesh.model.errors import InvalidError
from mesh.model.name import DEFAULT_NAMESPACE, Name, is_label
from mesh.model.snapshot import Kind

EXIT_FAILED: Final = 1
EXIT_INVALID: Final = 2
EXIT_NOT_ACKED: Final = 3

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")

_KINDS: Final = {
    **dict.fromkeys(("route", "routes", "httproute", "httproutes"), Kind.ROUTE),
    **dict.fromkeys(("grpcroute", "grpcroutes"), Kind.GRPC_ROUTE),
    **dict.fromkeys(("tcproute", "tcproutes"), Kind.TCP_ROUTE),
    **dict.fromkeys(("policy", "policies", "servicepolicy", "servicepolicies"), Kind.SERVICE_POLICY),
}


class KindType(click.ParamType[Kind]):
    """``route``, ``grpcroute``, ``tcproute`` or ``policy``, in the forms people write."""

    name = "KIND"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Kind:  # noqa: ANN401
        """The kind, or click's usage error."""
        if isinstance(value, Kind):
            return value
        kind = _KINDS.get(str(value).lower())
        if kind is None:
            self.fail(f"{value!r} is no kind; there are route, grpcroute, tcproute and policy", param, ctx)
        return kind


def control_option(command: _F) -> _F:
    """``--control``."""
    return click.option(
        "--control",
        envvar="MESH_CONTROL",
        default=DEFAULT_CONTROL,
        show_default=True,
        show_envvar=True,
        metavar="HOST:PORT",
        help="The control server.",
    )(command)


def output_option(command: _F) -> _F:
    """``--output``."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="A table for people; json and yaml for programs.",
    )(command)


def namespace_option(command: _F) -> _F:
    """``--namespace``, of names that do not say theirs."""
    return click.option(
        "-n",
        "--namespace",
        envvar="MESH_NAMESPACE",
        default=DEFAULT_NAMESPACE,
        show_default=True,
        show_envvar=True,
        callback=_checked_namespace,
        help="Namespace of names given without one (NAMESPACE/NAME).",
    )(command)


def change_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that changes the table; the command gets them as ``change`` and ``author``."""

    @functools.wraps(command)
    def wrapped(
        *args: object, expect_version: int | None, dry_run: bool, timeout: float, reason: str, **rest: object
    ) -> object:
        change = Options(expect_version=expect_version, dry_run=dry_run, reason=reason, wait_s=timeout)
        return command(*args, change=change, **rest)

    options = [
        click.option(
            "--expect-version",
            type=click.IntRange(min=0),
            metavar="N",
            help="Only if the table is at version N; otherwise nothing changes and the current version is told.",
        ),
        click.option("--dry-run", is_flag=True, help="Check everything and say what would change; change nothing."),
        click.option(
            "--timeout",
            type=click.FloatRange(0, 300),
            default=5.0,
            show_default=True,
            metavar="SECONDS",
            help="How long to wait for the sidecars' answers; 0 does not wait.",
        ),
        click.option("--reason", default="", help="Why, for the history."),
        click.option(
            "--author",
            envvar="MESH_AUTHOR",
            default=default_author,
            show_envvar=True,
            help="Who; user@host if not given.",
        ),
    ]
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def parse_name(text: str, namespace: str, what: str) -> Name:
    """A name from the command line; a bad one is a usage error."""
    try:
        return Name.parse(text, namespace)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=what) from error


def ask(control: str, work: Callable[[MeshClient], Coroutine[Any, Any, _T]], author: str = "") -> _T:
    """Run ``work`` with a client; errors end the process with a message on stderr and their exit code."""

    async def call() -> _T:
        async with MeshClient(control, author=author or default_author()) as client:
            return await work(client)

    try:
        return asyncio.run(call())
    except InvalidError as error:
        fail("\n".join(f"  {violation}" for violation in error.violations), "not valid, nothing changed:", EXIT_INVALID)
    except ConflictError as error:
        fail(f"conflict, nothing changed: {error}\ncurrent version: {error.current_version}")
    except RefusedError as error:
        fail(f"refused, nothing changed: {error}")
    except MeshError as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)  # as the shell reports a command ended by Ctrl-C


def fail(message: str, heading: str = "", code: int = EXIT_FAILED) -> NoReturn:
    """End with ``code`` and a message on stderr."""
    click.echo(f"{heading}\n{message}" if heading else f"Error: {message}", err=True)
    sys.exit(code)


def tell_change(result: ChangeResult, output: str, *, is_dry_run: bool, control: str) -> NoReturn:
    """Say what a change did and end with its exit code; where not all sidecars took it, how to undo it."""
    undo = None
    if result.version != result.previous_version:
        undo = f"mesh rollback {result.previous_version} --expect-version {result.version}"
        undo += "" if control == DEFAULT_CONTROL else f" --control {control}"
    if output == "table":
        _tell_people(result, is_dry_run=is_dry_run)
    else:
        print_value(change_value(result, is_dry_run=is_dry_run, undo=undo), output)
    if result.is_acked_by_all:
        sys.exit(0)
    missing = [answer for answer in result.answers if answer.result != "acked"]
    click.echo(
        f"\nVersion {result.version} is stored, but {len(missing)} of {len(result.answers)} sidecars did not take it "
        f"({', '.join(f'{a.node}: {a.result}' for a in missing[:5])}{', …' if len(missing) > 5 else ''}).\n"
        f"A silent sidecar gets it when it returns. To undo it:\n  {undo}",
        err=True,
    )
    sys.exit(EXIT_NOT_ACKED)


def _tell_people(result: ChangeResult, *, is_dry_run: bool) -> None:
    for change in result.changes:
        would = "would be " if is_dry_run and change.action != "unchanged" else ""
        click.echo(f"{change.kind.value} {change.name} {would}{change.action}")
    for warning in result.warnings:
        click.echo(f"warning: {warning}", err=True)
    if is_dry_run:
        click.echo(f"dry run: the table stays at version {result.version}")
    elif result.version == result.previous_version:
        click.echo(f"nothing to change: the table stays at version {result.version}")
    else:
        click.echo(f"version {result.previous_version} → {result.version}: {_answers_line(result)}")
    if any(answer.result != "acked" for answer in result.answers):
        print_rows(
            [
                Column("SIDECAR", lambda a: a.node),
                Column("ANSWER", lambda a: a.result),
                Column("TOOK", lambda a: f"{a.took_s * 1000:.0f} ms"),
                Column("REASON", lambda a: a.reason),
            ],
            result.answers,
        )


def _answers_line(result: ChangeResult) -> str:
    if not result.answers:
        return "no sidecar was asked, since none is connected"
    acked = sum(answer.result == "acked" for answer in result.answers)
    took_s = max((answer.took_s for answer in result.answers if answer.result != "silent"), default=None)
    last = "no answer came" if took_s is None else f"the last answer came after {took_s * 1000:.0f} ms"
    return f"{acked} of {len(result.answers)} sidecars acked, {last}"


def change_value(result: ChangeResult, *, is_dry_run: bool, undo: str | None) -> dict[str, Any]:
    """A change for programs."""
    return {
        "previous_version": result.previous_version,
        "version": result.version,
        "dry_run": is_dry_run,
        "changes": [change_words(change) for change in result.changes],
        "warnings": list(result.warnings),
        "answers": [
            {"node": a.node, "result": a.result, "reason": a.reason, "took_ms": round(a.took_s * 1000, 3)}
            for a in result.answers
        ],
        "all_acked": result.is_acked_by_all,
        "rollback": undo,
    }


def change_words(change: Change) -> dict[str, str]:
    """One resource's change, for programs."""
    return {
        "kind": change.kind.value,
        "namespace": change.name.namespace,
        "name": change.name.name,
        "action": change.action,
    }


def revision_value(revision: Revision) -> dict[str, Any]:
    """A revision, for programs."""
    return {
        "version": revision.version,
        "when": as_time(revision.when_unix_s),
        "author": revision.author,
        "reason": revision.reason,
        "changes": [change_words(change) for change in revision.changes],
    }


def sidecar_value(sidecar: SidecarStatus) -> dict[str, Any]:
    """A sidecar's state, for programs."""
    return {
        "node": sidecar.node,
        "service": str(sidecar.service) if sidecar.service else None,
        "service_version": sidecar.service_version,
        "instance_id": sidecar.instance_id,
        "sidecar_version": sidecar.sidecar_version,
        "state": sidecar.state,
        "running_version": sidecar.running.version,
        "running_epoch": sidecar.running.epoch,
        "reason": sidecar.reason,
        "since": as_time(sidecar.since_unix_s),
        "peer": sidecar.peer,
    }


def changes_line(changes: tuple[Change, ...]) -> str:
    """Changes in one line, for people."""
    return ", ".join(f"{change.kind.value} {change.name} {change.action}" for change in changes)


def _checked_namespace(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not is_label(value):
        raise click.BadParameter(f"{value!r} is not a DNS label (a-z, 0-9 and inner '-')", ctx, param)
    return value
