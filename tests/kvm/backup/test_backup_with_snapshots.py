"""Backups of instances with external snapshots: what the guest sees, and never an increment that lacks something."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import InvalidParameters
from hvcore_kvm.hardware.builder import device_id

pytestmark = pytest.mark.qemu

DISK = 8 << 20
UUIDS = ("ef000001-0000-4000-8000-000000000001", "ef000002-0000-4000-8000-000000000002")


class _Moments:
    """Backups of one instance; each is compared with what its disks held."""

    def __init__(self, host: Any, web: Any, place: Path) -> None:
        self._host = host
        self._web = web
        self._place = place
        self._seed = 0

    def check(self, since: str | None, *, compress: bool = False) -> str:
        """Write, back up, write; returns the checkpoint that begins with the backup."""
        self._seed += 2
        self._web.scribble(self._seed)
        name = f"c{self._seed}"
        taken = self._host.driver.backup_instance(
            "web1", str(self._place), since=since, checkpoint=name, compress=compress
        )
        assert taken.mode == ("full" if since is None else "incremental")
        for index, disk in enumerate(taken.disks):
            assert since is None or disk.copied < DISK
            assert self._web.whole(disk.location) == self._web.content[index]
        self._web.nothing_left()
        self._web.scribble(self._seed + 1)
        return name

    def drop(self) -> None:
        """Delete all checkpoints."""
        for one in self._host.driver.list_checkpoints("web1").checkpoints:
            self._host.driver.delete_checkpoint("web1", one.name)


def _disks(host: Any, params: dict[str, Any]) -> list[hvcore.Disk]:
    disks = (host.raw_disk(size=DISK), host.qcow2_disk())
    return [attrs.evolve(disk, uuid=uuid, params=params) for disk, uuid in zip(disks, UUIDS, strict=True)]


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("params", [{}, {"throttle": {"iops_total": 100000}}], ids=["plain", "limited"])
def test_before_between_and_after(
    host: Any, written: Any, place: Path, request: Any, params: dict[str, Any], newer: bool
) -> None:
    """Full and incremental with one and two overlays, over a restart, and when they have been deleted again."""
    program = {"qemu": request.getfixturevalue("newer_qemu")} if newer else {}
    disks = _disks(host, params)
    web = written(*disks, params=program)
    moments = _Moments(host, web, place)
    last = moments.check(None)
    with pytest.raises(InvalidParameters) as refused:
        host.driver.create_snapshot("web1", "first", external=True)
    assert [(one.code, one.path) for one in refused.value.findings] == [("dirty-bitmap", f"disks[{n}]") for n in (0, 1)]
    last = moments.check(last)
    moments.drop()
    for name in ("first", "second"):
        host.driver.create_snapshot("web1", name, external=True)
        with pytest.raises(InvalidParameters) as refused:
            host.driver.backup_instance("web1", str(place), since=last)
        assert set(refused.value.findings.codes) == {"no-checkpoint"}
        last = moments.check(None)
        last = moments.check(last, compress=True)
        if name == "first":
            moments.drop()
    # The overlays keep them, also the one upon a raw image.
    definition = host.instance(disks=disks, params=program)
    host.driver.stop_instance("web1", force=True)
    with pytest.raises(InvalidParameters) as refused:
        host.driver.create_snapshot(definition, "third", external=True)
    assert set(refused.value.findings.codes) == {"dirty-bitmap"}
    with pytest.raises(InvalidParameters) as refused:
        host.driver.delete_snapshot("web1", "second")
    assert set(refused.value.findings.codes) == {"dirty-bitmap"}
    assert "start the instance" in str(refused.value.findings[0])
    host.start(definition)
    last = moments.check(last)
    with pytest.raises(InvalidParameters) as refused:
        host.driver.delete_snapshot("web1", "second")
    assert [(one.code, one.path) for one in refused.value.findings] == [("dirty-bitmap", f"disks[{n}]") for n in (0, 1)]
    last = moments.check(last)
    moments.drop()
    for name in ("second", "first"):
        host.driver.delete_snapshot("web1", name)
        with pytest.raises(InvalidParameters) as refused:
            host.driver.backup_instance("web1", str(place), since=last)
        assert set(refused.value.findings.codes) == {"no-checkpoint"}
        last = moments.check(None)
        last = moments.check(last)
        moments.drop()


def test_a_revert_takes_the_checkpoints_with_it(host: Any, written: Any, place: Path) -> None:
    """What was written on the way that was given up is in no increment, so that none begins there."""
    disks = _disks(host, {})
    web = written(*disks)
    moments = _Moments(host, web, place)
    web.scribble(100)
    host.driver.create_snapshot("web1", "first", external=True)
    before = [bytearray(content) for content in web.content]
    last = moments.check(None)
    host.driver.stop_instance("web1", force=True)
    host.driver.revert_snapshot("web1", "first")
    host.start(host.instance(disks=disks))
    web.content = before
    assert host.driver.list_checkpoints("web1").checkpoints == ()
    with pytest.raises(InvalidParameters) as refused:
        host.driver.backup_instance("web1", str(place), since=last)
    assert set(refused.value.findings.codes) == {"no-checkpoint"}
    (place / "again").mkdir()
    _Moments(host, web, place / "again").check(None)


def test_a_deletion_that_was_interrupted_is_settled_first(
    host: Any, written: Any, place: Path, cut_short: Callable[..., Any]
) -> None:
    """A backup would wait for ever for a disk whose overlay is equal to its image."""
    web = written(*_disks(host, {}))
    host.driver.create_snapshot("web1", "first", external=True)
    web.scribble(1)
    where = "hvcore_kvm.snapshots.external.ExternalSnapshots._note_equal"
    before = f"import os, unittest.mock; unittest.mock.patch('{where}', lambda *_: os.kill(os.getpid(), 9)).start()"
    assert cut_short("driver.delete_snapshot('web1', 'first')", cut=100_000, before=before) is None
    assert [job["status"] for job in web.ask("query_jobs")] == ["pending", "pending"]
    taken = host.driver.backup_instance("web1", str(place))
    assert [web.whole(disk.location) for disk in taken.disks] == web.content
    moments = _Moments(host, web, place)
    moments.check(moments.check(None))
    assert [one.revertible for one in host.driver.list_snapshots("web1").snapshots] == [False]


@pytest.mark.parametrize("both", [False, True])
def test_killed_in_a_backup(host: Any, written: Any, place: Path, cut_short: Callable[..., Any], both: bool) -> None:
    """The guest goes on with its overlays; the checkpoints that are left are right."""
    disks = _disks(host, {"throttle": {"iops_total": 100000}})
    web = written(*disks)
    host.driver.create_snapshot("web1", "first", external=True)
    moments = _Moments(host, web, place)
    last = moments.check(None)
    for cut in range(1, 200, 17):
        program = f"driver.backup_instance('web1', {str(place)!r}, since={last!r}, checkpoint='cut{cut}')"
        killed = cut_short(program, cut=cut) is None
        if both:
            host.driver.stop_instance("web1", force=True)
            host.start(host.instance(disks=disks))
        else:
            host.driver.recover("web1")
        assert web.ask("query_status")["status"] == "running"
        last = moments.check(last)
        if not killed:
            break
    assert cut > 34
    tops = {row["qdev"].split("/")[3]: row["inserted"]["node-name"] for row in web.ask("query_block") if row["qdev"]}
    assert tops == {device_id("disk", uuid): device_id("disk", uuid) for uuid in UUIDS}


@pytest.mark.linux
def test_a_linux_guest_writes_all_the_while(host: Any, boot: Any, place: Path) -> None:
    """Each backup holds all its guest had written when it was asked for, and what is there is without a gap."""
    disk = attrs.evolve(host.raw_disk("disk.raw", DISK), uuid=UUIDS[0])
    shell = boot("q35", disks=[disk])
    shell.wait("[ -b /dev/vda ]")
    # A line every 4 KiB, each written to the disk before the next.
    loop = "i=0; while [ ! -e /stop ]; do i=$((i+1)); echo line-$i | dd of=/dev/vda bs=4096 seek=$i conv=notrunc,fsync"
    shell.run(f"({loop} 2>/dev/null; echo $i >/count; mv /count /written; done) >/dev/null 2>&1 & true")

    def count(least: int) -> int:
        shell.wait(f"[ $(cat /written) -gt {least} ]")
        return int(shell.run("cat /written"))

    def whole(path: str) -> bytes:
        raw = host.directory / "restored.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", path, str(raw)], check=True)
        return bytes(raw.read_bytes())

    def lines(content: bytes) -> int:
        number = 0
        while content[4096 * (number + 1) :].partition(b"\n")[0] == b"line-%d" % (number + 1):
            number += 1
        rest = content[4096 * (number + 1) :]
        assert not rest.strip(b"\0"), f"after line {number} there is a gap"
        return number

    count(20)
    host.driver.create_snapshot("web1", "first", external=True)
    since, then = None, 0
    for name in ("a", "b", "c"):
        then = count(then + 20)
        taken = host.driver.backup_instance("web1", str(place), since=since, checkpoint=name)
        assert then <= lines(whole(taken.disks[0].location)) <= int(shell.run("cat /written")) + 1
        since = name
    shell.run("touch /stop; wait; sync")
    taken = host.driver.backup_instance("web1", str(place), since=since, checkpoint="last")
    said = shell.run("echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/vda").split()[0]
    assert hashlib.sha256(whole(taken.disks[0].location)).hexdigest() == said
