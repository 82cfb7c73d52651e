"""The QEMU/KVM driver of hvcore.

For authors of NIC modes, security models and console types: the names below are the public ones.
"""

from hvcore import Step, hookimpl
from hvcore_kvm import listen_address, packet_filter, uid_pool, unprivileged
from hvcore_kvm.command_line import Option, PlaceRequest, device, flag, json_option, keyed, word
from hvcore_kvm.companions import Companion, find_program
from hvcore_kvm.dbus_display import open_dbus_display
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
from hvcore_kvm.forward import Forward, check_forwards
from hvcore_kvm.host_command import run_command
from hvcore_kvm.interface import NetworkInterface, is_interface_name
from hvcore_kvm.private_root import PrivateRoot
from hvcore_kvm.tap import TapParameters, check_queues, check_tap, open_queue, plan_queues, plan_tap, tap_name
from hvcore_kvm.text_console import (
    TextConsoleParameters,
    describe_log,
    describe_socket,
    disconnect_socket,
    plan_log,
    plan_socket,
)
from hvcore_kvm.uid_pool import UidPool
from hvcore_kvm.vlan import Vlans, is_vlan, parse_vlan

VERSION = "0.1.0"
"""Version of the driver."""

__all__ = [
    "VERSION",
    "Companion",
    "ConsoleContext",
    "ConsolePlan",
    "ConsoleType",
    "EndpointContext",
    "FdRequest",
    "Forward",
    "InterfaceEvent",
    "NetworkInterface",
    "NicContext",
    "NicMode",
    "NicPlan",
    "Option",
    "PlaceRequest",
    "PrivateRoot",
    "SecurityModel",
    "SecurityPlan",
    "Step",
    "TapParameters",
    "TextConsoleParameters",
    "UidPool",
    "Vlans",
    "check_forwards",
    "check_queues",
    "check_tap",
    "describe_log",
    "describe_socket",
    "device",
    "disconnect_socket",
    "find_program",
    "flag",
    "hookimpl",
    "is_interface_name",
    "is_vlan",
    "json_option",
    "keyed",
    "listen_address",
    "open_dbus_display",
    "open_queue",
    "packet_filter",
    "parse_vlan",
    "plan_log",
    "plan_queues",
    "plan_socket",
    "plan_tap",
    "run_command",
    "tap_name",
    "uid_pool",
    "unprivileged",
    "word",
]
