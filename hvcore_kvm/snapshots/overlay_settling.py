"""What is left of an undertaking with an external snapshot: completed or taken back, as `settle` says.

Whoever reads an image must know on which side of a commit it is. The account is changed while overlay and image are
equal and nothing writes to either (phase ``equal``): until then the overlay counts, from then on what is below. An
overlay upon which another lies is written by nobody: once all of it is in what is below, it may count or not.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from hvcore import Deadline, RecordError
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.hardware.storage import layer_id
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.observation import Observed
from hvcore_kvm.snapshots.commit import cancel_commit, finish_commit, left_out, on_overlay, withdraw_nodes
from hvcore_kvm.snapshots.layers import covered, remove_overlays
from hvcore_kvm.snapshots.record import Shelf, Undertaking


@attrs.frozen
class LiveOverlays:
    """Settles with QEMU.

    Attributes:
        shelf: the account.
        undertaking: what was begun.
        undo: take it back where that is still possible.
    """

    shelf: Shelf
    undertaking: Undertaking
    undo: bool

    def settle(self, directory: InstanceDirectory, seen: Observed, deadline: Deadline) -> bool:
        """Settle it; returns whether it was completed.

        Args:
            directory: the instance's.
            seen: what was observed of it.
            deadline: by when to be done.
        """
        if seen.record is None:
            raise RecordError("there is no record of what it runs with", hint="stop it", instance=directory.name)
        if self.undertaking.operation == "revert":
            # Only of one that is not alive: QEMU has come later, and uses what the account names.
            return StillOverlays(self.shelf, self.undertaking, self.undo).settle(deadline)
        with Monitor.connected(directory, deadline, seen.process) as monitor:
            if self.undertaking.operation == "create":
                return self._create(monitor)
            return self._delete(monitor)

    def _create(self, monitor: Monitor) -> bool:
        snapshot = self.undertaking.snapshot
        if on_overlay(monitor, snapshot.overlays):
            # All of them or none: QEMU has done it in one transaction.
            self.shelf.add(snapshot)
            return True
        self.shelf.remove(snapshot.name)
        withdraw_nodes(monitor, _layers(snapshot.overlays))
        remove_overlays(snapshot.overlays)
        return False

    def _delete(self, monitor: Monitor) -> bool:
        snapshot = self.undertaking.snapshot
        if self.undertaking.phase != "equal":
            self.shelf.add(attrs.evolve(snapshot, spoiled=True))
            cancel_commit(monitor, snapshot.overlays)
            below = covered(self.shelf.snapshots, snapshot.overlays)
            if not below or left_out(monitor, snapshot.overlays) != below:
                # With an overlay that QEMU has left out already the disk holds the same as without it.
                return False
            self.shelf.begin(attrs.evolve(self.undertaking, phase="equal"))
        self.shelf.remove(snapshot.name)
        stayed = finish_commit(monitor, snapshot.overlays)
        if stayed:
            # What the guest writes from now on is in these again.
            left = {uuid: path for uuid, path in snapshot.overlays.items() if uuid in stayed}
            self.shelf.add(attrs.evolve(snapshot, overlays=left, spoiled=True))
        gone = {uuid: path for uuid, path in snapshot.overlays.items() if uuid not in stayed}
        withdraw_nodes(monitor, _layers(gone))
        remove_overlays(gone)
        return not stayed


@attrs.frozen
class StillOverlays:
    """Settles with the images alone: no QEMU has them open.

    Attributes:
        shelf: the account.
        undertaking: what was begun.
        undo: take it back where that is still possible.
    """

    shelf: Shelf
    undertaking: Undertaking
    undo: bool

    def settle(self, deadline: Deadline) -> bool:
        """Settle it; returns whether it was completed.

        Args:
            deadline: by when to be done; nothing of this takes long.
        """
        del deadline
        snapshot, phase = self.undertaking.snapshot, self.undertaking.phase
        if self.undertaking.operation == "create":
            lived = snapshot.record is not None
            if phase == "made" and (lived or not self.undo):
                # Of an instance that was alive its guest may have written to them. Empty ones change nothing.
                self.shelf.add(snapshot)
                return True
            self.shelf.remove(snapshot.name)
            remove_overlays(snapshot.overlays)
            return False
        if self.undertaking.operation == "delete":
            if phase != "equal":
                self.shelf.add(attrs.evolve(snapshot, spoiled=True))
                return False
            self.shelf.remove(snapshot.name)
            remove_overlays(snapshot.overlays)
            return True
        fresh = self.undertaking.fresh
        reverted = any(one.name == snapshot.name and one.overlays == fresh for one in self.shelf.snapshots)
        remove_overlays(snapshot.overlays if reverted else fresh)
        return reverted


def _layers(overlays: Mapping[str, str]) -> list[str]:
    return [layer_id(uuid, path) for uuid, path in overlays.items()]
