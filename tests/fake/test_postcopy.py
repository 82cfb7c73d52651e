"""Guests that go over before their memory has: they run once, are whole in the end, and are held when cut off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from two_hosts import ADDRESS, POLICY, WEB, Hosts

import hvcore
from hvcore import InstanceState, MigrationPhase, MigrationTarget, OutcomeUnknown, WrongState
from hvcore_fake import Fault, HostCrash

EARLY = {**POLICY, "postcopy": {"after_passes": 1}}
BUSY = attrs.evolve(WEB, params={"dirty_rate": "1GiB"})


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts, with a guest on the first that changes its memory faster than it is sent."""
    found = Hosts(tmp_path)
    found.source.start_instance(BUSY)
    yield found
    found.close()


def _until(hosts: Hosts, phase: MigrationPhase) -> None:
    for _ in range(1000):
        status = hosts.source.continue_migration("web1", wait=0.1)
        hosts.watch()
        if status.phase is phase:
            return
    pytest.fail(f"it does not come to phase {phase}: {status}")


def _gone_over(hosts: Hosts) -> tuple[hvcore.MigrationInfo, MigrationTarget, hvcore.MigrationPolicy]:
    """It has gone over, and runs on the destination."""
    policy = hvcore.read_migration_policy(EARLY)[0]
    info = hosts.source.migration_info("web1")
    target = hosts.destination.accept_instance(info, ADDRESS, policy)
    hosts.source.migrate_instance("web1", target, policy)
    _until(hosts, MigrationPhase.POSTCOPY)
    assert hosts.runners == ""
    assert hosts.destination.finalize_migration_dst(info, True).changed
    assert hosts.runners == "b"
    return info, target, policy


@pytest.mark.parametrize(
    "given",
    [{"postcopy": {"after_passes": 2}}, {"on_no_convergence": "postcopy", "converge_within": "5s"}],
    ids=["passes", "patience"],
)
def test_a_busy_guest_goes_over_early(hosts: Hosts, given: dict[str, object]) -> None:
    """It runs on the destination while its memory follows, and nothing is left to put in order."""
    result = hosts.migrate(policy={**POLICY, **given})
    phases = [phase.value for phase, _ in result.phases]
    assert phases == ["setup", "active", "postcopy", "completed"]
    assert hosts.runners == hosts.processes == "b"
    assert hosts.source.recover().instances == hosts.destination.recover().instances == ()


def test_one_that_is_cut_off_goes_on_with_the_same_calls(hosts: Hosts) -> None:
    """Both sides hold their half; nothing lets go of it, and what was cut off is sent then."""
    info, _, policy = _gone_over(hosts)
    hosts.worlds[0].cut_link("web1")
    assert hosts.source.get_migration_status("web1").phase is MigrationPhase.POSTCOPY_PAUSED
    assert hosts.destination.get_instance_info("web1").state is InstanceState.UNKNOWN
    refused = (
        lambda: hosts.source.finalize_migration_source("web1", True),
        lambda: hosts.source.finalize_migration_source("web1", False),
        lambda: hosts.source.resume_instance("web1"),
        lambda: hosts.destination.finalize_migration_dst(info, False),
    )
    for call in refused:
        with pytest.raises(WrongState):
            call()
    assert hosts.source.cancel_migration("web1").phase is MigrationPhase.POSTCOPY_PAUSED
    assert [row.outcome for row in hosts.destination.recover("web1").instances] == ["failed"]
    target = hosts.destination.accept_instance(info, ADDRESS, policy)
    hosts.source.migrate_instance("web1", target, policy)
    _until(hosts, MigrationPhase.COMPLETED)
    assert hosts.destination.finalize_migration_dst(info, True).changed
    hosts.source.finalize_migration_source("web1", True)
    assert hosts.runners == hosts.processes == "b"
    assert hosts.destination.get_instance_info("web1").state is InstanceState.RUNNING


def test_without_its_source_it_is_lost(hosts: Hosts) -> None:
    """What the source had goes with it, and that is said."""

    def kill(status: hvcore.MigrationStatus) -> None:
        if status.phase is MigrationPhase.POSTCOPY and "a" in hosts.processes:
            hosts.worlds[0].kill("web1")

    with pytest.raises(OutcomeUnknown, match="took some of its memory along"):
        hosts.migrate(policy=EARLY, on_progress=kill, patience=0.2)
    assert hosts.destination.get_instance_info("web1").state is InstanceState.UNKNOWN
    hosts.destination.stop_instance("web1", force=True)
    assert hosts.processes == ""


def test_what_ends_at_the_destination_is_held_at_the_source(hosts: Hosts) -> None:
    """It is not continued there."""
    _gone_over(hosts)
    hosts.worlds[1].kill("web1")
    _until(hosts, MigrationPhase.POSTCOPY_PAUSED)
    assert hosts.runners == ""
    with pytest.raises(WrongState):
        hosts.source.resume_instance("web1")


@pytest.mark.parametrize("effect", ["record", "commit"])
def test_a_host_application_that_is_killed_at_the_end(hosts: Hosts, effect: str) -> None:
    """It runs there, and recovery finds that all of it has arrived."""
    info, _, _ = _gone_over(hosts)
    _until(hosts, MigrationPhase.COMPLETED)
    hosts.plans[1].add(Fault(kind="crash", operation="finalize_migration_dst", effect=effect))
    with pytest.raises(HostCrash):
        hosts.destination.finalize_migration_dst(info, True)
    hosts.load()
    assert [row.outcome for row in hosts.destination.recover("web1").instances] == ["completed"]
    assert hosts.destination.recover("web1").instances == ()
    assert not hosts.destination.finalize_migration_dst(info, True).changed
    hosts.source.finalize_migration_source("web1", True)
    assert hosts.runners == hosts.processes == "b"
