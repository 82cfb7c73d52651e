"""One line on a terminal's standard error that says how far something is, and goes when that is done."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from hvcore.cli.output import printable
from hvcore.cli.stats import amount
from hvcore.model.progress import Progress

_EVERY = 0.1
_CLEAR = "\r\x1b[K"


class ProgressLine:
    """Called with each `Progress`; draws at most ten times a second, and nothing where there is no terminal.

    A context manager: at its end the line goes.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._phase = ""
        self._began = 0.0
        self._next = 0.0
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._drawn:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()

    def __call__(self, progress: Progress) -> None:
        """Draw it."""
        now = time.monotonic()
        if progress.phase != self._phase:
            self._phase, self._began = progress.phase, now
        if not self._terminal or now < self._next:
            return
        self._next = now + _EVERY
        sys.stderr.write(_CLEAR + self.text(progress, now - self._began))
        sys.stderr.flush()
        self._drawn = True

    @staticmethod
    def text(progress: Progress, elapsed: float) -> str:
        """What the line says."""
        total = f" of {amount(progress.total)}" if progress.total else ""
        rate = f", {amount(progress.done / elapsed)}/s" if elapsed > 0 else ""
        return printable(f"{progress.phase}: {amount(progress.done)}{total}{rate}")
