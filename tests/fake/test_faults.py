"""Scripted faults: where they strike, what they do, and what their errors leave behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import hvcore
from hvcore import (
    DeadlineExceeded,
    Driver,
    DriverFault,
    HypervisorRefused,
    Instance,
    InstanceState,
    InvalidParameters,
    LoadError,
    OperationFailed,
    SpawnFailed,
)
from hvcore_fake import EFFECTS, Fault, FaultPlan, HostCrash, World

Load = Callable[..., Driver]
Files = Callable[[], dict[str, bytes]]

WEB = Instance(name="web1")
START = EFFECTS["start_instance"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("effect", START)
def test_a_start_that_fails_leaves_nothing(load: Load, files: Files, effect: str, when: str) -> None:
    """Whatever effect fails, everything is undone, and the next start succeeds."""
    driver = load(faults=[{"kind": "raise", "operation": "start_instance", "effect": effect, "when": when}])

    with pytest.raises(OperationFailed):
        driver.start_instance(WEB)
    assert files() == {}
    assert driver.start_instance(WEB).after is InstanceState.RUNNING


@pytest.mark.parametrize("effect", START)
def test_a_start_that_fails_keeps_the_reason_of_the_last_ending(load: Load, files: Files, effect: str) -> None:
    """The account of a guest that powered itself off is as it was, byte for byte."""
    driver = load(
        faults=[{"kind": "raise", "operation": "start_instance", "effect": effect, "when": "after", "nth": 2}]
    )
    driver.start_instance(WEB)
    World.of(driver).guest_powers_off("web1")
    before = files()

    with pytest.raises(OperationFailed):
        driver.start_instance(WEB)
    assert files() == before


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("effect", EFFECTS["stop_instance"])
def test_a_stop_that_fails_leaves_it_running_or_stopped(load: Load, files: Files, effect: str, when: str) -> None:
    """There is nothing between: it runs as before, or it is gone and everything of it released."""
    driver = load(faults=[{"kind": "raise", "operation": "stop_instance", "effect": effect, "when": when}])
    driver.start_instance(Instance(name="web1", params={"ignore_power_button": True}))

    with pytest.raises(OperationFailed):
        driver.stop_instance("web1", timeout=10)
    state = driver.get_instance_info("web1").state
    assert state in (InstanceState.RUNNING, InstanceState.STOPPED)
    held = [path for path in files() if path.startswith("state")]
    assert len(held) == (3 if state is InstanceState.RUNNING else 0)
    assert driver.stop_instance("web1", force=True).after is InstanceState.STOPPED


@pytest.mark.parametrize("effect", ["process", "record", "resume", "commit"])
def test_a_restart_whose_start_fails_leaves_it_stopped(load: Load, effect: str) -> None:
    """The old life is over and the new one was undone: it is stopped, and can be started."""
    driver = load(faults=[{"kind": "raise", "operation": "reboot_instance", "effect": effect, "when": "after"}])
    driver.start_instance(WEB)

    with pytest.raises(OperationFailed):
        driver.reboot_instance("web1", mode="hard")
    assert driver.list_instances().instances == ()
    assert driver.get_instance_info("web1").state is InstanceState.STOPPED
    assert driver.start_instance(WEB).after is InstanceState.RUNNING


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("SpawnFailed", SpawnFailed),
        ("spawn-failed", SpawnFailed),
        ("HypervisorRefused", HypervisorRefused),
        ("invalid-parameters", InvalidParameters),
        ("ValueError", DriverFault),
        ("OSError", DriverFault),
    ],
)
def test_any_error_can_be_raised(load: Load, files: Files, error: str, kind: type[Exception]) -> None:
    """By class or by code, and foreign exceptions as the defect they are."""
    driver = load(faults=[{"kind": "raise", "effect": "record", "error": error, "message": "no more rooms"}])

    with pytest.raises(kind, match="no more rooms"):
        driver.start_instance(WEB)
    assert files() == {}


def test_a_hang_lasts_until_the_deadline_in_virtual_time(load: Load, files: Files) -> None:
    """The deadline passes on the virtual clock, and the start is undone."""
    driver = load(faults=[{"kind": "hang", "operation": "start_instance", "effect": "process"}])
    begin = World.of(driver).clock()

    with pytest.raises(DeadlineExceeded):
        driver.start_instance(WEB, timeout=600)
    assert World.of(driver).clock() > begin + 500
    assert files() == {}


def test_a_fault_can_strike_a_query(load: Load) -> None:
    """An operation without effects is struck as a whole."""
    driver = load(faults=[{"kind": "raise", "operation": "list_instances", "error": "host-error"}])

    with pytest.raises(hvcore.HostError):
        driver.list_instances()
    assert driver.list_instances().instances == ()


def test_a_lost_answer_leaves_the_operation_done(load: Load) -> None:
    """After the whole operation: it happened, and nobody heard of it."""
    driver = load(faults=[{"kind": "raise", "operation": "start_instance", "when": "after", "error": "OutcomeUnknown"}])

    with pytest.raises(hvcore.OutcomeUnknown):
        driver.start_instance(WEB)
    assert driver.get_instance_info("web1").state is InstanceState.RUNNING


def test_faults_count(load: Load) -> None:
    """The nth time, and so many times from then on, for one instance only."""
    fault = {"kind": "raise", "operation": "pause_instance", "instance": "web1", "nth": 2, "times": 2}
    driver = load(faults=[fault])
    for name in ("web1", "web2"):
        driver.start_instance(Instance(name=name))
    outcomes = []
    for _ in range(4):
        driver.pause_instance("web2")
        try:
            driver.pause_instance("web1")
            outcomes.append("done")
        except OperationFailed:
            outcomes.append("failed")

    assert outcomes == ["done", "failed", "failed", "done"]


def test_a_plan_can_be_changed_while_the_driver_is_loaded(load: Load) -> None:
    """Faults can be added and forgotten, and what struck is known."""
    plan = FaultPlan()
    driver = load(faults=plan)
    fault = Fault(kind="raise", operation="verify", times=0)
    plan.add(fault)
    for _ in range(2):
        with pytest.raises(OperationFailed):
            driver.verify()
    plan.clear()

    assert driver.verify().ok
    assert plan.struck == (fault, fault)


@pytest.mark.parametrize("operation", ["stop_instance", "pause_instance", "reboot_instance"])
def test_a_lie_reports_success_without_the_effect(load: Load, operation: str) -> None:
    """The whole operation is left out, and its result says otherwise."""
    driver = load(faults=[{"kind": "lie", "operation": operation}])
    driver.start_instance(WEB)
    before = driver.get_instance_info("web1")

    assert getattr(driver, operation)("web1").changed
    assert driver.get_instance_info("web1") == before


def test_a_start_that_lies_starts_nothing(load: Load, files: Files) -> None:
    """It says that it runs, and there is nothing."""
    driver = load(faults=[{"kind": "lie", "operation": "start_instance"}])

    assert driver.start_instance(WEB).after is InstanceState.RUNNING
    assert files() == {}


def test_verify_sees_a_process_that_a_lie_left_behind(load: Load) -> None:
    """A stop that did not kill leaves a process without a record; it is found, and can be stopped by name."""
    driver = load(faults=[{"kind": "lie", "operation": "stop_instance", "effect": "kill"}])
    driver.start_instance(WEB)
    driver.stop_instance("web1", force=True)

    assert driver.verify_instance("web1").codes == ("process-without-record",)
    assert driver.verify().codes == ("process-without-record",)
    assert driver.stop_instance("web1", force=True).changed
    assert driver.verify().codes == ()
    assert driver.get_instance_info("web1").state is InstanceState.STOPPED


def test_verify_sees_a_process_that_was_never_spawned(load: Load) -> None:
    """A record without its process is drift."""
    driver = load(faults=[{"kind": "lie", "operation": "start_instance", "effect": "process"}])
    driver.start_instance(WEB)

    assert driver.verify_instance("web1").codes == ("process-gone",)


def test_a_crash_is_no_exception(load: Load) -> None:
    """Nothing that handles exceptions on its way can stop it."""
    driver = load(faults=[{"kind": "crash", "operation": "get_node_info"}])

    with pytest.raises(HostCrash):
        driver.get_node_info()


WRONG = {
    "faults[0].kind": {"kind": "explode"},
    "faults[0].operation": {"kind": "raise", "operation": "start_instanec"},
    "faults[0].effect": {"kind": "raise", "operation": "pause_instance", "effect": "resume"},
    "faults[0].error": {"kind": "raise", "error": "print"},
    "faults[0].when": {"kind": "lie", "operation": "stop_instance", "when": "after"},
    "faults[0].event": {"kind": "lose-event", "event": "SHUTDWON"},
    "faults[0].nth": {"kind": "raise", "nth": 0},
    "faults[0].nht": {"kind": "raise", "nht": 1},
}


@pytest.mark.parametrize("path", WRONG)
def test_a_wrong_fault_keeps_the_driver_from_loading(load: Load, path: str) -> None:
    """Each mistake is named with its place."""
    with pytest.raises(LoadError) as caught:
        load(faults=[WRONG[path]])
    assert [finding.path for finding in caught.value.findings] == [path]


def test_a_plan_takes_no_wrong_fault() -> None:
    """A fault that could never strike is refused."""
    with pytest.raises(InvalidParameters):
        FaultPlan([Fault(kind="raise", operation="start_instance", effect="reset")])
