"""The ``mesh`` command. A subcommand's module is imported when it runs, so ``mesh --help`` stays fast."""

from __future__ import annotations

import importlib
import os
from typing import Final, NamedTuple

import click

from mesh.cli.verbatim import VerbatimGroup

# gRPC's core writes INFO lines (GOAWAY and the like) to standard error unless told otherwise before it is loaded.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# Nothing of ours forks; a library that does would have the child die in gRPC's at-fork handlers (see mesh/child.py).
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


class Entry(NamedTuple):
    """Where a subcommand is (module of ``mesh.cli``, which has a click command called ``command``), and its line."""

    module: str
    line: str


COMMANDS: Final[dict[str, Entry]] = {
    "demo": Entry("demo", "Start a whole mesh on this machine and watch a canary roll out."),
    "control": Entry("control", "Run the control server: routing tables, registry, operator API."),
    "sidecar": Entry("sidecar", "Run a sidecar beside a program."),
    "run": Entry("run", "Run a program with a sidecar of its own."),
    "apply": Entry("apply", "Create or replace routes and policies from YAML."),
    "get": Entry("get", "Show routes and policies."),
    "delete": Entry("delete", "Delete a route or a policy."),
    "weights": Entry("weights", "Show or set how traffic is split between versions."),
    "status": Entry("status", "Show which sidecars run which version of the table."),
    "watch": Entry("watch", "Follow changes of the table and of the sidecars."),
    "history": Entry("history", "Show who changed the table, when and why."),
    "rollback": Entry("rollback", "Go back to an earlier version of the table."),
    "why": Entry("why", "Explain which route and endpoint a request would take."),
}


class LazyGroup(VerbatimGroup):
    """A group whose commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; a missing module is told, not raised."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        name = f"mesh.cli.{entry.module}"
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise click.ClickException(
                f"`mesh {cmd_name}` is not part of this installation ({name} is missing)"
            ) from error
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table's lines, so that no command is imported for them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.line) for name, entry in COMMANDS.items()])


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command has its own --help with examples. Operator commands speak to the control server that "
    "--control or MESH_CONTROL names (127.0.0.1:15010).",
)
@click.version_option(package_name="sidemesh", prog_name="mesh")
def main() -> None:
    """Sidemesh: a service mesh of sidecar proxies, one control server and this command.

    mesh demo                          see it work, in one minute
    mesh control                       the control server
    mesh run --service pay --port 8080 -- python app.py
    mesh weights set reviews v1=90 v2=10
    mesh status
    """


if __name__ == "__main__":
    main()
