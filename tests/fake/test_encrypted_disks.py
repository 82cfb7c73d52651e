"""Modelled disks that are encrypted where they are stored: opened by the secret of the host, and by nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from two_hosts import ADDRESS, POLICY, WEB, Hosts

import hvcore
from hvcore import Disk, Driver, Instance, InvalidParameters, SpawnFailed
from hvcore.conformance import load_profile
from hvcore_fake import World
from hvcore_fake.images import read_disk
from hvcore_fake.sealed import key_of

UUID = "0b9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d21"
SECRET = b"bought-in-basel"
SIZE = (1 << 20) + 512


@pytest.fixture
def content() -> bytes:
    """What is on the disk: its last block is shorter."""
    return os.urandom(SIZE - 512) + bytes(512)


@pytest.fixture
def encrypted(tmp_path: Path, content: bytes) -> Any:
    """A disk with that."""
    make = load_profile("fake").encrypted
    assert make is not None
    made = make(str(tmp_path), content, SECRET)
    return attrs.evolve(made, disk=attrs.evolve(made.disk, uuid=UUID))


def _refused(call: Callable[[], object]) -> set[tuple[str, str]]:
    with pytest.raises(InvalidParameters) as caught:
        call()
    return {(finding.code, finding.path) for finding in caught.value.findings}


def test_a_guest_writes_what_nobody_else_reads(driver: Driver, world: World, encrypted: Any, content: bytes) -> None:
    """In the middle and at the end: who has the secret finds it, and nobody else anything of it."""
    driver.start_instance(Instance(name="web1", disks=(encrypted.disk,)))
    for offset in (100_000, SIZE - 600):
        assert world.guest_writes("web1", UUID, offset, b"\x07" * 600)
    assert not world.guest_writes("web1", UUID, SIZE - 512, b"\x07" * 600)
    wanted = bytearray(content)
    for offset in (100_000, SIZE - 600):
        wanted[offset : offset + 600] = b"\x07" * 600
    stored = Path(encrypted.disk.path).read_bytes()
    assert b"\x07" * 64 not in stored
    assert content[:64] not in stored
    assert encrypted.opens(SECRET) == bytes(wanted)
    assert encrypted.opens(b"another") is None


def test_the_secret_is_written_nowhere(driver: Driver, encrypted: Any, tmp_path: Path) -> None:
    """Not into a record either; its file is where it was."""
    driver.start_instance(Instance(name="web1", disks=(encrypted.disk,)))
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET in path.read_bytes()]
    assert holders == [Path(encrypted.secret_file)]


def test_what_does_not_fit_is_found_before_the_start(driver: Driver, encrypted: Any, tmp_path: Path) -> None:
    """A secret that is missing or no line, an image that is not encrypted, one that is, and half of the parameters."""
    where, params = "disks[0].params", dict(encrypted.disk.params)

    def start(disk: Disk) -> Callable[[], object]:
        return lambda: driver.start_instance(Instance(name="web1", disks=(disk,)))

    plain = tmp_path / "plain.raw"
    plain.write_bytes(bytes(4096))
    of_plain = attrs.evolve(encrypted.disk, path=str(plain))
    assert _refused(start(of_plain)) == {("disk-format", f"{where}.encryption")}
    assert _refused(start(attrs.evolve(encrypted.disk, params={}))) == {("disk-format", f"{where}.encryption")}
    half = attrs.evolve(encrypted.disk, params={"encryption": True})
    assert _refused(start(half)) == {("missing-parameter", f"{where}.secret_file")}
    qcow2 = attrs.evolve(encrypted.disk, format="qcow2")
    assert _refused(start(qcow2)) == {("not-supported", f"{where}.encryption")}
    nowhere = attrs.evolve(encrypted.disk, params={**params, "secret_file": str(tmp_path / "nowhere")})
    assert _refused(start(nowhere)) == {("secret-unusable", f"{where}.secret_file")}
    Path(encrypted.secret_file).write_bytes(b"two\nlines")
    assert _refused(start(encrypted.disk)) == {("secret-unusable", f"{where}.secret_file")}
    # Whether it is the right one is seen when it is used.
    Path(encrypted.secret_file).write_bytes(b"another")
    with pytest.raises(SpawnFailed, match="Invalid password"):
        start(encrypted.disk)()
    assert driver.list_instances().instances == ()


def test_a_backup_of_it_is_refused(driver: Driver, encrypted: Any, tmp_path: Path) -> None:
    """The copy could be read."""
    driver.start_instance(Instance(name="web1", disks=(encrypted.disk,)))
    assert _refused(lambda: driver.backup_instance("web1", str(tmp_path))) == {("disk-encrypted", "disks")}


def test_its_copy_has_the_secret_of_the_destination(tmp_path: Path, encrypted: Any, content: bytes) -> None:
    """Without TLS, and where there is no such secret, it is refused, all at once; nothing is made."""
    hosts, path = Hosts(tmp_path), Path(encrypted.disk.path)
    try:
        hosts.source.start_instance(attrs.evolve(WEB, disks=(encrypted.disk,)))
        path.rename(tmp_path / "renamed")
        Path(encrypted.secret_file).unlink()
        copying = {**POLICY, "copy_disks": "all"}
        where = "record.instance.disks[0].params"
        found = _refused(lambda: hosts.migrate(policy={**copying, "tls": False}))
        assert found == {("not-possible", f"{where}.encryption"), ("secret-unusable", f"{where}.secret_file")}
        assert not path.exists()
        Path(encrypted.secret_file).write_bytes(b"found-in-fribourg\n")
        policy = {**copying, "tls": {"directory": str(tmp_path)}}
        hvcore.migrate(hosts.source, hosts.destination, "web1", policy, address=ADDRESS)
        assert hosts.runners == hosts.processes == "b"
        size, blocks = read_disk(str(path), "raw", key_of(encrypted.secret_file))
        assert b"".join(blocks.get(n, b"").ljust(1 << 16, b"\0") for n in range(17))[:size] == content
        assert encrypted.opens(SECRET) is None
    finally:
        hosts.close()
