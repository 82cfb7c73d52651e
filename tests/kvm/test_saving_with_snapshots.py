"""Instances with external snapshots are saved and restored: upon the overlays they had, or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import Deadline, InstanceState, InvalidParameters
from hvcore_kvm import process
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.qmp import QmpClient

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

UUIDS = ("ec000001-0000-4000-8000-000000000001", "ec000002-0000-4000-8000-000000000002")


@contextmanager
def _monitor(host: Any) -> Iterator[QmpClient]:
    with QmpClient.connect(str(host.directory / "state/kvm/instances/web1/control"), Deadline.after(30)) as client:
        yield client


def _write(host: Any, value: int, offset: str = "0") -> None:
    """Let QEMU write to all disks as its guest would, and to their images."""
    for uuid in UUIDS:
        place = f"/machine/peripheral/{device_id('disk', uuid)}/virtio-backend"
        for what in (f"write -P {value:#x} {offset} 64k", "flush"):
            with _monitor(host) as client:
                line = {"command-line": f'qemu-io -d {place} "{what}"'}
                assert client.execute("human-monitor-command", line, deadline=Deadline.after(30)) == ""


def _holds(host: Any, disks: Sequence[hvcore.Disk], value: int, offset: str = "0") -> bool:
    """Whether that is what all disks hold, by the driver's account of their images."""
    for disk in disks:
        chain = [(disk.path, disk.format)]
        for one in host.driver.list_snapshots("web1").snapshots:
            chain += [(row.overlay, "qcow2") for row in one.disks if row.uuid == disk.uuid]
        options = []
        for number, (path, form) in enumerate(reversed(chain)):
            below = "backing." * number
            options.append(f"{below}driver={form},{below}file.driver=file,{below}file.filename={path}")
        command = ["qemu-io", "-r", "-U", "--image-opts", ",".join(options), "-c", f"read -P {value:#x} {offset} 64k"]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "read 65536/65536 bytes" in said.stdout, said
        if "verification failed" in said.stdout:
            return False
    return True


def _disks(host: Any, **params: Any) -> list[hvcore.Disk]:
    raw = attrs.evolve(host.raw_disk("disk1.raw", 8 << 20), uuid=UUIDS[0], params=params)
    return [raw, attrs.evolve(host.qcow2_disk("disk2.qcow2"), uuid=UUIDS[1])]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "web1.saved")


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize(
    ("accel", "params"), [("tcg", {}), ("kvm", {"cache": "none", "throttle": {"iops_total": 100000}})]
)
def test_it_goes_on_upon_its_overlays(
    host: Any, path: str, request: Any, accel: str, params: dict[str, Any], newer: bool
) -> None:
    """All that was written before and after is there, with checkpoints, and the overlays are committed as before."""
    program = {"qemu": request.getfixturevalue("newer_qemu")} if newer else {}
    disks = _disks(host, **params)
    host.start(host.instance(accel=accel, disks=disks, params=program))
    _write(host, 0x11)
    host.driver.create_snapshot("web1", "first", external=True)
    _write(host, 0x22, "1M")
    host.driver.create_snapshot("web1", "second", external=True)
    _write(host, 0x33, "2M")
    backups = host.directory / "backups"
    backups.mkdir()
    host.driver.backup_instance("web1", str(backups), checkpoint="a")
    host.driver.save_instance("web1", path)
    assert host.driver.get_instance_info("web1").state is InstanceState.SAVED
    assert host.driver.restore_instance(path).after is InstanceState.RUNNING
    assert not host.driver.verify_instance("web1")
    _write(host, 0x44, "3M")
    taken = host.driver.backup_instance("web1", str(backups), since="a")
    for disk in taken.disks:
        assert disk.copied == 65536
        for value, offset in ((0x11, "0"), (0x22, "1M"), (0x33, "2M"), (0x44, "3M")):
            command = ["qemu-io", "-r", "-f", "qcow2", "-c", f"read -P {value:#x} {offset} 64k", disk.location]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert "verification failed" not in said
    host.driver.delete_checkpoint("web1", "a")
    for name, value in (("second", 0x55), ("first", 0x66)):
        host.driver.delete_snapshot("web1", name)
        _write(host, value, "4M")
        for wanted, offset in ((0x11, "0"), (0x22, "1M"), (0x33, "2M"), (0x44, "3M"), (value, "4M")):
            assert _holds(host, disks, wanted, offset)
    assert sorted(host.directory.glob("disk*.*.qcow2")) == []


def test_other_disks_than_it_had(host: Any, path: str) -> None:
    """A revert, a deletion or a write since is refused, and said of the disk; a snapshot since changes nothing."""
    disks = _disks(host)
    definition = host.instance(disks=disks)
    host.start(definition)
    host.driver.create_snapshot("web1", "first", external=True)
    _write(host, 0x11)

    def refused(*words: str) -> None:
        with pytest.raises(InvalidParameters) as caught:
            host.driver.restore_instance(path)
        found = [one for one in caught.value.findings if one.code == "disk-changed"]
        assert len(found) == len(caught.value.findings) >= 2
        assert {one.path for one in found} == {"disks[0].path", "disks[1].path"}
        for word in words:
            assert word in str(caught.value)

    host.driver.save_instance("web1", path)
    host.driver.create_snapshot(definition, "second", external=True)
    host.driver.restore_instance(path)
    assert _holds(host, disks, 0x11)
    _write(host, 0x22)

    path += "2"
    host.driver.save_instance("web1", path)
    host.driver.revert_snapshot("web1", "second")
    refused("deleted or reverted since")
    host.driver.restore_instance(path, force=True)
    assert _holds(host, disks, 0x11)

    path += "3"
    host.driver.save_instance("web1", path)
    overlays = [row.overlay for row in host.driver.list_snapshots("web1").snapshots[-1].disks]
    for overlay in overlays:
        command = ["qemu-io", "-f", "qcow2", "-c", "write -P 0x33 1M 64k", overlay]
        subprocess.run(command, capture_output=True, check=True)
    refused(*overlays)
    host.driver.delete_snapshot("web1", "second")
    refused("deleted or reverted since", *overlays)
    host.driver.restore_instance(path, force=True)
    assert _holds(host, disks, 0x33, "1M")


@pytest.mark.parametrize("both", [False, True])
def test_killed_in_a_save(host: Any, path: str, cut_short: Callable[..., Any], both: bool) -> None:
    """The guest goes on upon its overlays, or is in the file; nothing that it wrote is lost."""
    disks = _disks(host)
    definition = host.instance(disks=disks)
    host.start(definition)
    host.driver.create_snapshot("web1", "first", external=True)
    value = 1
    for cut in range(1, 200, 9):
        value += 1
        _write(host, value)
        killed = cut_short(f"driver.save_instance('web1', {path!r})", cut=cut) is None
        if both and (pid := host.driver.get_instance_info("web1").pid) is not None:
            identity = process.identify(pid)
            os.kill(pid, signal.SIGKILL)
            assert process.ends(identity)
        host.driver.recover("web1")
        state = host.driver.get_instance_info("web1").state
        assert _holds(host, disks, value), f"cut {cut}"
        if os.path.exists(path):
            assert state is InstanceState.SAVED
            host.driver.restore_instance(path)
            os.unlink(path)
        elif both:
            host.driver.start_instance(definition)
        assert host.driver.get_instance_info("web1").state is InstanceState.RUNNING, f"cut {cut}"
        _write(host, value, "1M")
        assert _holds(host, disks, value, "1M")
        if not killed:
            break
    assert cut > 18
    host.driver.delete_snapshot("web1", "first")
    assert _holds(host, disks, value)


@pytest.mark.linux
def test_a_linux_guest_writes_all_the_while(host: Any, boot: Any, path: str) -> None:
    """It is saved while it writes, and goes on; all that it wrote is in the image in the end."""
    disk = attrs.evolve(host.raw_disk("disk1.raw", 8 << 20), uuid=UUIDS[0])
    shell = boot("q35", disks=[disk])
    shell.wait("[ -b /dev/vda ]")
    # A line every 512 bytes, each written to the disk before the next.
    loop = "i=0; while [ ! -e /stop ]; do i=$((i+1)); echo line-$i | dd of=/dev/vda bs=512 seek=$i conv=notrunc,fsync"
    shell.run(f"({loop} 2>/dev/null; echo $i >/count; mv /count /written; done) >/dev/null 2>&1 & true")
    then = 0
    for name in ("first", "second"):
        shell.wait(f"[ $(cat /written) -gt {then + 20} ]")
        host.driver.create_snapshot("web1", name, external=True)
        then = int(shell.run("cat /written"))
        shell.wait(f"[ $(cat /written) -gt {then + 20} ]")
        host.driver.save_instance("web1", path)
        host.driver.restore_instance(path, paused=True)
        os.unlink(path)
        shell.console = host.attach("web1")
        shell.console._socket.settimeout(120)
        host.driver.resume_instance("web1")
        then = int(shell.run("cat /written"))
    shell.wait(f"[ $(cat /written) -gt {then + 20} ]")
    for name in ("second", "first"):
        host.driver.delete_snapshot("web1", name)
    last = int(shell.run("touch /stop; wait; sync; cat /written"))
    said = shell.run("echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/vda").split()[0]
    host.driver.stop_instance("web1", force=True)
    content = Path(disk.path).read_bytes()
    for number in range(1, last + 1):
        assert content[512 * number :].partition(b"\n")[0] == b"line-%d" % number
    assert subprocess.run(["sha256sum", disk.path], capture_output=True, text=True).stdout.split()[0] == said
