"""Control groups: both versions, what is left in them, and what the host lacks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore_kvm.cgroup import Cgroup, Hierarchy, IoLimit, Limits, find_hierarchy, groups_of, remove_groups

ALL = Limits(
    cpu_shares=1024,
    cpu_quota=1.5,
    memory=2**30,
    pids=100,
    io=(IoLimit(device="8:0", limits={"rbps": 1000, "wiops": 5}),),
)


def _tree(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_version_2(tmp_path: Path) -> None:
    """One group with the files of Documentation/admin-guide/cgroup-v2.rst, its controllers handed down first."""
    hierarchy = Hierarchy(
        version_1={}, version_2=str(tmp_path), unified=frozenset({"cpu", "memory", "pids", "io", "cpuset"})
    )
    group = Cgroup(hierarchy, "web1", "/somewhere/web1", ALL)
    group.make()
    group.attach(42)
    (path,) = group.paths
    own = os.path.relpath(path, tmp_path)
    assert own.startswith("hvcore/web1-")
    assert _tree(tmp_path) == {
        "cgroup.subtree_control": "+cpu +memory +pids +io",
        "hvcore/cgroup.subtree_control": "+cpu +memory +pids +io",
        f"{own}/cpu.weight": "39",
        f"{own}/cpu.max": "150000 100000",
        f"{own}/memory.max": str(2**30),
        f"{own}/pids.max": "100",
        f"{own}/io.max": "8:0 rbps=1000 wiops=5",
        f"{own}/cgroup.procs": "42",
    }


def test_version_1(tmp_path: Path) -> None:
    """A group in the hierarchy of each controller that is needed, and in no other."""
    tops = {name: str(tmp_path / name) for name in ("cpu", "memory", "pids", "blkio", "freezer")}
    for top in tops.values():
        os.mkdir(top)
    group = Cgroup(Hierarchy(version_1=tops, version_2=None, unified=frozenset()), "web1", "/somewhere/web1", ALL)
    group.make()
    names = {os.path.relpath(path, tmp_path).split("/")[0] for path in group.paths}
    assert names == {"cpu", "memory", "pids", "blkio"}
    found = {path.rpartition("/")[2]: text for path, text in _tree(tmp_path).items()}
    assert found == {
        "cpu.shares": "1024",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "150000",
        "memory.limit_in_bytes": str(2**30),
        "pids.max": "100",
        "blkio.throttle.read_bps_device": "8:0 1000",
        "blkio.throttle.write_iops_device": "8:0 5",
    }


def test_both_versions_at_once(tmp_path: Path) -> None:
    """A controller of version 2 is used there, one that only version 1 has is used there; octal escapes are read."""
    unified = tmp_path / "a b"
    unified.mkdir()
    (unified / "cgroup.controllers").write_text("cpu io\n")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"30 1 0:1 / {tmp_path}/a\\040b rw - cgroup2 cgroup2 rw\n"
        f"31 1 0:2 / {tmp_path}/pids rw,nosuid shared:5 - cgroup cgroup rw,pids\n"
        f"32 1 0:3 / {tmp_path}/named rw - cgroup cgroup rw,name=systemd\n"
        "33 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    )
    hierarchy = find_hierarchy(str(mounts))
    assert (hierarchy.top("cpu"), hierarchy.top("pids")) == (str(unified), str(tmp_path / "pids"))
    assert [name for name in ("cpu", "io", "pids", "memory") if hierarchy.has(name)] == ["cpu", "io", "pids"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make control groups")
def test_what_is_left_in_a_group_is_ended(tmp_path: Path) -> None:
    """A process that stayed in the groups of an instance is ended with them; the name belongs to the directory."""
    hierarchy = find_hierarchy()
    if not hierarchy.has("pids"):
        pytest.skip("this host has no controller pids")
    group = Cgroup(hierarchy, "web1", str(tmp_path), Limits(pids=10))
    group.make()
    stray = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    try:
        group.attach(stray.pid)
        assert groups_of("web1", str(tmp_path)) == group.paths
        assert groups_of("web1", f"{tmp_path}/other") == ()
        remove_groups("web1", str(tmp_path))
        stray.wait(timeout=30)
        assert groups_of("web1", str(tmp_path)) == ()
        remove_groups("web1", str(tmp_path))
    finally:
        stray.kill()
        stray.communicate()
        remove_groups("web1", str(tmp_path))


@pytest.mark.qemu
def test_a_limit_that_the_kernel_refuses(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start fails with the name of the limit, and leaves neither group nor lease."""
    if os.geteuid() != 0 or not find_hierarchy().has("cpu"):
        pytest.skip("this user or host makes no control groups for processors")
    instance = host.instance(params={"cpu_quota": 0.01})
    monkeypatch.setattr("hvcore_kvm.cgroup._PERIOD", 10)
    with pytest.raises(hvcore.HostError, match=r"cannot set the limit cpu\.") as caught:
        host.driver.start_instance(instance)
    assert caught.value.code == "cgroup-refused"
    assert groups_of("web1", str(host.directory / "state/kvm/instances/web1")) == ()


@pytest.mark.qemu
def test_a_host_without_the_controller(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for and is not there is found; the limit that a security model wishes for is left out."""
    nothing = Hierarchy(version_1={}, version_2=None, unified=frozenset())
    monkeypatch.setattr("hvcore_kvm.host_checks.find_hierarchy", lambda: nothing)
    monkeypatch.setattr("hvcore_kvm.launch.find_hierarchy", lambda: nothing)
    found = host.driver.validate_parameters(host.instance(params={"cpu_shares": 100, "pids_limit": 100}))
    assert [(f.code, f.path) for f in found] == [
        ("no-cgroup-controller", "params.cpu_shares"),
        ("no-cgroup-controller", "params.pids_limit"),
    ]
    host.start(host.instance())
