"""What is wrong, or worth saying, about an input or a host: findings, always collected, never one at a time."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence

import attrs


class Severity(enum.StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    WARNING = "warning"
    ADVICE = "advice"


@attrs.frozen(kw_only=True)
class Finding:
    """One thing wrong or worth saying.

    Attributes:
        code: stable machine-readable code, for example ``unknown-parameter``.
        path: where, in the words of the input: ``disks[1].format``; empty for the host as a whole.
        message: what was expected and what was found; never the value of a secret.
        hint: what to do about it.
        severity: errors stop an operation, the others do not.
    """

    code: str
    message: str
    path: str = ""
    hint: str | None = None
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}{self.message}{hint} [{self.code}]"

    def as_dict(self) -> dict[str, object]:
        """The finding as plain data."""
        return {
            "code": self.code,
            "path": self.path,
            "message": self.message,
            "hint": self.hint,
            "severity": self.severity.value,
        }

    def below(self, prefix: str) -> Finding:
        """The same finding with its path moved under ``prefix``."""
        if not prefix:
            return self
        joiner = "" if not self.path or self.path.startswith("[") else "."
        return attrs.evolve(self, path=f"{prefix}{joiner}{self.path}")


@attrs.frozen(eq=True, init=False)
class FindingSet(Sequence[Finding]):
    """An immutable, ordered collection of findings without repetitions."""

    items: tuple[Finding, ...]

    def __init__(self, items: Iterable[Finding] = ()) -> None:
        self.__attrs_init__(tuple(dict.fromkeys(items)))

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.items)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.items[index]

    def __add__(self, other: Iterable[Finding]) -> FindingSet:
        return FindingSet((*self.items, *other))

    def below(self, prefix: str) -> FindingSet:
        """All findings with their paths moved under ``prefix``."""
        return FindingSet(finding.below(prefix) for finding in self.items)

    @property
    def errors(self) -> FindingSet:
        """Those that stop an operation."""
        return FindingSet(f for f in self.items if f.severity is Severity.ERROR)

    @property
    def ok(self) -> bool:
        """No finding is an error."""
        return not any(f.severity is Severity.ERROR for f in self.items)

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of all findings, in order."""
        return tuple(f.code for f in self.items)
