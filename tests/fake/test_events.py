"""Reading events: order, cursors, waiting, and what outlives what."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from hvcore import Cause, Driver, Instance, InvalidParameters
from hvcore_fake import Fault, FaultPlan, World

Load = Callable[..., Driver]

WEB = Instance(name="web1")


def test_events_come_in_order_with_time_and_data(driver: Driver, world: World) -> None:
    """A whole life, in the hypervisor's own words."""
    driver.start_instance(WEB)
    driver.pause_instance(WEB)
    driver.resume_instance(WEB)
    world.advance(3)
    driver.stop_instance(WEB)

    events = driver.events().events
    assert [event.name for event in events] == ["RESUME", "STOP", "RESUME", "POWERDOWN", "SHUTDOWN"]
    assert events[-1].data["reason"] == "guest-shutdown"
    assert events[-1].time == events[0].time + 4


def test_a_cursor_survives_the_host_application(driver: Driver, load: Load) -> None:
    """A driver loaded later goes on where the earlier one stopped reading."""
    driver.start_instance(WEB)
    cursor = driver.events().cursor
    driver.stop_instance(WEB, force=True)
    driver.close()

    batch = load().events(cursor)
    assert [event.name for event in batch.events] == ["SHUTDOWN"]
    assert load().events(batch.cursor).events == ()


def test_events_of_a_new_life_come_after_a_cleanup(driver: Driver) -> None:
    """A cursor stays good when an instance was forgotten and comes again."""
    driver.start_instance(WEB)
    driver.stop_instance(WEB, force=True)
    cursor = driver.events().cursor
    driver.cleanup_instance(WEB)
    driver.start_instance(WEB)

    assert [event.name for event in driver.events(cursor).events] == ["RESUME"]


@pytest.mark.parametrize("cursor", ["", "x", "-1", "9" * 30, "\u0661"])
def test_a_foreign_cursor_is_refused(driver: Driver, cursor: str) -> None:
    """What is no cursor is an input error."""
    with pytest.raises(InvalidParameters):
        driver.events(cursor)


def test_waiting_passes_virtual_time_to_what_a_guest_will_do(driver: Driver, world: World) -> None:
    """A wait that outlasts the guest's plans returns its event at once."""
    driver.start_instance(Instance(name="web1", params={"power_off_after": "20s"}))
    cursor = driver.events().cursor
    begin = world.clock()

    assert [event.name for event in driver.events(cursor, timeout=60).events] == ["SHUTDOWN"]
    assert world.clock() == begin + 20


def test_waiting_sees_what_another_thread_does(driver: Driver) -> None:
    """With nothing due the wait lasts in real time until somebody makes an event happen."""
    found = []
    reader = threading.Thread(target=lambda: found.extend(driver.events(timeout=60).events))
    reader.start()
    driver.start_instance(WEB)
    reader.join()

    assert [event.name for event in found] == ["RESUME"]


def test_a_lost_event_hides_why_it_ended(load: Load) -> None:
    """Without its last word a guest's power-off looks like a crash, and is never taken for the user's."""
    plan = FaultPlan([Fault(kind="lose-event", event="SHUTDOWN")])
    driver = load(faults=plan)
    driver.start_instance(WEB)
    World.of(driver, plan).guest_powers_off("web1")

    assert driver.get_instance_info("web1").reason.cause is Cause.DIED
    assert len(plan.struck) == 1


def test_a_forced_stop_is_known_without_its_event(load: Load) -> None:
    """The driver knows what it did itself."""
    driver = load(faults=[{"kind": "lose-event", "event": "SHUTDOWN"}])
    driver.start_instance(WEB)
    driver.stop_instance(WEB, force=True)

    assert driver.get_instance_info("web1").reason.cause is Cause.HOST_FORCE_STOP
