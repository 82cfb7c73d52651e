"""What is wrong with several values of Ganeti's together; nothing of a host is looked at.

Each rule names every parameter it is about, so that none is found wrong for no reason to be seen.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from hvcore import Finding, Severity
from hvcore_kvm.affinity import parse_mask
from hvcore_kvm.ganeti.table import SERIAL_SPEEDS
from hvcore_kvm.ganeti.vocabulary import (
    CDROM_BUS,
    DEAD_DISK_TYPES,
    DEAD_NIC_TYPE,
    INHERITED_CDROM_BUS,
    SHARED_TEMPLATES,
)

_PCI_SLOTS = 32
_SPICE_ONLY = (
    "spice_ip_version",
    "spice_password_file",
    "spice_image_compression",
    "spice_jpeg_wan_compression",
    "spice_zlib_glz_wan_compression",
    "spice_streaming_video",
    "spice_use_tls",
)
_VNC_ONLY = ("vnc_tls", "vnc_password_file", "vnc_x509_path", "vnc_x509_verify")
_VNC_FIRST_PORT = 5900
_IDE_DEVICES = 4
_SCSI_TARGETS = {"lsi": 8, "dc390": 8, "virtio-scsi-pci": 16, "megasas": 16}


@attrs.frozen(kw_only=True)
class Source:
    """An instance in Ganeti's words, each value by itself valid.

    Attributes:
        hv: the hypervisor parameters.
        be: the backend parameters.
        nics: the NICs.
        disks: the disks.
        network_port: TCP port of the graphical console.
        bad: names of hypervisor and backend parameters whose value was wrong, and has been replaced by the default.
    """

    hv: Mapping[str, Any]
    be: Mapping[str, Any]
    nics: Sequence[Mapping[str, Any]] = ()
    disks: Sequence[Mapping[str, Any]] = ()
    network_port: int | None = None
    bad: frozenset[str] = frozenset()

    @property
    def vnc(self) -> bool:
        """There is a VNC console."""
        return bool(self.hv["vnc_bind_address"])

    @property
    def vnc_socket(self) -> bool:
        """VNC listens on a socket of its own."""
        return bool(self.hv["vnc_bind_address"].startswith("/"))

    @property
    def spice(self) -> bool:
        """There is a SPICE console."""
        return bool(self.hv["spice_bind"])

    @property
    def kernel(self) -> bool:
        """A kernel is booted directly."""
        return bool(self.hv["kernel_path"])

    @property
    def image_names(self) -> tuple[str, ...]:
        """Names of the parameters that hold the image of a CD-ROM drive."""
        return tuple(name for name in ("cdrom_image_path", "cdrom2_image_path") if self.hv[name])

    @property
    def images(self) -> tuple[str, ...]:
        """The images in CD-ROM drives."""
        return tuple(self.hv[name] for name in self.image_names)

    @property
    def cdrom_bus(self) -> str | None:
        """Bus of the CD-ROM drives; ``None`` for one that does not work."""
        wanted: str = self.hv["cdrom_disk_type"]
        return CDROM_BUS.get(wanted) if wanted else INHERITED_CDROM_BUS.get(self.hv["disk_type"])

    @property
    def q35(self) -> bool:
        """The machine is a q35."""
        return "q35" in self.hv["machine_version"]

    @property
    def paravirtual_nics(self) -> bool:
        """The NICs are virtio devices."""
        return bool(self.hv["nic_type"] == "paravirtual")


Rule = Callable[[Source], Iterator[Finding]]


def check(source: Source) -> Iterator[Finding]:
    """Everything that is wrong with several values together, in the order of the rules.

    What a wrong single value alone would bring about is left out.
    """
    for rule in _RULES:
        findings = list(rule(source))
        if not any(finding.path.partition(".")[2] in source.bad for finding in findings):
            yield from findings


def _each(
    names: Sequence[str], message: str, code: str = "contradiction", hint: str | None = None
) -> Iterator[Finding]:
    for name in names:
        path = name if "." in name or "[" in name else f"hvparams.{name}"
        yield Finding(code=code, path=path, message=message, hint=hint)


def _warning(path: str, message: str, code: str, hint: str | None = None) -> Finding:
    return Finding(code=code, path=path, message=message, hint=hint, severity=Severity.WARNING)


def _boot(source: Source) -> Iterator[Finding]:
    if source.kernel:
        return
    for kind, name in (("cdrom", "cdrom_image_path"), ("floppy", "floppy_image_path")):
        if source.hv["boot_order"] == kind and not source.hv[name]:
            message = f"boot_order {kind} needs {name}"
            yield from _each(("boot_order", name), message, "incomplete")


def _root(source: Source) -> Iterator[Finding]:
    if source.kernel and not source.hv["root_path"]:
        message = "is empty, and the kernel gets no root=; Ganeti refuses this"
        yield _warning("hvparams.root_path", message, "incomplete", "a root device may stand in kernel_args")


def _security(source: Source) -> Iterator[Finding]:
    model, domain = source.hv["security_model"], source.hv["security_domain"]
    if model == "user" and not domain:
        message = "security_model user needs security_domain, the user"
        yield from _each(("security_model", "security_domain"), message, "incomplete")
    elif model != "user" and domain:
        message = f"security_domain goes with security_model user, and it is {model}"
        yield from _each(("security_model", "security_domain"), message)


def _serial(source: Source) -> Iterator[Finding]:
    speed = source.hv["serial_speed"]
    if source.hv["serial_console"] and speed not in SERIAL_SPEEDS:
        words = "no speed" if speed is None else str(speed)
        message = f"{words} is none of {', '.join(str(known) for known in SERIAL_SPEEDS)}"
        yield from _each(("serial_speed",), message, "not-a-choice")


def _vnc(source: Source) -> Iterator[Finding]:
    hv = source.hv
    given = [name for name in _VNC_ONLY if hv[name]]
    if hv["vnc_x509_verify"] and not hv["vnc_x509_path"]:
        message = "vnc_x509_verify needs vnc_x509_path, the directory of the certificates"
        yield from _each(("vnc_x509_verify", "vnc_x509_path"), message, "incomplete")
    if not source.vnc:
        # No error: often it is a default of the whole cluster, and without VNC there is nothing it could protect.
        for name in given:
            message = "has no effect without vnc_bind_address, and is left out"
            yield _warning(f"hvparams.{name}", message, "not-used")
        return
    if source.vnc_socket:
        for name in ("vnc_tls", "vnc_password_file"):
            if hv[name]:
                message = (
                    f"{name} does not go with a directory in vnc_bind_address: a socket has neither TLS nor password"
                )
                yield from _each((name, "vnc_bind_address"), message)
    elif source.network_port is not None and source.network_port < _VNC_FIRST_PORT:
        message = f"{source.network_port} is below {_VNC_FIRST_PORT}, the port of the first VNC display"
        yield Finding(code="invalid-value", path="network_port", message=message)
    if not hv["vnc_tls"]:
        for name in ("vnc_x509_path", "vnc_x509_verify"):
            if hv[name]:
                yield from _each(
                    (name, "vnc_tls"), f"{name} needs vnc_tls; without it nothing is encrypted", "incomplete"
                )


def _spice(source: Source) -> Iterator[Finding]:
    hv = source.hv
    if not source.spice:
        given = [name for name in _SPICE_ONLY if hv[name]]
        for name in given:
            yield from _each((name,), "needs spice_bind", "incomplete")
        if given:
            yield from _each(("spice_bind",), f"is needed by {', '.join(given)}", "incomplete")
        return
    if source.vnc:
        message = "Ganeti allows one of VNC and SPICE at a time"
        hint = "clear one of the two; the instance here may then be given both consoles"
        yield from _each(("spice_bind", "vnc_bind_address"), message, hint=hint)
    try:
        version = ipaddress.ip_address(hv["spice_bind"]).version
    except ValueError:
        return
    if hv["spice_ip_version"] not in (0, version):
        message = (
            f"{hv['spice_bind'][:60]} is an address of IPv{version}, and spice_ip_version is {hv['spice_ip_version']}"
        )
        yield from _each(("spice_bind", "spice_ip_version"), message)


def _port(source: Source) -> Iterator[Finding]:
    if source.network_port is None and (source.spice or (source.vnc and not source.vnc_socket)):
        message = "is not given, and the graphical console gets no fixed port"
        yield _warning("network_port", message, "incomplete", "pass the instance's network_port")


def _aio(source: Source) -> Iterator[Finding]:
    if source.hv["disk_aio"] != "native" or source.hv["disk_cache"] == "none":
        return
    # What counts is the mode a disk gets; for shared ones that is none, whatever is configured.
    if not source.disks or any(disk["dev_type"] not in SHARED_TEMPLATES for disk in source.disks):
        message = f"disk_aio native needs disk_cache none, and it is {source.hv['disk_cache']}"
        yield from _each(("disk_aio", "disk_cache"), message)


def _disk_type(source: Source) -> Iterator[Finding]:
    kind = source.hv["disk_type"]
    if kind not in DEAD_DISK_TYPES:
        return
    message = f"{kind} is no device of QEMU 7.2 or newer; no instance starts with it"
    if source.disks:
        yield from _each(("disk_type",), message, "not-available", "use paravirtual or scsi-hd")
    else:
        yield _warning("hvparams.disk_type", message, "not-available", "use paravirtual or scsi-hd")


def _nic_type(source: Source) -> Iterator[Finding]:
    if source.hv["nic_type"] != DEAD_NIC_TYPE:
        return
    message = f"{DEAD_NIC_TYPE} is an ISA card, and Ganeti starts no instance with it"
    if source.nics:
        yield from _each(("nic_type",), message, "not-available", "use ne2k_pci")
    else:
        yield _warning("hvparams.nic_type", message, "not-available", "use ne2k_pci")


def _cdroms(source: Source) -> Iterator[Finding]:
    if source.images and source.cdrom_bus is None:
        name = "cdrom_disk_type" if source.hv["cdrom_disk_type"] else "disk_type"
        message = f"{name} {source.hv[name]} makes no CD-ROM drive; {', '.join(CDROM_BUS)} do"
        yield from _each(("cdrom_disk_type", name) if name == "disk_type" else (name,), message)


def _queues(source: Source) -> Iterator[Finding]:
    queues = source.hv["virtio_net_queues"]
    if queues <= 1:
        return
    if not source.paravirtual_nics:
        message = f"{queues} queues need nic_type paravirtual, and it is {source.hv['nic_type']}"
        yield from _each(("virtio_net_queues", "nic_type"), message)
    elif not source.hv["vhost_net"]:
        yield from _each(("virtio_net_queues", "vhost_net"), f"{queues} queues need vhost_net")
    elif not source.hv["vnet_hdr"]:
        message = f"{queues} queues without vnet_hdr leave checksums and segmentation to one CPU each"
        yield _warning("hvparams.virtio_net_queues", message, "unwise")
    if queues > source.be["vcpus"]:
        message = f"{queues} queues are more than there are virtual CPUs to serve them"
        yield Finding(code="unwise", path="hvparams.virtio_net_queues", message=message, severity=Severity.ADVICE)


def _cpu(source: Source) -> Iterator[Finding]:
    vcpus = source.be["vcpus"]
    elements = len(parse_mask(source.hv["cpu_mask"])) if source.hv["cpu_mask"] else 1
    if elements not in (1, vcpus):
        message = f"cpu_mask has {elements} elements, and there are {vcpus} virtual CPUs"
        yield from _each(("cpu_mask", "beparams.vcpus"), message)
    numbers = {name: source.hv[name] for name in ("cpu_sockets", "cpu_cores", "cpu_threads") if source.hv[name]}
    product = 1
    for number in numbers.values():
        product *= number
    words = " times ".join(f"{name} {number}" for name, number in numbers.items())
    if vcpus % product:
        yield from _each((*numbers, "beparams.vcpus"), f"{words} does not divide vcpus, which is {vcpus}")
    elif len(numbers) == 3 and product != vcpus:
        yield from _each((*numbers, "beparams.vcpus"), f"{words} is {product}, and vcpus is {vcpus}")
    if source.hv["cpu_type"].partition(",")[0].strip() == "host" and source.hv["kvm_flag"] == "disabled":
        yield from _each(("cpu_type", "kvm_flag"), "cpu_type host needs KVM, and kvm_flag is disabled")


def _memory(source: Source) -> Iterator[Finding]:
    low, high = source.be["minmem"], source.be["maxmem"]
    if high < 1:
        yield from _each(("beparams.maxmem",), "there must be some memory", "invalid-value")
    elif low < 1:
        yield from _each(("beparams.minmem",), "there must be some memory", "invalid-value")
    elif low > high:
        message = f"minmem {low} MiB is above maxmem, which is {high} MiB"
        yield from _each(("beparams.minmem", "beparams.maxmem"), message)


def _places(source: Source) -> Iterator[Finding]:
    """The buses have a place for each device."""
    hv, kind = source.hv, source.hv["disk_type"]
    drives = len(source.images)
    scsi = (len(source.disks) if kind.startswith("scsi-") else 0) + (drives if source.cdrom_bus == "scsi" else 0)
    limit = _SCSI_TARGETS[hv["scsi_controller_type"]]
    if scsi > limit:
        message = f"{scsi} devices on {hv['scsi_controller_type']}, which takes {limit}"
        yield from _each(("scsi_controller_type", "disk_type"), message, "no-place", "use virtio-scsi-pci")
    ide = (len(source.disks) if kind == "ide" else 0) + (drives if source.cdrom_bus == "ide" else 0)
    if ide > _IDE_DEVICES and not source.q35:
        message = f"{ide} disks and CD-ROM drives on IDE, which takes {_IDE_DEVICES}"
        yield from _each(("disk_type",), message, "no-place", "use paravirtual")
    pci = len(source.nics) + (len(source.disks) if kind == "paravirtual" else 0)
    free = _PCI_SLOTS - hv["kvm_pci_reservations"]
    if pci > free:
        message = f"{pci} disks and NICs need a PCI slot, and {free} are left"
        yield from _each(("kvm_pci_reservations",), message, "no-place", "reserve fewer slots")
    if hv["kvm_pci_reservations"] < 3:
        message = "slots 0 to 2 are the chipset's and the graphics card's in Ganeti; here only the chipset's is needed"
        yield Finding(code="unwise", path="hvparams.kvm_pci_reservations", message=message, severity=Severity.ADVICE)


_RULES: tuple[Rule, ...] = (
    _boot,
    _root,
    _security,
    _serial,
    _vnc,
    _spice,
    _port,
    _aio,
    _disk_type,
    _nic_type,
    _cdroms,
    _queues,
    _cpu,
    _memory,
    _places,
)
