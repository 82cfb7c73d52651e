"""NIC mode ``passt``: the host's own network, by a companion process. Needs no privilege.

passt gives the guest the address, gateway and name servers that the host has, and carries its connections as the host's
own: faster than QEMU's user-mode network, and with IPv6. Nothing reaches in but the forwarded ports.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import attrs

from hvcore import Deadline, Finding, HostError, Nic, param
from hvcore_kvm import (
    Companion,
    FdRequest,
    Forward,
    NetworkInterface,
    NicContext,
    NicMode,
    NicPlan,
    check_forwards,
    find_program,
    hookimpl,
    is_interface_name,
)

_PATIENCE = 2.0
_LARGEST_FRAME = 65536


@attrs.frozen(kw_only=True)
class PasstParameters:
    """Parameters of NIC mode ``passt``."""

    forward: tuple[Forward, ...] = param(default=(), summary="Ports of the host that lead into the guest.")


class PasstNetwork:
    """Plans a connection to passt."""

    def check(self, nic: Nic, parameters: PasstParameters) -> Iterator[Finding]:
        """Address and interface are not needed; what is given must be one."""
        if nic.link is not None and not is_interface_name(nic.link):
            yield Finding(code="invalid-value", path="link", message=f"{nic.link[:40]!r} is no name of an interface")
        if nic.ip is not None and not _is_address(nic.ip):
            yield Finding(code="invalid-value", path="ip", message=f"{nic.ip[:60]!r} is not an IP address")
        yield from check_forwards(parameters.forward)

    def check_host(self, nic: Nic, parameters: PasstParameters) -> Iterator[Finding]:
        """The program is there, and the interface if one is named."""
        if find_program("passt") is None:
            message = "the program passt is not installed"
            yield Finding(code="no-program", path="mode", message=message, hint='apt-get install passt, or mode "user"')
        if nic.link is not None and not NetworkInterface(nic.link).exists:
            yield Finding(code="no-such-interface", path="link", message=f"{nic.link} is not there")

    def plan(self, context: NicContext) -> NicPlan:
        """The companion, and QEMU's end of the connection to it."""
        nic, parameters = context.nic, context.parameters
        companion = Companion(name=f"passt {context.netdev_id}", argv=_command(nic, parameters, context.device.mtu))
        open_it = functools.partial(_connect, companion, nic.mac or "")
        number = context.fd(FdRequest(name=companion.name, purpose="connection to passt", open=open_it))
        netdev: dict[str, Any] = {
            "type": "stream",
            "id": context.netdev_id,
            "server": False,
            "addr": {"type": "fd", "str": str(number)},
        }
        return NicPlan(netdev=netdev, companions=(companion,))


def _command(nic: Nic, parameters: PasstParameters, mtu: int | None) -> tuple[str, ...]:
    # Its socket is descriptor 3; when QEMU has closed the other end, it ends.
    words = [find_program("passt") or "passt", "--foreground", "--stderr", "--quiet", "--fd", "3"]
    if nic.link is not None:
        words += ["--interface", nic.link]
    if nic.ip is not None:
        words += ["--address", nic.ip]
    if mtu is not None:
        words += ["--mtu", str(mtu)]
    for forward in parameters.forward:
        ports = f"{forward.host_address}/{forward.host_port}:{forward.guest_port}"
        words += [f"--{forward.protocol}-ports", ports]
    return tuple(words)


def _connect(companion: Companion, mac: str) -> int:
    """QEMU's end of the connection, once passt has taken what it needs: it ends when it cannot.

    Raises:
        HostError: it has ended.
    """
    fd = companion.take()
    try:
        with socket.socket(fileno=os.dup(fd)) as connection:
            _await_answer(connection, bytes.fromhex(mac.replace(":", "")))
    except OSError as error:
        os.close(fd)
        hint = "is a forwarded port taken, has the host a default route?"
        raise HostError("passt ended at its start", code="companion-ended", hint=hint) from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def _await_answer(connection: socket.socket, mac: bytes) -> None:
    """Ask for a hardware address as the guest would: passt answers for all, once it is up, where the host has IPv4.

    Raises:
        OSError: it has closed the connection.
    """
    request = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + mac + bytes(4) + bytes(6) + bytes((169, 254, 255, 254))
    frame = b"\xff" * 6 + mac + b"\x08\x06" + request
    deadline = Deadline.after(_PATIENCE)
    try:
        connection.settimeout(deadline.timeout())
        connection.sendall(struct.pack(">I", len(frame)) + frame)
        # The whole of it: what stays would be in QEMU's way.
        (size,) = struct.unpack(">I", _receive(connection, 4, deadline))
        _receive(connection, min(size, _LARGEST_FRAME), deadline)
    except TimeoutError:
        # Without IPv4 it does not answer; it has not ended either.
        pass
    finally:
        connection.setblocking(True)


def _receive(connection: socket.socket, size: int, deadline: Deadline) -> bytes:
    data = b""
    while len(data) < size:
        connection.settimeout(max(deadline.timeout(), 0.001))
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionResetError
        data += part
    return data


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@hookimpl
def kvm_nic_modes() -> Iterator[NicMode]:
    """The mode."""
    yield NicMode(
        name="passt",
        summary="The host's own network, by the program passt; rootless.",
        backend=PasstNetwork(),
        parameters=PasstParameters,
    )
