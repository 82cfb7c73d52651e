"""A migration that is cancelled in the moment in which QEMU begins to wait at its switchover."""

from __future__ import annotations

from typing import Any, cast

import pytest

import hvcore
from hvcore import Deadline, MigrationPhase, read_migration_policy
from hvcore_kvm.migration.monitor import Monitor
from hvcore_kvm.qmp import QmpClient, QmpRefused, QmpTimeout


class _Waiting:
    """A monitor whose migration stays cancelled half way until it is told to continue, as QEMU's does then."""

    def __init__(self) -> None:
        self.status = "cancelling"

    def execute(self, command: str, arguments: dict[str, Any], **_: Any) -> Any:
        if command == "query-migrate":
            return {"status": self.status}
        assert command == "migrate-continue"
        if arguments["state"] != self.status:
            raise QmpRefused(command, "GenericError", f"Migration not in expected state: {self.status}")
        self.status = "cancelled"
        return {}

    def wait_event(self, *_: Any) -> Any:
        raise QmpTimeout("nothing is reported", sent=False)


def test_it_is_woken() -> None:
    """QEMU would wait for ever, and its guest stand still."""
    monitor = Monitor(cast("QmpClient", _Waiting()), Deadline.after(60))
    assert monitor.wait(lambda status: status.phase.is_final).phase is MigrationPhase.CANCELLED


@pytest.mark.qemu
def test_whoever_goes_on_with_it_wakes_it(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it was cancelled by somebody else, or because of its policy; what does not wait goes on as it was."""
    pair.start()
    policy, findings = read_migration_policy({"tls": False, "switchover": "paused", "max_bandwidth": "1GiB"})
    assert findings == []
    here, there = pair.source.driver, pair.destination.driver
    info = here.migration_info("web1")
    here.migrate_instance("web1", there.accept_instance(info, "127.0.0.1", policy), policy)
    while here.get_migration_status("web1").phase is not MigrationPhase.PRE_SWITCHOVER:
        here.continue_migration("web1", switch_over=False, wait=0.1)
    sent, execute, given = Monitor.sent, QmpClient.execute, []

    def cancelling(self: Monitor, record: Any) -> hvcore.MigrationStatus:
        status = sent(self, record)
        return status if given else hvcore.MigrationStatus(phase=MigrationPhase.CANCELLING)

    def noted(self: QmpClient, command: str, arguments: Any = None, **more: Any) -> Any:
        if command == "migrate-continue":
            given.append(arguments)
        return execute(self, command, arguments, **more)

    monkeypatch.setattr(Monitor, "sent", cancelling)
    monkeypatch.setattr(QmpClient, "execute", noted)
    here.continue_migration("web1", switch_over=False, wait=0.1)
    assert given == [{"state": "cancelling"}]
    assert here.get_migration_status("web1").phase is MigrationPhase.PRE_SWITCHOVER
    here.cancel_migration("web1")
    there.finalize_migration_dst(info, False)
    here.finalize_migration_source("web1", False)
    assert pair.running() == ["source"]


@pytest.mark.qemu
@pytest.mark.parametrize("who", ["policy", "deadline", "caller"])
def test_the_cancelled_has_not_failed(pair: Any, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    """QEMU may call it a failure when it was told to cancel; what had failed before has failed."""
    console = pair.start()
    console.send(b"d")
    console.expect(b"ok")
    given: dict[str, Any] = {"tls": False, "max_bandwidth": "8MiB", "downtime_limit": "1ms"}
    given |= {
        "policy": {"on_no_convergence": "cancel", "converge_within": "300ms"},
        "deadline": {"deadline": "300ms"},
        "caller": {},
    }[who]
    policy, findings = read_migration_policy(given)
    assert findings == []
    here, there = pair.source.driver, pair.destination.driver
    info = here.migration_info("web1")
    execute, told = QmpClient.execute, []

    def racing(self: QmpClient, command: str, arguments: Any = None, **more: Any) -> Any:
        answer = execute(self, command, arguments, **more)
        if command == "migrate_cancel":
            told.append(command)
        if command == "query-migrate" and told and answer.get("status") == "cancelled":
            return {"status": "failed", "error-desc": "Unable to write to socket: Broken pipe"}
        return answer

    monkeypatch.setattr(QmpClient, "execute", racing)
    here.migrate_instance("web1", there.accept_instance(info, "127.0.0.1", policy), policy)
    while (status := here.continue_migration("web1", switch_over=True, wait=0.1)).phase not in (
        MigrationPhase.CANCELLED,
        MigrationPhase.FAILED,
    ):
        if who == "caller" and status.phase is MigrationPhase.ACTIVE:
            status = here.cancel_migration("web1")
            break
    assert told
    assert (status.phase, status.error) == (MigrationPhase.CANCELLED, "")
    there.finalize_migration_dst(info, False)
    here.finalize_migration_source("web1", False)
    assert pair.running() == ["source"]


@pytest.mark.qemu
def test_what_had_failed_is_not_cancelled(pair: Any) -> None:
    """Who cancels too late hears what happened."""
    console = pair.start()
    console.send(b"d")
    console.expect(b"ok")
    policy, _ = read_migration_policy({"tls": False, "max_bandwidth": "8MiB", "downtime_limit": "1ms"})
    here, there = pair.source.driver, pair.destination.driver
    info = here.migration_info("web1")
    here.migrate_instance("web1", there.accept_instance(info, "127.0.0.1", policy), policy)
    pair.keep("destination")
    pair.kill("destination")
    while here.get_migration_status("web1").phase is not MigrationPhase.FAILED:
        pass
    assert here.cancel_migration("web1").phase is MigrationPhase.FAILED
    there.finalize_migration_dst(info, False)
    here.finalize_migration_source("web1", False)
    assert pair.running() == ["source"]
