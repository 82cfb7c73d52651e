"""A compressed backup holds what one holds that is not, whatever the guest writes over while it is made."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import InstanceState, InvalidParameters, OperationFailed

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

DISK = 8 << 20
CLUSTER = 65536


def _checked(path: str | Path) -> dict[str, Any]:
    """What qemu-img finds in a file, which has no error, and no cluster that nothing leads to."""
    done = subprocess.run(["qemu-img", "check", "--output=json", str(path)], capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert not {"leaks", "corruptions"} & found.keys()
    return found


class _While:
    """Writes while a disk is copied, once, and keeps what was there before."""

    def __init__(self, web: Any, seed: int) -> None:
        self._web = web
        self._seed = seed
        self.before: list[bytes] = []

    def __call__(self, progress: hvcore.Progress) -> None:
        if self.before:
            return
        self.before = [bytes(content) for content in self._web.content]
        # All over it: some has been copied, some is being copied, and most is still to come.
        self._web.scribble(self._seed, 15)
        for index in range(len(self.before)):
            self._web.ask("block_job_set_speed", device=f"hvcore-backup{index}", speed=0)


def _right(host: Any, web: Any, place: Path) -> None:
    """A full one and two with changes, each written over while it is made."""
    web.scribble(1, 25)
    for number, since in enumerate((None, "c0", "c1")):
        meanwhile = _While(web, 2 + number)
        taken = host.driver.backup_instance(
            *("web1", str(place)),
            checkpoint=f"c{number}",
            since=since,
            compress=True,
            bandwidth=1 << 17,
            on_progress=meanwhile,
        )
        assert taken.compressed
        web.nothing_left()
        for disk, before, after in zip(taken.disks, meanwhile.before, web.content, strict=True):
            assert before != after
            assert web.whole(disk.location) == before
            found = _checked(disk.location)
            # Those of zeroes take no room, and a value all over a cluster next to none.
            assert found["compressed-clusters"] == found["allocated-clusters"] > 0
            assert os.stat(disk.location).st_size < 10 * CLUSTER
    assert sorted(os.listdir(place)) == sorted(f"{uuid}.c{number}.qcow2" for uuid in web.uuids() for number in range(3))


def test_in_full_and_changes(host: Any, written: Callable[..., Any], place: Path) -> None:
    """Each is the disks at its moment, though they are written on."""
    _right(host, written(host.qcow2_disk(), host.raw_disk(size=DISK)), place)


def test_with_a_newer_qemu(make_host: Callable[..., Any], newer_qemu: str, write_on: Any, place: Path) -> None:
    """The same with a newer QEMU than the installed one."""
    host = make_host(qemu=newer_qemu)
    _right(host, write_on(host, host.raw_disk(size=DISK)), place)


def test_what_cannot_be_compressed(host: Any, place: Path) -> None:
    """A disk of noise, whose end is not that of a cluster, is as it was."""
    disk = host.raw_disk(size=DISK // 8 + 1536)
    content = os.urandom(DISK // 8 + 1536)
    Path(disk.path).write_bytes(content)
    host.start(host.instance(disks=[disk]))
    taken = host.driver.backup_instance("web1", str(place), compress=True)
    _checked(taken.disks[0].location)
    raw = place / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", taken.disks[0].location, str(raw)], check=True)
    assert raw.read_bytes() == content


def test_a_guest_writes_all_the_time(host: Any, place: Path) -> None:
    """Each backup has one of the tokens it wrote meanwhile, and the guest finds its own all the time."""
    disk = attrs.evolve(host.raw_disk(size=DISK), params={"bus": "ide"})
    console = host.start(host.instance(disks=[disk]))
    last, raw = 0, place / "raw"

    def write(letter: bytes, answer: bytes) -> bytes:
        console.send(letter)
        console.expect(answer)
        return bytes(console.expect(b"\r\n"))

    while not last:
        write(b"w", b"ok")
        last = int(write(b"W", b"token="), 16)
    for checkpoint, since in (("a", None), ("b", "a"), ("c", "b")):
        write(b"w", b"ok")
        taken = host.driver.backup_instance("web1", str(place), checkpoint=checkpoint, since=since, compress=True)
        before, last = last, int(write(b"W", b"token="), 16)
        subprocess.run(["qemu-img", "convert", "-O", "raw", taken.disks[0].location, str(raw)], check=True)
        content = raw.read_bytes()
        assert before <= struct.unpack_from("<I", content)[0] <= last
        assert not any(content[512:])


def test_it_is_for_files(host: Any, place: Path) -> None:
    """A server stores what it gets as it likes, and anything but true and false is no answer."""
    for target, compress in (("nbd://127.0.0.1/x", True), (str(place), 1), (str(place), None)):
        with pytest.raises(InvalidParameters) as caught:
            host.driver.backup_instance("web1", target, compress=compress)
        assert [finding.path for finding in caught.value.findings] == ["compress"]
    assert os.listdir(place) == []


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


def test_no_room_for_what_is_overwritten(host: Any, written: Callable[..., Any], small: Path) -> None:
    """The backup fails, and no write of the guest; nothing is left of what was set aside."""
    web = written(host.qcow2_disk(), host.raw_disk(size=DISK))
    for index in range(2):
        web.write(index, 0, DISK, 7)
    seen: list[InstanceState] = []

    def write(progress: hvcore.Progress) -> None:
        if not seen:
            web.write(0, 0, DISK // 2, 8)
            web.write(1, DISK // 2, DISK // 2, 9)
            seen.append(host.driver.get_instance_info("web1").state)

    with pytest.raises(OperationFailed, match="Permission denied|No space left"):
        host.driver.backup_instance("web1", str(small), compress=True, bandwidth=1 << 20, on_progress=write)
    assert seen == [InstanceState.RUNNING]
    assert os.listdir(small) == []
    web.nothing_left()
    assert not [path for path in host.open_files() if path.startswith(str(small))]
    taken = host.driver.backup_instance("web1", str(small), compress=True)
    assert [web.whole(disk.location) for disk in taken.disks] == web.content


BACKUP = "driver.backup_instance('web1', words[0], since='a', checkpoint='b', compress=True)"


def test_killed_in_the_middle(host: Any, cut_short: Any, written: Callable[..., Any], place: Path) -> None:
    """Recovery leaves all of it or nothing, and neither a node nor a descriptor of what was set aside."""
    web = written(host.qcow2_disk())
    host.driver.backup_instance("web1", str(place), checkpoint="a", compress=True)
    before = set(os.listdir(place))
    cut, finished = 9, None
    while finished is None:
        web.scribble(cut, 2)
        finished = cut_short(BACKUP, str(place), cut=cut)
        host.driver.recover()
        web.nothing_left()
        assert host.driver.get_instance_info("web1").state is InstanceState.RUNNING, f"cut {cut}"
        made = set(os.listdir(place)) - before
        names = [found.name for found in host.driver.list_checkpoints("web1").checkpoints]
        assert (len(made), names) in ((1, ["a", "b"]), (0, ["a"])), f"cut {cut}: {made}"
        for name in made:
            assert web.whole(place / name) == web.content[0], f"cut {cut}"
            host.driver.delete_checkpoint("web1", "b")
            os.unlink(place / name)
        cut += 31
    assert finished > 30
