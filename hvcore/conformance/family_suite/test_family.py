"""One plugin of a driver's family; the pytest plugin knows which checks there are."""

from __future__ import annotations

from hvcore.conformance.check import Check
from hvcore.conformance.subject import Subject


def test_family(check: Check, subject: Subject) -> None:
    """What the docstring of the check says."""
    check.run(subject)
