"""What the hooks of the driver do. Imported when the first of them is called, so that loading a driver stays quick."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from hvcore import (
    AlreadyRunning,
    BalloonResult,
    Deadline,
    Device,
    Disk,
    DriverContext,
    Finding,
    FindingSet,
    HotplugResult,
    HotplugSupport,
    HypervisorError,
    Instance,
    InstanceInfo,
    InstanceInfos,
    InstanceNotFound,
    InstanceState,
    InstanceStats,
    InvalidParameters,
    LiveParameters,
    Medium,
    Nic,
    NotRunning,
    Plan,
    Processors,
    RecordError,
    RecoveredInstance,
    Recovery,
    ResizeResult,
    Transition,
    WrongState,
    with_device,
    with_identities,
)
from hvcore_kvm import accelerator, definition, listing, observation, placement, verification
from hvcore_kvm.advice import assess
from hvcore_kvm.backup.recovery import recover_backup, refuse_backup
from hvcore_kvm.balloon import balloon_memory
from hvcore_kvm.capabilities import QemuCapabilities, capabilities_of
from hvcore_kvm.changes import changes_of
from hvcore_kvm.confidential import encryption_bit
from hvcore_kvm.console_operations import ConsoleOperations
from hvcore_kvm.definition import host_architecture
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.families import Families, InterfaceEvent
from hvcore_kvm.firmware import find_firmware
from hvcore_kvm.hardware.builder import RNG_PLACE
from hvcore_kvm.hardware.devices import find_programs
from hvcore_kvm.host_checks import check_host
from hvcore_kvm.host_operations import HostOperations
from hvcore_kvm.hotplug import (
    PlannedDevice,
    Plugging,
    plan_of,
    plan_single,
    pluggable_kind,
    support_of,
)
from hvcore_kvm.images import Image
from hvcore_kvm.launch import Launch, SavedGuest
from hvcore_kvm.launch_plan import Decisions, LaunchPlan, plan_launch
from hvcore_kvm.lifecycle import Control, recover_migration, refuse_moving
from hvcore_kvm.parameters.confidential import AMD
from hvcore_kvm.release import lead_to, release
from hvcore_kvm.resize import resize_disk
from hvcore_kvm.runtime import LOADED, PLACEMENT, REBOOT, SCHEMA, Placement, RuntimeRecord
from hvcore_kvm.saving.operations import Saver
from hvcore_kvm.settings import KvmSettings
from hvcore_kvm.snapshots.layers import has_overlays, refuse_overlays, with_overlays
from hvcore_kvm.snapshots.operations import Snapshotter
from hvcore_kvm.statistics import instance_stats
from hvcore_kvm.support import check_support

if TYPE_CHECKING:
    from hvcore_kvm.backup.operations import BackupOperations
    from hvcore_kvm.migration.operations import MigrationOperations

_RESET_PATIENCE = 10.0
"""How long a guest that was reset may take to let go of devices."""

_CHANCES = 5
"""How often a start is planned anew when something of the plan is taken meanwhile."""

_LOG = logging.getLogger("hvcore_kvm")


class Operations:
    """The operations of one loaded driver.

    Args:
        context: name, directories and host.
        settings: the host application's settings, checked.
        families: the family plugins.
        hook: the hook relay, for observers.
    """

    def __init__(self, context: DriverContext, settings: KvmSettings, families: Families, hook: Any) -> None:
        self._context = context
        self._directories = context.directories
        self._settings = settings
        self._families = families
        self._hook = hook
        self._last_read: tuple[Instance, tuple[definition.Definition, list[Finding]]] | None = None

    @functools.cached_property
    def migration(self) -> MigrationOperations:
        """The operations of migration."""
        from hvcore_kvm.migration.operations import MigrationOperations, Workings

        return MigrationOperations(
            Workings(
                driver=self._context.name,
                start_timeout=self._settings.start_timeout,
                directory=self._directory,
                control=self._control,
                refuse_running=self._refuse_running,
                decide=functools.partial(self._decide, arriving=True),
                announce=self._announce,
                lead=functools.partial(lead_to, self._families),
            )
        )

    def check_parameter_syntax(self, instance: Instance) -> FindingSet:
        """Everything that needs no host."""
        return FindingSet(self._read(instance)[1])

    def validate_parameters(self, instance: Instance, deadline: Deadline) -> FindingSet:
        """Everything on this host."""
        try:
            with self._directory(instance.name) as directory:
                self._plan(instance, directory, False, deadline)
        except InvalidParameters as error:
            return error.findings
        return FindingSet()

    def assess_parameters(self, instance: Instance, deadline: Deadline) -> FindingSet:
        """What is legal but unwise."""
        parsed, _ = self._read(instance)
        return FindingSet(assess(parsed, self._capabilities(parsed, deadline)))

    # Life cycle

    def plan_start(self, instance: Instance, paused: bool, deadline: Deadline) -> Plan:
        """What a start would run."""
        with self._directory(instance.name) as directory:
            plan = self._plan(instance, directory, paused, deadline).public()
            running = observation.observe(directory) if directory.exists else None
            places = directory.read(PLACEMENT, Placement, schema=SCHEMA, data=True) if running is not None else None
        if running is None or not running.started or running.record is None:
            return plan
        changes = changes_of(self._families, running.record, self._read(instance)[0].instance, places)
        return attrs.evolve(plan, changes=changes)

    def start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        """Start it."""
        with self._directory(instance.name) as directory:
            self._refuse_running(directory)
            left = self._state(directory) if directory.exists else None
            self.snapshots.settle(directory, deadline)
            plan = self._plan(instance, directory, paused, deadline)
            self._control(directory).clear_leftovers(deadline)
            for chances in reversed(range(_CHANCES)):
                try:
                    before = self._run(plan, directory, deadline)
                    break
                except HypervisorError as error:
                    # What was planned with has just been taken by somebody else; nothing was started.
                    if not error.retryable or not chances or deadline.expired:
                        raise
                    plan = self._plan(instance, directory, paused, deadline)
        after = InstanceState.PRELAUNCH if paused else InstanceState.RUNNING
        return Transition(name=instance.name, before=left or before, after=after, changed=True, detail="started")

    def stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        """Stop it."""
        with self._directory(name) as directory:
            return self._control(directory).stop(
                force=force, grace=grace, retry=retry, escalate=escalate, deadline=deadline
            )

    def reboot_instance(
        self, name: str, instance: Instance | None, mode: str, grace: float, deadline: Deadline
    ) -> Transition:
        """Restart it."""
        with self._directory(name) as directory:
            control = self._control(directory)
            self.snapshots.settle(directory, deadline)
            if mode == "reset":
                done = control.reset(deadline)
                directory.remove(LOADED)
                # A guest that is reset lets go of what it was asked for.
                try:
                    self._settle(directory, deadline, _RESET_PATIENCE)
                except HypervisorError:
                    # It stays under way, for the next one who looks; the reset is done.
                    _LOG.warning("devices of %s could not be looked at after its reset", name, exc_info=True)
                return done
            seen = control.require_alive()
            refuse_moving(seen)
            new = instance or (seen.record.instance if seen.record else None)
            if new is None:
                raise NotRunning("there is no record to start it again from", hint="give its definition")
            # Everything that can be wrong with the new start is found before the old life ends.
            self._plan(new, directory, False, deadline)
            stopped = control.stop(
                force=mode == "hard", grace=grace, retry=False, escalate=False, deadline=deadline, reboot=new
            )
            try:
                self._run(self._plan(new, directory, False, deadline), directory, deadline)
            except HypervisorError:
                # The start was undone; nothing is left but the definition to start again.
                directory.remove_volatile()
                raise
        return Transition(
            name=name,
            before=stopped.before,
            after=InstanceState.RUNNING,
            changed=True,
            detail=f"{stopped.detail}; started again",
        )

    def pause_instance(self, name: str, deadline: Deadline) -> Transition:
        """Pause it."""
        with self._directory(name) as directory:
            self.snapshots.settle(directory, deadline)
            return self._control(directory).pause(deadline)

    def resume_instance(self, name: str, deadline: Deadline) -> Transition:
        """Resume it."""
        with self._directory(name) as directory:
            self.snapshots.settle(directory, deadline)
            resumed = self._control(directory).resume(deadline)
            directory.remove(LOADED)
            return resumed

    @property
    def saver(self) -> Saver:
        """What saves and restores."""
        return Saver(
            directories=self._directories,
            compression="zlib" if self._settings.save_compression == "zlib" else "none",
            control=self._control,
            plan=self._plan_again,
            run=self._run,
            settle=self.snapshots.settle,
        )

    @property
    def snapshots(self) -> Snapshotter:
        """What takes snapshots and goes back to them."""
        return Snapshotter(
            directories=self._directories,
            control=self._control,
            read=self._read,
            plan=self._plan_again,
            run=self._run,
        )

    def _plan_again(
        self,
        instance: Instance,
        directory: InstanceDirectory,
        record: RuntimeRecord,
        kept: Placement,
        deadline: Deadline,
    ) -> LaunchPlan:
        return self._plan(instance, directory, False, deadline, running=record, kept=kept)

    @functools.cached_property
    def backups(self) -> BackupOperations:
        """The operations of backups."""
        from hvcore_kvm.backup.operations import BackupOperations

        return BackupOperations(
            directory=self._directory,
            control=self._control,
            read=lambda instance: self._read(instance)[0],
            settle=self.snapshots.settle,
        )

    def cleanup_instance(self, name: str, deadline: Deadline) -> Transition:
        """Forget it."""
        with self._directory(name) as directory:
            try:
                self.snapshots.settle(directory, deadline)
            except HypervisorError:
                # Its images may have gone, and it can be forgotten all the same.
                _LOG.warning("what was begun with a snapshot of %s is not completed", name, exc_info=True)
            if has_overlays(directory):
                refuse_overlays(directory, "forgotten")
            return self._control(directory).cleanup(deadline)

    def recover(self, name: str, deadline: Deadline) -> Recovery:
        """Put in order what was left half done."""
        with self._directory(name) as directory:
            moved = recover_migration(directory, self._control(directory), deadline, self._families)
            if moved is not None:
                return Recovery(instances=(moved,))
            kept = self.snapshots.settle(directory, deadline)
            copied = recover_backup(directory, deadline)
            found, start = self._control(directory).recover(deadline)
            if start is not None:
                self._run(self._plan(start, directory, False, deadline), directory, deadline)
            rows = [row for row in (kept, copied, found) if row is not None]
            for result in self._settle(directory, deadline):
                if result.done:
                    detail = f"device {result.device}: {result.detail}"
                    rows.append(RecoveredInstance(name=name, operation="hotplug", outcome="completed", detail=detail))
        return Recovery(instances=tuple(rows))

    # Queries

    def get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        """One of them."""
        return observation.get_info(self._directories, name, deadline.sooner(self._settings.query_timeout))

    def get_all_instances_info(self, deadline: Deadline) -> InstanceInfos:
        """All of them, side by side."""
        names = [row.name for row in listing.list_instances(self._directories).instances]
        patience = deadline.sooner(self._settings.query_timeout)
        return InstanceInfos(instances=observation.get_infos(self._directories, names, patience))

    def get_instance_stats(self, name: str, deadline: Deadline) -> InstanceStats:
        """Counters of one of them."""
        with self._directory(name) as directory:
            if not directory.exists:
                observation.get_info(self._directories, name, deadline)
            seen = self._control(directory).require_alive()
            if seen.starter is not None:
                raise NotRunning(f"it is being started by process {seen.starter}", instance=name)
            parsed = definition.read(seen.record.instance, self._families)[0] if seen.record is not None else None
            return instance_stats(directory, seen, parsed, deadline.sooner(self._settings.query_timeout))

    def verify_instance(self, name: str, deadline: Deadline) -> FindingSet:
        """Where record and reality differ."""
        with self._directory(name) as directory:
            if not directory.exists:
                raise InstanceNotFound("it holds nothing on this host", instance=name)
            return FindingSet(verification.verify_running(directory, deadline))

    # Devices

    def hotplug_supported(self, name: str, deadline: Deadline) -> HotplugSupport:
        """Whether devices can be changed at all."""
        with self._directory(name) as directory:
            if not directory.exists:
                raise InstanceNotFound("it holds nothing on this host", instance=name)
            seen = observation.observe(directory)
            return support_of(seen)

    def verify_hotplug_support(self, name: str, action: str, device: Device, deadline: Deadline) -> HotplugSupport:
        """Whether one device can be changed."""
        with self._directory(name) as directory:
            if not directory.exists:
                raise InstanceNotFound("it holds nothing on this host", instance=name)
            seen = observation.observe(directory)
            general = support_of(seen)
            if not general.supported or seen.record is None:
                return general
            if not isinstance(device, Disk | Nic) and action != "modify":
                reason = "media, virtual CPUs and parameters are there already and can only be modified"
                return HotplugSupport(supported=False, reasons=(reason,))
            try:
                refuse_moving(seen)
                refuse_backup(directory)
                if isinstance(device, Disk | Nic) and action == "remove":
                    refuse_overlays(directory, "removed", device.uuid)
            except WrongState as error:
                return HotplugSupport(supported=False, reasons=(error.message,))
            if isinstance(device, Disk | Nic) and action == "add":
                device = self._identified(seen.record.instance, device)
            return self._plugging(directory, seen.record, deadline).verify(action, device, deadline)

    def hot_add_device(self, name: str, device: Device, deadline: Deadline) -> HotplugResult:
        """Add a device."""
        with self._directory(name) as directory:
            record = self._running_record(directory, deadline)
            known = self._identified(record.instance, pluggable_kind(device))
            return self._plugging(directory, record, deadline).add(known, deadline)

    def hot_del_device(self, name: str, device: str, force: bool, deadline: Deadline) -> HotplugResult:
        """Remove a device."""
        with self._directory(name) as directory:
            record = self._running_record(directory, deadline)
            refuse_overlays(directory, "removed", device.lower())
            return self._plugging(directory, record, deadline).remove(device.lower(), force, deadline)

    def hot_mod_device(self, name: str, device: Device, deadline: Deadline) -> HotplugResult:
        """Change a device."""
        with self._directory(name) as directory:
            record = self._running_record(directory, deadline)
            plugging = self._plugging(directory, record, deadline)
            if isinstance(device, Medium):
                return plugging.put_in(device, deadline)
            if isinstance(device, Processors):
                return plugging.count_processors(device, deadline)
            if isinstance(device, LiveParameters):
                return plugging.set_parameters(device, deadline)
            return plugging.modify(device, deadline)

    def resize_disk(self, name: str, device: str, size: int, deadline: Deadline) -> ResizeResult:
        """Grow a disk."""
        with self._directory(name) as directory:
            record = self._running_record(directory, deadline)
            return resize_disk(directory, record, str(device).lower(), size, deadline)

    def balloon_instance_memory(self, name: str, memory: int, deadline: Deadline) -> BalloonResult:
        """Give the guest less memory, or more again."""
        with self._directory(name) as directory:
            instance = self._running_record(directory, deadline).instance
            least = self._read(instance)[0].memory.memory_min
            return balloon_memory(directory, memory, least, instance.memory, deadline)

    def _settle(
        self, directory: InstanceDirectory, deadline: Deadline, patience: float = 0.0
    ) -> tuple[HotplugResult, ...]:
        """Complete what is under way with the devices of an instance that runs."""
        seen = observation.observe(directory) if directory.exists else None
        if seen is None or not seen.started or seen.record is None or not seen.changes.pending:
            return ()
        return self._plugging(directory, seen.record, deadline).settle(deadline, patience)

    def _running_record(self, directory: InstanceDirectory, deadline: Deadline) -> RuntimeRecord:
        self.snapshots.settle(directory, deadline)
        seen = self._control(directory).require_alive()
        if seen.record is None:
            raise RecordError("there is no record of its devices", hint="restart it", instance=directory.name)
        refuse_moving(seen)
        refuse_backup(directory)
        return seen.record

    def _plugging(self, directory: InstanceDirectory, record: RuntimeRecord, deadline: Deadline) -> Plugging:
        def replan(instance: Instance) -> LaunchPlan:
            return self._plan(instance, directory, False, deadline, running=record)

        def plan_device(instance: Instance, uuid: str) -> PlannedDevice:
            parsed, findings = self._read(instance)
            if not findings:
                known = self._capabilities(parsed, deadline)
                parsed, findings = with_overlays(parsed, directory)
                single = None if findings else plan_single(parsed, uuid, known, record, directory, self._directories)
                if single is not None:
                    return single
            plan = replan(instance)
            return plan_of(plan, uuid), plan.placement

        return Plugging(directory, record, replan, plan_device, self._families, self._announce)

    def _identified(self, instance: Instance, device: Disk | Nic) -> Disk | Nic:
        """A device with the identity it would have as the last of the definition."""
        known = with_identities(with_device(instance, device), "")
        return known.disks[-1] if isinstance(device, Disk) else known.nics[-1]

    @functools.cached_property
    def consoles(self) -> ConsoleOperations:
        """The operations on consoles and the display."""
        return ConsoleOperations(self._directory, self._control, self._families)

    @functools.cached_property
    def host(self) -> HostOperations:
        """The operations on the host."""
        return HostOperations(self._settings, self._directories)

    # Shared by the hooks

    def _directory(self, name: str) -> InstanceDirectory:
        return InstanceDirectory(self._directories, name)

    def _control(self, directory: InstanceDirectory) -> Control:
        return Control(directory, lambda seen: release(seen, directory.path, self._families, self._announce))

    def _announce(self, event: InterfaceEvent) -> None:
        for implementation in self._hook.kvm_interface_changed.get_hookimpls():
            try:
                implementation.function(event)
            except Exception:
                # An observer only looks on; what it breaks is its own.
                _LOG.exception("observer %s failed on %s", implementation.plugin_name, event.interface)

    def _refuse_running(self, directory: InstanceDirectory) -> None:
        seen = observation.observe(directory) if directory.exists else None
        if seen is not None and seen.started and seen.process is not None:
            raise AlreadyRunning(
                f"it is running already, as process {seen.process.identity.pid}", hint="stop or reboot it"
            )

    def _state(self, directory: InstanceDirectory) -> InstanceState | None:
        try:
            return observation.get_info(self._directories, directory.name, Deadline.after(0)).state
        except InstanceNotFound:
            return None
        except RecordError:
            return InstanceState.UNKNOWN

    def _capabilities(self, parsed: definition.Definition, deadline: Deadline) -> QemuCapabilities:
        program = parsed.machine.qemu or (
            self._settings.qemu if parsed.arch == host_architecture() else f"qemu-system-{parsed.arch}"
        )
        return capabilities_of(program, self._directories.cache, deadline)

    def _decide(
        self,
        instance: Instance,
        directory: InstanceDirectory,
        deadline: Deadline,
        *,
        arriving: bool = False,
        images_to_be: Callable[[definition.Definition], Mapping[str, Image | None]] = lambda _: {},
    ) -> tuple[Decisions, list[Finding]]:
        """Resolve everything a start depends on, and find what on this host stands against it.

        Raises:
            InvalidParameters: the definition has errors, or QEMU cannot be used.
        """
        parsed, findings = self._read(instance)
        if findings:
            raise InvalidParameters("the definition has errors", FindingSet(findings), instance=instance.name)
        parsed, layering = with_overlays(parsed, directory)
        capabilities = self._capabilities(parsed, deadline)
        choice, findings = accelerator.choose(parsed.machine.accel, capabilities.kvm_built_in, capabilities.arch)
        images, problems = check_host(
            parsed, capabilities, choice, self._directories, arriving=arriving, images_to_be=images_to_be(parsed)
        )
        findings += problems
        kept = directory.read(PLACEMENT, Placement, schema=SCHEMA, data=True)
        machine = placement.resolve_machine(parsed.wanted_machine, capabilities, kept)
        kind = parsed.confidential.confidential
        firmware, problems = find_firmware(parsed.boot, capabilities.arch, machine, confidential=kind)
        decisions = Decisions(
            definition=parsed,
            capabilities=capabilities,
            machine=machine,
            choice=choice,
            images=images,
            firmware=firmware,
            programs=find_programs(parsed),
            encryption_bit=encryption_bit() if kind in AMD else None,
            kept=kept,
        )
        return decisions, [*layering, *findings, *problems]

    def _run(
        self, plan: LaunchPlan, directory: InstanceDirectory, deadline: Deadline, saved: SavedGuest | None = None
    ) -> InstanceState | None:
        """Start it; returns what its account said of it before."""
        launch = Launch(plan, directory, self._settings.start_timeout, self._announce, saved=saved)
        launch.run(deadline)
        # Of a reboot that is now complete.
        directory.remove(REBOOT)
        return launch.state_before

    def _read(self, instance: Instance) -> tuple[definition.Definition, list[Finding]]:
        """Structure the parameters of a definition; the facade has the same one checked and then started."""
        known = self._last_read
        if known is None or known[0] is not instance:
            before = known[1][0] if known is not None and not known[1][1] else None
            known = self._last_read = (instance, definition.read(instance, self._families, before))
        return known[1]

    def _plan(
        self,
        instance: Instance,
        directory: InstanceDirectory,
        paused: bool,
        deadline: Deadline,
        running: RuntimeRecord | None = None,
        kept: Placement | None = None,
    ) -> LaunchPlan:
        """Plan a start, or with the record of a running instance a change of that, or how it is to go on elsewhere.

        Raises:
            InvalidParameters: everything that stands against it.
        """
        decisions, findings = self._decide(instance, directory, deadline)
        if running is not None:
            kept = kept or decisions.kept
            had_rng = running.instance.params.get("rng", True) is not False
            plugged = frozenset() if had_rng else frozenset((RNG_PLACE,))
            decisions = attrs.evolve(
                decisions, machine=running.machine, ports=running.ports, kept=kept, plugged=plugged
            )
        if not findings:
            plan, findings = plan_launch(decisions, directory, paused=paused)
            findings += check_support(plan.options, decisions.capabilities)
        if findings:
            raise InvalidParameters("this host cannot run it", FindingSet(findings), instance=instance.name)
        return plan
