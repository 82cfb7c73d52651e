"""Taps, for the NIC modes that are made of one: opened by us, given to QEMU by descriptor, gone when QEMU is.

A mode's ``plan`` returns `plan_tap`, with a function that puts the new tap where the mode wants it; its ``check_host``
yields from `check_tap`; its parameters inherit from `TapParameters`.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from hvcore import Finding, HostError, Nic, Size, Step, checks, param
from hvcore_kvm import packet_filter
from hvcore_kvm.families import FdRequest, NicContext, NicPlan
from hvcore_kvm.interface import NetworkInterface

VHOST_NET = "/dev/vhost-net"
"""Where descriptors come from with which the kernel moves packets between a tap and a guest."""

_TUN = "/dev/net/tun"
_CAP_NET_ADMIN = 12
_DEFAULT_MTU = 1500

# <linux/if_tun.h>
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000


@attrs.frozen(kw_only=True)
class TapParameters:
    """Parameters that every NIC mode with a tap has."""

    bandwidth_limit: Size | None = param(
        default=None,
        checks=(checks.between(1000, 10**12),),
        unit="bytes a second",
        summary="What may go through the tap, in each direction.",
    )


def tap_name(uuid: str) -> str:
    """Name of the interface of a NIC: within the kernel's 15 characters, and always the same."""
    return f"hv{hashlib.blake2b(uuid.lower().encode(), digest_size=6).hexdigest()}"


def check_tap(nic: Nic) -> Iterator[Finding]:
    """What the host lacks for a tap; for ``check_host`` of a mode."""
    if not os.path.exists(_TUN):
        yield Finding(code="no-device", path="mode", message=f"there is no {_TUN}", hint="modprobe tun")
    yield from check_queues(nic)
    if nic.params.get("bandwidth_limit") is not None:
        yield from packet_filter.check_bandwidth()


def check_queues(nic: Nic) -> Iterator[Finding]:
    """What the host lacks for an interface whose packets QEMU takes from descriptors."""
    if not _may_make_taps():
        message = "only root (CAP_NET_ADMIN) may make taps"
        yield Finding(code="needs-root", path="mode", message=message, hint='use mode "user"')
    # What the instance says of all its NICs is not known here; opening the device finds it.
    if nic.params.get("vhost") is True and not _has_vhost():
        message = f"there is no {VHOST_NET} that this user can open"
        yield Finding(code="no-device", path="params.vhost", message=message, hint="modprobe vhost_net")


def plan_tap(
    context: NicContext,
    purpose: str,
    configure: Callable[[NetworkInterface], None],
    *,
    take_down: Callable[[NetworkInterface], None] | None = None,
    movable: bool = False,
    release: Callable[[NetworkInterface], None] | None = None,
    leave: tuple[str, Callable[[NetworkInterface], None]] | None = None,
) -> NicPlan:
    """Plan a tap of its own for a NIC, with as many queues as the guest sees.

    Args:
        context: the NIC.
        purpose: what it is, for the plan.
        configure: puts the tap where it belongs, once it is there, and brings it up. When it raises, the tap is gone.
        take_down: removes what outlives the tap, once that is gone; perhaps in another process, and perhaps without
            anything to remove. Not called while somebody else has a tap of this name.
        movable: ``configure`` can be called again for a tap that is up, with other settings.
        release: called before that, to take the tap out of where it is.
        leave: what the tap is in, for people, and what takes it out, so that another place or mode can have it. Goes
            with ``movable``.
    """
    interface = NetworkInterface(tap_name(context.nic.uuid or ""))
    limit = context.parameters.bandwidth_limit if isinstance(context.parameters, TapParameters) else None
    ends = ([] if limit is None else [packet_filter.remove_rules]) + ([] if take_down is None else [take_down])
    down = tuple(_down_step(interface, end) for end in dict.fromkeys(ends))
    make = functools.partial(_make_tap, interface, configure, context.device.mtu, limit)
    plan = plan_queues(context, purpose, make, functools.partial(open_queue, _TUN, interface.name), down=down)
    if not movable:
        return plan
    adjust = functools.partial(_configure_tap, interface, configure, context.device.mtu, limit, release=release)
    plan = attrs.evolve(plan, change=(Step(name=f"configure {interface.name}", do=adjust),))
    if leave is None:
        return plan
    out = functools.partial(_release_tap, interface, leave[1])
    return attrs.evolve(plan, release=(Step(name=f"take {interface.name} out of {leave[0]}", do=out),))


def plan_queues(
    context: NicContext,
    purpose: str,
    make: Callable[[int], int],
    attach: Callable[[int], int],
    *,
    down: tuple[Step, ...] = (),
) -> NicPlan:
    """Plan the descriptors of an interface, one for each queue, and those of vhost.

    Args:
        context: the NIC.
        purpose: what it is, for the plan.
        make: makes the interface and opens its first queue; takes the flags for TUNSETIFF.
        attach: opens another queue; takes the same flags.
        down: steps once QEMU is gone.
    """
    device = context.device
    name = tap_name(context.nic.uuid or "")
    paravirtual = device.model == "virtio-net"
    vnet_hdr = paravirtual and device.vnet_hdr
    queues = device.queues if paravirtual else 1
    flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if vnet_hdr else 0) | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    fds = [
        context.fd(
            FdRequest(
                name=f"{name} queue {queue}" if queues > 1 else name,
                purpose=purpose,
                open=functools.partial(attach if queue else make, flags),
            )
        )
        for queue in range(queues)
    ]
    netdev: dict[str, Any] = {"type": "tap", "id": context.netdev_id, **_numbers("fd", fds)}
    if paravirtual and (_has_vhost() if device.vhost is None else device.vhost):
        request = FdRequest(name="vhost-net", purpose=VHOST_NET, open=_open_vhost)
        netdev |= {"vhost": True, **_numbers("vhostfd", [context.fd(request) for _ in fds])}
    return NicPlan(netdev=netdev, interface=name, vnet_hdr=vnet_hdr, down=down)


def _down_step(interface: NetworkInterface, take_down: Callable[[NetworkInterface], None]) -> Step:
    def do() -> None:
        # Ours is gone with its QEMU. One that is there is another instance's, and so is what hangs on it.
        if not interface.exists:
            take_down(interface)

    return Step(name=f"take down what {interface.name} had", do=do)


def _numbers(key: str, numbers: list[int]) -> dict[str, str]:
    return {key: str(numbers[0])} if len(numbers) == 1 else {f"{key}s": ":".join(map(str, numbers))}


def _make_tap(
    interface: NetworkInterface,
    configure: Callable[[NetworkInterface], None],
    mtu: int | None,
    bandwidth_limit: int | None,
    flags: int,
) -> int:
    """Make a tap and configure it; it vanishes when the last descriptor of it is closed.

    Raises:
        HostError: the kernel refused; nothing is left.
    """
    fd = open_queue(_TUN, interface.name, flags | _IFF_TUN_EXCL)
    try:
        _configure_tap(interface, configure, mtu, bandwidth_limit, fresh=True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _configure_tap(
    interface: NetworkInterface,
    configure: Callable[[NetworkInterface], None],
    mtu: int | None,
    bandwidth_limit: int | None,
    *,
    fresh: bool = False,
    release: Callable[[NetworkInterface], None] | None = None,
) -> None:
    if not fresh:
        packet_filter.remove_rules(interface)
        if release is not None:
            release(interface)
    if mtu is not None:
        interface.set_mtu(mtu)
    if bandwidth_limit is not None:
        packet_filter.limit_bandwidth(interface, bandwidth_limit)
    elif not fresh:
        packet_filter.lift_limit(interface)
    configure(interface)


def _release_tap(interface: NetworkInterface, release: Callable[[NetworkInterface], None]) -> None:
    packet_filter.remove_rules(interface)
    release(interface)
    # As the kernel makes it; who gets it may have another wish.
    interface.set_mtu(_DEFAULT_MTU)


def open_queue(path: str, name: str, flags: int) -> int:
    """Open a queue of an interface by its device node.

    Raises:
        HostError: the kernel refused.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot open {path}: {error.strerror}", code="tap-refused") from error
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(fd)
        hint = "another process has it; is the instance running already?"
        raise HostError(f"cannot make the tap {name}: {error.strerror}", code="tap-refused", hint=hint) from error
    return fd


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
