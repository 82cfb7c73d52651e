"""Starting, stopping and everything between.

The facade holds the instance's lock around every hook of this module except `hv_plan_start`, which changes nothing, and
`hv_restore_instance`, which learns the instance's name only from the file. It hands over definitions whose syntax has
no errors and whose uuids and hardware addresses are all filled in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.deadline import Deadline
    from hvcore.model.instance import Instance
    from hvcore.model.migration import SavedInstance
    from hvcore.model.plan import Plan
    from hvcore.model.progress import Progress
    from hvcore.model.recovery import Recovery
    from hvcore.model.state import Transition


@hookspec(firstresult=True)
def hv_plan_start(instance: Instance, paused: bool, deadline: Deadline) -> Plan:
    """Say exactly what `hv_start_instance` would run, touching nothing.

    Nothing is created, opened for writing, started or connected to. The same definition on the same host gives the
    same plan. What the hypervisor binary can do is asked once per binary and remembered before planning begins.

    Args:
        instance: the definition.
        paused: plan a start that leaves the guest paused before its first instruction.
        deadline: by when to be done.

    Returns:
        The plan.

    Errors: `InvalidParameters` with all findings of the host; `HostError`.

    Capability: ``plan``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_start_instance(instance: Instance, paused: bool, deadline: Deadline) -> Transition:
    """Start an instance; afterwards it runs, or nothing of the attempt is left.

    Args:
        instance: the definition.
        paused: leave the guest paused before its first instruction (state prelaunch).
        deadline: by when it must run; on expiry everything is undone.

    Returns:
        What changed.

    Errors: `AlreadyRunning`; `InvalidParameters` with all findings of the host; `SpawnFailed` with the
    hypervisor's own words; `HypervisorRefused`; `DeadlineExceeded`; `HostError`.

    Capability: none (every driver); ``start-paused`` for ``paused``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_stop_instance(
    name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
) -> Transition:
    """Stop an instance and release everything it held on the host.

    A graceful stop asks the guest to power off (the ACPI power button) and waits. An instance that is not alive, or
    of which there is no account, is no error: nothing changed, leftovers are cleaned up. It needs no definition and
    no record: an instance can always be stopped by name.

    Args:
        name: name of the instance.
        force: do not ask the guest.
        grace: seconds the guest is given to power off; 0 with ``force``.
        retry: an earlier request ran out of time; press the button again at once even if one is outstanding.
        escalate: when the grace is over, go on with force; else fail and leave the instance running.
        deadline: by when to be done, force included.

    Returns:
        What changed; ``after`` is what the driver's account of the instance says then, stopped if it was alive.

    Errors: `DeadlineExceeded` when the guest did not power off and ``escalate`` is false;
    `UnsupportedOperation` when the guest cannot be asked and ``escalate`` is false; `OutcomeUnknown`.

    Capability: none (every driver); ``graceful-stop`` when ``escalate`` is false. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_reboot_instance(name: str, instance: Instance | None, mode: str, grace: float, deadline: Deadline) -> Transition:
    """Restart an instance.

    ``soft`` stops it gracefully and starts it again; a guest that does not power off in time keeps running.
    ``hard`` stops it by force and starts it again. Both are cold starts, with the new definition when one is given,
    else with the one it runs with. ``reset`` is the reset button: the same process, nothing of the definition
    changes.

    Args:
        name: name of the instance.
        instance: a new definition, or ``None``.
        mode: ``soft``, ``hard`` or ``reset``.
        grace: seconds the guest is given to power off in mode ``soft``.
        deadline: by when to be done.

    Returns:
        What changed.

    Errors: `NotRunning`; `DeadlineExceeded` when the guest did not power off; everything a start can raise, after
    which the instance is stopped and its definition is kept.

    Capability: ``reboot``; ``reset`` for mode ``reset``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_pause_instance(name: str, deadline: Deadline) -> Transition:
    """Stop the guest's virtual CPUs; a paused instance stays as it is.

    Args:
        name: name of the instance.
        deadline: by when to be done.

    Returns:
        What changed.

    Errors: `NotRunning`; `WrongState` when it cannot be paused; `HypervisorRefused`; `OutcomeUnknown`.

    Capability: ``pause``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_resume_instance(name: str, deadline: Deadline) -> Transition:
    """Let the guest's virtual CPUs run; a running instance stays as it is.

    Never continues a migrated-away instance: the other side may run.

    Args:
        name: name of the instance.
        deadline: by when to be done.

    Returns:
        What changed.

    Errors: `NotRunning`; `WrongState`, for example after a migration; `HypervisorRefused`; `OutcomeUnknown`.

    Capability: ``pause``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_save_instance(
    name: str, path: str, on_progress: Callable[[Progress], object] | None, deadline: Deadline
) -> SavedInstance:
    """Save memory and devices of a running or paused instance to a file and stop it.

    The guest stands still meanwhile. Afterwards the instance is in state saved. The file has a checksum and can be
    read by its owner only; the disks are not in it, and must not be written until it is restored.

    Args:
        name: name of the instance.
        path: absolute path of a file that must not exist yet, in a directory that does.
        on_progress: called in the same thread with how far it is, many times a second; must not raise. ``None`` for
            nobody.
        deadline: by when to be done; on expiry the instance runs on and the file is gone.

    Returns:
        The file and its size in bytes.

    Errors: `NotRunning`; `InvalidParameters` when the file cannot be made; `WrongState`; `HypervisorRefused` when a
    device cannot be saved; `OperationFailed` when the file cannot be written; `DeadlineExceeded`. After each of them
    the instance is what it was before.

    Capability: ``save-restore``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_restore_instance(
    path: str, paused: bool, force: bool, on_progress: Callable[[Progress], object] | None, deadline: Deadline
) -> Transition:
    """Start an instance from a file that `hv_save_instance` wrote; it goes on as what it was.

    The driver holds the instance's lock itself. A file is restored once: then it says so, because the disks have
    moved on. It stays, and belongs to the host application.

    Args:
        path: absolute path of the file.
        paused: leave the guest paused, also when it ran.
        force: restore it also when it was restored before, when the instance has run since, or when one of its disks
            has been written since; the guest may find its file systems damaged.
        on_progress: as in `hv_save_instance`.
        deadline: by when to be done; on expiry everything is undone.

    Returns:
        What changed.

    Errors: `AlreadyRunning`; `RecordError` when the file is damaged, or none of ours; `InvalidParameters` with
    everything that stands against restoring it here; everything a start can raise. After each of them the file can
    be restored as before.

    Capability: ``save-restore``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_cleanup_instance(name: str, deadline: Deadline) -> Transition:
    """Forget an instance that is not alive: remove everything kept about it on this host.

    Afterwards the driver has no account of the name. Disks and the definition belong to the host and stay.

    Args:
        name: name of the instance.
        deadline: by when to be done.

    Returns:
        What changed; ``after`` is ``None``.

    Errors: `AlreadyRunning` when it is alive.

    Capability: none (every driver). Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_recover(name: str, deadline: Deadline) -> Recovery:
    """Complete or undo whatever a killed host application left half done with one instance.

    The facade calls it for every listed instance in turn, each under its lock, when the host names none; and for those
    that `hv_list_interrupted` names, where the driver has it.

    Args:
        name: name of the instance.
        deadline: by when to be done.

    Returns:
        What was found and done; nothing when nothing was half done.

    Errors: everything that completing the interrupted operation can raise.

    Capability: ``recover``. Since: 0.1.
    """
