"""The operations of snapshots."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import attrs

from hvcore import (
    Deadline,
    DeadlineExceeded,
    Directories,
    Finding,
    FindingSet,
    HypervisorError,
    Instance,
    InstanceState,
    InvalidParameters,
    NotRunning,
    OutcomeUnknown,
    RecordError,
    RecoveredInstance,
    Snapshot,
    SnapshotListing,
    Transition,
    WrongState,
)
from hvcore_kvm.definition import Definition
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.images import check_image
from hvcore_kvm.launch import SavedGuest
from hvcore_kvm.launch_plan import LaunchPlan
from hvcore_kvm.lifecycle import Control, plain_state
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.observation import Observed
from hvcore_kvm.runtime import Placement, RuntimeRecord
from hvcore_kvm.saving.saved_file import host_cpu
from hvcore_kvm.snapshots import live_images, still_image
from hvcore_kvm.snapshots.comparison import (
    check_disks,
    check_kinds,
    check_live,
    check_loadable,
    check_name,
    differences,
    has_bitmaps,
    missing,
)
from hvcore_kvm.snapshots.external import ExternalSnapshots
from hvcore_kvm.snapshots.growth import Growth, OnProgress, say
from hvcore_kvm.snapshots.loading import SnapshotGuest, note_loaded
from hvcore_kvm.snapshots.record import BEFORE, Shelf, SnapshotRecord, Undertaking
from hvcore_kvm.snapshots.settling import settle, writable
from hvcore_kvm.snapshots.standing import (
    addresses_of,
    alive_of,
    last_state,
    record_of,
    refuse_blocked,
    refuse_state,
)
from hvcore_kvm.snapshots.taking_back import UNDO_PATIENCE, TakenBack, in_time


@attrs.frozen(kw_only=True)
class Snapshotter:
    """Takes, reverts and deletes the snapshots of the instances of one driver.

    Attributes:
        directories: the driver's.
        control: what changes an instance that is there.
        read: structures a definition.
        plan: plans a start as what an instance was.
        run: starts a plan.
    """

    directories: Directories
    control: Callable[[InstanceDirectory], Control]
    read: Callable[[Instance], tuple[Definition, list[Finding]]]
    plan: Callable[[Instance, InstanceDirectory, RuntimeRecord, Placement, Deadline], LaunchPlan]
    run: Callable[[LaunchPlan, InstanceDirectory, Deadline, SavedGuest], InstanceState | None]

    def settle(self, directory: InstanceDirectory, deadline: Deadline) -> RecoveredInstance | None:
        """Complete or take back what a killed host application has begun with a snapshot of an instance."""
        if not Shelf(directory).interrupted:
            return None
        return settle(directory, self.control(directory), deadline)

    def listing(self, name: str) -> SnapshotListing:
        """All snapshots of an instance."""
        with InstanceDirectory(self.directories, name) as directory:
            return SnapshotListing(snapshots=tuple(one.public() for one in Shelf(directory).snapshots))

    # Taking one

    def create(
        self,
        name: str,
        instance: Instance | None,
        snapshot: str,
        memory: bool | None,
        external: bool,
        on_progress: OnProgress,
        deadline: Deadline,
    ) -> Snapshot:
        """Take a snapshot."""
        with InstanceDirectory(self.directories, name) as directory:
            self.settle(directory, deadline)
            if external:
                return self._external(directory).create(instance, snapshot, on_progress, deadline).public()
            shelf = Shelf(directory)
            findings = [*check_name(snapshot, shelf.snapshots), *check_kinds(shelf.snapshots)]
            seen = alive_of(directory)
            if seen is not None:
                record = record_of(seen)
                wanted = _of_running(directory, record, snapshot, memory is not False)
                definition, problems = self.read(record.instance)
                findings += [*problems, *check_disks(definition, memory=wanted.memory)]
                wanted = self._take_live(directory, seen, wanted, findings, on_progress, deadline)
            else:
                wanted = self._of_still(directory, instance, snapshot, memory, findings)
                self._take_still(directory, wanted, on_progress, deadline)
            shelf.add(wanted)
            shelf.end()
            return wanted.public()

    def _take_live(
        self,
        directory: InstanceDirectory,
        seen: Observed,
        wanted: SnapshotRecord,
        findings: Sequence[Finding],
        on_progress: OnProgress,
        deadline: Deadline,
    ) -> SnapshotRecord:
        shelf = Shelf(directory)
        with (
            self._taken_back(directory, deadline),
            Monitor.connected(directory, deadline, seen.process) as monitor,
        ):
            state = monitor.run_state()
            refuse_state(state, "taken")
            images = live_images.live_images(monitor, wanted.instance)
            found = [*findings, *(check_live(wanted.instance, images, wanted.name) if not findings else ())]
            if found:
                raise InvalidParameters("no snapshot can be taken", FindingSet(found))
            if wanted.memory:
                refuse_blocked(monitor)
            in_time(deadline)
            wanted = attrs.evolve(wanted, state=plain_state(state))
            shelf.begin(Undertaking(operation="create", snapshot=wanted))
            say(on_progress, "saving", 0, wanted)
            if wanted.memory:
                live_images.save(monitor, images, wanted.name, Growth(wanted, "saving", on_progress))
            else:
                live_images.take_of_disks(monitor, images, wanted.name)
            in_time(deadline)
            say(on_progress, "saving", wanted.instance.memory, wanted)
        return wanted

    def _of_still(
        self,
        directory: InstanceDirectory,
        instance: Instance | None,
        snapshot: str,
        memory: bool | None,
        findings: list[Finding],
    ) -> SnapshotRecord:
        """What a snapshot of an instance that is not alive is to be."""
        if memory:
            raise NotRunning("it is not running, and has no memory to keep", hint="start it, or keep its disks only")
        if instance is None:
            raise NotRunning("it is not running, and which disks it has is not known", hint="give its definition")
        definition, problems = self.read(instance)
        findings += problems
        if not problems:
            findings += check_disks(definition, memory=False)
            for disk in definition.disks:
                if not disk.disk.read_only and disk.disk.path is not None and disk.disk.format == "qcow2":
                    findings += check_image(disk.file)[1]
                    if disk.parameters.encryption:
                        message = "an encrypted image can only be kept while the instance runs"
                        findings.append(Finding(code="encrypted", path=f"{disk.origin}.params", message=message))
        if findings:
            raise InvalidParameters("no snapshot can be taken", FindingSet(findings))
        return SnapshotRecord(
            name=snapshot,
            created=time.time(),
            state=last_state(directory) or InstanceState.STOPPED,
            memory=False,
            instance=instance,
        )

    def _take_still(
        self, directory: InstanceDirectory, wanted: SnapshotRecord, on_progress: OnProgress, deadline: Deadline
    ) -> None:
        undertaking = Undertaking(operation="create", snapshot=wanted)
        paths = _paths(undertaking)
        taken = [path for path in paths if wanted.name in still_image.tags_of(path, deadline)]
        if taken:
            message = f"there is a snapshot {wanted.name} already in {', '.join(taken)}"
            finding = Finding(code="snapshot-exists", path="snapshot", message=message, hint="name it otherwise")
            raise InvalidParameters("no snapshot can be taken", FindingSet([finding]))
        in_time(deadline)
        Shelf(directory).begin(undertaking)
        with self._taken_back(directory, deadline):
            say(on_progress, "taking", 0, None)
            for path in paths:
                still_image.take(path, wanted.name, deadline)
            in_time(deadline)

    # Going back to one

    def revert(self, name: str, snapshot: str, on_progress: OnProgress, deadline: Deadline) -> Transition:
        """Go back to a snapshot."""
        with InstanceDirectory(self.directories, name) as directory:
            self.settle(directory, deadline)
            wanted = Shelf(directory).find(snapshot)
            seen = alive_of(directory)
            if seen is not None and not wanted.memory:
                raise WrongState("a snapshot without memory cannot be reverted while it is alive", hint="stop it first")
            before: InstanceState | None = last_state(directory)
            after: InstanceState | None
            if seen is not None:
                before = self.control(directory).state_of(seen)
                after = self._revert_live(directory, seen, wanted, on_progress, deadline)
            elif wanted.memory:
                after = self._revert_started(directory, wanted, on_progress, deadline)
            elif wanted.external:
                self._external(directory).revert(wanted, on_progress, deadline)
                after = before
            else:
                self._revert_still(directory, wanted, on_progress, deadline)
                after = before
            detail = f"as it was in snapshot {snapshot}"
            return Transition(name=name, before=before, after=after, changed=True, detail=detail)

    def _revert_live(
        self,
        directory: InstanceDirectory,
        seen: Observed,
        wanted: SnapshotRecord,
        on_progress: OnProgress,
        deadline: Deadline,
    ) -> InstanceState:
        shelf = Shelf(directory)
        record = record_of(seen)
        findings = [*differences(wanted, record, addresses_of(directory))]
        runs = wanted.state is InstanceState.RUNNING
        with (
            self._taken_back(directory, deadline),
            Monitor.connected(directory, deadline, seen.process) as monitor,
        ):
            state = monitor.run_state()
            refuse_state(state, "reverted")
            images = live_images.live_images(monitor, record.instance)
            findings += check_loadable(wanted, images)
            if findings:
                raise InvalidParameters("it cannot be reverted", FindingSet(findings))
            refuse_blocked(monitor)
            in_time(deadline)
            undertaking = Undertaking(operation="revert", snapshot=wanted, ran=state == "running")
            shelf.begin(undertaking)
            say(on_progress, "keeping", 0, wanted)
            if undertaking.ran:
                monitor.execute("stop")
            live_images.save(monitor, images, BEFORE, Growth(wanted, "keeping", on_progress))
            undertaking = attrs.evolve(undertaking, phase="kept")
            shelf.begin(undertaking)
            say(on_progress, "loading", 0, wanted)
            live_images.load(monitor, images, wanted.name)
            in_time(deadline)
            say(on_progress, "loading", wanted.instance.memory, wanted)
            if state == "prelaunch" and not runs:
                note_loaded(directory)
            shelf.begin(attrs.evolve(undertaking, phase="loaded"))
        self._tidy(directory)
        return InstanceState.RUNNING if runs else InstanceState.PAUSED

    def _revert_started(
        self, directory: InstanceDirectory, wanted: SnapshotRecord, on_progress: OnProgress, deadline: Deadline
    ) -> InstanceState:
        control = self.control(directory)
        record = wanted.record
        if record is None:
            raise RecordError("there is no record of what it ran with", hint="delete the snapshot")
        kept = Placement(machine=record.machine, addresses=wanted.addresses)
        plan: LaunchPlan | None = None
        findings: list[Finding] = []
        try:
            plan = self.plan(wanted.instance, directory, record, kept, deadline)
        except InvalidParameters as error:
            findings += error.findings
        if record.cpu_model in ("host", "max") and record.accelerator == "kvm" and wanted.host_cpu != host_cpu():
            message = f"it was taken with all features of {wanted.host_cpu}, this host has {host_cpu()}"
            findings.append(Finding(code="cpu-differs", path="params.cpu_model", message=message))
        if plan is not None and plan.decisions.choice.accelerator.value != record.accelerator:
            here = plan.decisions.choice.accelerator.value
            message = f"it was taken under {record.accelerator}, here it would run under {here}"
            findings.append(Finding(code="accelerator-differs", path="params.accel", message=message))
        findings += self._unusable(wanted, findings, deadline)
        if findings or plan is None:
            raise InvalidParameters("it cannot be reverted", FindingSet(findings))
        control.clear_leftovers(deadline)
        runs = wanted.state is InstanceState.RUNNING
        undertaking = self._keep_still(directory, wanted, on_progress, deadline)
        with self._taken_back(directory, deadline):
            say(on_progress, "loading", 0, wanted)
            guest = SnapshotGuest(directory, undertaking)
            self.run(attrs.evolve(plan, paused=not runs), directory, deadline, guest)
        say(on_progress, "loading", wanted.instance.memory, wanted)
        self._tidy(directory)
        return wanted.state

    def _revert_still(
        self, directory: InstanceDirectory, wanted: SnapshotRecord, on_progress: OnProgress, deadline: Deadline
    ) -> None:
        definition, findings = self.read(wanted.instance)
        for disk in definition.disks if not findings else ():
            if not disk.disk.read_only:
                findings += check_image(disk.file)[1]
        findings += self._unusable(wanted, findings, deadline)
        if findings:
            raise InvalidParameters("it cannot be reverted", FindingSet(findings))
        undertaking = self._keep_still(directory, wanted, on_progress, deadline)
        with self._taken_back(directory, deadline):
            for path in _paths(undertaking):
                still_image.apply(path, wanted.name, deadline)
            in_time(deadline)
            Shelf(directory).begin(attrs.evolve(undertaking, phase="loaded"))
        self._tidy(directory)

    def _keep_still(
        self, directory: InstanceDirectory, wanted: SnapshotRecord, on_progress: OnProgress, deadline: Deadline
    ) -> Undertaking:
        """Keep what the disks are, to come back to it."""
        in_time(deadline)
        undertaking = Undertaking(operation="revert", snapshot=wanted)
        Shelf(directory).begin(undertaking)
        with self._taken_back(directory, deadline):
            say(on_progress, "keeping", 0, None)
            for path in _paths(undertaking):
                still_image.take(path, BEFORE, deadline)
            undertaking = attrs.evolve(undertaking, phase="kept")
            Shelf(directory).begin(undertaking)
        return undertaking

    def _unusable(self, wanted: SnapshotRecord, known: Sequence[Finding], deadline: Deadline) -> list[Finding]:
        """The images that cannot become what they were; what is wrong with an image already is not said again."""
        found = []
        wrong = {finding.path for finding in known}
        for index, disk in enumerate(wanted.instance.disks):
            if disk.read_only or disk.path is None or f"disks[{index}].path" in wrong:
                continue
            image = still_image.look(disk.path, deadline)
            if wanted.name not in image.tags:
                found.append(missing(index, disk.path, wanted.name))
            if image.bitmaps:
                hint = "start it and delete its checkpoints; bitmaps of others go with qemu-img bitmap --remove"
                found.append(has_bitmaps(index, image.bitmaps, hint))
        return found

    # Giving one up

    def delete(self, name: str, snapshot: str, on_progress: OnProgress, deadline: Deadline) -> Snapshot:
        """Give up a snapshot."""
        with InstanceDirectory(self.directories, name) as directory:
            self.settle(directory, deadline)
            shelf = Shelf(directory)
            wanted = shelf.find(snapshot)
            if wanted.external:
                self._external(directory).delete(wanted, on_progress, deadline)
                return wanted.public()
            seen = alive_of(directory)
            if seen is not None:
                record_of(seen)
            in_time(deadline)
            say(on_progress, "deleting", 0, None)
            shelf.begin(Undertaking(operation="delete", snapshot=wanted))
            try:
                settle(directory, self.control(directory), deadline)
            except DeadlineExceeded as error:
                raise OutcomeUnknown(
                    f"it may be deleted in part: {error.message}", hint="'hv recover' does it"
                ) from error
            except HypervisorError as error:
                if not isinstance(error, OutcomeUnknown):
                    # It is kept as one that can be deleted once more.
                    shelf.end()
                raise
            directory.remove_data_if_empty()
            return wanted.public()

    # Shared

    def _external(self, directory: InstanceDirectory) -> ExternalSnapshots:
        return ExternalSnapshots(directory=directory, control=self.control(directory), read=self.read)

    def _taken_back(self, directory: InstanceDirectory, deadline: Deadline) -> TakenBack:
        return TakenBack(directory, self.control(directory), deadline)

    def _tidy(self, directory: InstanceDirectory) -> None:
        """After a revert: let the guest run if it did, and forget what it was before. Whatever is left is for recover.

        Raises:
            OutcomeUnknown: it has been reverted, and does not run yet.
        """
        try:
            settle(directory, self.control(directory), Deadline.after(UNDO_PATIENCE))
        except HypervisorError as error:
            raise OutcomeUnknown(
                f"it has been reverted, and that could not be completed: {error.message}",
                hint="'hv recover' completes it",
            ) from error


def _of_running(directory: InstanceDirectory, record: RuntimeRecord, snapshot: str, memory: bool) -> SnapshotRecord:
    return SnapshotRecord(
        name=snapshot,
        created=time.time(),
        state=InstanceState.RUNNING,
        memory=memory,
        instance=record.instance,
        record=record,
        addresses=addresses_of(directory),
        host_cpu=host_cpu(),
    )


def _paths(undertaking: Undertaking) -> list[str]:
    return [disk.path for disk in writable(undertaking) if disk.path is not None]
