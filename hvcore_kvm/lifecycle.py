"""Stopping, restarting, pausing, forgetting: everything that changes an instance that is there. Needs its lock."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator

import attrs

from hvcore import (
    AlreadyRunning,
    Cause,
    Deadline,
    DeadlineExceeded,
    HypervisorError,
    HypervisorRefused,
    Instance,
    InstanceState,
    NotRunning,
    OutcomeUnknown,
    RecordError,
    RecoveredInstance,
    Transition,
    UnsupportedOperation,
    WrongState,
)
from hvcore_kvm import process
from hvcore_kvm.backup.recovery import discard_backup
from hvcore_kvm.directory import COMPANIONS_OUTPUT, CONTROL, EVENTS, JOURNAL, InstanceDirectory
from hvcore_kvm.events import last, read_events
from hvcore_kvm.families import Families
from hvcore_kvm.observation import Observed, ended_state, observe
from hvcore_kvm.qmp import QmpClient, QmpClosed, QmpConnectError, QmpError, QmpRefused, QmpTimeout
from hvcore_kvm.runtime import (
    HISTORY,
    HISTORY_BEFORE,
    MIGRATION,
    PLACEMENT,
    REBOOT,
    RESTORING,
    SAVING,
    SCHEMA,
    STOP_REQUEST,
    UNSENT,
    History,
    Reboot,
    Saving,
    StopRequest,
)
from hvcore_kvm.saving.recovery import discard_part, give_back, saved_as, undo_save

PRESS_AGAIN = 5.0
"""Seconds after which the power button is pressed again: a guest that was still booting missed the first."""

_RESUMABLE = ("paused", "prelaunch", "suspended", "debug", "watchdog", "io-error")


class Control:
    """Changes one instance.

    Args:
        directory: the instance's directory.
        release: takes down what the start put up outside the directory, once the process is gone.
    """

    def __init__(self, directory: InstanceDirectory, release: Callable[[Observed], None]) -> None:
        self._directory = directory
        self._name = directory.name
        self._release = release

    def stop(
        self,
        *,
        force: bool,
        grace: float,
        retry: bool,
        escalate: bool,
        deadline: Deadline,
        reboot: Instance | None = None,
    ) -> Transition:
        """Stop it and release everything it held; see the hook of the same name.

        With ``reboot`` the directory stays, with nothing in it but the definition to start again: should the host
        application be killed before that start, the reboot is found and completed.
        """
        if not self._directory.exists:
            return self._unchanged(self._recorded(), "it was not running")
        seen = observe(self._directory)
        self._end_strays(seen, deadline)
        if not seen.alive or seen.process is None:
            before, _ = ended_state(seen)
            self._finish(seen, None)
            return Transition(
                name=self._name,
                before=before,
                after=self._recorded(),
                changed=False,
                detail="it was not running; what it had left was cleaned up",
            )
        before = _before(seen)
        if reboot is not None:
            self._directory.write(REBOOT, Reboot(instance=reboot), schema=SCHEMA)
        asked, forced = False, None
        with process.held(seen.process.identity) as pidfd:
            # None: it ended by itself in this very moment.
            if pidfd is not None:
                try:
                    asked = not force and self._ask_and_wait(pidfd, seen, grace, retry, escalate, deadline)
                except HypervisorError:
                    self._directory.remove(REBOOT)
                    raise
                if not asked:
                    forced = Cause.HOST_FORCE_STOP
                    self._end(pidfd, deadline)
        how = "the guest powered off" if asked else "stopped by force"
        if forced and not force:
            how = "the guest did not power off in time; stopped by force"
        self._finish(self._after_end(seen), forced, keep=None if reboot is None else REBOOT)
        return Transition(name=self._name, before=before, after=self._recorded(), changed=True, detail=how)

    def pause(self, deadline: Deadline) -> Transition:
        """Stop its virtual CPUs."""
        with self._monitor(deadline) as client:
            status = self._status(client, deadline)
            self._refuse_moving(client, deadline)
            if status in ("paused", "prelaunch") or (status == "postmigrate" and self._directory.tail(UNSENT, 1)):
                return self._unchanged(plain_state(status), "it was paused already")
            if status != "running":
                raise WrongState(f"it cannot be paused: QEMU's run state is {status}", instance=self._name)
            self._execute(client, "stop", deadline)
        return Transition(
            name=self._name, before=InstanceState.RUNNING, after=InstanceState.PAUSED, changed=True, detail="paused"
        )

    def resume(self, deadline: Deadline) -> Transition:
        """Let its virtual CPUs run."""
        with self._monitor(deadline) as client:
            status = self._status(client, deadline)
            if status == "running":
                return self._unchanged(InstanceState.RUNNING, "it was running already")
            self._refuse_moving(client, deadline)
            unsent = status == "postmigrate" and bool(self._directory.tail(UNSENT, 1))
            if status not in _RESUMABLE and not unsent:
                raise WrongState(
                    f"it cannot be resumed: QEMU's run state is {status}",
                    instance=self._name,
                    hint="after a migration the other side may run; otherwise reset or stop it",
                )
            self._execute(client, "cont", deadline)
            if unsent:
                self._directory.remove(UNSENT)
        return Transition(
            name=self._name, before=plain_state(status), after=InstanceState.RUNNING, changed=True, detail="resumed"
        )

    def end_saved(self, seen: Observed, deadline: Deadline) -> None:
        """End the process of an instance whose state is in a file."""
        if seen.process is not None:
            with process.held(seen.process.identity) as pidfd:
                if pidfd is not None and not process.end(pidfd, deadline):
                    raise OutcomeUnknown("it is saved, and QEMU does not end", hint="'hv recover' completes it")
        self._finish(self._after_end(seen), None)

    def reset(self, deadline: Deadline) -> Transition:
        """Press the reset button."""
        with self._monitor(deadline) as client:
            status = self._status(client, deadline)
            if status in ("inmigrate", "postmigrate", "finish-migrate"):
                raise WrongState(f"it cannot be reset: QEMU's run state is {status}", instance=self._name)
            self._refuse_moving(client, deadline)
            self._execute(client, "system_reset", deadline)
            after = InstanceState.RUNNING
            if status in ("guest-panicked", "shutdown", "internal-error"):
                # The reset cleared what had stopped it; the button means: run again.
                self._execute(client, "cont", deadline)
            elif status != "running":
                # QEMU's run state after the reset of a guest that did not run.
                after = InstanceState.PRELAUNCH
        return Transition(name=self._name, before=plain_state(status), after=after, changed=True, detail="reset")

    def cleanup(self, deadline: Deadline) -> Transition:
        """Forget it."""
        before = None
        if self._directory.exists:
            seen = observe(self._directory)
            if seen.alive:
                raise AlreadyRunning("it is running and cannot be forgotten", instance=self._name, hint="stop it first")
            self._end_strays(seen, deadline)
            before, _ = ended_state(seen)
            self._release(seen)
        elif self._directory.has_data:
            before = self._recorded()
        self._directory.remove_all()
        return Transition(name=self._name, before=before, after=None, changed=before is not None, detail="forgotten")

    def clear_leftovers(self, deadline: Deadline) -> None:
        """Put away what an earlier life or an interrupted operation has left, before a start.

        Raises:
            AlreadyRunning: it is alive.
        """
        if not self._directory.exists:
            return
        seen = observe(self._directory)
        if seen.started and seen.process is not None:
            raise AlreadyRunning(
                f"it is running already, as process {seen.process.identity.pid}",
                instance=self._name,
                hint="stop or reboot it",
            )
        self._clear(seen, deadline)

    def recover(self, deadline: Deadline) -> tuple[RecoveredInstance | None, Instance | None]:
        """Complete or undo what was left half done.

        Returns:
            What was found, ``None`` for nothing; and the definition to start, when a reboot has to be completed.
        """
        if not self._directory.exists:
            return None, None
        seen = observe(self._directory)
        saving = reboot = None
        with contextlib.suppress(RecordError):
            saving = self._directory.read(SAVING, Saving, schema=SCHEMA)
        with contextlib.suppress(RecordError):
            reboot = self._directory.read(REBOOT, Reboot, schema=SCHEMA)
        if saving is not None:
            return self._recover_save(seen, saving, deadline), None
        if seen.alive and seen.unfinished and self._directory.tail(RESTORING, 1) and last(seen.events, "RESUME"):
            # It must not run twice: what has begun to run is not undone.
            self._directory.remove(JOURNAL)
            return self._recovered("restore", "completed", "the guest runs"), None
        if seen.started:
            if self._directory.tail(JOURNAL, 1):
                # Killed between the guest's start and the end of the journal: it is completed.
                self._directory.remove(JOURNAL)
                self._directory.remove(REBOOT)
                return self._recovered("start", "completed", "the guest runs"), None
            if reboot is not None:
                self._directory.remove(REBOOT)
                return self._recovered("reboot", "undone", "the guest runs on"), None
            return None, None
        if reboot is not None:
            self._clear(seen, deadline, keep=REBOOT)
            return self._recovered("reboot", "completed", "started again"), reboot.instance
        if seen.unfinished or (seen.process is None and seen.ended is None):
            self._clear(seen, deadline)
            return self._recovered("start", "undone", "nothing of it is left"), None
        if seen.ended is not None or (seen.request is not None and seen.request.forced):
            self._clear(seen, deadline)
            return self._recovered("stop", "completed", "what it had left was cleaned up"), None
        return None, None

    def _recover_save(self, seen: Observed, saving: Saving, deadline: Deadline) -> RecoveredInstance:
        if saved_as(self._directory) is not None:
            self.end_saved(seen, deadline)
            return self._recovered("save", "completed", f"it is in {saving.path}")
        undo_save(self._directory, saving, deadline)
        detail = "it goes on" if seen.alive else "its process had ended"
        return self._recovered("save", "undone", detail)

    def _recovered(self, operation: str, outcome: str, detail: str) -> RecoveredInstance:
        return RecoveredInstance(name=self._name, operation=operation, outcome=outcome, detail=detail)

    def _clear(self, seen: Observed, deadline: Deadline, keep: str | None = None) -> None:
        if seen.alive and seen.process is not None:
            # A start was interrupted before the guest was let run, and QEMU may not hear SIGTERM yet.
            with process.held(seen.process.identity) as pidfd:
                if pidfd is not None:
                    process.end(pidfd, deadline, flush=False)
        self._end_strays(seen, deadline)
        self._finish(observe(self._directory), None, keep=keep)

    def end_as(self, cause: Cause, detail: str, deadline: Deadline) -> None:
        """End it and release everything it held, for a reason of the driver's own.

        Args:
            cause: why; kept in the account of its life.
            detail: why, for people.
            deadline: by when to be done.
        """
        seen = observe(self._directory)
        self._end_process(seen, deadline)
        self._end_strays(seen, deadline)
        self._finish(self._after_end(seen), cause, detail=detail)

    def discard(self, deadline: Deadline) -> None:
        """Leave nothing of a life that has not begun: its guest was to come from another host and did not."""
        seen = observe(self._directory)
        self._end_process(seen, deadline)
        self._end_strays(seen, deadline)
        # Without the record of a process the account of the life before has been put back already. What says that
        # this is no life of its own goes last.
        ended = attrs.evolve(self._after_end(seen), unfinished=seen.process is not None)
        self._finish(ended, None, keep=MIGRATION)
        self._directory.remove_volatile()
        if not self._directory.has_data or self._recorded() is not None:
            return
        self._directory.remove(PLACEMENT, data=True)
        self._directory.remove_data_if_empty()

    def _end_process(self, seen: Observed, deadline: Deadline) -> None:
        if seen.process is None or not seen.alive:
            return
        with process.held(seen.process.identity) as pidfd:
            if pidfd is not None and not process.end(pidfd, deadline):
                raise OutcomeUnknown("QEMU was killed and does not end", hint="look at its state in /proc")

    def state_of(self, seen: Observed) -> InstanceState | None:
        """What is known of its state without asking it."""
        return _before(seen) if seen.alive else ended_state(seen)[0]

    def _refuse_moving(self, client: QmpClient, deadline: Deadline) -> None:
        """Refuse to change whether a guest runs that is on its way.

        Raises:
            WrongState: it is.
        """
        seen = observe(self._directory)
        if seen.migration is None:
            if os.path.lexists(self._directory.join(MIGRATION)):
                raise WrongState(
                    "the record of its migration is damaged, and it may run on another host",
                    instance=self._name,
                    hint="look there; if it does not, stop it here and start it again",
                )
            return
        if seen.migration.role == "source":
            answer = client.execute("query-migrate", deadline=deadline)
            ended = str(answer.get("status", "none")) in ("none", "failed", "cancelled")
            if ended and not seen.migration.copying:
                return
        refuse_moving(seen)

    def require_alive(self) -> Observed:
        """What is known of it.

        Raises:
            NotRunning: it is not alive.
        """
        if not self._directory.exists:
            raise NotRunning("it is not running", instance=self._name, hint="start it first")
        seen = observe(self._directory)
        if not seen.alive:
            state, reason = ended_state(seen)
            raise NotRunning(f"it is not running: {state.value}, {reason.detail}", instance=self._name)
        return seen

    def _after_end(self, seen: Observed) -> Observed:
        """What is to be seen now that its process has ended; what cannot have changed is not read again."""
        return attrs.evolve(seen, alive=False, request=self._read_request(), events=read_events(self._directory))

    def _read_request(self) -> StopRequest | None:
        # A damaged one is no reason not to stop: then only the reason of the end is less exact.
        with contextlib.suppress(RecordError):
            return self._directory.read(STOP_REQUEST, StopRequest, schema=SCHEMA)
        return None

    def _write_request(self, request: StopRequest) -> None:
        # Nor is a full file system.
        with contextlib.suppress(RecordError):
            self._directory.write(STOP_REQUEST, request, schema=SCHEMA)

    def _end(self, pidfd: int, deadline: Deadline) -> None:
        now = time.time()
        self._write_request(StopRequest(time=now, until=now, forced=True))
        if not process.end(pidfd, deadline):
            raise OutcomeUnknown(
                "QEMU was killed and does not end",
                hint="it may hang in the kernel on a device; look at its state in /proc",
            )

    def _ask_and_wait(
        self, pidfd: int, seen: Observed, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> bool:
        if not _has_power_button(seen):
            if escalate:
                return False
            raise UnsupportedOperation(
                "the guest cannot be asked to power off: it has no ACPI", hint="stop it by force"
            )
        waiting = deadline.sooner(grace)
        outstanding = self._read_request()
        press = retry or outstanding is None or time.time() >= outstanding.until
        try:
            while not waiting.expired:
                if press and (deaf := self._press(waiting)):
                    return self._cannot_be_asked(deaf, escalate)
                press = True
                if process.wait_dead(pidfd, waiting.sooner(PRESS_AGAIN)):
                    return True
        except QmpError as error:
            if process.wait_dead(pidfd, Deadline.after(1.0)):
                return True
            if not escalate:
                raise OutcomeUnknown(f"QEMU does not take the request to power off: {error}") from error
            return False
        if not escalate:
            raise DeadlineExceeded(
                f"the guest did not power off within {grace:g} s and runs on",
                hint="give it more time, or stop it by force",
            )
        return False

    def _press(self, waiting: Deadline) -> str:
        """Press the power button; returns the run state in which nobody in the guest can notice it, else nothing."""
        with QmpClient.connect(self._directory.join(CONTROL), waiting) as client:
            status = client.execute("query-status", deadline=waiting)["status"]
            if status == "shutdown":
                return ""  # it has powered off, and its process is about to end
            if status not in ("running", "paused", "suspended"):
                return str(status)
            now = time.time()
            # Written first: a guest that powers off at once must be known to have been asked.
            self._write_request(StopRequest(time=now, until=now + waiting.timeout()))
            if status == "paused":
                client.execute("cont", deadline=waiting)
            client.execute("system_powerdown", deadline=waiting)
            return ""

    def _cannot_be_asked(self, status: str, escalate: bool) -> bool:
        if escalate:
            return False
        raise UnsupportedOperation(
            f"the guest cannot be asked to power off: QEMU's run state is {status}",
            hint="resume it, or stop it by force",
        )

    def _finish(
        self,
        seen: Observed,
        forced: Cause | None,
        keep: str | None = None,
        detail: str = "the host stopped it by force",
    ) -> None:
        """Once the process is gone: take down what it had, write down how it ended, remove the directory."""
        state, reason = ended_state(seen)
        if forced is not None:
            state, cause = InstanceState.STOPPED, forced
        else:
            cause, detail = reason.cause, reason.detail
        saved = saved_as(self._directory)
        if saved is not None:
            state, cause, detail = InstanceState.SAVED, Cause.HOST_SAVE, f"it was saved to {saved.path}"
        # Of one whose removal was interrupted, only the account of its end may be left.
        saved_as_before = seen.ended.saved_as if seen.ended is not None else None
        discard_part(self._directory)
        discard_backup(self._directory)
        self._release(seen)
        if seen.unfinished:
            self._restore_history()
            give_back(self._directory, seen.events)
        elif seen.process is not None:
            history = History(
                uuid=(seen.record.instance.uuid if seen.record else None) or "",
                started=seen.process.started,
                boot_id=seen.process.identity.boot_id,
                ended=reason.since or time.time(),
                state=state,
                cause=cause,
                detail=detail,
                saved_as=saved_as_before if saved is None else saved.id,
            )
            self._directory.write(HISTORY, history, schema=SCHEMA, data=True)
        if keep is None:
            self._directory.remove_volatile()
        else:
            self._directory.empty_volatile(keep)

    def _restore_history(self) -> None:
        """A start that never came to an end leaves the account of the life before it."""
        before = None
        with contextlib.suppress(RecordError):
            before = self._directory.read(HISTORY_BEFORE, History, schema=SCHEMA)
        if before is not None:
            self._directory.write(HISTORY, before, schema=SCHEMA, data=True)
        else:
            self._directory.remove(HISTORY, data=True)

    def _end_strays(self, seen: Observed, deadline: Deadline) -> None:
        """End a QEMU or a companion that was started and not written down: nobody else writes to these files."""
        known = seen.process.identity.pid if seen.process else -1
        if seen.process is not None and not seen.unfinished:
            return
        for name in (EVENTS, COMPANIONS_OUTPUT):
            for pid in process.holders(self._directory.join(name)):
                if pid != known:
                    with contextlib.suppress(ProcessLookupError), _pidfd(pid) as fd:
                        process.end(fd, deadline)

    def _recorded(self) -> InstanceState | None:
        try:
            history = self._directory.read(HISTORY, History, schema=SCHEMA, data=True)
        except RecordError:
            return InstanceState.UNKNOWN
        if history is None:
            return None
        return history.state or InstanceState.CRASHED

    @contextlib.contextmanager
    def _monitor(self, deadline: Deadline) -> Iterator[QmpClient]:
        self.require_alive()
        try:
            with QmpClient.connect(self._directory.join(CONTROL), deadline) as client:
                yield client
        except QmpConnectError as error:
            self.require_alive()
            raise DeadlineExceeded(
                f"QEMU does not answer, nothing was asked of it: {error}", instance=self._name
            ) from error

    def _status(self, client: QmpClient, deadline: Deadline) -> str:
        try:
            return str(client.execute("query-status", deadline=deadline)["status"])
        except QmpTimeout as error:
            raise DeadlineExceeded("QEMU does not answer, nothing was asked of it", instance=self._name) from error
        except QmpClosed as error:
            raise NotRunning("it has just ended", instance=self._name) from error
        except QmpRefused as error:
            raise HypervisorRefused("query-status", error.error_class, error.text, instance=self._name) from error
        except (QmpError, KeyError, TypeError) as error:
            raise OutcomeUnknown(f"QEMU answers nonsense: {error}", instance=self._name) from error

    def _execute(self, client: QmpClient, command: str, deadline: Deadline) -> None:
        try:
            client.execute(command, deadline=deadline)
        except QmpRefused as error:
            raise HypervisorRefused(command, error.error_class, error.text, instance=self._name) from error
        except QmpError as error:
            raise OutcomeUnknown(
                f"QEMU took {command} and did not answer: {error}", instance=self._name, hint="look at its state"
            ) from error

    def _unchanged(self, state: InstanceState | None, detail: str) -> Transition:
        return Transition(name=self._name, before=state, after=state, changed=False, detail=detail)


def plain_state(status: str) -> InstanceState:
    """The state of an instance by QEMU's run state alone; whatever is not known stands still."""
    return {
        "prelaunch": InstanceState.PRELAUNCH,
        "running": InstanceState.RUNNING,
        "guest-panicked": InstanceState.PANICKED,
        "io-error": InstanceState.IO_ERROR,
        "internal-error": InstanceState.CRASHED,
    }.get(status, InstanceState.PAUSED)


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _before(seen: Observed) -> InstanceState:
    """What it was doing, from its events alone: asking would have to wait for one that does not answer."""
    event = last(seen.events, "RESUME", "STOP", "GUEST_PANICKED")
    if event is None:
        return InstanceState.PRELAUNCH
    states = {"RESUME": InstanceState.RUNNING, "STOP": InstanceState.PAUSED}
    return states.get(event.name, InstanceState.PANICKED)


def _has_power_button(seen: Observed) -> bool:
    return seen.record is None or seen.record.instance.params.get("acpi", True) is not False


def refuse_moving(seen: Observed) -> None:
    """Refuse to change an instance that is on its way to another host or from one.

    Raises:
        WrongState: it is.
    """
    if seen.migration is None:
        return
    if seen.migration.role == "destination":
        raise WrongState(
            "it comes from another host, and may still run there",
            instance=seen.name,
            hint="finalize its migration on both hosts",
        )
    raise WrongState("it is being moved to another host", instance=seen.name, hint="cancel or finalize its migration")


def recover_migration(
    directory: InstanceDirectory, control: Control, deadline: Deadline, families: Families
) -> RecoveredInstance | None:
    """Finish a migration whose host application was killed; ``None`` when there is none, or nothing to be done."""
    if not directory.exists or not os.path.exists(directory.join(MIGRATION)):
        return None
    from hvcore_kvm.migration.finalizing import Finalizing
    from hvcore_kvm.release import lead_to

    return Finalizing(directory, control, deadline, functools.partial(lead_to, families)).recover()
