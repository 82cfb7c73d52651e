"""Guests that the host cannot look into: what goes with them, what a host lacks for them, and what QEMU is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import Deadline
from hvcore_kvm import confidential
from hvcore_kvm.accelerator import Accelerator, Choice
from hvcore_kvm.capabilities import QemuCapabilities, capabilities_of
from hvcore_kvm.kvm_device import supported_cpuid
from hvcore_kvm.parameters.confidential import ConfidentialParameters, policy_of

KINDS = ("sev", "sev-es", "sev-snp", "tdx")
_KVM = Choice(accelerator=Accelerator.KVM, reason="made up")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hvcore.Driver]:
    roots = {f"{kind}_directory": str(tmp_path_factory.mktemp(kind)) for kind in ("state", "data", "cache")}
    with hvcore.load_driver("kvm", roots) as loaded:
        yield loaded


def _problems(driver: hvcore.Driver, **params: Any) -> set[tuple[str, str]]:
    given = {"name": "web1", "memory": "1GiB", "params": {"machine": "q35", **params}}
    return {(finding.code, finding.path) for finding in driver.check_parameter_syntax(given)}


@pytest.mark.parametrize("kind", KINDS)
def test_little_is_needed(driver: hvcore.Driver, kind: str) -> None:
    """One word, on q35."""
    assert _problems(driver, confidential=kind) == set()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"accel": "tcg"}, "params.accel"),
        ({"firmware": "bios"}, "params.firmware"),
        ({"firmware": "uefi-secure"}, "params.firmware"),
        ({"firmware_image": "/srv/bios"}, "params.firmware_image"),
        ({"uefi_vars_json": True}, "params.uefi_vars_json"),
        ({"memory_merge": True}, "params.memory_merge"),
        ({"memory_min": "512MiB"}, "params.memory_min"),
        ({"memory_slots": 2, "memory_max": "2GiB"}, "params.memory_slots"),
        ({"virtio_mem": "1GiB", "memory_max": "2GiB"}, "params.virtio_mem"),
    ],
)
def test_what_does_not_go_with_it(driver: hvcore.Driver, kind: str, given: dict[str, Any], where: str) -> None:
    """Exactly that is found."""
    assert _problems(driver, confidential=kind, **given) == {("contradiction", where)}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"confidential": "sev", "machine": "pc"}, {("not-on-machine", "params.confidential")}),
        ({"confidential": "sev", "vcpus_max": 4}, set()),
        ({"confidential": "sev-es", "vcpus_max": 4}, {("contradiction", "params.vcpus_max")}),
        ({"confidential": "tdx", "confidential_policy": 1}, {("contradiction", "params.confidential_policy")}),
        ({"confidential_policy": 1}, {("contradiction", "params.confidential_policy")}),
        ({"confidential_kernel_hashes": True}, {("contradiction", "params.confidential_kernel_hashes")}),
        ({"confidential": "sev", "confidential_policy": 5}, {("contradiction", "params.confidential_policy")}),
        ({"confidential": "sev-es", "confidential_policy": 1}, {("contradiction", "params.confidential_policy")}),
        (
            {"confidential": "sev-es", "confidential_policy": 2**32 + 4},
            {("invalid-value", "params.confidential_policy")},
        ),
        ({"confidential": "sev-snp", "confidential_policy": 1}, {("contradiction", "params.confidential_policy")}),
        ({"confidential": "sev-snp", "confidential_policy": 0x30000}, set()),
        (
            {"confidential": "sev", "confidential_kernel_hashes": True},
            {("needs-kernel", "params.confidential_kernel_hashes")},
        ),
        ({"confidential": "sev", "firmware_code": "/srv/code"}, {("incomplete", "params.firmware_code")}),
        ({"confidential": "sev-snp", "firmware_code": "/srv/code"}, set()),
        (
            {"confidential": "tdx", "firmware_code": "/srv/code", "firmware_vars_template": "/srv/vars"},
            {("contradiction", "params.firmware_vars_template")},
        ),
        ({"confidential": "sgx"}, {("not-a-choice", "params.confidential")}),
    ],
)
def test_rules(driver: hvcore.Driver, given: dict[str, Any], expected: set[tuple[str, str]]) -> None:
    """Each kind has its own."""
    assert _problems(driver, **given) == expected


def test_the_policy_of_sev_es_has_its_bit() -> None:
    """QEMU's own choice is that of SEV."""
    assert policy_of(ConfidentialParameters(confidential="sev-es")) == 5
    assert policy_of(ConfidentialParameters(confidential="sev")) is None
    assert policy_of(ConfidentialParameters(confidential="sev-es", confidential_policy=7)) == 7


@pytest.fixture
def installed(tmp_path: Path) -> QemuCapabilities:
    return capabilities_of("qemu-system-x86_64", str(tmp_path), Deadline.after(60))


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], None]:
    """Writes switches of kernel modules as another host has them."""
    (tmp_path / "sev").touch()
    monkeypatch.setattr(confidential, "_MODULES", str(tmp_path))
    monkeypatch.setattr(confidential, "_DEVICE", str(tmp_path / "sev"))
    monkeypatch.setattr(confidential, "supported_cpuid", lambda leaf: (0, 47, 0, 0))

    def write(name: str, value: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)

    return write


def _host(kind: str, capabilities: QemuCapabilities, choice: Choice = _KVM) -> list[tuple[str, str]]:
    given = ConfidentialParameters(confidential=kind)
    return [(f.code, f.message) for f in confidential.check_confidential(given, capabilities, choice)]


@pytest.mark.qemu
def test_what_qemu_lacks(installed: QemuCapabilities, switches: Callable[[str, str], None]) -> None:
    """The object is named, with the version that has it."""
    switches("kvm_amd/parameters/sev_snp", "Y")
    switches("kvm_intel/parameters/tdx", "Y")
    if "sev-snp-guest" not in installed.objects:
        ((code, message),) = _host("sev-snp", installed)
        assert (code, "sev-snp-guest" in message) == ("unknown-object", True)
    newer = attrs.evolve(installed, objects=(*installed.objects, "sev-snp-guest", "tdx-guest"))
    assert [_host(kind, newer) for kind in ("sev-snp", "tdx")] == [[], []]


@pytest.mark.qemu
@pytest.mark.parametrize("kind", ["sev", "sev-es"])
def test_what_a_host_lacks(
    installed: QemuCapabilities, switches: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """One thing at a time, in words that say what to look at."""
    name = f"kvm_amd/parameters/{kind.replace('-', '_')}"
    assert "there is no" in _host(kind, installed)[0][1]
    switches(name, "N\n")
    assert "says 'N'" in _host(kind, installed)[0][1]
    switches(name, "Y\n")
    assert _host(kind, installed) == []
    emulated = Choice(accelerator=Accelerator.TCG, reason="made up")
    assert [code for code, _ in _host(kind, installed, emulated)] == ["contradiction"]
    monkeypatch.setattr(confidential, "supported_cpuid", lambda leaf: (0, 0, 0, 0))
    assert "address bit" in _host(kind, installed)[0][1]
    monkeypatch.setattr(confidential, "_DEVICE", "/nonexistent/sev")
    assert "/nonexistent/sev" in _host(kind, installed)[0][1]


@pytest.mark.kvm
def test_kvm_is_asked_for_a_leaf_of_cpuid() -> None:
    """What it says of the maker is what the kernel says of it; a leaf that is not there is none."""
    found = supported_cpuid(0)
    assert found is not None
    maker = b"".join(found[index].to_bytes(4, "little") for index in (1, 3, 2)).decode()
    assert f": {maker}\n" in Path("/proc/cpuinfo").read_text()
    assert supported_cpuid(0x12345678) is None
    assert supported_cpuid(0, path=os.devnull) is None
    assert supported_cpuid(0, path="/nonexistent/kvm") is None
