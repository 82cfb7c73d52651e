"""The host application is killed while it does something with an instance that is not listed: that is found."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import attrs
import pytest

from hvcore import Directories, HostError, InstanceState
from hvcore_kvm import process
from hvcore_kvm.snapshots.interruptions import list_interrupted

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

UUID = "dd000000-0000-4000-8000-000000000007"
STRIDE = 4
"""Not every cut is tried: there are many."""

STILL = {
    "create": "import hvcore; driver.create_snapshot(hvcore.read_definition(words[0])[0], 'first', external=words[1])",
    "revert": "driver.revert_snapshot('web1', 'first')",
    "delete": "driver.delete_snapshot('web1', 'first')",
}
ALIVE = {
    "snapshot": "driver.create_snapshot('web1', 'first')",
    "save": "driver.save_instance('web1', words[0] + '/saved')",
    "backup": "driver.backup_instance('web1', words[0])",
}


def _named(host: Any) -> tuple[str, ...]:
    names: tuple[str, ...] = host.driver.list_interrupted().names
    return names


def _left(host: Any) -> list[str]:
    return [one for one in host.files() if one.endswith("snapshotting.json")]


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("operation", STILL)
def test_recovery_of_all_finds_what_is_stopped(host: Any, cut_short: Any, operation: str, external: bool) -> None:
    """It is not listed; while something is left half done it is named, and recovery without a name settles it."""
    disk = attrs.evolve(host.qcow2_disk(), uuid=UUID)
    definition = host.instance(disks=[disk])
    host.driver.start_instance(definition)
    host.driver.stop_instance("web1", force=True)
    words = {
        "name": "web1",
        "memory": definition.memory,
        "disks": [{"path": disk.path, "format": disk.format, "uuid": UUID}],
        "params": dict(definition.params),
    }
    cut, settled, killed = 1, 0, True
    while killed:
        taken = bool(host.driver.list_snapshots("web1").snapshots)
        if operation == "create" and taken:
            host.driver.delete_snapshot("web1", "first")
        if operation != "create" and not taken:
            host.driver.create_snapshot(definition, "first", external=external)
        killed = cut_short(STILL[operation], words, external, cut=cut) is None
        left = _left(host)
        assert host.driver.list_instances().instances == ()
        assert _named(host) == (("web1",) if left else ()), f"cut {cut}"
        rows = [(row.name, row.operation, row.outcome) for row in host.driver.recover().instances]
        wanted = [[("web1", f"{operation}_snapshot", outcome)] for outcome in ("completed", "undone")]
        assert rows in wanted if left else rows == [], f"cut {cut}"
        assert (_left(host), _named(host)) == ([], ()), f"cut {cut}"
        assert host.driver.recover().instances == (), f"cut {cut}"
        settled += bool(left)
        cut += STRIDE
    assert settled
    if host.driver.list_snapshots("web1").snapshots:
        host.driver.delete_snapshot("web1", "first")


@pytest.mark.parametrize("then", ["stop", "die"])
@pytest.mark.parametrize("operation", ALIVE)
def test_what_was_alive_and_is_no_more(host: Any, cut_short: Any, tmp_path: Path, operation: str, then: str) -> None:
    """It is killed while QEMU runs, which is stopped or dies before anybody recovers: nothing is left of it either."""
    disk = attrs.evolve(host.qcow2_disk(), uuid=UUID)
    definition = host.instance(disks=[disk])
    place = tmp_path / "place"
    place.mkdir()
    cut, stride, killed, named = 2, 3 * STRIDE, True, set()
    while killed:
        host.driver.start_instance(definition)
        killed = cut_short(ALIVE[operation], str(place), cut=cut) is None
        alive = [row.pid for row in host.driver.list_instances().instances if row.pid is not None]
        if then == "stop":
            host.driver.stop_instance("web1", force=True)
        elif alive:
            identity = process.identify(alive[0])
            os.kill(identity.pid, signal.SIGKILL)
            assert process.ends(identity)
        named.add(bool(_left(host)))
        assert _named(host) == (("web1",) if _left(host) else ()), f"cut {cut}"
        rows = host.driver.recover().instances
        assert {row.outcome for row in rows} <= {"completed", "undone"}, f"cut {cut}: {rows}"
        assert _left(host) == [], f"cut {cut}: {rows}"
        assert not [one for one in place.iterdir() if one.name.startswith(".")], f"cut {cut}: {rows}"
        assert host.driver.recover().instances == (), f"cut {cut}"
        state = host.driver.get_instance_info("web1").state
        if operation == "save":
            saved = state is InstanceState.SAVED
            assert [one.name for one in place.iterdir()] == (["saved"] if saved else []), f"cut {cut}: {rows}"
        for one in place.iterdir():
            one.unlink()
        host.driver.stop_instance("web1", force=True)
        for one in host.driver.list_snapshots("web1").snapshots:
            host.driver.delete_snapshot("web1", one.name)
        cut += stride
    assert named == ({False, True} if operation == "snapshot" else {False})


def test_only_the_records_are_looked_at(tmp_path: Path) -> None:
    """What is no directory of an instance is passed over; where they cannot be listed, that is said."""
    roots = {kind: str(tmp_path / kind) for kind in ("state", "data", "cache")}
    directories = Directories(**roots)
    assert list_interrupted(directories).names == ()
    instances = tmp_path / "data/instances"
    for name in ("web3", "web1", "web2"):
        (instances / name).mkdir(parents=True)
    for name in ("web3", "web1"):
        (instances / name / "snapshotting.json").write_text("damaged")
    (instances / "stray").write_text("")
    (instances / "link").symlink_to(instances / "web1")
    assert list_interrupted(directories).names == ("web1", "web3")
    instances.rename(tmp_path / "aside")
    instances.write_text("")
    with pytest.raises(HostError, match="cannot read .*data/instances"):
        list_interrupted(directories)
