"""Why an instance ended: each way for real."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import pytest

import hvcore
from hvcore import Cause, InstanceState
from hvcore_kvm.events import ending, parse_events
from hvcore_kvm.runtime import StopRequest

pytestmark = pytest.mark.qemu


def _account(host: Any) -> tuple[InstanceState, Cause]:
    info = host.driver.get_instance_info("web1")
    assert info.pid is None
    assert info.reason.boot_id == hvcore.boot_id()
    return info.state, info.reason.cause


@pytest.mark.parametrize("accel", ["tcg", pytest.param("kvm", marks=pytest.mark.kvm)])
def test_guest_power_off(host: Any, accel: str) -> None:
    """A guest that powers itself off was shut down by its user, and stays accounted for until it is stopped."""
    console = host.start(host.instance(accel=accel))
    console.send(b"q")
    host.wait_end()
    assert _account(host) == (InstanceState.SHUTDOWN_BY_USER, Cause.GUEST_SHUTDOWN)
    listed = host.driver.list_instances().instances
    assert [(row.name, row.alive) for row in listed] == [("web1", False)]
    assert host.driver.get_instance_info("web1").two_value_state is hvcore.TwoValueState.SHUTDOWN
    stopped = host.driver.stop_instance("web1")
    assert (stopped.before, stopped.changed) == (InstanceState.SHUTDOWN_BY_USER, False)
    assert _account(host) == (InstanceState.SHUTDOWN_BY_USER, Cause.GUEST_SHUTDOWN)
    assert host.driver.list_instances().instances == ()


def test_our_graceful_stop(host: Any) -> None:
    """A guest that powers off because we asked it was stopped by the host."""
    host.start(host.instance())
    host.driver.stop_instance("web1", timeout=30, escalate=False)
    assert _account(host) == (InstanceState.STOPPED, Cause.HOST_STOP)


def test_our_force_stop(host: Any) -> None:
    """A forced stop is told from a graceful one."""
    host.start(host.instance())
    host.driver.stop_instance("web1", force=True)
    assert _account(host) == (InstanceState.STOPPED, Cause.HOST_FORCE_STOP)


def test_sigkill(host: Any) -> None:
    """A QEMU that is killed leaves no last word, and that is what is reported: a crash."""
    host.start(host.instance())
    os.kill(host.pid(), signal.SIGKILL)
    host.wait_end()
    assert _account(host) == (InstanceState.CRASHED, Cause.DIED)
    assert host.driver.verify_instance("web1").codes == ("not-alive",)


def test_sigterm(host: Any) -> None:
    """A signal that lets QEMU end in order is told from a power-off of the guest."""
    host.start(host.instance())
    os.kill(host.pid(), signal.SIGTERM)
    host.wait_end()
    assert _account(host) == (InstanceState.STOPPED, Cause.HOST_SIGNAL)


def test_what_ends_a_guest_that_was_asked_is_still_told(host: Any) -> None:
    """A request to power off does not turn a signal into a power-off."""
    console = host.start(host.instance())
    console.send(b"n")
    console.expect(b"ok")
    with pytest.raises(hvcore.DeadlineExceeded):
        host.driver.stop_instance("web1", timeout=3, escalate=False)
    request = json.loads((host.directory / "state/kvm/instances/web1/stop.json").read_text())
    assert request["until"] <= time.time(), "nobody waits for the guest any more"
    os.kill(host.pid(), signal.SIGTERM)
    host.wait_end()
    assert _account(host) == (InstanceState.STOPPED, Cause.HOST_SIGNAL)


def test_panic(host: Any) -> None:
    """A guest whose kernel panics ends as panicked."""
    console = host.start(host.instance())
    console.send(b"p")
    host.wait_end()
    assert _account(host) == (InstanceState.PANICKED, Cause.GUEST_PANIC)


def test_panic_that_pauses(host: Any) -> None:
    """With on_panic = pause the process stays for a look, is panicked, and a reset starts the guest again."""
    console = host.start(host.instance(params={"on_panic": "pause"}))
    console.send(b"p")
    events = host.directory / "state/kvm/instances/web1/events"
    while b"GUEST_PANICKED" not in events.read_bytes():
        assert host.driver.get_instance_info("web1").pid is not None
    info = host.driver.get_instance_info("web1")
    assert (info.state, info.reason.cause) == (InstanceState.PANICKED, Cause.GUEST_PANIC)
    with pytest.raises(hvcore.WrongState):
        host.driver.pause_instance("web1")
    host.driver.reboot_instance("web1", mode="reset")
    console.expect(b"ready")
    assert host.driver.get_instance_info("web1").state is InstanceState.RUNNING


def test_guest_reset_with_on_reboot_shutdown(host: Any) -> None:
    """A guest that restarts itself, where that means the end, is told from one that powers off."""
    console = host.start(host.instance(params={"on_reboot": "shutdown"}))
    console.send(b"r")
    host.wait_end()
    assert _account(host) == (InstanceState.SHUTDOWN_BY_USER, Cause.GUEST_RESET)


def test_a_guest_reset_goes_on_and_is_forgotten(host: Any) -> None:
    """A guest that restarts itself runs on, and its later power-off is its user's."""
    console = host.start(host.instance())
    console.send(b"r")
    console.expect(b"ready")
    console.send(b"q")
    host.wait_end()
    assert _account(host) == (InstanceState.SHUTDOWN_BY_USER, Cause.GUEST_SHUTDOWN)


def test_a_pause_does_not_poison_the_verdict(host: Any) -> None:
    """A guest that was paused once and later powers itself off was shut down by its user."""
    console = host.start(host.instance())
    host.driver.pause_instance("web1")
    host.driver.resume_instance("web1")
    console.send(b"q")
    host.wait_end()
    assert _account(host) == (InstanceState.SHUTDOWN_BY_USER, Cause.GUEST_SHUTDOWN)


def test_the_account_survives_the_next_boot(host: Any, tmp_path: Any) -> None:
    """An instance that ran when the host went down is reported as ended by that, from the kept record alone."""
    host.start(host.instance())
    host.driver.stop_instance("web1", force=True)
    history = tmp_path / "data/kvm/instances/web1/history.json"
    kept = json.loads(history.read_text())
    history.write_text(json.dumps({**kept, "boot_id": "another boot", "ended": None, "state": None, "cause": None}))
    info = host.driver.get_instance_info("web1")
    assert (info.state, info.reason.cause) == (InstanceState.CRASHED, Cause.HOST_RESTARTED)


def test_a_start_replaces_the_account(host: Any) -> None:
    """An instance that ended and is started again is running, with nothing of its last end."""
    console = host.start(host.instance())
    console.send(b"q")
    host.wait_end()
    host.driver.start_instance(host.instance())
    info = host.driver.get_instance_info("web1")
    assert (info.state, info.reason.cause) == (InstanceState.RUNNING, Cause.STARTED)


def _line(name: str, seconds: int, **data: object) -> str:
    return json.dumps({"timestamp": {"seconds": seconds, "microseconds": 0}, "event": name, "data": data})


def test_a_power_off_long_after_an_ignored_button_is_the_users() -> None:
    """A button press that was ignored days ago does not make a later power-off the host's."""
    events = parse_events(_line("SHUTDOWN", 200_000, guest=True, reason="guest-shutdown"))
    state, reason = ending(events, StopRequest(time=100, until=160), "boot")
    assert (state, reason.cause) == (InstanceState.SHUTDOWN_BY_USER, Cause.GUEST_SHUTDOWN)
    state, reason = ending(events, StopRequest(time=199_990, until=200_100), "boot")
    assert (state, reason.cause) == (InstanceState.STOPPED, Cause.HOST_STOP)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"event": 3, "timestamp": {"seconds": 1, "microseconds": 2}}', "\0" * 100, "[" * 100_000],
)
def test_rubbish_in_the_event_file_is_passed_over(text: str) -> None:
    """The file belongs to QEMU; nothing in it can break a query."""
    good = _line("SHUTDOWN", 5, guest=True, reason="guest-shutdown")
    events = parse_events(f"{text}\n{good}\n")
    assert [event.name for event in events] == ["SHUTDOWN"]
