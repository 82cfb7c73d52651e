"""Every name of Ganeti's KVM parameters: its type, its default, its limits, and the place of its value here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from hvcore import checks
from hvcore_kvm.extra_arguments import check_extra_arguments
from hvcore_kvm.ganeti import grammar
from hvcore_kvm.ganeti.coercion import Kind
from hvcore_kvm.ganeti.vocabulary import DEAD_NIC_TYPE, DISK_TYPES, NIC_MODEL, SCSI_CONTROLLER

HOST_APPLICATION = "the host application's own"
"""Place of values that no driver needs."""


@attrs.frozen(kw_only=True)
class Known:
    """One name of Ganeti's.

    Attributes:
        name: the name.
        kind: type of its value.
        default: what holds when it is not given.
        place: where the value stands here.
        how: how values translate, one sentence or two.
        choices: the allowed values; an optional one may also be empty.
        required: it cannot be empty.
        check: what is wrong with a value that is not empty.
    """

    name: str
    kind: Kind
    default: Any
    place: str
    how: str
    choices: tuple[Any, ...] = ()
    required: bool = False
    check: checks.Check | None = None


def _known(
    name: str,
    kind: Kind,
    default: Any,
    place: str,
    how: str,
    *,
    choices: tuple[Any, ...] = (),
    required: bool = False,
    check: checks.Check | None = None,
) -> Known:
    return Known(
        name=name, kind=kind, default=default, place=place, how=how, choices=choices, required=required, check=check
    )


SERIAL_SPEEDS = (
    *(75, 110, 300, 600, 1200, 1800, 2400, 4800, 9600, 14400, 19200, 28800, 38400, 57600, 115200),
    *(230400, 345600, 460800),
)
"""Speeds of ``serial_speed``; only looked at with a serial console."""

_SAME = "The same value."
_COUNT = checks.at_least(0)
_WAN = ("auto", "never", "always")


def _reservations(value: int) -> str | None:
    return "leaves no slot for any device" if value == 32 else checks.between(0, 31)(value)


_MACHINE = (
    _known("acpi", "bool", True, "params.acpi", _SAME),
    _known(
        "kvm_path",
        "text",
        "",
        "params.qemu",
        "The same path; the driver's setting when not given.",
        required=True,
        check=grammar.path,
    ),
    _known(
        "kvm_flag",
        "text",
        "",
        "params.accel",
        "enabled is kvm, disabled is tcg. Empty leaves it to the program, which emulates unless it is a wrapper; it "
        "becomes auto.",
        choices=("enabled", "disabled"),
    ),
    _known(
        "machine_version",
        "text",
        "",
        "params.machine",
        "The same type; pc when empty. An alias is resolved at the first start and stays.",
    ),
    _known(
        "kvm_pci_reservations",
        "int",
        12,
        "params.pci_reservations",
        "The same number, from 1 to 30; 0 becomes 1 and 31 becomes 30. 32 leaves no slot, and is refused.",
        check=_reservations,
    ),
    _known(
        "reboot_behavior",
        "text",
        "reboot",
        "params.on_reboot",
        "reboot is reset, exit is shutdown.",
        choices=("reboot", "exit"),
        required=True,
    ),
    _known("use_localtime", "bool", False, "params.rtc_base", "true is localtime, false is utc."),
    _known("use_chroot", "bool", False, "params.chroot", _SAME),
    _known(
        "kvm_extra",
        "text",
        "",
        "params.extra_args",
        "The same words. Options that the driver owns are refused, and the finding names the parameter to use.",
        check=check_extra_arguments,
    ),
    _known(
        "user_shutdown",
        "bool",
        False,
        HOST_APPLICATION,
        "Nothing needs to be switched on: it is always known why an instance ended.",
    ),
)

_BOOT = (
    _known(
        "boot_order",
        "text",
        "disk",
        "params.boot",
        "disk is disks, cdrom is cdroms, network is nics, floppy is floppy; boot_strict is off, as in Ganeti. Left out "
        "with a kernel, as Ganeti ignores it then.",
        choices=("floppy", "cdrom", "disk", "network"),
        required=True,
    ),
    _known("kernel_path", "text", "", "params.kernel", _SAME, check=grammar.path),
    _known("initrd_path", "text", "", "params.initrd", "The same path; only with a kernel.", check=grammar.path),
    _known(
        "kernel_args",
        "text",
        "ro",
        "params.cmdline",
        "The middle of the command line: root=ROOT_PATH KERNEL_ARGS console=ttyS0,SPEED. Only with a kernel.",
    ),
    _known(
        "root_path",
        "maybe-text",
        "/dev/vda1",
        "params.cmdline",
        "root= at the beginning of the command line; left out when empty. Only with a kernel.",
    ),
    _known(
        "cdrom_image_path",
        "text",
        "",
        "params.cdroms",
        "The first drive: path, or url for http:// and https://.",
        check=grammar.image,
    ),
    _known(
        "cdrom2_image_path",
        "text",
        "",
        "params.cdroms",
        "The next drive: path, or url for http:// and https://.",
        check=grammar.image,
    ),
    _known(
        "cdrom_disk_type",
        "text",
        "",
        "params.cdroms[].bus",
        "ide is ide (sata on q35), paravirtual is virtio-blk, scsi-cd is scsi. Empty follows disk_type, where every "
        "SCSI type means scsi.",
        choices=DISK_TYPES,
    ),
    _known("floppy_image_path", "text", "", "params.floppy", "The same path.", check=grammar.path),
)

_CPU = (
    _known(
        "cpu_type",
        "text",
        "",
        "params.cpu_model",
        "The model; what follows it (+x, -y, x=on, x=off) becomes cpu_features, enforce becomes cpu_enforce, which is "
        "off otherwise. Empty is qemu64, QEMU's own default.",
    ),
    _known("cpu_cores", "int", 0, "params.topology.cores", "The same number; not given when 0.", check=_COUNT),
    _known("cpu_threads", "int", 0, "params.topology.threads", "The same number; not given when 0.", check=_COUNT),
    _known("cpu_sockets", "int", 0, "params.topology.sockets", "The same number; not given when 0.", check=_COUNT),
    _known("cpu_mask", "text", "all", "params.cpu_pin", "The same mask; not given when all.", check=grammar.mask),
    _known(
        "mem_path",
        "text",
        "",
        "params.memory_path",
        "The same directory, with memory_backend file and memory_prealloc.",
        check=grammar.path,
    ),
)

_STORAGE = (
    _known(
        "disk_type",
        "text",
        "paravirtual",
        "disks[].params.bus",
        "paravirtual is virtio-blk, ide is ide (sata on q35), scsi-hd is scsi, scsi-block and scsi-generic are the "
        "same. scsi-cd makes CD-ROM drives behind those of the images. scsi, sd, mtd and pflash start nowhere, and are "
        "refused.",
        choices=DISK_TYPES,
        required=True,
    ),
    _known(
        "disk_cache",
        "text",
        "default",
        "disks[].params.cache",
        "The same mode; default is writeback. Always none with the templates sharedfile, gluster, ext and blockdev.",
        choices=("default", "none", "writeback", "writethrough"),
        required=True,
    ),
    _known("disk_aio", "text", "threads", "disks[].params.aio", _SAME, choices=("threads", "native", "io_uring")),
    _known("disk_discard", "text", "ignore", "disks[].params.discard", _SAME, choices=("ignore", "unmap")),
    _known(
        "scsi_controller_type",
        "text",
        "lsi",
        "params.scsi_controller",
        "virtio-scsi-pci is virtio-scsi, dc390 is am53c974, lsi and megasas are the same. A controller without a "
        "device is not made.",
        choices=tuple(SCSI_CONTROLLER),
        required=True,
    ),
)

_NETWORK = (
    _known(
        "nic_type",
        "text",
        "paravirtual",
        "nics[].params.model",
        "paravirtual is virtio-net, the others are the same. ne2k_isa starts nowhere, and is refused.",
        choices=("paravirtual", DEAD_NIC_TYPE, *(name for name in NIC_MODEL if name != "paravirtual")),
        required=True,
    ),
    _known("vhost_net", "bool", True, "nics[].params.vhost", "The same value; only for paravirtual NICs."),
    _known(
        "virtio_net_queues",
        "int",
        1,
        "nics[].params.queues",
        "The same number; only for paravirtual NICs with vhost_net.",
        check=checks.between(1, 32),
    ),
    _known("vnet_hdr", "bool", True, "nics[].params.vnet_hdr", "The same value; only for paravirtual NICs."),
)

_DEVICES = (
    _known(
        "vga",
        "text",
        "",
        "params.display_device",
        "The same card; qxl with SPICE, else std, when empty: Ganeti's guests always have one.",
    ),
    _known("keymap", "text", "", "params.keymap", _SAME),
    _known(
        "usb_mouse",
        "text",
        "",
        "params.pointer",
        "The same device. Empty is tablet with VNC, else none.",
        choices=("mouse", "tablet"),
    ),
    _known(
        "usb_devices",
        "text",
        "",
        "params.usb",
        "One record for each of tablet, mouse, keyboard and ccid, separated by commas or blanks; usb_controller is "
        "uhci, as in Ganeti.",
    ),
    _known(
        "soundhw",
        "text",
        "",
        "params.sound",
        "hda is ich6, the controller QEMU means by it; ac97, es1370, sb16 and virtio are the same.",
    ),
    _known("use_guest_agent", "bool", False, "params.guest_agent", _SAME),
    _known("serial_console", "bool", True, "consoles", "true adds the console type serial."),
    _known(
        "serial_speed",
        "int",
        38400,
        "params.cmdline",
        "The speed in console=ttyS0,SPEED at the end of the command line; only with a kernel and a serial console.",
    ),
)

_VNC = (
    _known(
        "vnc_bind_address",
        "text",
        "",
        "params.vnc.bind_address",
        "Adds the console type vnc. The same address or interface; a directory is left out, and VNC then listens on a "
        "socket in the instance's directory.",
    ),
    _known("vnc_tls", "bool", False, "params.vnc.tls", "true is anon, or x509 with vnc_x509_path; false is none."),
    _known("vnc_x509_path", "text", "", "params.vnc.x509_path", "The same path.", check=grammar.path),
    _known("vnc_x509_verify", "bool", False, "params.vnc.x509_verify", _SAME),
    _known("vnc_password_file", "text", "", "params.vnc.password_file", "The same path.", check=grammar.path),
)

_SPICE = (
    _known(
        "spice_bind",
        "text",
        "",
        "params.spice.bind_address",
        "Adds the console type spice. The same address or interface.",
        check=grammar.spice_address,
    ),
    _known(
        "spice_ip_version",
        "int",
        0,
        "params.spice.ip_version",
        "0 is any, 4 is ipv4, 6 is ipv6.",
        choices=(0, 4, 6),
    ),
    _known("spice_password_file", "text", "", "params.spice.password_file", "The same path.", check=grammar.path),
    _known(
        "spice_use_tls",
        "bool",
        False,
        "params.spice.tls",
        "The same value. Ganeti takes the cluster's certificate; say where it is with spice_x509_path.",
    ),
    _known("spice_tls_ciphers", "text", "HIGH:-DES:-3DES:-EXPORT:-DH", "params.spice.tls_ciphers", "The same text."),
    _known(
        "spice_image_compression",
        "text",
        "",
        "params.spice.image_compression",
        _SAME,
        choices=("auto_glz", "auto_lz", "quic", "glz", "lz", "off"),
    ),
    _known("spice_jpeg_wan_compression", "text", "", "params.spice.jpeg_wan_compression", _SAME, choices=_WAN),
    _known("spice_zlib_glz_wan_compression", "text", "", "params.spice.zlib_glz_wan_compression", _SAME, choices=_WAN),
    _known(
        "spice_streaming_video",
        "text",
        "",
        "params.spice.streaming_video",
        _SAME,
        choices=("off", "all", "filter"),
    ),
    _known("spice_playback_compression", "bool", True, "params.spice.playback_compression", _SAME),
    _known("spice_use_vdagent", "bool", True, "params.spice.agent", _SAME),
)

_SECURITY = (
    _known(
        "security_model",
        "text",
        "none",
        "security_model",
        _SAME,
        choices=("none", "user", "pool"),
        required=True,
    ),
    _known("security_domain", "text", "", "params.user.name", "The same user; only with security_model user."),
)

_MIGRATION = (
    _known(
        "migration_bandwidth",
        "int",
        32,
        "MigrationPolicy.max_bandwidth",
        "MiB a second become bytes a second; 0 is no limit.",
        required=True,
        check=_COUNT,
    ),
    _known(
        "migration_downtime",
        "int",
        30,
        "MigrationPolicy.downtime_limit",
        "Milliseconds become seconds.",
        required=True,
        check=_COUNT,
    ),
    _known(
        "migration_mode",
        "text",
        "live",
        "MigrationPolicy.live",
        "live is true, non-live is false.",
        choices=("live", "non-live"),
        required=True,
    ),
    _known(
        "migration_port",
        "int",
        8102,
        "Translation.migration_port",
        "The same port; nothing needs it here, the target chooses a free one.",
        required=True,
        check=checks.port_number,
    ),
    _known(
        "migration_caps",
        "text",
        "",
        "Translation.migration_capabilities",
        "The names, split at the colons. postcopy-ram and auto-converge also become on_no_convergence postcopy and "
        "throttle, and postcopy after two passes and auto_converge; multifd, postcopy-preempt and "
        "pause-before-switchover have a place of their own as well.",
    ),
)

HYPERVISOR: Mapping[str, Known] = {
    known.name: known
    for known in sorted(
        (
            *_MACHINE,
            *_BOOT,
            *_CPU,
            *_STORAGE,
            *_NETWORK,
            *_DEVICES,
            *_VNC,
            *_SPICE,
            *_SECURITY,
            *_MIGRATION,
        ),
        key=lambda known: known.name,
    )
}
"""The hypervisor parameters, ``hvparams``."""

BACKEND: Mapping[str, Known] = {
    known.name: known
    for known in (
        _known("maxmem", "size", 128, "memory", "MiB become bytes.", required=True),
        _known(
            "minmem",
            "size",
            128,
            "params.memory_min",
            "MiB become bytes; not given when it equals maxmem.",
            required=True,
        ),
        _known("memory", "size", None, "memory", "The old name: stands for maxmem and minmem, and wins over both."),
        _known("vcpus", "int", 1, "vcpus", "The same number.", required=True, check=checks.between(1, 4096)),
        _known("auto_balance", "bool", True, HOST_APPLICATION, "About placement."),
        _known("always_failover", "bool", False, HOST_APPLICATION, "About what is done instead of a migration."),
        _known("spindle_use", "int", 1, HOST_APPLICATION, "About placement.", check=_COUNT),
    )
}
"""The backend parameters, ``beparams``."""


def hypervisor_defaults() -> dict[str, Any]:
    """Every hypervisor parameter with Ganeti's own default."""
    return {known.name: known.default for known in HYPERVISOR.values()}


def backend_defaults() -> dict[str, Any]:
    """Every backend parameter with Ganeti's own default, without the old name ``memory``."""
    return {known.name: known.default for known in BACKEND.values() if known.name != "memory"}
