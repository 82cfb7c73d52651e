"""NIC mode ``openvswitch``: a tap on a bridge of Open vSwitch.

The tap is gone with QEMU; the port, which stands in Open vSwitch's database, is deleted once QEMU is gone.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import attrs

from hvcore import Finding, HostError, Nic, checks, param
from hvcore_kvm import (
    NetworkInterface,
    NicContext,
    NicMode,
    NicPlan,
    TapParameters,
    check_tap,
    hookimpl,
    is_vlan,
    parse_vlan,
    plan_tap,
    run_command,
)

_VSCTL = ("/usr/bin/ovs-vsctl", "/usr/local/bin/ovs-vsctl", "/usr/sbin/ovs-vsctl")
_PATIENCE = 10
_NOT_SET_UP = "Error detected while setting up"


def _is_database(value: str) -> str | None:
    kind, _, rest = value.partition(":")
    known = kind in ("unix", "tcp", "ssl") and rest
    return None if known else f"{value[:60]!r} is none of unix:PATH, tcp:ADDRESS:PORT, ssl:ADDRESS:PORT"


@attrs.frozen(kw_only=True)
class OpenVSwitchParameters(TapParameters):
    """Parameters of NIC mode ``openvswitch``."""

    vlan: str | None = param(
        default=None,
        checks=(is_vlan,),
        aliases=("vlan",),
        summary="VLANs of the port: 10 (untagged), :10:20 (tagged) or .10:20 (the first untagged); all, tagged, when "
        "not given.",
    )
    database: str | None = param(
        default=None,
        checks=(checks.no_control_characters, _is_database),
        summary="Where ovsdb-server listens, for example unix:/run/openvswitch/db.sock; what ovs-vsctl takes by itself "
        "when not given.",
    )


class OpenVSwitchNetwork:
    """Plans a tap on a bridge of Open vSwitch."""

    tap = True

    def check(self, nic: Nic, parameters: OpenVSwitchParameters) -> Iterator[Finding]:
        """A bridge has to be named."""
        if nic.link is None:
            message = "NIC mode openvswitch needs the bridge it connects to"
            yield Finding(code="missing-parameter", path="link", message=message, hint='for example link = "br-int"')
        elif not _is_bridge_name(nic.link):
            yield Finding(code="invalid-value", path="link", message=f"{nic.link[:40]!r} is no name of a bridge")

    def check_host(self, nic: Nic, parameters: OpenVSwitchParameters) -> Iterator[Finding]:
        """Open vSwitch answers and has the bridge, and we may make taps."""
        yield from _check_bridge(nic.link or "", parameters.database)
        yield from check_tap(nic)

    def plan(self, context: NicContext) -> NicPlan:
        """A tap that becomes a port."""
        bridge, parameters = context.nic.link or "", context.parameters
        switch = "Open vSwitch" if parameters.database is None else f"Open vSwitch at {parameters.database}"
        return plan_tap(
            context,
            f"tap on Open vSwitch bridge {bridge}",
            functools.partial(_join, bridge, parameters),
            take_down=functools.partial(_leave, parameters.database),
            movable=True,
            leave=(switch, functools.partial(_move_out, parameters.database)),
        )


def _join(bridge: str, parameters: OpenVSwitchParameters, tap: NetworkInterface) -> None:
    tap.bring_up()
    # What an earlier life of the tap may have left goes first, in the same transaction.
    words = ["--if-exists", "del-port", tap.name, "--", "add-port", bridge, tap.name, *port_settings(parameters.vlan)]
    output = _vsctl(parameters.database, *words)
    if _NOT_SET_UP in output:
        _leave(parameters.database, tap)
        raise HostError(f"Open vSwitch does not take {tap.name}: {output.strip()}", code="command-failed")


def _leave(database: str | None, tap: NetworkInterface) -> None:
    # The switch need not have noticed, nor be there; the database decides.
    _vsctl(database, "--no-wait", "--if-exists", "del-port", tap.name)


def _move_out(database: str | None, tap: NetworkInterface) -> None:
    # The switch has to have let go of it before a bridge takes it.
    _vsctl(database, "--if-exists", "del-port", tap.name)


def port_settings(vlan: str | None) -> list[str]:
    """Columns of a port with these VLANs."""
    if vlan is None:
        return []
    vlans = parse_vlan(vlan)
    mode = "trunk" if vlans.native is None else "native-untagged" if vlans.tagged else "access"
    settings = [f"vlan_mode={mode}"]
    if vlans.native is not None:
        settings.append(f"tag={vlans.native}")
    if vlans.tagged:
        settings.append(f"trunks={','.join(map(str, vlans.tagged))}")
    return settings


def _check_bridge(bridge: str, database: str | None) -> Iterator[Finding]:
    if _program() is None:
        hint = "apt-get install openvswitch-switch"
        yield Finding(code="no-program", path="mode", message="the program ovs-vsctl is not installed", hint=hint)
        return
    try:
        bridges = _vsctl(database, "--no-wait", "list-br").split()
    except HostError as error:
        hint = "start Open vSwitch; params.database says where it listens"
        yield Finding(code="no-openvswitch", path="mode", message=error.message, hint=hint)
        return
    if bridge not in bridges:
        hint = f"Open vSwitch has the bridges {', '.join(bridges) or '(none)'}"
        yield Finding(code="no-such-bridge", path="link", message=f"{bridge} is not there", hint=hint)


def _vsctl(database: str | None, *words: str) -> str:
    at = [] if database is None else [f"--db={database}"]
    command = [_program() or _VSCTL[0], f"--timeout={_PATIENCE}", *at, *words]
    # It gives up by itself; ours is for one that does not.
    return run_command(command, timeout=_PATIENCE + 5)


def _program() -> str | None:
    return next((path for path in _VSCTL if os.access(path, os.X_OK)), None)


def _is_bridge_name(value: str) -> bool:
    """As for interfaces, but in userspace a name may be longer; a leading dash would be an option."""
    printable = value.isascii() and value.isprintable()
    return 0 < len(value) < 64 and printable and not set(value) & set("/: \"',=") and not value.startswith("-")


@hookimpl
def kvm_nic_modes() -> Iterator[NicMode]:
    """The mode."""
    yield NicMode(
        name="openvswitch",
        summary="A tap on a bridge of Open vSwitch.",
        backend=OpenVSwitchNetwork(),
        parameters=OpenVSwitchParameters,
    )
