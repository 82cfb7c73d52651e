"""What a host needs to run a guest that it cannot look into; reads only."""

from __future__ import annotations

import os
from collections.abc import Iterator

from hvcore import Finding
from hvcore_kvm.accelerator import Accelerator, Choice
from hvcore_kvm.capabilities import QemuCapabilities
from hvcore_kvm.kvm_device import supported_cpuid
from hvcore_kvm.parameters.confidential import ConfidentialParameters

OBJECTS = {
    # kind: QEMU's object, and the version that brought it
    "sev": ("sev-guest", "2.12"),
    "sev-es": ("sev-guest", "2.12"),
    "sev-snp": ("sev-snp-guest", "9.1"),
    "tdx": ("tdx-guest", "10.1"),
}
"""QEMU's object for each kind."""

_MODULES = "/sys/module"
_SWITCHES = {
    "sev": "kvm_amd/parameters/sev",
    "sev-es": "kvm_amd/parameters/sev_es",
    "sev-snp": "kvm_amd/parameters/sev_snp",
    "tdx": "kvm_intel/parameters/tdx",
}
_DEVICE = "/dev/sev"
_MEMORY_ENCRYPTION = 0x8000001F  # AMD64 Architecture Programmer's Manual, volume 3, appendix E.4.17


def encryption_bit() -> int | None:
    """The bit of a physical address that says whether memory is encrypted (SEV); ``None`` where there is none."""
    found = supported_cpuid(_MEMORY_ENCRYPTION)
    return (found[1] & 0x3F) or None if found is not None else None


def check_confidential(
    given: ConfidentialParameters, capabilities: QemuCapabilities, choice: Choice
) -> Iterator[Finding]:
    """Find what this host, or this QEMU, lacks for a confidential guest."""
    kind, where = given.confidential, "params.confidential"
    if kind == "none":
        return
    name, since = OBJECTS[kind]
    if name not in capabilities.objects:
        message = f"QEMU {capabilities.version_text} has no object type {name}"
        yield Finding(code="unknown-object", path=where, message=message, hint=f"QEMU {since} and newer have it")
    lacking = _lacking(kind)
    if lacking is not None:
        yield Finding(code="no-device", path=where, message=f"this host cannot run {kind} guests: {lacking}")
    elif choice.accelerator is not Accelerator.KVM:
        message = f"needs KVM, and the accelerator is {choice.accelerator.value} ({choice.reason})"
        yield Finding(code="contradiction", path=where, message=message)


def _lacking(kind: str) -> str | None:
    path = f"{_MODULES}/{_SWITCHES[kind]}"
    try:
        with open(path, encoding="ascii") as file:
            value = file.read().strip()
    except OSError:
        return f"there is no {path}"
    if value not in ("Y", "1"):
        return f"{path} says {value[:20]!r}; it has to be switched on in the host's firmware and kernel"
    if kind == "tdx":
        return None
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return f"there is no {_DEVICE} that this user can open"
    return None if encryption_bit() is not None else "KVM does not say which address bit encrypts"
