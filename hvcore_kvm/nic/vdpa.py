"""NIC mode ``vdpa``: a device of the host moves the packets itself, by virtio's rules (vhost-vdpa of the kernel)."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from typing import Any

from hvcore import Finding, HostError, Nic
from hvcore_kvm import FdRequest, NicContext, NicMode, NicPlan, hookimpl

_DEVICES = "/dev"
_NAME = re.compile(r"vhost-vdpa-[0-9]{1,6}")


class VdpaNetwork:
    """Plans ``-netdev vhost-vdpa``."""

    multiqueue = True

    def check(self, nic: Nic, parameters: Any) -> Iterator[Finding]:
        """A device has to be named, and only virtio-net can do it."""
        if nic.link is None:
            message = "NIC mode vdpa needs the device of the host"
            yield Finding(code="missing-parameter", path="link", message=message, hint='such as link = "vhost-vdpa-0"')
        elif not _NAME.fullmatch(nic.link):
            message = f"{nic.link[:40]!r} is not a device such as vhost-vdpa-0"
            yield Finding(code="invalid-value", path="link", message=message)
        if nic.params.get("model", "virtio-net") != "virtio-net":
            message = "NIC mode vdpa goes with virtio-net"
            yield Finding(code="contradiction", path="params.model", message=message)

    def check_host(self, nic: Nic, parameters: Any) -> Iterator[Finding]:
        """The device is there, and is ours."""
        path = f"{_DEVICES}/{nic.link}"
        if not os.access(path, os.R_OK | os.W_OK):
            message = f"there is no {path} that this user can open"
            hint = "modprobe vhost_vdpa, and make one: vdpa dev add name NAME mgmtdev DEVICE"
            yield Finding(code="no-device", path="link", message=message, hint=hint)

    def plan(self, context: NicContext) -> NicPlan:
        """The device, by descriptor."""
        path = f"{_DEVICES}/{context.nic.link}"
        number = context.fd(FdRequest(name=context.nic.link or "", purpose=path, open=functools.partial(_open, path)))
        netdev: dict[str, Any] = {"type": "vhost-vdpa", "id": context.netdev_id, "vhostfd": str(number)}
        if context.device.queues > 1:
            netdev["queues"] = context.device.queues
        return NicPlan(netdev=netdev)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot open {path}: {error.strerror}", hint="does another instance use it?") from error


@hookimpl
def kvm_nic_modes() -> Iterator[NicMode]:
    """The mode."""
    yield NicMode(
        name="vdpa",
        summary="A device of the host that moves the packets itself (vhost-vdpa).",
        backend=VdpaNetwork(),
    )
