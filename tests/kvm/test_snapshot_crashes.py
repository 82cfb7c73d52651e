"""The host application is killed in an operation on snapshots: the instance is what it was, or what it was to be."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import attrs
import pytest

from hvcore import Deadline, InstanceState
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.qmp import QmpClient

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

UUID = "dd000000-0000-4000-8000-000000000001"
NODE = f"/machine/peripheral/{device_id('disk', UUID)}/virtio-backend"
IGNORING = 0x1012
"""Where the firmware guest keeps whether it ignores the power button."""

STRIDES = {"create": 5, "revert": 7, "start": 23, "delete": 5, "disks": 7}
"""Not every cut is tried: there are many."""

CREATE = "driver.create_snapshot('web1', 'second')"
DELETE = "driver.delete_snapshot('web1', 'second')"
REVERT = "driver.revert_snapshot('web1', 'first')"
OPERATIONS = {"create": CREATE, "delete": DELETE, "revert": REVERT, "start": REVERT, "disks": REVERT}


def _ask(host: Any, line: str) -> str:
    with QmpClient.connect(str(host.directory / "state/kvm/instances/web1/control"), Deadline.after(30)) as client:
        arguments = {"command-line": line}
        return str(client.execute("human-monitor-command", arguments, deadline=Deadline.after(30)))


def _write(host: Any, value: int) -> None:
    for what in (f"write -P {value:#x} 0 64k", "flush"):
        _ask(host, f'qemu-io -d {NODE} "{what}"')


def _image_write(path: str, value: int) -> None:
    command = ["qemu-io", "-f", "qcow2", "-c", f"write -P {value:#x} 0 64k", path]
    subprocess.run(command, capture_output=True, check=True)


def _is(path: str, value: int) -> bool:
    """Whether that is on a disk; QEMU may have it open."""
    command = ["qemu-io", "-r", "-U", "-f", "qcow2", "-c", f"read -P {value:#x} 0 64k", path]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    assert "read 65536/65536 bytes" in said, said
    return "verification failed" not in said


def _kept(host: Any, path: str) -> tuple[list[str], list[str]]:
    """The snapshots by the driver's account, and by the image."""
    done = subprocess.run(["qemu-img", "info", "-U", "--output=json", path], capture_output=True, check=True)
    tags = [row["name"] for row in json.loads(done.stdout).get("snapshots", [])]
    return [one.name for one in host.driver.list_snapshots("web1").snapshots], tags


def _state(host: Any) -> InstanceState:
    state: InstanceState = host.driver.get_instance_info("web1").state
    return state


@pytest.mark.parametrize("operation", STRIDES)
def test_killed_at_a_cut(host: Any, cut_short: Any, operation: str) -> None:
    """What was begun is completed or taken back by recover, disks and memory together, and nothing is left of it."""
    disk = attrs.evolve(host.qcow2_disk(), uuid=UUID)
    definition = host.instance(disks=[disk])
    console = host.start(definition)
    _write(host, 0x11)
    host.driver.create_snapshot("web1", "first", memory=operation != "disks")
    still = operation in ("start", "disks")
    if still:
        host.driver.stop_instance("web1", force=True)
    cut = 1
    while True:
        if still:
            _image_write(disk.path, 0x22)
        else:
            console.send(b"n")
            console.expect(b"ok\r\n")
            _write(host, 0x22)
        if operation == "delete" and _kept(host, disk.path)[0] == ["first"]:
            host.driver.create_snapshot("web1", "second")
        killed = cut_short(OPERATIONS[operation], cut=cut) is None
        found = host.driver.recover("web1").instances
        assert all(one.outcome in ("completed", "undone") for one in found), f"cut {cut}: {found}"
        assert not [one for one in host.files() if one.endswith("snapshotting.json")], f"cut {cut}: {found}"
        names, tags = _kept(host, disk.path)
        assert names == tags, f"cut {cut}: {found}"
        assert names in (["first"], ["first", "second"]), f"cut {cut}: {found}"
        if operation == "disks":
            assert _state(host) is InstanceState.STOPPED
            assert killed or _is(disk.path, 0x11)
            outcomes = {one.outcome for one in found}
            assert outcomes <= {"completed" if _is(disk.path, 0x11) else "undone"}, f"cut {cut}: {found}"
        elif _state(host) is InstanceState.STOPPED:
            assert operation == "start", f"cut {cut}: {found}"
            assert _is(disk.path, 0x22), f"cut {cut}: {found}"
        else:
            assert _state(host) is InstanceState.RUNNING, f"cut {cut}: {found}"
            _ask(host, f'qemu-io -d {NODE} "flush"')
            now = 0x22 if _is(disk.path, 0x22) else 0x11
            assert _is(disk.path, now), f"cut {cut}: {found}"
            ignores = int(_ask(host, f"xp /1bx {IGNORING:#x}").split(":")[1], 16)
            assert ignores == (now == 0x22), f"cut {cut}: memory and disk are not of the same moment; {found}"
            if operation in ("revert", "start"):
                assert killed or now == 0x11
            outcomes = {one.outcome for one in found if one.operation == "revert_snapshot"}
            assert outcomes <= {"completed" if now == 0x11 else "undone"}, f"cut {cut}: {found}"
        if operation == "start":
            host.driver.stop_instance("web1", force=True)
        if operation == "create" and names == ["first", "second"]:
            host.driver.delete_snapshot("web1", "second")
        if not killed:
            break
        cut += STRIDES[operation]
    assert cut > 3 * STRIDES[operation]


def test_the_next_operation_completes_it(host: Any, cut_short: Any) -> None:
    """A guest that stands still because a revert was killed goes on when it is resumed, as what it was."""
    disk = attrs.evolve(host.qcow2_disk(), uuid=UUID)
    definition = host.instance(disks=[disk])
    host.start(definition)
    host.driver.create_snapshot("web1", "first")
    _write(host, 0x22)
    cut = 0
    while _state(host) is InstanceState.RUNNING:
        host.driver.recover("web1")
        cut += 5
        assert cut_short(REVERT, cut=cut) is None
    assert host.driver.resume_instance("web1").after is InstanceState.RUNNING
    assert not [one for one in host.files() if one.endswith("snapshotting.json")]
    assert _is(disk.path, 0x22)
    assert _kept(host, disk.path) == (["first"], ["first"])
    # And of one that was stopped, a start.
    host.driver.stop_instance("web1", force=True)
    for cut in (8, 12):
        assert cut_short(REVERT, cut=cut) is None
        host.driver.start_instance(definition)
        assert _kept(host, disk.path) == (["first"], ["first"])
        assert _is(disk.path, 0x22)
        host.driver.stop_instance("web1", force=True)
