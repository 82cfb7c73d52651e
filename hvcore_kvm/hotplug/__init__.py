"""Changing the devices of a running instance."""

from hvcore_kvm.hotplug.ledger import with_device
from hvcore_kvm.hotplug.plugging import FIXED_BUSES, Plugging, support_of

__all__ = ["FIXED_BUSES", "Plugging", "support_of", "with_device"]
