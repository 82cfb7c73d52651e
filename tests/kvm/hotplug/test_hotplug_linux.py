"""A Linux guest sees what is added, uses it, and lets go of it."""

from __future__ import annotations

import os
from typing import Any

import pytest

import hvcore
from hvcore import Disk, Nic

pytestmark = [pytest.mark.qemu, pytest.mark.linux]

ROOT = os.geteuid() == 0
MODELS = ["none", "confined"] if ROOT else ["none"]
# Taps are named by the uuid, and several test processes run side by side.
DISK = f"dd000000-0000-4000-8000-{os.getpid():011x}1"
SECOND = f"dd000000-0000-4000-8000-{os.getpid():011x}2"
NIC = f"ee000000-0000-4000-8000-{os.getpid():012x}"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_disks_and_nics_come_and_go(
    host: Any, boot: Any, whole: Any, bridge: str, address: Any, machine: str, model: str
) -> None:
    """Each is named by the guest's kernel, written and read or pinged through, let go of, and nothing is left."""
    shell = boot(machine, security_model=model)
    before = whole()
    disks = [
        Disk(uuid=DISK, path=host.raw_disk("hot.raw", 4 << 20).path, format="raw"),
        Disk(uuid=SECOND, path=host.qcow2_disk("hot.qcow2").path, format="qcow2"),
    ]
    for index, disk in enumerate(disks):
        os.chmod(disk.path, 0o600)
        assert host.driver.verify_hotplug_support("web1", "add", disk) == hvcore.HotplugSupport(supported=True)
        added = host.driver.hot_add_device("web1", disk)
        assert (added.device, added.done) == (disk.uuid, True)
        name = "ab"[index]
        shell.wait(f"[ -b /dev/vd{name} ]")
        text = f"written to {name}"
        found = shell.run(
            f"echo '{text}' >/tmp/t; dd if=/tmp/t of=/dev/vd{name} conv=notrunc,fsync 2>/dev/null; "
            f"echo 3 >/proc/sys/vm/drop_caches; head -n 1 /dev/vd{name}"
        )
        assert found == text
    with open(disks[0].path, "rb") as file:
        assert file.read(12) == b"written to a"
    nic = Nic(uuid=NIC, mode="bridged", link=bridge)
    assert host.driver.hot_add_device("web1", nic).done
    shell.wait("[ -d /sys/class/net/eth0 ]")
    shell.run(f"ip address add {address(2)}/30 dev eth0; ip link set eth0 up")
    assert "1 packets received" in shell.run(f"ping -c 1 -W 10 {address(1)}")
    plan = host.driver.plan_start(hvcore.Instance(**{**_as_it_was(before), "disks": disks, "nics": [nic]}))
    assert plan.changes == ()
    for device, gone in (
        (DISK, "[ ! -b /dev/vda ]"),
        (disks[1].uuid, "[ ! -b /dev/vdb ]"),
        (NIC, "[ ! -d /sys/class/net/eth0 ]"),
    ):
        removed = host.driver.hot_del_device("web1", device, timeout=60)
        assert (removed.device, removed.done) == (device, True)
        shell.wait(gone)
    assert whole() == before


def _as_it_was(whole: Any) -> dict[str, Any]:
    record = {key: value for key, value in whole.record.items() if value is not None}
    return {key: record[key] for key in ("name", "uuid", "memory", "params", "security_model")}


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_the_same_places_after_a_cold_start(host: Any, boot: Any, machine: str) -> None:
    """A device that was added has the same name in the guest when it is there from the beginning."""
    where = "for d in /sys/block/vd* /sys/class/net/eth*; do readlink $d; done | grep -o '[^/]*/virtio' | sort"
    first = Disk(uuid=SECOND, path=host.raw_disk("first.raw").path, format="raw")
    hot = Disk(uuid=DISK, path=host.raw_disk("hot.raw").path, format="raw")
    nic = Nic(uuid=NIC)
    shell = boot(machine, disks=[first])
    host.driver.hot_add_device("web1", nic)
    host.driver.hot_add_device("web1", hot)
    shell.wait("[ -b /dev/vdb ] && [ -d /sys/class/net/eth0 ]")
    before = shell.run(where)
    host.driver.stop_instance("web1", force=True)
    shell = boot(machine, disks=[first, hot], nics=[nic])
    assert shell.run(where) == before
    assert len(before.splitlines()) == 3


def test_scsi_and_nvme(host: Any, boot: Any, whole: Any) -> None:
    """Disks on other buses come and go too."""
    cold = Disk(path=host.raw_disk("cold.raw").path, format="raw", params={"bus": "scsi"})
    shell = boot("q35", disks=[cold])
    before = whole()
    for bus, name in (("scsi", "sdb"), ("nvme", "nvme0n1")):
        disk = Disk(uuid=DISK, path=host.raw_disk(f"{bus}.raw").path, format="raw", params={"bus": bus})
        host.driver.hot_add_device("web1", disk)
        shell.wait(f"[ -b /dev/{name} ]")
        assert host.driver.hot_del_device("web1", DISK, timeout=60).done
        shell.wait(f"[ ! -b /dev/{name} ]")
    assert whole() == before


def test_changing_a_nic_without_unplugging_it(host: Any, boot: Any, bridge: str, address: Any) -> None:
    """Its link goes down and up, its limit changes, and the guest keeps the very same device."""
    import subprocess

    nic = Nic(uuid=NIC, mode="bridged", link=bridge)
    shell = boot("q35", nics=[nic])
    shell.run(f"ip address add {address(2)}/30 dev eth0; ip link set eth0 up; echo kept >/tmp/kept")
    shell.wait("[ $(cat /sys/class/net/eth0/carrier) = 1 ]")
    index = shell.run("cat /sys/class/net/eth0/ifindex")
    down = Nic(uuid=NIC, mode="bridged", link=bridge, params={"link_up": False})
    assert "kept its device" in host.driver.hot_mod_device("web1", down).detail
    shell.wait("[ $(cat /sys/class/net/eth0/carrier) = 0 ]")
    limited = Nic(uuid=NIC, mode="bridged", link=bridge, params={"bandwidth_limit": 1 << 20})
    host.driver.hot_mod_device("web1", limited)
    shell.wait("[ $(cat /sys/class/net/eth0/carrier) = 1 ]")
    tap = next(name for name in os.listdir(f"/sys/class/net/{bridge}/brif"))
    queues = subprocess.run(["tc", "qdisc", "show", "dev", tap], capture_output=True, text=True, check=True).stdout
    assert "tbf" in queues
    host.driver.hot_mod_device("web1", nic)
    queues = subprocess.run(["tc", "qdisc", "show", "dev", tap], capture_output=True, text=True, check=True).stdout
    assert "tbf" not in queues
    assert "1 packets received" in shell.run(f"ping -c 1 -W 10 {address(1)}")
    assert shell.run("cat /sys/class/net/eth0/ifindex") == index


def test_changing_what_needs_another_plug(host: Any, boot: Any) -> None:
    """A change of the card itself is an unplug and a plug at the same place."""
    shell = boot("q35", nics=[Nic(uuid=NIC, mac="52:54:00:00:00:01")])
    before = shell.run("readlink /sys/class/net/eth0 | grep -o '[^/]*/virtio'")
    # QEMU tells the guest of an MTU when a card comes, and of none afterwards.
    changed = Nic(uuid=NIC, mac="52:54:00:00:00:02", params={"mtu": 1300})
    assert host.driver.hot_mod_device("web1", changed, timeout=60).done
    shell.wait("[ -d /sys/class/net/eth0 ] && grep -q 00:00:02 /sys/class/net/eth0/address")
    assert shell.run("cat /sys/class/net/eth0/mtu") == "1300"
    assert shell.run("readlink /sys/class/net/eth0 | grep -o '[^/]*/virtio'") == before
