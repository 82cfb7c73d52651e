"""Turning the checks of a module into tests."""

from __future__ import annotations

import types

import pytest

from hvcore.conformance.check import checks_of


def each_check(module: types.ModuleType) -> pytest.MarkDecorator:
    """One test for each check of a module, marked with its requirement."""
    tests = [
        pytest.param(check, id=check.name, marks=pytest.mark.requirement(check.requirement))
        for check in checks_of(module)
    ]
    return pytest.mark.parametrize("check", tests)
