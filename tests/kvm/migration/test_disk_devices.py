"""Copied disks on block devices and between versions of QEMU: the guest writes all the way, and loses nothing."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import Disk, InvalidParameters, MigrationPhase

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes loop devices"),
]

GIVEN = {"tls": False, "max_bandwidth": "1GiB", "copy_disks": "all", "overwrite_disks": True}
SIZE = 4 << 20
ROOM = 8 << 20
"""Bytes of a device that has a qcow2 image on it."""

TOKENS = 1024
"""Bytes at the beginning of a disk that the guest writes all the time."""

STALE = b"\xee"
"""What is all over a device that is overwritten."""


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@pytest.fixture
def pair(loop: Any, make_pair: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    """Two hosts that are taken down before the devices; a test says which of them has a newer QEMU."""
    del loop
    newer = getattr(request, "param", None)
    if newer is None:
        return make_pair()
    given = {"qemu": request.getfixturevalue("newer_qemu")}
    return make_pair(given, None) if newer == "source" else make_pair(None, given)


class Disks:
    """Disks with one content, on two hosts.

    Args:
        pair: the hosts.
        loop: makes devices.
    """

    def __init__(self, pair: Any, loop: Callable[[bytes], str]) -> None:
        self._pair = pair
        self._loop = loop
        # Here and there something, and nothing where a device that is overwritten has something.
        self.content = bytes(TOKENS) + os.urandom((1 << 20) - TOKENS) + bytes(2 << 20) + os.urandom(1 << 20)

    def make(self, name: str, here: str, there: str, **given: Any) -> Disk:
        """A disk that is a file or a device on each host: a link leads to a device, as those of LVM do."""
        path: Path = self._pair.source.directory / name
        kind = path.suffix[1:]
        raw = self._pair.directory / "content"
        raw.write_bytes(self.content)
        if here == "device":
            path.symlink_to(self._loop(self.content if kind == "raw" else STALE * ROOM))
            if kind == "qcow2":
                _run("qemu-img", "create", "-q", "-f", "qcow2", str(path), str(SIZE))
                _run("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", str(raw), str(path))
        else:
            _run("qemu-img", "convert", "-f", "raw", "-O", kind, str(raw), str(path))
        if there == "device":
            size = SIZE if kind == "raw" else ROOM
            (self._pair.destination.directory / name).symlink_to(self._loop(STALE * size))
        return Disk(path=str(path), format=kind, params={"bus": "ide", **given})

    def device(self, content: bytes) -> str:
        """A device with something on it."""
        return self._loop(content)

    def there(self, disk: Disk) -> bytes:
        """What a disk has on the destination."""
        path = self._pair.destination.directory / Path(str(disk.path)).name
        if disk.format == "qcow2":
            _run("qemu-img", "check", "-q", str(path))
        raw = self._pair.directory / "arrived"
        _run("qemu-img", "convert", "-f", disk.format, "-O", "raw", str(path), str(raw))
        return raw.read_bytes()


@pytest.fixture
def disks(pair: Any, loop: Any) -> Disks:
    """Makes disks on both hosts."""
    return Disks(pair, loop)


def _move(pair: Any, elsewhere: Any, given: dict[str, Any] = GIVEN) -> list[MigrationPhase]:
    result = hvcore.migrate(
        pair.source.driver, elsewhere, "web1", given, address="127.0.0.1", interval=0.1, patience=60
    )
    return [phase for phase, _ in result.phases]


def _writes_all_the_way(pair: Any, elsewhere: Any, disks: Disks, *made: Disk, **params: Any) -> None:
    """A guest that never stops to write tokens to its first disk finds its own on the other host, and nothing else."""
    console = pair.start(accel="kvm", disks=list(made), params={"cpu_model": "host", **params})
    pair.write_tokens(console)
    assert MigrationPhase.DISKS in _move(pair, elsewhere)
    assert pair.running() == ["destination"]
    token = pair.last_token(pair.destination.attach("web1"))
    pair.destination.driver.stop_instance("web1", force=True)
    content = disks.there(made[0])
    last, (expected, other) = struct.unpack_from("<I", content)[0], struct.unpack_from("<II", content, 512)
    assert token > 0
    assert (last, expected, other) == (token, 0, 0)
    assert content[TOKENS:] == disks.content[TOKENS:]
    for disk in made[1:]:
        assert disks.there(disk) == disks.content


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("kind", "here", "there"),
    [
        ("raw", "device", "device"),
        ("raw", "file", "device"),
        ("qcow2", "device", "device"),
        ("qcow2", "device", "file"),
    ],
)
def test_devices_and_files(pair: Any, elsewhere: Any, disks: Disks, kind: str, here: str, there: str) -> None:
    """From one to the other in every way, under KVM; what was on a device before is not seen."""
    _writes_all_the_way(pair, elsewhere, disks, disks.make(f"a.{kind}", here, there))


@pytest.mark.kvm
@pytest.mark.parametrize("pair", ["source", "destination"], indirect=True)
def test_between_versions_of_qemu(pair: Any, elsewhere: Any, disks: Disks) -> None:
    """To a newer QEMU and to an older one: a device, and a qcow2 image."""
    made = disks.make("a.raw", "device", "device"), disks.make("b.qcow2", "file", "file")
    params = {"machine": "pc-i440fx-7.2", "cpu_model": "qemu64", "cpu_enforce": False}
    _writes_all_the_way(pair, elsewhere, disks, *made, **params)


def test_what_a_device_is_not_overwritten_for(pair: Any, elsewhere: Any, disks: Disks) -> None:
    """Unless it is asked for, in use, of another size, or that of the source: each is said, and nothing is written."""
    disk = disks.make("a.raw", "device", "device")
    link = pair.destination.directory / "a.raw"
    pair.start(disks=[disk])

    def refused(**given: Any) -> set[str]:
        before = link.read_bytes()
        with pytest.raises(InvalidParameters) as error:
            _move(pair, elsewhere, {**GIVEN, **given})
        assert {finding.path for finding in error.value.findings} == {"record.instance.disks[0].path"}
        assert link.read_bytes() == before
        assert pair.destination.files() == set()
        return {finding.code for finding in error.value.findings}

    device = os.readlink(link)
    assert refused(overwrite_disks=False) == {"disk-exists"}
    busy = os.open(device, os.O_RDONLY | os.O_EXCL)  # as a mounted file system has it
    try:
        assert refused() == {"disk-in-use"}
    finally:
        os.close(busy)
    for size in (SIZE // 2, 2 * SIZE):
        link.unlink()
        link.symlink_to(disks.device(STALE * size))
        assert refused() == {"device-size"}
    link.unlink()
    link.symlink_to(os.readlink(str(disk.path)))
    assert "same-image" in refused()
    link.unlink()
    link.symlink_to(device)
    _move(pair, elsewhere)
    assert pair.running() == ["destination"]
    pair.destination.driver.stop_instance("web1", force=True)
    assert disks.there(disk) == disks.content


def test_one_that_is_cancelled_can_be_copied_again(pair: Any, elsewhere: Any, disks: Disks) -> None:
    """A device stays, with whatever has been copied, and nothing keeps it open."""
    disk = disks.make("a.raw", "device", "device")
    console = pair.start(disks=[disk])
    seen: list[MigrationPhase] = []

    def interrupt(status: hvcore.MigrationStatus) -> None:
        seen.append(status.phase)
        raise KeyboardInterrupt

    slow = {**GIVEN, "max_bandwidth": "256KiB"}
    with pytest.raises(KeyboardInterrupt):
        hvcore.migrate(pair.source.driver, elsewhere, "web1", slow, interrupt, address="127.0.0.1", interval=0.1)
    assert seen == [MigrationPhase.DISKS]
    assert pair.running() == ["source"]
    assert pair.ask("source", "query-jobs") == []
    assert pair.destination.files() == set()
    os.close(os.open(pair.destination.directory / "a.raw", os.O_RDONLY | os.O_EXCL))
    console.send(b"e")
    console.expect(b"ok")
    _move(pair, elsewhere)
    assert pair.running() == ["destination"]
