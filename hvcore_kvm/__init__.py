"""The QEMU/KVM driver of hvcore.

For authors of NIC modes, security models and console types: the names below are the public ones.
"""

from hvcore import Step, hookimpl
from hvcore_kvm.command_line import Option, PlaceRequest, device, flag, json_option, keyed, word
from hvcore_kvm.families import (
    ConsoleContext,
    ConsolePlan,
    ConsoleType,
    EndpointContext,
    FdRequest,
    InterfaceEvent,
    NicContext,
    NicMode,
    NicPlan,
    SecurityModel,
    SecurityPlan,
)

VERSION = "0.1.0"
"""Version of the driver."""

__all__ = [
    "VERSION",
    "ConsoleContext",
    "ConsolePlan",
    "ConsoleType",
    "EndpointContext",
    "FdRequest",
    "InterfaceEvent",
    "NicContext",
    "NicMode",
    "NicPlan",
    "Option",
    "PlaceRequest",
    "SecurityModel",
    "SecurityPlan",
    "Step",
    "device",
    "flag",
    "hookimpl",
    "json_option",
    "keyed",
    "word",
]
