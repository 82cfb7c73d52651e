"""Steps with an undo, and a journal of them that survives the process that made it.

A `Journal` is a JSON-lines file: one line at the beginning, one of intent before each step, one after it; at the end
the file is removed. Failure undoes in reverse and reports both. Whoever finds a journal knows how far its writer got.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import attrs

from hvcore.errors import HostError, HypervisorError, OperationFailed


@attrs.frozen(kw_only=True)
class Step:
    """One side effect on the host.

    Attributes:
        name: what it is called in the journal and in messages.
        do: does it; what it returns is what `Journal.run` returns.
        undo: takes it back, also after a ``do`` that stopped half way; ``None`` where the kernel reclaims by itself.
        details: what a later process needs to know to take it back, as plain data.
    """

    name: str
    do: Callable[[], Any]
    undo: Callable[[], None] | None = None
    details: Mapping[str, Any] = attrs.field(factory=dict)


class Journal:
    """The steps of one operation, written to a file before and after each, undone together on failure.

    Use it as a context manager: leaving it normally commits, leaving it by an exception undoes.

    Args:
        path: the file; its directory must exist. ``None`` keeps no file.
        operation: what is being done.
        details: what a later process needs to know about the whole.
    """

    def __init__(self, path: str | None, operation: str, details: Mapping[str, Any] | None = None) -> None:
        self._path = path
        self._operation = operation
        self._details = dict(details or {})
        self._done: list[Step] = []
        self._fd: int | None = None

    def __enter__(self) -> Self:
        try:
            self._write({"begin": self._operation, "pid": os.getpid(), "time": time.time(), **self._details})
        except HostError:
            self.abandon()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
            return
        problems = self.undo()
        if problems and isinstance(error, HypervisorError):
            error.__notes__ = [*getattr(error, "__notes__", ()), *problems]
        if problems and not isinstance(error, HypervisorError):
            raise OperationFailed(
                f"{self._operation} failed and could not be undone completely: {'; '.join(problems)}",
                code="undo-failed",
            ) from error

    def run(self, step: Step) -> Any:
        """Do one step: intent, the step itself, done."""
        self._write({"step": step.name, **step.details})
        # Before it is done: a step that fails half way is undone too.
        self._done.append(step)
        result = step.do()
        self._write({"done": step.name})
        return result

    def undo(self) -> list[str]:
        """Undo all steps, the last first; returns what could not be undone."""
        problems = []
        # Where there is no room for it, whoever finds the journal takes this for an interrupted operation, as it is.
        with contextlib.suppress(HostError):
            self._write({"undo": self._operation})
        while self._done:
            step = self._done.pop()
            if step.undo is None:
                continue
            try:
                step.undo()
            except (HypervisorError, OSError) as error:
                problems.append(f"undoing {step.name}: {error}")
        if not problems:
            self._finish()
        else:
            self.abandon()
        return problems

    def abandon(self) -> None:
        """Let go of the file and leave it as it is, as a killed writer would; nothing is undone."""
        self._done.clear()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        if self._fd is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._path, flags, 0o600)
        try:
            # The writer may be killed at any point, the host's crash takes the directory with it: no fsync is needed.
            line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
            if os.write(self._fd, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            message = f"cannot write the journal {self._path}: {error.strerror}"
            raise HostError(message, hint="make room on that file system") from error

    def _finish(self) -> None:
        if self._fd is None:
            return
        os.close(self._fd)
        self._fd = None
        if self._path is not None:
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                # An undo that removed the whole directory took the journal with it.
                return


def unfinished(path: str) -> list[dict[str, Any]]:
    """The entries of a journal that nobody finished; empty when there is none.

    A last line that is cut off, because its writer was killed in it, is left out.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().split("\n")
    except FileNotFoundError:
        return []
    entries = []
    for line in lines[:-1]:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries
