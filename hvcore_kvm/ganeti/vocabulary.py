"""Words of Ganeti and the words here for the same thing, for both ways."""

from __future__ import annotations

DISK_BUS = {
    "paravirtual": "virtio-blk",
    "ide": "ide",
    "scsi-hd": "scsi",
    "scsi-block": "scsi-block",
    "scsi-generic": "scsi-generic",
}
"""Bus of a disk for each ``disk_type`` that makes disks; ``scsi-cd`` makes CD-ROM drives."""

DEAD_DISK_TYPES = ("scsi", "sd", "mtd", "pflash")
"""Disk types that are no device of any QEMU of today: nothing starts with them."""

DISK_TYPES = (*DISK_BUS, "scsi-cd", *DEAD_DISK_TYPES)

CDROM_BUS = {"ide": "ide", "paravirtual": "virtio-blk", "scsi-cd": "scsi"}
"""Bus of a CD-ROM drive for each ``cdrom_disk_type`` that works."""

INHERITED_CDROM_BUS = {**CDROM_BUS, "scsi-hd": "scsi", "scsi-block": "scsi", "scsi-generic": "scsi"}
"""Bus of a CD-ROM drive that follows ``disk_type``."""

CACHE = {"default": "writeback", "none": "none", "writeback": "writeback", "writethrough": "writethrough"}

SHARED_TEMPLATES = ("sharedfile", "gluster", "ext", "blockdev")
"""Templates whose disks several hosts reach: the host's page cache is never used for them."""

USERSPACE_TEMPLATES = ("rbd", "gluster", "ext")
"""Templates whose disks QEMU can reach by itself."""

TEMPLATES = ("plain", "drbd", "file", "sharedfile", "gluster", "rbd", "ext", "blockdev")

SCSI_CONTROLLER = {"lsi": "lsi", "virtio-scsi-pci": "virtio-scsi", "megasas": "megasas", "dc390": "am53c974"}

NIC_MODEL = {
    "paravirtual": "virtio-net",
    "e1000": "e1000",
    "rtl8139": "rtl8139",
    "pcnet": "pcnet",
    "ne2k_pci": "ne2k_pci",
    "i82551": "i82551",
    "i82557b": "i82557b",
    "i82559er": "i82559er",
}
DEAD_NIC_TYPE = "ne2k_isa"
"""An ISA card that Ganeti puts on the PCI bus: nothing starts with it."""

NIC_MODE = {"bridged": "bridged", "routed": "routed", "openvswitch": "openvswitch", "ext": "script"}

BOOT = {"disk": "disks", "cdrom": "cdroms", "network": "nics", "floppy": "floppy"}

ACCEL = {"enabled": "kvm", "disabled": "tcg", "": "auto"}

REBOOT = {"reboot": "reset", "exit": "shutdown"}

SPICE_IP_VERSION = {0: "any", 4: "ipv4", 6: "ipv6"}

SOUND = {"ac97": "ac97", "es1370": "es1370", "hda": "ich6", "sb16": "sb16", "virtio": "virtio"}
"""Sound card for each ``soundhw``; QEMU means the ICH6 controller by hda."""

UNPLACED_SOUND = ("adlib", "cs4231a", "gus", "pcspk", "all")
"""Sound cards that QEMU knows, or once knew, by this option, and that have no place here."""

USB_DEVICES = ("tablet", "mouse", "keyboard", "ccid")

UNPLACED_USB_DEVICES = ("audio", "braille", "wacom-tablet")
"""USB devices that QEMU makes by this option, and that have no place here."""

VGA = ("std", "cirrus", "vmware", "qxl", "virtio", "none")

UNPLACED_VGA = ("xenfb", "tcx", "cg3")
"""Graphics cards that QEMU knows by this option, for other machines than a PC."""

DEFAULT_CPU = "qemu64"
"""What QEMU takes on x86 without the option ``-cpu``."""

DEFAULT_MACHINE = "pc"
"""What Ganeti takes without a machine type."""

SPICE_TEXTS = {
    "spice_password_file": "password_file",
    "spice_tls_ciphers": "tls_ciphers",
    "spice_image_compression": "image_compression",
    "spice_jpeg_wan_compression": "jpeg_wan_compression",
    "spice_zlib_glz_wan_compression": "zlib_glz_wan_compression",
    "spice_streaming_video": "streaming_video",
}
"""Parameters of console type ``spice`` that hold the same text."""
