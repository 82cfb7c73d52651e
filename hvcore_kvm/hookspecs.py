"""The sub-hooks of the KVM driver: how other packages add NIC modes, security models and console types.

A family plugin yields named records; the driver picks by name, and a name offered twice is an error. Plugins are
found through the entry-point groups ``hvcore_kvm.nic_modes``, ``hvcore_kvm.security_models`` and
``hvcore_kvm.console_types``; the built-in ones come the same way and have no privileges.
"""

from __future__ import annotations

from collections.abc import Iterable

from hvcore import hookspec
from hvcore_kvm.families import ConsoleType, InterfaceEvent, NicMode, SecurityModel


@hookspec
def kvm_nic_modes() -> Iterable[NicMode]:
    """Yield the NIC modes of a plugin.

    Returns:
        Records; the object in each checks, plans and describes one way to connect a NIC. Since: 0.1.
    """


@hookspec
def kvm_security_models() -> Iterable[SecurityModel]:
    """Yield the security models of a plugin.

    Returns:
        Records; the object in each checks and plans how a QEMU process is confined. Since: 0.1.
    """


@hookspec
def kvm_console_types() -> Iterable[ConsoleType]:
    """Yield the console types of a plugin.

    Returns:
        Records; the object in each checks and plans a console and says how to reach it. Since: 0.1.
    """


@hookspec
def kvm_interface_changed(event: InterfaceEvent) -> None:
    """Observe a network interface of an instance going up or down. Errors of an observer are logged, never raised.

    Args:
        event: which interface, which instance, up or down. Since: 0.1.
    """
