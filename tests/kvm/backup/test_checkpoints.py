"""A checkpoint is right or refused: over the end of QEMU in every way, a new size, a save and a move."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import InvalidParameters, MigrationPhase, WrongState, read_migration_policy

pytestmark = pytest.mark.qemu

DISK = 8 << 20


def _right(host: Any, web: Any, place: Path, since: str) -> None:
    """An incremental backup on top of what is before it is what the disks hold."""
    taken = host.driver.backup_instance("web1", str(place), since=since)
    for index, disk in enumerate(taken.disks):
        assert disk.copied < web.size
        assert web.whole(disk.location) == web.content[index]
        os.unlink(disk.location)


def test_over_a_restart(host: Any, written: Callable[..., Any], place: Path) -> None:
    """A qcow2 image keeps its checkpoints when QEMU ends in order; a raw one loses them, and that is said."""
    web = written(host.qcow2_disk(), host.raw_disk(size=DISK))
    kept, lost = web.uuids()
    web.scribble(1)
    host.driver.backup_instance("web1", str(place), checkpoint="a")
    web.scribble(2)
    definition = host.instance(disks=list(web.disks))
    host.driver.stop_instance("web1", force=True)
    host.start(definition)
    web.scribble(3)
    rows = host.driver.list_checkpoints("web1").checkpoints
    assert [(row.name, [disk.device for disk in row.disks]) for row in rows] == [("a", [kept])]
    with pytest.raises(InvalidParameters) as caught:
        host.driver.backup_instance("web1", str(place), since="a")
    assert caught.value.findings.codes == ("no-checkpoint",)
    assert lost in str(caught.value)
    assert "loses its checkpoints" in str(caught.value)
    taken = host.driver.backup_instance("web1", str(place), since="a", disks=[kept])
    assert web.whole(taken.disks[0].location) == web.content[0]


def test_after_an_end_that_was_none(host: Any, written: Callable[..., Any], place: Path) -> None:
    """QEMU is killed: nothing begins from its checkpoints any more, they can be deleted, and a new one is right."""
    web = written(host.qcow2_disk())
    definition = host.instance(disks=list(web.disks))

    def kill() -> None:
        os.kill(host.pid(), signal.SIGKILL)
        host.wait_end()
        host.start(definition)

    host.driver.backup_instance("web1", str(place), checkpoint="a")
    kill()
    # It was in memory only.
    assert host.driver.list_checkpoints("web1").checkpoints == ()
    os.unlink(place / f"{web.uuids()[0]}.a.qcow2")
    host.driver.backup_instance("web1", str(place), checkpoint="a")
    host.driver.stop_instance("web1", force=True)
    host.start(definition)
    kill()
    found = host.driver.list_checkpoints("web1").checkpoints[0].disks[0]
    assert not found.usable
    assert "did not end in order" in found.detail
    with pytest.raises(InvalidParameters, match="take a full backup") as caught:
        host.driver.backup_instance("web1", str(place), since="a")
    assert caught.value.findings.codes == ("checkpoint-unusable",)
    web.scribble(1)
    host.driver.backup_instance("web1", str(place), checkpoint="b")
    web.scribble(2)
    _right(host, web, place, "b")
    left = host.driver.delete_checkpoint("web1", "a").checkpoints
    assert [checkpoint.name for checkpoint in left] == ["b"]


def test_a_disk_that_has_grown(host: Any, written: Callable[..., Any], place: Path) -> None:
    """What comes after its old end is in the next backup, on top of a smaller one."""
    web = written(host.qcow2_disk(), host.raw_disk(size=DISK))
    web.scribble(1)
    host.driver.backup_instance("web1", str(place), checkpoint="a")
    for index, uuid in enumerate(web.uuids()):
        host.driver.resize_disk("web1", uuid, 2 * DISK)
        web.content[index].extend(bytes(DISK))
        web.write(index, DISK + 65536, 65536, 7)
    web.scribble(2)
    _right(host, web, place, "a")


def test_a_disk_that_has_grown_upon_an_image(host: Any, written: Callable[..., Any], place: Path) -> None:
    """The same with an overlay, which alone is larger then."""
    web = written(host.qcow2_disk(), host.raw_disk(size=DISK))
    web.scribble(1)
    host.driver.create_snapshot("web1", "first", external=True)
    host.driver.backup_instance("web1", str(place), checkpoint="a")
    for index, uuid in enumerate(web.uuids()):
        host.driver.resize_disk("web1", uuid, 2 * DISK)
        web.content[index].extend(bytes(DISK))
        web.write(index, DISK + 65536, 65536, 7)
    web.scribble(2)
    _right(host, web, place, "a")
    host.driver.delete_checkpoint("web1", "a")
    host.driver.delete_snapshot("web1", "first")
    taken = host.driver.backup_instance("web1", str(place))
    assert [web.whole(disk.location) for disk in taken.disks] == web.content


def test_saved_and_restored(host: Any, written: Callable[..., Any], place: Path) -> None:
    """The checkpoints of a qcow2 image are there after a restore, with all that was written before and after."""
    web = written(host.qcow2_disk())
    host.driver.backup_instance("web1", str(place), checkpoint="a")
    web.scribble(1)
    saved = str(host.directory / "web1.saved")
    host.driver.save_instance("web1", saved)
    host.driver.restore_instance(saved)
    web.scribble(2)
    _right(host, web, place, "a")


def test_moved_to_another_host(make_host: Callable[..., Any], write_on: Any, tmp_path: Path, place: Path) -> None:
    """The checkpoints of a qcow2 image go along, those of a raw one are refused over there."""
    hosts = []
    for side in ("source", "destination"):
        (tmp_path / side).mkdir()
        hosts.append(make_host(directory=tmp_path / side))
    source, destination = hosts
    params = {"cpu_model": "qemu64"}
    web = write_on(source, source.qcow2_disk(), source.raw_disk(size=DISK), params=params)
    kept, lost = web.uuids()
    source.driver.backup_instance("web1", str(place), checkpoint="a")
    web.scribble(1)
    policy, _ = read_migration_policy({"tls": False, "max_bandwidth": "1GiB"})
    info = source.driver.migration_info("web1")
    target = destination.driver.accept_instance(info, "127.0.0.1", policy)
    status = source.driver.migrate_instance("web1", target, policy)
    wait = hvcore.Deadline.after(60)
    while not status.phase.is_final and not wait.expired:
        status = source.driver.continue_migration("web1", wait=1.0)
    assert status.phase is MigrationPhase.COMPLETED
    destination.driver.finalize_migration_dst(info, True)
    source.driver.finalize_migration_source("web1", True)
    web.host = destination
    web.scribble(2)
    with pytest.raises(InvalidParameters) as caught:
        destination.driver.backup_instance("web1", str(place), since="a")
    assert (caught.value.findings.codes, lost in str(caught.value)) == (("no-checkpoint",), True)
    taken = destination.driver.backup_instance("web1", str(place), since="a", disks=[kept])
    assert web.whole(taken.disks[0].location) == web.content[0]


def test_nothing_else_is_done_to_one_that_is_half_done(host: Any, written: Callable[..., Any], place: Path) -> None:
    """Until recovery has put it in order, what would meet its nodes is refused; the next backup does that itself."""
    web = written(host.qcow2_disk())
    record = host.directory / "state/kvm/instances/web1/backup.json"
    taken: list[bytes] = []

    def keep(progress: hvcore.Progress) -> None:
        taken.append(record.read_bytes())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        host.driver.backup_instance("web1", str(place), on_progress=keep)
    for again in range(2):
        record.write_bytes(taken[0])
        for refused in (
            lambda: host.driver.resize_disk("web1", web.uuids()[0], 2 * DISK),
            lambda: host.driver.hot_add_device("web1", host.raw_disk("b.raw")),
            lambda: host.driver.save_instance("web1", str(host.directory / "saved")),
            lambda: host.driver.migration_info("web1"),
            lambda: host.driver.delete_checkpoint("web1", "a"),
        ):
            with pytest.raises(WrongState, match="'hv recover'"):
                refused()
        if again:
            host.driver.backup_instance("web1", str(place))
        else:
            found = host.driver.recover().instances
            assert [(row.operation, row.outcome) for row in found] == [("backup", "undone")]
    web.nothing_left()
