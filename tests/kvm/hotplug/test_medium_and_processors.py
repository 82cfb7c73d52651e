"""What is in a drive, and how many virtual CPUs there are, changes under a Linux guest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import Deadline, Medium, Processors

PATIENCE = 120.0

pytestmark = [pytest.mark.qemu, pytest.mark.linux]


def _image(host: Any, name: str, text: str) -> str:
    path: Path = host.directory / name
    path.write_bytes(text.encode().ljust(1 << 16, b"\0"))
    path.chmod(0o600)
    return str(path)


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_a_cd_is_changed_and_taken_out(host: Any, boot: Any, whole: Any, machine: str) -> None:
    """QEMU has what is in the drive and nothing of what was; a medium that cannot be used changes nothing."""
    drives = [{"path": _image(host, "first.iso", "the first one")}]
    boot(machine, params={"cdroms": drives})
    before = whole()
    second = _image(host, "second.iso", "the second one")
    for path in ("/nowhere/at/all", str(host.directory)):
        with pytest.raises(hvcore.InvalidParameters):
            host.driver.hot_mod_device("web1", Medium(drive="cdroms[0]", path=path))
    assert whole() == before
    for index in range(10):
        path = (second, drives[0]["path"])[index % 2]
        assert host.driver.hot_mod_device("web1", Medium(drive="cdroms[0]", path=path)).done
        assert path in whole().files
    after = whole()
    assert len(after.sets) == len(before.sets)
    assert (after.devices, after.objects, len(after.nodes)) == (before.devices, before.objects, len(before.nodes))
    assert set(after.files) == set(before.files)
    assert after.record == before.record
    assert host.driver.hot_mod_device("web1", Medium(drive="cdroms[0]")).detail == "it is empty"
    assert drives[0]["path"] not in whole().files
    assert host.driver.hot_mod_device("web1", Medium(drive="cdroms[0]", path=second)).done
    for drive in ("cdroms[1]", "cdroms[x]", "floppy", ""):
        with pytest.raises(hvcore.InvalidParameters, match="no such drive"):
            host.driver.hot_mod_device("web1", Medium(drive=drive, path=second))
    host.driver.reboot_instance("web1", mode="hard")
    assert second in host.open_files(), "the next start has it too"


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_virtual_cpus_come_and_go(host: Any, boot: Any, machine: str) -> None:
    """The guest brings a plugged one up and uses it; it can be taken back; there are limits."""
    shell = boot(machine, vcpus=1, params={"vcpus_max": 3})
    record = json.loads((host.directory / "state/kvm/instances/web1/record.json").read_text())["instance"]
    definition = {key: value for key, value in record.items() if value not in (None, [], {})}
    assert shell.run("cat /sys/devices/system/cpu/present") == "0"
    assert host.driver.hot_mod_device("web1", Processors(count=3)).done
    shell.wait("[ -d /sys/devices/system/cpu/cpu2 ]")
    shell.run("for n in 1 2; do echo 1 >/sys/devices/system/cpu/cpu$n/online; done")
    assert shell.run("grep -c ^processor /proc/cpuinfo") == "3"
    assert host.driver.get_instance_info("web1").vcpus == 3
    with pytest.raises(hvcore.InvalidParameters, match="the most it was started for"):
        host.driver.hot_mod_device("web1", Processors(count=4))
    assert host.driver.hot_mod_device("web1", Processors(count=2), timeout=60).done
    shell.wait("[ ! -d /sys/devices/system/cpu/cpu2 ]")
    assert host.driver.get_instance_info("web1").vcpus == 2
    plan = host.driver.plan_start({**definition, "vcpus": 2})
    assert [change.path for change in plan.changes] == []
    with pytest.raises(hvcore.InvalidParameters, match="from the start"):
        host.driver.hot_mod_device("web1", Processors(count=0))
    with pytest.raises(hvcore.InvalidParameters, match="can only be modified"):
        host.driver.hot_add_device("web1", Processors(count=2))


def test_a_virtual_cpu_that_goes_later(host: Any, boot: Any) -> None:
    """One that the guest lets go of after the deadline is asked for is taken off the record by whoever looks next."""
    shell = boot("q35", vcpus=1, params={"vcpus_max": 2})
    assert host.driver.hot_mod_device("web1", Processors(count=2)).done
    shell.wait("[ -d /sys/devices/system/cpu/cpu1 ]")
    # A stopped guest answers nothing.
    host.driver.pause_instance("web1")
    result = host.driver.hot_mod_device("web1", Processors(count=1), timeout=1)
    assert (result.device, result.done) == ("vcpus", False)
    assert host.driver.recover("web1").instances == ()
    host.driver.resume_instance("web1")
    shell.wait("[ ! -d /sys/devices/system/cpu/cpu1 ]")
    record = host.directory / "state/kvm/instances/web1/record.json"
    assert json.loads(record.read_text())["instance"]["vcpus"] == 2
    # The kernel forgets it first and tells the firmware then; only after that has QEMU let go of it.
    deadline = Deadline.after(PATIENCE)
    while not (recovered := host.driver.recover("web1").instances):
        assert not deadline.expired
    (found,) = recovered
    assert (found.operation, found.detail) == ("hotplug", "device vcpu1: removed")
    assert json.loads(record.read_text())["instance"]["vcpus"] == 1
    assert host.driver.recover("web1").instances == ()
