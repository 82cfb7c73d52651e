"""Counters: what the guest has done is in them, the kernel and QEMU agree, and nobody is waited for."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import Nic
from hvcore.locks import instance_lock

pytestmark = pytest.mark.qemu

MIB = 1 << 20
ROOT = os.geteuid() == 0
MODELS = ["none", "confined"] if ROOT else ["none"]
LIMITS = {"throttle": {"iops_total": 5000}}


def _uuid(number: int) -> str:
    return f"dd000000-0000-4000-8000-{number:012x}"


@pytest.mark.linux
@pytest.mark.parametrize("model", MODELS)
def test_what_a_guest_does_is_counted(host: Any, boot: Any, model: str) -> None:
    """Bytes, requests and times of each disk, and the time of each virtual CPU, in a process namespace too."""
    disks = [
        attrs.evolve(host.raw_disk("a.raw", 8 * MIB), uuid=_uuid(1)),
        attrs.evolve(host.qcow2_disk("b.qcow2"), uuid=_uuid(2), params=LIMITS),
    ]
    params = {"balloon_stats_interval": "1s"}
    shell = boot("pc", disks=disks, vcpus=2, security_model=model, params=params)
    before = host.driver.get_instance_stats("web1")
    assert before.incomplete == ""
    assert [disk.device for disk in before.disks] == [_uuid(1), _uuid(2)]
    shell.run("dd if=/dev/vda of=/dev/null bs=1M count=4 iflag=direct 2>/dev/null")
    shell.run("dd if=/dev/zero of=/dev/vdb bs=1M count=2 oflag=direct conv=fsync 2>/dev/null")
    after = host.driver.get_instance_stats("web1")
    read, written = (
        {
            field: getattr(b, field) - getattr(a, field)
            for field in ("read_bytes", "reads", "written_bytes", "writes", "flushes", "errors")
        }
        for a, b in zip(before.disks, after.disks, strict=True)
    )
    assert read["read_bytes"] >= 4 * MIB
    assert (read["written_bytes"], read["writes"], read["errors"]) == (0, 0, 0)
    assert written["written_bytes"] == 2 * MIB
    assert written["writes"] > 0
    assert written["flushes"] > 0
    assert after.disks[0].read_time > before.disks[0].read_time
    assert after.disks[1].write_time > before.disks[1].write_time
    assert after.disks[1].flush_time >= before.disks[1].flush_time
    # One virtual CPU is busy, and it is that one.
    spin = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    for busy in (0, 1):
        a = host.driver.get_instance_stats("web1")
        shell.run(f"taskset -p {1 << busy} $$ >/dev/null; {spin}")
        b = host.driver.get_instance_stats("web1")
        used = [y - x for x, y in zip(a.vcpu_times, b.vcpu_times, strict=True)]
        assert used[busy] > used[1 - busy], used
        assert b.cpu_time >= sum(b.vcpu_times) - 0.1
    assert after.memory_balloon == 192 * MIB
    status = Path(f"/proc/{host.pid()}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) * 1024
    assert abs(resident - host.driver.get_instance_stats("web1").memory_resident) < 32 * MIB
    _await_guest_memory(host, shell)


def _await_guest_memory(host: Any, shell: Any) -> None:
    """Its own account of its memory comes once its driver has been asked; a look at its clock lets time pass."""
    deadline = hvcore.Deadline.after(60)
    while (found := host.driver.get_instance_stats("web1").guest_memory) is None:
        assert not deadline.expired, "the guest says nothing of its memory"
        shell.run("usleep 200000")
    total = int(shell.run("sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo")) * 1024
    assert found.total == total
    assert found.free is not None
    assert 0 < found.free < total
    assert found.updated > 1e9


def test_a_guest_that_says_nothing(host: Any) -> None:
    """Nothing is made up: no guest memory, no NIC without an interface, and the balloon's whole size."""
    host.start(host.instance(nics=[Nic()], vcpus=2, params={"balloon_stats_interval": "1s"}))
    found = host.driver.get_instance_stats("web1")
    assert (found.guest_memory, found.nics, found.memory_balloon) == (None, (), 64 * MIB)
    assert len(found.vcpu_times) == 2
    assert found.memory_resident > MIB
    host.driver.stop_instance("web1", force=True)
    host.start(host.instance(params={"balloon": False}))
    assert host.driver.get_instance_stats("web1").memory_balloon == 64 * MIB


def test_who_has_no_counters(host: Any) -> None:
    """One that never was, one that has ended, and one that does not answer: each is told apart, none is waited for."""
    with pytest.raises(hvcore.InstanceNotFound):
        host.driver.get_instance_stats("web1")
    host.driver.start_instance(host.instance())
    pid = host.pid()
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(hvcore.DeadlineExceeded, match="does not answer") as raised:
        host.driver.get_instance_stats("web1", timeout=1.0)
    assert raised.value.retryable
    os.kill(pid, signal.SIGCONT)
    assert host.driver.get_instance_stats("web1").vcpu_times
    os.kill(pid, signal.SIGKILL)
    host.wait_end()
    with pytest.raises(hvcore.NotRunning):
        host.driver.get_instance_stats("web1")
    host.driver.stop_instance("web1")
    with pytest.raises(hvcore.NotRunning):
        host.driver.get_instance_stats("web1")


def test_no_lock_is_taken(host: Any) -> None:
    """While somebody changes the instance its counters can be read."""
    host.driver.start_instance(host.instance())
    with instance_lock(str(host.directory / "state/kvm/locks"), "web1", "a test", hvcore.Deadline.after(10)):
        with pytest.raises(hvcore.InstanceBusy):
            host.driver.pause_instance("web1", timeout=0.5)
        assert host.driver.get_instance_stats("web1").vcpu_times


def test_a_record_that_is_gone(host: Any) -> None:
    """What needs no record is told, and what is lacking is said."""
    disk = host.raw_disk()
    host.driver.start_instance(host.instance(disks=[disk]))
    (host.directory / "state/kvm/instances/web1/record.json").write_text("{")
    found = host.driver.get_instance_stats("web1")
    assert (found.disks, found.incomplete) == ((), "there is no record of its devices")
    assert found.memory_balloon == 64 * MIB
