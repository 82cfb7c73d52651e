"""NIC mode ``vhost-user``: packets are moved by a switch in another process, such as Open vSwitch with DPDK.

The two share the guest's memory and speak the vhost-user protocol (docs/interop/vhost-user of QEMU) over a UNIX socket.
With ``server`` QEMU listens and the switch connects, again after it was restarted; without, QEMU connects to the
switch, and the guest is without a network from the end of the switch on. QEMU takes a path only: it passes memory over
a socket that it has made itself, and not over one that it inherits.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import stat
from collections.abc import Iterator
from typing import Any

import attrs

from hvcore import Finding, HostError, Nic, Step, checks, param
from hvcore_kvm import FdRequest, NicContext, NicMode, NicPlan, hookimpl, keyed

_LONGEST = 107  # unix(7)


@attrs.frozen(kw_only=True)
class VhostUserParameters:
    """Parameters of NIC mode ``vhost-user``."""

    socket: str = param(checks=(checks.absolute_path,), summary="UNIX socket that the switch and the instance meet at.")
    server: bool = param(
        default=False,
        summary="QEMU listens, and the switch connects (dpdkvhostuserclient in Open vSwitch), again after it was "
        "restarted; only QEMU's user and root may connect. Otherwise the switch listens.",
    )


class VhostUserNetwork:
    """Plans a connection to a switch."""

    multiqueue = True
    shared_memory = True

    def makes_files(self, parameters: VhostUserParameters) -> bool:
        """QEMU itself makes the socket it listens on."""
        return parameters.server

    def check(self, nic: Nic, parameters: VhostUserParameters) -> Iterator[Finding]:
        """Only virtio-net can do it, and there is no link."""
        if nic.link is not None:
            hint = "the socket says where: remove it"
            yield Finding(code="not-used", path="link", message="NIC mode vhost-user connects to no link", hint=hint)
        if nic.params.get("model", "virtio-net") != "virtio-net":
            message = "NIC mode vhost-user goes with virtio-net"
            yield Finding(code="contradiction", path="params.model", message=message)
        if parameters.server and len(os.fsencode(parameters.socket)) > _LONGEST:
            message = f"has more than {_LONGEST} bytes, and QEMU cannot listen on it"
            yield Finding(code="invalid-value", path="params.socket", message=message)

    def check_host(self, nic: Nic, parameters: VhostUserParameters) -> Iterator[Finding]:
        """The switch has made its socket, or QEMU can."""
        where, path = "params.socket", parameters.socket
        try:
            mode = os.lstat(path).st_mode
        except OSError as error:
            mode = None
            if not parameters.server:
                message = f"cannot look at {path}: {error.strerror}"
                yield Finding(code="no-peer", path=where, message=message, hint="add the port to the switch first")
        if mode is not None and not stat.S_ISSOCK(mode):
            yield Finding(code="file-unusable", path=where, message=f"{path} is not a socket")
        if parameters.server and not os.access(os.path.dirname(path), os.W_OK | os.X_OK):
            message = f"{os.path.dirname(path)} is not a directory that this user can write to"
            yield Finding(code="not-a-directory", path=where, message=message)

    def plan(self, context: NicContext) -> NicPlan:
        """The character device, and the backend on it."""
        path, ident = context.parameters.socket, f"{context.netdev_id}-peer"
        values: dict[str, Any] = {"id": ident}
        netdev = {"type": "vhost-user", "id": context.netdev_id, "chardev": ident, "queues": context.device.queues}
        if not context.parameters.server:
            request = FdRequest(name=ident, purpose=f"path of {path}", open=functools.partial(_open, path))
            values |= {"path": f"/proc/self/fd/{context.fd(request)}"}
            return NicPlan(netdev=netdev, options=(keyed("chardev", "socket", values),))
        values |= {"path": path, "server": True, "wait": False}
        return NicPlan(
            netdev=netdev,
            options=(keyed("chardev", "socket", values),),
            waits_for=f"a switch to connect to {path}",
            up=(Step(name=f"make way for {path}", do=functools.partial(_make_way, path)),),
            down=(Step(name=f"remove {path}", do=functools.partial(_remove, path)),),
        )


def _open(path: str) -> int:
    """The path of the switch's socket, for QEMU, however long.

    Raises:
        HostError: nobody listens there.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot open {path}: {error.strerror}", code="no-peer", hint=_HINT) from error
    return fd


_HINT = "is the switch running, and has it the port?"


def _make_way(path: str) -> None:
    """Remove what was left at the path; QEMU would take away what is in use, too.

    Raises:
        HostError: somebody listens there, or it is no socket.
    """
    _remove(path)
    if os.path.lexists(path):
        raise HostError(f"{path} is in use", code="in-use", hint="another instance or a switch may have it")


def _remove(path: str) -> None:
    """Remove a socket that nobody listens on; anything else stays."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.lstat(path).st_mode) and not _is_listened_on(path):
            os.unlink(path)


def _is_listened_on(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) != errno.ECONNREFUSED


@hookimpl
def kvm_nic_modes() -> Iterator[NicMode]:
    """The mode."""
    yield NicMode(
        name="vhost-user",
        summary="A switch in another process, such as Open vSwitch with DPDK, by shared memory.",
        backend=VhostUserNetwork(),
        parameters=VhostUserParameters,
    )
