"""Parameters of the devices beside CPU, memory, disks and NICs."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from hvcore import Finding, Size, checks, param
from hvcore_kvm.parameters.syntax import object_name, pci_address, qemu_word, share_tag

SOUND_DEVICES = {
    "hda": "ich9-intel-hda",
    "ich6": "intel-hda",
    "ac97": "AC97",
    "es1370": "ES1370",
    "sb16": "sb16",
    "virtio": "virtio-sound-pci",
    "usb": "usb-audio",
}
"""QEMU's device for each sound card."""

DISPLAY_DEVICES = {
    "std": "VGA",
    "cirrus": "cirrus-vga",
    "vmware": "vmware-svga",
    "qxl": "qxl-vga",
    "virtio": "virtio-vga",
    "virtio-gpu": "virtio-gpu-pci",
    "bochs": "bochs-display",
    "ramfb": "ramfb",
}
"""QEMU's device for each graphics card."""

_TAKEN_PORTS = ("org.qemu.guest_agent.0", "com.redhat.spice.0")


@attrs.frozen(kw_only=True)
class UsbDevice:
    """One USB device."""

    type: str = param(
        choices=("tablet", "mouse", "keyboard", "host", "redir", "storage", "ccid"),
        summary="What it is; host passes a device of the host through, redir one that a program brings by the usbredir "
        "protocol, on the socket usbN in the instance's directory.",
    )
    vendor_id: int | None = param(
        default=None, checks=(checks.between(0, 0xFFFF),), summary="Vendor of the host's device."
    )
    product_id: int | None = param(
        default=None, checks=(checks.between(0, 0xFFFF),), summary="Product of the host's device."
    )
    host_bus: int | None = param(
        default=None,
        checks=(checks.between(1, 255),),
        summary="Bus of the host's device; with host_port or host_address.",
    )
    host_address: int | None = param(
        default=None,
        checks=(checks.between(1, 127),),
        summary="Address of the host's device; it changes when replugged.",
    )
    host_port: str | None = param(
        default=None,
        checks=(lambda v: None if v and set(v) <= set("0123456789.") else f"{v[:20]!r} is not a port such as 1.4",),
        summary="Port of the host's device, as 1.4.",
    )
    path: str | None = param(
        default=None, checks=(checks.absolute_path,), summary="Raw image file of a storage stick; read-only."
    )


@attrs.frozen(kw_only=True)
class VirtioPort:
    """One serial port of the guest's virtio-serial controller."""

    name: str = param(
        checks=(object_name,),
        summary="Name by which the guest finds it, /dev/virtio-ports/NAME in Linux; on the host it is the socket "
        "virtio-port-NAME in the instance's directory.",
    )
    console: bool = param(default=False, summary="It is a console, hvcN in Linux.")


@attrs.frozen(kw_only=True)
class Share:
    """One directory of the host that the guest mounts through virtiofs."""

    tag: str = param(checks=(share_tag,), summary="Name by which the guest mounts it.")
    path: str = param(checks=(checks.absolute_path,), summary="Directory on the host.")
    cache: str = param(
        default="auto",
        choices=("auto", "always", "none"),
        summary="What the guest may keep: file data, all, or nothing.",
    )
    xattr: bool = param(default=False, summary="Extended attributes are passed through.")
    queue_size: int = param(default=1024, checks=(checks.between(2, 1024),), summary="Requests a queue holds.")


@attrs.frozen(kw_only=True)
class PciDevice:
    """One PCI device of the host that the guest gets (VFIO)."""

    address: str = param(checks=(pci_address,), summary="Where it is on the host, as 0000:01:00.0.")
    rom: bool = param(default=True, summary="The guest sees its option ROM.")


@attrs.frozen(kw_only=True)
class DeviceParameters:
    """Devices beside CPU, memory, disks and NICs."""

    rng: bool = param(default=True, changes="hotplug", summary="Offer virtio-rng, a source of randomness.")
    rng_source: str = param(
        default="builtin",
        choices=("builtin", "urandom", "hwrng"),
        changes="hotplug",
        summary="What feeds it: QEMU's own generator, the host's /dev/urandom, or its /dev/hwrng.",
    )
    rng_rate: Size | None = param(
        default=None,
        unit="bytes a second",
        checks=(checks.at_least(1),),
        changes="hotplug",
        summary="Most the guest may take.",
    )
    watchdog: str = param(
        default="none",
        choices=("none", "i6300esb", "ib700", "itco"),
        summary="Watchdog timer the guest must keep winding; itco is that of q35's chipset.",
    )
    watchdog_action: str = param(
        default="reset",
        choices=("reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"),
        changes="live",
        summary="What happens when it runs out.",
    )
    guest_agent: bool = param(
        default=True,
        aliases=("use_guest_agent",),
        summary="Offer the channel of the QEMU guest agent, on the socket agent in the instance's directory.",
    )
    vsock: bool = param(default=False, summary="Offer a vsock device, a socket between guest and host.")
    vsock_cid: int | None = param(
        default=None,
        checks=(checks.between(3, 2**32 - 2),),
        summary="Address of the guest on vsock, unique on the host; derived from the uuid when not given.",
    )
    tpm: str = param(
        default="none",
        choices=("none", "crb", "tis"),
        summary="TPM 2.0 of an swtpm process; its state is kept per instance until it is cleaned up. crb is of x86.",
    )
    display_device: str | None = param(
        default=None,
        choices=("none", *DISPLAY_DEVICES),
        aliases=("vga",),
        summary="Graphics card; qxl with console spice, std with console vnc (virtio-gpu on virt), else none, when "
        "not given.",
    )
    keymap: str | None = param(
        default=None,
        checks=(qemu_word,),
        aliases=("keymap",),
        summary="Keyboard layout of graphical consoles, such as de.",
    )
    pointer: str | None = param(
        default=None,
        choices=("none", "tablet", "mouse"),
        aliases=("usb_mouse",),
        summary="USB pointing device; tablet with a graphical console, else none, when not given.",
    )
    usb_controller: str | None = param(
        default=None,
        choices=("none", "xhci", "ehci", "uhci"),
        summary="USB controller; xhci where a device needs one when not given.",
    )
    usb: tuple[UsbDevice, ...] = param(
        default=(), changes="hotplug", aliases=("usb_devices",), summary="USB devices, besides the pointer."
    )
    sound: str = param(default="none", choices=("none", *SOUND_DEVICES), aliases=("soundhw",), summary="Sound card.")
    sound_backend: str | None = param(
        default=None,
        choices=("none", "spice", "pa", "alsa", "pipewire", "jack", "dbus", "wav"),
        summary="Where sound goes; to the SPICE client with console spice, else nowhere, when not given.",
    )
    serial_ports: int = param(
        default=0,
        checks=(checks.between(0, 3),),
        summary="Further serial ports, on the sockets serial1 to serial3 in the instance's directory (pc, q35).",
    )
    virtio_ports: tuple[VirtioPort, ...] = param(
        default=(),
        changes="hotplug",
        summary="Serial ports on virtio, for programs of the guest and the host to talk by, and consoles.",
    )
    shares: tuple[Share, ...] = param(default=(), summary="Directories of the host, through virtiofs.")
    pci_passthrough: tuple[PciDevice, ...] = param(
        default=(), summary="PCI devices of the host that the guest gets (VFIO)."
    )


def device_rules(devices: DeviceParameters) -> Iterator[Finding]:
    """What is wrong with several of them together."""
    if not devices.rng:
        for name, unset in (("rng_source", "builtin"), ("rng_rate", None)):
            if getattr(devices, name) != unset:
                yield Finding(code="contradiction", path=name, message="needs rng, which is switched off")
    if devices.vsock_cid is not None and not devices.vsock:
        yield Finding(code="incomplete", path="vsock_cid", message="needs vsock", hint="set params.vsock = true")
    if devices.sound == "none" and devices.sound_backend is not None:
        yield Finding(code="incomplete", path="sound_backend", message="needs sound, a sound card")
    if devices.usb_controller == "none":
        for name, used in (
            ("usb", bool(devices.usb)),
            ("pointer", devices.pointer in ("tablet", "mouse")),
            ("sound", devices.sound == "usb"),
        ):
            if used:
                yield Finding(code="contradiction", path=name, message="needs a USB controller, and there is none")
    for index, device in enumerate(devices.usb):
        yield from (finding.below(f"usb[{index}]") for finding in _usb_rules(device))
    for index, port in enumerate(devices.virtio_ports):
        if port.name in _TAKEN_PORTS:
            message = f"{port.name} is a port of the driver's own"
            hint = "set params.guest_agent = true" if port.name == _TAKEN_PORTS[0] else 'add "spice" to consoles'
            yield Finding(code="contradiction", path=f"virtio_ports[{index}].name", message=message, hint=hint)
    for field, key in (("shares", "tag"), ("pci_passthrough", "address"), ("virtio_ports", "name")):
        values = [getattr(item, key) for item in getattr(devices, field)]
        for index, value in enumerate(values):
            if value in values[:index]:
                where = f"{field}[{index}].{key}"
                yield Finding(code="repeated-value", path=where, message=f"{value} is named twice")


def _usb_rules(device: UsbDevice) -> Iterator[Finding]:
    by_kind = device.vendor_id is not None and device.product_id is not None
    by_place = device.host_bus is not None and (device.host_address is not None) != (device.host_port is not None)
    given = [
        n
        for n in ("vendor_id", "product_id", "host_bus", "host_address", "host_port")
        if getattr(device, n) is not None
    ]
    if device.type == "host" and not (by_kind or by_place):
        message = "host needs vendor_id and product_id, or host_bus with one of host_port and host_address"
        yield Finding(code="incomplete", path="type", message=message)
    if device.type != "host" and given:
        yield Finding(code="contradiction", path=given[0], message=f"is of type host, and it is {device.type}")
    if (device.type == "storage") != (device.path is not None):
        yield Finding(code="incomplete", path="path", message="goes with type storage, which needs it")
