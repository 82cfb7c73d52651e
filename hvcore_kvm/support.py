"""What a QEMU program supports, in the words of parameters; and whether a plan asks for more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hvcore import Finding
from hvcore_kvm.capabilities import QemuCapabilities
from hvcore_kvm.command_line import Option
from hvcore_kvm.confidential import OBJECTS
from hvcore_kvm.cpu_model import LEVELS
from hvcore_kvm.parameters.devices import DISPLAY_DEVICES, SOUND_DEVICES
from hvcore_kvm.parameters.nic import NIC_DEVICES
from hvcore_kvm.placement import family_of

_DISK_DEVICES = {
    "virtio-blk": "virtio-blk-pci",
    "scsi": "scsi-hd",
    "scsi-block": "scsi-block",
    "scsi-generic": "scsi-generic",
    "nvme": "nvme",
    "sata": "ich9-ahci",
    "ide": "ide-hd",
    "usb": "usb-storage",
}
_SCSI_DEVICES = {
    "virtio-scsi": "virtio-scsi-pci",
    "lsi": "lsi53c895a",
    "megasas": "megasas",
    "am53c974": "am53c974",
    "pvscsi": "pvscsi",
}
_URI_DRIVERS = ("nbd", "rbd", "gluster", "iscsi", "nfs", "http", "https", "ftp", "ftps")


def supported_values(capabilities: QemuCapabilities) -> dict[str, tuple[str, ...]]:
    """The values a QEMU program supports, by path of the parameter; only those that differ between programs."""
    devices = set(capabilities.devices)

    def having(table: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(value for value, device in table.items() if device in devices)

    machines = [m for m in capabilities.machines if family_of(m.name)]
    levels = tuple(LEVELS) if capabilities.arch == "x86_64" else ()
    return {
        "params.machine": (
            *(m.alias for m in machines if m.alias),
            *(m.name for m in machines),
        ),
        "params.confidential": ("none", *(kind for kind, (name, _) in OBJECTS.items() if name in capabilities.objects)),
        "params.accel": ("auto", *capabilities.accelerators),
        "params.cpu_model": (*capabilities.cpu_models, *levels),
        "params.cpu_features": capabilities.cpu_features,
        "params.iommu": ("none", *having({"intel": "intel-iommu", "virtio": "virtio-iommu-pci"})),
        "params.scsi_controller": having(_SCSI_DEVICES),
        "params.watchdog": ("none", *having({"i6300esb": "i6300esb", "ib700": "ib700"})),
        "params.tpm": ("none", *having({"crb": "tpm-crb", "tis": "tpm-tis"})),
        "params.display_device": ("none", *having(DISPLAY_DEVICES)),
        "params.sound": ("none", *having(SOUND_DEVICES)),
        "params.sound_backend": capabilities.audio_drivers,
        "params.usb_controller": (
            "none",
            *having({"xhci": "qemu-xhci", "ehci": "usb-ehci", "uhci": "piix3-usb-uhci"}),
        ),
        "consoles[]": (
            *("serial", "pty", "virtconsole", "vnc"),
            *(("spice",) if "spice" in capabilities.options else ()),
            *(("dbus",) if "dbus" in capabilities.displays else ()),
        ),
        "disks[].uri": tuple(driver for driver in _URI_DRIVERS if driver in capabilities.block_drivers),
        "disks[].params.bus": having(_DISK_DEVICES),
        "nics[].params.model": having(NIC_DEVICES),
    }


def check_support(options: Iterable[Option], capabilities: QemuCapabilities) -> Iterator[Finding]:
    """Find what a plan asks for that the QEMU program does not have."""
    qemu = f"QEMU {capabilities.version_text}"
    have = {
        "device": ("device", set(capabilities.devices)),
        "object": ("object type", set(capabilities.objects)),
        "netdev": ("network backend", set(capabilities.network_backends)),
        "blockdev": ("block driver", set(capabilities.block_drivers)),
        "chardev": ("character device", set(capabilities.character_devices)),
        "display": ("display", set(capabilities.displays)),
    }
    if capabilities.audio_drivers:
        have["audiodev"] = ("audio driver", set(capabilities.audio_drivers))
    for option in options:
        if option.name == "spice" and option.form != "raw" and "spice" not in capabilities.options:
            message = f"{qemu} has no SPICE"
            yield Finding(code="unknown-spice", path=option.origin, message=message, hint=_SPICE_HINT)
        if option.name not in have or option.form not in ("json", "keyed"):
            continue
        title, there = have[option.name]
        for kind in _kinds(option):
            if kind not in there:
                values = supported_values(capabilities).get(_general(option.origin))
                hint = f"it has {', '.join(values)}" if values else _MODULES.get(title)
                message = f"{qemu} has no {title} {kind}"
                yield Finding(code=f"unknown-{option.name}", path=option.origin, message=message, hint=hint)


_SPICE_HINT = "its modules may be in a package of their own: apt-get install qemu-system-modules-spice"
_MODULES = {
    "block driver": "block drivers of storage servers are in a package of their own: apt-get install qemu-block-extra",
    "display": "displays are modules in packages of their own: apt-get install qemu-system-modules-opengl, or "
    "qemu-system-gui",
}


def _general(origin: str) -> str:
    """The parameter that a part of a definition comes from, as it is named in listings."""
    if origin.startswith("disks["):
        return "disks[].params.bus"
    return "nics[].params.model" if origin.startswith("nics[") else origin


def _kinds(option: Option) -> Iterator[str]:
    if option.form == "keyed":
        yield option.first or ""
    elif option.name == "blockdev":
        yield from _drivers(option.value)
    else:
        key = {"device": "driver", "object": "qom-type", "audiodev": "driver"}.get(option.name, "type")
        yield str(option.value.get(key, ""))


def _drivers(node: Mapping[str, Any]) -> Iterator[str]:
    yield str(node["driver"])
    if isinstance(node.get("file"), Mapping):
        yield from _drivers(node["file"])
