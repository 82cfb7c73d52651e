"""What a test can make happen in the modelled world, and how the driver tells it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import hvcore_fake
from hvcore import Cause, Deadline, Driver, Instance, InstanceState, NotRunning, TwoValueState
from hvcore_fake import World

HAPPENINGS = {
    "guest_powers_off": (InstanceState.SHUTDOWN_BY_USER, Cause.GUEST_SHUTDOWN),
    "guest_panics": (InstanceState.PANICKED, Cause.GUEST_PANIC),
    "kill": (InstanceState.CRASHED, Cause.DIED),
}


@pytest.mark.parametrize("happening", HAPPENINGS)
def test_a_dead_instance_stays_listed_until_it_is_stopped(driver: Driver, world: World, happening: str) -> None:
    """It is listed as not alive with the reason it died of; a stop takes it off the list and keeps the reason."""
    driver.start_instance(Instance(name="web1"))
    getattr(world, happening)("web1")

    info = driver.get_instance_info("web1")
    assert (info.state, info.reason.cause) == HAPPENINGS[happening]
    assert (info.pid, info.memory, info.vcpus, info.uptime) == (None, 0, 0, None)
    assert [(row.name, row.alive) for row in driver.list_instances().instances] == [("web1", False)]

    assert not driver.stop_instance("web1").changed
    assert driver.list_instances().instances == ()
    assert driver.get_instance_info("web1").reason == info.reason


def test_only_a_guest_that_powered_itself_off_is_shut_down_for_older_hosts(driver: Driver, world: World) -> None:
    """The two-value view tells a power-off of the user from everything else."""
    for name in ("off", "crash"):
        driver.start_instance(Instance(name=name))
    world.guest_powers_off("off")
    world.kill("crash")

    assert driver.get_instance_info("off").two_value_state is TwoValueState.SHUTDOWN
    assert driver.get_instance_info("crash").two_value_state is None


def test_a_panic_can_keep_the_process(driver: Driver, world: World) -> None:
    """With on_panic = pause a panicked instance is alive."""
    driver.start_instance(Instance(name="web1", params={"on_panic": "pause"}))
    world.guest_panics("web1")

    info = driver.get_instance_info("web1")
    assert (info.state, info.reason.cause) == (InstanceState.PANICKED, Cause.GUEST_PANIC)
    assert info.pid is not None
    assert driver.reboot_instance("web1", mode="reset").after is InstanceState.PRELAUNCH


def test_a_failing_disk_stops_the_guest_until_it_is_resumed(driver: Driver, world: World) -> None:
    """An I/O error is a state of its own, and a resume ends it."""
    driver.start_instance(Instance(name="web1"))
    world.disk_fails("web1")

    assert driver.get_instance_info("web1").state is InstanceState.IO_ERROR
    assert driver.resume_instance("web1").before is InstanceState.IO_ERROR
    assert driver.get_instance_info("web1").state is InstanceState.RUNNING


@pytest.mark.parametrize(
    ("parameter", "cause"), [("power_off_after", Cause.GUEST_SHUTDOWN), ("panic_after", Cause.GUEST_PANIC)]
)
def test_a_guest_does_by_itself_what_its_parameters_say(
    driver: Driver, world: World, parameter: str, cause: Cause
) -> None:
    """It happens at its time, not a second before."""
    driver.start_instance(Instance(name="web1", params={parameter: "30s"}))

    world.advance(29)
    assert driver.get_instance_info("web1").reason.cause is Cause.STARTED
    world.advance(2)
    info = driver.get_instance_info("web1")
    assert info.reason.cause is cause
    assert info.reason.since == world.clock() - 1


def test_guests_act_in_the_order_of_time(driver: Driver, world: World) -> None:
    """One long step of time makes everything happen in order."""
    for name, seconds in (("slow", 20), ("fast", 10)):
        driver.start_instance(Instance(name=name, params={"power_off_after": seconds}))
    cursor = driver.events().cursor
    world.advance(60)

    assert [event.instance for event in driver.events(cursor).events] == ["fast", "slow"]


@pytest.mark.parametrize("happening", [*HAPPENINGS, "disk_fails", "hang"])
def test_nothing_happens_to_what_does_not_live(world: World, happening: str) -> None:
    """A test that names the wrong instance is told so."""
    with pytest.raises(NotRunning):
        getattr(world, happening)("web1")


def test_time_stands_still_by_itself(driver: Driver, world: World) -> None:
    """Operations that wait for nothing take no virtual time."""
    driver.start_instance(Instance(name="web1"))
    begin = world.clock()
    driver.pause_instance("web1")
    driver.resume_instance("web1")
    driver.reboot_instance("web1", mode="reset")

    assert world.clock() == begin


def test_all_worlds_on_the_same_directories_share_the_time(driver: Driver, world: World) -> None:
    """What one advances, another sees; so does a deadline."""
    driver.start_instance(Instance(name="web1"))
    other = World.of(driver)
    deadline = Deadline.after(10, other.clock)
    world.advance(10)

    assert other.clock() == world.clock()
    assert deadline.expired
    assert driver.get_instance_info("web1").uptime == 10


def test_public_names_are_there() -> None:
    """Everything in ``__all__`` exists and is documented."""
    undocumented = [
        name
        for name in hvcore_fake.__all__
        if isinstance(value := getattr(hvcore_fake, name), type | Callable) and not value.__doc__  # type: ignore[arg-type]
    ]
    assert undocumented == []
