"""Parameters for hardware that a developer's machine lacks: the check says so, and the plan is right without it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from kvm_effect import File, nic

from hvcore_kvm import accelerator, confidential, device_checks, kvm_device
from hvcore_kvm.hardware import devices as hardware_devices

pytestmark = pytest.mark.qemu


@attrs.frozen(kw_only=True)
class Lacking:
    """A definition for hardware that is probably not here.

    Attributes:
        parameters: those it uses.
        why: why the effect cannot be asked for here.
        given: the definition.
        finding: code and path of the one thing found where the hardware is missing; ``None`` if nothing checks it.
        plan: type of the device, and the properties it must have in the plan once the hardware seems to be there.
    """

    parameters: tuple[str, ...]
    why: str
    given: dict[str, Any]
    finding: tuple[str, str] | None
    plan: tuple[str, dict[str, Any]]
    there: Callable[[], bool] = lambda: False


_ADDRESS = "0000:3b:00.1"

HARDWARE = [
    Lacking(
        parameters=("params.vsock", "params.vsock_cid"),
        why="needs /dev/vhost-vsock",
        given={"params": {"vsock": True, "vsock_cid": 77}},
        finding=("no-device", "params.vsock"),
        plan=("vhost-vsock-pci", {"guest-cid": 77}),
        there=lambda: os.path.exists("/dev/vhost-vsock"),
    ),
    Lacking(
        parameters=("params.pci_passthrough", "params.pci_passthrough[].address", "params.pci_passthrough[].rom"),
        why="needs a PCI device that belongs to vfio-pci, and an IOMMU",
        given={"params": {"pci_passthrough": [{"address": _ADDRESS, "rom": False}]}},
        finding=("no-device", "params.pci_passthrough[0].address"),
        plan=("vfio-pci", {"host": _ADDRESS, "rombar": 0}),
        there=lambda: os.path.exists(f"/sys/bus/pci/devices/{_ADDRESS}"),
    ),
    Lacking(
        parameters=("params.usb[].vendor_id", "params.usb[].product_id"),
        why="needs a USB device",
        given={"params": {"usb": [{"type": "host", "vendor_id": 0x1D6B, "product_id": 0x0104}]}},
        finding=("no-device", "params.usb[0]"),
        plan=("usb-host", {"vendorid": 0x1D6B, "productid": 0x0104}),
        there=lambda: os.path.exists("/dev/bus/usb"),
    ),
    Lacking(
        parameters=("params.usb[].host_bus", "params.usb[].host_address"),
        why="needs a USB device",
        given={"params": {"usb": [{"type": "host", "host_bus": 3, "host_address": 9}]}},
        finding=("no-device", "params.usb[0]"),
        plan=("usb-host", {"hostbus": 3, "hostaddr": 9}),
        there=lambda: os.path.exists("/dev/bus/usb"),
    ),
    Lacking(
        parameters=("params.usb[].host_port",),
        why="needs a USB device",
        given={"params": {"usb": [{"type": "host", "host_bus": 3, "host_port": "1.4"}]}},
        finding=("no-device", "params.usb[0]"),
        plan=("usb-host", {"hostbus": 3, "hostport": "1.4"}),
        there=lambda: os.path.exists("/dev/bus/usb"),
    ),
    Lacking(
        parameters=("params.confidential", "params.confidential_policy", "params.confidential_kernel_hashes"),
        why="needs a processor of AMD with SEV",
        given={
            "params": {
                "machine": "q35",
                "accel": "auto",
                "confidential": "sev",
                "confidential_policy": 3,
                "confidential_kernel_hashes": True,
                "kernel": File("kernel", b"no kernel"),
                "firmware_code": File("code.fd", bytes(65536)),
                "firmware_vars_template": File("vars.fd", bytes(8192)),
            }
        },
        finding=("no-device", "params.confidential"),
        plan=("sev-guest", {"cbitpos": 51, "reduced-phys-bits": 1, "policy": 3, "kernel-hashes": True}),
        there=lambda: os.path.exists("/dev/sev"),
    ),
    *(
        Lacking(
            parameters=(f"{where}.failover",),
            why="needs a PCI device that belongs to vfio-pci, and an IOMMU",
            given={
                "nics": [{**nic(0), "params": {} if where == "params.nic" else {"failover": _ADDRESS}}],
                "params": {
                    "machine": "q35",
                    "pci_passthrough": [{"address": _ADDRESS}],
                    "nic": {"failover": _ADDRESS} if where == "params.nic" else {},
                },
            },
            finding=("no-device", "params.pci_passthrough[0].address"),
            plan=("virtio-net-pci", {"failover": True}),
            there=lambda: os.path.exists(f"/sys/bus/pci/devices/{_ADDRESS}"),
        )
        for where in ("nics[].params", "params.nic")
    ),
    Lacking(
        parameters=("disks[].params.bus",),
        why="needs a SCSI device of the host; any character device does for the plan",
        given={"disks": [{"path": "/dev/null", "format": "raw", "params": {"bus": "scsi-generic"}}]},
        finding=None,
        plan=("scsi-generic", {"bus": "scsi0.0", "serial": None}),
    ),
]


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Paths under which all of it seems to be there."""
    node = tmp_path / "node"
    node.touch()
    for module in (device_checks, hardware_devices):
        monkeypatch.setattr(module, "VHOST_VSOCK", str(node))
    group = tmp_path / "groups" / "7"
    (group / "devices").mkdir(parents=True)
    device = tmp_path / "pci" / _ADDRESS
    device.mkdir(parents=True)
    (device / "iommu_group").symlink_to(group)
    (device / "driver").symlink_to(tmp_path / "vfio-pci")
    (group / "devices" / _ADDRESS).symlink_to(device)
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "7").touch()
    switches = tmp_path / "module" / "kvm_amd" / "parameters"
    switches.mkdir(parents=True)
    for name in ("sev", "sev_es", "sev_snp"):
        (switches / name).write_text("Y\n")
    monkeypatch.setattr(confidential, "_MODULES", str(tmp_path / "module"))
    monkeypatch.setattr(confidential, "_DEVICE", str(node))
    # Memory encryption with bit 51 (leaf 0x8000001f of CPUID).
    monkeypatch.setattr(confidential, "supported_cpuid", lambda leaf: (0x1F, 51 | 5 << 6, 509, 100))
    monkeypatch.setattr(
        accelerator, "probe_kvm", lambda: kvm_device.KvmVerdict(level=kvm_device.KvmLevel.FULL, reason="pretended")
    )
    monkeypatch.setattr(device_checks, "_PCI", str(tmp_path / "pci"))
    monkeypatch.setattr(device_checks, "_VFIO", str(tmp_path / "vfio"))
    real = os.path.isdir
    monkeypatch.setattr(device_checks.os.path, "isdir", lambda path: path == "/dev/bus/usb" or real(path))


def _title(lacking: Lacking) -> str:
    return ",".join(lacking.parameters)


@pytest.mark.parametrize(
    "lacking",
    [
        pytest.param(row, id=_title(row), marks=[pytest.mark.skip(reason="this host has it")] if row.there() else [])
        for row in HARDWARE
        if row.finding is not None
    ],
)
def test_missing_hardware_is_the_one_thing_found(host: Any, resolve: Callable[..., Any], lacking: Lacking) -> None:
    """The definition is right, and the host is told to lack exactly this."""
    definition = resolve(lacking.given)
    host.driver.check_parameter_syntax(definition)
    findings = host.driver.validate_parameters(definition)
    assert [(finding.code, finding.path) for finding in findings] == [lacking.finding]


@pytest.mark.parametrize("lacking", HARDWARE, ids=_title)
def test_the_plan_uses_it(host: Any, resolve: Callable[..., Any], pretended: None, lacking: Lacking) -> None:
    """Where the hardware is there, the device of the plan has what the parameters say."""
    kind, wanted = lacking.plan
    plan = host.driver.plan_start(resolve(lacking.given))
    keys = {"device": "driver", "object": "qom-type"}
    devices = [o.value for o in plan.options if o.name in keys and o.value.get(keys[o.name]) == kind]
    assert len(devices) == 1
    assert {name: devices[0].get(name) for name in wanted} == wanted


_PAIR = {
    "nics": [nic(0), nic(1, failover=_ADDRESS)],
    "params": {"machine": "q35", "pci_passthrough": [{"address": _ADDRESS, "rom": False}]},
}


def test_the_partner_of_a_nic_comes_after_it(host: Any, resolve: Callable[..., Any], pretended: None) -> None:
    """It names the NIC, and sits on a port of its own, from which it can be unplugged."""
    plan = host.driver.plan_start(resolve(_PAIR))
    devices = [option.value for option in plan.options if option.name == "device"]
    order = [device["driver"] for device in devices]
    assert order.index("vfio-pci") > max(index for index, kind in enumerate(order) if kind == "virtio-net-pci")
    (partner,) = (device for device in devices if device["driver"] == "vfio-pci")
    port = next(device for device in devices if device["id"] == partner["bus"])
    ident = next(device["id"] for device in devices if device["id"].startswith("nic-e0000001"))
    assert partner == {
        "driver": "vfio-pci",
        "id": "host0",
        "bus": "host0-port",
        "host": _ADDRESS,
        "rombar": 0,
        "failover_pair_id": ident,
    }
    assert (port["driver"], port["bus"]) == ("pcie-root-port", "pcie.0")


def test_qemu_keeps_the_partner_from_a_guest_that_does_not_know_pairs(
    begin: Any, pretended: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another network card in its place, for which no hardware is needed."""
    monkeypatch.setattr(hardware_devices, "passthrough", lambda device: ("e1000e", {}))
    with begin(_PAIR) as probe:
        assert (probe.get("nic0", "failover"), probe.get("nic1", "failover")) == (False, True)
        there = probe.children("/machine/peripheral")
        assert "host0-port" in there
        # As long as the guest has not said that it knows the pair.
        assert "host0" not in there


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"nics": [nic(0, failover="0000:00:00.1")], "params": _PAIR["params"]}, "no-such-device"),
        ({"nics": [nic(0, failover=_ADDRESS), nic(1, failover=_ADDRESS)], "params": _PAIR["params"]}, "repeated-value"),
        ({"nics": [nic(0, failover=_ADDRESS, model="e1000")], "params": _PAIR["params"]}, "contradiction"),
        ({"nics": [nic(0, failover=_ADDRESS)], "params": {**_PAIR["params"], "machine": "pc"}}, "not-on-machine"),
        ({"nics": [nic(0, failover="3b:00.1")], "params": _PAIR["params"]}, "invalid-value"),
    ],
)
def test_pairs_that_are_none(host: Any, resolve: Callable[..., Any], given: Any, expected: str) -> None:
    """Each is found at the NIC."""
    ((code, path),) = ((f.code, f.path) for f in host.driver.check_parameter_syntax(resolve(given)))
    assert code == expected
    assert path.endswith(".params.failover")
