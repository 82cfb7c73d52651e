"""Tells a story on the terminal: numbered steps with the time since the beginning, and what a guest says."""

from __future__ import annotations

import re
import shutil
import time

import click

from hvcore.cli.output import Output, printable

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_INDENT = " " * 10
_QUOTED_LINES = 24
"""How many lines of a guest one step shows."""


class Narrator:
    """Prints as things happen.

    Args:
        output: standard output.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._began = time.monotonic()
        self._number = 0
        self._quoted = 0
        columns = shutil.get_terminal_size((120, 24)).columns if output.rich else 120
        self._width = max(40, columns - len(_INDENT) - 3)

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def step(self, title: str) -> None:
        """Begin the next step."""
        self._end_quotes()
        self._number += 1
        self._print(f"[{self.elapsed:5.1f} s] ", f"{self._number}. {title}", bold=True)

    def say(self, text: str) -> None:
        """Explain."""
        self._end_quotes()
        for line in text.splitlines():
            self._print(_INDENT, line)

    def proof(self, text: str) -> None:
        """Say something that has just been checked."""
        self._end_quotes()
        self._print(_INDENT, f"✓ {text}", color="green")

    def quote(self, line: str) -> None:
        """Show a line of a guest."""
        self._quoted += 1
        if self._quoted <= _QUOTED_LINES:
            shown = printable(_ESCAPES.sub("", line).strip())
            shown = shown if len(shown) <= self._width else f"{shown[: self._width - 1]}…"
            self._print(_INDENT, f"│ {shown}", color="cyan")

    def trouble(self, text: str) -> None:
        """Say that something went wrong."""
        self._end_quotes()
        for line in text.splitlines():
            self._print(_INDENT, f"✗ {line}", color="red")

    def _end_quotes(self) -> None:
        if self._quoted > _QUOTED_LINES:
            self._print(_INDENT, f"│ … and {self._quoted - _QUOTED_LINES} more lines", color="cyan")
        self._quoted = 0

    def _print(self, lead: str, text: str, *, bold: bool = False, color: str | None = None) -> None:
        shown = printable(text)
        if self._output.color:
            lead, shown = click.style(lead, dim=True), click.style(shown, bold=bold, fg=color)
        # Each line at once: it is to be watched, also through a pipe.
        print(f"{lead}{shown}", flush=True)
