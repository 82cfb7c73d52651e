"""What was left half done and what became of it."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class RecoveredInstance:
    """One instance that something was left half done of.

    Attributes:
        name: name of the instance.
        operation: what had been interrupted.
        outcome: ``completed`` or ``undone``, or ``failed`` when it could not be put in order.
        detail: what was done, for people.
    """

    name: str
    operation: str
    outcome: str
    detail: str = ""


@attrs.frozen(kw_only=True)
class Recovery:
    """Everything that was found and done."""

    instances: tuple[RecoveredInstance, ...] = ()


@attrs.frozen(kw_only=True)
class InterruptedInstances:
    """The instances that something may have been left half done with, although they are not listed.

    Attributes:
        names: their names, sorted.
    """

    names: tuple[str, ...] = ()
