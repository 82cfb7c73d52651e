"""Console type ``serial``: the first serial port, on a UNIX socket in the instance's directory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from hvcore import Console, Finding, Instance
from hvcore_kvm import (
    ConsoleContext,
    ConsolePlan,
    ConsoleType,
    EndpointContext,
    hookimpl,
    json_option,
    keyed,
    word,
)

SOCKET = "serial"
"""Name of the socket in the instance's directory."""


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
        fd = context.listen(SOCKET)
        origin = "consoles"
        chardev = {"id": "serial0", "fd": fd, "server": True, "wait": False}
        # The first port wherever it stands among the options: QEMU would number them in their order.
        values = {"driver": "isa-serial", "id": "com1", "index": 0, "chardev": "serial0"}
        port = json_option("device", values, origin=origin)
        if context.family == "virt":
            # Its serial port is on the board, and can only be told where to go.
            port = word("serial", "chardev:serial0", origin=origin)
        return ConsolePlan(options=(keyed("chardev", "socket", chardev, origin=origin), port))

    def endpoint(self, context: EndpointContext) -> Console:
        """The socket; one client at a time."""
        path = context.socket_path(SOCKET)
        return Console(
            instance=context.name,
            kind="serial",
            socket_path=path,
            command=("socat", "STDIO,raw,echo=0,escape=0x1d", f"UNIX-CONNECT:{path}"),
            message="One client at a time; Ctrl-] leaves.",
        )


@hookimpl
def kvm_console_types() -> Iterator[ConsoleType]:
    """The type."""
    yield ConsoleType(name="serial", summary="First serial port, as text.", backend=SerialConsole())
