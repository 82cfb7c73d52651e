"""Console type ``dbus``: screen, keyboard and mouse for programs of this host that speak D-Bus with QEMU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from hvcore import Console, Finding, Instance
from hvcore_kvm import ConsoleContext, ConsolePlan, ConsoleType, EndpointContext, hookimpl, json_option

_MONITOR = "query"


class DbusConsole:
    """Plans ``-display dbus``, peer to peer: no bus, no address, nothing that others could connect to."""

    def check(self, instance: Instance, parameters: Any) -> Iterator[Finding]:
        """Its clients have to be QEMU's own user, which GDBus asks of a peer without a bus."""
        if instance.security_model in ("pool", "confined"):
            message = (
                f"clients have to be QEMU's own user, and security model {instance.security_model} gives it another"
            )
            hint = 'set security_model = "none", or "user" for clients of that user'
            yield Finding(code="contradiction", path="consoles", message=message, hint=hint)

    def check_host(self, instance: Instance, parameters: Any) -> Iterable[Finding]:
        """Whether QEMU has it is found with everything else that a plan asks of it."""
        return ()

    def plan(self, context: ConsoleContext) -> ConsolePlan:
        """The display."""
        return ConsolePlan(options=(json_option("display", {"type": "dbus", "p2p": True}, origin="consoles"),))

    def endpoint(self, context: EndpointContext) -> Console:
        """The monitor that takes the connection."""
        return Console(
            instance=context.name,
            kind="dbus",
            socket_path=context.socket_path(_MONITOR),
            message="hvcore_kvm.open_dbus_display connects to it; other programs give a socket to QEMU's monitor at "
            "this path, with getfd and add_client for protocol @dbus-display.",
        )


@hookimpl
def kvm_console_types() -> Iterator[ConsoleType]:
    """The type."""
    yield ConsoleType(
        name="dbus",
        summary="Screen, keyboard and mouse for D-Bus clients of this host.",
        backend=DbusConsole(),
        display_device="std",
    )
