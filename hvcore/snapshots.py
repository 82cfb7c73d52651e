"""`SnapshotMethods`: what `hvcore.Driver` offers about snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.capabilities import Capability
from hvcore.errors import InvalidParameters
from hvcore.model.instance import Instance
from hvcore.model.names import check_snapshot_name
from hvcore.passage import Passage, checked_name, invalid_argument

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.model.progress import Progress
    from hvcore.model.snapshots import Snapshot, SnapshotListing
    from hvcore.model.state import Transition


class SnapshotMethods(Passage):
    """The operations on snapshots."""

    def create_snapshot(
        self,
        instance: Instance | str,
        snapshot: str,
        *,
        memory: bool | None = None,
        external: bool = False,
        on_progress: Callable[[Progress], object] | None = None,
        timeout: float | None = None,
    ) -> Snapshot:
        """Keep what an instance is at this moment, to come back to it.

        Args:
            instance: the instance, or just its name; an `Instance` for one that is not alive.
            snapshot: a name for it: a letter, then letters, digits, ``.``, ``_`` and ``-``.
            memory: keep memory and devices as well; by default for an instance that is alive, unless it is external.
            external: leave the images as they are from now on: what is written goes to overlays beside them.
            on_progress: called with how far it is.
            timeout: seconds until it must be done; else there is no snapshot.
        """
        operation = "create_snapshot"
        self._check_snapshot(operation, instance, snapshot)
        name = checked_name(instance)
        if memory is not None and type(memory) is not bool:
            raise self._stamp(invalid_argument("memory", "is neither true nor false nor None", name), operation, name)
        if type(external) is not bool:
            raise self._stamp(invalid_argument("external", "is neither true nor false", name), operation, name)
        if external:
            self._require(Capability.SNAPSHOT_EXTERNAL, operation, name)
            if memory:
                raise self._stamp(invalid_argument("memory", "is not kept beside the disks", name), operation, name)
        return self._call(
            operation,
            name,
            timeout=timeout,
            name=name,
            instance=self._checked(instance) if isinstance(instance, Instance) else None,
            snapshot=snapshot,
            memory=memory,
            external=external,
            on_progress=on_progress,
            deadline=...,
        )

    def list_snapshots(self, instance: Instance | str, *, timeout: float | None = None) -> SnapshotListing:
        """List the snapshots of an instance, the oldest first."""
        return self._named("list_snapshots", instance, timeout)

    def revert_snapshot(
        self,
        instance: Instance | str,
        snapshot: str,
        *,
        on_progress: Callable[[Progress], object] | None = None,
        timeout: float | None = None,
    ) -> Transition:
        """Make an instance again what it was when a snapshot was taken; what it has been since is lost.

        Args:
            instance: the instance, or just its name.
            snapshot: the snapshot.
            on_progress: called with how far it is.
            timeout: seconds until it must be done; else it is what it was before.
        """
        self._check_snapshot("revert_snapshot", instance, snapshot)
        return self._named("revert_snapshot", instance, timeout, snapshot=snapshot, on_progress=on_progress)

    def delete_snapshot(
        self,
        instance: Instance | str,
        snapshot: str,
        *,
        on_progress: Callable[[Progress], object] | None = None,
        timeout: float | None = None,
    ) -> Snapshot:
        """Give up a snapshot; the instance and its other snapshots stay what they are.

        Args:
            instance: the instance, or just its name.
            snapshot: the snapshot.
            on_progress: called with how far it is.
            timeout: seconds until it must be done.
        """
        self._check_snapshot("delete_snapshot", instance, snapshot)
        return self._named("delete_snapshot", instance, timeout, snapshot=snapshot, on_progress=on_progress)

    def _check_snapshot(self, operation: str, instance: Instance | str, snapshot: object) -> None:
        try:
            name = checked_name(instance)
            problem = check_snapshot_name(snapshot) if type(snapshot) is str else "is not text"
            if problem:
                raise invalid_argument("snapshot", problem, name)
        except InvalidParameters as error:
            raise self._stamp(error, operation, None) from None
