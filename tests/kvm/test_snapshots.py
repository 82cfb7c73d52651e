"""What an instance was at one moment is kept within its images, and comes back: memory, devices and disks."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import Deadline, InstanceState, OperationFailed, WrongState
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.qmp import QmpClient

pytestmark = pytest.mark.qemu

ROOT = os.geteuid() == 0
LIMITS = {"throttle": {"iops_total": 100000}}
TICKS = 0x1000
"""Where the firmware guest counts its timer interrupts."""


def _uuid(number: int) -> str:
    return f"dd000000-0000-4000-8000-{number:012x}"


def _qcow2(host: Any, name: str, number: int, **changes: Any) -> hvcore.Disk:
    return attrs.evolve(host.qcow2_disk(name), uuid=_uuid(number), **changes)


@contextmanager
def _monitor(host: Any) -> Iterator[QmpClient]:
    with QmpClient.connect(str(host.directory / "state/kvm/instances/web1/control"), Deadline.after(30)) as client:
        yield client


def _ask(host: Any, command: str, **arguments: Any) -> Any:
    with _monitor(host) as client:
        return client.execute(command, arguments, deadline=Deadline.after(30))


def _ticks(host: Any) -> int:
    """How often the timer of a guest that stands still has ticked."""
    said = _ask(host, "human-monitor-command", **{"command-line": f"xp /1wx {TICKS:#x}"})
    return int(said.split(":")[1], 16)


def _disk(host: Any, disk: hvcore.Disk, what: str) -> None:
    """Let QEMU write to a disk, or flush it, as the guest would."""
    place = f"/machine/peripheral/{device_id('disk', disk.uuid)}/virtio-backend"
    line = f'qemu-io -d {place} "{what}"'
    assert _ask(host, "human-monitor-command", **{"command-line": line}) == ""


def _holds(host: Any, disk: hvcore.Disk, value: int) -> bool:
    """Whether that is what the guest would read: what QEMU has not written out is written out first."""
    _disk(host, disk, "flush")
    return _image_holds(disk, value)


def _image_holds(disk: hvcore.Disk, value: int) -> bool:
    command = ["qemu-io", "-r", "-U", "-f", "qcow2", "-c", f"read -P {value:#x} 0 64k", disk.path]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    assert "read 65536/65536 bytes" in said, said
    return "verification failed" not in said


def _write(host: Any, disk: hvcore.Disk, value: int) -> None:
    _disk(host, disk, f"write -P {value:#x} 0 64k")
    assert _holds(host, disk, value)


def _image_write(disk: hvcore.Disk, value: int) -> None:
    """Write to the image of a disk that nobody has open."""
    command = ["qemu-io", "-f", "qcow2", "-c", f"write -P {value:#x} 0 64k", disk.path]
    subprocess.run(command, capture_output=True, check=True)
    assert _image_holds(disk, value)


def _tags(disk: hvcore.Disk) -> list[str]:
    """The snapshots in the image of a disk."""
    done = subprocess.run(["qemu-img", "info", "-U", "--output=json", disk.path], capture_output=True, check=True)
    return [row["name"] for row in json.loads(done.stdout).get("snapshots", [])]


def _names(host: Any) -> list[str]:
    return [one.name for one in host.driver.list_snapshots("web1").snapshots]


def _state(host: Any) -> InstanceState:
    state: InstanceState = host.driver.get_instance_info("web1").state
    return state


def _wait_later(console: Any, ticks: int) -> None:
    """Return when the guest has gone on beyond a moment."""
    while True:
        console.send(b"c")
        console.expect(b"count=")
        if int(console.expect(b"\r\n"), 16) > ticks:
            return


CASES = [
    ("tcg", "pc", "none", {}),
    ("kvm", "q35", "none", LIMITS),
    pytest.param("tcg", "q35", "confined", {"iothread": 0}, marks=pytest.mark.skipif(not ROOT, reason="needs root")),
]


@pytest.mark.parametrize(("accel", "machine", "model", "params"), CASES)
def test_a_running_guest_goes_back(host: Any, accel: str, machine: str, model: str, params: dict[str, Any]) -> None:
    """Memory, to the tick of its clock, and all writable disks; it runs on afterwards, and other snapshots stay."""
    disks = [_qcow2(host, "a.qcow2", 1, params=params), _qcow2(host, "b.qcow2", 2)]
    disks.append(attrs.evolve(host.raw_disk(), read_only=True, uuid=_uuid(3)))
    definition = host.instance(
        accel=accel, disks=disks, security_model=model, params={"machine": machine, "iothreads": 1}, nics=[hvcore.Nic()]
    )
    console = host.start(definition)
    for disk in disks[:2]:
        _write(host, disk, 0x11)
    host.driver.pause_instance("web1")
    then = _ticks(host)
    seen: list[hvcore.Progress] = []
    taken = host.driver.create_snapshot("web1", "first", on_progress=seen.append)
    assert (taken.memory, taken.state) == (True, InstanceState.PAUSED)
    assert [disk.path for disk in taken.disks] == [disk.path for disk in disks[:2]]
    assert seen
    assert all(one.done <= one.total for one in seen)
    assert _state(host) is InstanceState.PAUSED
    host.driver.resume_instance("web1")
    _wait_later(console, then)
    assert host.driver.create_snapshot("web1", "second").state is InstanceState.RUNNING
    assert _state(host) is InstanceState.RUNNING
    for disk in disks[:2]:
        _write(host, disk, 0x22)
    pid = host.pid()
    assert host.driver.revert_snapshot("web1", "first").after is InstanceState.PAUSED
    assert (_state(host), host.pid()) == (InstanceState.PAUSED, pid)
    assert _ticks(host) == then
    assert all(_holds(host, disk, 0x11) for disk in disks[:2])
    assert host.driver.revert_snapshot("web1", "second").after is InstanceState.RUNNING
    console.send(b"e")
    console.expect(b"ok\r\n")
    assert _names(host) == ["first", "second"]
    assert host.driver.delete_snapshot("web1", "first").name == "first"
    assert _names(host) == ["second"]
    assert [_tags(disk) for disk in disks[:2]] == [["second"], ["second"]]
    host.driver.delete_snapshot("web1", "second")
    assert [_tags(disk) for disk in disks[:2]] == [[], []]
    assert "data/kvm/instances/web1/snapshots.json" not in host.files()
    console.send(b"e")
    console.expect(b"ok\r\n")


def test_one_that_was_stopped_is_started_as_what_it_was(host: Any) -> None:
    """With the hardware of that time, a disk that was added included; and once more, paused."""
    disk, added = _qcow2(host, "a.qcow2", 1), _qcow2(host, "b.qcow2", 2)
    definition = host.instance(disks=[disk], params={"machine": "q35"})
    host.start(definition)
    assert host.driver.hot_add_device("web1", added).done
    _write(host, added, 0x11)
    host.driver.create_snapshot("web1", "runs")
    host.driver.pause_instance("web1")
    then = _ticks(host)
    host.driver.create_snapshot("web1", "stands")
    _write(host, added, 0x22)
    host.driver.stop_instance("web1", force=True)
    transition = host.driver.revert_snapshot("web1", "runs")
    assert (transition.before, transition.after) == (InstanceState.STOPPED, InstanceState.RUNNING)
    assert {device.uuid for device in host.driver.get_instance_info("web1").devices} == {disk.uuid, added.uuid}
    assert _holds(host, added, 0x11)
    console = host.attach("web1")
    console.send(b"e")
    console.expect(b"ok\r\n")
    host.driver.stop_instance("web1", force=True)
    assert host.driver.revert_snapshot("web1", "stands").after is InstanceState.PAUSED
    assert (_state(host), _ticks(host)) == (InstanceState.PAUSED, then)
    host.driver.resume_instance("web1")
    assert _state(host) is InstanceState.RUNNING
    host.driver.stop_instance("web1", force=True)
    # Its tags would still be there if anything had been left.
    assert [_tags(one) for one in (disk, added)] == [["runs", "stands"]] * 2


def test_disks_alone(host: Any) -> None:
    """Of an instance that is not alive, and of one that runs: the latter is not stopped for it."""
    disks = [_qcow2(host, "a,b.qcow2", 1), _qcow2(host, "-b.qcow2", 2)]
    definition = host.instance(disks=disks)
    _image_write(disks[0], 0x11)
    taken = host.driver.create_snapshot(definition, "still")
    assert (taken.memory, taken.state) == (False, InstanceState.STOPPED)
    _image_write(disks[0], 0x22)
    with pytest.raises(hvcore.NotRunning):
        host.driver.create_snapshot("web1", "nameless")
    with pytest.raises(hvcore.NotRunning):
        host.driver.create_snapshot(definition, "memory", memory=True)
    host.start(definition)
    taken = host.driver.create_snapshot("web1", "live", memory=False)
    assert (taken.memory, taken.state) == (False, InstanceState.RUNNING)
    with pytest.raises(WrongState, match="while it is alive"):
        host.driver.revert_snapshot("web1", "still")
    host.driver.stop_instance("web1", force=True)
    host.driver.revert_snapshot("web1", "still")
    assert _image_holds(disks[0], 0x11)
    host.driver.revert_snapshot("web1", "live")
    assert _image_holds(disks[0], 0x22)
    assert [_tags(disk) for disk in disks] == [["still", "live"]] * 2
    for name in ("still", "live"):
        host.driver.delete_snapshot("web1", name)
    assert [_tags(disk) for disk in disks] == [[], []]


def _codes(raised: Any) -> list[tuple[str, str]]:
    return [(finding.code, finding.path) for finding in raised.value.findings]


def test_what_stands_against_taking_one(host: Any) -> None:
    """All of it at once, and nothing is touched."""
    disks = [_qcow2(host, "a.qcow2", 1), attrs.evolve(host.raw_disk(), uuid=_uuid(2)), _qcow2(host, "c.qcow2", 3)]
    subprocess.run(["qemu-img", "snapshot", "-c", "theirs", disks[0].path], check=True)
    floppy = host.directory / "floppy.img"
    floppy.write_bytes(bytes(1474560))
    host.start(host.instance(disks=disks, params={"floppy": str(floppy)}))
    with pytest.raises(hvcore.InvalidParameters) as raised:
        host.driver.create_snapshot("web1", "hvcore-before")
    assert _codes(raised) == [
        ("reserved-name", "snapshot"),
        ("no-snapshots", "disks[1].format"),
        ("no-snapshots", "params.floppy"),
    ]
    for wrong in ("", "1", "-a", "a/b", "a b", "a\n", "a,b", "ü", "x" * 64, None, 7):
        with pytest.raises(hvcore.InvalidParameters) as raised:
            host.driver.create_snapshot("web1", wrong)
        assert _codes(raised) == [("invalid-value", "snapshot")]
    with pytest.raises(hvcore.InvalidParameters):
        host.driver.create_snapshot("web1", "fine", memory="yes")
    host.driver.stop_instance("web1", force=True)
    host.start(host.instance(disks=[disks[0]]))
    with pytest.raises(hvcore.InvalidParameters) as raised:
        host.driver.create_snapshot("web1", "theirs")
    assert _codes(raised) == [("snapshot-exists", "snapshot")]
    host.driver.create_snapshot("web1", "mine")
    with pytest.raises(hvcore.InvalidParameters) as raised:
        host.driver.create_snapshot("web1", "mine")
    assert _codes(raised) == [("snapshot-exists", "snapshot")]
    for operation in (host.driver.revert_snapshot, host.driver.delete_snapshot):
        with pytest.raises(hvcore.InvalidParameters) as raised:
            operation("web1", "yours")
        assert _codes(raised) == [("no-such-snapshot", "snapshot")]
        assert "it has mine" in str(raised.value)
    assert _tags(disks[0]) == ["theirs", "mine"]
    host.driver.stop_instance("web1", force=True)
    host.start(host.instance())
    with pytest.raises(hvcore.InvalidParameters) as raised:
        host.driver.create_snapshot("web1", "diskless")
    assert _codes(raised) == [("no-snapshots", "disks")]


def test_what_is_not_as_it_was(host: Any) -> None:
    """Other hardware, a dirty bitmap, an image without the snapshot: all found before the guest is touched."""
    disks = [_qcow2(host, "a.qcow2", 1), _qcow2(host, "b.qcow2", 2)]
    host.start(host.instance(disks=disks))
    host.driver.create_snapshot("web1", "first")
    host.driver.stop_instance("web1", force=True)
    subprocess.run(["qemu-img", "snapshot", "-d", "first", disks[1].path], check=True)
    console = host.start(host.instance(disks=[*disks, _qcow2(host, "c.qcow2", 3)], memory="48MiB"))
    _ask(host, "block-dirty-bitmap-add", node=device_id("disk", disks[0].uuid), name="backup")
    pid = host.pid()
    with pytest.raises(hvcore.InvalidParameters) as raised:
        host.driver.revert_snapshot("web1", "first")
    assert _codes(raised) == [
        ("differs", "memory"),
        ("differs", "disks"),
        ("dirty-bitmap", "disks[0]"),
        ("snapshot-missing", "disks[1].path"),
    ]
    assert (_state(host), host.pid()) == (InstanceState.RUNNING, pid)
    console.send(b"e")
    console.expect(b"ok\r\n")
    host.driver.stop_instance("web1", force=True)
    before = host.files()
    with pytest.raises(hvcore.InvalidParameters) as raised:
        host.driver.revert_snapshot("web1", "first")
    assert _codes(raised) == [("snapshot-missing", "disks[1].path")]
    assert host.files() == before
    host.driver.delete_snapshot("web1", "first")
    assert _tags(disks[0]) == []


def test_one_that_is_stopped_and_has_checkpoints(host: Any) -> None:
    """QEMU reverts no image with bitmaps: that is found before anything is begun, and nothing is left half done."""
    disk = _qcow2(host, "a.qcow2", 1)
    definition = host.instance(disks=[disk])
    host.driver.create_snapshot(definition, "still")
    host.start(definition)
    host.driver.create_snapshot("web1", "live")
    host.driver.backup_instance("web1", str(host.directory), checkpoint="monday")
    host.driver.stop_instance("web1", force=True)
    for name in ("still", "live"):
        with pytest.raises(hvcore.InvalidParameters) as raised:
            host.driver.revert_snapshot("web1", name)
        assert _codes(raised) == [("dirty-bitmap", "disks[0]")]
        assert "hvcore:monday" in str(raised.value)
    assert _tags(disk) == ["still", "live"]
    assert host.driver.recover().instances == ()
    host.start(definition)
    host.driver.delete_checkpoint("web1", "monday")
    host.driver.stop_instance("web1", force=True)
    host.driver.revert_snapshot("web1", "still")
    assert host.driver.get_instance_info("web1").state is InstanceState.STOPPED


@contextmanager
def _no_file_above(pid: int, size: int) -> Iterator[None]:
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def test_no_room_for_it(host: Any) -> None:
    """QEMU's own words; the guest runs on, no snapshot is left, and neither is one of the attempt to go back."""
    disk = _qcow2(host, "a.qcow2", 1)
    console = host.start(host.instance(disks=[disk], security_model="none"))
    host.driver.create_snapshot("web1", "first")
    console.send(b"d")
    console.expect(b"ok\r\n")
    _write(host, disk, 0x22)
    with _no_file_above(host.pid(), os.stat(disk.path).st_size):
        for attempt in (
            lambda: host.driver.create_snapshot("web1", "second"),
            lambda: host.driver.revert_snapshot("web1", "first"),
        ):
            with pytest.raises(hvcore.HypervisorRefused) as raised:
                attempt()
            assert raised.value.request == "snapshot-save"
            assert _state(host) is InstanceState.RUNNING
    assert (_names(host), _tags(disk)) == (["first"], ["first"])
    assert _holds(host, disk, 0x22)
    console.send(b"e")
    console.expect(b"ok\r\n")
    assert host.driver.recover().instances == ()
    host.driver.create_snapshot("web1", "second")


def _destroy_memory(disk: hvcore.Disk, tag: str) -> None:
    """Overwrite the memory of a snapshot in an image that nobody has open, and leave all else as it is."""
    data = bytearray(Path(disk.path).read_bytes())
    at = data.find(b"QEVM")
    assert at > 0
    data[at : at + 4] = b"nope"
    Path(disk.path).write_bytes(bytes(data))
    assert tag in _tags(disk)


def test_one_that_cannot_be_loaded(host: Any) -> None:
    """What an instance was before comes back, whether it ran or was stopped: its disks, its memory, its state."""
    disk = _qcow2(host, "a.qcow2", 1)
    host.start(host.instance(disks=[disk]))
    _write(host, disk, 0x11)
    host.driver.create_snapshot("web1", "first")
    host.driver.stop_instance("web1", force=True)
    _destroy_memory(disk, "first")
    console = host.start(host.instance(disks=[disk]))
    console.send(b"n")
    console.expect(b"ok\r\n")
    _write(host, disk, 0x22)
    with pytest.raises(hvcore.HypervisorRefused) as raised:
        host.driver.revert_snapshot("web1", "first")
    assert raised.value.request == "snapshot-load"
    assert _state(host) is InstanceState.RUNNING
    assert _holds(host, disk, 0x22)
    console.send(b"e")
    console.expect(b"ok\r\n")
    assert _tags(disk) == ["first"]
    host.driver.stop_instance("web1", force=True)
    before = host.files()
    with pytest.raises(hvcore.HypervisorError):
        host.driver.revert_snapshot("web1", "first")
    assert host.files() == before
    assert _image_holds(disk, 0x22)
    assert _tags(disk) == ["first"]
    assert _state(host) is InstanceState.STOPPED


def test_who_is_interrupted_takes_it_back(host: Any) -> None:
    """As with Ctrl-C, at every word of progress: the guest is what it was."""
    disk = _qcow2(host, "a.qcow2", 1)
    console = host.start(host.instance(disks=[disk]))
    host.driver.create_snapshot("web1", "first")
    _write(host, disk, 0x22)

    def interrupt_at(number: int) -> Callable[[hvcore.Progress], object]:
        left = [number]

        def tell(_: hvcore.Progress) -> None:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        return tell

    for number in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            host.driver.create_snapshot("web1", "second", on_progress=interrupt_at(number))
        assert (_names(host), _tags(disk)) == (["first"], ["first"])
    for number in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            host.driver.revert_snapshot("web1", "first", on_progress=interrupt_at(number))
        assert (_names(host), _tags(disk)) == (["first"], ["first"])
        assert _state(host) is InstanceState.RUNNING
        assert _holds(host, disk, 0x22)
    console.send(b"e")
    console.expect(b"ok\r\n")
    assert host.driver.recover().instances == ()


def test_without_any_time(host: Any) -> None:
    """Nothing of it is left."""
    disk = _qcow2(host, "a.qcow2", 1)
    console = host.start(host.instance(disks=[disk]))
    host.driver.create_snapshot("web1", "first")
    for attempt in (
        lambda: host.driver.create_snapshot("web1", "second", timeout=0.0),
        lambda: host.driver.revert_snapshot("web1", "first", timeout=0.0),
        lambda: host.driver.delete_snapshot("web1", "first", timeout=0.0),
    ):
        with pytest.raises(OperationFailed):
            attempt()
        assert (_names(host), _tags(disk)) == (["first"], ["first"])
    console.send(b"e")
    console.expect(b"ok\r\n")


def test_a_qemu_that_is_late(host: Any) -> None:
    """What it does after the deadline is taken back as well: it cannot be told to leave it."""
    disk = _qcow2(host, "a.qcow2", 1)
    console = host.start(host.instance(disks=[disk]))
    host.driver.create_snapshot("web1", "first")
    _write(host, disk, 0x22)
    pid = host.pid()

    def late(phase: str) -> Callable[[hvcore.Progress], object]:
        once = iter([True])

        def tell(progress: hvcore.Progress) -> None:
            if progress.phase == phase and next(once, False):
                os.kill(pid, signal.SIGSTOP)
                threading.Timer(5.0, os.kill, (pid, signal.SIGCONT)).start()

        return tell

    for attempt in (
        lambda: host.driver.create_snapshot("web1", "second", on_progress=late("saving"), timeout=3.0),
        lambda: host.driver.revert_snapshot("web1", "first", on_progress=late("keeping"), timeout=3.0),
        lambda: host.driver.revert_snapshot("web1", "first", on_progress=late("loading"), timeout=3.0),
    ):
        with pytest.raises(hvcore.DeadlineExceeded):
            attempt()
        assert (_names(host), _tags(disk)) == (["first"], ["first"])
        assert _state(host) is InstanceState.RUNNING
        assert _holds(host, disk, 0x22)
    console.send(b"e")
    console.expect(b"ok\r\n")


def test_qemu_dies_meanwhile(host: Any) -> None:
    """It is said, and the images are what they were."""
    disk = _qcow2(host, "a.qcow2", 1)
    host.start(host.instance(disks=[disk]))
    host.driver.create_snapshot("web1", "first")
    _write(host, disk, 0x22)
    pid = host.pid()
    with pytest.raises(OperationFailed):
        host.driver.revert_snapshot("web1", "first", on_progress=lambda _: os.kill(pid, signal.SIGKILL))
    assert _state(host) is InstanceState.CRASHED
    assert _tags(disk) == ["first"]
    assert _image_holds(disk, 0x22)
    host.driver.start_instance(host.instance(disks=[disk]))


def test_with_a_newer_qemu(host: Any, newer_qemu: str) -> None:
    """Also with a throttle, which must not be named: QEMU would end."""
    disks = [_qcow2(host, "a.qcow2", 1, params=LIMITS), _qcow2(host, "b.qcow2", 2, params={"iothread": 0})]
    console = host.start(host.instance(disks=disks, params={"qemu": newer_qemu, "iothreads": 1}))
    for disk in disks:
        _write(host, disk, 0x11)
    host.driver.create_snapshot("web1", "first")
    host.driver.create_snapshot("web1", "disks", memory=False)
    for disk in disks:
        _write(host, disk, 0x22)
    host.driver.revert_snapshot("web1", "first")
    assert all(_holds(host, disk, 0x11) for disk in disks)
    console.send(b"e")
    console.expect(b"ok\r\n")
    host.driver.delete_snapshot("web1", "first")
    assert [_tags(disk) for disk in disks] == [["disks"], ["disks"]]


@pytest.mark.linux
def test_linux_goes_back(host: Any, boot: Any) -> None:
    """Its files in memory and what is on its disk are those of the snapshot, in its process and in another."""
    disk = _qcow2(host, "a.qcow2", 1)
    shell = boot("q35", disks=[disk])
    fill = "head -c 1000000 /dev/urandom >/tmp/random; dd if=/tmp/random of=/dev/vda conv=fsync 2>/dev/null"
    sums = "echo 3 >/proc/sys/vm/drop_caches; sha256sum </tmp/random; head -c 1000000 /dev/vda | sha256sum"
    shell.run(fill)
    then = shell.run(sums)
    assert len(set(then.splitlines())) == 1
    host.driver.create_snapshot("web1", "first", timeout=120)
    shell.run(fill)
    assert shell.run(sums) != then
    host.driver.revert_snapshot("web1", "first", timeout=120)
    assert shell.run(sums) == then
    shell.run(fill)
    host.driver.pause_instance("web1")
    host.driver.create_snapshot("web1", "second", timeout=120)
    host.driver.stop_instance("web1", force=True)
    host.driver.revert_snapshot("web1", "first", timeout=120)
    shell.console.close()
    console = host.attach("web1")
    console._socket.settimeout(120)
    shell.console = console
    assert shell.run(sums) == then


def test_a_disk_that_it_has_no_more(host: Any) -> None:
    """A snapshot goes from its image as well, if that is still there."""
    disks = [_qcow2(host, f"{name}.qcow2", number) for number, name in enumerate("abc", 1)]
    host.start(host.instance(disks=disks))
    host.driver.create_snapshot("web1", "first")
    host.driver.stop_instance("web1", force=True)
    os.unlink(disks[2].path)
    host.start(host.instance(disks=disks[:1]))
    host.driver.delete_snapshot("web1", "first")
    assert [_tags(disk) for disk in disks[:2]] == [[], []]
    host.driver.stop_instance("web1", force=True)
    taken = host.driver.create_snapshot(host.instance(disks=disks[:2]), "second")
    assert len(taken.disks) == 2
    os.unlink(disks[1].path)
    host.driver.delete_snapshot("web1", "second")
    assert (_names(host), _tags(disks[0])) == ([], [])
