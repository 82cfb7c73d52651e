"""NIC mode ``user``: QEMU's own user-mode network. Needs no privilege and nothing on the host.

The guest gets an address by DHCP and reaches out through the QEMU process; nothing reaches in but the forwarded ports.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from hvcore import Finding, Nic, param
from hvcore_kvm import Forward, NicContext, NicMode, NicPlan, check_forwards, hookimpl


@attrs.frozen(kw_only=True)
class UserParameters:
    """Parameters of NIC mode ``user``."""

    forward: tuple[Forward, ...] = param(default=(), summary="Ports of the host that lead into the guest.")
    restrict: bool = param(default=False, summary="The guest cannot reach out; only forwarded ports work.")


class UserNetwork:
    """Plans ``-netdev user``."""

    def check(self, nic: Nic, parameters: UserParameters) -> Iterator[Finding]:
        """A link makes no sense here, and two forwards cannot share a port."""
        if nic.link is not None:
            yield Finding(code="not-used", path="link", message="NIC mode user connects to no link", hint="remove it")
        yield from check_forwards(parameters.forward)

    def check_host(self, nic: Nic, parameters: Any) -> Iterable[Finding]:
        """Nothing on the host is needed."""
        return ()

    def plan(self, context: NicContext) -> NicPlan:
        """The backend; there is nothing to do on the host."""
        netdev: dict[str, Any] = {"type": "user", "id": context.netdev_id}
        if context.parameters.restrict:
            netdev["restrict"] = True
        if context.parameters.forward:
            netdev["hostfwd"] = [{"str": _forward(forward)} for forward in context.parameters.forward]
        return NicPlan(netdev=netdev)


def _forward(forward: Forward) -> str:
    address = ipaddress.ip_address(forward.host_address)
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"{forward.protocol}:{host}:{forward.host_port}-:{forward.guest_port}"


@hookimpl
def kvm_nic_modes() -> Iterator[NicMode]:
    """The mode."""
    yield NicMode(
        name="user",
        summary="QEMU's own user-mode network; rootless, for trying things out.",
        backend=UserNetwork(),
        parameters=UserParameters,
    )
