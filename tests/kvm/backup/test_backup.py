"""What is restored from backups is what the disks held at their moments; what cannot be backed up is refused."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import DeadlineExceeded, InstanceState, InvalidParameters, NotRunning, OperationFailed

pytestmark = pytest.mark.qemu

DISK = 8 << 20
_ROOT_TOOLS = os.geteuid() == 0 and all(map(shutil.which, ("setpriv", "prlimit")))


def _three(host: Any, web: Any, place: Path) -> None:
    """A full backup and two with the changes only, each compared with what was on the disks at its moment."""
    web.scribble(1)
    moments, files = [], []
    for number, since in enumerate((None, "c0", "c1")):
        taken = host.driver.backup_instance("web1", str(place), checkpoint=f"c{number}", since=since)
        moments.append([bytes(content) for content in web.content])
        files.append([Path(disk.location) for disk in taken.disks])
        assert taken.mode == ("full" if since is None else "incremental")
        web.nothing_left()
        web.scribble(2 + number)
    assert all(disk.copied < DISK for disk in taken.disks)
    for content, paths in zip(moments, files, strict=True):
        for wanted, path in zip(content, paths, strict=True):
            assert path.stat().st_mode & 0o777 == 0o600
            assert web.whole(path) == wanted


def test_a_full_one_and_two_increments(host: Any, written: Callable[..., Any], place: Path) -> None:
    """Each is the disks at its moment, though they are written on; they may be put together by hand as well."""
    web = written(host.qcow2_disk(), host.raw_disk(size=DISK))
    _three(host, web, place)
    checkpoints = host.driver.list_checkpoints("web1").checkpoints
    assert [checkpoint.name for checkpoint in checkpoints] == ["c0", "c1", "c2"]
    assert [[disk.lasting for disk in checkpoint.disks] for checkpoint in checkpoints] == [[True, False]] * 3
    changed = [checkpoint.disks[0].changed for checkpoint in checkpoints]
    assert changed == sorted(changed, reverse=True)
    uuid = web.uuids()[0]
    merged = web.whole(place / f"{uuid}.c2.qcow2")
    other = place.parent / "elsewhere"
    other.mkdir()
    for number in (2, 1):
        name = f"{uuid}.c{number}.qcow2"
        os.rename(place / name, other / name)
        lost = subprocess.run(["qemu-img", "convert", str(other / name), "/dev/null"], capture_output=True, text=True)
        assert f"{uuid}.c{number - 1}.qcow2" in lost.stderr
        base = ["-b", str(place / f"{uuid}.c{number - 1}.qcow2"), "-F", "qcow2"]
        subprocess.run(["qemu-img", "rebase", "-u", *base, str(other / name)], check=True)
        os.rename(other / name, place / name)
    for number in (2, 1):
        subprocess.run(["qemu-img", "commit", "-q", str(place / f"{uuid}.c{number}.qcow2")], check=True)
    assert web.whole(place / f"{uuid}.c0.qcow2") == merged


@pytest.mark.parametrize(
    "params",
    [
        {"bus": "virtio-blk", "iothread": 0},
        {"bus": "virtio-blk", "throttle": {"iops_total": 100000}},
        {"bus": "scsi"},
        {"bus": "nvme"},
        {"bus": "sata"},
        {"bus": "usb"},
    ],
    ids=lambda params: "-".join(str(value) for value in params if value != "bus") or params["bus"],
)
def test_every_kind_of_disk(host: Any, written: Callable[..., Any], place: Path, params: dict[str, Any]) -> None:
    """Whatever the device and whatever is between it and its image; it can be resized and unplugged as before."""
    disk = attrs.evolve(host.qcow2_disk(), params=params)
    web = written(disk, params={"machine": "q35", "iothreads": 1})
    _three(host, web, place)
    if params["bus"] != "nvme":
        # Its controller does not let QEMU do that.
        assert host.driver.resize_disk("web1", web.uuids()[0], 2 * DISK).after == 2 * DISK


def test_with_a_newer_qemu(make_host: Callable[..., Any], newer_qemu: str, write_on: Any, place: Path) -> None:
    """The same with a newer QEMU than the installed one."""
    host = make_host(qemu=newer_qemu)
    _three(host, write_on(host, host.qcow2_disk(), host.raw_disk(size=DISK)), place)


@pytest.mark.skipif(not _ROOT_TOOLS, reason="only root can confine QEMU, with setpriv and prlimit")
def test_under_confinement(host: Any, written: Callable[..., Any], place: Path, worker_id: str) -> None:
    """A confined QEMU sees no directory of backups, and gets each file by its descriptor."""
    first = 420_000 + 100 * int(worker_id.removeprefix("gw") if worker_id != "master" else 99)
    confined = {"uids": f"{first}-{first + 3}", "directory": str(host.directory / "uids")}
    web = written(host.qcow2_disk(), host.raw_disk(size=DISK), security_model="confined", params={"confined": confined})
    _three(host, web, place)
    assert {path.stat().st_uid for path in place.iterdir()} == {0}


def test_a_paused_one_stays_paused(host: Any, written: Callable[..., Any], place: Path) -> None:
    """Nothing is done to a guest that stands still already; one that runs does so afterwards."""
    web = written(host.qcow2_disk())
    for state in (InstanceState.RUNNING, InstanceState.PAUSED):
        if state is InstanceState.PAUSED:
            host.driver.pause_instance("web1")
        taken = host.driver.backup_instance("web1", str(place), checkpoint=state.value)
        assert host.driver.get_instance_info("web1").state is state
        assert web.whole(taken.disks[0].location) == bytes(DISK)


def test_one_that_is_only_read(host: Any, written: Callable[..., Any], place: Path) -> None:
    """A disk that the guest cannot write is copied like the others; its checkpoint does not last."""
    disk = host.raw_disk(size=DISK)
    Path(disk.path).write_bytes(b"read me" + bytes(DISK - 7))
    web = written(attrs.evolve(disk, read_only=True), host.qcow2_disk())
    for checkpoint, since in (("a", None), ("b", "a")):
        taken = host.driver.backup_instance("web1", str(place), checkpoint=checkpoint, since=since)
        assert web.whole(taken.disks[0].location) == Path(disk.path).read_bytes()
        assert [disk.lasting for disk in taken.disks] == [False, True]
        web.nothing_left()


def test_some_of_the_disks(host: Any, written: Callable[..., Any], place: Path) -> None:
    """Only the disks that are named are copied and have the checkpoint; the others cannot begin from it."""
    web = written(host.qcow2_disk("a.qcow2"), host.qcow2_disk("b.qcow2"))
    first, second = web.uuids()
    taken = host.driver.backup_instance("web1", str(place), disks=[second.upper()], checkpoint="monday")
    assert [disk.device for disk in taken.disks] == [second]
    with pytest.raises(InvalidParameters) as caught:
        host.driver.backup_instance("web1", str(place), since="monday")
    assert caught.value.findings.codes == ("no-checkpoint",)
    assert first in str(caught.value)
    assert os.listdir(place) == [f"{second}.monday.qcow2"]


def test_all_that_stands_against_it_at_once(host: Any, written: Callable[..., Any], place: Path) -> None:
    """Everything wrong with a request is named, and nothing is touched."""
    web = written(
        host.qcow2_disk("a.qcow2"),
        attrs.evolve(host.raw_disk("b.raw", size=DISK), params={"shared": True}),
        params={"machine": "pc"},
    )
    host.driver.backup_instance("web1", str(place), disks=[web.uuids()[0]], checkpoint="monday")
    before = {path: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(InvalidParameters) as caught:
        host.driver.backup_instance("web1", str(place), checkpoint="monday", since="sunday")
    codes = ["disk-shared", "checkpoint-exists", "no-checkpoint", "no-checkpoint", "file-exists"]
    assert list(caught.value.findings.codes) == codes
    with pytest.raises(InvalidParameters) as caught:
        host.driver.backup_instance("web1", "relative", disks=["x", "X"], checkpoint="../x", since=b"", bandwidth=-1)
    assert [finding.path for finding in caught.value.findings] == [
        "target",
        "disks",
        "checkpoint",
        "since",
        "bandwidth",
    ]
    for target in (str(place / "missing"), "http://host/x", "nbd+unix:///x", "nbd://{uuid}:x/", f"{place}\n"):
        with pytest.raises(InvalidParameters):
            host.driver.backup_instance("web1", target, disks=[web.uuids()[0]])
    with pytest.raises(InvalidParameters, match="its disks are"):
        host.driver.backup_instance("web1", str(place), disks=["no-such-disk"])
    with pytest.raises(InvalidParameters):
        host.driver.delete_checkpoint("web1", "sunday")
    os.symlink("/nowhere", place / f"{web.uuids()[0]}.tuesday.qcow2")
    with pytest.raises(InvalidParameters, match="there is something"):
        host.driver.backup_instance("web1", str(place), disks=[web.uuids()[0]], checkpoint="tuesday")
    assert {path: path.read_bytes() for path in place.iterdir() if not path.is_symlink()} == before
    web.nothing_left()
    host.driver.stop_instance("web1", force=True)
    for refused in (
        lambda: host.driver.backup_instance("web1", str(place)),
        lambda: host.driver.list_checkpoints("web1"),
        lambda: host.driver.delete_checkpoint("web1", "monday"),
    ):
        with pytest.raises(NotRunning):
            refused()


def test_checkpoints_are_deleted_one_by_one(host: Any, written: Callable[..., Any], place: Path) -> None:
    """None depends on another: what is left is as good as before."""
    web = written(host.qcow2_disk(), host.raw_disk(size=DISK))
    for number in range(3):
        host.driver.backup_instance("web1", str(place), checkpoint=f"c{number}")
        web.scribble(number)
    left = host.driver.delete_checkpoint("web1", "c1")
    assert [checkpoint.name for checkpoint in left.checkpoints] == ["c0", "c2"]
    taken = host.driver.backup_instance("web1", str(place), since="c0")
    for index, disk in enumerate(taken.disks):
        assert web.whole(disk.location) == web.content[index]


class _Once:
    """Does something when a backup is under way, once."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._do: Callable[[], object] | None = do

    def __call__(self, progress: hvcore.Progress) -> None:
        assert 0 <= progress.done <= progress.total
        do, self._do = self._do, None
        if do is not None:
            do()


def _raise(error: type[BaseException]) -> None:
    raise error


def test_what_is_written_meanwhile_is_not_in_it(host: Any, written: Callable[..., Any], place: Path) -> None:
    """The picture is that of the moment, whatever the guest writes over while it is copied."""
    web = written(host.qcow2_disk(), host.raw_disk(size=DISK))
    web.scribble(1, 30)
    wanted: list[bytes] = []
    moments: list[int] = []

    def write() -> None:
        wanted.extend(bytes(content) for content in web.content)
        web.scribble(2 + len(moments), 30)
        moments.append(len(moments))
        for index in range(2):
            web.ask("block_job_set_speed", device=f"hvcore-backup{index}", speed=0)

    for since in (None, "a"):
        wanted.clear()
        checkpoint = "a" if since is None else "b"
        taken = host.driver.backup_instance(
            "web1", str(place), checkpoint=checkpoint, since=since, bandwidth=1 << 17, on_progress=_Once(write)
        )
        assert [web.whole(disk.location) for disk in taken.disks] == wanted
        assert [bytes(content) for content in web.content] != wanted
    web.nothing_left()


def test_one_that_is_ended_leaves_nothing(host: Any, written: Callable[..., Any], place: Path) -> None:
    """A deadline, Ctrl-C: no file, no checkpoint, and the one to begin from loses nothing."""
    web = written(host.qcow2_disk(), host.raw_disk(size=DISK))
    host.driver.backup_instance("web1", str(place), checkpoint="a")
    web.scribble(1, 30)
    before = set(os.listdir(place))
    slow = {"checkpoint": "b", "bandwidth": 1 << 16}
    with pytest.raises(DeadlineExceeded):
        host.driver.backup_instance("web1", str(place), since="a", timeout=3, **slow)
    for since in (None, "a"):
        interrupt = _Once(lambda: _raise(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            host.driver.backup_instance("web1", str(place), since=since, on_progress=interrupt, **slow)
        assert set(os.listdir(place)) == before
        web.nothing_left()
    assert host.driver.recover().instances == ()
    assert [found.name for found in host.driver.list_checkpoints("web1").checkpoints] == ["a"]
    taken = host.driver.backup_instance("web1", str(place), since="a", checkpoint="b")
    for index, disk in enumerate(taken.disks):
        assert web.whole(disk.location) == web.content[index]


def test_a_file_that_comes_in_between_stays(host: Any, written: Callable[..., Any], place: Path) -> None:
    """Of two files the second cannot get its name: neither is there, nor the checkpoint, and the other's file stays."""
    web = written(host.qcow2_disk(), host.raw_disk(size=DISK))
    theirs = place / f"{web.uuids()[1]}.a.qcow2"
    with pytest.raises(OperationFailed, match="File exists"):
        host.driver.backup_instance(
            "web1", str(place), checkpoint="a", on_progress=_Once(lambda: theirs.write_text("precious"))
        )
    assert [path.read_text() for path in place.iterdir()] == ["precious"]
    assert host.driver.list_checkpoints("web1").checkpoints == ()
    web.nothing_left()


def test_qemu_dies_meanwhile(host: Any, written: Callable[..., Any], place: Path) -> None:
    """It is said, and no file is left."""
    written(host.qcow2_disk(), host.raw_disk(size=DISK))
    pid = host.pid()
    with pytest.raises(OperationFailed, match="QEMU has ended"):
        host.driver.backup_instance("web1", str(place), on_progress=_Once(lambda: os.kill(pid, 9)))
    assert os.listdir(place) == []
    assert host.driver.get_instance_info("web1").state is InstanceState.CRASHED
    host.driver.start_instance(host.instance())


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system with little room."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    found = tmp_path / "small"
    found.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(found)], check=True)
    try:
        yield found
    finally:
        subprocess.run(["umount", "-l", str(found)], check=True)


def test_a_full_target_does_not_harm_the_guest(
    host: Any, written: Callable[..., Any], place: Path, small: Path
) -> None:
    """QEMU's words are in the error, the guest's writes succeed all the time, and nothing is left."""
    web = written(host.qcow2_disk(), host.raw_disk(size=DISK))
    for index in range(2):
        web.write(index, 0, DISK, 7)
    host.driver.backup_instance("web1", str(place), checkpoint="a")

    def write() -> None:
        # More than the target has room for: the filter is the first to find out.
        web.write(0, 0, DISK // 2, 8)
        web.write(1, DISK // 2, DISK // 2, 9)
        assert host.driver.get_instance_info("web1").state is InstanceState.RUNNING

    for do in (write, lambda: None):
        with pytest.raises(OperationFailed, match="No space left|Permission denied"):
            host.driver.backup_instance("web1", str(small), checkpoint="b", bandwidth=1 << 20, on_progress=_Once(do))
        assert os.listdir(small) == []
        web.nothing_left()
    assert host.driver.get_instance_info("web1").state is InstanceState.RUNNING
    taken = host.driver.backup_instance("web1", str(place), since="a")
    for index, disk in enumerate(taken.disks):
        assert web.whole(disk.location) == web.content[index]


@pytest.mark.timeout(600)
def test_linux_writes_two_disks_in_turn(host: Any, boot: Callable[..., Any], place: Path) -> None:
    """A guest that writes a number to one disk and then to the other: no backup has them further apart than it does."""
    disks = [host.raw_disk("a.raw", DISK), host.qcow2_disk("b.qcow2")]
    shell = boot("pc", disks=disks)
    write = "echo $n | dd of=/dev/%s bs=4096 conv=sync,fsync"
    body = f"n=$((n+1)); {write % 'vda'}; {write % 'vdb'}"
    shell.run(f"{{ (n=0; while true; do {body}; done) > /dev/null 2>&1 & }}")
    shell.wait("[ $(head -n 1 /dev/vdb | tr -dc 0-9 | wc -c) -gt 1 ]")
    numbers = []
    for since, checkpoint in ((None, "a"), ("a", "b"), ("b", "c")):
        taken = host.driver.backup_instance("web1", str(place), checkpoint=checkpoint, since=since)
        found = []
        for disk in taken.disks:
            raw = place / "restored"
            subprocess.run(["qemu-img", "convert", "-O", "raw", disk.location, str(raw)], check=True)
            found.append(int(re.match(rb"[0-9]+", raw.read_bytes()[:64])[0]))
        assert found[0] - found[1] in (0, 1)
        numbers.append(found[0])
        shell.wait(f"[ $(head -n 1 /dev/vda) -gt {found[0]} ]")
    assert numbers == sorted(set(numbers))
