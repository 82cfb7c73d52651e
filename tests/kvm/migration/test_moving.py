"""A guest moves from one QEMU to another, in every way there is: it goes on where it was, on one side at a time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import Cause, Deadline, InstanceState, MigrationPhase, MigrationPolicy, read_migration_policy
from hvcore.guests import FIRMWARE_PATTERN_SUM
from hvcore_kvm.migration.compatibility import compare_versions

pytestmark = pytest.mark.qemu

PATIENCE = 60.0


def _policy(**given: Any) -> MigrationPolicy:
    policy, findings = read_migration_policy({"tls": False, "max_bandwidth": "1GiB", **given})
    assert findings == []
    return policy


def _number(console: Any, command: bytes, word: bytes) -> int:
    console.send(command)
    console.expect(word + b"=")
    return int(console.expect(b"\r\n"), 16)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"live": False},
        {"multifd": {"channels": 2}},
        {"multifd": {"channels": 2, "compression": "zlib"}},
        {"multifd": {"channels": 2, "compression": "zstd"}},
        {"auto_converge": {"initial": 30}},
        {"switchover": "paused"},
        {"postcopy": {"after_passes": 50}},
    ],
    ids=lambda given: "-".join(given) or "precopy",
)
def test_a_guest_goes_on_where_it_was(pair: Any, given: dict[str, Any]) -> None:
    """Its counter and its memory are what they were, it answers on the other side, and here nothing of it is left."""
    console = pair.start(security_model="none" if "postcopy" in given else None)
    before = _number(console, b"c", b"count")
    _, status = pair.move(_policy(**given))
    assert status.phase is MigrationPhase.COMPLETED
    assert status.total_time > 0
    assert status.downtime is not None
    there = pair.destination.attach("web1")
    assert _number(there, b"c", b"count") >= before
    assert _number(there, b"m", b"sum") == FIRMWARE_PATTERN_SUM
    assert pair.destination.driver.get_instance_info("web1").state is InstanceState.RUNNING
    assert pair.source.driver.list_instances().instances == ()
    assert [path for path in pair.source.files() if path.startswith("state")] == []
    gone = pair.source.driver.get_instance_info("web1")
    assert (gone.state, gone.reason.cause) == (InstanceState.STOPPED, Cause.MIGRATION)
    assert pair.destination.driver.verify_instance("web1").ok


def test_it_takes_at_least_as_long_as_the_guest_paused(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source has sent the last of it before the guest runs over there."""
    late = SimpleNamespace(time=lambda: time.time() + 10, monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr("hvcore.migration.time", late)
    pair.start()
    result = hvcore.migrate(pair.source.driver, pair.destination.driver, "web1", _policy(), address="127.0.0.1")
    assert result.downtime is not None
    assert 10 <= result.downtime <= result.total_time


@pytest.mark.kvm
def test_it_moves_under_kvm(pair: Any) -> None:
    """The same with KVM."""
    pair.start(accel="kvm", params={"cpu_model": "host"})
    pair.move(_policy())
    there = pair.destination.attach("web1")
    assert _number(there, b"m", b"sum") == FIRMWARE_PATTERN_SUM


@pytest.mark.parametrize("state", ["paused", "prelaunch"])
def test_a_paused_guest_arrives_paused(pair: Any, state: str) -> None:
    """It is not let run by its move, and runs when it is resumed."""
    definition = pair.source.instance(params={"cpu_model": "qemu64"})
    if state == "paused":
        pair.source.start(definition)
        pair.source.driver.pause_instance("web1")
    else:
        pair.source.driver.start_instance(definition, paused=True)
    pair.keep("source")
    pair.move(_policy())
    assert pair.running() == []
    pair.destination.driver.resume_instance("web1")
    there = pair.destination.attach("web1")
    there.send(b"e")
    there.expect(b"ok")
    assert pair.running() == ["destination"]


def test_what_was_plugged_goes_along(pair: Any) -> None:
    """A disk, a NIC and virtual CPUs that it was not started with are where they were, there and back again."""
    pair.start(params={"machine": "q35", "vcpus_max": 4})
    driver = pair.source.driver
    driver.hot_add_device("web1", hvcore.Nic(mode="user"))
    driver.hot_add_device("web1", pair.source.qcow2_disk())
    driver.hot_mod_device("web1", hvcore.Processors(count=3))
    before = driver.get_instance_info("web1")
    pair.move(_policy())
    there = pair.destination.driver
    after = there.get_instance_info("web1")
    assert (after.vcpus, after.devices) == (3, before.devices)
    assert there.verify_instance("web1").ok
    assert [cpu["number"] for cpu in there.migration_info("web1").record["plugged"]] == [1, 2]
    there.hot_mod_device("web1", hvcore.Processors(count=4))
    assert there.get_instance_info("web1").vcpus == 4


def test_there_and_back_again(pair: Any) -> None:
    """What a migration has set up is gone after it: the same instance can be moved again, by other means."""
    pair.start(security_model="none")
    pair.move(_policy(multifd={"channels": 2}))
    here = pair.destination.driver
    assert here.get_migration_status("web1").phase is MigrationPhase.NONE
    assert here.cancel_migration("web1").phase is MigrationPhase.NONE
    assert not here.finalize_migration_source("web1", False).changed
    back = attrs.evolve(pair, source=pair.destination, destination=pair.source, directory=pair.directory / "back")
    back.directory.mkdir()
    back.keep("source")
    back.move(_policy(on_no_convergence="postcopy"))
    assert back.running() == ["destination"]
    assert _number(back.destination.attach("web1"), b"m", b"sum") == FIRMWARE_PATTERN_SUM


def test_post_copy_lets_it_run_before_all_of_it_is_there(pair: Any) -> None:
    """A guest that changes its memory faster than it is sent goes over all the same, and is told of on both sides."""
    console = pair.start(security_model="none")
    console.send(b"d")
    console.expect(b"ok")
    info = pair.begin(_policy(max_bandwidth="16MiB", postcopy={"after_passes": 1}))
    pair.until(MigrationPhase.POSTCOPY, MigrationPhase.COMPLETED)
    done = pair.destination.driver.finalize_migration_dst(info, True)
    assert done.after is InstanceState.RUNNING
    there = pair.destination.attach("web1")
    there.send(b"D")
    there.expect(b"ok")
    pair.until(MigrationPhase.COMPLETED)
    pair.destination.driver.finalize_migration_dst(info, True)
    pair.source.driver.finalize_migration_source("web1", True)
    assert pair.running() == ["destination"]


def test_post_copy_goes_on_after_its_network_broke(pair: Any) -> None:
    """Both sides hold what they have; the same calls once more connect them, and the guest is whole."""
    console = pair.start(security_model="none")
    console.send(b"d")
    console.expect(b"ok")
    policy = _policy(max_bandwidth="32MiB", postcopy={"after_passes": 1})
    info = pair.begin(policy)
    # So slow that there is time to break it.
    pair.ask("source", "migrate-set-parameters", **{"max-postcopy-bandwidth": 1 << 20})
    with pytest.raises(hvcore.AlreadyRunning, match="arriving already"):
        pair.accept(policy, info)
    pair.until(MigrationPhase.POSTCOPY)
    pair.destination.driver.finalize_migration_dst(info, True)
    pair.ask("source", "migrate-pause")
    pair.until(MigrationPhase.POSTCOPY_PAUSED)
    for refused in (
        lambda: pair.source.driver.finalize_migration_source("web1", True, timeout=3),
        lambda: pair.source.driver.finalize_migration_source("web1", False),
        lambda: pair.source.driver.resume_instance("web1"),
    ):
        with pytest.raises(hvcore.WrongState):
            refused()
    deadline = Deadline.after(PATIENCE)
    while pair.ask("destination", "query-migrate")["status"] != "postcopy-paused":
        assert not deadline.expired
    target = pair.accept(policy, info)
    pair.ask("source", "migrate-set-parameters", **{"max-postcopy-bandwidth": 0})
    pair.source.driver.migrate_instance("web1", target, policy)
    pair.until(MigrationPhase.COMPLETED)
    pair.destination.driver.finalize_migration_dst(info, True)
    pair.source.driver.finalize_migration_source("web1", True)
    there = pair.destination.attach("web1")
    there.send(b"D")
    there.expect(b"ok")
    assert _number(there, b"m", b"sum") == FIRMWARE_PATTERN_SUM


def test_a_busy_guest_is_given_a_longer_pause(pair: Any) -> None:
    """Without it, it would be sent for ever; with it, the pause that was aimed at is raised until it goes over."""
    console = pair.start()
    console.send(b"d")
    console.expect(b"ok")
    policy = _policy(max_bandwidth="32MiB", downtime_limit="1ms", converge_within="300ms", downtime_maximum="20s")
    info = pair.begin(policy)
    pair.until(MigrationPhase.COMPLETED)
    assert pair.ask("source", "query-migrate-parameters")["downtime-limit"] > 1
    pair.destination.driver.finalize_migration_dst(info, True)
    pair.source.driver.finalize_migration_source("web1", True)
    assert pair.running() == ["destination"]


@pytest.mark.parametrize(
    "given", [{"deadline": "500ms"}, {"on_no_convergence": "cancel", "converge_within": "500ms"}], ids=["late", "vain"]
)
def test_what_takes_too_long_is_cancelled(pair: Any, given: dict[str, Any]) -> None:
    """The guest runs on where it is, and nothing is left of the attempt on either side."""
    console = pair.start()
    console.send(b"d")
    console.expect(b"ok")
    info = pair.begin(_policy(max_bandwidth="8MiB", downtime_limit="1ms", **given))
    pair.until(MigrationPhase.CANCELLED)
    pair.destination.driver.finalize_migration_dst(info, False)
    pair.source.driver.finalize_migration_source("web1", False)
    assert pair.running() == ["source"]
    assert pair.destination.files() == set()
    console.send(b"D")
    console.expect(b"ok")
    # And it can be moved afterwards.
    pair.killed.clear()
    pair.forget("destination")
    pair.move(_policy())
    assert pair.running() == ["destination"]


@pytest.mark.parametrize("way", ["up", "down"])
def test_it_moves_between_versions_of_qemu(make_pair: Callable[..., Any], newer_qemu: str, way: str) -> None:
    """To a newer QEMU and to an older one, with the machine type it has."""
    new = {"qemu": newer_qemu}
    pair = make_pair(None, new) if way == "up" else make_pair(new, None)
    machine = "pc-q35-7.2"
    pair.start(params={"machine": machine}, nics=[hvcore.Nic(mode="user")])
    pair.move(_policy())
    assert _number(pair.destination.attach("web1"), b"m", b"sum") == FIRMWARE_PATTERN_SUM
    assert pair.destination.driver.get_instance_info("web1").machine == machine


def test_it_is_told_how_far_it_is(pair: Any) -> None:
    """Bytes sent and left, rates and passes of a migration that is under way; asking changes nothing."""
    console = pair.start()
    console.send(b"d")
    console.expect(b"ok")
    pair.begin(_policy(max_bandwidth="32MiB", downtime_limit="1ms"))
    seen = pair.until(MigrationPhase.ACTIVE)
    while not (seen.transferred and seen.dirty_rate):
        seen = pair.source.driver.continue_migration("web1", wait=0.2)
        assert seen.phase is MigrationPhase.ACTIVE
    status = pair.source.driver.get_migration_status("web1")
    assert status.phase is MigrationPhase.ACTIVE
    assert 64 << 20 <= status.total < 80 << 20
    assert status.transferred > 0
    assert status.downtime is None
    assert status.total_time > 0
    with pytest.raises(hvcore.WrongState, match="under way"):
        pair.source.driver.migrate_instance("web1", hvcore.MigrationTarget(address="127.0.0.1", port=1), _policy())
    assert pair.source.driver.get_migration_status("web1").phase is MigrationPhase.ACTIVE
    assert pair.source.driver.cancel_migration("web1").phase is MigrationPhase.CANCELLED
    assert pair.running() == ["source"]


@pytest.mark.parametrize(
    ("source", "destination", "safe"),
    [
        ("7.2.22", "QEMU 7.2.22", True),
        ("7.2.22", "10.0.2 (Debian 1:10.0.2+ds-2)", True),
        ("10.0.2", "7.2.0", True),
        ("7.1.0", "7.2.0", False),
        ("", "7.2.0", False),
        ("7.2.0", "x" * 100000, False),
        ("1.2.3.4.5", "7.2.0", False),
    ],
)
def test_versions_are_compared(source: str, destination: str, safe: bool) -> None:
    """Whatever the words are, there is an answer, and a reason where there is something to watch."""
    found = compare_versions(source, destination)
    assert found.safe is safe
    assert found.reason or re.match("7.2.22", source)
