"""`Driver`: the typed facade over one loaded driver. One method per operation, named like its hook."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, get_args

from hvcore.backups import Backups
from hvcore.capabilities import Capability, DriverDescription
from hvcore.deadline import Deadline
from hvcore.definition import DefinitionLike
from hvcore.device_argument import read_device
from hvcore.directories import Directories
from hvcore.errors import HypervisorError, InvalidParameters
from hvcore.findings import FindingSet
from hvcore.hookspecs.table import OPERATION
from hvcore.locks import sweep_locks
from hvcore.model.devices import Action, HotplugSupport
from hvcore.model.instance import Instance
from hvcore.params.declare import ParameterTable
from hvcore.passage import check_path, checked_name, invalid_argument
from hvcore.snapshots import SnapshotMethods

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.model.console import Console, PasswordResult, Screenshot
    from hvcore.model.devices import BalloonResult, Device, HotplugResult, ResizeResult
    from hvcore.model.events import EventBatch
    from hvcore.model.host import AncillaryFiles, NodeInfo, PowercycleResult
    from hvcore.model.migration import (
        MigrationCompatibility,
        MigrationInfo,
        MigrationStatus,
        MigrationTarget,
        SavedInstance,
    )
    from hvcore.model.migration_policy import MigrationPolicy
    from hvcore.model.plan import Plan
    from hvcore.model.progress import Progress
    from hvcore.model.recovery import InterruptedInstances, Recovery
    from hvcore.model.state import InstanceInfo, InstanceInfos, InstanceListing, InstanceStats, Transition

FORCE_RESERVE = 15.0
"""Seconds a graceful stop has on top of its timeout, to go on with force and to clean up."""


class Driver(SnapshotMethods, Backups):
    """A loaded driver. Made by `hvcore.load_driver`; safe to use from many threads; a context manager.

    Every method that is about one instance takes its name, or the `Instance`. ``timeout`` is in seconds; each
    operation has a default (see ``docs/reference/operations.md``). All errors are `HypervisorError`; they carry
    driver, operation and instance.
    """

    @property
    def name(self) -> str:
        """The name the driver was loaded by."""
        return self._name

    @property
    def description(self) -> DriverDescription:
        """What the driver said of itself when it was loaded."""
        return self._description

    @property
    def plugin(self) -> object:
        """The driver's own object, for drivers that document something beyond the operations."""
        return self._plugin

    @property
    def directories(self) -> Directories:
        """Where this driver keeps its state."""
        return self._directories

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Driver {self._name}{'' if self._manager else ' (closed)'}>"

    def close(self) -> None:
        """Let go of the driver. Running instances run on. A second call does nothing."""
        manager, self._manager = self._manager, None
        if manager is None:
            return
        close = getattr(self._plugin, "close", None)
        if callable(close):
            close()
        for plugin in list(manager.get_plugins()):
            manager.unregister(plugin)

    # Identity and parameters

    def describe_driver(self) -> DriverDescription:
        """Who the driver is and what it can do on this host now."""
        return self._call("describe_driver")

    def parameters(self) -> ParameterTable:
        """Every parameter of the driver and its family plugins."""
        if self._table is None:
            self._table = self._call("parameters")
        return self._table

    def check_parameter_syntax(self, instance: DefinitionLike) -> FindingSet:
        """Find everything wrong with a definition that can be known without looking at a host."""
        return self._examined(instance)[1]

    def validate_parameters(self, instance: DefinitionLike, *, timeout: float | None = None) -> FindingSet:
        """Find everything that stands against running a definition here: syntax first, then the host."""
        definition, findings = self._examined(instance)
        if not findings.ok:
            return findings
        return findings + self._call(
            "validate_parameters",
            definition.name,
            timeout=timeout,
            instance=definition,
            deadline=...,
        )

    def assess_parameters(self, instance: DefinitionLike, *, timeout: float | None = None) -> FindingSet:
        """Say what is legal but unwise about a definition.

        Raises:
            InvalidParameters: its syntax has errors.
        """
        definition = self._checked(instance)
        return self._call(
            "assess_parameters",
            definition.name,
            timeout=timeout,
            instance=definition,
            deadline=...,
        )

    # Life cycle

    def plan_start(self, instance: DefinitionLike, *, paused: bool = False, timeout: float | None = None) -> Plan:
        """Say exactly what `start_instance` would run, touching nothing."""
        definition = self._checked(instance)
        return self._call(
            "plan_start",
            definition.name,
            timeout=timeout,
            instance=definition,
            paused=paused,
            deadline=...,
        )

    def start_instance(
        self, instance: DefinitionLike, *, paused: bool = False, timeout: float | None = None
    ) -> Transition:
        """Start an instance; afterwards it runs, or nothing of the attempt is left.

        Args:
            instance: the definition: an `Instance`, or a mapping as an instance file holds it.
            paused: leave the guest paused before its first instruction.
            timeout: seconds until it must run.

        Raises:
            InvalidParameters: everything that is wrong with the definition, here.
            AlreadyRunning: it is alive.
            SpawnFailed: the hypervisor ended at start; its own words are in the message.
        """
        definition = self._checked(instance)
        if paused:
            self._require(Capability.START_PAUSED, "start_instance", definition.name)
        return self._call(
            "start_instance",
            definition.name,
            timeout=timeout,
            instance=definition,
            paused=paused,
            deadline=...,
        )

    def stop_instance(
        self,
        instance: Instance | str,
        *,
        force: bool = False,
        timeout: float | None = None,
        retry: bool = False,
        escalate: bool = True,
    ) -> Transition:
        """Stop an instance and release everything it held. Not an error when it is not alive.

        Args:
            instance: the instance, or just its name.
            force: do not ask the guest.
            timeout: seconds the guest is given to power off.
            retry: an earlier request ran out of time; ask again at once.
            escalate: when the time is over, go on with force; else fail and leave the instance running.

        Raises:
            DeadlineExceeded: the guest did not power off and ``escalate`` is false.
        """
        name = checked_name(instance)
        if not force and not escalate:
            self._require(Capability.GRACEFUL_STOP, "stop_instance", name)
        given = OPERATION["stop_instance"].default_timeout if timeout is None else timeout
        return self._call(
            "stop_instance",
            name,
            timeout=given + FORCE_RESERVE,
            name=name,
            force=force,
            grace=0.0 if force else given,
            retry=retry,
            escalate=escalate,
            deadline=...,
        )

    def reboot_instance(
        self,
        instance: Instance | str,
        *,
        mode: Literal["soft", "hard", "reset"] = "soft",
        timeout: float | None = None,
    ) -> Transition:
        """Restart an instance.

        Args:
            instance: the instance; with an `Instance`, a cold start takes this new definition.
            mode: ``soft`` powers the guest off gracefully and starts it again; ``hard`` does so by force;
                ``reset`` is the reset button.
            timeout: seconds the guest is given to power off in mode ``soft``.
        """
        name = checked_name(instance)
        if mode not in ("soft", "hard", "reset"):
            raise self._stamp(
                invalid_argument("mode", f"{mode!r} is none of soft, hard, reset", name), "reboot_instance", name
            )
        if mode == "reset":
            self._require(Capability.RESET, "reboot_instance", name)
        given = OPERATION["reboot_instance"].default_timeout if timeout is None else timeout
        return self._call(
            "reboot_instance",
            name,
            timeout=given + FORCE_RESERVE,
            name=name,
            instance=self._checked(instance) if isinstance(instance, Instance) else None,
            mode=mode,
            grace=given,
            deadline=...,
        )

    def pause_instance(self, instance: Instance | str, *, timeout: float | None = None) -> Transition:
        """Stop the guest's virtual CPUs; a paused instance stays as it is."""
        return self._named("pause_instance", instance, timeout)

    def resume_instance(self, instance: Instance | str, *, timeout: float | None = None) -> Transition:
        """Let the guest's virtual CPUs run; a running instance stays as it is."""
        return self._named("resume_instance", instance, timeout)

    def save_instance(
        self,
        instance: Instance | str,
        path: str,
        *,
        on_progress: Callable[[Progress], object] | None = None,
        timeout: float | None = None,
    ) -> SavedInstance:
        """Save memory and devices of a running or paused instance to a new file and stop it.

        Args:
            instance: the instance, or just its name.
            path: absolute path of a file that does not exist.
            on_progress: called with how far it is, many times a second.
            timeout: seconds until it must be done; else the instance runs on.
        """
        return self._named("save_instance", instance, timeout, paths=("path",), path=path, on_progress=on_progress)

    def restore_instance(
        self,
        path: str,
        *,
        paused: bool = False,
        force: bool = False,
        on_progress: Callable[[Progress], object] | None = None,
        timeout: float | None = None,
    ) -> Transition:
        """Start an instance from a file that `save_instance` wrote.

        Args:
            path: absolute path of the file.
            paused: leave the guest paused, also when it ran.
            force: also when it was restored before, or its disks have been written since.
            on_progress: called with how far it is, many times a second.
            timeout: seconds until it must be done; else nothing is left of it.
        """
        try:
            check_path("path", path, None)
        except InvalidParameters as error:
            raise self._stamp(error, "restore_instance", None) from None
        return self._call(
            "restore_instance",
            timeout=timeout,
            path=path,
            paused=paused,
            force=force,
            on_progress=on_progress,
            deadline=...,
        )

    def cleanup_instance(self, instance: Instance | str, *, timeout: float | None = None) -> Transition:
        """Forget an instance that is not alive."""
        return self._named("cleanup_instance", instance, timeout)

    def recover(self, instance: Instance | str | None = None, *, timeout: float | None = None) -> Recovery:
        """Complete or undo whatever a killed host application left half done, for one instance or all.

        All are those that are listed, and those that `list_interrupted` names where the driver offers it. Of all, one
        that cannot be put in order is reported in the result and does not keep the others waiting.

        Args:
            instance: the instance, or just its name; all when not given.
            timeout: seconds until all of it must be done.

        Raises:
            HostError: the instances of this host cannot be listed; nothing was done.
        """
        from hvcore.model.recovery import RecoveredInstance, Recovery

        if instance is not None:
            return self._named("recover", instance, timeout)
        self._require(Capability.RECOVER, "recover", None)
        deadline = Deadline.after(OPERATION["recover"].default_timeout if timeout is None else timeout)
        names = {row.name for row in self.list_instances().instances}
        if self._description.claim(Capability.LIST_INTERRUPTED).offered:
            names.update(self.list_interrupted().names)
        found: list[RecoveredInstance] = []
        for name in sorted(names):
            try:
                found += self._named("recover", name, deadline.remaining()).instances
            except HypervisorError as error:
                failed = RecoveredInstance(name=name, operation="unknown", outcome="failed", detail=error.message)
                found.append(failed)
        sweep_locks(self._lock_directory)
        return Recovery(instances=tuple(found))

    # Queries

    def list_instances(self, *, timeout: float | None = None) -> InstanceListing:
        """List the instances that hold something on this host."""
        return self._call("list_instances", timeout=timeout, deadline=...)

    def get_instance_info(self, instance: Instance | str, *, timeout: float | None = None) -> InstanceInfo:
        """Say what an instance is doing, or why it ended."""
        return self._named("get_instance_info", instance, timeout)

    def get_all_instances_info(self, *, timeout: float | None = None) -> InstanceInfos:
        """Say what every listed instance is doing."""
        return self._call("get_all_instances_info", timeout=timeout, deadline=...)

    def get_instance_stats(self, instance: Instance | str, *, timeout: float | None = None) -> InstanceStats:
        """Counters of one instance."""
        return self._named("get_instance_stats", instance, timeout)

    def verify_instance(self, instance: Instance | str, *, timeout: float | None = None) -> FindingSet:
        """Find where the record of an instance and reality have drifted apart."""
        return self._named("verify_instance", instance, timeout)

    def list_interrupted(self, *, timeout: float | None = None) -> InterruptedInstances:
        """Name the instances that something was left half done with although they are not listed; `recover` does that.

        One that somebody is doing something with now may be named as well.
        """
        return self._call("list_interrupted", timeout=timeout, deadline=...)

    # Devices

    def hotplug_supported(self, instance: Instance | str, *, timeout: float | None = None) -> HotplugSupport:
        """Say whether devices of an instance can be changed while it runs."""
        return self._named("hotplug_supported", instance, timeout)

    def verify_hotplug_support(
        self, instance: Instance | str, action: Action, device: Device, *, timeout: float | None = None
    ) -> HotplugSupport:
        """Say whether one device can be changed now, and everything that stands against it."""
        if action not in get_args(Action):
            message = f"is none of {', '.join(get_args(Action))}"
            raise self._stamp(invalid_argument("action", message, None), "verify_hotplug_support", None)
        try:
            device = read_device(device, named=action != "add", complete=action != "remove")
        except InvalidParameters as error:
            general = self.hotplug_supported(instance, timeout=timeout)
            reasons = (*general.reasons, *(str(finding) for finding in error.findings))
            return HotplugSupport(supported=False, reasons=reasons)
        return self._named("verify_hotplug_support", instance, timeout, action=action, device=device)

    def hot_add_device(
        self, instance: Instance | str, device: Device, *, timeout: float | None = None
    ) -> HotplugResult:
        """Add a disk or NIC to a running instance."""
        return self._named("hot_add_device", instance, timeout, changing="add", device=device)

    def hot_del_device(
        self, instance: Instance | str, device: str, *, force: bool = False, timeout: float | None = None
    ) -> HotplugResult:
        """Remove the device with this uuid from a running instance."""
        return self._named("hot_del_device", instance, timeout, changing="remove", device=device, force=force)

    def hot_mod_device(
        self, instance: Instance | str, device: Device, *, timeout: float | None = None
    ) -> HotplugResult:
        """Change a device of a running instance to a new description with the same uuid."""
        return self._named("hot_mod_device", instance, timeout, changing="modify", device=device)

    def resize_disk(
        self, instance: Instance | str, device: str, size: int, *, timeout: float | None = None
    ) -> ResizeResult:
        """Grow the disk with this uuid to ``size`` bytes."""
        return self._named("resize_disk", instance, timeout, sizes=("size",), device=device, size=size)

    def balloon_instance_memory(
        self, instance: Instance | str, memory: int, *, timeout: float | None = None
    ) -> BalloonResult:
        """Ask the guest to live with ``memory`` bytes, and wait for it."""
        return self._named("balloon_instance_memory", instance, timeout, sizes=("memory",), memory=memory)

    # Consoles

    def get_instance_console(
        self, instance: Instance | str, kind: str | None = None, *, timeout: float | None = None
    ) -> Console:
        """Say how to attach to a console; the first one when no type is given."""
        return self._named("get_instance_console", instance, timeout, kind=kind)

    def disconnect_console(
        self, instance: Instance | str, kind: str | None = None, *, timeout: float | None = None
    ) -> Console:
        """Make whoever is attached to a console go; the first console when no type is given."""
        return self._named("disconnect_console", instance, timeout, kind=kind)

    def set_console_password(
        self,
        instance: Instance | str,
        kind: str,
        password: str,
        *,
        expires: float | None = None,
        timeout: float | None = None,
    ) -> PasswordResult:
        """Set a console's password; an empty one locks it. ``expires`` is in seconds from now."""
        return self._named(
            "set_console_password",
            instance,
            timeout,
            kind=kind,
            password=password,
            expires=expires,
        )

    def screenshot(self, instance: Instance | str, *, timeout: float | None = None) -> Screenshot:
        """Take a picture of the display of a running instance."""
        return self._named("screenshot", instance, timeout)

    # Migration

    def versions_safe_for_migration(self, source: str, destination: str) -> MigrationCompatibility:
        """Say whether an instance can move between two versions of the hypervisor."""
        return self._call("versions_safe_for_migration", source=source, destination=destination)

    def migration_info(self, instance: Instance | str, *, timeout: float | None = None) -> MigrationInfo:
        """Collect what the destination needs to know about a running instance."""
        return self._named("migration_info", instance, timeout)

    def accept_instance(
        self, info: MigrationInfo, address: str, policy: MigrationPolicy, *, timeout: float | None = None
    ) -> MigrationTarget:
        """Prepare this host to receive an instance."""
        name = checked_name(info.instance)
        return self._call(
            "accept_instance",
            name,
            timeout=timeout,
            info=info,
            address=address,
            policy=self._agreed(policy, "accept_instance", name),
            deadline=...,
        )

    def migrate_instance(
        self,
        instance: Instance | str,
        target: MigrationTarget,
        policy: MigrationPolicy,
        *,
        timeout: float | None = None,
    ) -> MigrationStatus:
        """Begin to send a running instance."""
        agreed = self._agreed(policy, "migrate_instance", checked_name(instance))
        return self._named("migrate_instance", instance, timeout, target=target, policy=agreed)

    def get_migration_status(self, instance: Instance | str, *, timeout: float | None = None) -> MigrationStatus:
        """Say how a migration goes."""
        return self._named("get_migration_status", instance, timeout)

    def continue_migration(
        self,
        instance: Instance | str,
        *,
        switch_over: bool = True,
        wait: float = 0.0,
        timeout: float | None = None,
    ) -> MigrationStatus:
        """Do what a migration is due for now, waiting up to ``wait`` seconds for something to change."""
        return self._named("continue_migration", instance, timeout, switch_over=switch_over, wait=wait)

    def cancel_migration(self, instance: Instance | str, *, timeout: float | None = None) -> MigrationStatus:
        """Cancel a migration; the source runs on."""
        return self._named("cancel_migration", instance, timeout)

    def finalize_migration_source(
        self, instance: Instance | str, success: bool, *, timeout: float | None = None
    ) -> Transition:
        """Finish a migration on the source."""
        return self._named("finalize_migration_source", instance, timeout, success=success)

    def finalize_migration_dst(self, info: MigrationInfo, success: bool, *, timeout: float | None = None) -> Transition:
        """Finish a migration on the destination."""
        return self._call(
            "finalize_migration_dst",
            checked_name(info.instance),
            timeout=timeout,
            info=info,
            success=success,
            deadline=...,
        )

    # Host and events

    def get_node_info(self, *, timeout: float | None = None) -> NodeInfo:
        """Facts about this host."""
        return self._call("get_node_info", timeout=timeout, deadline=...)

    def verify(self, *, timeout: float | None = None) -> FindingSet:
        """Find everything on this host that keeps the driver from working well."""
        return self._call("verify", timeout=timeout, deadline=...)

    def powercycle_node(self, *, timeout: float | None = None) -> PowercycleResult:
        """Restart this host at once."""
        return self._call("powercycle_node", timeout=timeout, deadline=...)

    def get_ancillary_files(self) -> AncillaryFiles:
        """List files that must be the same on all hosts."""
        return self._call("get_ancillary_files")

    def events(self, cursor: str | None = None, *, timeout: float = 0.0) -> EventBatch:
        """Read events after a cursor; wait up to ``timeout`` seconds for the first."""
        return self._call("events", timeout=timeout, cursor=cursor, deadline=...)
