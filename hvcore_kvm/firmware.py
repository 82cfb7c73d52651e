"""UEFI firmware: found through QEMU's firmware descriptors (docs/interop/firmware.json of QEMU), never by file name."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from hvcore import Finding
from hvcore_kvm.parameters.machine import BootParameters

DIRECTORIES = ("/etc/qemu/firmware", "/usr/local/share/qemu/firmware", "/usr/share/qemu/firmware")
"""Where descriptors are; a file of the same name in an earlier one replaces those of the later ones."""

_LIMIT = 65536


@attrs.frozen(kw_only=True)
class Firmware:
    """UEFI firmware.

    Attributes:
        code: image of its code.
        template: image that an instance's variables begin as.
        secure: it enforces Secure Boot, and needs SMM on x86.
    """

    code: str
    template: str
    secure: bool

    @property
    def variables(self) -> str:
        """Name of the instance's UEFI variables among what is kept.

        Secure Boot has its own: it holds only as long as its keys are among the variables.
        """
        return "firmware-vars-secure.fd" if self.secure else "firmware-vars.fd"


def find_firmware(
    boot: BootParameters, arch: str, machine: str, directories: Sequence[str] = DIRECTORIES
) -> tuple[Firmware | None, list[Finding]]:
    """The UEFI firmware of an instance; ``None`` when it has none.

    Args:
        boot: what was asked for.
        arch: architecture of the guest, in QEMU's words.
        machine: versioned machine type.
        directories: where descriptors are, the most important first.
    """
    wanted = boot.firmware
    if wanted is None and arch == "aarch64" and boot.kernel is None and boot.firmware_image is None:
        wanted = "uefi"
    if boot.firmware_code is not None and boot.firmware_vars_template is not None:
        firmware = Firmware(
            code=boot.firmware_code, template=boot.firmware_vars_template, secure=wanted == "uefi-secure"
        )
        return firmware, list(_files(firmware))
    if wanted not in ("uefi", "uefi-secure"):
        return None, []
    secure = wanted == "uefi-secure"
    for descriptor in _descriptors(directories):
        found = _matching(descriptor, arch, machine, secure)
        if found is not None and not list(_files(found)):
            return found, []
    message = f"no descriptor in {', '.join(directories)} offers {wanted} firmware for {arch} {machine}"
    hint = "install it: apt-get install " + ("qemu-efi-aarch64" if arch == "aarch64" else "ovmf")
    return None, [Finding(code="no-firmware", path="params.firmware", message=message, hint=hint)]


def _descriptors(directories: Iterable[str]) -> Iterable[Mapping[str, Any]]:
    files: dict[str, str] = {}
    for directory in reversed(tuple(directories)):
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        files |= {name: os.path.join(directory, name) for name in names if name.endswith(".json")}
    for _, path in sorted(files.items()):
        try:
            with open(path, encoding="utf-8") as file:
                content = json.loads(file.read(_LIMIT))
        except (OSError, ValueError, RecursionError):
            continue  # an empty file hides the one of the same name behind it
        if isinstance(content, Mapping):
            yield content


def _matching(descriptor: Mapping[str, Any], arch: str, machine: str, secure: bool) -> Firmware | None:
    try:
        mapping = descriptor["mapping"]
        if "uefi" not in descriptor["interface-types"] or mapping["device"] != "flash":
            return None
        if mapping.get("mode", "split") != "split":
            return None
        targets = [target for target in descriptor["targets"] if target["architecture"] == arch]
        if not any(fnmatch.fnmatch(machine, pattern) for target in targets for pattern in target["machines"]):
            return None
        features = set(descriptor["features"])
        # Secure Boot is enforced only where keys are enrolled; without them, it stays in setup mode.
        if secure != ("secure-boot" in features and "enrolled-keys" in features):
            return None
        if not secure and "requires-smm" in features:
            return None
        code, template = mapping["executable"], mapping["nvram-template"]
        if code["format"] != "raw" or template["format"] != "raw":
            return None
        return Firmware(code=str(code["filename"]), template=str(template["filename"]), secure=secure)
    except (KeyError, TypeError):
        return None


def _files(firmware: Firmware) -> Iterable[Finding]:
    for name, path in (("firmware_code", firmware.code), ("firmware_vars_template", firmware.template)):
        if not os.path.isfile(path) or not os.access(path, os.R_OK):
            message = f"{path} is not a file that this user can read"
            yield Finding(code="file-unusable", path=f"params.{name}", message=message)
