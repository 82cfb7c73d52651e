"""hvcore_fake: a modelled hypervisor, for tests of host applications and as reference for drivers.

Load it with ``hvcore.load_driver("fake", settings)``. Instances live in files below the driver's directories, so every
driver object on the same directories sees the same world; time in it is virtual. A test makes things happen with
`World`, and scripts faults with `FaultPlan`::

    plan = FaultPlan([Fault(kind="crash", operation="start_instance", effect="process", when="after")])
    driver = hvcore.load_driver("fake", {"faults": plan})
    World.of(driver).guest_powers_off("web1")
"""

from __future__ import annotations

from hvcore_fake.clock import VirtualClock
from hvcore_fake.faults import EFFECTS, EVENTS, Fault, FaultPlan, HostCrash
from hvcore_fake.parameters import GuestParameters
from hvcore_fake.plugin import FakeDriver
from hvcore_fake.settings import FakeSettings
from hvcore_fake.world import World

__all__ = [
    "EFFECTS",
    "EVENTS",
    "FakeDriver",
    "FakeSettings",
    "Fault",
    "FaultPlan",
    "GuestParameters",
    "HostCrash",
    "VirtualClock",
    "World",
]
