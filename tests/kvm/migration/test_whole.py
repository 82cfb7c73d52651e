"""`hvcore.migrate` over two real QEMUs: whatever ends in the middle, the guest runs on one side at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import hvcore
from hvcore import Deadline, InstanceState, MigrationPhase, MigrationStatus
from hvcore.guests import FIRMWARE_PATTERN_SUM
from hvcore_kvm.migration.sending import Sending

pytestmark = pytest.mark.qemu

PATIENCE = 10
FAST = {"tls": False, "max_bandwidth": "1GiB"}
SLOW = {"tls": False, "max_bandwidth": "8MiB", "downtime_limit": "1ms"}


def _migrate(pair: Any, policy: dict[str, Any], on_progress: Callable[[MigrationStatus], None] | None = None) -> Any:
    def progress(status: MigrationStatus) -> None:
        if on_progress is not None:
            on_progress(status)

    return hvcore.migrate(
        pair.source.driver,
        pair.destination.driver,
        "web1",
        policy,
        progress,
        address="127.0.0.1",
        interval=0.1,
        patience=PATIENCE,
    )


def _busy(pair: Any, **changes: Any) -> None:
    console = pair.start(**changes)
    console.send(b"d")
    console.expect(b"ok")


def _once(action: Callable[[], None]) -> Callable[[MigrationStatus], None]:
    """Do something when the guest is being sent."""
    done: list[bool] = []

    def on_progress(status: MigrationStatus) -> None:
        if status.phase is MigrationPhase.ACTIVE and status.transferred and not done:
            done.append(True)
            action()

    return on_progress


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"switchover": "paused"},
        {"live": False},
        {"multifd": {"channels": 2}},
        {"multifd": {"channels": 2, "compression": "zstd"}},
        {"auto_converge": {"initial": 30}},
    ],
    ids=lambda given: "-".join(given) or "immediate",
)
def test_all_of_it(pair: Any, given: dict[str, Any]) -> None:
    """It runs on the destination, and what it took is told: it has not stood still for longer than is said."""
    pair.start()
    result = _migrate(pair, {**FAST, **given})
    assert result.total_time > 0
    assert result.downtime is not None
    pair.keep("destination")
    stopped, runs = pair.runs("source")[-1][1], pair.runs("destination")[0][0]
    assert runs - stopped <= result.downtime
    assert result.phases[-1][0] is MigrationPhase.COMPLETED
    assert pair.running() == ["destination"]
    there = pair.destination.attach("web1")
    there.send(b"m")
    there.expect(b"sum=")
    assert int(there.expect(b"\r\n"), 16) == FIRMWARE_PATTERN_SUM


def test_one_that_is_over_at_once(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has been sent when one hears of it for the first time: the pause is that of the guest all the same."""
    status = Sending._status

    def late(self: Sending, monitor: Any) -> MigrationStatus:
        while not (found := status(self, monitor)).phase.is_final:
            monitor.wait_report(Deadline.after(1))
        return found

    monkeypatch.setattr(Sending, "_status", late)
    pair.start()
    result = _migrate(pair, FAST)
    assert [phase for phase, _ in result.phases] == [MigrationPhase.COMPLETED]
    pair.keep("destination")
    assert pair.runs("destination")[0][0] - pair.runs("source")[-1][1] <= result.downtime


def test_post_copy_runs_before_all_of_it_is_there(pair: Any) -> None:
    """It does not wait on the destination for the rest of its memory."""
    _busy(pair, security_model="none")
    seen: list[InstanceState] = []

    def on_progress(status: MigrationStatus) -> None:
        if status.phase is MigrationPhase.POSTCOPY:
            seen.append(pair.destination.driver.get_instance_info("web1").state)

    result = _migrate(pair, {**FAST, "max_bandwidth": "8MiB", "postcopy": {"after_passes": 1}}, on_progress)
    assert result.downtime is not None
    pair.keep("destination")
    assert pair.runs("destination")[0][0] - pair.runs("source")[-1][1] <= result.downtime
    assert MigrationPhase.POSTCOPY in [phase for phase, _ in result.phases]
    assert seen
    assert set(seen) == {InstanceState.RUNNING}
    assert pair.running() == ["destination"]


def test_it_is_interrupted(pair: Any) -> None:
    """By the person who asked for it: it runs on where it is, and nothing is left on the destination."""
    _busy(pair)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _migrate(pair, SLOW, _once(interrupt))
    assert pair.running() == ["source"]
    assert pair.destination.files() == set()


def test_the_destination_dies(pair: Any) -> None:
    """It runs on where it is."""
    _busy(pair)

    def die() -> None:
        pair.keep("destination")
        pair.kill("destination")

    with pytest.raises(hvcore.OperationFailed, match="runs on at the source"):
        _migrate(pair, SLOW, _once(die))
    assert pair.running() == ["source"]
    assert pair.destination.files() == set()


def test_the_source_dies(pair: Any) -> None:
    """It is lost, which is said; what had arrived of it is not let run."""
    _busy(pair)
    with pytest.raises(hvcore.HypervisorError) as error:
        _migrate(pair, SLOW, _once(lambda: pair.kill("source")))
    assert "neither side" in str(error.value)
    assert pair.running() == []
    assert pair.destination.files() == set()
    assert pair.source.driver.get_instance_info("web1").state is InstanceState.CRASHED


def test_the_source_dies_once_it_has_let_go(pair: Any) -> None:
    """All of it is on the destination, and it runs there."""
    pair.start()

    def die(status: MigrationStatus) -> None:
        if status.phase is MigrationPhase.COMPLETED:
            pair.kill("source")

    _migrate(pair, FAST, die)
    assert pair.running() == ["destination"]
    assert pair.source.driver.list_instances().instances == ()


def test_whoever_did_it_was_killed_after_it_had_gone_over(pair: Any) -> None:
    """The same call again finishes on both sides."""
    pair.start()
    info = pair.begin(hvcore.read_migration_policy(FAST)[0])
    pair.until(MigrationPhase.COMPLETED)
    assert pair.running() == []
    _migrate(pair, FAST)
    assert pair.running() == ["destination"]
    assert info.instance == "web1"
    assert pair.source.driver.list_instances().instances == ()
