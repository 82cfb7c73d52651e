"""Backups on the modelled world: at every effect a failure is undone, and a crash is put in order."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hvcore import Disk, Driver, Instance, InvalidParameters, OperationFailed, make_qcow2, read_qcow2
from hvcore_fake import EFFECTS, Fault, FaultPlan, HostCrash, World

Load = Callable[..., Driver]

POINTS = [(effect, when) for effect in EFFECTS["backup_instance"] for when in ("before", "after")]
UUIDS = ("0b9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d11", "1b9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d12")
SIZE = 1 << 20
BLOCK = 1 << 16


@pytest.fixture
def web(tmp_path: Path) -> Instance:
    """An instance with a raw disk and a qcow2 one."""
    raw, qcow2 = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(b"\x01" * SIZE)
    with qcow2.open("wb") as file:
        make_qcow2(file.fileno(), SIZE)
    disks = (
        Disk(path=str(raw), format="raw", uuid=UUIDS[0]),
        Disk(path=str(qcow2), format="qcow2", uuid=UUIDS[1]),
    )
    return Instance(name="web1", disks=disks)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory for backups."""
    found = tmp_path / "backups"
    found.mkdir()
    return found


def _write(driver: Driver, value: int, offset: int = BLOCK - 8) -> None:
    for uuid in UUIDS:
        assert World.of(driver).guest_writes("web1", uuid, offset, bytes([value]) * 16)


def _held(path: str) -> bytes:
    size, blocks = read_qcow2(path)
    return b"".join(blocks.get(number, b"").ljust(BLOCK, b"\0") for number in range(size // BLOCK))


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="there is no qemu-img to look at them with")
@pytest.mark.parametrize("compress", [False, True])
def test_other_programs_read_the_files(load: Load, web: Instance, place: Path, compress: bool) -> None:
    """They are sound images, each on the one before, and hold what the disks held, compressed or not."""
    driver = load()
    # Every third block cannot be made smaller, and the others do not end where a cluster does.
    wanted = bytearray(b"".join(os.urandom(BLOCK) if n % 3 == 0 else b"%d" % n * (BLOCK // 2) for n in range(16)))
    wanted = wanted[:SIZE].ljust(SIZE, b"\1")
    Path(web.disks[0].path or "").write_bytes(wanted)
    driver.start_instance(web)
    _write(driver, 2)
    first = driver.backup_instance("web1", str(place), checkpoint="c0", compress=compress)
    assert (os.stat(first.disks[0].location).st_blocks * 512 < SIZE) == first.compressed == compress
    _write(driver, 0)
    taken = driver.backup_instance("web1", str(place), since="c0", compress=compress)
    wanted[BLOCK - 8 : BLOCK + 8] = bytes(16)
    for disk, content in zip(taken.disks, (bytes(wanted), bytes(SIZE)), strict=True):
        raw = place / "restored"
        subprocess.run(["qemu-img", "check", "-q", disk.location], check=True)
        subprocess.run(["qemu-img", "convert", "-O", "raw", disk.location, str(raw)], check=True)
        assert raw.read_bytes() == content == _held(disk.location)
    subprocess.run(["qemu-img", "check", "-q", web.disks[1].path or ""], check=True)
    assert [(disk.copied, os.stat(disk.location).st_mode & 0o777) for disk in taken.disks] == [(2 * BLOCK, 0o600)] * 2


@pytest.mark.parametrize(("effect", "when"), POINTS)
def test_a_backup_that_fails_is_undone(load: Load, web: Instance, place: Path, effect: str, when: str) -> None:
    """There is no file and no checkpoint of it; what was written since the older one is known."""
    faults = [{"kind": "raise", "operation": "backup_instance", "effect": effect, "when": when, "nth": 2}]
    driver = load(faults=faults)
    driver.start_instance(web)
    driver.backup_instance("web1", str(place), checkpoint="c0")
    _write(driver, 2)
    before, files = driver.list_checkpoints("web1"), sorted(place.iterdir())
    with pytest.raises(OperationFailed):
        driver.backup_instance("web1", str(place), since="c0", checkpoint="c1")
    assert driver.list_checkpoints("web1") == before
    assert sorted(place.iterdir()) == files
    taken = driver.backup_instance("web1", str(place), since="c0", checkpoint="c1")
    assert _held(taken.disks[0].location) == (Path(web.disks[0].path or "")).read_bytes()


@pytest.mark.parametrize(("effect", "when"), POINTS)
def test_a_backup_cut_off_is_undone_or_complete(load: Load, web: Instance, place: Path, effect: str, when: str) -> None:
    """Either all files have their names and the checkpoint has begun, or there is nothing of it."""
    driver = load()
    driver.start_instance(web)
    crash = FaultPlan([Fault(kind="crash", operation="backup_instance", effect=effect, when=when)])
    with pytest.raises(HostCrash):
        load(faults=crash).backup_instance("web1", str(place), checkpoint="c0")
    _write(driver, 2)
    later = load()
    [found] = later.recover().instances
    whole = effect in ("checkpoint", "commit") or (effect, when) == ("publish", "after")
    assert (found.operation, found.outcome) == ("backup_instance", "completed" if whole else "undone")
    assert len(list(place.iterdir())) == (2 if whole else 0)
    rows = later.list_checkpoints("web1").checkpoints
    assert [(row.name, row.disks[0].changed) for row in rows] == ([("c0", 2 * BLOCK)] if whole else [])
    assert later.recover().instances == ()
    later.backup_instance("web1", str(place), since="c0" if whole else None, checkpoint="c1")


def test_only_images_that_were_closed_keep_checkpoints(load: Load, web: Instance, place: Path) -> None:
    """A stop keeps that of the qcow2 image; after a kill it is there, and of no use."""
    driver = load()
    driver.start_instance(web)
    driver.backup_instance("web1", str(place), checkpoint="c0")
    _write(driver, 2)
    driver.stop_instance("web1", force=True)
    driver.start_instance(web)
    [row] = driver.list_checkpoints("web1").checkpoints
    assert [(disk.device, disk.changed, disk.usable) for disk in row.disks] == [(UUIDS[1], 2 * BLOCK, True)]
    World.of(driver).kill("web1")
    driver.start_instance(web)
    [row] = driver.list_checkpoints("web1").checkpoints
    assert [(disk.changed, disk.usable) for disk in row.disks] == [(0, False)]
    with pytest.raises(InvalidParameters) as caught:
        driver.backup_instance("web1", str(place), since="c0", checkpoint="c1")
    assert caught.value.findings.codes == ("no-checkpoint", "checkpoint-unusable")


def test_everything_that_stands_against_one_is_said_at_once(load: Load, web: Instance, place: Path) -> None:
    """What is wrong with disks, checkpoints and the target; a server is not modelled."""
    driver = load()
    driver.start_instance(web)
    driver.backup_instance("web1", str(place), checkpoint="c0")
    with pytest.raises(InvalidParameters) as caught:
        driver.backup_instance(
            "web1", "nbd://192.0.2.1/{uuid}", disks=[UUIDS[0], UUIDS[0][::-1]], checkpoint="c0", since="c1"
        )
    assert caught.value.findings.codes == ("no-disk", "checkpoint-exists", "no-checkpoint", "not-supported")
    assert len(list(place.iterdir())) == 2
