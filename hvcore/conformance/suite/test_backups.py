"""Backups."""

from __future__ import annotations

from hvcore.conformance.check import Check
from hvcore.conformance.checks import backups
from hvcore.conformance.subject import Subject
from hvcore.conformance.suite.collection import each_check


@each_check(backups)
def test_backups(check: Check, subject: Subject) -> None:
    """What the docstring of the check says."""
    check.run(subject)
