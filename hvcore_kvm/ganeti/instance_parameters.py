"""The parameters of an instance that follow from Ganeti's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hvcore import Finding, Size
from hvcore_kvm.ganeti.cpu_type import CpuType
from hvcore_kvm.ganeti.kernel_command_line import KernelCommandLine
from hvcore_kvm.ganeti.reading import nearest
from hvcore_kvm.ganeti.rules import Source
from hvcore_kvm.ganeti.translation import lossy, note
from hvcore_kvm.ganeti.vocabulary import (
    ACCEL,
    BOOT,
    CACHE,
    DEAD_NIC_TYPE,
    DEFAULT_CPU,
    DEFAULT_MACHINE,
    DISK_BUS,
    NIC_MODEL,
    REBOOT,
    SCSI_CONTROLLER,
    SOUND,
    SPICE_IP_VERSION,
    SPICE_TEXTS,
    UNPLACED_SOUND,
    UNPLACED_USB_DEVICES,
    UNPLACED_VGA,
    USB_DEVICES,
    VGA,
)

_MIB = 2**20


def nic_params(source: Source) -> dict[str, Any]:
    """What holds for every NIC of an instance."""
    hv = source.hv
    if hv["nic_type"] == DEAD_NIC_TYPE:
        return {}
    params: dict[str, Any] = {"model": NIC_MODEL[hv["nic_type"]]}
    if source.paravirtual_nics:
        params |= {"vhost": hv["vhost_net"], "vnet_hdr": hv["vnet_hdr"], "queues": hv["virtio_net_queues"]}
    return params


def disk_params(source: Source) -> dict[str, Any]:
    """What holds for every disk of an instance."""
    hv = source.hv
    bus = DISK_BUS.get(hv["disk_type"])
    if bus is None:
        return {}
    return {
        "bus": "sata" if bus == "ide" and source.q35 else bus,
        "cache": CACHE[hv["disk_cache"]],
        "aio": hv["disk_aio"],
        "discard": hv["disk_discard"],
    }


def place(disk: Mapping[str, Any]) -> dict[str, str]:
    """Where QEMU finds a disk: the uri where it is to reach it by itself, else the local path."""
    if disk["access"] == "userspace" and disk["uri"]:
        return {"uri": disk["uri"]}
    return {"path": disk["path"]} if disk["path"] else {}


class InstanceParameters:
    """Makes the ``params`` of an instance, and collects what is found on the way."""

    def __init__(self, source: Source, spice_x509_path: str | None) -> None:
        self.source = source
        self.hv = source.hv
        self.spice_x509_path = spice_x509_path
        self.findings: list[Finding] = []

    def of_instance(self) -> dict[str, Any]:
        """All of them; those of ``None`` are not given."""
        params = {
            **self._machine(),
            **self._boot(),
            **self._cpu(),
            **self._memory(),
            **self._storage(),
            **self._devices(),
            **self._consoles(),
        }
        if self.hv["security_model"] == "user":
            params["user"] = {"name": self.hv["security_domain"]}
        if not self.source.disks and self.hv["disk_type"] in DISK_BUS:
            # For the disks that are plugged in later.
            params["disk"] = disk_params(self.source)
        if not self.source.nics and self.hv["nic_type"] != DEAD_NIC_TYPE:
            params["nic"] = nic_params(self.source)
        return {name: value for name, value in params.items() if value is not None}

    def _machine(self) -> dict[str, Any]:
        hv = self.hv
        if not hv["kvm_flag"]:
            message = "is empty: what runs the guest is up to the program in Ganeti, and auto here, KVM where it can"
            self.findings.append(note("hvparams.kvm_flag", message))
        reservations = hv["kvm_pci_reservations"]
        if not 1 <= reservations <= 30:
            nearest_limit = max(1, min(30, reservations))
            self.findings.append(note("hvparams.kvm_pci_reservations", f"{reservations} becomes {nearest_limit}"))
        return {
            "qemu": hv["kvm_path"] or None,
            "machine": hv["machine_version"] or DEFAULT_MACHINE,
            "accel": ACCEL[hv["kvm_flag"]],
            "acpi": hv["acpi"],
            "hpet": True,  # QEMU's default, which Ganeti leaves alone
            "pci_reservations": max(1, min(30, reservations)),
            "on_reboot": REBOOT[hv["reboot_behavior"]],
            "panic_device": False,
            "rtc_base": "localtime" if hv["use_localtime"] else "utc",
            "chroot": hv["use_chroot"],
            "extra_args": hv["kvm_extra"] or None,
        }

    def _boot(self) -> dict[str, Any]:
        hv = self.hv
        if not self.source.kernel:
            return {"boot": (BOOT[hv["boot_order"]],), "boot_strict": False}
        speed = hv["serial_speed"] if hv["serial_console"] else None
        text = KernelCommandLine(root=hv["root_path"] or None, arguments=hv["kernel_args"], speed=speed)
        return {
            "kernel": hv["kernel_path"],
            "initrd": hv["initrd_path"] or None,
            "cmdline": str(text) or None,
            "boot_strict": False,
        }

    def _cpu(self) -> dict[str, Any]:
        hv = self.hv
        cpu = CpuType.parse(hv["cpu_type"] or DEFAULT_CPU)
        for word in cpu.others:
            message = f"{word[:40]!r} is no feature that is on or off, and is left out"
            self.findings.append(lossy("hvparams.cpu_type", message, "params.extra_args takes -global"))
        numbers = {name: hv[f"cpu_{name}"] for name in ("sockets", "cores", "threads") if hv[f"cpu_{name}"]}
        return {
            "cpu_model": cpu.model,
            "cpu_features": dict(cpu.features) or None,
            "cpu_enforce": cpu.enforce,
            "topology": numbers or None,
            "cpu_pin": None if hv["cpu_mask"] in ("", "all") else hv["cpu_mask"],
        }

    def _memory(self) -> dict[str, Any]:
        low, high = self.source.be["minmem"], self.source.be["maxmem"]
        backed = {"memory_backend": "file", "memory_path": self.hv["mem_path"], "memory_prealloc": True}
        return {
            "memory_min": Size(low * _MIB) if low < high else None,
            "balloon_free_page_reporting": False,
            "balloon_deflate_on_oom": False,
            **(backed if self.hv["mem_path"] else {}),
        }

    def _storage(self) -> dict[str, Any]:
        bus = self.source.cdrom_bus
        if bus == "ide" and self.source.q35:
            bus = "sata"
        drives: list[dict[str, str]] = [
            {"url" if "://" in image else "path": image, **({"bus": bus} if bus else {})}
            for image in self.source.images
        ]
        if self.hv["disk_type"] == "scsi-cd":
            for index, disk in enumerate(self.source.disks):
                drive = {"url" if name == "uri" else name: where for name, where in place(disk).items()}
                drives.append({**drive, "bus": "scsi"})
                message = "becomes a CD-ROM drive, as the guest sees it, and can only be read"
                self.findings.append(note(f"disks[{index}]", message))
        return {
            "scsi_controller": SCSI_CONTROLLER[self.hv["scsi_controller_type"]],
            "cdroms": drives or None,
            "floppy": self.hv["floppy_image_path"] or None,
        }

    def _devices(self) -> dict[str, Any]:
        hv = self.hv
        return {
            "rng": False,
            "guest_agent": hv["use_guest_agent"],
            "display_device": self._choice("vga", "qxl" if self.source.spice else "std", VGA, UNPLACED_VGA),
            "keymap": hv["keymap"] or None,
            "pointer": hv["usb_mouse"] or ("tablet" if self.source.vnc else "none"),
            "usb_controller": "uhci",
            "usb": self._usb() or None,
            "sound": SOUND.get(self._choice("soundhw", "none", (*SOUND, "none"), UNPLACED_SOUND) or "none", "none"),
        }

    def _choice(self, name: str, default: str, known: Sequence[str], unplaced: Sequence[str]) -> str | None:
        """A word that Ganeti hands on to QEMU as it is."""
        word = self.hv[name]
        if not word:
            return default
        if word in unplaced:
            message = f"{word} has no place here, and is left out"
            self.findings.append(lossy(f"hvparams.{name}", message))
            return default
        if word not in known:
            message = f"{word[:40]!r} is none of {', '.join(known)}"
            hint = nearest(word, known)
            self.findings.append(Finding(code="not-a-choice", path=f"hvparams.{name}", message=message, hint=hint))
            return default
        return str(word)

    def _usb(self) -> list[dict[str, str]]:
        devices = []
        for word in re.split(r"[,\s]+", self.hv["usb_devices"].strip(", ")):
            if word in USB_DEVICES:
                devices.append({"type": word})
            elif word in UNPLACED_USB_DEVICES:
                self.findings.append(lossy("hvparams.usb_devices", f"{word} has no place here, and is left out"))
            elif word:
                message = f"{word[:40]!r} is no USB device that QEMU 7.2 or newer makes by this option"
                hint = nearest(word, USB_DEVICES) or "devices of the host go into params.usb, with type host"
                path = "hvparams.usb_devices"
                self.findings.append(Finding(code="not-a-choice", path=path, message=message, hint=hint))
        return devices

    def _consoles(self) -> dict[str, Any]:
        return {
            "vnc": self._vnc() if self.source.vnc else None,
            "spice": self._spice() if self.source.spice else None,
        }

    def _vnc(self) -> dict[str, Any]:
        hv = self.hv
        if self.source.vnc_socket:
            message = "is a directory: VNC listens on a socket in the instance's own directory instead"
            self.findings.append(note("hvparams.vnc_bind_address", message))
            return {}
        vnc: dict[str, Any] = {"bind_address": hv["vnc_bind_address"]}
        if self.source.network_port is not None:
            vnc["port"] = self.source.network_port
        if hv["vnc_tls"]:
            vnc["tls"] = "x509" if hv["vnc_x509_path"] else "anon"
            if hv["vnc_x509_path"]:
                vnc |= {"x509_path": hv["vnc_x509_path"], "x509_verify": hv["vnc_x509_verify"]}
        if hv["vnc_password_file"]:
            vnc["password_file"] = hv["vnc_password_file"]
        return vnc

    def _spice(self) -> dict[str, Any]:
        hv = self.hv
        spice: dict[str, Any] = {
            "bind_address": hv["spice_bind"],
            "ip_version": SPICE_IP_VERSION[hv["spice_ip_version"]],
            "tls": hv["spice_use_tls"],
            "playback_compression": hv["spice_playback_compression"],
            "agent": hv["spice_use_vdagent"],
        }
        if self.source.network_port is not None:
            spice["port"] = self.source.network_port
        for name, place in SPICE_TEXTS.items():
            if hv[name] and (name != "spice_tls_ciphers" or hv["spice_use_tls"]):
                spice[place] = hv[name]
        if hv["spice_use_tls"] and self.spice_x509_path is not None:
            spice["x509_path"] = self.spice_x509_path
        elif hv["spice_use_tls"]:
            message = "takes the cluster's certificate in Ganeti, and none is named here"
            self.findings.append(lossy("hvparams.spice_use_tls", message, "pass spice_x509_path, its directory"))
        return spice
