"""Writes of modelled guests to their disks, and what is kept track of: checkpoints, and targets that are full."""

from __future__ import annotations

import os
from collections.abc import Iterable

import attrs

from hvcore import InstanceState
from hvcore_fake.checkpoint import KeptCheckpoints, Tracked
from hvcore_fake.images import opened_path, touched, write_disk
from hvcore_fake.moving import Moving
from hvcore_fake.processes import checkpoints_key
from hvcore_fake.record import Process

_FULL = "data/full.json"

NEXT = ""
"""The name of the checkpoint of a backup that is not complete."""


@attrs.frozen(kw_only=True)
class FullDirectories:
    """Directories in which there is no room."""

    paths: tuple[str, ...] = ()


class Tracking(Moving):
    """Processes whose guests write to their disks."""

    # What tests make happen

    def guest_writes(self, name: str, ident: str, offset: int, data: bytes) -> bool:
        """The guest writes to a disk; says whether that succeeded."""
        with self.store.locked():
            process = self._living(name)
            backend = next((each for each in process.backends if each.ident == ident), None)
            if process.state is not InstanceState.RUNNING or backend is None or process.device(ident) is None:
                return False
            try:
                path = opened_path(backend.source, backend.identity)
                write_disk(path, backend.format, offset, data, backend.key)
            except (OSError, ValueError):
                return False
            numbers = touched(offset, len(data))
            self._write(attrs.evolve(process, checkpoints=tuple(_written(process.checkpoints, ident, numbers))))
            return True

    def fill(self, directory: str) -> None:
        """From now on there is no room in a directory for backups."""
        with self.store.locked():
            self.store.write(_FULL, FullDirectories(paths=(*self._full(), os.path.realpath(directory))))

    def empty(self, directory: str) -> None:
        """There is room again."""
        with self.store.locked():
            left = tuple(path for path in self._full() if path != os.path.realpath(directory))
            if left:
                self.store.write(_FULL, FullDirectories(paths=left))
            else:
                self.store.remove(_FULL)

    # What the driver sees and does. Without a process, nothing happens: so it is after a lie.

    def has_room(self, directory: str) -> bool:
        """There is room in a directory."""
        return os.path.realpath(directory) not in self._full()

    def track(self, name: str, idents: Iterable[str]) -> None:
        """Keep track of what is written to some disks from now on."""
        process = self.process(name)
        if process is not None:
            lasting = {backend.ident for backend in process.backends if backend.format == "qcow2"}
            added = (Tracked(name=NEXT, ident=ident, lasting=ident in lasting) for ident in idents)
            self._write(attrs.evolve(process, checkpoints=(*process.checkpoints, *added)))

    def begin_checkpoint(self, name: str, checkpoint: str) -> None:
        """Make a checkpoint of what has been kept track of for it."""
        process = self.process(name)
        if process is not None:
            begun = (attrs.evolve(c, name=checkpoint) if c.name == NEXT else c for c in process.checkpoints)
            self._write(attrs.evolve(process, checkpoints=tuple(begun)))

    def forget_checkpoint(self, name: str, checkpoint: str) -> None:
        """Stop keeping track for a checkpoint."""
        process = self.process(name)
        if process is not None and any(each.name == checkpoint for each in process.checkpoints):
            left = tuple(each for each in process.checkpoints if each.name != checkpoint)
            self._write(attrs.evolve(process, checkpoints=left))

    # What happens by itself

    def _opened(self, process: Process, *, incoming: bool) -> Process:
        """A process that begins, with the checkpoints of its images. Should it be killed, they are of no use."""
        if incoming:
            # Its images come with it, and have been written to elsewhere.
            self.store.remove(checkpoints_key(process.name))
        kept = self.store.read(checkpoints_key(process.name), KeptCheckpoints)
        if kept is None:
            return process
        there = tuple(each for each in kept.checkpoints if process.device(each.ident) is not None)
        lost = KeptCheckpoints(checkpoints=tuple(attrs.evolve(each, usable=False, blocks=()) for each in there))
        self.store.write(checkpoints_key(process.name), lost)
        return attrs.evolve(process, checkpoints=there)

    def _closed(self, process: Process) -> None:
        """A process ends in order: its images keep what they can."""
        lasting = tuple(each for each in process.checkpoints if each.lasting and each.name != NEXT)
        if lasting and process.state is not InstanceState.POSTMIGRATE:
            self.store.write(checkpoints_key(process.name), KeptCheckpoints(checkpoints=lasting))
        else:
            self.store.remove(checkpoints_key(process.name))
        self._remove(process)

    def _full(self) -> tuple[str, ...]:
        found = self.store.read(_FULL, FullDirectories)
        return () if found is None else found.paths


def _written(checkpoints: tuple[Tracked, ...], ident: str, numbers: range) -> Iterable[Tracked]:
    for each in checkpoints:
        if each.ident == ident and each.usable:
            yield attrs.evolve(each, blocks=tuple(sorted({*each.blocks, *numbers})))
        else:
            yield each
