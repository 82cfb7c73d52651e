"""Network interfaces of the host, by the kernel's own interfaces: ioctl, netlink, ``/proc/sys``, ``/sys``."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable

import attrs

from hvcore import HostError

SYSFS = "/sys/class/net"
"""Where the kernel shows network interfaces."""

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_SYSCTL = "/proc/sys/net"

# <linux/sockios.h>, <linux/if.h>
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCGIFMTU, _SIOCSIFMTU = 0x8921, 0x8922
_SIOCSIFHWADDR, _SIOCGIFHWADDR = 0x8924, 0x8927
_SIOCBRADDIF = 0x89A2
_SIOCBRDELIF = 0x89A3
_IFF_UP = 0x1

# <linux/netlink.h>
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_NLMSG_ERROR = 2
_NLA_F_NESTED = 0x8000

# <linux/rtnetlink.h>, <linux/if_link.h>, <linux/fib_rules.h>
_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWROUTE, _RTM_NEWRULE, _RTM_DELRULE = 16, 17, 24, 32, 33
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_LINKINFO, _IFLA_IFALIAS = 1, 3, 4, 5, 18, 20
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_MACVLAN_MODE = 1, 2, 1
_MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4}
_RTA_DST, _RTA_OIF, _RTA_TABLE = 1, 4, 15
_RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK, _RTN_UNICAST = 254, 4, 0, 253, 1
_FRA_IIFNAME, _FRA_TABLE, _FRA_OIFNAME, _FR_ACT_TO_TBL = 3, 15, 17, 1


@attrs.frozen
class NetworkInterface:
    """A network interface of the host, there or not.

    Everything that changes it raises `HostError` with the kernel's words when the kernel refuses.

    Attributes:
        name: its name, in the network namespace of this process.
    """

    name: str

    @property
    def exists(self) -> bool:
        """It is there."""
        try:
            return bool(socket.if_nametoindex(self.name))
        except OSError:
            return False

    @property
    def is_bridge(self) -> bool:
        """It is a bridge of the kernel."""
        return os.path.isdir(f"{SYSFS}/{self.name}/bridge")

    @property
    def is_port(self) -> bool:
        """It is a port of a bridge of the kernel."""
        return os.path.isdir(f"{SYSFS}/{self.name}/brport")

    @property
    def index(self) -> int:
        """The kernel's number of it."""
        try:
            return socket.if_nametoindex(self.name)
        except OSError as error:
            raise self._refused("find", error) from error

    @property
    def mtu(self) -> int:
        """Its MTU."""
        return int(struct.unpack_from("i", self._ioctl(_SIOCGIFMTU, "read the MTU of"))[0])

    @property
    def alias(self) -> str:
        """The text somebody has given it; empty if nobody has, or if it is not there."""
        with contextlib.suppress(OSError), open(f"{SYSFS}/{self.name}/ifalias", encoding="utf-8") as file:
            return file.read().rstrip("\n")
        return ""

    def set_mtu(self, mtu: int) -> None:
        """Set its MTU."""
        self._ioctl(_SIOCSIFMTU, f"set MTU {mtu} on", struct.pack("i", mtu))

    def set_high_address(self) -> None:
        """Let its hardware address begin with fe, so that no bridge takes it for its own, which is the smallest."""
        address = bytearray(self._ioctl(_SIOCGIFHWADDR, "read the address of")[:8])
        address[2] = 0xFE
        self._ioctl(_SIOCSIFHWADDR, "set the address of", bytes(address))

    def bring_up(self) -> None:
        """Switch it on."""
        (flags,) = struct.unpack_from("h", self._ioctl(_SIOCGIFFLAGS, "look at"))
        self._ioctl(_SIOCSIFFLAGS, "bring up", struct.pack("h", flags | _IFF_UP))

    def switch_off(self) -> None:
        """Switch it off: the kernel forgets all routes that lead through it."""
        (flags,) = struct.unpack_from("h", self._ioctl(_SIOCGIFFLAGS, "look at"))
        self._ioctl(_SIOCSIFFLAGS, "switch off", struct.pack("h", flags & ~_IFF_UP))

    def join(self, bridge: NetworkInterface) -> None:
        """Make it a port of a bridge, and of no other one."""
        master = f"{SYSFS}/{self.name}/master"
        before = os.path.basename(os.readlink(master)) if os.path.islink(master) else None
        if before == bridge.name:
            return
        if before is not None:
            NetworkInterface(before)._ioctl(_SIOCBRDELIF, f"take {self.name} off", struct.pack("i", self.index))
        bridge._ioctl(_SIOCBRADDIF, f"put {self.name} on", struct.pack("i", self.index))

    def leave(self) -> None:
        """Take it off the bridge it is a port of, if it is."""
        master = f"{SYSFS}/{self.name}/master"
        if self.is_port and os.path.islink(master):
            bridge = NetworkInterface(os.path.basename(os.readlink(master)))
            bridge._ioctl(_SIOCBRDELIF, f"take {self.name} off", struct.pack("i", self.index))

    def sysctl(self, version: int, name: str, value: int) -> None:
        """Set a variable that the kernel keeps for this interface and IP version 4 or 6."""
        path = f"{_SYSCTL}/ipv{version}/conf/{self.name}/{name}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, str(value).encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise HostError(f"cannot set {path}: {error.strerror}", code="interface-refused") from error

    def has_sysctl(self, version: int, name: str) -> bool:
        """Whether the kernel keeps such a variable."""
        return os.path.exists(f"{_SYSCTL}/ipv{version}/conf/{self.name}/{name}")

    def add_route(self, address: IpAddress, table: int | None = None) -> None:
        """Lead what goes to one address through it; the route vanishes with the interface.

        Args:
            address: where to.
            table: routing table; the main one when not given.
        """
        table = _RT_TABLE_MAIN if table is None else table
        scope = _RT_SCOPE_LINK if address.version == 4 else _RT_SCOPE_UNIVERSE
        head = (_FAMILIES[address.version], address.max_prefixlen, 0, 0, table if table < 256 else 0)
        header = struct.pack("=8BI", *head, _RTPROT_STATIC, scope, _RTN_UNICAST, 0)
        attributes = [(_RTA_DST, address.packed), (_RTA_OIF, _number(self.index)), (_RTA_TABLE, _number(table))]
        try:
            _netlink(_RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_EXCL, header, attributes)
        except OSError as error:
            hint = "another interface has this address; is it given twice?" if error.errno == errno.EEXIST else None
            raise self._refused(f"lead {address} through", error, hint) from error

    def add_rules(self, version: int, table: int) -> None:
        """Let packets that come in by it, or are bound to it, look for their route in a table. It need not be there.

        The rules outlive the interface: `remove_rules`.
        """
        header = struct.pack("=8BI", _FAMILIES[version], 0, 0, 0, table if table < 256 else 0, 0, 0, _FR_ACT_TO_TBL, 0)
        for key in (_FRA_IIFNAME, _FRA_OIFNAME):
            attributes = [(key, self._zero_terminated), (_FRA_TABLE, _number(table))]
            try:
                _netlink(_RTM_NEWRULE, _NLM_F_CREATE | _NLM_F_EXCL, header, attributes)
            except OSError as error:
                raise self._refused("add a rule for", error) from error

    def remove_rules(self) -> None:
        """Remove all rules for what comes in by it or is bound to it; it need not be there, nor need they."""
        for family in _FAMILIES.values():
            header = struct.pack("=8BI", family, 0, 0, 0, 0, 0, 0, 0, 0)
            for key in (_FRA_IIFNAME, _FRA_OIFNAME):
                self._remove_rules(header, key)

    def _remove_rules(self, header: bytes, key: int) -> None:
        while True:
            try:
                _netlink(_RTM_DELRULE, 0, header, [(key, self._zero_terminated)])
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EAFNOSUPPORT):
                    return
                raise self._refused("remove the rules for", error) from error

    def make_macvtap(self, lower: NetworkInterface, *, address: str, mode: str, alias: str, mtu: int | None) -> None:
        """Make it: a macvtap on another interface. It stays until it is removed.

        Args:
            lower: the other interface.
            address: hardware address.
            mode: ``bridge``, ``private`` or ``vepa``.
            alias: text by which its maker knows it again.
            mtu: that of the other interface when not given.
        """
        data = _attribute(_IFLA_MACVLAN_MODE, _number(_MACVLAN_MODES[mode]))
        info = _attribute(_IFLA_INFO_KIND, b"macvtap") + _attribute(_IFLA_INFO_DATA | _NLA_F_NESTED, data)
        attributes = [
            (_IFLA_IFNAME, self._zero_terminated),
            (_IFLA_LINK, _number(lower.index)),
            (_IFLA_ADDRESS, bytes.fromhex(address.replace(":", ""))),
            (_IFLA_LINKINFO | _NLA_F_NESTED, info),
            *([] if mtu is None else [(_IFLA_MTU, _number(mtu))]),
        ]
        try:
            _netlink(_RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, bytes(16), attributes)
        except OSError as error:
            hint = "another process has it; is the instance running already?" if error.errno == errno.EEXIST else None
            raise self._refused(f"make a macvtap on {lower.name}, to be called", error, hint) from error
        try:
            # The kernel takes no alias for an interface that it is making.
            header = struct.pack("=BxHiII", 0, 0, self.index, 0, 0)
            _netlink(_RTM_NEWLINK, 0, header, [(_IFLA_IFALIAS, alias.encode())])
        except OSError as error:
            self.remove()
            raise self._refused("give an alias to", error) from error

    def remove(self) -> None:
        """Remove it; one that is not there is no error."""
        try:
            _netlink(_RTM_DELLINK, 0, bytes(16), [(_IFLA_IFNAME, self._zero_terminated)])
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise self._refused("remove", error) from error

    @property
    def _zero_terminated(self) -> bytes:
        return self.name.encode() + b"\0"

    def _ioctl(self, request: int, what: str, value: bytes = b"") -> bytes:
        """Ask the kernel something of it (struct ifreq); returns the value it answers."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
            try:
                answer = fcntl.ioctl(control, request, struct.pack("16s24s", self.name.encode(), value))
            except OSError as error:
                raise self._refused(what, error) from error
        return answer[16:]

    def _refused(self, what: str, error: OSError, hint: str | None = None) -> HostError:
        return HostError(f"cannot {what} {self.name}: {error.strerror}", code="interface-refused", hint=hint)


def is_interface_name(value: str) -> bool:
    """What the kernel takes as a name (``dev_valid_name``), printable ASCII only."""
    printable = value.isascii() and value.isprintable()
    return 0 < len(value) < 16 and printable and not set(value) & set("/: ") and value not in (".", "..")


def _number(value: int) -> bytes:
    return struct.pack("=I", value)


def _attribute(key: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), key) + value + bytes(-len(value) % 4)


def _netlink(kind: int, flags: int, header: bytes, attributes: Iterable[tuple[int, bytes]]) -> None:
    """Ask the kernel to change something of its network, and wait until it has.

    Raises:
        OSError: it refused.
    """
    body = header + b"".join(_attribute(key, value) for key, value in attributes)
    message = struct.pack("=IHHII", 16 + len(body), kind, flags | _NLM_F_REQUEST | _NLM_F_ACK, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as connection:
        connection.bind((0, 0))
        connection.sendto(message, (0, 0))
        answer = connection.recv(65536)
    (answered,) = struct.unpack_from("=4xH", answer)
    code = -struct.unpack_from("=i", answer, 16)[0] if answered == _NLMSG_ERROR else errno.EPROTO
    if code:
        raise OSError(code, os.strerror(code))
