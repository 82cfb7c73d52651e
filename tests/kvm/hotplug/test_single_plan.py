"""A device that is planned alone is the device that a plan of the whole instance has."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import Disk, Nic
from hvcore_kvm import operations
from hvcore_kvm.hotplug import plan_of, plan_single

pytestmark = pytest.mark.qemu

_UUID = "ab000000-0000-4000-8000-00000000000{}"


def _without_numbers(wanted: Any) -> Any:
    """A plan of a device with descriptors by their names: the numbers differ."""
    names = [request.name for request in wanted.images.values()]
    nic = None if wanted.nic is None else (wanted.nic[0], [step.name for step in wanted.nic[1].up])
    plain = attrs.evolve(wanted, images={}, fds={}, nic=None)
    # Ours are 3 and up; what was given by users here has no numbers.
    return re.sub(r"fdset/[0-9]+|fds?': '[0-9:]+|fd/[0-9]+", "N", repr(plain)), names, repr(nic)


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_alone_and_whole_are_the_same(host: Any, machine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Disks of each bus and NICs, plain and with everything: the same objects, nodes, backend, device and places."""
    secret = tmp_path / "secret"
    secret.write_text("open sesame")
    secret.chmod(0o600)
    first = attrs.evolve(host.raw_disk("first.raw"), params={"bus": "scsi"}, name="first")
    params = {"machine": machine, "boot": ["disks", "nics"], "throttle_groups": {"all": {"iops_total": 100}}}
    params |= {"iothreads": 1, "disk": {"cache": "none"}, "nic": {"queues": 1}}
    console = host.instance(disks=[first], nics=[Nic()], params=params)
    host.start(console)
    disk = host.raw_disk("second.raw")
    devices: list[Disk | Nic] = [
        attrs.evolve(disk, params={"throttle": {"iops_total": 100}, "iothread": 0}),
        attrs.evolve(disk, params={"throttle_group": "all", "serial": "x"}),
        attrs.evolve(disk, params={"bus": "scsi", "write_cache": False}),
        attrs.evolve(disk, params={"bus": "nvme"}),
        attrs.evolve(host.qcow2_disk(), read_only=True),
        Nic(),
        Nic(params={"model": "e1000", "link_up": False}),
        Nic(mac="52:54:00:00:00:77", params={"mtu": 1400}),
    ]
    plans: dict[str, list[Any]] = {"alone": [], "whole": []}

    def alone(*args: Any) -> Any:
        found = plan_single(*args)
        assert found is not None, "it is left to a plan of the whole instance"
        plans["alone"].append((_without_numbers(found[0]), found[1]))

    def whole(plan: Any, uuid: str) -> Any:
        wanted = plan_of(plan, uuid)
        plans["whole"].append((_without_numbers(wanted), plan.placement))
        return wanted

    monkeypatch.setattr(operations, "plan_single", alone)
    monkeypatch.setattr(operations, "plan_of", whole)
    for index, device in enumerate(devices):
        device = attrs.evolve(device, uuid=_UUID.format(index))
        host.driver.hot_add_device("web1", device)
        with contextlib.suppress(hvcore.HypervisorError):
            host.driver.hot_del_device("web1", device.uuid, timeout=0.01)
        host.driver.reboot_instance("web1", mode="reset")
    assert len(plans["alone"]) == len(devices)
    assert plans["alone"] == plans["whole"]


def test_what_is_out_of_the_ordinary_is_found_by_the_whole_plan(host: Any) -> None:
    """The same image twice, a controller that is not there, an image that is missing: findings name the device."""
    first = host.raw_disk("first.raw")
    host.start(host.instance(disks=[first], params={"machine": "q35"}))
    link = host.directory / "link.raw"
    os.symlink(first.path, link)
    for disk, code in (
        (Disk(path=str(link), format="raw"), "repeated-value"),
        (Disk(path=str(host.directory / "none.raw"), format="raw"), "disk-missing"),
    ):
        with pytest.raises(hvcore.InvalidParameters) as caught:
            host.driver.hot_add_device("web1", disk)
        assert [(f.code, f.path) for f in caught.value.findings] == [(code, "device.path")]
    second = attrs.evolve(host.raw_disk("second.raw"), params={"bus": "scsi"})
    with pytest.raises(hvcore.InvalidParameters, match="controller scsi0"):
        host.driver.hot_add_device("web1", second)
    assert [device.state for device in host.driver.get_instance_info("web1").devices] == ["present"]
