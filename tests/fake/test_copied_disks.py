"""Disks that move with a modelled guest: what fails or is cut off at any effect leaves no image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from two_hosts import ADDRESS, POLICY, WEB, Hosts

import hvcore
from hvcore import Disk, InvalidParameters, MigrationPhase
from hvcore_fake import EFFECTS, Fault, HostCrash, World

UUID = "0b9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d11"
COPYING = {**POLICY, "copy_disks": "all"}
SIZE = 1 << 20
POINTS = [(effect, when) for effect in EFFECTS["accept_instance"] for when in ("before", "after")]
BACK = [(effect, when) for effect in ("kill", "removal", "commit") for when in ("before", "after")]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The directory of the images."""
    found = tmp_path / "images"
    found.mkdir()
    return found


@pytest.fixture
def hosts(tmp_path: Path, place: Path, request: pytest.FixtureRequest) -> Iterator[Hosts]:
    """Two hosts, with an instance on the first whose image is not to be found at its path any more."""
    found = Hosts(tmp_path)
    path = place / "disk.raw"
    path.write_bytes(b"\x01" * SIZE)
    disk = Disk(path=str(path), format="raw", uuid=UUID)
    found.source.start_instance(attrs.evolve(WEB, disks=(disk,), params=getattr(request, "param", WEB.params)))
    os.rename(path, place / "renamed")
    yield found
    found.close()


def _names(place: Path) -> list[str]:
    return sorted(entry.name for entry in place.iterdir())


def test_what_is_written_to_the_last_moment_arrives(hosts: Hosts, place: Path) -> None:
    """Disks first, then the guest; the image of the source is left as it was, and nothing beside the new one."""
    seen: list[hvcore.MigrationStatus] = []

    def write(status: hvcore.MigrationStatus) -> None:
        if status.phase is MigrationPhase.ACTIVE:
            assert World.of(hosts.source).guest_writes("web1", UUID, 512, b"\x02" * 512)
        seen.append(status)

    result = hosts.migrate(policy=COPYING, on_progress=write)
    assert result.phases[0][0] is MigrationPhase.DISKS
    assert (seen[0].total, seen[0].phase) == (SIZE, MigrationPhase.DISKS)
    assert hosts.runners == hosts.processes == "b"
    wanted = bytearray(b"\x01" * SIZE)
    wanted[512:1024] = b"\x02" * 512
    assert _names(place) == ["disk.raw", "renamed"]
    assert (place / "disk.raw").read_bytes() == bytes(wanted) == (place / "renamed").read_bytes()
    assert World.of(hosts.destination).guest_writes("web1", UUID, 0, b"\x03")
    assert (place / "renamed").read_bytes() == bytes(wanted)


@pytest.mark.parametrize("kind", ["raise", "crash"])
@pytest.mark.parametrize(("effect", "when"), POINTS)
@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_an_arrival_that_fails_leaves_no_image(
    hosts: Hosts, place: Path, effect: str, when: str, kind: str, there: bool
) -> None:
    """Nor anything in one that was empty; the next attempt succeeds."""
    if there:
        (place / "disk.raw").touch()
    before = _names(place)
    hosts.plans[1].add(Fault(kind=kind, operation="accept_instance", effect=effect, when=when))
    with pytest.raises((hvcore.OperationFailed, HostCrash)):
        hosts.migrate(policy=COPYING)
    hosts.load()
    hosts.recover()
    assert hosts.runners == hosts.processes == "a"
    assert _names(place) == before
    assert not there or (place / "disk.raw").stat().st_size == 0
    hosts.migrate(policy=COPYING)
    assert (place / "disk.raw").read_bytes() == b"\x01" * SIZE


@pytest.mark.parametrize("kind", ["raise", "crash"])
@pytest.mark.parametrize(("effect", "when"), BACK)
def test_what_was_cancelled_leaves_no_image(hosts: Hosts, place: Path, effect: str, when: str, kind: str) -> None:
    """Whatever happens to who finishes, once it has been finished."""
    policy = hvcore.read_migration_policy(COPYING)[0]
    info = hosts.source.migration_info("web1")
    target = hosts.destination.accept_instance(info, ADDRESS, policy)
    hosts.source.migrate_instance("web1", target, policy)
    hosts.source.cancel_migration("web1")
    hosts.plans[1].add(Fault(kind=kind, operation="finalize_migration_dst", effect=effect, when=when))
    with pytest.raises((hvcore.OperationFailed, HostCrash)):
        hosts.destination.finalize_migration_dst(info, False)
    hosts.load()
    hosts.recover()
    hosts.destination.finalize_migration_dst(info, False)
    assert _names(place) == ["renamed"]
    assert hosts.runners == hosts.processes == "a"


def test_a_stop_of_what_waits_takes_its_images(hosts: Hosts, place: Path) -> None:
    """It never runs here, whoever ends it."""
    policy = hvcore.read_migration_policy(COPYING)[0]
    hosts.destination.accept_instance(hosts.source.migration_info("web1"), ADDRESS, policy)
    assert len(_names(place)) == 3
    hosts.destination.stop_instance("web1", force=True)
    assert _names(place) == ["renamed"]


def test_disks_that_cannot_be_copied_are_all_said(hosts: Hosts, place: Path) -> None:
    """The very image of the source, that it is there, and one that it does not have."""
    os.rename(place / "renamed", place / "disk.raw")
    other = "1b9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d12"
    with pytest.raises(InvalidParameters) as caught:
        hosts.migrate(policy={**POLICY, "copy_disks": [UUID, other]})
    assert caught.value.findings.codes == ("no-disk", "same-image", "disk-exists")
    assert (place / "disk.raw").read_bytes() == b"\x01" * SIZE


@pytest.mark.parametrize("hosts", [{"dirty_rate": "1GiB"}], indirect=True)
def test_disks_are_there_before_a_guest_goes_over_early(hosts: Hosts, place: Path) -> None:
    """All that it has written has gone with it when the rest of its memory still follows."""
    phases: list[MigrationPhase] = []

    def write(status: hvcore.MigrationStatus) -> None:
        if status.phase is MigrationPhase.ACTIVE:
            assert World.of(hosts.source).guest_writes("web1", UUID, 512, b"\x02" * 512)
        phases.append(status.phase)

    early = {**COPYING, "postcopy": {"after_passes": 1}}
    hosts.migrate(policy=early, on_progress=write)
    assert MigrationPhase.POSTCOPY in phases
    assert hosts.runners == hosts.processes == "b"
    assert (place / "disk.raw").read_bytes() == (place / "renamed").read_bytes()
    assert b"\x02" * 512 in (place / "disk.raw").read_bytes()
