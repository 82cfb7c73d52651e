"""Parameters of the machine take effect."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kvm_effect import PATIENCE, Effect, File, Probe, of, proves, rows, type_of

from hvcore import Deadline, InstanceState
from hvcore_kvm.qmp import QmpClient

pytestmark = pytest.mark.qemu

_PROGRAM = b"""#!/bin/sh
export TZ=EAST-7
exec qemu-system-x86_64 "$@"
"""


def _first_slot(probe: Probe) -> int:
    """The lowest PCI slot of a device of the definition."""
    devices = [device for bus in probe.qmp("query-pci") for device in bus["devices"]]
    return min(device["slot"] for device in devices if device["qdev_id"])


def _unattached_type(kind: str) -> Callable[[Probe], bool]:
    return lambda probe: kind in probe.children("/machine/unattached").values()


def _hours_ahead(probe: Probe) -> int:
    """How far the guest's clock is ahead of Coordinated Universal Time."""
    found = probe.get("/machine", "rtc-time")
    seen = datetime(
        found["tm_year"] + 1900,
        found["tm_mon"] + 1,
        found["tm_mday"],
        found["tm_hour"],
        found["tm_min"],
        found["tm_sec"],
        tzinfo=UTC,
    )
    return round((seen - datetime.fromtimestamp(time.time(), UTC)).total_seconds() / 3600)


EFFECTS = [
    Effect(
        given={"params": {"machine": "q35", "hotplug_ports": 2}},
        base={"params": {"machine": "q35"}},
        shows={
            "params.hotplug_ports": (
                lambda probe: sum(kind == "pcie-root-port" for kind in probe.children("/machine/peripheral").values()),
                2,
            )
        },
    ),
    Effect(
        given={"params": {"qemu": File("qemu", _PROGRAM, mode=0o700)}},
        shows={"params.qemu": (lambda probe: "TZ=EAST-7" in probe.proc("environ").split("\0"), True)},
    ),
    Effect(
        given={"params": {"arch": "aarch64", "machine": "virt"}},
        shows={"params.arch": (lambda probe: probe.qmp("query-target")["arch"], "aarch64")},
        needs=("qemu-system-aarch64",),
    ),
    Effect(
        given={"params": {"machine": "q35"}},
        shows={"params.machine": (lambda probe: probe.get("/machine", "type").startswith("pc-q35-"), True)},
    ),
    Effect(
        given={"params": {"machine": "microvm"}},
        shows={"params.machine": (type_of("/machine"), "microvm-machine")},
    ),
    Effect(
        given={"params": {"accel": "kvm", "cpu_features": {"arch-capabilities": False}}},
        shows={"params.accel": (lambda probe: probe.qmp("query-kvm")["enabled"], True)},
        needs=("kvm",),
    ),
    Effect(
        given={"params": {"acpi": False, "hpet": True, "panic_device": False, "rtc_driftfix": True}},
        shows={
            "params.acpi": (of("/machine", "acpi"), "off"),
            "params.hpet": (_unattached_type("hpet"), True),
            "params.panic_device": (lambda probe: "panic0" in probe.children("/machine/peripheral"), False),
            "params.rtc_driftfix": (
                lambda probe: probe.get(probe.unattached("mc146818rtc"), "lost_tick_policy"),
                "slew",
            ),
        },
    ),
    Effect(
        given={"params": {"machine": "q35", "iommu": "intel"}},
        base={"params": {"machine": "q35"}},
        shows={"params.iommu": (type_of("iommu0"), "intel-iommu")},
    ),
    Effect(
        given={"params": {"machine": "q35", "iommu": "virtio"}},
        base={"params": {"machine": "q35"}},
        shows={"params.iommu": (type_of("iommu0"), "virtio-iommu-pci")},
    ),
    Effect(
        given={"params": {"arch": "aarch64", "machine": "virt", "iommu": "smmuv3"}},
        base={"params": {"arch": "aarch64", "machine": "virt"}},
        shows={"params.iommu": (lambda probe: "arm-smmuv3" in probe.children("/machine/unattached").values(), True)},
        needs=("qemu-system-aarch64",),
    ),
    Effect(given={"params": {"pci_reservations": 12}}, shows={"params.pci_reservations": (_first_slot, 12)}),
    Effect(
        given={"params": {"vmgenid": True}},
        shows={
            "params.vmgenid": (
                lambda probe: bool(re.fullmatch(r"[0-9a-f-]{36}", probe.qmp("query-vm-generation-id")["guid"])),
                True,
            )
        },
    ),
    Effect(
        # The host's local time is that of the environment, which the program of this instance sets.
        given={"params": {"qemu": File("qemu", _PROGRAM, mode=0o700), "rtc_base": "localtime"}},
        base={"params": {"qemu": File("qemu", _PROGRAM, mode=0o700)}},
        shows={"params.rtc_base": (_hours_ahead, 7)},
    ),
    Effect(
        given={"params": {"sandbox": False}},
        shows={"params.sandbox": (lambda probe: (probe.status("Seccomp:"), probe.status("NoNewPrivs")), ("0", "0"))},
    ),
    Effect(
        given={"params": {"chroot": True}},
        shows={"params.chroot": (lambda probe: Path(f"/proc/{probe.pid}/root").readlink().name, "root")},
        needs=("root",),
    ),
    Effect(
        given={"params": {"extra_args": "-device 'virtio-rng-pci,id=mine' -object rng-builtin,id=more"}},
        shows={"params.extra_args": (type_of("mine"), "virtio-rng-pci")},
    ),
]


@pytest.mark.parametrize("effect", rows(EFFECTS))
def test_it_takes_effect(prove: Callable[[Effect], None], effect: Effect) -> None:
    """QEMU or the kernel says that the value holds, and that another one holds without it."""
    prove(effect)


def _watched(host: Any, **params: Any) -> tuple[Any, QmpClient]:
    """A running firmware guest, its console, and a connection to its monitor."""
    console = host.start(host.instance(params=params))
    path = host.directory / "state" / "kvm" / "instances" / "web1" / "query"
    return console, QmpClient.connect(str(path), Deadline.after(PATIENCE))


def _await(client: QmpClient, name: str) -> dict[str, Any]:
    return client.wait_event(lambda message: message["event"] == name, Deadline.after(PATIENCE))["data"]


@proves("params.on_reboot")
@pytest.mark.parametrize("behaviour", ["reset", "shutdown"])
def test_on_reboot(host: Any, behaviour: str) -> None:
    """A restart from inside the guest restarts it, or ends the instance."""
    console, client = _watched(host, on_reboot=behaviour)
    with client:
        console.send(b"r")
        if behaviour == "reset":
            assert _await(client, "RESET")["reason"] == "guest-reset"
            console.expect(b"ready")
        else:
            assert _await(client, "SHUTDOWN")["reason"] == "guest-reset"
            host.wait_end()


@proves("params.on_panic")
@pytest.mark.parametrize(
    ("behaviour", "action", "state"),
    [
        ("pause", "pause", InstanceState.PANICKED),
        ("none", "run", InstanceState.RUNNING),
        ("shutdown", "poweroff", InstanceState.PANICKED),
    ],
)
def test_on_panic(host: Any, behaviour: str, action: str, state: InstanceState) -> None:
    """A panic stops the guest, is only told, or ends the instance."""
    console, client = _watched(host, on_panic=behaviour)
    with client:
        console.send(b"p")
        assert _await(client, "GUEST_PANICKED")["action"] == action
        if behaviour == "shutdown":
            _await(client, "SHUTDOWN")
    if behaviour == "shutdown":
        host.wait_end()
    info = host.driver.get_instance_info("web1")
    assert info.state is state
    assert (info.pid is None) == (behaviour == "shutdown")
