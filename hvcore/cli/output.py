"""How ``hv`` shows results: tables and sentences for people, one JSON document for machines.

On a terminal tables are drawn with rich; elsewhere they are plain text in stable columns, without colour.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from hvcore.cli.plain_data import plain_data
from hvcore.findings import Finding, Severity

if TYPE_CHECKING:
    from rich.table import Table

_COLORS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.ADVICE: "cyan"}


def printable(text: str) -> str:
    """Text without control characters: what a guest, a file or a plugin said must not drive a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)


class Output:
    """Standard output of one command.

    Args:
        as_json: one JSON document, and nothing else, goes to standard output.
        color: colours and table lines where the output is a terminal.
    """

    def __init__(self, *, as_json: bool, color: bool) -> None:
        self.as_json = as_json
        self.rich = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.color = color and self.rich and not os.environ.get("NO_COLOR")

    def document(self, value: object) -> None:
        """Print a record as the JSON document."""
        click.echo(json.dumps(plain_data(value), indent=2))

    def say(self, text: str, *, bold: bool = False) -> None:
        """Print a line."""
        shown = printable(text)
        click.echo(click.style(shown, bold=True) if bold and self.color else shown, color=self.color)

    def heading(self, text: str) -> None:
        """Print a heading."""
        self.say(text, bold=True)

    def findings(self, findings: Iterable[Finding]) -> None:
        """Print findings, one a line."""
        for finding in findings:
            severity = f"{finding.severity.value:<9}"
            shown = click.style(severity, fg=_COLORS[finding.severity]) if self.color else severity
            click.echo(f"{shown}{printable(str(finding))}", color=self.color)

    def pairs(self, rows: Iterable[tuple[str, str]]) -> None:
        """Print names and values, one pair a line; empty values are left out."""
        given = [(name, value) for name, value in rows if value]
        width = max((len(name) for name, _ in given), default=0)
        for name, value in given:
            shown = f"{name:<{width}}"
            label = click.style(shown, dim=True) if self.color else shown
            click.echo(f"{label}  {printable(value)}", color=self.color)

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table."""
        if self.rich:
            # Here, because rich takes longer to import than most commands to run.
            from rich.console import Console

            shown = self.rich_table(headers, rows)
            Console(color_system="auto" if self.color else None, highlight=False).print(shown)
        else:
            self._plain_table(headers, _cleaned(rows))

    def _plain_table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        lines = [[header.upper() for header in headers], *rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
        for line in lines:
            click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())

    def rich_table(self, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
        """A table as rich draws it."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        for header in headers:
            table.add_column(header, overflow="fold")
        for row in _cleaned(rows):
            table.add_row(*(Text(cell) for cell in row))
        return table


def _cleaned(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    return [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
