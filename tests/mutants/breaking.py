"""Marking a class as a faulty driver, and trying the checks of one sentence on a driver class."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pytest

import hvcore
from hvcore.conformance import Check, ConformanceFailure, Subject
from hvcore.conformance.checks import CHECKS
from hvcore_fake.conformance import profile

PROFILE = profile({})

Maker = Callable[[hvcore.DriverContext], object]
M = TypeVar("M", bound=type)

MUTANTS: list[tuple[str, type]] = []
"""Every sentence and a driver that breaks it."""


def breaks(*requirements: str) -> Callable[[M], M]:
    """Enter a faulty driver in the catalogue, with the sentences that its checks have to fail."""

    def enter(mutant: M) -> M:
        MUTANTS.extend((requirement, mutant) for requirement in requirements)
        return mutant

    return enter


def load(make: Maker, settings: Mapping[str, Any], extensions: Sequence[object] = ()) -> hvcore.Driver:
    """Load a driver from its class, as `hvcore.load_driver` would from its entry point."""
    given = dict(settings)
    roots = {kind: given.pop(f"{kind}_directory") for kind in ("state", "data", "cache")}
    directories = hvcore.Directories(**roots).below("fake")
    context = hvcore.DriverContext(name="fake", directories=directories, host_id="mutant", settings=given)
    return hvcore.load_plugin(make(context), context, label="mutant", extensions=extensions)


def checks_for(requirement: str) -> list[Check]:
    """The checks of a sentence that can be run on the fake driver."""
    return [
        check for check in CHECKS if check.requirement == requirement and not set(check.needs) & set(PROFILE.absent)
    ]


def failures(make: Maker, requirement: str) -> list[ConformanceFailure]:
    """What the checks of one sentence find wrong with a driver."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        # What the facade keeps no driver can break: such a mutant brings a faulty part of it.
        for target, part in getattr(make, "replaces", {}).items():
            patch.setattr(target, part, raising=False)
        found += [failure for check in checks_for(requirement) for failure in _failures(make, check)]
    return found


def _failures(make: Maker, check: Check) -> list[ConformanceFailure]:
    with tempfile.TemporaryDirectory(prefix="hvc-", ignore_cleanup_errors=True) as directory:
        subject = Subject(lambda s, e: load(make, s, e), PROFILE, directory, f"{directory}/cache")
        try:
            check.run(subject)
        except ConformanceFailure as failure:
            return [failure]
        subject.close()
    return []
