"""NIC mode ``macvtap``: an interface on top of one of the host's, without a bridge.

The guest is in the network that the host's interface is in; the host itself cannot reach it, as is the way of macvtap.
The interface outlives QEMU, and is removed once that is gone.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import attrs

from hvcore import Finding, Instance, Nic, Step, param
from hvcore_kvm import (
    NetworkInterface,
    NicContext,
    NicMode,
    NicPlan,
    check_queues,
    hookimpl,
    is_interface_name,
    open_queue,
    plan_queues,
    tap_name,
)


@attrs.frozen(kw_only=True)
class MacvtapParameters:
    """Parameters of NIC mode ``macvtap``."""

    macvtap_mode: str = param(
        default="bridge",
        choices=("bridge", "private", "vepa"),
        summary="Guests on the same interface reach each other directly (bridge), not at all (private), or where the "
        "switch sends their packets back (vepa).",
    )


class MacvtapNetwork:
    """Plans a macvtap on an interface."""

    tap = True

    def check(self, nic: Nic, parameters: MacvtapParameters) -> Iterator[Finding]:
        """An interface has to be named."""
        if nic.link is None:
            message = "NIC mode macvtap needs the interface of the host it is on"
            yield Finding(code="missing-parameter", path="link", message=message, hint='for example link = "eth0"')
        elif not is_interface_name(nic.link):
            yield Finding(code="invalid-value", path="link", message=f"{nic.link[:40]!r} is no name of an interface")

    def check_host(self, nic: Nic, parameters: MacvtapParameters) -> Iterator[Finding]:
        """The interface is there, and we may make another on it."""
        lower = NetworkInterface(nic.link or "")
        if not lower.exists:
            yield Finding(code="no-such-interface", path="link", message=f"{lower.name} is not there")
        else:
            mtu = nic.params.get("mtu")
            if isinstance(mtu, int) and mtu > lower.mtu:
                message = f"{mtu} is above {lower.mtu}, that of {lower.name}"
                hint = f"ip link set {lower.name} mtu {mtu}"
                yield Finding(code="mtu-too-large", path="params.mtu", message=message, hint=hint)
            if lower.is_port:
                message = f"{lower.name} is a port of a bridge, and can have no macvtap"
                yield Finding(code="in-use", path="link", message=message, hint='use mode "bridged" with that bridge')
        yield from check_queues(nic)

    def plan(self, context: NicContext) -> NicPlan:
        """The interface, its queues, and its end."""
        nic = context.nic
        interface = NetworkInterface(tap_name(nic.uuid or ""))
        owner = _owner(context.instance)
        return plan_queues(
            context,
            f"macvtap on {nic.link}",
            functools.partial(_make, interface, nic, context.parameters.macvtap_mode, context.device.mtu, owner),
            functools.partial(_open, interface),
            down=(Step(name=f"remove {interface.name}", do=functools.partial(_remove, interface, owner)),),
        )


def _owner(instance: Instance) -> str:
    """Text at the interface that says whose it is."""
    return f"hvcore {instance.name} {instance.uuid}"[:255]


def _make(interface: NetworkInterface, nic: Nic, mode: str, mtu: int | None, owner: str, flags: int) -> int:
    lower = NetworkInterface(nic.link or "")
    interface.make_macvtap(lower, address=nic.mac or "", mode=mode, alias=owner, mtu=mtu)
    try:
        fd = _open(interface, flags)
        try:
            interface.bring_up()
        except BaseException:
            os.close(fd)
            raise
    except BaseException:
        interface.remove()
        raise
    return fd


def _open(interface: NetworkInterface, flags: int) -> int:
    return open_queue(f"/dev/tap{interface.index}", interface.name, flags)


def _remove(interface: NetworkInterface, owner: str) -> None:
    # Without a text it was made by somebody who was killed at once; with another it is another instance's.
    if interface.alias in (owner, ""):
        interface.remove()


@hookimpl
def kvm_nic_modes() -> Iterator[NicMode]:
    """The mode."""
    yield NicMode(
        name="macvtap",
        summary="An interface on top of one of the host's, without a bridge.",
        backend=MacvtapNetwork(),
        parameters=MacvtapParameters,
    )
