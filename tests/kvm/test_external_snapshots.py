"""External snapshots: images stay as they are, overlays take what is written, and are committed while a guest runs."""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import Deadline, InstanceState, InvalidParameters, WrongState
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.qmp import QmpClient

pytestmark = pytest.mark.qemu

ROOT = os.geteuid() == 0


def _uuid(number: int) -> str:
    return f"ee000000-0000-4000-8000-{number:012x}"


def _disk(host: Any, number: int, form: str, **changes: Any) -> hvcore.Disk:
    name = f"a,b{number}.{form}"
    disk = host.raw_disk(name, 8 << 20) if form == "raw" else host.qcow2_disk(name)
    return attrs.evolve(disk, uuid=_uuid(number), **changes)


@contextmanager
def _monitor(host: Any) -> Iterator[QmpClient]:
    with QmpClient.connect(str(host.directory / "state/kvm/instances/web1/control"), Deadline.after(30)) as client:
        yield client


def _ask(host: Any, command: str, **arguments: Any) -> Any:
    with _monitor(host) as client:
        return client.execute(command, arguments, deadline=Deadline.after(30))


def _write(host: Any, disk: hvcore.Disk, value: int, offset: str = "0") -> None:
    """Let QEMU write to a disk as its guest would, and to its images."""
    place = f"/machine/peripheral/{device_id('disk', disk.uuid)}/virtio-backend"
    for what in (f"write -P {value:#x} {offset} 64k", "flush"):
        line = f'qemu-io -d {place} "{what}"'
        assert _ask(host, "human-monitor-command", **{"command-line": line}) == ""


def _chain(host: Any, disk: hvcore.Disk) -> list[tuple[str, str]]:
    """The images of a disk by the driver's account, the topmost last."""
    found = [(disk.path, disk.format)]
    for one in host.driver.list_snapshots("web1").snapshots:
        found += [(row.overlay, "qcow2") for row in one.disks if row.uuid == disk.uuid]
    return found


def _read(chain: Sequence[tuple[str, str]], value: int, offset: str = "0") -> bool:
    """Whether that is what images that lie upon each other hold, for another program."""
    options = []
    for number, (path, form) in enumerate(reversed(chain)):
        below, escaped = "backing." * number, path.replace(",", ",,")
        options.append(f"{below}driver={form},{below}file.driver=file,{below}file.filename={escaped}")
    command = ["qemu-io", "-r", "-U", "--image-opts", ",".join(options), "-c", f"read -P {value:#x} {offset} 64k"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "read 65536/65536 bytes" in said.stdout, said
    return "verification failed" not in said.stdout


def _holds(host: Any, disk: hvcore.Disk, value: int, offset: str = "0") -> bool:
    return _read(_chain(host, disk), value, offset)


def _image(disk: hvcore.Disk, value: int, offset: str = "0") -> bool:
    """Whether the image that the definition names holds that by itself."""
    return _read([(disk.path, disk.format)], value, offset)


def _names(host: Any) -> list[str]:
    return [one.name for one in host.driver.list_snapshots("web1").snapshots]


def _overlays(host: Any) -> list[str]:
    """The overlays beside the images."""
    return sorted(path.name for path in host.directory.glob("a,b*.*.qcow2"))


def _inside(host: Any) -> tuple[list[str], int, int]:
    """The block nodes with a name of ours, how many descriptor sets, and how many jobs QEMU has."""
    nodes = [row["node-name"] for row in _ask(host, "query-named-block-nodes", flat=True)]
    counts = (len(_ask(host, "query-fdsets")), len(_ask(host, "query-jobs")))
    return sorted(name for name in nodes if not name.startswith("#")), *counts


def _state(host: Any) -> InstanceState:
    state: InstanceState = host.driver.get_instance_info("web1").state
    return state


def _codes(error: InvalidParameters) -> set[str]:
    return {finding.code for finding in error.findings}


CASES = [
    ("tcg", "pc", "none", {}),
    ("kvm", "q35", "none", {"cache": "none", "throttle": {"iops_total": 100000}}),
    pytest.param("tcg", "q35", "confined", {"iothread": 0}, marks=pytest.mark.skipif(not ROOT, reason="needs root")),
]


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize(("accel", "machine", "model", "params"), CASES)
def test_while_it_runs(
    host: Any, request: Any, accel: str, machine: str, model: str, params: dict[str, Any], newer: bool
) -> None:
    """Two on top of each other, of a raw and a qcow2 disk; a start of the chain; both committed while it runs."""
    disks = [_disk(host, 1, "raw", params=params), _disk(host, 2, "qcow2")]
    still = attrs.evolve(host.raw_disk(), read_only=True, uuid=_uuid(3))
    program = {"qemu": request.getfixturevalue("newer_qemu")} if newer else {}
    definition = host.instance(
        accel=accel,
        disks=[*disks, still],
        security_model=model,
        params={"machine": machine, "iothreads": 1, **program},
    )
    host.start(definition)
    before = _inside(host)
    for disk in disks:
        _write(host, disk, 0x11)
    seen: list[hvcore.Progress] = []
    first = host.driver.create_snapshot("web1", "first", external=True, on_progress=seen.append)
    assert (first.external, first.revertible, first.memory, first.state) == (True, True, False, InstanceState.RUNNING)
    assert [(row.uuid, row.path) for row in first.disks] == [(disk.uuid, disk.path) for disk in disks]
    assert seen
    for disk in disks:
        _write(host, disk, 0x22)
        assert _image(disk, 0x11)
        assert _holds(host, disk, 0x22)
    second = host.driver.create_snapshot("web1", "second", external=True)
    assert [row.path for row in second.disks] == [row.overlay for row in first.disks]
    for disk in disks:
        _write(host, disk, 0x33, "1M")
        assert _image(disk, 0x11)
    host.driver.stop_instance("web1", force=True)
    host.start(definition)
    for disk in disks:
        assert _holds(host, disk, 0x22)
        assert _holds(host, disk, 0x33, "1M")
        _write(host, disk, 0x44, "2M")
        assert _image(disk, 0x11)

    assert host.driver.delete_snapshot("web1", "second", on_progress=seen.append).name == "second"
    assert _names(host) == ["first"]
    assert all(one.done <= one.total for one in seen)
    for disk in disks:
        assert _image(disk, 0x11)
        assert _holds(host, disk, 0x44, "2M")
        _write(host, disk, 0x55)
    host.driver.delete_snapshot("web1", "first")
    assert _state(host) is InstanceState.RUNNING
    assert (_names(host), _overlays(host)) == ([], [])
    assert _inside(host) == before
    for disk in disks:
        _write(host, disk, 0x66, "3M")
        assert _image(disk, 0x55)
        assert _image(disk, 0x33, "1M")
        assert _image(disk, 0x44, "2M")
        assert _image(disk, 0x66, "3M")
    assert not host.driver.verify_instance("web1")


def _held(host: Any, disk: hvcore.Disk, name: str) -> list[tuple[str, str]]:
    """The images that lie below the overlay of a snapshot, the topmost last: what it holds."""
    chain = _chain(host, disk)
    (row,) = [
        row
        for row in host.driver.list_snapshots("web1").snapshots[_names(host).index(name)].disks
        if row.uuid == disk.uuid
    ]
    held = chain[: [path for path, _ in chain].index(row.overlay)]
    assert held[-1][0] == row.path
    return held


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize(("accel", "machine", "model", "params"), CASES)
def test_from_the_middle_while_it_runs(
    host: Any, request: Any, accel: str, machine: str, model: str, params: dict[str, Any], newer: bool
) -> None:
    """Those below others go, and the others hold what they held; before and after a start with what is left."""
    disks = [_disk(host, 1, "raw", params=params), _disk(host, 2, "qcow2")]
    program = {"qemu": request.getfixturevalue("newer_qemu")} if newer else {}
    definition = host.instance(
        accel=accel, disks=disks, security_model=model, params={"machine": machine, "iothreads": 1, **program}
    )
    host.start(definition)
    before = _inside(host)
    names = ["one", "two", "three", "four"]
    for number, name in enumerate(names, 1):
        for disk in disks:
            _write(host, disk, number)
            _write(host, disk, number, f"{number}M")
        host.driver.create_snapshot("web1", name, external=True)
    for disk in disks:
        _write(host, disk, 9)
    backups = host.directory / "backups"
    backups.mkdir()
    host.driver.backup_instance("web1", str(backups), checkpoint="a")

    def right(now: int = 9) -> None:
        for disk in disks:
            assert _holds(host, disk, now)
            assert all(_holds(host, disk, number, f"{number}M") for number in range(1, 5))
            for name in _names(host):
                number = names.index(name) + 1
                assert _read(_held(host, disk, name), number)
                assert _read(_held(host, disk, name), number, f"{number}M")
                assert number == 4 or not _read(_held(host, disk, name), number + 1, f"{number + 1}M")

    right()
    seen: list[hvcore.Progress] = []
    assert host.driver.delete_snapshot("web1", "two", on_progress=seen.append).name == "two"
    assert (_names(host), len(_overlays(host))) == (["one", "three", "four"], 6)
    assert seen
    assert all(one.done <= one.total for one in seen)
    assert _inside(host)[1:] == (before[1] + 6, 0)
    right()
    # Nothing has been written since, and the checkpoints are where they were.
    assert [disk.copied for disk in host.driver.backup_instance("web1", str(backups), since="a").disks] == [0, 0]
    host.driver.stop_instance("web1", force=True)
    host.start(definition)
    right()
    for disk in disks:
        _write(host, disk, 10)
    host.driver.delete_snapshot("web1", "one")
    assert _names(host) == ["three", "four"]
    right(10)
    assert not host.driver.verify_instance("web1")
    host.driver.delete_checkpoint("web1", "a")
    for name in ("three", "four"):
        host.driver.delete_snapshot("web1", name)
        right(10)
    assert (_names(host), _overlays(host)) == ([], [])
    assert _inside(host) == before
    for disk in disks:
        assert _image(disk, 10)
        _write(host, disk, 11)
        assert _image(disk, 11)
    host.driver.stop_instance("web1", force=True)
    host.start(definition)


def test_from_the_middle_while_it_is_stopped(host: Any) -> None:
    """The same by qemu-img, and what is left can be reverted to as before."""
    disks = [_disk(host, 1, "raw"), _disk(host, 2, "qcow2")]
    definition = host.instance(disks=disks)
    host.driver.start_instance(definition)
    host.driver.stop_instance("web1", force=True)
    for number, name in enumerate(("one", "two", "three"), 1):
        for disk in disks:
            _image_write(host, disk, number)
            _image_write(host, disk, number, f"{number}M")
        host.driver.create_snapshot(definition, name, external=True)
    for disk in disks:
        _image_write(host, disk, 9)
    for name, left in (("two", ["one", "three"]), ("one", ["three"])):
        host.driver.delete_snapshot("web1", name)
        assert (_names(host), len(_overlays(host))) == (left, 2 * len(left))
        for disk in disks:
            assert _holds(host, disk, 9)
            assert _read(_held(host, disk, "three"), 3)
    host.driver.revert_snapshot("web1", "three")
    for disk in disks:
        assert _holds(host, disk, 3)
        assert all(_holds(host, disk, number, f"{number}M") for number in (1, 2, 3))
    host.start(definition)


def test_a_delete_from_the_middle_that_fails(host: Any) -> None:
    """One disk of two cannot be committed: the guest goes on, and it can be deleted again; the others are as before."""
    disks = [_disk(host, 1, "qcow2"), _disk(host, 2, "raw")]
    definition = host.instance(disks=disks)
    host.start(definition)
    for number, name in enumerate(("one", "two"), 1):
        for disk in disks:
            _write(host, disk, number)
        host.driver.create_snapshot("web1", name, external=True)
    host.driver.stop_instance("web1", force=True)
    host.start(definition)
    for disk in disks:
        _write(host, disk, 9)
    with open(disks[1].path, "rb") as reader:
        fcntl.fcntl(reader, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 201, 1, 0))
        with pytest.raises(hvcore.HypervisorRefused, match="lock"):
            host.driver.delete_snapshot("web1", "one")
    assert [(one.name, one.revertible) for one in host.driver.list_snapshots("web1").snapshots] == [
        ("one", False),
        ("two", True),
    ]
    with pytest.raises(hvcore.DeadlineExceeded):
        host.driver.delete_snapshot("web1", "one", timeout=0)
    for disk in disks:
        assert _holds(host, disk, 9)
        assert _read(_held(host, disk, "two"), 2)
    host.driver.delete_snapshot("web1", "one")
    for disk in disks:
        assert _holds(host, disk, 9)
        assert _read(_held(host, disk, "two"), 2)
        _write(host, disk, 10)
    host.driver.stop_instance("web1", force=True)
    host.driver.revert_snapshot("web1", "two")
    host.start(definition)
    for disk in disks:
        assert _holds(host, disk, 2)


def _image_write(host: Any, disk: hvcore.Disk, value: int, offset: str = "0") -> None:
    """Write to a disk of an instance that is not alive, as a start of it would find it."""
    path, form = _chain(host, disk)[-1]
    command = ["qemu-io", "-f", form, "-c", f"write -P {value:#x} {offset} 64k", path]
    subprocess.run(command, capture_output=True, check=True)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_while_it_is_stopped(host: Any, form: str) -> None:
    """Taken, reverted time and again, and deleted without a start; a start goes on where that left it."""
    disk = _disk(host, 1, form)
    definition = host.instance(disks=[disk])
    host.driver.start_instance(definition)
    host.driver.stop_instance("web1", force=True)
    _image_write(host, disk, 0x11)
    taken = host.driver.create_snapshot(definition, "first", external=True)
    assert (taken.external, taken.state) == (True, InstanceState.STOPPED)
    for value in (0x22, 0x33):
        _image_write(host, disk, value)
        assert _image(disk, 0x11)
        transition = host.driver.revert_snapshot("web1", "first")
        assert (transition.before, transition.after) == (InstanceState.STOPPED, InstanceState.STOPPED)
        assert _holds(host, disk, 0x11)
        assert len(_overlays(host)) == 1
    host.start(definition)
    _write(host, disk, 0x44)
    with pytest.raises(WrongState, match="stop it first"):
        host.driver.revert_snapshot("web1", "first")
    host.driver.stop_instance("web1", force=True)
    host.driver.create_snapshot(definition, "second", external=True)
    # A part of a cluster: the rest of it is what the images further down have.
    _image_write(host, disk, 0x55, "1M")
    with pytest.raises(InvalidParameters) as refused:
        host.driver.revert_snapshot("web1", "first")
    assert _codes(refused.value) == {"snapshot-order"}
    host.driver.delete_snapshot("web1", "second")
    assert _image(disk, 0x11)
    assert _holds(host, disk, 0x44)
    assert _holds(host, disk, 0x55, "1M")
    host.driver.delete_snapshot("web1", "first")
    assert (_names(host), _overlays(host)) == ([], [])
    assert _image(disk, 0x44)
    assert _image(disk, 0x55, "1M")
    host.start(definition)


def test_it_starts_again_and_gets_another_disk(host: Any) -> None:
    """A new life has the overlays; a disk that came later has one less, and each is committed into its own."""
    disk, later = _disk(host, 1, "raw"), _disk(host, 2, "qcow2")
    host.start(host.instance(disks=[disk], params={"machine": "q35"}))
    host.driver.create_snapshot("web1", "first", external=True)
    _write(host, disk, 0x11)
    assert host.driver.reboot_instance("web1", mode="hard").after is InstanceState.RUNNING
    assert host.driver.hot_add_device("web1", later).done
    _write(host, disk, 0x22, "1M")
    _write(host, later, 0x33)
    second = host.driver.create_snapshot("web1", "second", external=True)
    assert [row.uuid for row in second.disks] == [disk.uuid, later.uuid]
    for one in (disk, later):
        _write(host, one, 0x44, "2M")
        assert not _image(one, 0x44, "2M")
    assert [row.device for row in host.driver.get_instance_stats("web1").disks] == [disk.uuid, later.uuid]
    host.driver.delete_snapshot("web1", "second")
    assert _image(later, 0x33)
    assert _image(later, 0x44, "2M")
    assert not _image(disk, 0x11)
    host.driver.delete_snapshot("web1", "first")
    for value, offset in ((0x11, "0"), (0x22, "1M"), (0x44, "2M")):
        assert _image(disk, value, offset)
    assert _overlays(host) == []


def test_what_cannot_be_done_meanwhile(host: Any) -> None:
    """What would see one image where there are several says so, and changes nothing."""
    disk = _disk(host, 1, "qcow2")
    definition = host.instance(disks=[disk])
    host.start(definition)
    host.driver.create_snapshot("web1", "within", memory=False)
    with pytest.raises(InvalidParameters) as refused:
        host.driver.create_snapshot("web1", "first", external=True)
    assert _codes(refused.value) == {"snapshot-kinds"}
    host.driver.delete_snapshot("web1", "within")
    host.driver.create_snapshot("web1", "first", external=True)
    before = _inside(host)
    with pytest.raises(InvalidParameters) as refused:
        host.driver.create_snapshot("web1", "within")
    assert "snapshot-kinds" in _codes(refused.value)
    with pytest.raises(InvalidParameters) as refused:
        host.driver.create_snapshot("web1", "first", external=True)
    assert "snapshot-exists" in _codes(refused.value)
    with pytest.raises(InvalidParameters):
        host.driver.create_snapshot("web1", "second", external=True, memory=True)
    for refuse in (
        lambda: host.driver.migration_info("web1"),
        lambda: host.driver.hot_del_device("web1", disk.uuid),
    ):
        with pytest.raises(WrongState, match="external snapshots: first"):
            refuse()
    assert _inside(host) == before
    _write(host, disk, 0x11)
    host.driver.stop_instance("web1", force=True)
    with pytest.raises(WrongState, match="forgotten"):
        host.driver.cleanup_instance("web1")
    moved = attrs.evolve(_disk(host, 2, "qcow2"), uuid=disk.uuid)
    with pytest.raises(InvalidParameters) as refused:
        host.driver.start_instance(attrs.evolve(definition, disks=(moved,)))
    assert _codes(refused.value) == {"snapshot-base"}
    overlay = _chain(host, disk)[-1][0]
    os.rename(overlay, f"{overlay}.away")
    with pytest.raises(InvalidParameters) as refused:
        host.driver.start_instance(definition)
    assert [(one.code, one.path) for one in refused.value.findings] == [("disk-missing", "disks[0].path")]
    assert overlay in refused.value.findings[0].message
    os.rename(f"{overlay}.away", overlay)
    host.driver.delete_snapshot("web1", "first")
    assert _image(disk, 0x11)


def test_disks_upon_which_nothing_can_be_laid(host: Any) -> None:
    """Each is told with its reason, all at once, and nothing is made."""
    secret = host.directory / "secret"
    secret.write_text("word")
    secret.chmod(0o600)
    disks = [
        _disk(host, 1, "raw"),
        _disk(host, 2, "raw", params={"shared": True}),
        hvcore.Disk(uri="nbd://127.0.0.1:1/x", format="raw", uuid=_uuid(3)),
        _disk(host, 4, "raw", params={"encryption": True, "secret_file": str(secret)}),
        hvcore.Disk(path="/dev/null", format="raw", uuid=_uuid(5)),
    ]
    with pytest.raises(InvalidParameters) as refused:
        host.driver.create_snapshot(host.instance(disks=disks), "first", external=True)
    assert {one.path for one in refused.value.findings} == {
        "disks[1].params.shared",
        "disks[2].uri",
        "disks[3].params.encryption",
        "disks[4].path",
    }
    assert not _overlays(host)
    assert not _names(host)
    assert not host.files()


def test_no_time_and_no_room(host: Any) -> None:
    """Then there is no snapshot, nothing of it is left, and the guest writes where it did."""
    disk = _disk(host, 1, "raw")
    definition = host.instance(disks=[disk])
    host.start(definition)
    before, files = _inside(host), host.files()
    with pytest.raises(hvcore.DeadlineExceeded):
        host.driver.create_snapshot("web1", "first", external=True, timeout=0)
    name = "n" * 240
    with pytest.raises(hvcore.HypervisorError) as failed:
        host.driver.create_snapshot("web1", name, external=True)
    assert "cannot make the overlay" in str(failed.value) or isinstance(failed.value, InvalidParameters)
    assert (_inside(host), host.files()) == (before, files)
    assert (_names(host), _overlays(host)) == ([], [])
    _write(host, disk, 0x11)
    assert _image(disk, 0x11)


def test_a_delete_that_fails_leaves_it_to_be_deleted_again(host: Any) -> None:
    """QEMU does not commit into an image that another one reads; the guest keeps all it has."""
    disk = _disk(host, 1, "raw")
    definition = host.instance(disks=[disk])
    host.start(definition)
    _write(host, disk, 0x11)
    host.driver.create_snapshot("web1", "first", external=True)
    _write(host, disk, 0x22)
    host.driver.stop_instance("web1", force=True)
    host.start(definition)
    with open(disk.path, "rb") as reader:
        # As a QEMU says that it reads, and that nobody else may write (its block/file-posix.c).
        fcntl.fcntl(reader, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 201, 1, 0))
        with pytest.raises(hvcore.HypervisorRefused, match="lock"):
            host.driver.delete_snapshot("web1", "first")
    assert host.driver.list_snapshots("web1").snapshots[0].revertible is False
    assert _holds(host, disk, 0x22)
    _write(host, disk, 0x33, "1M")
    host.driver.stop_instance("web1", force=True)
    with pytest.raises(InvalidParameters) as refused:
        host.driver.revert_snapshot("web1", "first")
    assert _codes(refused.value) == {"snapshot-spoiled"}
    host.start(definition)
    host.driver.delete_snapshot("web1", "first")
    assert (_names(host), _overlays(host)) == ([], [])
    assert _image(disk, 0x22)
    assert _image(disk, 0x33, "1M")


@pytest.mark.parametrize("params", [{}, {"throttle": {"iops_total": 100000}}], ids=["plain", "limited"])
def test_a_guest_lets_go_of_a_disk_with_overlays(
    host: Any, boot: Any, monkeypatch: pytest.MonkeyPatch, params: dict[str, Any]
) -> None:
    """That is not asked of it, but should it do so, all nodes and descriptors of the disk go, whatever they are in."""
    disk = _disk(host, 1, "raw", params=params)
    for name in ("one", "two"):
        # The first is within the node of the second start, the second beside it.
        boot("q35", disks=[disk]).wait("[ -b /dev/vda ]")
        host.driver.create_snapshot("web1", name, external=True)
        if name == "one":
            host.driver.stop_instance("web1", force=True)
    monkeypatch.setattr("hvcore_kvm.operations.refuse_overlays", lambda *_: None)
    assert host.driver.hot_del_device("web1", disk.uuid).done
    assert _inside(host)[0] == []
    opaque = [fd.get("opaque", "") for row in _ask(host, "query-fdsets") for fd in row["fds"]]
    assert not [name for name in opaque if name.startswith(("disk", "layer"))]
    host.driver.stop_instance("web1", force=True)
    for name in ("two", "one"):
        host.driver.delete_snapshot("web1", name)


def test_a_linux_guest_writes_all_the_while_upon_others(host: Any, boot: Any) -> None:
    """Snapshots come at the top and go from the bottom and the middle; what it wrote is there in the end."""
    disk = _disk(host, 1, "raw")
    shell = boot("q35", disks=[disk])
    shell.wait("[ -b /dev/vda ]")
    # A line every 512 bytes, each written to the disk before the next.
    loop = "i=0; while [ ! -e /stop ]; do i=$((i+1)); echo line-$i | dd of=/dev/vda bs=512 seek=$i conv=notrunc,fsync"
    shell.run(f"({loop} 2>/dev/null; echo $i >/count; mv /count /written; done) >/dev/null 2>&1 & true")

    def more(then: int = 0) -> int:
        shell.wait(f"[ $(cat /written) -gt {then + 20} ]")
        return int(shell.run("cat /written"))

    then = more()
    for name in ("one", "two", "three"):
        host.driver.create_snapshot("web1", name, external=True)
        then = more(then)
    for gone, come in (("two", "four"), ("one", "five"), ("four", "six")):
        host.driver.delete_snapshot("web1", gone)
        then = more(then)
        host.driver.create_snapshot("web1", come, external=True)
        then = more(then)
    assert _names(host) == ["three", "five", "six"]
    last = int(shell.run("touch /stop; wait; sync; cat /written"))
    said = shell.run("echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/vda").split()[0]
    for name in ("three", "five", "six"):
        host.driver.delete_snapshot("web1", name)
        assert shell.run("echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/vda").split()[0] == said
    host.driver.stop_instance("web1", force=True)
    content = Path(disk.path).read_bytes()
    assert hashlib.sha256(content).hexdigest() == said
    for number in range(1, last + 1):
        assert content[512 * number :].partition(b"\n")[0] == b"line-%d" % number


def test_a_linux_guest_writes_all_the_while(host: Any, boot: Any) -> None:
    """All it wrote before, between and after is there, while a snapshot was taken and committed."""
    disk = _disk(host, 1, "raw")
    shell = boot("q35", disks=[disk])
    shell.wait("[ -b /dev/vda ]")
    # A line every 512 bytes, each written to the disk before the next.
    loop = "i=0; while [ ! -e /stop ]; do i=$((i+1)); echo line-$i | dd of=/dev/vda bs=512 seek=$i conv=notrunc,fsync"
    shell.run(f"({loop} 2>/dev/null; echo $i >/count; mv /count /written; done) >/dev/null 2>&1 & true")
    shell.wait("[ $(cat /written) -gt 20 ]")
    host.driver.create_snapshot("web1", "first", external=True)
    then = int(shell.run("cat /written"))
    shell.wait(f"[ $(cat /written) -gt {then + 20} ]")
    host.driver.delete_snapshot("web1", "first")
    then = int(shell.run("cat /written"))
    shell.wait(f"[ $(cat /written) -gt {then + 20} ]")
    last = int(shell.run("touch /stop; wait; sync; cat /written"))
    host.driver.stop_instance("web1", force=True)
    content = Path(disk.path).read_bytes()
    for number in range(1, last + 1):
        line = content[512 * number :].partition(b"\n")[0]
        assert line == b"line-%d" % number
