"""Moving a guest between two modelled hosts: how it goes, and that it never runs on both, whatever fails when."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from two_hosts import ADDRESS, POLICY, WEB, Hosts

import hvcore
from hvcore import Cause, InstanceState, MigrationPhase, OperationFailed, OutcomeUnknown
from hvcore_fake import EFFECTS, FakeDriver, Fault, HostCrash, World

Make = Callable[..., Hosts]
PHASES = ("setup", "active", "pre-switchover", "device", "completed")
OPERATIONS = (
    ("a", "migration_info"),
    ("b", "accept_instance"),
    ("a", "migrate_instance"),
    ("a", "continue_migration"),
    ("a", "cancel_migration"),
    ("b", "finalize_migration_dst"),
    ("a", "finalize_migration_source"),
)
POINTS = [
    (side, operation, effect, when)
    for side, operation in OPERATIONS
    for effect in (None, *EFFECTS.get(operation, ()))
    for when in ("before", "after")
]
WAYS = [(*point, kind) for point in POINTS for kind in ("raise", "crash")]
WAYS += [(*point, "unknown") for point in POINTS if point[2] is None]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Two hosts, with an instance on the first."""
    made = []

    def hosts(*faults: list[Fault], paused: bool = False, instance: hvcore.Instance = WEB) -> Hosts:
        made.append(Hosts(tmp_path, *faults))
        made[-1].source.start_instance(instance, paused=paused)
        return made[-1]

    yield hosts
    for each in made:
        each.close()


def test_a_running_guest_runs_on_the_other_side(make: Make) -> None:
    """It arrives, is measured, the source holds nothing, and it can move back."""
    hosts = make()
    uuid = hosts.source.get_instance_info("web1").uuid
    seen = []
    result = hosts.migrate(on_progress=seen.append)
    assert hosts.runners == hosts.processes == "b"
    assert [phase.value for phase, _ in result.phases] == list(PHASES)
    assert result.transferred == 256 << 20
    assert result.downtime == pytest.approx(0.1, abs=0.01)
    assert 0.9 < result.total_time < 2
    assert [status.remaining for status in seen] == sorted((status.remaining for status in seen), reverse=True)
    left = hosts.source.get_instance_info("web1")
    assert (left.state, left.reason.cause) == (InstanceState.STOPPED, Cause.MIGRATION)
    assert hosts.destination.get_instance_info("web1").uuid == uuid
    assert hosts.source.verify().codes == hosts.destination.verify().codes == ()
    assert hosts.source.list_instances().instances == ()
    back = hvcore.migrate(hosts.destination, hosts.source, "web1", POLICY, address=ADDRESS)
    assert back.instance == "web1"
    assert hosts.runners == hosts.processes == "a"


@pytest.mark.parametrize("live", [True, False])
def test_what_the_guest_was_about_to_do_goes_on(make: Make, live: bool) -> None:
    """Its time counts on where it was stopped, and not while it was on its way."""
    hosts = make(instance=attrs.evolve(WEB, params={"power_off_after": "10s"}))
    World.of(hosts.source).advance(6)
    hosts.migrate(policy={**POLICY, "live": live})
    here = World.of(hosts.destination)
    lived = 6 + (1.0 if live else 0.05)
    here.advance(9.9 - lived)
    assert hosts.runners == "b"
    here.advance(0.5)
    assert hosts.destination.get_instance_info("web1").state is InstanceState.SHUTDOWN_BY_USER


@pytest.mark.parametrize("state", ["paused", "prelaunch"])
def test_a_guest_that_does_not_run_arrives_as_it_was(make: Make, state: str) -> None:
    """And runs when it is resumed there."""
    hosts = make(paused=state == "prelaunch")
    if state == "paused":
        hosts.source.pause_instance("web1")
    hosts.migrate()
    info = hosts.destination.get_instance_info("web1")
    assert (info.state, hosts.processes) == (InstanceState(state), "b")
    hosts.destination.resume_instance("web1")
    assert hosts.runners == "b"


@pytest.mark.parametrize("what", ["raise-downtime", "throttle", "cancel"])
def test_what_does_not_converge(make: Make, what: str) -> None:
    """A longer pause and a slower guest let it go over; cancelling leaves it where it is."""
    hosts = make(instance=attrs.evolve(WEB, params={"dirty_rate": "300MiB"}))
    policy = {**POLICY, "on_no_convergence": what, "converge_within": "2s"}
    if what == "cancel":
        with pytest.raises(OperationFailed, match="cancelled; the instance runs on at the source"):
            hosts.migrate(policy=policy)
        assert hosts.runners == hosts.processes == "a"
    else:
        hosts.migrate(policy=policy)
        assert hosts.runners == hosts.processes == "b"


def test_a_deadline_cancels_it(make: Make) -> None:
    """What takes too long stays; so does what a user interrupts."""
    hosts = make(instance=attrs.evolve(WEB, params={"dirty_rate": "300MiB"}))
    with pytest.raises(hvcore.DeadlineExceeded) as caught:
        hosts.migrate(policy={**POLICY, "deadline": "3s", "converge_within": "3s"})
    assert "the instance is on the source, as before" in caught.value.__notes__
    assert hosts.runners == hosts.processes == "a"


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupt_cancels_it_or_comes_too_late(make: Make, phase: str, kind: type[BaseException]) -> None:
    """Before the guest has gone over it stays; afterwards it is on the destination, and a note says so."""
    hosts = make()

    def interrupt(status: hvcore.MigrationStatus) -> None:
        if status.phase == phase:
            raise kind

    with pytest.raises(kind) as caught:
        hosts.migrate(on_progress=interrupt)
    late = phase in ("device", "completed")
    assert hosts.runners == hosts.processes == ("b" if late else "a")
    assert ("destination" if late else "source") in caught.value.__notes__[-1]
    assert hosts.source.recover().instances == hosts.destination.recover().instances == ()


EVENTS = ("source dies", "destination dies", "both die", "link cut", "answer lost", "source hangs")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("event", EVENTS)
def test_whatever_happens_in_whatever_phase(make: Make, event: str, phase: str) -> None:
    """It ends on exactly one side, or on none and that is said; and both can be put in order."""
    hosts = make()
    here, there = hosts.worlds

    def happen(status: hvcore.MigrationStatus) -> None:
        hosts.watch()
        if status.phase != phase:
            return
        if event in ("source dies", "both die"):
            here.kill("web1")
        if event in ("destination dies", "both die") and there.process("web1") is not None:
            there.kill_incoming("web1")
        if event == "link cut":
            here.cut_link("web1")
        if event == "answer lost":
            here.lose_answer("web1")
        if event == "source hangs":
            here.hang("web1")

    # Short where nothing will ever come, for then every wait is a full one.
    patience = 0.3 if event.startswith("source") else 60.0
    try:
        hosts.migrate(on_progress=happen, patience=patience)
        ended = "b"
    except OperationFailed as error:
        ended = "" if "neither" in error.message else "a"
    except OutcomeUnknown:
        ended = "?"
    assert hosts.runners != "ab"
    if ended in ("a", "b"):
        assert hosts.runners == hosts.processes == ended
    if ended == "":
        assert hosts.processes == ""
    died_late = event == "destination dies" and phase == "completed"
    assert (ended == "?") == (died_late or event == "source hangs")
    hosts.recover()
    assert hosts.runners != "ab"
    for driver in (hosts.source, hosts.destination):
        driver.stop_instance("web1", force=True)
        assert driver.list_instances().instances == ()


@pytest.mark.parametrize(("side", "operation", "effect", "when", "kind"), WAYS)
def test_whatever_fails_at_whatever_point(
    make: Make, side: str, operation: str, effect: str | None, when: str, kind: str
) -> None:
    """An error, a lost answer or a killed host application: never two runners, and a second try ends on one side."""
    fault = Fault(
        kind="crash" if kind == "crash" else "raise",
        operation=operation,
        effect=effect,
        when=when,
        error="OutcomeUnknown" if kind == "unknown" else "OperationFailed",
    )
    hosts = make(*([fault], []) if side == "a" else ([], [fault]))
    try:
        hosts.migrate()
    except (hvcore.HypervisorError, HostCrash) as error:
        hosts.watch()
        if isinstance(error, OperationFailed):
            assert hosts.runners == "a"
    else:
        assert hosts.runners == "b"
    hosts.load()
    hosts.recover()
    hosts.watch()
    if hosts.processes != "b" or hosts.runners != "b":
        hosts.migrate()
    assert hosts.runners == hosts.processes == "b"
    assert hosts.source.verify().codes == hosts.destination.verify().codes == ()
    assert hosts.source.recover().instances == hosts.destination.recover().instances == ()


def _until(hosts: Hosts, phase: str) -> hvcore.MigrationInfo:
    """Send it until it is in a phase, finishing nothing."""
    policy, _ = hvcore.read_migration_policy(POLICY)
    info = hosts.source.migration_info("web1")
    target = hosts.destination.accept_instance(info, ADDRESS, policy)
    status = hosts.source.migrate_instance("web1", target, policy)
    while status.phase not in (phase, MigrationPhase.FAILED):
        status = hosts.source.continue_migration("web1", switch_over=phase not in PHASES[:3], wait=0.2)
    return info


VERDICTS = (("source", True), ("source", False), ("destination", True), ("destination", False))


@pytest.mark.parametrize("order", list(itertools.product(VERDICTS, repeat=2)))
@pytest.mark.parametrize("ended", ["completed", "failed", "active"])
def test_finalisers_in_any_order_with_any_belief(make: Make, order: tuple[tuple[str, bool], ...], ended: str) -> None:
    """Twice, the other way round, contradicting each other: the guest runs on one side at most."""
    hosts = make()
    info = _until(hosts, "active" if ended == "failed" else ended)
    if ended == "failed":
        hosts.worlds[0].cut_link("web1")
    for side, success in order:
        for _ in range(2):
            try:
                if side == "source":
                    again = hosts.source.finalize_migration_source("web1", success)
                else:
                    again = hosts.destination.finalize_migration_dst(info, success)
            except hvcore.WrongState:
                break
            hosts.watch()
        else:
            assert not again.changed, "the second call of two had something to do"
    hosts.recover()
    hosts.watch()


def test_a_guest_that_has_gone_over_cannot_be_let_run_by_hand(make: Make) -> None:
    """Neither on the source nor, before its destination is told of the success, there."""
    hosts = make()
    _until(hosts, "completed")
    for driver in (hosts.source, hosts.destination):
        for call in (driver.resume_instance, lambda name, d=driver: d.reboot_instance(name, mode="reset")):
            with pytest.raises(hvcore.WrongState, match="moving between two hosts"):
                call("web1")
    assert hosts.runners == ""
    [left] = hosts.source.recover().instances
    [arrived] = hosts.destination.recover().instances
    assert (left.outcome, arrived.outcome) == ("failed", "failed")
    hosts.migrate()
    assert hosts.runners == hosts.processes == "b"


def test_recovery_cancels_what_nobody_finishes(make: Make) -> None:
    """The host application is gone: it stays on the source, and the destination holds nothing."""
    hosts = make()
    _until(hosts, "pre-switchover")
    hosts.load()
    [stays] = hosts.source.recover().instances
    [undone] = hosts.destination.recover().instances
    assert (stays.operation, stays.outcome) == ("migrate_instance", "undone")
    assert (undone.operation, undone.outcome) == ("accept_instance", "undone")
    assert hosts.runners == hosts.processes == "a"
    assert hosts.destination.list_instances().instances == ()


def test_what_a_source_sends_is_hostile(make: Make) -> None:
    """Every difference at once, nothing left; another version, driver and instance among them."""
    hosts = make()
    policy = hvcore.MigrationPolicy()
    info = hosts.source.migration_info("web1")
    record = {**info.record, "state": "flying", "extra": 1}
    record["instance"] = {**info.record["instance"], "memory": -5}
    bad = attrs.evolve(info, driver="kvm", schema=99, record=record)
    with pytest.raises(hvcore.InvalidParameters) as caught:
        hosts.destination.accept_instance(bad, ADDRESS, policy)
    paths = {finding.path for finding in caught.value.findings}
    assert {"driver", "schema", "record.state", "record.extra"} <= paths
    other = attrs.evolve(info, instance="web2")
    with pytest.raises(hvcore.InvalidParameters) as caught:
        hosts.destination.accept_instance(other, ADDRESS, policy)
    assert caught.value.findings.codes == ("other-instance",)
    assert hosts.destination.list_instances().instances == ()
    assert hosts.runners == "a"


def test_a_name_that_is_taken_there_is_left_alone(make: Make) -> None:
    """The instance of the same name on the destination runs on, and so does this one."""
    hosts = make()
    hosts.destination.start_instance(WEB)
    with pytest.raises(hvcore.AlreadyRunning):
        hosts.migrate(on_progress=None)
    pids = [world.process("web1") for world in hosts.worlds]
    assert all(process is not None and process.state is InstanceState.RUNNING for process in pids)


class GoesOnByItself(FakeDriver):
    """A hypervisor that needs nobody for what becomes due; time passes when it is looked at."""

    @hvcore.hookimpl
    def hv_describe_driver(self) -> hvcore.DriverDescription:
        found = super().hv_describe_driver()
        kept = tuple(claim for claim in found.claims if claim.capability is not hvcore.Capability.MIGRATION_STEPS)
        return attrs.evolve(found, claims=kept)

    @hvcore.hookimpl
    def hv_get_migration_status(self, name: str, deadline: hvcore.Deadline) -> hvcore.MigrationStatus:
        return self.hv_continue_migration(name, True, 0.2, deadline)


def test_a_driver_that_needs_no_steps(make: Make, tmp_path: Path) -> None:
    """It is only asked how it goes."""
    hosts = make()
    hosts.source.stop_instance("web1", force=True)
    roots = {kind: str(tmp_path / "own" / kind) for kind in ("state", "data", "cache")}
    directories = hvcore.Directories(**roots).below("fake")
    context = hvcore.DriverContext(name="fake", directories=directories, host_id="own", settings={})
    with hvcore.load_plugin(GoesOnByItself(context), context, label="own") as source:
        source.start_instance(WEB)
        with pytest.raises(hvcore.UnsupportedOperation):
            source.continue_migration("web1")
        result = hvcore.migrate(source, hosts.destination, "web1", POLICY, address=ADDRESS, interval=0.01)
        assert result.phases[-1][0] is MigrationPhase.COMPLETED
        assert source.list_instances().instances == ()
    assert hosts.runners == "b"


def test_what_the_policy_cannot_have_is_said_before_anything_moves(make: Make) -> None:
    """By the function itself, or by the drivers."""
    hosts = make()
    for policy, path in (({"live": 5}, "policy.live"), ({"copy_disks": ["x"]}, "policy.copy_disks[0]")):
        with pytest.raises(hvcore.InvalidParameters) as caught:
            hosts.migrate(policy=policy)
        assert [finding.path for finding in caught.value.findings] == [path]
    assert hosts.runners == hosts.processes == "a"
