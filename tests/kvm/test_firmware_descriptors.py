"""UEFI firmware is found through descriptors: which one counts, and what is passed over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvcore_kvm.firmware import Firmware, find_firmware
from hvcore_kvm.parameters.machine import BootParameters

_Q35, _PC, _VIRT = "pc-q35-7.2", "pc-i440fx-7.2", "virt-7.2"
Describe = Callable[..., Path]


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """The directory of descriptors that goes before the other."""
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc"


@pytest.fixture
def usr(tmp_path: Path) -> Path:
    """The directory of descriptors that packages fill."""
    (tmp_path / "usr").mkdir()
    return tmp_path / "usr"


@pytest.fixture
def image(tmp_path: Path) -> Callable[[str], str]:
    """Makes an image file."""

    def make(name: str) -> str:
        (tmp_path / name).write_bytes(b"firmware")
        return str(tmp_path / name)

    return make


@pytest.fixture
def describe(image: Callable[[str], str]) -> Describe:
    """Writes a descriptor of plain x86 firmware, with some of it changed."""

    def write(directory: Path, name: str, *, code: str | None = None, **changes: Any) -> Path:
        mapping = {
            "device": "flash",
            "mode": "split",
            "executable": {"filename": code or image(f"{name}.code"), "format": "raw"},
            "nvram-template": {"filename": image(f"{name}.vars"), "format": "raw"},
            **changes.pop("mapping", {}),
        }
        content = {
            "description": "made up",
            "interface-types": ["uefi"],
            "mapping": {key: value for key, value in mapping.items() if value is not None},
            "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
            "features": ["acpi-s3", "verbose-dynamic"],
            "tags": [],
            **changes,
        }
        path = directory / f"{name}.json"
        path.write_text(json.dumps(content))
        return path

    return write


def _find(
    *directories: Path, wanted: str = "uefi", arch: str = "x86_64", machine: str = _Q35
) -> tuple[str | None, list[str]]:
    """Name of the code image that is found, and the codes of the findings."""
    boot = BootParameters(firmware=wanted)
    found, findings = find_firmware(boot, arch, machine, [str(directory) for directory in directories])
    return (Path(found.code).name if found else None), [finding.code for finding in findings]


_NONE = (None, ["no-firmware"])


def test_the_first_that_fits(etc: Path, usr: Path, describe: Describe) -> None:
    """Descriptors count in the order of their file names, over all directories."""
    describe(usr, "60-second")
    describe(usr, "50-first")
    describe(etc, "70-third")
    assert _find(etc, usr) == ("50-first.code", [])
    (usr / "50-first.json").unlink()
    assert _find(etc, usr) == ("60-second.code", [])
    (usr / "60-second.json").unlink()
    assert _find(etc, usr) == ("70-third.code", [])


def test_a_file_of_the_same_name_replaces_the_other(etc: Path, usr: Path, describe: Describe, tmp_path: Path) -> None:
    """The administrator's descriptor stands for the package's; an empty one hides it."""
    describe(usr, "50-ovmf")
    own = tmp_path / "own.code"
    own.write_bytes(b"own")
    describe(etc, "50-ovmf", code=str(own))
    assert _find(etc, usr) == ("own.code", [])
    assert _find(usr, etc) == ("50-ovmf.code", [])
    (etc / "50-ovmf.json").write_text("")
    assert _find(etc, usr) == _NONE


def test_it_is_for_architecture_and_machine(usr: Path, describe: Describe) -> None:
    """A descriptor counts for the machines its patterns match, of its architecture alone."""
    describe(usr, "50-x86", targets=[{"architecture": "x86_64", "machines": ["pc-q35-*"]}])
    describe(usr, "60-arm", targets=[{"architecture": "aarch64", "machines": ["virt-*"]}])
    assert _find(usr) == ("50-x86.code", [])
    assert _find(usr, machine=_PC) == _NONE
    assert _find(usr, arch="aarch64", machine=_VIRT) == ("60-arm.code", [])
    assert _find(usr, arch="aarch64", machine=_Q35) == _NONE


@pytest.mark.parametrize(
    "changes",
    [
        {"interface-types": ["bios"]},
        {"interface-types": []},
        {"mapping": {"device": "memory"}},
        {"mapping": {"device": "kernel"}},
        {"mapping": {"mode": "combined"}},
        {"mapping": {"mode": "stateless"}},
        {"mapping": {"nvram-template": None}},
        {"mapping": {"executable": None}},
        {"mapping": {"executable": {"filename": "/x", "format": "qcow2"}}},
        {"mapping": {"executable": "text"}},
        {"mapping": []},
        {"targets": []},
        {"targets": None},
        {"targets": [{"architecture": "x86_64"}]},
        {"features": None},
        {"features": ["requires-smm"]},
        {"features": ["secure-boot", "enrolled-keys", "requires-smm"]},
    ],
)
def test_what_is_passed_over(usr: Path, describe: Describe, changes: dict[str, Any]) -> None:
    """Firmware of another kind, or a descriptor that lacks something, is not used, and is no error."""
    mapping = changes.get("mapping")
    describe(usr, "50-other", **{**changes, "mapping": mapping if isinstance(mapping, dict) else {}})
    if isinstance(mapping, list):
        path = usr / "50-other.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "mapping": mapping}))
    assert _find(usr) == _NONE
    describe(usr, "60-right")
    assert _find(usr) == ("60-right.code", [])


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'"text"', b"7", b"\xff\xfe", b"{}", b'{"mapping": 1}', b"[" * 5000, b" " * 70000],
)
def test_a_damaged_descriptor_is_passed_over(usr: Path, describe: Describe, content: bytes) -> None:
    """One that cannot be read spoils nothing."""
    (usr / "10-damaged.json").write_bytes(content)
    describe(usr, "50-right")
    assert _find(usr) == ("50-right.code", [])


def test_only_json_files_count(usr: Path, describe: Describe) -> None:
    """Whatever else lies there does not, and directories that are not there do no harm."""
    describe(usr, "50-right").rename(usr / "50-right.json.bak")
    (usr / "60-directory.json").mkdir()
    assert _find(usr / "absent", usr) == _NONE


def test_images_that_are_not_there(usr: Path, describe: Describe) -> None:
    """A descriptor whose images are gone is passed over."""
    describe(usr, "50-gone", code="/nonexistent/code.fd")
    describe(usr, "60-right")
    assert _find(usr) == ("60-right.code", [])


def test_secure_boot(usr: Path, describe: Describe) -> None:
    """Secure Boot needs enrolled keys: without them, the firmware lets everything start."""
    describe(usr, "40-setup-mode", features=["secure-boot", "requires-smm"])
    assert _find(usr, wanted="uefi-secure") == _NONE
    assert _find(usr, wanted="uefi") == _NONE
    describe(usr, "50-secure", features=["secure-boot", "enrolled-keys", "requires-smm"])
    describe(usr, "60-plain")
    assert _find(usr, wanted="uefi-secure") == ("50-secure.code", [])
    assert _find(usr, wanted="uefi") == ("60-plain.code", [])


def test_without_descriptors(usr: Path) -> None:
    """What is missing is said, with the package that brings it."""
    boot = BootParameters(firmware="uefi")
    for arch, machine, package in (("x86_64", _Q35, "ovmf"), ("aarch64", _VIRT, "qemu-efi-aarch64")):
        found, findings = find_firmware(boot, arch, machine, [str(usr)])
        assert found is None
        assert [(finding.code, finding.path) for finding in findings] == [("no-firmware", "params.firmware")]
        assert package in (findings[0].hint or "")


def test_who_has_firmware_at_all(usr: Path, describe: Describe) -> None:
    """X86 begins with a BIOS; aarch64 with UEFI, unless a kernel is booted directly."""
    describe(usr, "50-arm", targets=[{"architecture": "aarch64", "machines": ["virt-*"]}])
    where = [str(usr)]
    assert find_firmware(BootParameters(), "x86_64", _Q35, where) == (None, [])
    assert find_firmware(BootParameters(firmware="bios"), "x86_64", _Q35, where) == (None, [])
    found, findings = find_firmware(BootParameters(), "aarch64", _VIRT, where)
    assert found is not None
    assert findings == []
    assert find_firmware(BootParameters(kernel="/vmlinuz"), "aarch64", _VIRT, where) == (None, [])


def test_named_images_need_no_descriptor(usr: Path, image: Callable[[str], str]) -> None:
    """Images that are named are taken as they are, and found to be missing each by itself."""
    code, template = image("own.code"), image("own.vars")
    boot = BootParameters(firmware="uefi-secure", firmware_code=code, firmware_vars_template=template)
    assert find_firmware(boot, "x86_64", _Q35, [str(usr)]) == (Firmware(code=code, template=template, secure=True), [])
    boot = BootParameters(firmware_code="/nonexistent/c", firmware_vars_template=str(usr))
    found, findings = find_firmware(boot, "x86_64", _Q35, [str(usr)])
    assert found is not None
    assert not found.secure
    assert [(finding.code, finding.path) for finding in findings] == [
        ("file-unusable", "params.firmware_code"),
        ("file-unusable", "params.firmware_vars_template"),
    ]


def _in_memory(describe: Describe, directory: Path, name: str, image: Callable[[str], str], *features: str) -> None:
    mapping = {"device": "memory", "filename": image(f"{name}.code"), "executable": None, "nvram-template": None}
    describe(directory, name, mapping={**mapping, "mode": None}, features=list(features))


@pytest.mark.parametrize(
    ("kind", "feature"), [("sev-snp", "amd-sev-snp"), ("tdx", "intel-tdx")], ids=["sev-snp", "tdx"]
)
def test_firmware_of_a_guest_without_flash(
    usr: Path, describe: Describe, image: Callable[[str], str], kind: str, feature: str
) -> None:
    """It is made for such guests, loaded into memory, and keeps no variables."""
    describe(usr, "10-flash", features=[feature])
    _in_memory(describe, usr, "20-other", image, "amd-sev")
    boot = BootParameters()
    found, findings = find_firmware(boot, "x86_64", _Q35, [str(usr)], confidential=kind)
    assert (found, [finding.code for finding in findings]) == _NONE
    assert feature in findings[0].message
    _in_memory(describe, usr, "30-right", image, feature)
    found, findings = find_firmware(boot, "x86_64", _Q35, [str(usr)], confidential=kind)
    assert findings == []
    assert found == Firmware(code=image("30-right.code"), kind="stateless")
    assert found.variables is None


def test_firmware_of_a_guest_with_encrypted_memory(usr: Path, describe: Describe) -> None:
    """It lies in flash, and says that it can."""
    describe(usr, "10-plain")
    describe(usr, "20-sev", features=["amd-sev"])
    found, _ = find_firmware(BootParameters(), "x86_64", _Q35, [str(usr)], confidential="sev")
    assert found is not None
    assert (Path(found.code).name, found.kind) == ("20-sev.code", "flash")
    assert find_firmware(BootParameters(), "x86_64", _Q35, [str(usr)], confidential="sev-es")[0] is None


def test_firmware_whose_variables_qemu_keeps(usr: Path, describe: Describe, image: Callable[[str], str]) -> None:
    """Only firmware that is made for it; and that is not taken where variables are in flash."""
    store = usr / "store"
    store.write_text('{"version": 2, "variables": []}')
    _in_memory(describe, usr, "20-store", image, "host-uefi-vars", "secure-boot")
    assert _find(usr) == _NONE
    for boot, secure, template, variables in (
        (BootParameters(uefi_vars_json=True), False, None, "uefi-vars.json"),
        (
            BootParameters(uefi_vars_json=True, firmware="uefi-secure", firmware_vars_template=str(store)),
            True,
            str(store),
            "uefi-vars-secure.json",
        ),
    ):
        found, findings = find_firmware(boot, "x86_64", _Q35, [str(usr)])
        assert findings == []
        assert found == Firmware(code=image("20-store.code"), template=template, secure=secure, kind="store")
        assert found.variables == variables
    describe(usr, "10-plain")
    assert _find(usr) == ("10-plain.code", [])
