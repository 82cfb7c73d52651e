"""The guest of a snapshot, on its way into a QEMU that was started for it."""

from __future__ import annotations

import time

import attrs

from hvcore import Deadline, OperationFailed
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.qmp import QmpClient
from hvcore_kvm.runtime import LOADED, SCHEMA, Loaded
from hvcore_kvm.snapshots import live_images
from hvcore_kvm.snapshots.record import Shelf, Undertaking


def note_loaded(directory: InstanceDirectory) -> None:
    """Write down that the guest has run before, although QEMU's run state says that it has not begun."""
    directory.write(LOADED, Loaded(time=time.time()), schema=SCHEMA)


@attrs.frozen
class SnapshotGuest:
    """A guest that is loaded from the images of its disks, as `hvcore_kvm.launch` wants it.

    Attributes:
        directory: the instance's directory.
        undertaking: the revert.
    """

    directory: InstanceDirectory
    undertaking: Undertaking

    def load(self, client: QmpClient, deadline: Deadline) -> None:
        """Give it to a QEMU that waits before its first instruction."""
        monitor = Monitor(client, deadline)
        snapshot = self.undertaking.snapshot
        images = live_images.live_images(monitor, snapshot.instance)
        if not images:
            raise OperationFailed("QEMU shows none of the disks that it was started with", code="image-failed")
        live_images.load(monitor, images, snapshot.name)
        note_loaded(self.directory)

    def mark(self) -> None:
        """It is there: what it does from now on is not taken back."""
        Shelf(self.directory).begin(attrs.evolve(self.undertaking, phase="loaded"))

    def unmark(self) -> None:
        """It is there no more."""
        Shelf(self.directory).begin(self.undertaking)
