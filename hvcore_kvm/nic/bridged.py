"""NIC mode ``bridged``: a tap on a bridge of the host.

The tap is made by opening it, and lives as long as QEMU holds it open: whatever ends QEMU, nothing is left behind.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator

import attrs

from hvcore import Finding, Nic, checks, param
from hvcore_kvm import (
    NetworkInterface,
    NicContext,
    NicMode,
    NicPlan,
    TapParameters,
    Vlans,
    check_tap,
    hookimpl,
    is_interface_name,
    is_vlan,
    packet_filter,
    parse_vlan,
    plan_tap,
    run_command,
)

_SYSFS = "/sys/class/net"
_BRIDGE = ("/usr/sbin/bridge", "/sbin/bridge", "/usr/bin/bridge")
_PATIENCE = 30.0


@attrs.frozen(kw_only=True)
class BridgedParameters(TapParameters):
    """Parameters of NIC mode ``bridged``."""

    vlan: str | None = param(
        default=None,
        checks=(is_vlan,),
        aliases=("vlan",),
        summary="VLANs of the port, on a bridge with VLAN filtering whose uplink has them: 10 (untagged), :10:20 "
        "(tagged) or .10:20 (the first untagged).",
    )
    anti_spoof: bool = param(
        default=False,
        summary="The guest sends only with its own hardware address and, if the NIC has an ip, only with that and with "
        "addresses.",
    )
    addresses: tuple[str, ...] = param(
        default=(),
        item_checks=(checks.ip_address,),
        summary="More addresses of the guest, beside the NIC's ip: IPv4 or IPv6; for anti_spoof.",
    )


class BridgedNetwork:
    """Plans a tap on a bridge."""

    tap = True

    def check(self, nic: Nic, parameters: BridgedParameters) -> Iterator[Finding]:
        """A bridge has to be named."""
        if nic.link is None:
            message = "NIC mode bridged needs the bridge it connects to"
            yield Finding(code="missing-parameter", path="link", message=message, hint='for example link = "br0"')
        elif not is_interface_name(nic.link):
            yield Finding(code="invalid-value", path="link", message=f"{nic.link[:40]!r} is no name of an interface")
        if parameters.addresses and not (parameters.anti_spoof and nic.ip):
            message = "goes with ip and anti_spoof"
            yield Finding(code="contradiction", path="params.addresses", message=message)
        if parameters.anti_spoof and nic.ip is not None and checks.ip_address(nic.ip):
            yield Finding(code="invalid-value", path="ip", message=f"{nic.ip[:60]!r} is not an IP address")

    def check_host(self, nic: Nic, parameters: BridgedParameters) -> Iterator[Finding]:
        """The bridge is there, and we may make taps."""
        bridge = NetworkInterface(nic.link or "")
        if not bridge.is_bridge:
            there = "is no bridge" if bridge.exists else "is not there"
            hint = f"this host has the bridges {', '.join(_bridges()) or '(none)'}"
            yield Finding(code="no-such-bridge", path="link", message=f"{bridge.name} {there}", hint=hint)
        else:
            if parameters.vlan is not None:
                yield from _check_vlans(bridge)
            yield from _check_mtu(bridge, nic.params.get("mtu"))
        yield from check_tap(nic)
        if parameters.anti_spoof:
            yield from packet_filter.check_sources()

    def plan(self, context: NicContext) -> NicPlan:
        """A tap that joins the bridge."""
        bridge = NetworkInterface(context.nic.link or "")
        join = functools.partial(_join, bridge, context.nic, context.parameters)
        # The rules outlive the tap.
        end = packet_filter.remove_rules if context.parameters.anti_spoof else None
        leave = (f"bridge {bridge.name}", NetworkInterface.leave)
        return plan_tap(context, f"tap on bridge {bridge.name}", join, take_down=end, movable=True, leave=leave)


def _join(bridge: NetworkInterface, nic: Nic, parameters: BridgedParameters, tap: NetworkInterface) -> None:
    if parameters.anti_spoof:
        packet_filter.allow_sources(tap, nic.mac or "", [*([nic.ip] if nic.ip else []), *parameters.addresses])
    # Before it joins: a bridge takes the smallest MTU of its ports, and may take the smallest address.
    tap.set_mtu(bridge.mtu)
    tap.set_high_address()
    tap.join(bridge)
    for command in [] if parameters.vlan is None else vlan_commands(tap.name, parse_vlan(parameters.vlan)):
        run_command(command, timeout=_PATIENCE)
    tap.bring_up()


def _bridges() -> list[str]:
    return sorted(name for name in os.listdir(_SYSFS) if NetworkInterface(name).is_bridge)


def _check_mtu(bridge: NetworkInterface, mtu: object) -> Iterator[Finding]:
    if isinstance(mtu, int) and mtu > bridge.mtu:
        message = f"{mtu} is above {bridge.mtu}, that of bridge {bridge.name}, which would drop larger packets"
        hint = f"ip link set {bridge.name} mtu {mtu}"
        yield Finding(code="mtu-too-large", path="params.mtu", message=message, hint=hint)


def _check_vlans(bridge: NetworkInterface) -> Iterator[Finding]:
    filtering = "0"
    with contextlib.suppress(OSError), open(f"{_SYSFS}/{bridge.name}/bridge/vlan_filtering", encoding="ascii") as file:
        filtering = file.read().strip()
    if filtering != "1":
        command = f"ip link set {bridge.name} type bridge vlan_filtering 1"
        hint = f"{command}, where the kernel can (CONFIG_BRIDGE_VLAN_FILTERING)"
        message = f"bridge {bridge.name} does not filter VLANs"
        yield Finding(code="no-vlan-filtering", path="params.vlan", message=message, hint=hint)
    if _bridge_program() is None:
        message = "the program bridge is not installed"
        yield Finding(code="no-program", path="params.vlan", message=message, hint="apt-get install iproute2")


def vlan_commands(interface: str, vlans: Vlans) -> list[list[str]]:
    """The commands that give a port of a bridge its VLANs, and no other."""
    vlan = [_bridge_program() or _BRIDGE[0], "vlan"]
    # A new port has the VLAN that the bridge gives to every port.
    commands = [[*vlan, "del", "dev", interface, "vid", "1-4094"]]
    if vlans.native is not None:
        commands.append([*vlan, "add", "dev", interface, "vid", str(vlans.native), "pvid", "untagged"])
    commands += [[*vlan, "add", "dev", interface, "vid", str(tagged)] for tagged in vlans.tagged]
    return commands


def _bridge_program() -> str | None:
    return next((path for path in _BRIDGE if os.access(path, os.X_OK)), None)


@hookimpl
def kvm_nic_modes() -> Iterator[NicMode]:
    """The mode."""
    yield NicMode(
        name="bridged",
        summary="A tap on a bridge of the host.",
        backend=BridgedNetwork(),
        parameters=BridgedParameters,
    )
