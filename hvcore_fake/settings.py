"""Settings of the fake driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from hvcore import FindingSet, LoadError, param, structure
from hvcore_fake.faults import Fault, FaultPlan, check_faults


@attrs.frozen(kw_only=True)
class FakeSettings:
    """Given to `hvcore.load_driver` as ``settings``."""

    faults: tuple[Fault, ...] = param(
        default=(), summary="Faults to strike, each a table; or a `FaultPlan`, which can be changed afterwards."
    )
    accept_foreign: bool = param(
        default=False,
        summary="Accept parameters, NIC modes, security models and consoles of other drivers, and ignore them: "
        "for tests with the definitions of a real one.",
    )
    allow_powercycle: bool = param(
        default=False, summary="Let powercycle_node note a restart of the host. It never restarts anything."
    )


def read_settings(values: Mapping[str, Any]) -> tuple[FakeSettings, FaultPlan]:
    """Check the settings of a host application.

    Raises:
        LoadError: everything that is wrong with them.
    """
    given = dict(values)
    plan = given.pop("faults") if isinstance(given.get("faults"), FaultPlan) else None
    settings, findings = structure(FakeSettings, given)
    if not findings:
        findings = check_faults(settings.faults)
    if findings:
        raise LoadError("the settings of driver fake have errors", FindingSet(findings))
    return settings, plan or FaultPlan(settings.faults)
