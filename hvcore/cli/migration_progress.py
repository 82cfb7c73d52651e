"""How far a migration is, on standard error: a bar on a terminal, else a line for each phase."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

import click

from hvcore.cli.output import Output, printable
from hvcore.model.migration import MigrationPhase, MigrationStatus
from hvcore.model.units import format_seconds


class MigrationProgress:
    """Shows each status it is called with. Use it as a context manager.

    Args:
        name: the instance.
        output: the output of the command; with JSON nothing is shown.
    """

    def __init__(self, name: str, output: Output) -> None:
        self._name = name
        self._quiet = output.as_json
        self._phase: MigrationPhase | None = None
        self._bar: Any = None
        if not output.as_json and sys.stderr.isatty():
            # Here, because rich takes longer to import than most commands to run.
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            console = Console(stderr=True, no_color=not output.color, highlight=False)
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"))
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(name, total=None, words="preparing the other host")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, status: MigrationStatus) -> None:
        """Show it."""
        if self._bar is not None:
            done = max(0, status.total - status.remaining)
            total = status.total or None
            self._bar.update(self._task, completed=done, total=total, words=progress_words(status))
        elif not self._quiet and status.phase is not self._phase:
            click.echo(printable(f"{self._name}: {progress_words(status)}"), err=True)
        self._phase = status.phase


def progress_words(status: MigrationStatus) -> str:
    """A status in words: phase, sent, rate, changed, remaining, expected pause."""
    words = [status.phase.value, f"{short_size(status.transferred)} sent"]
    if status.rate:
        words.append(f"{short_size(status.rate)}/s")
    if status.dirty_rate:
        words.append(f"{short_size(status.dirty_rate)}/s changed")
    words.append(f"{short_size(status.remaining)} remain")
    if status.downtime is not None:
        words.append(f"paused for {format_seconds(round(status.downtime, 3))}")
    elif status.expected_downtime is not None:
        words.append(f"pause of {format_seconds(round(status.expected_downtime, 3))} expected")
    return ", ".join(words)


def short_size(size: float) -> str:
    """A size with three digits or so."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"
