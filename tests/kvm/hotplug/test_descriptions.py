"""Descriptions of devices that a host application may give: what no definition could have, and what clashes."""

from __future__ import annotations

import os
from typing import Any

import pytest

import hvcore
from hvcore import Disk, LiveParameters, Medium, Nic, Processors

pytestmark = pytest.mark.qemu

ROOT = f"DD000000-0000-4000-8000-{os.getpid():012x}"
LAN = f"EE000000-0000-4000-8000-{os.getpid():012X}"
MAC = "52:54:00:11:22:33"

# None of these can be written down and read again.
WRONG: list[tuple[Any, str]] = [
    (Nic(mac="zz"), "device.mac"),
    (Nic(mac="01:00:00:00:00:01"), "device.mac"),
    (Nic(name="a b\n"), "device.name"),
    (Nic(mode=7), "device.mode"),  # type: ignore[arg-type]
    (Nic(uuid="x"), "device.uuid"),
    (Nic(uuid=7), "device.uuid"),  # type: ignore[arg-type]
    (Nic(params={1: 2}), "device.params"),  # type: ignore[dict-item]
    (Disk(format="raw"), "device.path"),
    (Disk(path=7, format="raw"), "device.path"),  # type: ignore[arg-type]
    (Disk(path="/dev/null", uri="nbd://host/x", format="raw"), "device.uri"),
    (Disk(path="/dev/null", format="vmdk"), "device.format"),
    (Disk(path="/dev/null", format="raw", read_only="no"), "device.read_only"),  # type: ignore[arg-type]
    (Medium(drive=7), "device.drive"),  # type: ignore[arg-type]
    (Medium(drive="cdroms[0]", path="relative"), "device.path"),
    (Medium(drive="cdroms[0]", path="/a", url="http://host/a"), "device.url"),
    (Medium(drive="cdroms[0]", force=1), "device.force"),  # type: ignore[arg-type]
    (Processors(count=True), "device.count"),
    (None, "device"),
]


def test_what_no_definition_could_have(host: Any, whole: Any) -> None:
    """Everything wrong with a description is said of it, in every operation, and nothing is done."""
    host.start(host.instance(params={"machine": "pc", "cdroms": [{}]}))
    before = whole()
    for device, path in WRONG:
        for operation in (host.driver.hot_add_device, host.driver.hot_mod_device):
            with pytest.raises(hvcore.InvalidParameters) as caught:
                operation("web1", device)
            assert path in {finding.path for finding in caught.value.findings}
            assert caught.value.instance == "web1"
        support = host.driver.verify_hotplug_support("web1", "modify", device)
        assert (support.supported, path in str(support.reasons)) == (False, True)
    with pytest.raises(hvcore.InvalidParameters, match="device"):
        host.driver.hot_del_device("web1", 7)
    assert whole() == before


def test_what_another_device_has(host: Any, whole: Any) -> None:
    """A name, a hardware address and an image are those of one device, as in a definition; all is said at once."""
    disk = host.raw_disk("root.raw")
    root, lan = Disk(uuid=ROOT, path=disk.path, format="raw", name="root"), Nic(uuid=LAN, mac=MAC, name="lan")
    host.start(host.instance(params={"machine": "pc"}, disks=[root], nics=[lan, Nic(name="other")]))
    before = whole()
    other = next(d.uuid for d in host.driver.get_instance_info("web1").devices if d.name == "other")
    clashes = [
        (host.driver.hot_add_device, Nic(mac=MAC.upper(), name="lan", mode="no-such"), ["mac", "mode", "name"]),
        (host.driver.hot_add_device, Disk(path=disk.path, format="raw", name="root"), ["name", "path"]),
        (host.driver.hot_mod_device, Nic(uuid=other, mac=MAC, name="lan"), ["mac", "name"]),
    ]
    for operation, device, wrong in clashes:
        with pytest.raises(hvcore.InvalidParameters) as caught:
            operation("web1", device)
        assert sorted(finding.path for finding in caught.value.findings) == [f"device.{each}" for each in wrong]
    assert whole() == before


def test_identities_in_either_case(host: Any) -> None:
    """A device whose uuid is in upper case in its definition is found by it, however it is written."""
    disk = Disk(uuid=ROOT, path=host.raw_disk("root.raw").path, format="raw")
    host.start(host.instance(params={"machine": "pc"}, disks=[disk], nics=[Nic(uuid=LAN)]))
    for uuid in (LAN, LAN.lower()):
        down = Nic(uuid=uuid, params={"link_up": uuid.islower()})
        assert "kept its device" in host.driver.hot_mod_device("web1", down).detail
    assert host.driver.resize_disk("web1", ROOT, 2 << 20).after == 2 << 20
    assert not host.driver.hot_del_device("web1", LAN, timeout=0.01).done
    assert {d.uuid: d.state for d in host.driver.get_instance_info("web1").devices}[LAN.lower()] == "removing"


def test_a_derived_identity_is_never_taken(host: Any) -> None:
    """One that comes after another one has gone has an identity of its own, although both would stand at one place."""
    host.start(host.instance(params={"machine": "pc"}, nics=[Nic(uuid=LAN)]))
    first = host.driver.hot_add_device("web1", Nic()).device
    second = host.driver.hot_add_device("web1", Nic()).device
    host.driver.hot_del_device("web1", first, timeout=0.01)
    host.driver.reboot_instance("web1", mode="reset")
    host.driver.recover("web1")
    third = host.driver.hot_add_device("web1", Nic()).device
    assert len({first, second, third}) == 3
    assert {d.uuid for d in host.driver.get_instance_info("web1").devices} == {LAN.lower(), second, third}


def test_what_stands_against_it_is_said_beforehand(host: Any, whole: Any) -> None:
    """What would be refused is known without trying: a controller that is not there, too many, a drive, a parameter."""
    instance = host.instance(params={"machine": "q35", "hotplug_ports": 1, "cdroms": [{}]}, nics=[Nic(uuid=LAN)])
    host.start(instance)
    image = host.raw_disk("hot.raw").path
    before = whole()
    against: list[tuple[str, Any, str]] = [
        ("add", Disk(path=image, format="raw", params={"bus": "scsi"}), "scsi0"),
        ("add", Disk(path=image, format="raw", params={"bus": "usb"}), "usb0"),
        ("add", Nic(params={"model": "usb-net"}), "usb0"),
        ("add", Processors(count=1), "only be modified"),
        ("modify", Processors(count=2), "vcpus_max"),
        ("modify", Medium(drive="cdroms[1]"), "cdroms[1]"),
        ("modify", Medium(drive="cdroms[0]", path="/nowhere/at/all"), "/nowhere/at/all"),
        ("modify", LiveParameters(values={"machine": "pc"}), "params.machine"),
        ("modify", Disk(uuid=LAN, path=image, format="raw"), "is that of a nic"),
        ("modify", Nic(uuid=LAN, mode="no-such"), "device.mode"),
    ]
    for action, device, reason in against:
        support = host.driver.verify_hotplug_support("web1", action, device)
        assert (support.supported, reason in str(support.reasons)) == (False, True), (device, support)
        operation = host.driver.hot_add_device if action == "add" else host.driver.hot_mod_device
        with pytest.raises(hvcore.InvalidParameters):
            operation("web1", device)
    assert whole() == before
    assert host.driver.verify_hotplug_support("web1", "modify", Medium(drive="cdroms[0]", path=image)).supported
    host.driver.hot_add_device("web1", Nic())
    with pytest.raises(hvcore.InvalidParameters) as caught:
        host.driver.hot_add_device("web1", Nic())
    (finding,) = caught.value.findings
    assert (finding.code, finding.path, "hotplug_ports" in str(finding.hint)) == ("bus-full", "device", True)


def test_a_change_that_could_not_be_completed(host: Any, whole: Any) -> None:
    """What has to be plugged anew is not taken from the guest when it could not come again as it is described."""
    image = host.raw_disk("root.raw").path
    host.start(host.instance(params={"machine": "q35"}, disks=[Disk(uuid=ROOT, path=image, format="raw")]))
    before = whole()
    for bus, why in (("scsi", "scsi0"), ("sata", "bus sata")):
        changed = Disk(uuid=ROOT, path=image, format="raw", params={"bus": bus})
        support = host.driver.verify_hotplug_support("web1", "modify", changed)
        assert (support.supported, why in str(support.reasons)) == (False, True)
        with pytest.raises(hvcore.InvalidParameters, match=why):
            host.driver.hot_mod_device("web1", changed, timeout=0.5)
        assert [device.state for device in host.driver.get_instance_info("web1").devices] == ["present"]
    assert whole() == before
