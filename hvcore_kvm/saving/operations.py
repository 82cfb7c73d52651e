"""The operations of saving and restoring."""

from __future__ import annotations

import os
from collections.abc import Callable

import attrs

from hvcore import (
    AlreadyRunning,
    Deadline,
    Directories,
    Finding,
    FindingSet,
    Instance,
    InstanceState,
    InvalidParameters,
    Progress,
    SavedInstance,
    Transition,
    instance_lock,
    read_definition,
)
from hvcore_kvm.backup.recovery import refuse_backup
from hvcore_kvm.command_line import word
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.launch_plan import LaunchPlan
from hvcore_kvm.lifecycle import Control
from hvcore_kvm.observation import observe
from hvcore_kvm.runtime import Placement, RuntimeRecord
from hvcore_kvm.saving.restore import SavedState, read_for_restore
from hvcore_kvm.saving.save import save
from hvcore_kvm.saving.saved_file import Compression, SavedRecord

OnProgress = Callable[[Progress], object] | None


@attrs.frozen(kw_only=True)
class Saver:
    """Saves and restores the instances of one driver.

    Attributes:
        directories: the driver's.
        compression: how files are compressed.
        control: what changes an instance that is there.
        plan: plans a start.
        run: starts a plan.
        settle: puts in order what was left half done with a snapshot.
    """

    directories: Directories
    compression: Compression
    control: Callable[[InstanceDirectory], Control]
    plan: Callable[[Instance, InstanceDirectory, RuntimeRecord, Placement, Deadline], LaunchPlan]
    run: Callable[[LaunchPlan, InstanceDirectory, Deadline, SavedState], InstanceState | None]
    settle: Callable[[InstanceDirectory, Deadline], object]

    def save_instance(self, name: str, path: str, on_progress: OnProgress, deadline: Deadline) -> SavedInstance:
        """Save a live instance to a file, and end it."""
        with InstanceDirectory(self.directories, name) as directory:
            control = self.control(directory)
            self.settle(directory, deadline)
            seen = control.require_alive()
            if seen.unfinished:
                raise AlreadyRunning("its start was interrupted", hint="'hv recover' puts it in order")
            refuse_backup(directory)
            saved = save(directory, seen, path, self.compression, on_progress, deadline)
            # From here on the file counts: what cannot be ended now is ended by recover.
            try:
                control.end_saved(seen, deadline)
            except BaseException as error:
                error.add_note(f"it is saved all the same, to {path}; 'hv recover' with its name ends what is left")
                raise
            return saved

    def restore_instance(
        self, path: str, paused: bool, force: bool, on_progress: OnProgress, deadline: Deadline
    ) -> Transition:
        """Start an instance from its file."""
        with read_for_restore(path) as (_, file):
            name = file.header.record.instance.name
        locks = os.path.join(self.directories.state, "locks")
        with (
            instance_lock(locks, name, "restore_instance", deadline),
            # Read again: whoever had the lock may have restored it.
            read_for_restore(path) as (fd, file),
            InstanceDirectory(self.directories, name) as directory,
        ):
            record = file.header.record
            state = SavedState(fd, path, file, directory, on_progress)
            self._refuse_running(directory, name)
            self.settle(directory, deadline)
            state.verify(deadline)
            plan = self._plan(record, directory, state, force, deadline)
            still = paused or file.header.state != "running"
            plan = attrs.evolve(plan, paused=still, options=(*plan.options, word("incoming", "defer")))
            self.control(directory).clear_leftovers(deadline)
            before = self.run(plan, directory, deadline, state)
        after = InstanceState(file.header.state)
        if paused and after is InstanceState.RUNNING:
            after = InstanceState.PAUSED
        return Transition(name=name, before=before, after=after, changed=True, detail=f"restored from {path}")

    def _plan(
        self, record: SavedRecord, directory: InstanceDirectory, state: SavedState, force: bool, deadline: Deadline
    ) -> LaunchPlan:
        """The start it is going to be.

        Raises:
            InvalidParameters: everything that stands against it.
        """
        # What is in a file anybody can have written: it is checked as what a host application gives.
        instance, problems = read_definition(record.instance)
        findings: list[Finding] = list(problems)
        plan = None
        if not problems:
            running = RuntimeRecord(
                instance=instance,
                machine=record.machine,
                accelerator=record.accelerator,
                cpu_model=record.cpu_model,
                qemu_version=record.qemu_version,
                ports=record.ports,
            )
            kept = Placement(machine=record.machine, addresses=record.addresses)
            try:
                plan = self.plan(instance, directory, running, kept, deadline)
            except InvalidParameters as error:
                findings += error.findings
        findings += state.findings(plan, force=force)
        if findings or plan is None:
            raise InvalidParameters("it cannot be restored", FindingSet(findings), instance=instance.name or None)
        return plan

    def _refuse_running(self, directory: InstanceDirectory, name: str) -> None:
        seen = observe(directory) if directory.exists else None
        if seen is not None and seen.started and seen.process is not None:
            raise AlreadyRunning(
                f"it is running already, as process {seen.process.identity.pid}", instance=name, hint="stop it first"
            )
