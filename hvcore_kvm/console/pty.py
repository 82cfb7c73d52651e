"""Console type ``pty``: the first serial port, on a terminal device of the host."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from hvcore import Console, Finding, HostError, Instance, device_holder
from hvcore_kvm import (
    ConsoleContext,
    ConsolePlan,
    ConsoleType,
    EndpointContext,
    TextConsoleParameters,
    describe_log,
    hookimpl,
    json_option,
    keyed,
    plan_log,
    word,
)

CHARDEV = "pty"

_DEVICE = re.compile(r"pty:(/dev/pts/[0-9]{1,9})")


@attrs.frozen(kw_only=True)
class PtyParameters(TextConsoleParameters):
    """Parameters of console type ``pty``."""


class PtyConsole:
    """Plans the first serial port."""

    def check(self, instance: Instance, parameters: PtyParameters) -> Iterator[Finding]:
        """There is one first serial port, and QEMU has to see the host's terminals."""
        if "serial" in instance.consoles:
            message = "serial and pty are both the first serial port"
            hint = "use one of them; virtconsole goes beside either"
            yield Finding(code="contradiction", path="consoles", message=message, hint=hint)
        if instance.params.get("chroot") is True:
            message = "an empty root has no terminals, and console type pty needs one"
            yield Finding(code="contradiction", path="params.chroot", message=message, hint="use serial")

    def check_host(self, instance: Instance, parameters: PtyParameters) -> Iterable[Finding]:
        """Nothing is needed."""
        return ()

    def plan(self, context: ConsoleContext) -> ConsolePlan:
        """A terminal that QEMU makes, and the port in front of it."""
        for path in ("/dev/ptmx", "/dev/pts"):
            context.reads(path)
        chardev = keyed("chardev", "pty", {"id": CHARDEV, **plan_log(context, CHARDEV)}, origin="consoles")
        values = {"driver": "isa-serial", "id": "com1", "index": 0, "chardev": CHARDEV}
        port = json_option("device", values, origin="consoles")
        if context.family == "virt":
            port = word("serial", f"chardev:{CHARDEV}", origin="consoles")
        return ConsolePlan(options=(chardev, port))

    def endpoint(self, context: EndpointContext) -> Console:
        """The device; what several programs read from it is divided among them."""
        path = _device(context.ask("query-chardev", {}))
        return Console(
            instance=context.name,
            kind="pty",
            device_path=path,
            command=("socat", "STDIO,raw,echo=0,escape=0x1d", f"{path},raw,echo=0"),
            holder=device_holder(path),
            message="One client at a time; QEMU looks once a second whether there is one. Ctrl-] leaves.",
            **describe_log(context, CHARDEV),
        )


def _device(answer: Any) -> str:
    """The terminal of the console, in what QEMU says of its character devices.

    Raises:
        HostError: it says nothing of it.
    """
    for row in answer if isinstance(answer, list) else ():
        if isinstance(row, dict) and row.get("label") == CHARDEV:
            found = _DEVICE.fullmatch(str(row.get("filename")))
            if found is not None:
                return found[1]
    raise HostError("QEMU does not say which terminal its console is on")


@hookimpl
def kvm_console_types() -> Iterator[ConsoleType]:
    """The type."""
    yield ConsoleType(
        name="pty",
        summary="First serial port, on a terminal device of the host, as text.",
        backend=PtyConsole(),
        parameters=PtyParameters,
    )
