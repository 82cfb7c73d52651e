"""NIC mode ``bridged``: a tap on a bridge of the host.

The tap is made by opening it, and lives as long as QEMU holds it open: whatever ends QEMU, nothing is left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import struct
from collections.abc import Iterator
from typing import Any

import attrs

from hvcore import Finding, HostError, Nic, param
from hvcore_kvm import FdRequest, NicContext, NicMode, NicPlan, hookimpl

VHOST_NET = "/dev/vhost-net"
"""Where descriptors come from with which the kernel moves packets between a tap and a guest."""

_TUN = "/dev/net/tun"
_SYSFS = "/sys/class/net"
_BRIDGE = ("/usr/sbin/bridge", "/sbin/bridge", "/usr/bin/bridge")
_CAP_NET_ADMIN = 12
_LAST_VLAN = 4094

# <linux/if_tun.h>
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000

# <linux/sockios.h>, <linux/if.h>
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCGIFMTU, _SIOCSIFMTU = 0x8921, 0x8922
_SIOCSIFHWADDR, _SIOCGIFHWADDR = 0x8924, 0x8927
_SIOCBRADDIF = 0x89A2
_IFF_UP = 0x1


@attrs.frozen(kw_only=True)
class Vlans:
    """The VLANs of a port: the one whose packets the guest sees without a tag, and those with one."""

    native: int | None
    tagged: tuple[int, ...]


def parse_vlan(text: str) -> Vlans:
    """Read ``10`` or ``.10`` (one VLAN, untagged), ``:10:20`` (all tagged), ``.10:20:30`` (the first untagged).

    Raises:
        ValueError: it is none of these; the text says why.
    """
    first, *rest = text.split(":")
    if text.startswith(":"):
        native = None
    elif rest and not first.startswith("."):
        raise ValueError(f"{text[:40]!r} begins with neither a dot (untagged) nor a colon (tagged)")
    else:
        native = _vlan(first.removeprefix("."))
    vlans = Vlans(native=native, tagged=tuple(_vlan(item) for item in rest))
    known = [*vlans.tagged, *([] if native is None else [native])]
    if len(set(known)) < len(known):
        raise ValueError(f"{text[:40]!r} names a VLAN twice")
    return vlans


def _vlan(item: str) -> int:
    if not item.isascii() or not item.isdigit() or len(item) > 4 or not 1 <= int(item) <= _LAST_VLAN:
        raise ValueError(f"{item[:20]!r} is not a VLAN from 1 to {_LAST_VLAN}")
    return int(item)


def _is_vlan(value: str) -> str | None:
    try:
        parse_vlan(value)
    except ValueError as error:
        return str(error)
    return None


@attrs.frozen(kw_only=True)
class BridgedParameters:
    """Parameters of NIC mode ``bridged``."""

    vlan: str | None = param(
        default=None,
        checks=(_is_vlan,),
        aliases=("vlan",),
        summary="VLANs of the port, on a bridge with VLAN filtering whose uplink has them: 10 (untagged), :10:20 "
        "(tagged) or .10:20 (the first untagged).",
    )


class BridgedNetwork:
    """Plans a tap on a bridge."""

    tap = True

    def check(self, nic: Nic, parameters: BridgedParameters) -> Iterator[Finding]:
        """A bridge has to be named."""
        if nic.link is None:
            message = "NIC mode bridged needs the bridge it connects to"
            yield Finding(code="missing-parameter", path="link", message=message, hint='for example link = "br0"')
        elif not _is_interface_name(nic.link):
            yield Finding(code="invalid-value", path="link", message=f"{nic.link[:40]!r} is no name of an interface")

    def check_host(self, nic: Nic, parameters: BridgedParameters) -> Iterator[Finding]:
        """The bridge is there, and we may make taps."""
        bridge = nic.link or ""
        if not os.path.isdir(f"{_SYSFS}/{bridge}/bridge"):
            there = "is no bridge" if os.path.isdir(f"{_SYSFS}/{bridge}") else "is not there"
            hint = f"this host has the bridges {', '.join(_bridges()) or '(none)'}"
            yield Finding(code="no-such-bridge", path="link", message=f"{bridge} {there}", hint=hint)
        else:
            if parameters.vlan is not None:
                yield from _check_vlans(bridge)
            yield from _check_mtu(bridge, nic.params.get("mtu"))
        if not os.path.exists(_TUN):
            yield Finding(code="no-device", path="mode", message=f"there is no {_TUN}", hint="modprobe tun")
        if not _may_make_taps():
            message = "only root (CAP_NET_ADMIN) may make taps"
            yield Finding(code="needs-root", path="mode", message=message, hint='use mode "user"')
        # What the instance says of all its NICs is not known here; opening the device finds it.
        if nic.params.get("vhost") is True and not _has_vhost():
            message = f"there is no {VHOST_NET} that this user can open"
            yield Finding(code="no-device", path="params.vhost", message=message, hint="modprobe vhost_net")

    def plan(self, context: NicContext) -> NicPlan:
        """The tap's descriptors, one for each queue, and those of vhost."""
        nic, device = context.nic, context.device
        name = tap_name(nic.uuid or "")
        paravirtual = device.model == "virtio-net"
        vnet_hdr = paravirtual and device.vnet_hdr
        queues = device.queues if paravirtual else 1
        flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if vnet_hdr else 0) | (_IFF_MULTI_QUEUE if queues > 1 else 0)
        make = functools.partial(_make_tap, name, flags, nic.link or "", context.parameters.vlan)
        attach = functools.partial(_open_tap, name, flags)
        taps = [
            context.fd(
                FdRequest(
                    name=f"{name} queue {queue}" if queues > 1 else name,
                    purpose=f"tap on bridge {nic.link}",
                    open=attach if queue else make,
                )
            )
            for queue in range(queues)
        ]
        netdev: dict[str, Any] = {"type": "tap", "id": context.netdev_id, **_fds("fd", taps)}
        if paravirtual and (_has_vhost() if device.vhost is None else device.vhost):
            request = FdRequest(name="vhost-net", purpose=VHOST_NET, open=_open_vhost)
            netdev |= {"vhost": True, **_fds("vhostfd", [context.fd(request) for _ in taps])}
        return NicPlan(netdev=netdev, interface=name, vnet_hdr=vnet_hdr)


def tap_name(uuid: str) -> str:
    """Name of the tap of a NIC: within the kernel's 15 characters, and always the same."""
    return f"hv{hashlib.blake2b(uuid.lower().encode(), digest_size=6).hexdigest()}"


def _is_interface_name(value: str) -> bool:
    """What the kernel takes as a name (``dev_valid_name``), printable ASCII only."""
    printable = value.isascii() and value.isprintable()
    return 0 < len(value) < 16 and printable and not set(value) & set("/: ") and value not in (".", "..")


def _fds(key: str, numbers: list[int]) -> dict[str, str]:
    return {key: str(numbers[0])} if len(numbers) == 1 else {f"{key}s": ":".join(map(str, numbers))}


def _make_tap(name: str, flags: int, bridge: str, vlan: str | None) -> int:
    """Make a tap and put it on a bridge; it vanishes when the last descriptor of it is closed.

    Raises:
        HostError: the kernel refused; nothing is left.
    """
    import socket  # not before it is needed: loading a driver is quick

    fd = _open_tap(name, flags | _IFF_TUN_EXCL)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
            ioctl = functools.partial(_ioctl, control.fileno())
            # Before it joins: a bridge takes the smallest MTU of its ports, and may take the smallest address.
            (mtu,) = struct.unpack_from("i", ioctl(_SIOCGIFMTU, bridge, "read the MTU of"))
            ioctl(_SIOCSIFMTU, name, f"set MTU {mtu} on", struct.pack("i", mtu))
            address = bytearray(ioctl(_SIOCGIFHWADDR, name, "read the address of")[:8])
            address[2] = 0xFE
            ioctl(_SIOCSIFHWADDR, name, "set the address of", bytes(address))
            ioctl(_SIOCBRADDIF, bridge, f"put {name} on", struct.pack("i", socket.if_nametoindex(name)))
            for command in [] if vlan is None else vlan_commands(name, parse_vlan(vlan)):
                _run(command)
            (up,) = struct.unpack_from("h", ioctl(_SIOCGIFFLAGS, name, "look at"))
            ioctl(_SIOCSIFFLAGS, name, "bring up", struct.pack("h", up | _IFF_UP))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_tap(name: str, flags: int) -> int:
    """Open a queue of a tap.

    Raises:
        HostError: the kernel refused.
    """
    try:
        fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot open {_TUN}: {error.strerror}", code="tap-refused") from error
    try:
        _ioctl(fd, _TUNSETIFF, name, "make the tap", struct.pack("H", flags))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _ioctl(fd: int, request: int, interface: str, what: str, value: bytes = b"") -> bytes:
    """Ask the kernel something of a network interface (struct ifreq); returns the value it answers."""
    try:
        answer = fcntl.ioctl(fd, request, struct.pack("16s24s", interface.encode(), value))
    except OSError as error:
        hint = "another process has it; is the instance running already?" if request == _TUNSETIFF else None
        message = f"cannot {what} {interface}: {error.strerror}"
        raise HostError(message, code="tap-refused", hint=hint) from error
    return answer[16:]


def _open_vhost() -> int:
    try:
        return os.open(VHOST_NET, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = "modprobe vhost_net, or set vhost = false"
        raise HostError(f"cannot open {VHOST_NET}: {error.strerror}", code="no-device", hint=hint) from error


def _has_vhost() -> bool:
    return os.access(VHOST_NET, os.R_OK | os.W_OK)


def _may_make_taps() -> bool:
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as file:
        effective = next((line.split()[1] for line in file if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> _CAP_NET_ADMIN & 1)


def _bridges() -> list[str]:
    return sorted(name for name in os.listdir(_SYSFS) if os.path.isdir(f"{_SYSFS}/{name}/bridge"))


def _check_mtu(bridge: str, mtu: object) -> Iterator[Finding]:
    with open(f"{_SYSFS}/{bridge}/mtu", encoding="ascii") as file:
        most = int(file.read())
    if isinstance(mtu, int) and mtu > most:
        message = f"{mtu} is above {most}, that of bridge {bridge}, which would drop larger packets"
        yield Finding(code="mtu-too-large", path="params.mtu", message=message, hint=f"ip link set {bridge} mtu {mtu}")


def _check_vlans(bridge: str) -> Iterator[Finding]:
    filtering = "0"
    with contextlib.suppress(OSError), open(f"{_SYSFS}/{bridge}/bridge/vlan_filtering", encoding="ascii") as file:
        filtering = file.read().strip()
    if filtering != "1":
        hint = f"ip link set {bridge} type bridge vlan_filtering 1, where the kernel can (CONFIG_BRIDGE_VLAN_FILTERING)"
        message = f"bridge {bridge} does not filter VLANs"
        yield Finding(code="no-vlan-filtering", path="params.vlan", message=message, hint=hint)
    if _bridge_program() is None:
        message = "the program bridge is not installed"
        yield Finding(code="no-program", path="params.vlan", message=message, hint="apt-get install iproute2")


def vlan_commands(interface: str, vlans: Vlans) -> list[list[str]]:
    """The commands that give a port of a bridge its VLANs, and no other."""
    vlan = [_bridge_program() or _BRIDGE[0], "vlan"]
    # A new port has the VLAN that the bridge gives to every port.
    commands = [[*vlan, "del", "dev", interface, "vid", f"1-{_LAST_VLAN}"]]
    if vlans.native is not None:
        commands.append([*vlan, "add", "dev", interface, "vid", str(vlans.native), "pvid", "untagged"])
    commands += [[*vlan, "add", "dev", interface, "vid", str(tagged)] for tagged in vlans.tagged]
    return commands


def _bridge_program() -> str | None:
    return next((path for path in _BRIDGE if os.access(path, os.X_OK)), None)


def _run(command: list[str]) -> None:
    import subprocess  # not before it is needed: loading a driver is quick

    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"{' '.join(command)}: {error}", code="tap-refused") from error
    if done.returncode:
        raise HostError(f"{' '.join(command)}: {done.stderr.strip()}", code="tap-refused")


@hookimpl
def kvm_nic_modes() -> Iterator[NicMode]:
    """The mode."""
    yield NicMode(
        name="bridged",
        summary="A tap on a bridge of the host.",
        backend=BridgedNetwork(),
        parameters=BridgedParameters,
    )
