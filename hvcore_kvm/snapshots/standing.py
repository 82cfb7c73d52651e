"""What an instance is before something is done with its snapshots, and whether that can be done."""

from __future__ import annotations

from hvcore import AlreadyRunning, HypervisorRefused, InstanceState, RecordError, WrongState
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.lifecycle import refuse_moving
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.observation import Observed, observe
from hvcore_kvm.runtime import HISTORY, PLACEMENT, SCHEMA, History, Placement, RuntimeRecord
from hvcore_kvm.saving.save import SAVABLE


def alive_of(directory: InstanceDirectory) -> Observed | None:
    """An instance that is alive, and can have snapshots; ``None`` for one that is not alive.

    Raises:
        AlreadyRunning: its start was interrupted.
        WrongState: it is being moved, or a device of it is under way.
    """
    seen = observe(directory) if directory.exists else None
    if seen is None or not seen.alive:
        return None
    if seen.unfinished:
        raise AlreadyRunning("its start was interrupted", hint="'hv recover' puts it in order")
    refuse_moving(seen)
    if seen.changes.pending:
        raise WrongState("a device of it is being added or removed", hint="'hv recover' completes that, or reset it")
    return seen


def record_of(seen: Observed) -> RuntimeRecord:
    """What an instance that is alive runs with.

    Raises:
        RecordError: that is not known.
    """
    if seen.record is None:
        raise RecordError("there is no record of what it runs with", hint="restart it", instance=seen.name)
    return seen.record


def addresses_of(directory: InstanceDirectory) -> dict[str, str]:
    """Where the devices of an instance sit, by uuid."""
    placement = directory.read(PLACEMENT, Placement, schema=SCHEMA, data=True)
    return {} if placement is None else dict(placement.addresses)


def last_state(directory: InstanceDirectory) -> InstanceState | None:
    """What an instance that is not alive was last seen to be."""
    history = directory.read(HISTORY, History, schema=SCHEMA, data=True)
    return None if history is None else history.state or InstanceState.CRASHED


def refuse_state(state: str, what: str) -> None:
    """Refuse a guest of which QEMU cannot keep the state now.

    Args:
        state: QEMU's run state.
        what: what cannot be done with a snapshot then.

    Raises:
        WrongState: it is such a state.
    """
    if state not in SAVABLE:
        raise WrongState(
            f"no snapshot can be {what}: QEMU's run state is {state}", hint="resume, stop or reset the instance"
        )


def refuse_blocked(monitor: Monitor) -> None:
    """Refuse an instance with a device whose state QEMU cannot save.

    Raises:
        HypervisorRefused: QEMU's own words, for all such devices.
    """
    reasons = monitor.execute("query-migrate").get("blocked-reasons") or ()
    if reasons:
        words = "; ".join(str(reason) for reason in reasons)
        hint = "it has something whose state cannot be saved"
        raise HypervisorRefused("snapshot-save", "GenericError", words, hint=hint)
