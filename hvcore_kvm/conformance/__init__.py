"""What the conformance suite has to know about driver kvm, and its checks of the driver's family plugins."""

from __future__ import annotations

from hvcore_kvm.conformance.profile import profile

__all__ = ["profile"]
