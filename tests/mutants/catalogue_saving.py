"""Faulty drivers that save or restore wrongly, each a few lines on top of the fake one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import attrs
from breaking import breaks
from catalogue import unchanged

from hvcore import (
    AlreadyRunning,
    Deadline,
    HypervisorError,
    InstanceState,
    InvalidParameters,
    RecordError,
    SavedInstance,
    Transition,
    hookimpl,
)
from hvcore_fake import FakeDriver
from hvcore_fake.account import ending_key, snapshots_key
from hvcore_fake.record import Ending
from hvcore_fake.saving import OnProgress


@breaks("LC-25")
class SaveMakesNoFile(FakeDriver):
    @hookimpl
    def hv_save_instance(self, name: str, path: str, on_progress: OnProgress, deadline: Deadline) -> SavedInstance:
        saved = super().hv_save_instance(name, path, on_progress, deadline)
        os.unlink(path)
        return saved


@breaks("LC-26")
class RestoreIgnoresPaused(FakeDriver):
    @hookimpl
    def hv_restore_instance(
        self, path: str, paused: bool, force: bool, on_progress: OnProgress, deadline: Deadline
    ) -> Transition:
        return super().hv_restore_instance(path, False, force, on_progress, deadline)


@breaks("LC-26")
class RestoreAlwaysPauses(FakeDriver):
    @hookimpl
    def hv_restore_instance(
        self, path: str, paused: bool, force: bool, on_progress: OnProgress, deadline: Deadline
    ) -> Transition:
        return super().hv_restore_instance(path, True, force, on_progress, deadline)


@breaks("SA-01")
class SavedIsJustStopped(FakeDriver):
    @hookimpl
    def hv_save_instance(self, name: str, path: str, on_progress: OnProgress, deadline: Deadline) -> SavedInstance:
        saved = super().hv_save_instance(name, path, on_progress, deadline)
        ending = self._world.store.read(ending_key(name), Ending)
        assert ending is not None
        self._world.store.write(ending_key(name), attrs.evolve(ending, state=InstanceState.STOPPED))
        return saved


@breaks("SA-02")
class SaveOverwrites(FakeDriver):
    @hookimpl
    def hv_save_instance(self, name: str, path: str, on_progress: OnProgress, deadline: Deadline) -> SavedInstance:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return super().hv_save_instance(name, path, on_progress, deadline)


@breaks("SA-03")
class FailedSaveLeavesItsFile(FakeDriver):
    @hookimpl
    def hv_save_instance(self, name: str, path: str, on_progress: OnProgress, deadline: Deadline) -> SavedInstance:
        try:
            return super().hv_save_instance(name, path, on_progress, deadline)
        except HypervisorError:
            Path(path).touch()
            raise


@breaks("SA-04")
class DamageIsNoError(FakeDriver):
    @hookimpl
    def hv_restore_instance(
        self, path: str, paused: bool, force: bool, on_progress: OnProgress, deadline: Deadline
    ) -> Transition:
        try:
            return super().hv_restore_instance(path, paused, force, on_progress, deadline)
        except RecordError:
            return unchanged("web1", None)


@breaks("SA-05")
class RestoresTwice(FakeDriver):
    @hookimpl
    def hv_restore_instance(
        self, path: str, paused: bool, force: bool, on_progress: OnProgress, deadline: Deadline
    ) -> Transition:
        return super().hv_restore_instance(path, paused, True, on_progress, deadline)


@breaks("SA-06")
class RestoreOfTheAliveIsNoError(FakeDriver):
    @hookimpl
    def hv_restore_instance(
        self, path: str, paused: bool, force: bool, on_progress: OnProgress, deadline: Deadline
    ) -> Transition:
        try:
            return super().hv_restore_instance(path, paused, force, on_progress, deadline)
        except AlreadyRunning:
            return unchanged("web1", InstanceState.RUNNING)


@breaks("SA-07")
class FailedRestoreTakesTheFile(FakeDriver):
    @hookimpl
    def hv_restore_instance(
        self, path: str, paused: bool, force: bool, on_progress: OnProgress, deadline: Deadline
    ) -> Transition:
        try:
            return super().hv_restore_instance(path, paused, force, on_progress, deadline)
        except HypervisorError:
            os.unlink(path)
            raise


@breaks("SA-08")
class SaysNothing(FakeDriver):
    @hookimpl
    def hv_save_instance(self, name: str, path: str, on_progress: OnProgress, deadline: Deadline) -> SavedInstance:
        return super().hv_save_instance(name, path, None, deadline)


@breaks("SA-09")
class ForgetsSnapshotsWithTheProcess(FakeDriver):
    @hookimpl
    def hv_save_instance(self, name: str, path: str, on_progress: OnProgress, deadline: Deadline) -> SavedInstance:
        saved = super().hv_save_instance(name, path, on_progress, deadline)
        with self._world.store.locked():
            self._world.store.remove(snapshots_key(name))
        return saved


@breaks("SA-09")
class ASavedGuestDoesNotMindOtherDisks(FakeDriver):
    @hookimpl
    def hv_restore_instance(
        self, path: str, paused: bool, force: bool, on_progress: OnProgress, deadline: Deadline
    ) -> Transition:
        try:
            return super().hv_restore_instance(path, paused, force, on_progress, deadline)
        except InvalidParameters as error:
            if error.findings.codes != ("disk-changed",):
                raise
            return super().hv_restore_instance(path, paused, True, on_progress, deadline)
