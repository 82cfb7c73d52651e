"""Looking for a secret where none may be: in files, logs, warnings, and what a hypervisor process was given."""

from __future__ import annotations

import contextlib
import logging
import warnings
from types import TracebackType
from typing import Self

from hvcore.conformance.subject import Subject


class Disclosure(logging.Handler):
    """Collects what is said while it is entered, and looks for some words in it afterwards.

    Args:
        subject: whose files are looked at.
        name: the instance whose process is looked at, if it lives.
        words: what must not be found.

    Attributes:
        found: where a word was found; nothing before it is left.
    """

    def __init__(self, subject: Subject, name: str, *words: str) -> None:
        super().__init__(level=0)
        self._subject = subject
        self._instance = name
        self._words = words
        self._said: list[tuple[str, str]] = []
        self._stack = contextlib.ExitStack()
        self._warnings: list[warnings.WarningMessage] = []
        self.found: list[str] = []

    def note(self, text: str, where: str = "a result or an error") -> None:
        """Add what the caller was told."""
        self._said.append((where, text))

    def emit(self, record: logging.LogRecord) -> None:
        """Add what was logged."""
        self._said.append((f"the log {record.name}", f"{record.getMessage()} {record.args!r} {record.exc_text or ''}"))

    def __enter__(self) -> Self:
        root, level = logging.getLogger(), logging.getLogger().level
        root.addHandler(self)
        root.setLevel(1)
        self._stack.callback(root.setLevel, level)
        self._stack.callback(root.removeHandler, self)
        self._warnings = self._stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._said += [("a warning", str(message.message)) for message in self._warnings]
        self._stack.close()
        self._said += [(path, data.decode(errors="replace")) for path, data in self._subject.files().items()]
        self._said += self._given()
        self.found = sorted({where for where, text in self._said for word in self._words if word in text})

    def _given(self) -> list[tuple[str, str]]:
        pid = self._subject.info(self._instance).pid if self._subject.lives(self._instance) else None
        said = []
        for what in ("cmdline", "environ"):
            # A modelled process has neither.
            with contextlib.suppress(OSError), open(f"/proc/{pid}/{what}", errors="replace") as file:
                said.append((f"the {what} of process {pid}", file.read()))
        return said
