"""Disks that only the source has go along: the guest finds on the other host what it wrote on this one."""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import Disk, InvalidParameters, MigrationPhase, MigrationPolicy, MigrationStatus
from hvcore.conformance.interruption import count_cuts, kill_at, spread
from hvcore_kvm.hardware.builder import device_id

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

FAST = {"tls": False, "max_bandwidth": "1GiB", "copy_disks": "all"}
SLOW = {**FAST, "max_bandwidth": "1MiB"}
"""So slow that a disk of some MiB is never copied completely while a test looks."""

CONTENT = 3 << 20
SIZE = 24 << 20


def _policy(given: dict[str, Any]) -> MigrationPolicy:
    policy, findings = hvcore.read_migration_policy(given)
    assert findings == []
    return policy


def _written(host: Any, name: str, **given: Any) -> Disk:
    """A disk whose beginning and middle have been written, and the rest has not."""
    path = host.directory / name
    content = os.urandom(CONTENT)
    if name.endswith(".raw"):
        with path.open("wb") as file:
            file.write(content[: CONTENT // 2])
            file.seek(SIZE // 2)
            file.write(content[CONTENT // 2 :])
            file.truncate(SIZE)
    else:
        (host.directory / "content").write_bytes(content)
        _run("qemu-img", "create", "-q", "-f", "qcow2", str(path), str(SIZE))
        _run("qemu-io", "-f", "qcow2", "-c", f"write -s {host.directory}/content 1M {CONTENT}", str(path))
        (host.directory / "content").unlink()
    return Disk(path=str(path), format=path.suffix[1:], **given)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"


def _same(pair: Any, *disks: Disk) -> None:
    """Both hosts have the same in their images."""
    for disk in disks:
        there = str(disk.path).replace(str(pair.source.directory), str(pair.destination.directory))
        _run("qemu-img", "compare", "-f", disk.format, "-F", disk.format, str(disk.path), there)
        if disk.format == "qcow2":
            _run("qemu-img", "check", "-q", there)


def _images(host: Any) -> set[str]:
    """Everything beside what the driver keeps."""
    return set(os.listdir(host.directory)) - {"state", "data"}


def _begin(pair: Any, elsewhere: Any, given: dict[str, Any] = SLOW) -> Any:
    """Everything up to the moment when the disks are being copied."""
    policy = _policy(given)
    info = pair.source.driver.migration_info("web1")
    target = elsewhere.accept_instance(info, "127.0.0.1", policy)
    pair.keep("destination")
    status = pair.source.driver.migrate_instance("web1", target, policy)
    assert status.phase is MigrationPhase.DISKS
    return info


def _nothing_copies(pair: Any) -> None:
    """The source's QEMU has no job and no node for it, and its guest answers."""
    assert pair.ask("source", "query-jobs") == []
    nodes = [row["node-name"] for row in pair.ask("source", "query-named-block-nodes", flat=True)]
    assert [name for name in nodes if name.startswith("moving-")] == []
    assert pair.running() == ["source"]


def _migrate(
    pair: Any,
    elsewhere: Any,
    given: dict[str, Any],
    on_progress: Callable[[MigrationStatus], None] | None = None,
    patience: float = 30,
) -> Any:
    return hvcore.migrate(
        *(pair.source.driver, elsewhere, "web1", given, on_progress),
        address="127.0.0.1",
        interval=0.1,
        patience=patience,
    )


def _tell(action: Callable[[], Any]) -> str:
    try:
        return str(action().changed)
    except (hvcore.WrongState, hvcore.OutcomeUnknown) as error:
        return type(error).__name__


@pytest.mark.parametrize("security_model", [None, "none"], ids=["usual", "none"])
def test_all_disks_go_along(pair: Any, elsewhere: Any, security_model: str | None) -> None:
    """Raw and qcow2, with and without a throttle; what is only read is not copied, and has to be there."""
    if security_model is None and os.geteuid() != 0:
        pytest.skip("only root confines by itself")
    disks = [
        _written(pair.source, "a.raw", params={"throttle": {"bps_total": 1 << 30}}),
        _written(pair.source, "b.qcow2", params={"cache": "writeback"}),
    ]
    for host in (pair.source, pair.destination):
        (host.directory / "c.raw").write_bytes(bytes(1 << 20))
        (host.directory / "cd.iso").write_bytes(bytes(1 << 20))
    read = Disk(path=str(pair.source.directory / "c.raw"), format="raw", read_only=True)
    console = pair.start(
        disks=[*disks, read],
        params={"cdroms": [{"path": str(pair.source.directory / "cd.iso")}]},
        **({} if security_model is None else {"security_model": security_model}),
    )
    console.close()
    seen: list[MigrationStatus] = []
    result = _migrate(pair, elsewhere, FAST, seen.append)
    assert pair.running() == ["destination"]
    copying = [status for status in seen if status.phase is MigrationPhase.DISKS]
    assert copying
    assert all(0 <= status.transferred <= status.total and status.remaining >= 0 for status in copying)
    assert all(status.total >= 2 * CONTENT for status in copying)
    assert next(phase for phase, _ in result.phases) is MigrationPhase.DISKS
    times = [at for _, at in result.phases]
    assert times == sorted(times)
    assert result.downtime is not None
    # Nobody can write to it any more, and all of it is as after any other start.
    assert pair.ask("destination", "query-block-exports") == []
    assert pair.destination.driver.verify_instance("web1").ok
    there = pair.destination.attach("web1")
    there.send(b"e")
    there.expect(b"ok")
    pair.destination.driver.stop_instance("web1", force=True)
    _same(pair, *disks)
    assert _images(pair.destination) == {"a.raw", "b.qcow2", "c.raw", "cd.iso"}
    made = (pair.destination.directory / "a.raw").stat()
    assert made.st_size == SIZE
    assert made.st_blocks * 512 < SIZE // 2
    assert made.st_mode & 0o077 == 0


def test_one_disk_goes_along(pair: Any, elsewhere: Any) -> None:
    """The one that is named; the other is on storage that both hosts reach. A paused guest is paused there too."""
    shared = Disk(path=str(pair.directory / "shared.raw"), format="raw")
    Path(str(shared.path)).write_bytes(bytes(1 << 20))
    disk = _written(pair.source, "a.qcow2", uuid="0b9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d11")
    pair.start(disks=[shared, disk])
    pair.source.driver.pause_instance("web1")
    _migrate(pair, elsewhere, {**FAST, "copy_disks": [str(disk.uuid).upper()]})
    assert pair.running() == []
    assert pair.ask("destination", "query-block-exports") == []
    pair.destination.driver.resume_instance("web1")
    assert pair.running() == ["destination"]
    pair.destination.driver.stop_instance("web1", force=True)
    _same(pair, disk)


def test_what_is_there_is_not_overwritten_unless_asked_for(pair: Any, elsewhere: Any) -> None:
    """A file with something in it is refused, an empty one is used; and nothing has changed after a refusal."""
    disk = _written(pair.source, "a.raw")
    pair.start(disks=[disk])
    there = pair.destination.directory / "a.raw"
    there.write_bytes(b"precious")
    with pytest.raises(InvalidParameters) as error:
        _migrate(pair, elsewhere, FAST)
    assert {(f.code, f.path) for f in error.value.findings} == {("disk-exists", "record.instance.disks[0].path")}
    assert there.read_bytes() == b"precious"
    assert pair.destination.files() == set()
    _migrate(pair, elsewhere, {**FAST, "overwrite_disks": True})
    pair.destination.driver.stop_instance("web1", force=True)
    _same(pair, disk)


@pytest.mark.parametrize("way", ["same", "linked", "dangling"])
def test_an_image_is_never_copied_onto_itself(pair: Any, elsewhere: Any, way: str) -> None:
    """Not where both hosts reach it, whatever it is called there, and not through a link to nothing."""
    disk = _written(pair.source, "a.raw")
    before = Path(str(disk.path)).read_bytes()
    pair.start(disks=[disk])
    info = pair.source.driver.migration_info("web1")
    if way == "linked":
        os.link(str(disk.path), pair.destination.directory / "a.raw")
    if way == "dangling":
        os.symlink(pair.destination.directory / "nowhere", pair.destination.directory / "a.raw")
    told = info if way == "same" else elsewhere.told(info)
    policy = _policy({**FAST, "overwrite_disks": True})
    with pytest.raises(InvalidParameters) as error:
        pair.destination.driver.accept_instance(told, "127.0.0.1", policy)
    wanted = "disk-missing" if way == "dangling" else "same-image"
    assert wanted in {finding.code for finding in error.value.findings}
    assert Path(str(disk.path)).read_bytes() == before
    assert not (pair.destination.directory / "nowhere").exists()
    assert pair.running() == ["source"]


def test_what_cannot_be_copied_is_said_at_once(pair: Any, elsewhere: Any) -> None:
    """Shared and read-only disks, and those that are not there; nothing is made."""
    read = pair.source.raw_disk("read.raw")
    disks = [
        attrs.evolve(pair.source.raw_disk("shared.raw"), params={"shared": True}),
        attrs.evolve(read, read_only=True),
        pair.source.raw_disk("fine.raw"),
    ]
    pair.start(disks=disks)
    info = pair.source.driver.migration_info("web1")
    uuids = [disk["uuid"] for disk in info.record["instance"]["disks"]]
    missing = "0b9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d11"
    policy = _policy({**FAST, "copy_disks": [*uuids, missing]})
    (pair.destination.directory / "read.raw").write_bytes(bytes(1 << 20))
    with pytest.raises(InvalidParameters) as error:
        elsewhere.accept_instance(info, "127.0.0.1", policy)
    found = {(finding.code, finding.path) for finding in error.value.findings}
    assert found == {
        ("no-disk", "policy.copy_disks[3]"),
        ("not-possible", "record.instance.disks[0].params.shared"),
        ("not-possible", "record.instance.disks[1].read_only"),
    }
    target = hvcore.MigrationTarget(address="127.0.0.1", port=9)
    with pytest.raises(InvalidParameters) as error:
        pair.source.driver.migrate_instance("web1", target, policy)
    assert {f.path for f in error.value.findings} == {"policy.copy_disks[3]", "target.disks_port"}
    assert _images(pair.destination) == {"read.raw"}
    assert pair.destination.files() == set()
    _nothing_copies(pair)


@pytest.mark.parametrize("order", list(itertools.permutations(("source", "destination"))), ids="-".join)
def test_it_is_cancelled_while_disks_are_copied(pair: Any, elsewhere: Any, order: tuple[str, str]) -> None:
    """It runs on where it is, what was made is gone, also where its end is asked for twice; and it can move later."""
    disk = _written(pair.source, "a.raw")
    pair.start(disks=[disk])
    info = _begin(pair, elsewhere)
    driver = pair.source.driver
    assert driver.get_migration_status("web1").phase is MigrationPhase.DISKS
    for refused in (
        lambda: driver.pause_instance("web1"),
        lambda: driver.hot_add_device("web1", hvcore.Nic(mode="user")),
        lambda: driver.migrate_instance("web1", hvcore.MigrationTarget(address="127.0.0.1", port=9), _policy(SLOW)),
    ):
        with pytest.raises(hvcore.HypervisorError):
            refused()
    assert "a.raw" in _images(pair.destination)
    assert driver.cancel_migration("web1").phase is MigrationPhase.CANCELLED
    finish = {
        "source": lambda: driver.finalize_migration_source("web1", False),
        "destination": lambda: elsewhere.finalize_migration_dst(info, False),
    }
    first = [_tell(finish[side]) for side in order]
    assert first == ["True" if side == "destination" else "False" for side in order]
    assert [_tell(finish[side]) for side in order] == ["False", "False"]
    _nothing_copies(pair)
    assert _images(pair.destination) == set()
    assert pair.destination.files() == set()
    (pair.directory / "destination.events").unlink()
    _migrate(pair, elsewhere, FAST)
    assert pair.running() == ["destination"]


def test_its_finalisers_alone_take_it_back(pair: Any, elsewhere: Any) -> None:
    """Nobody has to cancel it first; an empty file that was there is empty again."""
    pair.start(disks=[_written(pair.source, "a.raw")])
    (pair.destination.directory / "a.raw").touch()
    info = _begin(pair, elsewhere)
    assert _tell(lambda: pair.source.driver.finalize_migration_source("web1", True, timeout=3)) == "WrongState"
    assert _tell(lambda: elsewhere.finalize_migration_dst(info, False)) == "True"
    assert _tell(lambda: pair.source.driver.finalize_migration_source("web1", False)) == "True"
    _nothing_copies(pair)
    assert (pair.destination.directory / "a.raw").read_bytes() == b""


def test_what_takes_too_long_is_cancelled(pair: Any, elsewhere: Any) -> None:
    """The deadline of the policy is that of the disks, too."""
    pair.start(disks=[_written(pair.source, "a.raw")])
    with pytest.raises(hvcore.HypervisorError) as error:
        _migrate(pair, elsewhere, {**SLOW, "deadline": "500ms"})
    assert "runs on" in str(error.value) or isinstance(error.value, hvcore.DeadlineExceeded)
    _nothing_copies(pair)
    assert _images(pair.destination) == set()


@pytest.mark.parametrize("when", [MigrationPhase.DISKS, MigrationPhase.ACTIVE], ids=str)
def test_the_destination_dies(pair: Any, elsewhere: Any, when: MigrationPhase) -> None:
    """While disks are copied or after that, it runs on where it is, with its disks."""
    console = pair.start(disks=[_written(pair.source, "a.raw")])
    console.send(b"d")
    console.expect(b"ok")
    given = SLOW if when is MigrationPhase.DISKS else {**FAST, "max_bandwidth": "64MiB", "downtime_limit": "1ms"}
    done: list[bool] = []

    def die(status: MigrationStatus) -> None:
        if status.phase is when and not done:
            done.append(True)
            pair.keep("destination")
            pair.kill("destination")

    with pytest.raises(hvcore.OperationFailed, match="runs on at the source"):
        _migrate(pair, elsewhere, given, die)
    assert done
    _nothing_copies(pair)
    assert _images(pair.destination) == set()
    assert pair.destination.files() == set()
    console.send(b"D")
    console.expect(b"ok")


def test_the_source_dies(pair: Any, elsewhere: Any) -> None:
    """The guest is lost with its process, and its disk is where it was."""
    disk = _written(pair.source, "a.raw")
    pair.start(disks=[disk])
    before = Path(str(disk.path)).read_bytes()
    done: list[bool] = []

    def die(status: MigrationStatus) -> None:
        if status.phase is MigrationPhase.DISKS and not done:
            done.append(True)
            pair.kill("source")

    with pytest.raises(hvcore.HypervisorError, match="neither side"):
        _migrate(pair, elsewhere, SLOW, die, patience=1)
    assert Path(str(disk.path)).read_bytes() == before
    assert _images(pair.destination) == set()


_APPLICATION = """
import json, os, signal, sys
import hvcore
given = json.loads(sys.argv[1])
here, there = (hvcore.load_driver("kvm", settings) for settings in given["settings"])
policy, _ = hvcore.read_migration_policy(given["policy"])
info = here.migration_info("web1")
record = json.loads(json.dumps(info.record).replace(*given["paths"]))
kept = {name: getattr(info, name) for name in ("schema", "driver", "instance", "capabilities")}
told = hvcore.MigrationInfo(**kept, record=record)
target = there.accept_instance(told, "127.0.0.1", policy)
assert here.migrate_instance("web1", target, policy).phase == "disks"
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_host_applications_are_killed(pair: Any, elsewhere: Any) -> None:
    """Both sides put themselves in order with recover, without the other."""
    del elsewhere
    pair.start(disks=[_written(pair.source, "a.raw")])
    here, there = pair.source, pair.destination
    paths = [f"{here.directory}/", f"{there.directory}/"]
    given = {"settings": [here.settings, there.settings], "policy": SLOW, "paths": paths}
    done = subprocess.run([sys.executable, "-c", _APPLICATION, json.dumps(given)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    pair.keep("destination")
    assert here.driver.get_migration_status("web1").phase is MigrationPhase.DISKS
    assert "a.raw" in _images(there)
    [found] = here.driver.recover("web1").instances
    assert (found.operation, found.outcome) == ("migration", "undone")
    [found] = there.driver.recover("web1").instances
    assert (found.operation, found.outcome) == ("migration", "undone")
    _nothing_copies(pair)
    assert _images(there) == set()
    assert there.files() == set()
    assert here.driver.recover("web1").instances == ()


@pytest.mark.parametrize("side", ["source", "destination"])
def test_who_prepares_it_is_killed_anywhere(pair: Any, elsewhere: Any, side: str) -> None:
    """Recovery leaves nothing of it, whatever had been done: no file, no image, no mirror."""
    pair.start(disks=[_written(pair.source, "a.raw"), _written(pair.source, "b.qcow2")])
    policy = _policy(SLOW)
    info = pair.source.driver.migration_info("web1")
    here, there = pair.source.driver, pair.destination.driver

    def accept() -> Any:
        return elsewhere.accept_instance(info, "127.0.0.1", policy)

    if side == "destination":
        action: Callable[[], Any] = accept
        cuts = count_cuts(accept)
    else:
        action = functools.partial(here.migrate_instance, "web1", accept(), policy)
        cuts = count_cuts(action)
    killed = 0
    for cut in spread(cuts, 7):
        here.finalize_migration_source("web1", False)
        elsewhere.finalize_migration_dst(info, False)
        if side == "source":
            action = functools.partial(here.migrate_instance, "web1", accept(), policy)
        killed += kill_at(action, cut)
        (here if side == "source" else there).recover("web1")
        if side == "destination":
            assert _images(pair.destination) == set(), f"cut {cut}"
            assert not [path for path in pair.destination.files() if path.startswith("state")], f"cut {cut}"
        else:
            _nothing_copies(pair)
            assert not any(path.endswith("/migration.json") for path in pair.source.files()), f"cut {cut}"
    assert killed >= 5


@pytest.fixture
def small(pair: Any) -> Iterator[Path]:
    """A file system of the destination that has room for 2 MiB."""
    place = pair.destination.directory / "small"
    place.mkdir()
    (pair.source.directory / "small").mkdir()
    _run("mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place))
    try:
        yield place
    finally:
        if "web1" in {row.name for row in pair.destination.driver.list_instances().instances}:
            pair.destination.driver.stop_instance("web1", force=True)
        _run("umount", str(place))


@pytest.mark.skipif(os.geteuid() != 0, reason="file systems are mounted by root")
def test_the_destination_has_no_room(pair: Any, elsewhere: Any, small: Path) -> None:
    """It is refused before; and what runs out of room in the middle is failed, and said in QEMU's words."""
    pair.start(disks=[_written(pair.source, "small/a.raw")])
    with pytest.raises(InvalidParameters) as error:
        _migrate(pair, elsewhere, FAST)
    assert [finding.code for finding in error.value.findings] == ["no-space"]
    assert os.listdir(small) == []
    honest = elsewhere.told
    elsewhere.told = lambda info: honest(info, allocated=0)
    with pytest.raises(hvcore.OperationFailed, match=r"could not be copied: No space left on device.*runs on"):
        _migrate(pair, elsewhere, FAST)
    _nothing_copies(pair)
    assert os.listdir(small) == []


def test_nothing_is_copied_twice_as_fast_as_allowed(pair: Any, elsewhere: Any) -> None:
    """All disks together have the bandwidth of the policy, and the guest's pause has no limit of that kind."""
    disks = [_written(pair.source, name) for name in ("a.raw", "b.raw")]
    pair.start(disks=disks)
    info = _begin(pair, elsewhere, {**SLOW, "max_bandwidth": "3MiB"})
    jobs = {row["device"]: row["speed"] for row in pair.ask("source", "query-block-jobs")}
    uuids = [disk["uuid"] for disk in info.record["instance"]["disks"]]
    assert jobs == {device_id("moving", uuid): (3 << 20) // 2 for uuid in uuids}
    pair.source.driver.finalize_migration_source("web1", False)
    elsewhere.finalize_migration_dst(info, False)
