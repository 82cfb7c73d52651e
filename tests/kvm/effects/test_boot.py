"""Parameters of what the guest boots take effect."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kvm_effect import Effect, File, Question, disk, needs, nic, of, proves, rows, type_of

from hvcore.guests import firmware_image

pytestmark = pytest.mark.qemu

_TOP = 1 << 32
# Pretended firmware: only where it lies in memory matters here, and no byte of it is run.
_CODE = b"code of a pretended firmware!" * 4 + bytes(65536 - 116)
_VARS = b"variables of the same" + bytes(8192 - 21)
_UEFI = {
    "firmware": "uefi",
    "firmware_code": File("code.fd", _CODE),
    "firmware_vars_template": File("vars.fd", _VARS),
}

_VARIABLE = {"name": "HvTest", "guid": "8be4df61-93ca-11d2-aa0d-00e098032b8c", "attr": 7, "data": "68656c6c6f"}
_STORE = json.dumps({"version": 2, "variables": [_VARIABLE]}).encode()


def _memory(address: int, size: int) -> Question:
    return lambda probe: probe.memory(address, size)


def _option(name: str) -> Question:
    """What the machine knows of how it is to boot."""
    return lambda probe: probe.get("/machine", "boot").get(name)


def _order(*devices: str) -> Question:
    """The boot indexes of devices: the lowest is tried first."""
    return lambda probe: [probe.get(device, "bootindex") for device in devices]


_DEVICES: dict[str, Any] = {"disks": [disk(0), {**disk(1), "name": "data"}], "nics": [nic(0)]}


def _booting(*order: str) -> dict[str, Any]:
    return {**_DEVICES, "params": {"cdroms": [{}], "boot": list(order)}}


EFFECTS = [
    Effect(
        given={"params": {"firmware_image": File("bios.rom", firmware_image())}},
        shows={"params.firmware_image": (_memory(_TOP - 4096, 4096), firmware_image()[-4096:])},
    ),
    Effect(
        given={"params": _UEFI},
        shows={
            "params.firmware_code": (_memory(_TOP - len(_CODE), 29), _CODE[:29]),
            "params.firmware_vars_template": (_memory(_TOP - len(_CODE) - len(_VARS), 21), _VARS[:21]),
        },
    ),
    Effect(
        given={"params": {"firmware": "uefi"}},
        shows={"params.firmware": (of("/machine", "pflash0"), "firmware-code")},
        needs=("ovmf",),
    ),
    Effect(
        given={"params": {"machine": "q35", "firmware": "uefi-secure"}},
        base={"params": {"machine": "q35", "firmware": "uefi"}},
        # Flash that only code in system management mode can write.
        shows={"params.firmware": (of("/machine/system.flash0", "secure"), True)},
        needs=("ovmf",),
    ),
    Effect(
        given={"params": {"uefi_vars_json": True, "firmware_code": File("code.fd", _CODE)}},
        shows={
            "params.uefi_vars_json": (type_of("uefi-vars0"), "uefi-vars-x64"),
            "params.firmware_code": (_memory(_TOP - len(_CODE), 29), _CODE[:29]),
        },
        needs=("qemu-10",),
    ),
    Effect(
        given={
            "params": {
                "uefi_vars_json": True,
                "firmware": "uefi-secure",
                "firmware_code": File("code.fd", _CODE),
                "firmware_vars_template": File("store.json", _STORE),
            }
        },
        base={"params": {"uefi_vars_json": True, "firmware_code": File("code.fd", _CODE)}},
        shows={"params.firmware": (of("uefi-vars0", "force-secure-boot"), True)},
        needs=("qemu-10",),
    ),
    Effect(
        given=_booting("nics", "data", "cdroms"),
        base=_booting("cdroms", "nics"),
        shows={"params.boot": (_order("nic0", "disk1", "cdrom0", "disk0"), [1, 2, 3, -1])},
    ),
    Effect(
        given=_booting("disks[1]", "disks"),
        base=_booting("disks"),
        shows={"params.boot": (_order("disk1", "disk0", "nic0"), [1, 2, -1])},
    ),
    Effect(
        given={"params": {"boot": ["floppy"], "floppy": File("floppy.img", size=1_474_560)}},
        base={"params": {"boot": [], "floppy": File("floppy.img", size=1_474_560)}},
        shows={"params.boot": (lambda probe: probe.get(probe.unattached("isa-fdc"), "bootindexA"), 1)},
    ),
    Effect(
        given={"params": {"boot_menu": True, "boot_splash": "2.5s", "boot_strict": False}},
        shows={
            "params.boot_menu": (_option("menu"), True),
            "params.boot_splash": (_option("splash-time"), 2500),
            "params.boot_strict": (_option("strict"), False),
        },
    ),
]


@pytest.mark.parametrize("effect", rows(EFFECTS))
def test_it_takes_effect(prove: Callable[[Effect], None], effect: Effect) -> None:
    """QEMU or the guest's memory says that the value holds, and that another one holds without it."""
    prove(effect)


def _device_tree(path: Path) -> None:
    """A device tree as QEMU makes it for this machine, with another name of the machine in it."""
    raw = path.with_suffix(".qemu")
    command = ["qemu-system-aarch64", "-display", "none", "-m", "64", "-machine", f"virt,dumpdtb={raw}"]
    subprocess.run(command, check=True, capture_output=True)
    content = raw.read_bytes()
    assert b"linux,dummy-virt" in content
    path.write_bytes(content.replace(b"linux,dummy-virt", b"hvcore,test-tree"))


@pytest.mark.skipif(bool(needs("qemu-system-aarch64")), reason="qemu-system-aarch64 is not installed")
@proves("params.dtb")
def test_device_tree(begin: Any) -> None:
    """The kernel finds the given device tree in memory instead of the one QEMU makes."""
    kernel = File("kernel", b"no kernel, but loaded as one" + bytes(4096))
    params = {"arch": "aarch64", "machine": "virt", "kernel": kernel}
    for more, here, gone in (
        ({"dtb": File("virt.dtb", make=_device_tree)}, b"hvcore,test-tree", b"linux,dummy-virt"),
        ({}, b"linux,dummy-virt", b"hvcore,test-tree"),
    ):
        with begin({"params": {**params, **more}}, f"tree{len(more)}") as probe:
            memory = probe.memory(0x4000_0000, 64 << 20)
        assert here in memory
        assert gone not in memory


@pytest.mark.skipif(bool(needs("ovmf")), reason="ovmf is not installed")
def test_uefi_variables_are_the_instances_own(begin: Any, host: Any) -> None:
    """UEFI variables begin as a copy of the template, survive stop and start, and are gone after a clean-up."""
    kept = host.directory / "data" / "kvm" / "instances" / "web1" / "firmware-vars.fd"
    with begin({"params": _UEFI}):
        assert kept.read_bytes() == _VARS
    with kept.open("r+b") as file:
        file.write(b"VARIABLES")
    with begin({"params": _UEFI}) as probe:
        assert probe.memory(_TOP - len(_CODE) - len(_VARS), 9) == b"VARIABLES"
    host.driver.cleanup_instance("web1")
    assert not kept.exists()


def _names(path: Path) -> set[str]:
    """The variables of a store in JSON."""
    return {variable["name"] for variable in json.loads(path.read_text())["variables"]}


@pytest.mark.qemu_versions(10, 999)
def test_a_store_of_uefi_variables_is_the_instances_own(begin: Any, host: Any) -> None:
    """It begins empty or as a template; what QEMU writes into it is there at the next start, until a clean-up."""
    kept = host.directory / "data" / "kvm" / "instances" / "web1" / "uefi-vars.json"
    params = {"uefi_vars_json": True, "firmware_code": File("code.fd", _CODE)}
    with begin({"params": params}) as probe:
        assert probe.descriptors("/uefi-vars.json") >= 1
        # Variables that every guest has.
        assert "CustomMode" in _names(kept)
    kept.write_bytes(_STORE)
    with begin({"params": params}) as probe:
        probe.qmp("system_reset")
        probe.event("RESET")
        assert _names(kept) > {"HvTest"}
    assert _names(kept) > {"HvTest"}
    host.driver.cleanup_instance("web1")
    assert not kept.exists()
    with begin({"params": {**params, "firmware_vars_template": File("store.json", _STORE)}}):
        assert _names(kept) > {"HvTest"}


@pytest.mark.qemu_versions(7, 9)
def test_a_qemu_without_a_store_of_uefi_variables(host: Any, resolve: Any) -> None:
    """The device it lacks is the one finding."""
    params = {"uefi_vars_json": True, "firmware_code": File("code.fd", _CODE)}
    (finding,) = host.driver.validate_parameters(resolve({"params": params}))
    assert (finding.code, finding.path) == ("unknown-device", "params.uefi_vars_json")
    assert "uefi-vars-x64" in finding.message


def test_a_store_that_qemu_would_abort_on(host: Any, resolve: Any) -> None:
    """It is found before QEMU sees it."""
    for content in (b"{garbage", b"[]", b"{}", b'{"variables": 1}', b"[" * 100_000):
        template = File("damaged.json", content)
        params = {"uefi_vars_json": True, "firmware_code": File("code.fd", _CODE), "firmware_vars_template": template}
        definition = resolve({"params": params})
        Path(definition["params"]["firmware_vars_template"]).write_bytes(content)
        paths = {finding.path for finding in host.driver.validate_parameters(definition)}
        assert "params.firmware_vars_template" in paths
