"""Console type ``serial``: the first serial port, on a UNIX socket in the instance's directory."""

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
    word,
)

SOCKET = "serial"
"""Name of the socket in the instance's directory."""


@attrs.frozen(kw_only=True)
class SerialParameters(TextConsoleParameters):
    """Parameters of console type ``serial``."""


class SerialConsole:
    """Plans the first serial port."""

    def check(self, instance: Instance, parameters: Any) -> Iterable[Finding]:
        """Nothing can be wrong."""
        return ()

    def check_host(self, instance: Instance, parameters: Any) -> Iterable[Finding]:
        """Nothing is needed."""
        return ()

    def plan(self, context: ConsoleContext) -> ConsolePlan:
        """A character device on a listening socket and the port in front of it."""
        # The first port wherever it stands among the options: QEMU would number them in their order.
        values = {"driver": "isa-serial", "id": "com1", "index": 0, "chardev": SOCKET}
        port = json_option("device", values, origin="consoles")
        if context.family == "virt":
            # Its serial port is on the board, and can only be told where to go.
            port = word("serial", f"chardev:{SOCKET}", origin="consoles")
        return ConsolePlan(options=(plan_socket(context, SOCKET), port))

    def endpoint(self, context: EndpointContext) -> Console:
        """The socket; one client at a time."""
        return describe_socket(context, "serial", SOCKET)

    def disconnect(self, context: EndpointContext) -> None:
        """Make the client go."""
        disconnect_socket(context, SOCKET)


@hookimpl
def kvm_console_types() -> Iterator[ConsoleType]:
    """The type."""
    yield ConsoleType(
        name="serial", summary="First serial port, as text.", backend=SerialConsole(), parameters=SerialParameters
    )
