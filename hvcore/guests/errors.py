"""The error of this package."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

_LAST_WORDS = 800


class GuestBuildError(RuntimeError):
    """A guest could not be built.

    The text of the error holds all of it: what was wrong, the command (if one was run), the end of its
    output, and what to do.

    Attributes:
        what: what was wrong, one sentence.
        hint: what to do about it, one sentence.
        command: the command that failed, empty when it was not a command.
        last_words: the end of the command's output.
    """

    def __init__(self, what: str, *, hint: str, command: Sequence[str] = (), output: str = "") -> None:
        self.what = what
        self.hint = hint
        self.command = tuple(command)
        self.last_words = output.strip()[-_LAST_WORDS:]
        lines = [what]
        if self.command:
            lines.append(f"command: {shlex.join(self.command)}")
        if self.last_words:
            lines.append(f"it said: {self.last_words}")
        lines.append(f"what to do: {hint}")
        super().__init__("\n".join(lines))
