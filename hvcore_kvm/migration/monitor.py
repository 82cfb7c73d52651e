"""QEMU's monitor as a migration needs it: progress, and waiting for what is under way to end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import attrs

from hvcore import Deadline, MigrationPhase, MigrationStatus
from hvcore_kvm import monitor
from hvcore_kvm.directory import CONTROL, InstanceDirectory
from hvcore_kvm.migration.disk_progress import copy_status
from hvcore_kvm.migration.status import status_of
from hvcore_kvm.runtime import MigrationRecord, ProcessRecord

_LOOK_AGAIN = 1.0
"""Seconds after which QEMU is asked again, although it has reported nothing."""

_ACCOUNT = 2.0
_ACCOUNT_AGAIN = 0.005
"""Seconds a QEMU that has sent a guest may take to say how long that took, and after which it is asked again."""

_TELLING = ("MIGRATION", "MIGRATION_PASS", "STOP", "JOB_STATUS_CHANGE")


class Monitor(monitor.Monitor):
    """A connection to the monitor of one side of a migration."""

    unanswered = "look at the state of both sides"

    def capabilities(self) -> tuple[str, ...]:
        """The migration capabilities this QEMU has."""
        try:
            return tuple(str(row["capability"]) for row in self.execute("query-migrate-capabilities"))
        except (KeyError, TypeError):
            return ()

    def status(self) -> MigrationStatus:
        """How the migration goes."""
        found = status_of(self.execute("query-migrate"))
        if found.phase is MigrationPhase.FAILED and not found.error:
            # QEMU 7.2 says that it has failed a moment before it says why, if it says that at all.
            return status_of(self.execute("query-migrate"))
        until = self.deadline.sooner(_ACCOUNT)
        # The same with how long it took; only the source says that, and only it says how much there was to send.
        while found.phase is MigrationPhase.COMPLETED and found.total and not found.total_time and not until.expired:
            self.wait_report(until.sooner(_ACCOUNT_AGAIN))
            found = status_of(self.execute("query-migrate"))
        return found

    def sent(self, record: MigrationRecord | None) -> MigrationStatus:
        """How the migration goes that a record is of: the copy of its disks, then the guest itself.

        A QEMU whose guest has arrived from another host says ``completed`` of that, for as long as it lives.
        """
        if record is not None and record.role == "source" and (record.copying or record.ended):
            return copy_status(self, record)
        found = self.status()
        if record is not None and record.cancelled and found.phase is MigrationPhase.FAILED:
            # QEMU 7.2 closes the way back before it writes down that it was told to cancel; the one who sends may see
            # that first, and calls it a failure.
            found = attrs.evolve(found, phase=MigrationPhase.CANCELLED, error="")
        if record is not None and record.memory is not None and found.phase is not MigrationPhase.NONE:
            return attrs.evolve(found, total_time=found.total_time + record.memory - record.began)
        arrived = record is None and found.phase is MigrationPhase.COMPLETED
        return MigrationStatus(phase=MigrationPhase.NONE) if arrived else found

    def wait(self, done: Callable[[MigrationStatus], bool], patience: Deadline | None = None) -> MigrationStatus:
        """Wait until something can be said of the migration; returns the last status when time is over.

        Args:
            done: whether it can be said.
            patience: until when, at the latest the connection's deadline.

        Raises:
            OutcomeUnknown: QEMU has gone.
        """
        until = self.deadline if patience is None else Deadline(min(patience.at, self.deadline.at))
        while True:
            found = self.status()
            if done(found) or until.expired:
                return found
            self.help_cancelling(found)
            self.wait_report(until.sooner(_LOOK_AGAIN))

    def help_cancelling(self, status: MigrationStatus) -> None:
        """Wake a migration that was cancelled in the moment in which it began to wait at its switchover.

        QEMU 7.2 (``migration_maybe_pause``) looks whether it was cancelled, and then waits for ``migrate-continue``;
        what is cancelled in between waits for ever, and its guest with it. It was not seen with 10.0. One that does not
        wait is not changed by it.

        Args:
            status: how the migration goes.
        """
        if status.phase is MigrationPhase.CANCELLING:
            self.attempt("migrate-continue", {"state": "cancelling"})

    def wait_report(self, until: Deadline) -> None:
        """Wait until QEMU reports something about a migration, or time is over.

        Raises:
            OutcomeUnknown: QEMU has gone.
        """
        self.wait_event(lambda event: event["event"] in _TELLING, until)


@contextlib.contextmanager
def connect(
    directory: InstanceDirectory, running: ProcessRecord | None, deadline: Deadline, name: str = CONTROL
) -> Iterator[Monitor]:
    """Connect to a monitor of an instance.

    Args:
        directory: the instance's directory.
        running: its process.
        deadline: by when to be done.
        name: which monitor.

    Raises:
        NotRunning: its process has just ended.
        DeadlineExceeded: QEMU does not answer; nothing was asked of it.
    """
    with Monitor.connected(directory, deadline, running, name) as connection:
        yield connection
