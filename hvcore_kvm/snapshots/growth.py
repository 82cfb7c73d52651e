"""How far QEMU is with a snapshot."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from hvcore import Progress
from hvcore_kvm.snapshots.record import SnapshotRecord

OnProgress = Callable[[Progress], object] | None


class Growth:
    """Tells how far QEMU is, which does not say so itself: by how much the images have grown."""

    def __init__(self, wanted: SnapshotRecord, phase: str, on_progress: OnProgress) -> None:
        self._wanted = wanted
        self._phase = phase
        self._on_progress = on_progress
        self._before = self._size()

    def __call__(self) -> None:
        """Tell it."""
        say(self._on_progress, self._phase, max(0, self._size() - self._before), self._wanted)

    def _size(self) -> int:
        size = 0
        for disk in self._wanted.instance.disks:
            if disk.path is not None and not disk.read_only:
                with contextlib.suppress(OSError):
                    size += os.stat(disk.path).st_blocks * 512
        return size


def say(on_progress: OnProgress, phase: str, done: int, wanted: SnapshotRecord | None) -> None:
    """What there is to do is the memory; nobody can tell how much there is to do with disks."""
    total = wanted.instance.memory if wanted is not None and wanted.memory else 0
    if on_progress is not None:
        on_progress(Progress(phase=phase, done=min(done, total), total=total))
