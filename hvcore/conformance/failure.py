"""How a check says that a requirement is not met. It knows no test framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hvcore.errors import HypervisorError

E = TypeVar("E", bound=HypervisorError)


class ConformanceFailure(AssertionError):
    """A driver does not do what a sentence of the contract asks for.

    Attributes:
        requirement: id of the sentence, filled in by the check.
        message: what was expected and what was found.
    """

    def __init__(self, message: str, requirement: str = "") -> None:
        super().__init__(message)
        self.requirement = requirement
        self.message = message

    def __str__(self) -> str:
        return f"{self.requirement}: {self.message}" if self.requirement else self.message


def expect(condition: object, message: str) -> None:
    """Go on only if a condition holds.

    Raises:
        ConformanceFailure: it does not.
    """
    if not condition:
        raise ConformanceFailure(message)


def expect_equal(found: object, wanted: object, what: str) -> None:
    """Go on only if two values are equal.

    Raises:
        ConformanceFailure: they are not.
    """
    if found != wanted:
        raise ConformanceFailure(f"{what} is {_shown(found)}, expected {_shown(wanted)}")


def expect_error(kind: type[E] | tuple[type[E], ...], call: Callable[[], object], what: str) -> E:
    """Call something that has to be refused, and return the error.

    Args:
        kind: what has to be raised.
        call: makes the call.
        what: what the call does, for messages.

    Raises:
        ConformanceFailure: nothing was raised, or another error.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join(each.__name__ for each in kinds)
    try:
        result = call()
    except kinds as error:
        return error
    except Exception as error:
        raise ConformanceFailure(f"{what} raised {type(error).__name__}, expected {wanted}: {error}") from error
    raise ConformanceFailure(f"{what} returned {_shown(result)}, expected {wanted}")


def _shown(value: object) -> str:
    text = str(value) if isinstance(value, type) else repr(value)
    return text if len(text) <= 300 else text[:297] + "..."
