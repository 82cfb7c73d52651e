"""Serial ports on virtio: ports and consoles of the one virtio-serial controller, on sockets of the host."""

from __future__ import annotations

from hvcore_kvm.command_line import keyed
from hvcore_kvm.hardware.builder import Builder
from hvcore_kvm.placement import SERIAL_PORTS

PORT_PREFIX = "virtio-port-"
"""With its name, the id in QEMU of a port and of its character device, and the name of its socket."""


def port_id(name: str) -> str:
    """The id in QEMU of the port with a name."""
    return f"{PORT_PREFIX}{name}"


def add_virtio_ports(builder: Builder) -> None:
    """Add them, each on its own number of the controller, which the guest sees."""
    for index, port in enumerate(builder.definition.devices.virtio_ports):
        ident, origin = port_id(port.name), f"params.virtio_ports[{index}]"
        builder.virtio_serial(origin)
        chardev = {"id": ident, "fd": builder.listen(ident), "server": True, "wait": False}
        builder.add(keyed("chardev", "socket", chardev, origin=origin))
        driver = "virtconsole" if port.console else "virtserialport"
        values = {"chardev": ident, "name": port.name}
        builder.device(driver, ident, values, uuid=f"port/{port.name}", space=SERIAL_PORTS, origin=origin)
