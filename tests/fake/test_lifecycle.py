"""Starting, stopping, pausing, restarting, forgetting: what each does, and what it says it did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hvcore import (
    AlreadyRunning,
    Cause,
    DeadlineExceeded,
    Disk,
    Driver,
    Instance,
    InstanceNotFound,
    InstanceState,
    InvalidParameters,
    NotRunning,
    OutcomeUnknown,
    WrongState,
)
from hvcore_fake import World

Files = Callable[[], dict[str, bytes]]

WEB = Instance(name="web1", memory="256MiB", vcpus=2)


def state_and_cause(driver: Driver, name: str = "web1") -> tuple[InstanceState, Cause]:
    info = driver.get_instance_info(name)
    return info.state, info.reason.cause


def names(driver: Driver) -> dict[str, bool]:
    return {row.name: row.alive for row in driver.list_instances().instances}


def test_a_started_instance_runs(driver: Driver) -> None:
    """A start says it was not there and runs now, and so do the queries."""
    transition = driver.start_instance(WEB)

    assert (transition.before, transition.after, transition.changed) == (None, InstanceState.RUNNING, True)
    assert state_and_cause(driver) == (InstanceState.RUNNING, Cause.STARTED)
    assert names(driver) == {"web1": True}


def test_a_paused_start_waits_before_the_first_instruction(driver: Driver) -> None:
    """A paused start leaves prelaunch, and a resume makes it run."""
    assert driver.start_instance(WEB, paused=True).after is InstanceState.PRELAUNCH
    assert state_and_cause(driver) == (InstanceState.PRELAUNCH, Cause.STARTED_PAUSED)

    assert driver.resume_instance(WEB).before is InstanceState.PRELAUNCH
    assert state_and_cause(driver) == (InstanceState.RUNNING, Cause.STARTED)


def test_a_second_start_is_refused(driver: Driver, files: Files) -> None:
    """A running instance cannot be started, and the refusal changes nothing."""
    driver.start_instance(WEB)
    before = files()

    with pytest.raises(AlreadyRunning):
        driver.start_instance(WEB)
    assert files() == before


@pytest.mark.parametrize("definition", [{"name": "web1", "memroy": 5}, {"name": "../web1"}])
def test_bad_syntax_leaves_no_file(driver: Driver, definition: dict[str, object], tmp_path: Path) -> None:
    """A definition whose syntax is wrong is refused before a file is made."""
    with pytest.raises(InvalidParameters):
        driver.start_instance(definition)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_missing_disk_leaves_no_file(driver: Driver, files: Files) -> None:
    """A definition this host cannot run is refused with all findings, and nothing is kept."""
    disks = [Disk(path="/nowhere/a", format="raw"), Disk(path="/nowhere/b", format="raw")]

    with pytest.raises(InvalidParameters) as caught:
        driver.start_instance(Instance(name="web1", disks=disks))
    assert caught.value.findings.codes == ("disk-missing", "disk-missing")
    assert files() == {}
    with pytest.raises(InstanceNotFound):
        driver.get_instance_info("web1")


def test_a_start_too_late_leaves_no_file(driver: Driver, files: Files) -> None:
    """A start whose deadline has passed is undone completely."""
    with pytest.raises(DeadlineExceeded):
        driver.start_instance(WEB, timeout=0.0)
    assert files() == {}


def test_a_graceful_stop_waits_in_virtual_time(driver: Driver, world: World) -> None:
    """The guest is given the time it needs, and no more passes."""
    driver.start_instance(Instance(name="web1", params={"shutdown_time": "5s"}))
    begin = world.clock()

    assert driver.stop_instance("web1", timeout=60).after is InstanceState.STOPPED
    assert world.clock() == begin + 5
    assert state_and_cause(driver) == (InstanceState.STOPPED, Cause.HOST_STOP)
    assert names(driver) == {}


def test_a_forced_stop_does_not_ask(driver: Driver, world: World) -> None:
    """A forced stop takes no virtual time and is told as one."""
    driver.start_instance(WEB)
    begin = world.clock()

    assert driver.stop_instance("web1", force=True).changed
    assert world.clock() == begin
    assert state_and_cause(driver) == (InstanceState.STOPPED, Cause.HOST_FORCE_STOP)


def test_a_deaf_guest_is_stopped_by_force_after_its_grace(driver: Driver, world: World) -> None:
    """Escalation comes exactly when the grace is over."""
    driver.start_instance(Instance(name="web1", params={"ignore_power_button": True}))
    begin = world.clock()

    driver.stop_instance("web1", timeout=12)
    assert world.clock() == begin + 12
    assert state_and_cause(driver) == (InstanceState.STOPPED, Cause.HOST_FORCE_STOP)


def test_without_escalation_a_deaf_guest_runs_on(driver: Driver) -> None:
    """A graceful stop that may not use force fails and leaves the instance running."""
    driver.start_instance(Instance(name="web1", params={"ignore_power_button": True}))

    with pytest.raises(DeadlineExceeded):
        driver.stop_instance("web1", timeout=12, escalate=False)
    assert state_and_cause(driver) == (InstanceState.RUNNING, Cause.STARTED)


def test_a_guest_that_powers_off_too_late_was_stopped_by_the_host(driver: Driver, world: World) -> None:
    """The answer to the power button counts as the host's stop, also after nobody waits for it."""
    driver.start_instance(Instance(name="web1", params={"shutdown_time": "20s"}))
    with pytest.raises(DeadlineExceeded):
        driver.stop_instance("web1", timeout=12, escalate=False)

    world.advance(8)
    assert state_and_cause(driver) == (InstanceState.STOPPED, Cause.HOST_STOP)
    assert names(driver) == {"web1": False}


def test_the_button_is_pressed_again_for_a_guest_that_boots(driver: Driver) -> None:
    """A guest that missed the first press because it was booting heeds a later one."""
    driver.start_instance(Instance(name="web1", params={"boot_time": "8s"}))

    driver.stop_instance("web1", timeout=60, escalate=False)
    assert state_and_cause(driver) == (InstanceState.STOPPED, Cause.HOST_STOP)


@pytest.mark.parametrize(("retry", "presses"), [(False, 0), (True, 1)])
def test_a_retry_presses_at_once(driver: Driver, retry: bool, presses: int) -> None:
    """With a request outstanding only a retry presses the button at once."""
    driver.start_instance(Instance(name="web1", params={"ignore_power_button": True}))
    for wanted in (False, retry):
        cursor = driver.events().cursor
        with pytest.raises(DeadlineExceeded):
            driver.stop_instance("web1", timeout=1, retry=wanted, escalate=False)

    assert [event.name for event in driver.events(cursor).events].count("POWERDOWN") == presses


def test_stopping_what_is_not_there_is_no_error(driver: Driver) -> None:
    """A stop of an unknown name changes nothing and leaves no account."""
    transition = driver.stop_instance("web1")

    assert not transition.changed
    with pytest.raises(InstanceNotFound):
        driver.get_instance_info("web1")


def test_a_second_stop_changes_nothing(driver: Driver) -> None:
    """The reason of the first stop stays."""
    driver.start_instance(WEB)
    driver.stop_instance(WEB, force=True)

    transition = driver.stop_instance(WEB)
    assert (transition.before, transition.after, transition.changed) == (
        InstanceState.STOPPED,
        InstanceState.STOPPED,
        False,
    )
    assert state_and_cause(driver) == (InstanceState.STOPPED, Cause.HOST_FORCE_STOP)


def test_a_start_forgets_the_last_ending(driver: Driver, world: World) -> None:
    """The reason of an ending stays until the next start."""
    driver.start_instance(WEB)
    world.guest_powers_off("web1")

    assert driver.start_instance(WEB).before is InstanceState.SHUTDOWN_BY_USER
    assert state_and_cause(driver) == (InstanceState.RUNNING, Cause.STARTED)


def test_pause_and_resume(driver: Driver) -> None:
    """Each does what it says once, and changes nothing the second time."""
    driver.start_instance(WEB)

    assert [driver.pause_instance("web1").changed for _ in range(2)] == [True, False]
    assert state_and_cause(driver) == (InstanceState.PAUSED, Cause.HOST_PAUSE)
    assert [driver.resume_instance("web1").changed for _ in range(2)] == [True, False]
    assert state_and_cause(driver) == (InstanceState.RUNNING, Cause.STARTED)


def test_a_paused_guest_does_nothing(driver: Driver, world: World) -> None:
    """What a guest was about to do waits while its virtual CPUs are stopped."""
    driver.start_instance(Instance(name="web1", params={"power_off_after": "10s"}))
    world.advance(4)
    driver.pause_instance("web1")
    world.advance(100)
    driver.resume_instance("web1")

    world.advance(5)
    assert state_and_cause(driver) == (InstanceState.RUNNING, Cause.STARTED)
    world.advance(1)
    assert state_and_cause(driver) == (InstanceState.SHUTDOWN_BY_USER, Cause.GUEST_SHUTDOWN)


def test_a_panicked_guest_cannot_be_paused_or_resumed(driver: Driver, world: World) -> None:
    """Both make no sense, and say so."""
    driver.start_instance(Instance(name="web1", params={"on_panic": "pause"}))
    world.guest_panics("web1")

    with pytest.raises(WrongState):
        driver.pause_instance("web1")
    with pytest.raises(WrongState):
        driver.resume_instance("web1")


@pytest.mark.parametrize("operation", ["pause_instance", "resume_instance", "reboot_instance"])
def test_what_needs_a_live_instance_refuses_without_one(driver: Driver, operation: str, files: Files) -> None:
    """An unknown name is not running."""
    with pytest.raises(NotRunning):
        getattr(driver, operation)("web1")
    assert files() == {}


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_a_cold_restart_takes_a_new_definition(driver: Driver, mode: str) -> None:
    """Both cold modes end in a new process with the new definition."""
    driver.start_instance(WEB)
    before = driver.get_instance_info("web1")

    driver.reboot_instance(Instance(name="web1", memory="512MiB"), mode=mode)  # type: ignore[arg-type]
    after = driver.get_instance_info("web1")
    assert after.state is InstanceState.RUNNING
    assert after.pid != before.pid
    assert after.memory == 512 * 2**20


def test_a_cold_restart_keeps_the_definition(driver: Driver) -> None:
    """Without a new definition it starts with the one it runs with."""
    driver.start_instance(WEB)

    driver.reboot_instance("web1", mode="hard")
    assert driver.get_instance_info("web1").memory == 256 * 2**20


def test_a_reset_keeps_the_process(driver: Driver) -> None:
    """The reset button restarts the guest in the same process."""
    driver.start_instance(WEB)
    before = driver.get_instance_info("web1").pid

    driver.reboot_instance("web1", mode="reset")
    assert driver.get_instance_info("web1").pid == before
    assert driver.events().events[-1].name == "RESET"


def test_a_soft_restart_of_a_deaf_guest_fails_and_it_runs_on(driver: Driver, files: Files) -> None:
    """No force is used, and nothing of the attempt is left."""
    driver.start_instance(Instance(name="web1", params={"ignore_power_button": True}))
    pid = driver.get_instance_info("web1").pid

    with pytest.raises(DeadlineExceeded):
        driver.reboot_instance("web1", mode="soft", timeout=10)
    assert driver.get_instance_info("web1").pid == pid
    assert not [path for path in files() if path.endswith("definition.json")]


def test_a_restart_this_host_cannot_run_is_refused_before_anything(driver: Driver) -> None:
    """A new definition is checked before the old life ends."""
    driver.start_instance(WEB)

    with pytest.raises(InvalidParameters):
        driver.reboot_instance(Instance(name="web1", disks=[Disk(path="/nowhere/a", format="raw")]), mode="hard")
    assert state_and_cause(driver) == (InstanceState.RUNNING, Cause.STARTED)


def test_cleanup_forgets_a_stopped_instance(driver: Driver, files: Files) -> None:
    """Afterwards there is no account and no file of it."""
    driver.start_instance(WEB)
    driver.stop_instance("web1", force=True)

    assert driver.cleanup_instance("web1").after is None
    assert files() == {}
    with pytest.raises(InstanceNotFound):
        driver.get_instance_info("web1")


def test_cleanup_forgets_a_dead_instance(driver: Driver, world: World, files: Files) -> None:
    """One that died and was never stopped can be forgotten as well."""
    driver.start_instance(WEB)
    world.kill("web1")

    assert driver.cleanup_instance("web1").changed
    assert files() == {}


def test_cleanup_refuses_a_live_instance(driver: Driver) -> None:
    """It says that it is alive, and forgets nothing."""
    driver.start_instance(WEB)

    with pytest.raises(AlreadyRunning):
        driver.cleanup_instance("web1")
    assert names(driver) == {"web1": True}


def test_cleanup_of_an_unknown_name_changes_nothing(driver: Driver) -> None:
    """There is nothing to forget."""
    assert not driver.cleanup_instance("web1").changed


def test_a_hung_process_is_unknown_and_can_be_killed(driver: Driver, world: World) -> None:
    """A process that does not answer leaves the outcome of a request unknown; force still works."""
    driver.start_instance(WEB)
    world.hang("web1")

    assert state_and_cause(driver) == (InstanceState.UNKNOWN, Cause.NOT_ANSWERING)
    with pytest.raises(OutcomeUnknown):
        driver.pause_instance("web1")
    world.answer_again("web1")
    assert state_and_cause(driver) == (InstanceState.RUNNING, Cause.STARTED)
    world.hang("web1")
    assert driver.stop_instance("web1", timeout=5).after is InstanceState.STOPPED
