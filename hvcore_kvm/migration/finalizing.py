"""The end of a migration on either side, by what really happened. May be done again; changes nothing it need not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection

import attrs

from hvcore import (
    Cause,
    Deadline,
    HypervisorError,
    InstanceState,
    MigrationPhase,
    MigrationStatus,
    NotRunning,
    OutcomeUnknown,
    RecoveredInstance,
    Transition,
    WrongState,
)
from hvcore_kvm import process
from hvcore_kvm.capabilities import qemu_words
from hvcore_kvm.directory import STDERR, InstanceDirectory
from hvcore_kvm.events import read_events
from hvcore_kvm.lifecycle import Control, plain_state
from hvcore_kvm.migration.accepting import is_abandoned
from hvcore_kvm.migration.evidence import Whereabouts, arriving_phase, whereabouts
from hvcore_kvm.migration.exporting import stop_exports
from hvcore_kvm.migration.monitor import Monitor, connect
from hvcore_kvm.migration.sending import OVER, cancel, put_back, tidy
from hvcore_kvm.observation import Observed, observe
from hvcore_kvm.runtime import MIGRATION, SCHEMA, MigrationRecord, RuntimeRecord

_PATIENCE = 10.0
"""Seconds until the two sides of a migration that has ended agree on that."""

_LOOK_AGAIN = 0.05
"""Seconds after which the events are read again."""

_MOVED = "it was moved to another host"
_TAIL = 4096


class Finalizing:
    """Finishes a migration of one instance.

    Args:
        directory: the instance's directory.
        control: changes the instance.
        deadline: by when to be done.
        lead: leads to a guest what reaches it by this host, now that it runs here; may be done again.
    """

    def __init__(
        self,
        directory: InstanceDirectory,
        control: Control,
        deadline: Deadline,
        lead: Callable[[RuntimeRecord], None],
    ) -> None:
        self._lead = lead
        self._directory = directory
        self._control = control
        self._deadline = deadline
        self._name = directory.name

    # Source

    def source(self, success: bool) -> Transition:
        """See the hook ``hv_finalize_migration_source``."""
        if not self._directory.exists:
            return self._unchanged(None, "it holds nothing on this host")
        seen = observe(self._directory)
        if seen.migration is not None and seen.migration.role == "destination":
            raise WrongState("it is arriving on this host, not leaving it", hint="finalize it as the destination")
        if not seen.alive or seen.process is None:
            return self._dead_source(seen, success)
        try:
            with connect(self._directory, seen.process, self._deadline) as monitor:
                return self._live_source(seen, monitor, success)
        except NotRunning:
            return self._dead_source(observe(self._directory), success)

    def _live_source(self, seen: Observed, monitor: Monitor, success: bool) -> Transition:
        status = monitor.sent(seen.migration)
        if success:
            # The destination has all of it a moment before the source knows.
            if not status.phase.is_final:
                status = monitor.wait(lambda s: s.phase.is_final, self._patience())
            return self._let_go(monitor, status)
        if not status.phase.is_final and status.phase not in OVER:
            status = cancel(monitor, seen.migration)
        if status.phase in OVER:
            raise WrongState(
                f"the guest has gone over: {status.phase.value}; it is not continued here",
                hint="finish on the destination; if that is gone, stop it here and start it again",
            )
        if not status.phase.is_final:
            raise OutcomeUnknown(f"the migration does not end: {status.phase.value}", hint="call it again")
        return self._stay(seen, monitor, status)

    def _let_go(self, monitor: Monitor, status: MigrationStatus) -> Transition:
        state = monitor.run_state()
        if status.phase is not MigrationPhase.COMPLETED:
            said = f": {status.error}" if status.error else ""
            raise WrongState(
                f"the migration is {status.phase.value}{said}; the guest is here, QEMU's run state is {state}",
                hint="finalize it as failed on both sides",
            )
        if state not in ("postmigrate", "finish-migrate"):
            raise WrongState(
                f"it was sent, and QEMU's run state is {state}: somebody has let it run again",
                hint="find out which of the two is to live, and stop the other",
            )
        self._control.end_as(Cause.MIGRATION, _MOVED, self._deadline)
        return Transition(name=self._name, before=InstanceState.POSTMIGRATE, after=None, changed=True, detail=_MOVED)

    def _stay(self, seen: Observed, monitor: Monitor, status: MigrationStatus) -> Transition:
        record = seen.migration
        if record is None:
            return self._unchanged(_plain(monitor.run_state()), "no migration of it is under way")
        before = _plain(monitor.run_state())
        put_back(monitor, record)
        tidy(monitor, self._directory)
        said = f": {status.error}" if status.error else ""
        return Transition(
            name=self._name,
            before=before,
            after=_plain(monitor.run_state()),
            changed=True,
            detail=f"it stays on this host, the migration is {status.phase.value}{said}",
        )

    def _dead_source(self, seen: Observed, success: bool) -> Transition:
        record = seen.migration
        if record is None and seen.ended is not None and seen.ended.cause is Cause.MIGRATION:
            # It was finished, and whoever did that was killed while the rest was removed.
            self._control.stop(force=True, grace=0, retry=False, escalate=True, deadline=self._deadline)
            return self._unchanged(None, _MOVED)
        if record is None and success:
            raise WrongState("its process has ended, and it was not being moved", hint="'hv info' says how it ended")
        if record is None:
            return self._unchanged(self._control.state_of(seen), "no migration of it is under way")
        where = whereabouts(record, seen.events)
        if success:
            if where is Whereabouts.HERE:
                raise WrongState(
                    "its QEMU ended before the guest could go over", hint="finalize it as failed on both sides"
                )
            self._control.end_as(Cause.MIGRATION, f"{_MOVED}; its process had ended before", self._deadline)
            detail = "its process had ended; what it had left was cleaned up"
            return Transition(name=self._name, before=InstanceState.UNKNOWN, after=None, changed=True, detail=detail)
        if where is Whereabouts.GONE:
            raise WrongState("the guest has gone over, and its process here has ended", hint="finish on the other host")
        if where is Whereabouts.PERHAPS:
            raise OutcomeUnknown(
                "its QEMU ended while the guest went over: it is here no more, and may be on the other host",
                hint="look at the other host; stop it here once you know",
            )
        done = self._control.stop(force=True, grace=0, retry=False, escalate=True, deadline=self._deadline)
        return attrs.evolve(done, changed=True, detail="its process had ended before it was sent; cleaned up")

    # Destination

    def destination(self, uuid: str, success: bool) -> Transition:
        """See the hook ``hv_finalize_migration_dst``.

        Args:
            uuid: which instance the caller means.
            success: what the caller believes.
        """
        if not self._directory.exists:
            if success:
                raise WrongState("nothing of it is on this host", hint="its migration to here has failed")
            return self._unchanged(None, "nothing of it is on this host")
        seen = observe(self._directory)
        if seen.record is not None and (seen.record.instance.uuid or "").lower() != uuid.lower():
            raise WrongState(
                f"another instance of this name is on this host: its uuid is {seen.record.instance.uuid}",
                hint="rename one of the two",
            )
        if seen.migration is None or seen.migration.role != "destination":
            return self._settled_destination(seen, success)
        if not seen.alive or seen.process is None or seen.unfinished:
            return self._dead_destination(seen, success)
        try:
            if success:
                with connect(self._directory, seen.process, self._deadline) as monitor:
                    return self._let_run(seen, monitor)
            self._refuse_arrived(seen)
        except NotRunning:
            return self._dead_destination(observe(self._directory), success)
        self._control.discard(self._deadline)
        return Transition(
            name=self._name,
            before=InstanceState.INCOMING,
            after=None,
            changed=True,
            detail="nothing of it is on this host any more",
        )

    def _settled_destination(self, seen: Observed, success: bool) -> Transition:
        if seen.alive and success and seen.migration is None:
            return self._unchanged(self._control.state_of(seen), "it has arrived, and was finished before")
        if seen.alive:
            raise WrongState("it runs on this host, and is not arriving", hint="stop it if it should not run here")
        if success:
            raise WrongState("its process on this host has ended", hint="'hv info' says how")
        return self._unchanged(self._control.state_of(seen), "it is not arriving on this host")

    def _let_run(self, seen: Observed, monitor: Monitor) -> Transition:
        record = seen.migration
        assert record is not None  # noqa: S101 - asked before
        # The source knows that it has all been sent a moment before all of it has been loaded here.
        sent = (MigrationPhase.NONE, MigrationPhase.SETUP, *OVER)
        phase = self._arriving(record, monitor, sent)
        over = MigrationPhase.POSTCOPY, MigrationPhase.POSTCOPY_PAUSED
        if phase is not MigrationPhase.COMPLETED and phase not in over:
            raise WrongState(f"the guest has not arrived: {phase.value}", hint="finalize it as failed on both sides")
        let_run = record.runs and not record.over
        if record.disks:
            # Before it takes its disks: nobody else may write to them then.
            stop_exports(monitor)
        if let_run:
            # Written first: who finds it knows that it may have run here.
            self._directory.write(MIGRATION, attrs.evolve(record, over=True), schema=SCHEMA)
            try:
                monitor.execute("cont")
            except HypervisorError:
                with contextlib.suppress(HypervisorError):
                    if monitor.run_state() != "running":
                        self._directory.write(MIGRATION, record, schema=SCHEMA)
                raise
        if seen.record is not None:
            self._lead(seen.record)
        if let_run:
            monitor.attempt("announce-self", {"initial": 50, "max": 550, "rounds": 5, "step": 100})
        after = _plain(monitor.run_state())
        if phase in over:
            detail = "it runs here; the rest of its memory is still being fetched"
            return Transition(
                name=self._name, before=InstanceState.INCOMING, after=after, changed=let_run, detail=detail
            )
        tidy(monitor, self._directory)
        return Transition(
            name=self._name, before=InstanceState.INCOMING, after=after, changed=True, detail="it has arrived"
        )

    def _arriving(
        self, record: MigrationRecord, monitor: Monitor, wanted: Collection[MigrationPhase] = tuple(MigrationPhase)
    ) -> MigrationPhase:
        """The phase on the destination, once it is final or one of those wanted, or time is over."""
        until = self._patience()
        while True:
            phase = arriving_phase(record, read_events(self._directory))
            if phase.is_final or phase in wanted or until.expired:
                return phase
            monitor.wait_report(until.sooner(_LOOK_AGAIN))

    def _refuse_arrived(self, seen: Observed) -> None:
        record = seen.migration
        assert record is not None  # noqa: S101 - asked before
        if not record.over:
            # It has never run here: whatever has arrived of it, the source still has it.
            return
        raise WrongState("it runs on this host already", hint="stop it if it should not run here")

    def _dead_destination(self, seen: Observed, success: bool) -> Transition:
        words = qemu_words(self._directory.tail(STDERR, _TAIL))
        if success:
            raise WrongState(
                f"its QEMU on this host has ended: {words or 'it said nothing'}",
                hint="finalize it as failed on both sides",
            )
        if seen.migration is not None and seen.migration.over:
            raise WrongState("it ran on this host, and has ended since", hint="'hv info' says how")
        self._control.discard(self._deadline)
        return Transition(
            name=self._name,
            before=InstanceState.INCOMING,
            after=None,
            changed=True,
            detail=f"nothing of it is on this host any more{': ' if words else ''}{words}",
        )

    # Both

    def _patience(self) -> Deadline:
        """Until when the other side may take; there is time left afterwards to say what was found."""
        return Deadline.after(min(_PATIENCE, self._deadline.remaining() / 2))

    def recover(self) -> RecoveredInstance | None:
        """Finish what can be finished without the other side, and say where that would be a guess."""
        seen = observe(self._directory) if self._directory.exists else None
        if seen is None or seen.migration is None or seen.unfinished:
            return None
        if seen.migration.role == "destination":
            return self._recover_destination(seen)
        if not seen.alive or process.is_alive(seen.migration.owner):
            return None
        with connect(self._directory, seen.process, self._deadline) as monitor:
            status = monitor.sent(seen.migration)
            if not status.phase.is_final and status.phase not in OVER:
                status = cancel(monitor, seen.migration)
            if status.phase is MigrationPhase.COMPLETED:
                return self._recovered("failed", "all of it has gone over; migrate it once more to finish")
            if status.phase in OVER:
                return self._recovered(
                    "failed", "it has gone over, and some of its memory has not; migrate it once more to finish"
                )
            if not status.phase.is_final:
                return self._recovered("failed", "it is going over now; try again")
            self._stay(seen, monitor, status)
        return self._recovered("undone", f"the guest stays here; the migration is {status.phase.value}")

    def _recover_destination(self, seen: Observed) -> RecoveredInstance | None:
        record = seen.migration
        if record is None or record.over:
            return self._recover_arrived(seen)
        if not seen.alive:
            self._control.discard(self._deadline)
            return self._recovered("undone", "it has not arrived, and nothing of it is left")
        if process.is_alive(record.owner):
            return None
        # Once something has arrived, the source may be about to let go of it.
        if not is_abandoned(seen):
            phase = arriving_phase(record, seen.events)
            how = "all of it has arrived" if phase is MigrationPhase.COMPLETED else "it is arriving"
            return self._recovered("failed", f"{how}; migrate it once more from its source to finish")
        self._control.discard(self._deadline)
        return self._recovered("undone", "nobody has sent it, and nothing of it is left")

    def _recover_arrived(self, seen: Observed) -> RecoveredInstance | None:
        """It was to be let run, and whoever did that was killed in between."""
        record = seen.migration
        if record is None or not seen.alive or process.is_alive(record.owner):
            return None
        if arriving_phase(record, seen.events) is not MigrationPhase.COMPLETED:
            return self._recovered(
                "failed", "some of its memory is still on its source; migrate it once more from there to finish"
            )
        with connect(self._directory, seen.process, self._deadline) as monitor:
            if record.disks:
                stop_exports(monitor)
            if record.runs and monitor.run_state() != "running":
                monitor.execute("cont")
            if seen.record is not None:
                self._lead(seen.record)
            tidy(monitor, self._directory)
        return self._recovered("completed", "it has arrived, and runs")

    def _recovered(self, outcome: str, detail: str) -> RecoveredInstance:
        return RecoveredInstance(name=self._name, operation="migration", outcome=outcome, detail=detail)

    def _unchanged(self, state: InstanceState | None, detail: str) -> Transition:
        return Transition(name=self._name, before=state, after=state, changed=False, detail=detail)


def _plain(status: str) -> InstanceState:
    moving = {
        "postmigrate": InstanceState.POSTMIGRATE,
        "inmigrate": InstanceState.INCOMING,
        "finish-migrate": InstanceState.MIGRATING,
    }
    return moving.get(status) or plain_state(status)
