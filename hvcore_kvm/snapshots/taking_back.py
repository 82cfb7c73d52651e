"""Taking back what was begun with a snapshot and has failed."""

from __future__ import annotations

from hvcore import Deadline, DeadlineExceeded, HypervisorError, OperationFailed, OutcomeUnknown
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.lifecycle import Control
from hvcore_kvm.snapshots.settling import settle

UNDO_PATIENCE = 60.0
"""Seconds that QEMU, or qemu-img, is given to be done with what is to be taken back: it cannot be cancelled."""


class TakenBack:
    """A context manager: on an error what was begun is taken back, and what could not be is said with it."""

    def __init__(self, directory: InstanceDirectory, control: Control, deadline: Deadline) -> None:
        self._directory = directory
        self._control = control
        self._deadline = deadline

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if error is None:
            return
        try:
            settled = settle(self._directory, self._control, Deadline.after(UNDO_PATIENCE), undo=True)
        except HypervisorError as problem:
            if isinstance(error, HypervisorError):
                raise OutcomeUnknown(
                    f"{error.message}; and it could not be taken back: {problem.message}",
                    hint="'hv recover' completes it",
                ) from error
            error.__notes__ = [*getattr(error, "__notes__", ()), f"taking it back: {problem}"]
            return
        if settled is not None:
            self._directory.remove_data_if_empty()
            if settled.outcome == "completed":
                # QEMU had done it, and the guest has gone on with it.
                words = f"it was done all the same: {settled.detail}"
                if isinstance(error, HypervisorError):
                    raise OutcomeUnknown(f"{error.message}; {words}") from error
                error.add_note(words)
        if isinstance(error, OutcomeUnknown):
            # By now it is known: nothing of it is left, or nothing had been begun.
            if self._deadline.expired:
                raise DeadlineExceeded(f"it was not done in time: {error.message}", hint="give it more time") from error
            raise OperationFailed(error.message, code="not-done") from error


def in_time(deadline: Deadline) -> None:
    """Go on only before the deadline.

    Raises:
        DeadlineExceeded: it has passed.
    """
    if deadline.expired:
        raise DeadlineExceeded("it was not done in time", hint="give it more time")
