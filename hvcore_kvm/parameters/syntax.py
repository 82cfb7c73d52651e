"""Checks of single values that belong to QEMU's world; pure."""

from __future__ import annotations

import re

from hvcore import checks
from hvcore_kvm.affinity import parse_mask

_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-")
_PCI_ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_BOOT = re.compile(r"disks|cdroms|nics|floppy|(disks|cdroms|nics)\[[0-9]{1,4}\]")
_WWN = re.compile(r"0x[0-9a-f]{16}")
_FW_CFG = re.compile(r"opt/[A-Za-z0-9][A-Za-z0-9._/+-]{0,50}")


def qemu_word(value: str) -> str | None:
    """A name of QEMU: letters, digits and ``. _ + -``, not beginning with a hyphen, 64 characters at most."""
    if not 0 < len(value) <= 64 or value.startswith("-") or any(c not in _WORD for c in value):
        return f"{value[:64]!r} is not a name of QEMU: letters, digits, '.', '_', '+' and '-'"
    return None


def object_name(value: str) -> str | None:
    """A name that becomes part of the id of a QEMU object: letters, digits and ``. _ -``, 40 characters at most."""
    if not 0 < len(value) <= 40 or not value[0].isalnum() or any(c not in _WORD - {"+"} for c in value):
        return f"{value[:40]!r} is not a name: a letter or digit, then letters, digits, '.', '_' and '-'"
    return None


def disk_serial(value: str) -> str | None:
    """A disk's serial number: printable ASCII without blanks or commas, 20 characters at most (virtio-blk's limit)."""
    if not 0 < len(value) <= 20 or not value.isascii() or not value.isprintable() or set(value) & set(" ,"):
        return f"{value[:40]!r} is not a serial number: at most 20 printable ASCII characters, no blank or comma"
    return None


def world_wide_name(value: str) -> str | None:
    """A 64-bit world wide name, such as ``0x5000c50015ea71ad``."""
    return None if _WWN.fullmatch(value) else f"{value[:40]!r} is not 0x and sixteen lower-case hexadecimal digits"


def pci_address(value: str) -> str | None:
    """A PCI device of the host, as ``DOMAIN:BUS:SLOT.FUNCTION``."""
    return None if _PCI_ADDRESS.fullmatch(value) else f"{value[:40]!r} is not a PCI address such as 0000:01:00.0"


def cpu_mask(value: str) -> str | None:
    """Host CPUs: elements joined by colons, each ``all`` or numbers and ranges joined by commas."""
    try:
        parse_mask(value)
    except ValueError as error:
        return str(error)
    return None


def single_cpu_mask(value: str) -> str | None:
    """A mask of one element."""
    problem = cpu_mask(value)
    if problem is None and ":" in value:
        return f"{value[:40]!r} has several elements, and takes one"
    return problem


def boot_entry(value: str) -> str | None:
    """What to boot from: a kind of device, or one of them by its place or name."""
    if _BOOT.fullmatch(value) or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,62}", value):
        return None
    return f"{value[:60]!r} is none of disks, cdroms, nics, floppy, disks[0], cdroms[0], nics[0] or a device's name"


def power_of_two(low: int, high: int) -> checks.Check:
    """A power of two between two limits, both included."""

    def check(value: int) -> str | None:
        if low <= value <= high and value & (value - 1) == 0:
            return None
        return f"{value} is not a power of two from {low} to {high}"

    return check


def fw_cfg_name(value: str) -> str | None:
    """A firmware configuration name in the range QEMU leaves to users (docs/specs/fw_cfg: ``opt/``)."""
    return None if _FW_CFG.fullmatch(value) else f"{value[:60]!r} is not a name below opt/, at most 55 characters"


def share_tag(value: str) -> str | None:
    """A virtiofs tag: 1 to 35 bytes of printable ASCII without blanks or commas."""
    if not 0 < len(value) <= 35 or not value.isascii() or not value.isprintable() or set(value) & set(" ,"):
        return f"{value[:40]!r} is not a tag: at most 35 printable ASCII characters, no blank or comma"
    return None
