"""Changing the devices of a running instance."""

from hvcore_kvm.hotplug.device_plan import plan_of
from hvcore_kvm.hotplug.modification import pluggable, pluggable_kind
from hvcore_kvm.hotplug.plugging import Plugging, support_of
from hvcore_kvm.hotplug.single_plan import PlannedDevice, plan_single

__all__ = [
    "PlannedDevice",
    "Plugging",
    "plan_of",
    "plan_single",
    "pluggable",
    "pluggable_kind",
    "support_of",
]
