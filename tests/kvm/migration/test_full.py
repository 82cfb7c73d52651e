"""A file system without room on either host: nothing is begun that cannot be accounted for, and nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from hvcore import HypervisorError, InstanceState, MigrationPhase, MigrationPolicy, Size

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system"),
]

FAST = MigrationPolicy(tls=False, max_bandwidth=Size(1 << 30))
HELD = MigrationPolicy(tls=False, max_bandwidth=Size(1 << 30), switchover="paused")


@attrs.define
class Small:
    """A small file system."""

    path: Path

    def fill(self) -> None:
        """Leave no room on it, not for a byte."""
        with (self.path / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        (self.path / "filler").unlink()

    def is_full(self) -> bool:
        try:
            (self.path / "probe").write_bytes(bytes(4096))
        except OSError as error:
            return error.errno == errno.ENOSPC
        finally:
            (self.path / "probe").unlink(missing_ok=True)
        return False


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[str], Small]]:
    """Makes small file systems; they are there before the hosts, and go after them."""
    mounted: list[Path] = []

    def make(name: str) -> Small:
        path = tmp_path / name
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], check=True)
        mounted.append(path)
        return Small(path)

    yield make
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def cramped(small: Callable[[str], Small], make_pair: Callable[..., Any]) -> Any:
    """Two hosts whose state is on small file systems."""
    here, there = small("here"), small("there")
    return make_pair(), here, there


def test_the_destination_has_no_room(cramped: Any) -> None:
    """It is refused with where, nothing of it is left, and it runs on."""
    pair, _, there = cramped
    pair.start()
    info = pair.source.driver.migration_info("web1")
    there.fill()
    with pytest.raises(HypervisorError, match="(?i)room|space"):
        pair.destination.driver.accept_instance(info, "127.0.0.1", FAST)
    assert pair.destination.driver.list_instances().instances == ()
    there.free()
    pair.move(FAST)
    assert pair.running() == ["destination"]


def test_the_source_has_no_room(cramped: Any) -> None:
    """Nothing is sent, and it runs on; with room it goes."""
    pair, here, _ = cramped
    pair.start()
    info = pair.source.driver.migration_info("web1")
    target = pair.accept(FAST, info)
    here.fill()
    with pytest.raises(HypervisorError, match="(?i)room|space"):
        pair.source.driver.migrate_instance("web1", target, FAST)
    assert pair.running() == ["source"]
    assert pair.source.driver.get_migration_status("web1").phase is MigrationPhase.NONE
    here.free()
    pair.source.driver.migrate_instance("web1", target, FAST)
    pair.until(MigrationPhase.COMPLETED)
    pair.destination.driver.finalize_migration_dst(info, True)
    pair.source.driver.finalize_migration_source("web1", True)
    assert pair.running() == ["destination"]


def _use_up_the_page(path: Path) -> None:
    """A file has room to the end of its last page, whatever the file system has."""
    with path.open("ab") as file:
        file.write(b"\n" * (-file.tell() % os.sysconf("SC_PAGESIZE")))


@pytest.mark.parametrize("killed", [False, True])
def test_both_are_filled_while_it_is_sent(cramped: Any, killed: bool) -> None:
    """What QEMU reports is kept: a source that has let go of it says so, also when it has died."""
    pair, here, there = cramped
    pair.start()
    info = pair.begin(HELD)
    pair.until(MigrationPhase.PRE_SWITCHOVER, switch_over=False)
    for host in (pair.source, pair.destination):
        _use_up_the_page(Path(host.driver.directories.state) / "instances/web1/events")
    here.fill()
    there.fill()
    # What lets it over is a record of its own.
    with pytest.raises(HypervisorError, match="(?i)room|space"):
        pair.source.driver.continue_migration("web1", switch_over=True)
    pair.ask("source", "migrate-continue", state="pre-switchover")
    pair.until(MigrationPhase.COMPLETED, switch_over=False)
    assert here.is_full()
    assert there.is_full()
    if killed:
        pair.kill("source")
    state = pair.source.driver.get_instance_info("web1").state
    assert state is (InstanceState.STOPPED if killed else InstanceState.POSTMIGRATE)
    with pytest.raises(HypervisorError, match="(?i)room|space"):
        pair.destination.driver.finalize_migration_dst(info, True)
    assert pair.running() == []
    there.free()
    pair.destination.driver.finalize_migration_dst(info, True)
    assert pair.running() == ["destination"]
    here.free()
    pair.source.driver.finalize_migration_source("web1", True)
    assert pair.running() == ["destination"]
