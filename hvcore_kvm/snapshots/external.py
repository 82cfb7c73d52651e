"""External snapshots: what is written after them goes to overlays, and the images are left as they are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import attrs

from hvcore import (
    Deadline,
    Finding,
    FindingSet,
    HypervisorError,
    Instance,
    InstanceState,
    InvalidParameters,
    NotRunning,
    OperationFailed,
    OutcomeUnknown,
)
from hvcore_kvm.backup.recovery import refuse_backup
from hvcore_kvm.block_nodes import block_chains, node_names, node_stacks
from hvcore_kvm.definition import Definition, DiskDefinition
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.hardware.storage import layer_id, overlay_node
from hvcore_kvm.images import ImageFile, check_image, open_image
from hvcore_kvm.lifecycle import Control, plain_state
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.observation import Observed
from hvcore_kvm.snapshots import still_image
from hvcore_kvm.snapshots.bitmaps import (
    bitmap_finding,
    bitmap_names,
    check_live_bitmaps,
    check_still_bitmaps,
    node_rows,
)
from hvcore_kvm.snapshots.commit import (
    commit_below,
    commit_until_equal,
    in_chain,
    left_out,
    node_below,
    on_overlay,
    refuse_jobs,
)
from hvcore_kvm.snapshots.comparison import check_name
from hvcore_kvm.snapshots.growth import OnProgress, say
from hvcore_kvm.snapshots.layers import (
    check_bases,
    covered,
    lower_overlays,
    make_overlays,
    new_paths,
    top_files,
    with_overlays,
)
from hvcore_kvm.snapshots.record import Shelf, SnapshotRecord, Undertaking
from hvcore_kvm.snapshots.settling import settle
from hvcore_kvm.snapshots.standing import alive_of, last_state, record_of, refuse_state
from hvcore_kvm.snapshots.taking_back import UNDO_PATIENCE, TakenBack, in_time

Reading = Callable[[Instance], tuple[Definition, list[Finding]]]


@attrs.frozen(kw_only=True)
class ExternalSnapshots:
    """Takes, reverts and deletes the external snapshots of one instance. The caller holds its lock.

    Attributes:
        directory: the instance's. Nothing with its snapshots is left half done.
        control: what changes the instance.
        read: structures a definition.
    """

    directory: InstanceDirectory
    control: Control
    read: Reading

    # Taking one

    def create(
        self, instance: Instance | None, snapshot: str, on_progress: OnProgress, deadline: Deadline
    ) -> SnapshotRecord:
        """Take a snapshot; its record is written down."""
        seen = alive_of(self.directory)
        record = None if seen is None else record_of(seen)
        instance = instance if record is None else record.instance
        if instance is None:
            raise NotRunning("it is not running, and which disks it has is not known", hint="give its definition")
        definition, findings = self._definition(instance)
        findings += self._against(snapshot)
        if definition is not None:
            findings += check_bases(definition)
        if seen is None and definition is not None and not findings:
            findings += _check_files(definition) or check_still_bitmaps(definition, None, deadline)
        if findings or definition is None:
            raise InvalidParameters("no snapshot can be taken", FindingSet(findings))
        below = top_files(definition)
        wanted = SnapshotRecord(
            name=snapshot,
            created=time.time(),
            state=last_state(self.directory) or InstanceState.STOPPED,
            memory=False,
            instance=instance,
            record=record,
            overlays=new_paths(definition, snapshot),
            below={uuid: file.path for uuid, file in below.items()},
        )
        if seen is not None:
            wanted = self._take_live(seen, definition, wanted, below, on_progress, deadline)
        else:
            say(on_progress, "taking", 0, None)
            with self._taken_back(deadline):
                self._make(wanted, below, deadline)
                in_time(deadline)
        shelf = Shelf(self.directory)
        shelf.add(wanted)
        shelf.end()
        return wanted

    def _take_live(
        self,
        seen: Observed,
        definition: Definition,
        wanted: SnapshotRecord,
        below: Mapping[str, ImageFile],
        on_progress: OnProgress,
        deadline: Deadline,
    ) -> SnapshotRecord:
        refuse_backup(self.directory)
        with (
            self._taken_back(deadline),
            Monitor.connected(self.directory, deadline, seen.process) as monitor,
        ):
            state = monitor.run_state()
            refuse_state(state, "taken")
            refuse_jobs(monitor)
            findings = [*_check_nodes(monitor, definition)]
            if findings:
                raise InvalidParameters("no snapshot can be taken", FindingSet(findings))
            wanted = attrs.evolve(wanted, state=plain_state(state))
            self._make(wanted, below, deadline)
            say(on_progress, "taking", 0, None)
            actions, names = [], node_names(monitor)
            for disk in definition.disks:
                path = wanted.overlays.get(disk.disk.uuid or "")
                if path is not None:
                    layer = _add_layer(monitor, disk, path)
                    uuid = disk.disk.uuid or ""
                    node = node_below(names, uuid, disk.overlays[-1] if disk.overlays else None)
                    actions.append({"type": "blockdev-snapshot", "data": {"node": node, "overlay": layer}})
            in_time(deadline)
            monitor.execute("transaction", {"actions": actions})
        return wanted

    def _make(self, wanted: SnapshotRecord, below: Mapping[str, ImageFile], deadline: Deadline) -> None:
        in_time(deadline)
        shelf = Shelf(self.directory)
        undertaking = Undertaking(operation="create", snapshot=wanted)
        shelf.begin(undertaking)
        make_overlays(below, wanted.overlays)
        shelf.begin(attrs.evolve(undertaking, phase="made"))

    # Going back to one

    def revert(self, wanted: SnapshotRecord, on_progress: OnProgress, deadline: Deadline) -> None:
        """Leave behind what was written since; the instance is not alive."""
        findings = [*self._against_revert(wanted)]
        definition, problems = self._definition(wanted.instance)
        findings += problems
        if definition is not None and not findings:
            findings += _check_files(definition)
        if findings or definition is None:
            raise InvalidParameters("it cannot be reverted", FindingSet(findings))
        below = {
            disk.disk.uuid or "": (disk.file, *disk.layers)[-2]
            for disk in definition.disks
            if disk.disk.uuid in wanted.overlays
        }
        fresh = {uuid: path for uuid, path in new_paths(definition, wanted.name).items() if uuid in wanted.overlays}
        in_time(deadline)
        say(on_progress, "reverting", 0, None)
        shelf = Shelf(self.directory)
        shelf.begin(Undertaking(operation="revert", snapshot=wanted, fresh=fresh))
        with self._taken_back(deadline):
            make_overlays(below, fresh)
            in_time(deadline)
            shelf.add(attrs.evolve(wanted, overlays=fresh))
        self._complete("it has been reverted")

    # Giving one up

    def delete(self, wanted: SnapshotRecord, on_progress: OnProgress, deadline: Deadline) -> None:
        """Write the overlays into what is below them, and the guest goes on with that."""
        definition, findings = self._definition(wanted.instance)
        below = covered(Shelf(self.directory).snapshots, wanted.overlays)
        seen = alive_of(self.directory)
        if seen is None and definition is not None and not findings:
            top = wanted.overlays.keys() - below
            findings += _check_files(definition) or check_still_bitmaps(definition, top, deadline)
        elif seen is not None and below and below != wanted.overlays.keys():
            message = "it is the newest of some of its disks, and of others it is not"
            hint = "stop the instance, or delete those that came after it first"
            findings.append(Finding(code="snapshot-order", path="snapshot", message=message, hint=hint))
        if findings or definition is None:
            raise InvalidParameters("the snapshot cannot be deleted", FindingSet(findings))
        undertaking = Undertaking(operation="delete", snapshot=wanted)
        if seen is not None:
            record_of(seen)
            refuse_backup(self.directory)
            commit = self._commit_below if below else self._commit_live
            commit(seen, definition, undertaking, on_progress, deadline)
        else:
            self._commit_still(definition, undertaking, on_progress, deadline)
        self._complete("it is deleted")
        if any(one.name == wanted.name for one in Shelf(self.directory).snapshots):
            message = "QEMU went on with an overlay although all of it was written into the image below"
            raise OperationFailed(message, code="not-done", hint="try again")
        self.directory.remove_data_if_empty()

    def _commit_live(
        self,
        seen: Observed,
        definition: Definition,
        undertaking: Undertaking,
        on_progress: OnProgress,
        deadline: Deadline,
    ) -> None:
        shelf = Shelf(self.directory)
        overlays = undertaking.snapshot.overlays
        lower = lower_overlays(shelf.snapshots, overlays)
        with (
            self._taken_back(deadline),
            Monitor.connected(self.directory, deadline, seen.process) as monitor,
        ):
            refuse_state(monitor.run_state(), "deleted")
            refuse_jobs(monitor)
            _refuse_elsewhere(overlays.keys() - on_overlay(monitor, overlays))
            _refuse_apart(monitor, lower)
            findings = [*check_live_bitmaps(monitor, definition, overlays)]
            if findings:
                raise InvalidParameters("the snapshot cannot be deleted", FindingSet(findings))
            in_time(deadline)
            shelf.begin(undertaking)
            commit_until_equal(monitor, overlays, lower, on_progress)
            self._note_equal(undertaking)

    def _commit_below(
        self,
        seen: Observed,
        definition: Definition,
        undertaking: Undertaking,
        on_progress: OnProgress,
        deadline: Deadline,
    ) -> None:
        """The same for overlays upon which others lie: the guest writes to those, and its device stays on them."""
        del definition
        shelf, overlays = Shelf(self.directory), undertaking.snapshot.overlays
        lower = lower_overlays(shelf.snapshots, overlays)
        with (
            self._taken_back(deadline),
            Monitor.connected(self.directory, deadline, seen.process) as monitor,
        ):
            refuse_state(monitor.run_state(), "deleted")
            refuse_jobs(monitor)
            there = in_chain(monitor, overlays)
            # Of a deletion that came to its end for some of the disks.
            done = left_out(monitor, overlays) if undertaking.snapshot.spoiled else set()
            _refuse_elsewhere(overlays.keys() - there - done)
            _refuse_apart(monitor, {uuid: lower[uuid] for uuid in there})
            in_time(deadline)
            shelf.begin(undertaking)
            commit_below(monitor, {uuid: overlays[uuid] for uuid in there}, lower, on_progress)
            self._note_equal(undertaking)

    def _commit_still(
        self, definition: Definition, undertaking: Undertaking, on_progress: OnProgress, deadline: Deadline
    ) -> None:
        in_time(deadline)
        say(on_progress, "committing", 0, None)
        Shelf(self.directory).begin(undertaking)
        with self._taken_back(deadline):
            for disk in definition.disks:
                overlay = undertaking.snapshot.overlays.get(disk.disk.uuid or "")
                if overlay is not None:
                    files = (disk.file, *disk.layers[: disk.overlays.index(overlay) + 1])
                    still_image.commit([(file.path, file.format) for file in files], deadline)
            in_time(deadline)
            self._note_equal(undertaking)

    def _note_equal(self, undertaking: Undertaking) -> None:
        """From here on what is below counts."""
        shelf = Shelf(self.directory)
        shelf.begin(attrs.evolve(undertaking, phase="equal"))
        shelf.remove(undertaking.snapshot.name)

    # Shared

    def _definition(self, instance: Instance) -> tuple[Definition | None, list[Finding]]:
        """A definition with the overlays there are; ``None`` when it has errors."""
        definition, findings = self.read(instance)
        if findings:
            return None, list(findings)
        return with_overlays(definition, self.directory)

    def _against(self, snapshot: str) -> list[Finding]:
        """What the other snapshots have against a new one."""
        known = Shelf(self.directory).snapshots
        findings = [*check_name(snapshot, known)]
        within = [one.name for one in known if not one.external]
        if within:
            message = f"it has snapshots within its images ({', '.join(within)}), which could not be reverted any more"
            findings.append(Finding(code="snapshot-kinds", path="external", message=message, hint="delete them first"))
        return findings

    def _against_newer(self, wanted: SnapshotRecord) -> list[Finding]:
        known = [one.name for one in Shelf(self.directory).snapshots]
        newer = known[known.index(wanted.name) + 1 :]
        if not newer:
            return []
        message = f"{', '.join(newer)} came after it, and lies upon it"
        hint = f"delete {'it' if len(newer) == 1 else 'them, the newest first'}; then it can be reverted"
        return [Finding(code="snapshot-order", path="snapshot", message=message, hint=hint)]

    def _against_revert(self, wanted: SnapshotRecord) -> Sequence[Finding]:
        findings = self._against_newer(wanted)
        if wanted.spoiled:
            message = "its deletion was begun: the images below are no longer what they were"
            hint = "delete it; the instance stays what it is"
            findings.append(Finding(code="snapshot-spoiled", path="snapshot", message=message, hint=hint))
        return findings

    def _taken_back(self, deadline: Deadline) -> TakenBack:
        return TakenBack(self.directory, self.control, deadline)

    def _complete(self, done: str) -> None:
        """Do what is left to do after the point from which there is no way back.

        Raises:
            OutcomeUnknown: it could not be done; recover does it.
        """
        try:
            settle(self.directory, self.control, Deadline.after(UNDO_PATIENCE))
        except HypervisorError as error:
            raise OutcomeUnknown(
                f"{done}, and that could not be completed: {error.message}",
                hint="'hv recover' completes it",
            ) from error


def _refuse_elsewhere(elsewhere: Collection[str]) -> None:
    """Refuse what is to be done with overlays that QEMU does not use.

    Raises:
        InvalidParameters: there are disks of which it uses others.
    """
    if elsewhere:
        message = f"QEMU does not use the overlay of disk {', '.join(sorted(elsewhere))}"
        finding = Finding(code="no-snapshots", path="snapshot", message=message, hint="stop the instance first")
        raise InvalidParameters("the snapshot cannot be deleted", FindingSet([finding]))


def _refuse_apart(monitor: Monitor, lower: Mapping[str, str | None]) -> None:
    """Refuse to write into images that QEMU has left out: a deletion below came to its end for some disks only.

    Raises:
        InvalidParameters: there are such disks.
    """
    names, chains = node_names(monitor), block_chains(monitor)
    apart = sorted(
        uuid
        for uuid, path in lower.items()
        if node_below(names, uuid, path) not in chains.get(device_id("disk", uuid), ())
    )
    if apart:
        message = f"what lies below it is half deleted, and already left out of disk {', '.join(apart)}"
        hint = "delete the snapshot below it first, or stop the instance"
        finding = Finding(code="snapshot-order", path="snapshot", message=message, hint=hint)
        raise InvalidParameters("the snapshot cannot be deleted", FindingSet([finding]))


def _check_files(definition: Definition) -> list[Finding]:
    """What stands against using the images of an instance that is not alive."""
    return [
        finding
        for disk in definition.disks
        if not disk.disk.read_only
        for file in (disk.file, *disk.layers)
        for finding in check_image(file)[1]
    ]


def _check_nodes(monitor: Monitor, definition: Definition) -> Iterator[Finding]:
    """What stands against laying an overlay upon the nodes that QEMU has."""
    rows, stacks = node_rows(monitor), node_stacks(monitor)
    for disk in definition.disks:
        if disk.disk.read_only:
            continue
        uuid = disk.disk.uuid or ""
        stack = stacks.get(device_id("disk", uuid), ())
        node = node_below(rows, uuid, disk.overlays[-1] if disk.overlays else None)
        if node not in stack:
            message = f"QEMU uses {' upon '.join(stack) or 'nothing'} for it, and should use {node}"
            yield Finding(code="no-snapshots", path=disk.origin, message=message, hint="restart the instance")
        elif names := bitmap_names(rows.get(node, {})):
            yield bitmap_finding(disk, names)


def _add_layer(monitor: Monitor, disk: DiskDefinition, path: str) -> str:
    """Give QEMU an overlay, upon nothing yet; returns the name of its node."""
    layer = layer_id(disk.disk.uuid or "", path)
    fd = open_image(attrs.evolve(disk.file, path=path, format="qcow2"))
    try:
        added = monitor.execute("add-fd", {"opaque": layer}, (fd,))
    finally:
        os.close(fd)
    monitor.execute("blockdev-add", overlay_node(disk, path, f"/dev/fdset/{added['fdset-id']}", None))
    return layer
