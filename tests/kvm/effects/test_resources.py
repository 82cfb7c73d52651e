"""Limits of an instance reach the kernel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from kvm_effect import Effect, File, Probe, proves, rows

from hvcore_kvm.cgroup import find_hierarchy

_HIERARCHY = find_hierarchy()
_LACKING = [name for name in ("cpu", "memory", "pids", "io") if not _HIERARCHY.has(name)]
_WHY = "not run by root" if os.geteuid() else f"this host has no controllers {_LACKING}" if _LACKING else ""
pytestmark = [pytest.mark.qemu, pytest.mark.skipif(bool(_WHY), reason=_WHY)]

_FIRST_VERSION = {"cpu": "cpu", "memory": "memory", "pids": "pids", "io": "blkio"}


def _setting(probe: Probe, controller: str, first: str, second: str) -> str:
    """A file of the group that the process is in."""
    top = _HIERARCHY.top(controller)
    unified = top == _HIERARCHY.version_2
    name = "" if unified else _FIRST_VERSION[controller]
    lines = (line.split(":", 2) for line in probe.proc("cgroup").splitlines())
    group = next(path for _, names, path in lines if name in names.split(","))
    setting = Path(f"{top}{group}/{second if unified else first}")
    return setting.read_text().strip() if setting.exists() else "(the group of all has none)"


EFFECTS = [
    Effect(
        given={"params": {"cpu_shares": 2048}},
        shows={
            "params.cpu_shares": (
                lambda probe: _setting(probe, "cpu", "cpu.shares", "cpu.weight") in ("2048", "79"),
                True,
            )
        },
    ),
    Effect(
        given={"params": {"cpu_quota": 0.5}},
        shows={
            "params.cpu_quota": (
                lambda probe: _setting(probe, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0],
                "50000",
            )
        },
    ),
    Effect(
        given={"params": {"memory_limit": 2**30}},
        shows={
            "params.memory_limit": (
                lambda probe: _setting(probe, "memory", "memory.limit_in_bytes", "memory.max"),
                str(2**30),
            )
        },
    ),
    Effect(
        given={"params": {"pids_limit": 200}},
        shows={"params.pids_limit": (lambda probe: _setting(probe, "pids", "pids.max", "pids.max"), "200")},
    ),
]


@pytest.mark.parametrize("effect", rows(EFFECTS))
def test_effect(effect: Effect, prove: Any) -> None:
    """What was asked for is so, and is not without it."""
    prove(effect)


@proves(
    *(f"params.io_limit.{name}" for name in ("read_bps", "write_bps", "read_iops", "write_iops")), "params.io_limit"
)
def test_limits_of_block_devices(begin: Any, tmp_path: Path) -> None:
    """The disk that holds the image has them, the whole one where the file system is in a partition."""
    device = os.stat(tmp_path).st_dev
    if not os.path.exists(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"):
        pytest.skip("the file system of this test is on no block device")
    limits = {"read_bps": 2**20, "write_bps": 2**21, "read_iops": 100, "write_iops": 200}
    disk = {"path": File("disk.raw"), "format": "raw"}
    with begin({"disks": [disk], "params": {"io_limit": limits}}) as probe:
        first = [f"blkio.throttle.{name}_device" for name in ("read_bps", "write_bps", "read_iops", "write_iops")]
        found = [_setting(probe, "io", name, "io.max") for name in first]
    if "=" in found[0]:
        assert set(found[0].split()[1:]) == {f"rbps={2**20}", f"wbps={2**21}", "riops=100", "wiops=200"}
    else:
        assert [line.split()[1] for line in found] == [str(2**20), str(2**21), "100", "200"]
