"""Who may run the guest is decided by what happened, whatever the caller believes and however often it asks."""

from __future__ import annotations

import functools
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import hvcore
from hvcore import InstanceState, MigrationPhase, MigrationPolicy, OutcomeUnknown, WrongState
from hvcore.conformance.interruption import count_cuts, kill_at, spread

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

PLAIN = MigrationPolicy(tls=False, max_bandwidth="1GiB")  # type: ignore[arg-type]
SLOW = MigrationPolicy(tls=False, max_bandwidth="8MiB", downtime_limit=0.001)  # type: ignore[arg-type]
HELD = MigrationPolicy(tls=False, max_bandwidth="1GiB", switchover="paused")  # type: ignore[arg-type]


def _tell(action: Callable[[], Any]) -> str:
    """What a finaliser says: what changed, or how it refuses."""
    try:
        done = action()
    except (WrongState, OutcomeUnknown) as error:
        return type(error).__name__
    return f"{done.changed}"


def _reach(pair: Any, phase: str) -> Any:
    """Bring a guest to a phase of its migration."""
    console = pair.start()
    if phase in ("setup", "active"):
        console.send(b"d")
        console.expect(b"ok")
    if phase == "accepted":
        info = pair.source.driver.migration_info("web1")
        pair.accept(PLAIN, info)
        return info
    info = pair.begin({"active": SLOW, "pre-switchover": HELD}.get(phase, PLAIN))
    wanted = MigrationPhase.COMPLETED if phase == "completed" else MigrationPhase(phase)
    pair.until(wanted, switch_over=phase == "completed")
    return info


def _finish(pair: Any, info: Any, side: str, success: bool) -> str:
    if side == "source":
        return _tell(lambda: pair.source.driver.finalize_migration_source("web1", success))
    return _tell(lambda: pair.destination.driver.finalize_migration_dst(info, success))


@pytest.mark.parametrize("order", list(itertools.permutations(("source", "destination"))), ids="-".join)
def test_after_a_success_in_either_order_and_twice(pair: Any, order: tuple[str, str]) -> None:
    """It runs on the destination; a second time nothing changes, and a contradicting belief is refused."""
    info = _reach(pair, "completed")
    assert _finish(pair, info, "source", False) == "WrongState"
    assert pair.running() == []
    assert [_finish(pair, info, side, True) for side in order] == ["True", "True"]
    assert [_finish(pair, info, side, True) for side in order] == ["False", "False"]
    assert _finish(pair, info, "destination", False) == "WrongState"
    assert pair.running() == ["destination"]


@pytest.mark.parametrize("order", list(itertools.permutations(("source", "destination"))), ids="-".join)
@pytest.mark.parametrize("phase", ["accepted", "active", "pre-switchover"])
def test_a_failure_in_either_order_and_twice(pair: Any, phase: str, order: tuple[str, str]) -> None:
    """It runs on where it was; the destination is as if nothing had been."""
    info = _reach(pair, phase)
    first = [_finish(pair, info, side, False) for side in order]
    assert first == ["False" if phase == "accepted" and side == "source" else "True" for side in order]
    assert [_finish(pair, info, side, False) for side in order] == ["False", "False"]
    assert [_finish(pair, info, side, True) for side in order] == ["WrongState", "WrongState"]
    assert pair.running() == ["source"]
    assert pair.destination.files() == set()


def test_a_success_that_is_none_yet_is_refused(pair: Any) -> None:
    """While it is being sent, neither side believes that it has arrived."""
    info = _reach(pair, "pre-switchover")
    with pytest.raises(hvcore.HypervisorError):
        pair.destination.driver.finalize_migration_dst(info, True, timeout=1)
    with pytest.raises(hvcore.HypervisorError):
        pair.source.driver.finalize_migration_source("web1", True, timeout=1)
    assert pair.running() == []
    pair.until(MigrationPhase.COMPLETED)
    assert [_finish(pair, info, side, True) for side in ("source", "destination")] == ["True", "True"]
    assert pair.running() == ["destination"]


def test_it_waits_to_go_over_until_it_is_let(pair: Any) -> None:
    """Asking how far it is does not let it go, and cancelling takes it back."""
    _reach(pair, "pre-switchover")
    for _ in range(3):
        assert pair.source.driver.get_migration_status("web1").phase is MigrationPhase.PRE_SWITCHOVER
        status = pair.source.driver.continue_migration("web1", switch_over=False)
        assert status.phase is MigrationPhase.PRE_SWITCHOVER
    assert pair.source.driver.cancel_migration("web1").phase is MigrationPhase.CANCELLED
    assert pair.running() == ["source"]


def test_nobody_continues_a_guest_that_has_gone_over(pair: Any) -> None:
    """Neither by hand nor by cancelling, and it is told as what it is."""
    info = _reach(pair, "completed")
    driver = pair.source.driver
    assert driver.get_instance_info("web1").state is InstanceState.POSTMIGRATE
    arrived = pair.destination.driver.get_instance_info("web1")
    assert (arrived.state, arrived.reason.cause) == (InstanceState.PAUSED, hvcore.Cause.MIGRATION)
    with pytest.raises(WrongState):
        pair.destination.driver.resume_instance("web1")
    assert driver.migration_info("web1").record["run_state"] == "running"
    assert driver.cancel_migration("web1").phase is MigrationPhase.COMPLETED
    for refused in (
        lambda: driver.resume_instance("web1"),
        lambda: driver.reboot_instance("web1", mode="reset"),
        lambda: driver.reboot_instance("web1", mode="hard"),
        lambda: driver.migrate_instance("web1", hvcore.MigrationTarget(address="127.0.0.1", port=9), PLAIN),
    ):
        with pytest.raises(WrongState):
            refused()
    assert pair.running() == []
    assert driver.recover("web1").instances == ()
    assert pair.destination.driver.recover("web1").instances == ()
    assert [_finish(pair, info, side, True) for side in ("destination", "source")] == ["True", "True"]


@pytest.mark.parametrize(
    ("phase", "runs", "source", "destination"),
    [
        ("accepted", [], {True: "WrongState", False: "False"}, {True: "WrongState", False: "True"}),
        ("active", [], {True: "WrongState", False: "True"}, {True: "WrongState", False: "True"}),
        ("pre-switchover", [], {True: "True", False: "OutcomeUnknown"}, {True: "WrongState", False: "True"}),
        ("completed", [], {True: "True", False: "WrongState"}, {True: "True", False: "True"}),
    ],
)
@pytest.mark.parametrize("belief", [True, False])
def test_the_source_is_killed(
    pair: Any, phase: str, belief: bool, runs: list[str], source: dict[bool, str], destination: dict[bool, str]
) -> None:
    """Its guest runs on the destination if all of it is there and the caller knows, and on neither side otherwise."""
    info = _reach(pair, phase)
    pair.kill("source")
    state = pair.source.driver.get_instance_info("web1")
    if phase in ("pre-switchover", "completed"):
        assert state.state in (InstanceState.UNKNOWN, InstanceState.STOPPED), state
    else:
        assert state.state is InstanceState.CRASHED
    pair.destination.wait_end() if phase in ("active", "pre-switchover") else None
    assert _finish(pair, info, "destination", belief) == destination[belief]
    assert _finish(pair, info, "source", belief) == source[belief]
    expected = ["destination"] if phase == "completed" and belief else runs
    assert pair.running() == expected


@pytest.mark.parametrize("phase", ["accepted", "active", "pre-switchover", "completed"])
def test_the_destination_is_killed(pair: Any, phase: str) -> None:
    """The guest runs on, on the source; once it has gone over it runs nowhere, and that is said."""
    info = _reach(pair, phase)
    pair.kill("destination")
    if phase in ("active", "pre-switchover"):
        pair.until(MigrationPhase.FAILED, switch_over=False) if phase == "active" else None
    assert _finish(pair, info, "destination", True) == "WrongState"
    gone = pair.destination.driver.get_instance_info("web1")
    assert (gone.state, gone.reason.cause) == (InstanceState.STOPPED, hvcore.Cause.MIGRATION)
    assert _finish(pair, info, "destination", False) == "True"
    assert pair.destination.files() == set()
    last = _finish(pair, info, "source", False)
    if phase == "completed":
        assert last == "WrongState"
        assert pair.running() == []
        assert pair.source.driver.get_instance_info("web1").state is InstanceState.POSTMIGRATE
        pair.source.driver.stop_instance("web1", force=True)
    else:
        assert last == ("False" if phase == "accepted" else "True")
        assert pair.running() == ["source"]


def test_who_accepts_is_killed(pair: Any) -> None:
    """Wherever it is killed, recovery leaves nothing on the destination, and the guest runs on."""
    pair.start()
    info = pair.source.driver.migration_info("web1")
    driver = pair.destination.driver
    cuts = count_cuts(lambda: driver.accept_instance(info, "127.0.0.1", PLAIN))
    driver.recover()
    assert pair.destination.files() == set()
    killed = 0
    for cut in spread(cuts, 12):
        killed += kill_at(lambda: driver.accept_instance(info, "127.0.0.1", PLAIN), cut)
        found = driver.recover()
        assert all(row.outcome == "undone" for row in found.instances), f"cut {cut}: {found}"
        assert driver.list_instances().instances == (), f"cut {cut}"
        assert driver.recover().instances == ()
        assert {path for path in pair.destination.files() if path.startswith("state")} == set(), f"cut {cut}"
    assert killed >= 8
    assert pair.running() == ["source"]


def test_who_sends_is_killed(pair: Any) -> None:
    """Recovery takes back what has begun: the guest runs on, and can be moved afterwards."""
    console = pair.start()
    console.send(b"d")
    console.expect(b"ok")
    info = pair.source.driver.migration_info("web1")
    driver, there = pair.source.driver, pair.destination.driver
    target = pair.accept(SLOW, info)
    cuts = count_cuts(lambda: driver.migrate_instance("web1", target, SLOW))
    killed = 0
    for cut in spread(cuts, 8):
        driver.recover("web1")
        there.stop_instance("web1", force=True)
        target = pair.accept(SLOW, info)
        killed += kill_at(functools.partial(driver.migrate_instance, "web1", target, SLOW), cut)
        driver.recover("web1")
        assert driver.recover("web1").instances == (), f"cut {cut}"
        assert pair.running() == ["source"], f"cut {cut}"
        assert not any(path.endswith(("/migration.json", "/tls")) for path in pair.source.files())
    assert killed >= 5
    there.stop_instance("web1", force=True)
    console.send(b"D")
    console.expect(b"ok")
    pair.forget("destination")
    pair.move(PLAIN)
    assert pair.running() == ["destination"]


_APPLICATION = """
import json, os, signal, sys
import hvcore
here, there = (hvcore.load_driver("kvm", settings) for settings in json.loads(sys.argv[1]))
policy = hvcore.MigrationPolicy(tls=False)
info = here.migration_info("web1")
target = there.accept_instance(info, "127.0.0.1", policy)
if sys.argv[2] == "accepted":
    os.kill(os.getpid(), signal.SIGKILL)
status = here.migrate_instance("web1", target, policy)
while not status.phase.is_final:
    status = here.continue_migration("web1", switch_over=True, wait=1.0)
assert status.phase == "completed", status
os.kill(os.getpid(), signal.SIGKILL)
"""


def _application_is_killed(pair: Any, phase: str) -> None:
    pair.start()
    given = json.dumps([pair.source.settings, pair.destination.settings])
    done = subprocess.run([sys.executable, "-c", _APPLICATION, given, phase], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    pair.keep("destination")


def test_what_nobody_has_sent_is_accepted_once_more(pair: Any) -> None:
    """The host application is gone, and another one moves it: it need not know what the first had begun."""
    _application_is_killed(pair, "accepted")
    waits = pair.destination.pid()
    hvcore.migrate(pair.source.driver, pair.destination.driver, "web1", PLAIN, address="127.0.0.1")
    assert pair.running() == ["destination"]
    assert pair.destination.pid() != waits


def test_nobody_is_left_who_would_finish(pair: Any) -> None:
    """What recovery cannot decide on one side alone it says, with what to do, and changes nothing."""
    _application_is_killed(pair, "completed")
    for side in pair.sides().values():
        for _ in range(2):
            [found] = side.driver.recover().instances
            assert (found.operation, found.outcome) == ("migration", "failed")
            assert "migrate it once more" in found.detail
    assert pair.running() == []
    hvcore.migrate(pair.source.driver, pair.destination.driver, "web1", PLAIN, address="127.0.0.1")
    assert pair.running() == ["destination"]
    assert [side.driver.recover().instances for side in pair.sides().values()] == [(), ()]


@pytest.mark.parametrize("side", ["source", "destination"])
def test_who_finishes_is_killed(pair: Any, side: str) -> None:
    """Whoever finishes again, or recovers, brings it to the same end."""

    def finish() -> Any:
        if side == "source":
            return pair.source.driver.finalize_migration_source("web1", True)
        return pair.destination.driver.finalize_migration_dst(info, True)

    info = _reach(pair, "completed")
    for cut in range(1, 60, 3):
        if not kill_at(finish, cut):
            break
        driver = pair.sides()[side].driver
        driver.recover("web1")
        assert _finish(pair, info, side, True) in ("True", "False")
        assert _finish(pair, info, side, True) == "False"
        other = "destination" if side == "source" else "source"
        assert _finish(pair, info, other, True) == "True"
        assert pair.running() == ["destination"], f"cut {cut}"
        assert [path for path in pair.source.files() if path.startswith("state")] == [], f"cut {cut}"
        pair.never_two()
        pair.destination.driver.stop_instance("web1", force=True)
        for name in ("source", "destination"):
            pair.forget(name)
        info = _reach(pair, "completed")
    assert cut > 5
