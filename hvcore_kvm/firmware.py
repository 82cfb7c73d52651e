"""UEFI firmware: found through QEMU's firmware descriptors (docs/interop/firmware.json of QEMU), never by file name."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs

from hvcore import Finding
from hvcore_kvm.parameters.confidential import WITHOUT_FLASH
from hvcore_kvm.parameters.machine import BootParameters

DIRECTORIES = ("/etc/qemu/firmware", "/usr/local/share/qemu/firmware", "/usr/share/qemu/firmware")
"""Where descriptors are; a file of the same name in an earlier one replaces those of the later ones."""

_LIMIT = 65536
_STORE_LIMIT = 4 << 20


_FEATURES = {"sev": "amd-sev", "sev-es": "amd-sev-es", "sev-snp": "amd-sev-snp", "tdx": "intel-tdx"}
"""The feature by which a descriptor says that firmware runs in a confidential guest."""

Kind = Literal["flash", "store", "stateless"]
"""Where UEFI variables are kept."""

_HOST_VARIABLES = "host-uefi-vars"


@attrs.frozen(kw_only=True)
class Firmware:
    """UEFI firmware.

    Attributes:
        code: image of its code.
        template: what an instance's variables begin as; ``None`` where they begin empty, or there are none.
        secure: it enforces Secure Boot.
        kind: where variables are kept: ``flash``, which the guest writes (with Secure Boot on x86 in SMM only), a
            ``store`` of QEMU's, or nowhere (``stateless``). Code of the latter two is loaded into memory.
    """

    code: str
    template: str | None = None
    secure: bool = False
    kind: Kind = "flash"

    @property
    def variables(self) -> str | None:
        """Name of the instance's UEFI variables among what is kept.

        Secure Boot has its own: it holds only as long as its keys are among the variables.
        """
        secure = "-secure" if self.secure else ""
        return {"flash": f"firmware-vars{secure}.fd", "store": f"uefi-vars{secure}.json"}.get(self.kind)


@attrs.frozen(kw_only=True)
class _Wanted:
    arch: str
    machine: str
    secure: bool
    kind: Kind
    feature: str | None


def find_firmware(
    boot: BootParameters,
    arch: str,
    machine: str,
    directories: Sequence[str] = DIRECTORIES,
    *,
    confidential: str = "none",
) -> tuple[Firmware | None, list[Finding]]:
    """The UEFI firmware of an instance; ``None`` when it has none.

    Args:
        boot: what was asked for.
        arch: architecture of the guest, in QEMU's words.
        machine: versioned machine type.
        directories: where descriptors are, the most important first.
        confidential: who keeps the host out of the guest, as ``params.confidential`` says it.
    """
    wanted = boot.firmware
    if wanted is None and arch == "aarch64" and boot.kernel is None and boot.firmware_image is None:
        wanted = "uefi"
    if wanted is None and (boot.uefi_vars_json or confidential != "none"):
        wanted = "uefi"
    # Flash cannot be written by a guest whose state the host does not see.
    kind: Kind = "store" if boot.uefi_vars_json else "stateless" if confidential in WITHOUT_FLASH else "flash"
    template = boot.firmware_vars_template
    if boot.firmware_code is not None and (template is not None or kind != "flash"):
        firmware = Firmware(code=boot.firmware_code, template=template, secure=wanted == "uefi-secure", kind=kind)
        return firmware, list(_files(firmware))
    if wanted not in ("uefi", "uefi-secure"):
        return None, []
    sought = _Wanted(
        arch=arch,
        machine=machine,
        secure=wanted == "uefi-secure",
        kind=kind,
        feature=_HOST_VARIABLES if kind == "store" else _FEATURES.get(confidential),
    )
    for descriptor in _descriptors(directories):
        found = _matching(descriptor, sought)
        if found is not None and not list(_files(found)):
            if kind == "store":
                found = attrs.evolve(found, template=template)
            return found, list(_files(found))
    with_feature = f" with {sought.feature}" if sought.feature is not None else ""
    message = f"no descriptor in {', '.join(directories)} offers {wanted} firmware for {arch} {machine}{with_feature}"
    hint = "install it: apt-get install " + ("qemu-efi-aarch64" if arch == "aarch64" else "ovmf")
    if sought.feature is not None:
        hint = "name an image that has it in params.firmware_code"
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


def _matching(descriptor: Mapping[str, Any], wanted: _Wanted) -> Firmware | None:
    try:
        if "uefi" not in descriptor["interface-types"]:
            return None
        targets = [target for target in descriptor["targets"] if target["architecture"] == wanted.arch]
        if not any(fnmatch.fnmatch(wanted.machine, pattern) for target in targets for pattern in target["machines"]):
            return None
        features = set(descriptor["features"])
        if wanted.feature is not None and wanted.feature not in features:
            return None
        mapping = descriptor["mapping"]
        return _in_flash(mapping, features, wanted) if wanted.kind == "flash" else _in_memory(mapping, wanted)
    except (KeyError, TypeError):
        return None


def _in_flash(mapping: Mapping[str, Any], features: set[str], wanted: _Wanted) -> Firmware | None:
    if mapping["device"] != "flash" or mapping.get("mode", "split") != "split" or _HOST_VARIABLES in features:
        return None
    # Secure Boot is enforced only where keys are enrolled; without them, it stays in setup mode.
    if wanted.secure != ("secure-boot" in features and "enrolled-keys" in features):
        return None
    if not wanted.secure and "requires-smm" in features:
        return None
    code, template = mapping["executable"], mapping["nvram-template"]
    if code["format"] != "raw" or template["format"] != "raw":
        return None
    return Firmware(code=str(code["filename"]), template=str(template["filename"]), secure=wanted.secure)


def _in_memory(mapping: Mapping[str, Any], wanted: _Wanted) -> Firmware | None:
    if mapping["device"] != "memory":
        return None
    return Firmware(code=str(mapping["filename"]), secure=wanted.secure, kind=wanted.kind)


def _files(firmware: Firmware) -> Iterable[Finding]:
    for name, path in (("firmware_code", firmware.code), ("firmware_vars_template", firmware.template)):
        if path is not None and (not os.path.isfile(path) or not os.access(path, os.R_OK)):
            message = f"{path} is not a file that this user can read"
            yield Finding(code="file-unusable", path=f"params.{name}", message=message)
        elif path is not None and name == "firmware_vars_template" and firmware.kind == "store":
            yield from _store(path)


def _store(path: str) -> Iterable[Finding]:
    """QEMU aborts on a store that it cannot read."""
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(_STORE_LIMIT + 1)[:_STORE_LIMIT])
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, Mapping) or not isinstance(content.get("variables"), list):
        message = f"{path} is not a store of UEFI variables: JSON with a list variables"
        yield Finding(code="file-unusable", path="params.firmware_vars_template", message=message)
