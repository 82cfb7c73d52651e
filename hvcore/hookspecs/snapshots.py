"""Snapshots: what an instance is at one moment, kept, and coming back to it. The facade holds the instance's lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvcore.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from hvcore.deadline import Deadline
    from hvcore.model.instance import Instance
    from hvcore.model.progress import Progress
    from hvcore.model.snapshots import Snapshot, SnapshotListing
    from hvcore.model.state import Transition


@hookspec(firstresult=True)
def hv_create_snapshot(
    name: str,
    instance: Instance | None,
    snapshot: str,
    memory: bool | None,
    external: bool,
    on_progress: Callable[[Progress], object] | None,
    deadline: Deadline,
) -> Snapshot:
    """Keep what an instance is at this moment: all its disks, of the same moment, and its memory if that is wanted.

    The instance goes on as what it was. Read-only disks are not part of it.

    Args:
        name: name of the instance.
        instance: its definition, for one that is not alive; not looked at for one that is.
        snapshot: a name that none of its snapshots has; the facade has checked its grammar.
        memory: keep memory and devices as well; ``None`` to do so for an instance that is alive, unless it is external.
        external: leave the images as they are from now on: what is written goes to overlays beside them. The facade
            has checked that ``snapshot-external`` is claimed, and that no memory is wanted.
        on_progress: called in the same thread with how far it is; must not raise. ``None`` for nobody.
        deadline: by when to be done; on expiry there is no snapshot.

    Returns:
        The snapshot.

    Errors: `NotRunning` when memory is wanted and it is not alive, or it is not and no definition is given;
    `InvalidParameters` with everything that stands against it; `WrongState`; `HypervisorRefused`; `OperationFailed`;
    `DeadlineExceeded`. After each of them the instance is what it was, and there is no such snapshot. `OutcomeUnknown`
    when that cannot be said; `hv_recover` completes or undoes it.

    Capability: ``snapshot``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_list_snapshots(name: str, deadline: Deadline) -> SnapshotListing:
    """List the snapshots of an instance, alive or not, the oldest first.

    Args:
        name: name of the instance.
        deadline: by when to be done.

    Returns:
        All of them; none for an instance nobody has heard of.

    Errors: `RecordError`.

    Capability: ``snapshot``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_revert_snapshot(
    name: str, snapshot: str, on_progress: Callable[[Progress], object] | None, deadline: Deadline
) -> Transition:
    """Make an instance again what it was when a snapshot was taken. What it has been since then is lost.

    With memory it goes on from that moment, in the state it was in; one that is not alive is started for it. Without
    memory only its disks are what they were, and it must not be alive.

    Args:
        name: name of the instance.
        snapshot: one of its snapshots.
        on_progress: as in `hv_create_snapshot`.
        deadline: by when to be done; on expiry the instance is what it was before.

    Returns:
        What changed.

    Errors: `InvalidParameters` when there is no such snapshot, and with everything that is not as it was then: memory,
    machine, devices, images; `WrongState` when it would have to be stopped first; everything a start can raise. After
    each of them the instance is what it was. `OutcomeUnknown` when that cannot be said; `hv_recover` completes or
    undoes it.

    Capability: ``snapshot``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_delete_snapshot(
    name: str, snapshot: str, on_progress: Callable[[Progress], object] | None, deadline: Deadline
) -> Snapshot:
    """Give up a snapshot. The instance, alive or not, stays what it is, and so do its other snapshots.

    The overlays of an external one are written into the images below them; then they are gone.

    Args:
        name: name of the instance.
        snapshot: one of its snapshots.
        on_progress: as in `hv_create_snapshot`.
        deadline: by when to be done.

    Returns:
        What it was.

    Errors: `InvalidParameters` when there is no such snapshot; `WrongState`; `HypervisorRefused`; `OperationFailed`;
    `DeadlineExceeded`. After each of them the snapshot is still there; an external one may no longer be revertible.
    `OutcomeUnknown` when that cannot be said; `hv_recover` completes or undoes it.

    Capability: ``snapshot``. Since: 0.1.
    """
