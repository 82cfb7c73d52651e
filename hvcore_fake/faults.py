"""Scripted faults, as data: where one strikes, and what it does. It knows the names of operations and effects only."""

from __future__ import annotations

import builtins
import difflib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from hvcore import (
    OPERATIONS,
    AlreadyRunning,
    DeadlineExceeded,
    DriverFault,
    Finding,
    FindingSet,
    HostError,
    HypervisorError,
    HypervisorRefused,
    InstanceBusy,
    InstanceNotFound,
    InvalidParameters,
    LoadError,
    NotRunning,
    OperationFailed,
    OutcomeUnknown,
    PolicyDenied,
    RecordError,
    Refused,
    SpawnFailed,
    UnsupportedOperation,
    WrongState,
    checks,
    param,
)

EFFECTS: dict[str, tuple[str, ...]] = {
    "start_instance": ("directory", "process", "record", "resume", "commit"),
    "stop_instance": ("button", "wait", "kill", "ending", "removal", "commit"),
    "reboot_instance": (
        "definition",
        "button",
        "wait",
        "kill",
        "directory",
        "process",
        "record",
        "resume",
        "reset",
        "commit",
    ),
    "pause_instance": ("pause", "commit"),
    "resume_instance": ("resume", "commit"),
    "save_instance": ("file", "kill", "ending", "removal", "commit"),
    "restore_instance": ("directory", "process", "record", "load", "mark", "resume", "commit"),
    "create_snapshot": ("snapshot", "commit"),
    "revert_snapshot": ("directory", "process", "record", "load", "resume", "commit"),
    "delete_snapshot": ("snapshot", "commit"),
    "backup_instance": ("track", "file", "publish", "checkpoint", "commit"),
    "delete_checkpoint": ("checkpoint", "commit"),
    "cleanup_instance": ("removal", "commit"),
    "hot_add_device": ("record", "backend", "device", "settle", "commit"),
    "hot_del_device": ("record", "request", "wait", "backend", "settle", "commit"),
    "hot_mod_device": ("change", "record", "device", "request", "wait", "backend", "settle", "commit"),
    "resize_disk": ("resize", "commit"),
    "balloon_instance_memory": ("balloon", "wait", "commit"),
    "disconnect_console": ("disconnect", "commit"),
    "set_console_password": ("password", "commit"),
    "accept_instance": ("directory", "image", "process", "record", "commit"),
    "migrate_instance": ("send", "commit"),
    "continue_migration": ("steer", "switch-over", "commit"),
    "cancel_migration": ("cancel", "commit"),
    "finalize_migration_source": ("cancel", "forget", "kill", "ending", "removal", "commit"),
    "finalize_migration_dst": ("resume", "record", "kill", "removal", "commit"),
    "powercycle_node": ("powercycle",),
}
"""The effects of each operation, in order: the points at which faults can strike within it.

``directory`` makes the instance's directory; ``process`` spawns the hypervisor process, its guest paused; ``record``
writes the runtime record; ``resume`` lets the guest run; ``pause`` stops it; ``button`` presses the power button;
``wait`` gives the guest its time; ``kill`` ends the process; ``ending`` writes why the instance ended; ``removal``
removes what was kept; ``definition`` keeps what a reboot will start with; ``reset`` is the reset button; ``file``
writes the file of a saved instance; ``snapshot`` writes what is kept in snapshots; ``load`` gives a guest that was kept
to a process; ``mark`` writes into it that it is restored;
``backend`` opens or closes what is behind a device; ``device`` gives it to the guest; ``request`` asks the guest to let
go of it; ``settle`` writes down that nothing is under way with it any more; ``change`` changes what the guest has no
part in; ``resize``, ``balloon``, ``disconnect`` and ``password`` do what their operations are for;
``send`` begins to send an instance to another host; ``steer`` does what the policy wants of that; ``switch-over`` lets
its guest go over; ``cancel`` cancels it; ``forget`` forgets one that has failed; ``powercycle`` notes a restart of the
host; ``image`` makes the images of disks that are copied; ``track`` keeps track of what is written from the moment of a
backup on; ``publish`` gives the files of one their names; ``checkpoint`` begins or ends a checkpoint; ``commit`` ends
the journal.
"""

EVENTS = (
    *("RESUME", "STOP", "RESET", "POWERDOWN", "SHUTDOWN", "GUEST_PANICKED", "BLOCK_IO_ERROR"),
    *("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"),
)
"""Names of the events a modelled process writes."""


class HostCrash(BaseException):
    """The host application was killed, as by SIGKILL: nothing is undone, the files stay as they are.

    Not an `Exception`, so that nothing on its way handles it. A test catches it and loads the driver again.
    """


@attrs.frozen(kw_only=True)
class Fault:
    """One fault: where it strikes, and what it does."""

    kind: str = param(
        choices=("raise", "hang", "crash", "lie", "lose-event"),
        summary="raise an error; hang until the deadline; crash the host application (`HostCrash`); lie: report "
        "success without the effect; lose-event: the hypervisor's event is never written.",
    )
    operation: str | None = param(default=None, summary="Operation it strikes in; any when not given.")
    instance: str | None = param(default=None, summary="Instance it strikes for; any when not given.")
    effect: str | None = param(
        default=None, summary="Effect it strikes at, see `EFFECTS`; the operation as a whole when not given."
    )
    when: str = param(
        default="before", choices=("before", "after"), summary="Before or after the effect, or the whole operation."
    )
    nth: int = param(
        default=1,
        checks=(checks.at_least(1),),
        summary="The first time it strikes, of all times that come to its point.",
    )
    times: int = param(
        default=1, checks=(checks.at_least(0),), summary="How many times in a row it strikes; 0 for ever."
    )
    error: str = param(
        default="OperationFailed",
        summary="What kind raise raises: class or code of an error of hvcore, or a built-in exception for a defect.",
    )
    message: str = param(default="a scripted fault", summary="What the error says.")
    event: str | None = param(default=None, summary="Name of the event kind lose-event loses; any when not given.")

    def make_error(self) -> Exception:
        """The exception of kind ``raise``."""
        found = _ERRORS.get(self.error)
        if found is None:
            foreign: Exception = getattr(builtins, self.error)(self.message)
            return foreign
        if issubclass(found, HypervisorRefused):
            return found(self.operation or "a request", "GenericError", self.message)
        if issubclass(found, InvalidParameters | LoadError):
            return found(self.message, FindingSet([Finding(code="scripted-fault", message=self.message)]))
        return found(self.message)


class FaultPlan:
    """The faults of one driver, and how often each point was met. Safe to use from many threads.

    Args:
        faults: faults, or tables of their fields.

    Raises:
        InvalidParameters: everything that is wrong with them.
    """

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._turn = threading.Lock()
        self._faults: list[Fault] = []
        self._met: list[int] = []
        self._struck: list[Fault] = []
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault) -> None:
        """Script one more fault; its count begins now."""
        findings = check_faults([fault], "fault")
        if findings:
            raise InvalidParameters("the fault cannot be scripted", FindingSet(findings))
        with self._turn:
            self._faults.append(fault)
            self._met.append(0)

    def clear(self) -> None:
        """Forget all faults; what has struck stays known."""
        with self._turn:
            self._faults.clear()
            self._met.clear()

    @property
    def struck(self) -> tuple[Fault, ...]:
        """The faults that have struck, in order."""
        with self._turn:
            return tuple(self._struck)

    def meet(self, operation: str, instance: str | None, effect: str | None, when: str) -> Fault | None:
        """Say that a point has come, and get the fault that strikes there."""

        def matches(fault: Fault) -> bool:
            return (
                fault.kind != "lose-event"
                and fault.operation in (None, operation)
                and fault.instance in (None, instance)
                and fault.effect == effect
                and fault.when == when
            )

        return self._count(matches)

    def loses(self, event: str, instance: str) -> bool:
        """Say that an event happens, and whether it is lost."""

        def matches(fault: Fault) -> bool:
            return fault.kind == "lose-event" and fault.instance in (None, instance) and fault.event in (None, event)

        return self._count(matches) is not None

    def _count(self, matches: Any) -> Fault | None:
        found = None
        with self._turn:
            for index, fault in enumerate(self._faults):
                if not matches(fault):
                    continue
                self._met[index] += 1
                turn = self._met[index] - fault.nth
                if found is None and turn >= 0 and (fault.times == 0 or turn < fault.times):
                    found = fault
            if found is not None:
                self._struck.append(found)
        return found


def check_faults(faults: Iterable[Fault], path: str = "faults[{}]") -> list[Finding]:
    """Everything that is wrong with some faults, taken together field by field."""
    return [f.below(path.format(index)) for index, fault in enumerate(faults) for f in _problems(fault)]


def _problems(fault: Fault) -> Iterator[Finding]:
    operations = [operation.name for operation in OPERATIONS if operation.name != "describe_driver"]
    effects = sorted({name for names in EFFECTS.values() for name in names})
    if fault.operation is not None:
        yield from _not_in("operation", fault.operation, operations)
        effects = list(EFFECTS.get(fault.operation, ()))
    if fault.effect is not None:
        yield from _not_in("effect", fault.effect, effects)
    if fault.kind == "raise" and fault.error not in _ERRORS and not _is_exception(fault.error):
        yield from _not_in("error", fault.error, list(_ERRORS))
    if fault.kind == "lie" and fault.when == "after":
        yield Finding(code="invalid-value", path="when", message="an effect is left out before it, not after it")
    if fault.kind == "lie" and fault.operation is not None and fault.operation not in EFFECTS:
        yield Finding(code="invalid-value", path="operation", message=f"{fault.operation} has no effects to leave out")
    if fault.event is not None:
        yield from _not_in("event", fault.event, list(EVENTS))


def _not_in(path: str, value: str, known: list[str]) -> Iterator[Finding]:
    if value in known:
        return
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known) or 'none'}"
    yield Finding(code="not-a-choice", path=path, message=f"{value[:60]!r} is not known", hint=hint)


def _is_exception(name: str) -> bool:
    found = getattr(builtins, name, None)
    if not isinstance(found, type) or not issubclass(found, Exception):
        return False
    try:
        found("made from one text")
    except TypeError:
        return False
    return True


_CLASSES: tuple[type[HypervisorError], ...] = (
    AlreadyRunning,
    DeadlineExceeded,
    DriverFault,
    HostError,
    HypervisorError,
    HypervisorRefused,
    InstanceBusy,
    InstanceNotFound,
    InvalidParameters,
    LoadError,
    NotRunning,
    OperationFailed,
    OutcomeUnknown,
    PolicyDenied,
    RecordError,
    Refused,
    SpawnFailed,
    UnsupportedOperation,
    WrongState,
)

_ERRORS = {name: kind for kind in _CLASSES for name in (kind.__name__, kind.code)}
