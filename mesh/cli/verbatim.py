"""Help texts as they are written: examples keep their lines, nothing is wrapped again."""

from __future__ import annotations

import inspect

import click


class VerbatimCommand(click.Command):
    """A command whose docstring is its help, line by line; write it at most 100 columns wide."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the docstring, indented as click indents."""
        formatter.write_paragraph()
        for line in inspect.cleandoc(self.help or "").splitlines():
            formatter.write(f"  {line}".rstrip() + "\n")


class VerbatimGroup(VerbatimCommand, click.Group):
    """Likewise for a group of commands."""
