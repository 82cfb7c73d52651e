"""What is left of an undertaking with a snapshot that did not come to its end: completed or taken back.

Whoever begins one has written it down, and how far it is before each step that cannot be repeated. Everything that is
done here can be done again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import attrs

from hvcore import (
    Deadline,
    DeadlineExceeded,
    Disk,
    InstanceState,
    NotRunning,
    OperationFailed,
    OutcomeUnknown,
    RecordError,
    RecoveredInstance,
)
from hvcore_kvm import process
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.lifecycle import Control
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.observation import Observed, observe
from hvcore_kvm.snapshots import live_images, still_image
from hvcore_kvm.snapshots.overlay_settling import LiveOverlays, StillOverlays
from hvcore_kvm.snapshots.record import BEFORE, Shelf, Undertaking

_STANDING = ("paused", "prelaunch")


def settle(
    directory: InstanceDirectory, control: Control, deadline: Deadline, *, undo: bool = False
) -> RecoveredInstance | None:
    """Complete or take back what was begun with a snapshot; ``None`` when nothing was.

    Args:
        directory: the instance's directory. The caller holds its lock.
        control: what changes the instance.
        deadline: by when to be done.
        undo: take back also what could be completed: its operation has failed.

    Raises:
        OperationFailed: it cannot be done; it stays written down.
        OutcomeUnknown: QEMU does not answer; the same.
    """
    shelf = Shelf(directory)
    undertaking = shelf.undertaking
    if undertaking is None:
        return None
    seen = observe(directory) if directory.exists else None
    if seen is not None and seen.unfinished and undertaking.operation == "revert":
        # It was to be started as what it was, and that start has not been completed.
        control.clear_leftovers(deadline)
        seen = None
        if undertaking.phase == "loaded":
            undertaking = attrs.evolve(undertaking, phase="kept")
    completed = None
    live, still = (LiveOverlays, StillOverlays) if undertaking.snapshot.external else (_Live, _Still)
    if seen is not None and seen.alive:
        try:
            completed = live(shelf, undertaking, undo).settle(directory, seen, deadline)
        except (NotRunning, DeadlineExceeded, OutcomeUnknown):
            if seen.process is not None and not process.ends(seen.process.identity):
                raise
    if completed is None:
        completed = still(shelf, undertaking, undo).settle(deadline)
    shelf.end()
    operation, name = f"{undertaking.operation}_snapshot", undertaking.snapshot.name
    return RecoveredInstance(
        name=directory.name,
        operation=operation,
        outcome="completed" if completed else "undone",
        detail=f"snapshot {name}",
    )


@attrs.frozen
class _Live:
    """Settles with QEMU."""

    shelf: Shelf
    undertaking: Undertaking
    undo: bool

    def settle(self, directory: InstanceDirectory, seen: Observed, deadline: Deadline) -> bool:
        if seen.record is None:
            raise RecordError("there is no record of what it runs with", hint="stop it", instance=directory.name)
        with Monitor.connected(directory, deadline, seen.process) as monitor:
            live_images.settle_job(monitor)
            images = live_images.live_images(monitor, seen.record.instance)
            if self.undertaking.operation == "revert":
                return self._revert(monitor, images)
            wanted = {disk.uuid for disk in writable(self.undertaking)}
            mine = tuple(image for image in images if image.uuid in wanted)
            if self.undertaking.operation == "create":
                return self._create(monitor, mine)
            return self._delete(monitor, mine)

    def _create(self, monitor: Monitor, images: Sequence[live_images.LiveImage]) -> bool:
        snapshot = self.undertaking.snapshot
        sizes = [image.tags.get(snapshot.name) for image in images]
        if is_whole(sizes, memory=snapshot.memory) and not self.undo:
            self.shelf.add(snapshot)
            return True
        self._forget(monitor, images, snapshot.name)
        self.shelf.remove(snapshot.name)
        return False

    def _delete(self, monitor: Monitor, images: Sequence[live_images.LiveImage]) -> bool:
        if self.undo:
            return False
        self._forget(monitor, images, self.undertaking.snapshot.name)
        # Of disks that it had then and has no more.
        there = {image.uuid for image in images}
        gone = [disk.path for disk in writable(self.undertaking) if disk.uuid not in there and disk.path is not None]
        for path in gone:
            if os.path.exists(path):
                still_image.delete(path, self.undertaking.snapshot.name, monitor.deadline)
        self.shelf.remove(self.undertaking.snapshot.name)
        return True

    def _revert(self, monitor: Monitor, images: Sequence[live_images.LiveImage]) -> bool:
        loaded = self.undertaking.phase == "loaded"
        runs = self.undertaking.snapshot.state is InstanceState.RUNNING if loaded else self.undertaking.ran
        if self.undertaking.phase == "kept":
            live_images.load(monitor, images, BEFORE)
            # From here on the guest may run: what it then does must not be lost by loading again.
            self.shelf.begin(attrs.evolve(self.undertaking, phase="begun"))
        if runs and monitor.run_state() in _STANDING:
            monitor.execute("cont")
        self._forget(monitor, images, BEFORE)
        return loaded

    def _forget(self, monitor: Monitor, images: Sequence[live_images.LiveImage], tag: str) -> None:
        having = [image for image in images if tag in image.tags]
        if having:
            live_images.delete(monitor, having, tag)


@attrs.frozen
class _Still:
    """Settles with the images alone: no QEMU has them open."""

    shelf: Shelf
    undertaking: Undertaking
    undo: bool

    def settle(self, deadline: Deadline) -> bool:
        snapshot = self.undertaking.snapshot
        paths = [disk.path for disk in writable(self.undertaking) if disk.path is not None]
        if self.undertaking.operation == "create":
            sizes = [still_image.tags_of(path, deadline).get(snapshot.name) for path in paths]
            if is_whole(sizes, memory=snapshot.memory) and not self.undo:
                self.shelf.add(snapshot)
                return True
            self._forget(paths, snapshot.name, deadline)
            self.shelf.remove(snapshot.name)
            return False
        if self.undertaking.operation == "delete":
            if self.undo:
                return False
            self._forget(paths, snapshot.name, deadline)
            self.shelf.remove(snapshot.name)
            return True
        if self.undertaking.phase == "kept":
            for path in paths:
                if BEFORE in still_image.tags_of(path, deadline):
                    still_image.apply(path, BEFORE, deadline)
            self.shelf.begin(attrs.evolve(self.undertaking, phase="begun"))
        self._forget(paths, BEFORE, deadline)
        return self.undertaking.phase == "loaded"

    def _forget(self, paths: Sequence[str], tag: str, deadline: Deadline) -> None:
        problems = []
        for path in filter(os.path.exists, paths):
            try:
                still_image.delete(path, tag, deadline)
            except OperationFailed as error:
                problems.append(error)
        if problems:
            raise problems[0]


def writable(undertaking: Undertaking) -> tuple[Disk, ...]:
    """The disks that the snapshot of an undertaking is of."""
    return tuple(disk for disk in undertaking.snapshot.instance.disks if not disk.read_only)


def is_whole(sizes: Sequence[int | None], *, memory: bool) -> bool:
    """Whether a snapshot is in all images, and memory is in one of them if it should be.

    Args:
        sizes: the size of the memory in each image's snapshot, ``None`` where there is no snapshot.
        memory: memory should be in it.
    """
    return bool(sizes) and None not in sizes and (not memory or any(sizes))
