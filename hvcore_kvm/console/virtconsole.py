"""Console type ``virtconsole``: a virtio console of the guest, ``hvc0`` in Linux, on a UNIX socket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from hvcore import Console, Finding, Instance
from hvcore_kvm import (
    ConsoleContext,
    ConsolePlan,
    ConsoleType,
    EndpointContext,
    TextConsoleParameters,
    describe_socket,
    disconnect_socket,
    hookimpl,
    json_option,
    plan_socket,
)

SOCKET = "virtconsole"
"""Name of the socket in the instance's directory."""


@attrs.frozen(kw_only=True)
class VirtconsoleParameters(TextConsoleParameters):
    """Parameters of console type ``virtconsole``."""


class VirtConsole:
    """Plans a port of the virtio-serial controller."""

    def check(self, instance: Instance, parameters: Any) -> Iterable[Finding]:
        """Nothing can be wrong."""
        return ()

    def check_host(self, instance: Instance, parameters: Any) -> Iterable[Finding]:
        """Nothing is needed."""
        return ()

    def plan(self, context: ConsoleContext) -> ConsolePlan:
        """A character device on a listening socket and the port in front of it."""
        values = {
            "driver": "virtconsole",
            "id": "virtconsole0",
            "bus": context.virtio_serial(),
            "chardev": SOCKET,
        }
        port = json_option("device", values, origin="consoles")
        return ConsolePlan(options=(plan_socket(context, SOCKET), port))

    def endpoint(self, context: EndpointContext) -> Console:
        """The socket; one client at a time."""
        return describe_socket(context, "virtconsole", SOCKET)

    def disconnect(self, context: EndpointContext) -> None:
        """Make the client go."""
        disconnect_socket(context, SOCKET)


@hookimpl
def kvm_console_types() -> Iterator[ConsoleType]:
    """The type."""
    yield ConsoleType(
        name="virtconsole",
        summary="Console on virtio-serial, hvc0 in Linux, as text: faster than a serial port.",
        backend=VirtConsole(),
        parameters=VirtconsoleParameters,
    )
