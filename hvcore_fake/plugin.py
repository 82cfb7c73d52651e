"""`FakeDriver`: the hooks of the fake driver, each a few lines that delegate."""

from __future__ import annotations

from hvcore import (
    HOOK_API,
    AncillaryFiles,
    Capability,
    Claim,
    Deadline,
    DriverContext,
    DriverDescription,
    EventBatch,
    FindingSet,
    Instance,
    InstanceInfo,
    InstanceInfos,
    InstanceListing,
    InterruptedInstances,
    InvalidParameters,
    MigrationCompatibility,
    MigrationInfo,
    MigrationPolicy,
    MigrationStatus,
    MigrationTarget,
    NodeInfo,
    ParameterTable,
    Plan,
    PolicyDenied,
    PowercycleMethod,
    PowercycleResult,
    Recovery,
    Transition,
    __version__,
    hookimpl,
)
from hvcore_fake import lifecycle, migration, parameters, queries
from hvcore_fake.backup_hooks import BackupHooks
from hvcore_fake.device_hooks import DeviceHooks
from hvcore_fake.disks import check_disks, check_use
from hvcore_fake.plan import plan_start
from hvcore_fake.recovery import recover
from hvcore_fake.settings import read_settings
from hvcore_fake.snapshot_hooks import SnapshotHooks
from hvcore_fake.transaction import Call
from hvcore_fake.world import World

_CAPABILITIES = (
    Capability.PLAN,
    Capability.START_PAUSED,
    Capability.GRACEFUL_STOP,
    Capability.REBOOT,
    Capability.RESET,
    Capability.PAUSE,
    Capability.SAVE_RESTORE,
    Capability.RECOVER,
    Capability.LIST_INTERRUPTED,
    Capability.SNAPSHOT,
    Capability.SNAPSHOT_EXTERNAL,
    Capability.BACKUP,
    Capability.BACKUP_COMPRESSION,
    Capability.STATS,
    Capability.VERIFY_INSTANCE,
    Capability.HOTPLUG,
    Capability.RESIZE_DISK,
    Capability.BALLOON,
    Capability.CONSOLE,
    Capability.CONSOLE_PASSWORD,
    Capability.CONSOLE_DISCONNECT,
    Capability.MIGRATION,
    Capability.MIGRATION_STEPS,
    Capability.MIGRATION_DISKS,
    Capability.POWERCYCLE,
    Capability.ANCILLARY_FILES,
    Capability.EVENTS,
)


class FakeDriver(DeviceHooks, SnapshotHooks, BackupHooks):
    """A driver of a modelled hypervisor, with state on disk, a virtual clock and scripted faults."""

    def __init__(self, context: DriverContext) -> None:
        self._settings, self._faults = read_settings(context.settings)
        self._world = World(context.directories, self._faults)

    @hookimpl
    def hv_describe_driver(self) -> DriverDescription:
        """Say who it is. No fault strikes here: a driver has to be loaded first."""
        return DriverDescription(
            name="fake",
            version=__version__,
            hook_api=HOOK_API,
            summary="A modelled hypervisor for tests: state on disk, virtual time, scripted faults.",
            claims=tuple(Claim(capability=capability) for capability in _CAPABILITIES),
            hypervisor=f"{queries.HYPERVISOR} {__version__}",
        )

    @hookimpl
    def hv_parameters(self) -> ParameterTable:
        """List the parameters."""
        return self._run("parameters", None, None, lambda _: parameters.parameter_table())

    @hookimpl
    def hv_check_parameter_syntax(self, instance: Instance) -> FindingSet:
        """Check a definition without looking at the host."""
        foreign = self._settings.accept_foreign
        return self._run(
            "check_parameter_syntax", instance.name, None, lambda _: parameters.check_syntax(instance, foreign)
        )

    @hookimpl
    def hv_validate_parameters(self, instance: Instance, deadline: Deadline) -> FindingSet:
        """Check a definition against the host."""
        return self._run("validate_parameters", instance.name, deadline, lambda _: self._host_findings(instance))

    @hookimpl
    def hv_assess_parameters(self, instance: Instance, deadline: Deadline) -> FindingSet:
        """Give advice."""
        assess = queries.assess
        name = instance.name
        return self._run("assess_parameters", name, deadline, lambda call: assess(call.world, instance, __version__))

    @hookimpl
    def hv_plan_start(self, instance: Instance, paused: bool, deadline: Deadline) -> Plan:
        """Plan a start."""

        def work(call: Call) -> Plan:
            findings = self._host_findings(instance)
            if not findings.ok:
                raise InvalidParameters("this host cannot run the definition", findings)
            return plan_start(instance, paused)

        return self._run("plan_start", instance.name, deadline, work)

    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        """Start."""
        return self._run(
            "start_instance", instance.name, deadline, lambda call: lifecycle.start(call, instance, paused)
        )

    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        """Stop."""
        return self._run(
            "stop_instance",
            name,
            deadline,
            lambda call: lifecycle.stop(call, name, force, grace, retry, escalate),
        )

    @hookimpl
    def hv_reboot_instance(
        self, name: str, instance: Instance | None, mode: str, grace: float, deadline: Deadline
    ) -> Transition:
        """Restart."""
        return self._run(
            "reboot_instance", name, deadline, lambda call: lifecycle.reboot(call, name, instance, mode, grace)
        )

    @hookimpl
    def hv_pause_instance(self, name: str, deadline: Deadline) -> Transition:
        """Stop the virtual CPUs."""
        return self._run("pause_instance", name, deadline, lambda call: lifecycle.control(call, name, "pause"))

    @hookimpl
    def hv_resume_instance(self, name: str, deadline: Deadline) -> Transition:
        """Let the virtual CPUs run."""
        return self._run("resume_instance", name, deadline, lambda call: lifecycle.control(call, name, "resume"))

    @hookimpl
    def hv_cleanup_instance(self, name: str, deadline: Deadline) -> Transition:
        """Forget."""
        return self._run("cleanup_instance", name, deadline, lambda call: lifecycle.cleanup(call, name))

    @hookimpl
    def hv_recover(self, name: str, deadline: Deadline) -> Recovery:
        """Put in order what was left half done."""
        return self._run("recover", name, deadline, lambda call: recover(call, name))

    @hookimpl
    def hv_list_instances(self, deadline: Deadline) -> InstanceListing:
        """List."""
        return self._run("list_instances", None, deadline, lambda call: queries.list_instances(call.world))

    @hookimpl
    def hv_get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        """Look at one instance."""
        return self._run("get_instance_info", name, deadline, lambda call: queries.instance_info(call.world, name))

    @hookimpl
    def hv_get_all_instances_info(self, deadline: Deadline) -> InstanceInfos:
        """Look at all instances."""
        return self._run("get_all_instances_info", None, deadline, lambda call: queries.instance_infos(call.world))

    @hookimpl
    def hv_verify_instance(self, name: str, deadline: Deadline) -> FindingSet:
        """Compare the record of an instance with reality."""
        return self._run("verify_instance", name, deadline, lambda call: queries.verify_instance(call.world, name))

    @hookimpl
    def hv_list_interrupted(self, deadline: Deadline) -> InterruptedInstances:
        """Name those that something was left half done with."""
        return self._run("list_interrupted", None, deadline, lambda call: queries.list_interrupted(call.world))

    @hookimpl
    def hv_versions_safe_for_migration(self, source: str, destination: str) -> MigrationCompatibility:
        """Compare versions."""
        return self._run("versions_safe_for_migration", None, None, lambda _: migration.compatible(source, destination))

    @hookimpl
    def hv_migration_info(self, name: str, deadline: Deadline) -> MigrationInfo:
        """Say what the destination needs to know."""
        return self._run("migration_info", name, deadline, lambda call: migration.information(call, name))

    @hookimpl
    def hv_accept_instance(
        self, info: MigrationInfo, address: str, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationTarget:
        """Prepare for an instance. A modelled destination is found by its path, whatever the address."""
        foreign, name = self._settings.accept_foreign, info.instance
        return self._run("accept_instance", name, deadline, lambda call: migration.accept(call, info, policy, foreign))

    @hookimpl
    def hv_migrate_instance(
        self, name: str, target: MigrationTarget, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationStatus:
        """Begin to send."""
        return self._run("migrate_instance", name, deadline, lambda call: migration.send(call, name, target, policy))

    @hookimpl
    def hv_get_migration_status(self, name: str, deadline: Deadline) -> MigrationStatus:
        """Say how it goes."""
        return self._run("get_migration_status", name, deadline, lambda call: migration.progress(call, name))

    @hookimpl
    def hv_continue_migration(self, name: str, switch_over: bool, wait: float, deadline: Deadline) -> MigrationStatus:
        """Do what is due, and let virtual time pass."""
        go_on = migration.go_on
        return self._run("continue_migration", name, deadline, lambda call: go_on(call, name, switch_over, wait))

    @hookimpl
    def hv_cancel_migration(self, name: str, deadline: Deadline) -> MigrationStatus:
        """Cancel."""
        return self._run("cancel_migration", name, deadline, lambda call: migration.cancel(call, name))

    @hookimpl
    def hv_finalize_migration_source(self, name: str, success: bool, deadline: Deadline) -> Transition:
        """Finish on the source."""
        finish = migration.finish_source
        return self._run("finalize_migration_source", name, deadline, lambda call: finish(call, name, success))

    @hookimpl
    def hv_finalize_migration_dst(self, info: MigrationInfo, success: bool, deadline: Deadline) -> Transition:
        """Finish on the destination."""
        foreign, name = self._settings.accept_foreign, info.instance
        finish = migration.finish_destination
        return self._run("finalize_migration_dst", name, deadline, lambda call: finish(call, info, success, foreign))

    @hookimpl
    def hv_get_node_info(self, deadline: Deadline) -> NodeInfo:
        """Facts about the host."""
        return self._run("get_node_info", None, deadline, lambda call: queries.node_info(call.world, __version__))

    @hookimpl
    def hv_verify(self, deadline: Deadline) -> FindingSet:
        """Find what is wrong on the host."""
        return self._run("verify", None, deadline, lambda call: queries.verify_host(call.world))

    @hookimpl
    def hv_powercycle_node(self, deadline: Deadline) -> PowercycleResult:
        """Note that the host was to be restarted."""

        def work(call: Call) -> PowercycleResult:
            if not self._settings.allow_powercycle:
                raise PolicyDenied("the settings do not allow it", hint="set allow_powercycle = true")
            if not call.omits("powercycle", "before"):
                call.world.note_powercycle()
                call.omits("powercycle", "after")
            return PowercycleResult(method=PowercycleMethod.SYSRQ)

        return self._run("powercycle_node", None, deadline, work)

    @hookimpl
    def hv_get_ancillary_files(self) -> AncillaryFiles:
        """List no files: nothing outside its own directories is needed."""
        return self._run("get_ancillary_files", None, None, lambda _: AncillaryFiles())

    @hookimpl
    def hv_events(self, cursor: str | None, deadline: Deadline) -> EventBatch:
        """Read events."""
        return self._run("events", None, deadline, lambda call: queries.read_events(call.world, cursor, deadline))

    def _host_findings(self, instance: Instance) -> FindingSet:
        return FindingSet([*check_disks(instance), *check_use(self._world, instance)])
