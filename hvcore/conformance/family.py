"""How the plugins of a driver's family are tested: which checks there are, and a profile that has one plugin in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from hvcore.conformance.check import Check
    from hvcore.conformance.profile import ConformanceProfile


@attrs.frozen(kw_only=True)
class FamilySuite:
    """The checks of one family of a driver.

    Attributes:
        title: what a plugin of it is called, for example ``NIC mode``.
        record: name of the record that a plugin yields, for example ``NicMode``; the sentences of the contract that
            bind the family name it.
        checks: the checks.
        profile: makes the profile to test one plugin with, from its name and the options of the run: every definition
            has the plugin in it, and ``member`` says which it is. Raises `hvcore.LoadError` when there is none of the
            name, and ``ValueError`` for an option that is none.
    """

    title: str
    record: str
    checks: tuple[Check, ...]
    profile: Callable[[str, Mapping[str, str]], ConformanceProfile]
