"""The KVM driver's hooks: a line each, delegating. What they do is imported when it is needed."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import hvcore_kvm.hookspecs
from hvcore import Capability, Claim, ClaimLevel, DriverContext, DriverDescription, Family, hookimpl
from hvcore_kvm.families import Families, collect
from hvcore_kvm.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore import (
        AncillaryFiles,
        Backup,
        BalloonResult,
        Checkpoints,
        Console,
        Deadline,
        Device,
        FindingSet,
        HotplugResult,
        HotplugSupport,
        Instance,
        InstanceInfo,
        InstanceInfos,
        InstanceListing,
        InstanceStats,
        InterruptedInstances,
        MigrationCompatibility,
        MigrationInfo,
        MigrationPolicy,
        MigrationStatus,
        MigrationTarget,
        NodeInfo,
        ParameterTable,
        PasswordResult,
        Plan,
        PowercycleResult,
        Progress,
        Recovery,
        ResizeResult,
        SavedInstance,
        Screenshot,
        Snapshot,
        SnapshotListing,
        Transition,
    )
    from hvcore_kvm.operations import Operations

CLAIMS = (
    Claim(capability=Capability.PLAN),
    Claim(capability=Capability.START_PAUSED),
    Claim(
        capability=Capability.GRACEFUL_STOP,
        level=ClaimLevel.CONDITIONAL,
        reason="the guest has to obey the ACPI power button",
    ),
    Claim(capability=Capability.REBOOT),
    Claim(capability=Capability.RESET),
    Claim(capability=Capability.PAUSE),
    Claim(
        capability=Capability.SAVE_RESTORE,
        level=ClaimLevel.CONDITIONAL,
        reason="no device of the instance may have a state that QEMU cannot save",
    ),
    Claim(
        capability=Capability.BACKUP,
        level=ClaimLevel.CONDITIONAL,
        reason="QEMU has to be 7.1 or later, and has to see all that is written to the disk",
    ),
    Claim(capability=Capability.RECOVER),
    Claim(capability=Capability.LIST_INTERRUPTED),
    Claim(
        capability=Capability.SNAPSHOT,
        level=ClaimLevel.CONDITIONAL,
        reason="the writable disks have to be qcow2 images, and for one with memory no device may have a state that "
        "QEMU cannot save",
    ),
    Claim(
        capability=Capability.SNAPSHOT_EXTERNAL,
        level=ClaimLevel.CONDITIONAL,
        reason="the writable disks have to be raw or qcow2 images in files, and not encrypted",
    ),
    Claim(capability=Capability.STATS),
    Claim(capability=Capability.VERIFY_INSTANCE),
    Claim(capability=Capability.CONSOLE),
    Claim(
        capability=Capability.CONSOLE_DISCONNECT,
        level=ClaimLevel.CONDITIONAL,
        reason="the console has to be one that takes one client at a time: serial or virtconsole",
    ),
    Claim(
        capability=Capability.CONSOLE_PASSWORD,
        level=ClaimLevel.CONDITIONAL,
        reason="the console has to be vnc or spice, and started with a password",
    ),
    Claim(
        capability=Capability.SCREENSHOT,
        level=ClaimLevel.CONDITIONAL,
        reason="the instance has to have a display",
    ),
    Claim(
        capability=Capability.HOTPLUG,
        level=ClaimLevel.CONDITIONAL,
        reason="the machine has to have a free place on a bus that can change, and the guest has to let go of a device",
    ),
    Claim(
        capability=Capability.RESIZE_DISK,
        level=ClaimLevel.CONDITIONAL,
        reason="the image, the block device or the server has to have room",
    ),
    Claim(
        capability=Capability.BALLOON,
        level=ClaimLevel.CONDITIONAL,
        reason="the instance has to have a balloon, and its guest to obey it",
    ),
    Claim(
        capability=Capability.BACKUP_COMPRESSION,
        level=ClaimLevel.CONDITIONAL,
        reason="only to files: what a server stores is up to it",
    ),
    Claim(
        capability=Capability.MIGRATION,
        level=ClaimLevel.CONDITIONAL,
        reason="both hosts have to have what the guest has, and no device of it may forbid it",
    ),
    Claim(capability=Capability.MIGRATION_STEPS),
    Claim(
        capability=Capability.MIGRATION_DISKS,
        level=ClaimLevel.CONDITIONAL,
        reason="the image has to be raw or qcow2 and not shared, an encrypted one needs TLS, and the destination room",
    ),
    Claim(
        capability=Capability.POWERCYCLE,
        level=ClaimLevel.CONDITIONAL,
        reason="only as root, and when the setting allow_powercycle is on",
    ),
    Claim(capability=Capability.ANCILLARY_FILES),
)


class KvmDriver:
    """Drives QEMU, with or without KVM.

    Args:
        context: name, directories and settings.
    """

    claims = CLAIMS
    family_hookspecs = hvcore_kvm.hookspecs
    families = (
        Family(group="hvcore_kvm.nic_modes", title="NIC mode"),
        Family(group="hvcore_kvm.security_models", title="security model"),
        Family(group="hvcore_kvm.console_types", title="console type"),
    )

    def __init__(self, context: DriverContext) -> None:
        self._context = context
        self._settings = read_settings(context.settings)
        self._families = Families(nic_modes={}, security_models={}, console_types={})
        self._hook: Any = None

    def use_families(self, hook: Any) -> None:
        """Take the family plugins, once they are registered."""
        self._hook = hook
        self._families = collect(hook)

    @property
    def family_plugins(self) -> Families:
        """The family plugins it has been given."""
        return self._families

    @functools.cached_property
    def _operations(self) -> Operations:
        from hvcore_kvm.operations import Operations

        return Operations(self._context, self._settings, self._families, self._hook)

    @hookimpl
    def hv_describe_driver(self) -> DriverDescription:
        """Who this is."""
        return DriverDescription(
            name=self._context.name,
            version=hvcore_kvm.VERSION,
            hook_api=1,
            summary="QEMU/KVM without libvirt and without a daemon.",
            claims=tuple(self._narrowed(claim) for claim in CLAIMS),
        )

    def _narrowed(self, claim: Claim) -> Claim:
        """What this process can do of a claim."""
        if claim.capability is Capability.POWERCYCLE and os.geteuid() != 0:
            return claim.narrowed(ClaimLevel.IMPOSSIBLE, f"user {os.geteuid()} cannot restart the host; root can")
        return claim

    @hookimpl
    def hv_parameters(self) -> ParameterTable:
        """The driver's own and those of the families."""
        from hvcore_kvm.parameters.table import parameter_table

        return parameter_table(self._families)

    @hookimpl
    def hv_check_parameter_syntax(self, instance: Instance) -> FindingSet:
        """Everything that needs no host."""
        return self._operations.check_parameter_syntax(instance)

    @hookimpl
    def hv_validate_parameters(self, instance: Instance, deadline: Deadline) -> FindingSet:
        """Everything on this host."""
        return self._operations.validate_parameters(instance, deadline)

    @hookimpl
    def hv_assess_parameters(self, instance: Instance, deadline: Deadline) -> FindingSet:
        """What is legal but unwise."""
        return self._operations.assess_parameters(instance, deadline)

    @hookimpl
    def hv_plan_start(self, instance: Instance, paused: bool, deadline: Deadline) -> Plan:
        """What a start would run."""
        return self._operations.plan_start(instance, paused, deadline)

    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        """Start it."""
        return self._operations.start_instance(instance, paused, deadline)

    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        """Stop it."""
        return self._operations.stop_instance(name, force, grace, retry, escalate, deadline)

    @hookimpl
    def hv_reboot_instance(
        self, name: str, instance: Instance | None, mode: str, grace: float, deadline: Deadline
    ) -> Transition:
        """Restart it."""
        return self._operations.reboot_instance(name, instance, mode, grace, deadline)

    @hookimpl
    def hv_pause_instance(self, name: str, deadline: Deadline) -> Transition:
        """Pause it."""
        return self._operations.pause_instance(name, deadline)

    @hookimpl
    def hv_resume_instance(self, name: str, deadline: Deadline) -> Transition:
        """Resume it."""
        return self._operations.resume_instance(name, deadline)

    @hookimpl
    def hv_save_instance(
        self, name: str, path: str, on_progress: Callable[[Progress], object] | None, deadline: Deadline
    ) -> SavedInstance:
        """Save it to a file and end it."""
        return self._operations.saver.save_instance(name, path, on_progress, deadline)

    @hookimpl
    def hv_restore_instance(
        self,
        path: str,
        paused: bool,
        force: bool,
        on_progress: Callable[[Progress], object] | None,
        deadline: Deadline,
    ) -> Transition:
        """Start it from its file."""
        return self._operations.saver.restore_instance(path, paused, force, on_progress, deadline)

    @hookimpl
    def hv_create_snapshot(
        self,
        name: str,
        instance: Instance | None,
        snapshot: str,
        memory: bool | None,
        external: bool,
        on_progress: Callable[[Progress], object] | None,
        deadline: Deadline,
    ) -> Snapshot:
        """Take a snapshot."""
        return self._operations.snapshots.create(name, instance, snapshot, memory, external, on_progress, deadline)

    @hookimpl
    def hv_list_snapshots(self, name: str, deadline: Deadline) -> SnapshotListing:
        """List them."""
        del deadline
        return self._operations.snapshots.listing(name)

    @hookimpl
    def hv_revert_snapshot(
        self, name: str, snapshot: str, on_progress: Callable[[Progress], object] | None, deadline: Deadline
    ) -> Transition:
        """Go back to one."""
        return self._operations.snapshots.revert(name, snapshot, on_progress, deadline)

    @hookimpl
    def hv_delete_snapshot(
        self, name: str, snapshot: str, on_progress: Callable[[Progress], object] | None, deadline: Deadline
    ) -> Snapshot:
        """Give one up."""
        return self._operations.snapshots.delete(name, snapshot, on_progress, deadline)

    @hookimpl
    def hv_cleanup_instance(self, name: str, deadline: Deadline) -> Transition:
        """Forget it."""
        return self._operations.cleanup_instance(name, deadline)

    @hookimpl
    def hv_recover(self, name: str, deadline: Deadline) -> Recovery:
        """Put in order what was left half done."""
        return self._operations.recover(name, deadline)

    @hookimpl
    def hv_list_instances(self, deadline: Deadline) -> InstanceListing:
        """All that hold something."""
        from hvcore_kvm.listing import list_instances

        return list_instances(self._context.directories)

    @hookimpl
    def hv_get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        """One of them."""
        return self._operations.get_instance_info(name, deadline)

    @hookimpl
    def hv_get_all_instances_info(self, deadline: Deadline) -> InstanceInfos:
        """All of them, side by side."""
        return self._operations.get_all_instances_info(deadline)

    @hookimpl
    def hv_get_instance_stats(self, name: str, deadline: Deadline) -> InstanceStats:
        """Counters of one of them."""
        return self._operations.get_instance_stats(name, deadline)

    @hookimpl
    def hv_verify_instance(self, name: str, deadline: Deadline) -> FindingSet:
        """Where record and reality differ."""
        return self._operations.verify_instance(name, deadline)

    @hookimpl
    def hv_list_interrupted(self, deadline: Deadline) -> InterruptedInstances:
        """Those that something was left half done with."""
        from hvcore_kvm.snapshots.interruptions import list_interrupted

        del deadline
        return list_interrupted(self._context.directories)

    @hookimpl
    def hv_get_instance_console(self, name: str, kind: str | None, deadline: Deadline) -> Console:
        """How to attach."""
        return self._operations.consoles.get_instance_console(name, kind, deadline)

    @hookimpl
    def hv_disconnect_console(self, name: str, kind: str | None, deadline: Deadline) -> Console:
        """Make room."""
        return self._operations.consoles.disconnect_console(name, kind, deadline)

    @hookimpl
    def hv_set_console_password(
        self, name: str, kind: str, password: str, expires: float | None, deadline: Deadline
    ) -> PasswordResult:
        """Let in who knows it."""
        return self._operations.consoles.set_console_password(name, kind, password, expires, deadline)

    @hookimpl
    def hv_screenshot(self, name: str, deadline: Deadline) -> Screenshot:
        """What is on its display."""
        return self._operations.consoles.screenshot(name, deadline)

    @hookimpl
    def hv_hotplug_supported(self, name: str, deadline: Deadline) -> HotplugSupport:
        """Whether its devices can be changed while it runs."""
        return self._operations.hotplug_supported(name, deadline)

    @hookimpl
    def hv_verify_hotplug_support(self, name: str, action: str, device: Device, deadline: Deadline) -> HotplugSupport:
        """Whether one device can be changed."""
        return self._operations.verify_hotplug_support(name, action, device, deadline)

    @hookimpl
    def hv_hot_add_device(self, name: str, device: Device, deadline: Deadline) -> HotplugResult:
        """Add a disk or NIC."""
        return self._operations.hot_add_device(name, device, deadline)

    @hookimpl
    def hv_hot_del_device(self, name: str, device: str, force: bool, deadline: Deadline) -> HotplugResult:
        """Remove a disk or NIC."""
        return self._operations.hot_del_device(name, device, force, deadline)

    @hookimpl
    def hv_hot_mod_device(self, name: str, device: Device, deadline: Deadline) -> HotplugResult:
        """Change a disk or NIC."""
        return self._operations.hot_mod_device(name, device, deadline)

    @hookimpl
    def hv_resize_disk(self, name: str, device: str, size: int, deadline: Deadline) -> ResizeResult:
        """Grow a disk."""
        return self._operations.resize_disk(name, device, size, deadline)

    @hookimpl
    def hv_balloon_instance_memory(self, name: str, memory: int, deadline: Deadline) -> BalloonResult:
        """Change how much memory the guest has."""
        return self._operations.balloon_instance_memory(name, memory, deadline)

    @hookimpl
    def hv_backup_instance(
        self,
        name: str,
        target: str,
        disks: tuple[str, ...] | None,
        checkpoint: str | None,
        since: str | None,
        bandwidth: int,
        compress: bool,
        tls: str | None,
        on_progress: Callable[[Progress], object] | None,
        deadline: Deadline,
    ) -> Backup:
        """Copy its disks."""
        from hvcore_kvm.backup.operations import Wanted

        wanted = Wanted(
            target=target,
            disks=disks,
            checkpoint=checkpoint,
            since=since,
            bandwidth=bandwidth,
            compress=compress,
            tls=tls,
        )
        return self._operations.backups.backup_instance(name, wanted, on_progress, deadline)

    @hookimpl
    def hv_list_checkpoints(self, name: str, deadline: Deadline) -> Checkpoints:
        """What its backups can begin from."""
        return self._operations.backups.list_checkpoints(name, deadline)

    @hookimpl
    def hv_delete_checkpoint(self, name: str, checkpoint: str, deadline: Deadline) -> Checkpoints:
        """Forget one of them."""
        return self._operations.backups.delete_checkpoint(name, checkpoint, deadline)

    @hookimpl
    def hv_versions_safe_for_migration(self, source: str, destination: str) -> MigrationCompatibility:
        """Whether two versions of QEMU can exchange an instance."""
        return self._operations.migration.versions_safe_for_migration(source, destination)

    @hookimpl
    def hv_migration_info(self, name: str, deadline: Deadline) -> MigrationInfo:
        """What the destination needs to know."""
        return self._operations.migration.migration_info(name, deadline)

    @hookimpl
    def hv_accept_instance(
        self, info: MigrationInfo, address: str, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationTarget:
        """Wait for it."""
        return self._operations.migration.accept_instance(info, address, policy, deadline)

    @hookimpl
    def hv_migrate_instance(
        self, name: str, target: MigrationTarget, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationStatus:
        """Begin to send it."""
        return self._operations.migration.migrate_instance(name, target, policy, deadline)

    @hookimpl
    def hv_get_migration_status(self, name: str, deadline: Deadline) -> MigrationStatus:
        """How far it is."""
        return self._operations.migration.get_migration_status(name, deadline)

    @hookimpl
    def hv_continue_migration(self, name: str, switch_over: bool, wait: float, deadline: Deadline) -> MigrationStatus:
        """Do what is due."""
        return self._operations.migration.continue_migration(name, switch_over, wait, deadline)

    @hookimpl
    def hv_cancel_migration(self, name: str, deadline: Deadline) -> MigrationStatus:
        """Take it back."""
        return self._operations.migration.cancel_migration(name, deadline)

    @hookimpl
    def hv_finalize_migration_source(self, name: str, success: bool, deadline: Deadline) -> Transition:
        """Finish on the source."""
        return self._operations.migration.finalize_migration_source(name, success, deadline)

    @hookimpl
    def hv_finalize_migration_dst(self, info: MigrationInfo, success: bool, deadline: Deadline) -> Transition:
        """Finish on the destination."""
        return self._operations.migration.finalize_migration_dst(info, success, deadline)

    @hookimpl
    def hv_get_node_info(self, deadline: Deadline) -> NodeInfo:
        """Facts about this host."""
        return self._operations.host.get_node_info(deadline)

    @hookimpl
    def hv_verify(self, deadline: Deadline) -> FindingSet:
        """Whether this host can run instances well."""
        return self._operations.host.verify(deadline)

    @hookimpl
    def hv_powercycle_node(self, deadline: Deadline) -> PowercycleResult:
        """Restart this host."""
        return self._operations.host.powercycle_node(deadline)

    @hookimpl
    def hv_get_ancillary_files(self) -> AncillaryFiles:
        """None so far."""
        return self._operations.host.get_ancillary_files()
