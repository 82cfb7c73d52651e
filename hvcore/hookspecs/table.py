"""The table of operations: hook, capability, whether it changes something, how long it may take by default.

`Driver`, the hook specifications, the documentation and the conformance suite are held to this one table by a test.
"""

from __future__ import annotations

import types
from typing import Any

import attrs

from hvcore.capabilities import Capability
from hvcore.hookspecs import (
    backup,
    console,
    devices,
    events,
    host,
    identity,
    lifecycle,
    migration,
    operation,
    parameters,
    queries,
    snapshots,
)

SPECIFICATIONS: tuple[types.ModuleType, ...] = (
    identity,
    parameters,
    lifecycle,
    snapshots,
    queries,
    devices,
    backup,
    console,
    migration,
    host,
    events,
    operation,
)
"""The modules of hook specifications, one per topic, in the order in which they are documented."""


@attrs.frozen(kw_only=True)
class Operation:
    """One operation of a driver.

    Attributes:
        name: method of `Driver`; the hook is ``hv_`` and this name.
        topic: module of `hvcore.hookspecs` that specifies it.
        capability: what a driver must claim; ``None`` for what every driver must do.
        mutating: it changes an instance, so the facade holds the instance's lock.
        default_timeout: seconds, when the caller gives none.
        since: version that introduced it.
    """

    name: str
    topic: str
    capability: Capability | None = None
    mutating: bool = False
    default_timeout: float = 30.0
    since: str = "0.1"

    @property
    def hook(self) -> str:
        """Name of the hook."""
        return f"hv_{self.name}"


def _topic(topic: str, *rows: dict[str, Any]) -> tuple[Operation, ...]:
    return tuple(Operation(topic=topic, **row) for row in rows)


def _row(name: str, capability: Capability | None = None, *, mutating: bool = False, timeout: float = 30.0) -> Any:
    return {"name": name, "capability": capability, "mutating": mutating, "default_timeout": timeout}


OPERATIONS: tuple[Operation, ...] = (
    *_topic("identity", _row("describe_driver")),
    *_topic(
        "parameters",
        _row("parameters"),
        _row("check_parameter_syntax"),
        _row("validate_parameters"),
        _row("assess_parameters"),
    ),
    *_topic(
        "lifecycle",
        _row("plan_start", Capability.PLAN),
        _row("start_instance", mutating=True, timeout=60.0),
        _row("stop_instance", mutating=True, timeout=120.0),
        _row("reboot_instance", Capability.REBOOT, mutating=True, timeout=180.0),
        _row("pause_instance", Capability.PAUSE, mutating=True),
        _row("resume_instance", Capability.PAUSE, mutating=True),
        _row("save_instance", Capability.SAVE_RESTORE, mutating=True, timeout=600.0),
        _row("restore_instance", Capability.SAVE_RESTORE, mutating=True, timeout=600.0),
        _row("cleanup_instance", mutating=True),
        _row("recover", Capability.RECOVER, mutating=True, timeout=120.0),
    ),
    *_topic(
        "snapshots",
        _row("create_snapshot", Capability.SNAPSHOT, mutating=True, timeout=600.0),
        _row("list_snapshots", Capability.SNAPSHOT, timeout=5.0),
        _row("revert_snapshot", Capability.SNAPSHOT, mutating=True, timeout=600.0),
        _row("delete_snapshot", Capability.SNAPSHOT, mutating=True, timeout=600.0),
    ),
    *_topic(
        "queries",
        _row("list_instances", timeout=10.0),
        _row("get_instance_info", timeout=5.0),
        _row("get_all_instances_info", timeout=5.0),
        _row("get_instance_stats", Capability.STATS, timeout=5.0),
        _row("verify_instance", Capability.VERIFY_INSTANCE, timeout=10.0),
        _row("list_interrupted", Capability.LIST_INTERRUPTED, timeout=10.0),
    ),
    *_topic(
        "devices",
        _row("hotplug_supported", Capability.HOTPLUG),
        _row("verify_hotplug_support", Capability.HOTPLUG),
        _row("hot_add_device", Capability.HOTPLUG, mutating=True),
        _row("hot_del_device", Capability.HOTPLUG, mutating=True),
        _row("hot_mod_device", Capability.HOTPLUG, mutating=True),
        _row("resize_disk", Capability.RESIZE_DISK, mutating=True),
        _row("balloon_instance_memory", Capability.BALLOON, mutating=True),
    ),
    *_topic(
        "backup",
        _row("backup_instance", Capability.BACKUP, mutating=True, timeout=86400.0),
        _row("list_checkpoints", Capability.BACKUP),
        _row("delete_checkpoint", Capability.BACKUP, mutating=True),
    ),
    *_topic(
        "console",
        _row("get_instance_console", Capability.CONSOLE, timeout=5.0),
        _row("disconnect_console", Capability.CONSOLE_DISCONNECT, timeout=5.0),
        _row("set_console_password", Capability.CONSOLE_PASSWORD, mutating=True),
        _row("screenshot", Capability.SCREENSHOT),
    ),
    *_topic(
        "migration",
        _row("versions_safe_for_migration", Capability.MIGRATION),
        _row("migration_info", Capability.MIGRATION),
        _row("accept_instance", Capability.MIGRATION, mutating=True, timeout=60.0),
        _row("migrate_instance", Capability.MIGRATION, mutating=True, timeout=60.0),
        _row("get_migration_status", Capability.MIGRATION, timeout=5.0),
        _row("continue_migration", Capability.MIGRATION_STEPS, mutating=True),
        _row("cancel_migration", Capability.MIGRATION, mutating=True),
        _row("finalize_migration_source", Capability.MIGRATION, mutating=True, timeout=60.0),
        _row("finalize_migration_dst", Capability.MIGRATION, mutating=True, timeout=60.0),
    ),
    *_topic(
        "host",
        _row("get_node_info"),
        _row("verify"),
        _row("powercycle_node", Capability.POWERCYCLE),
        _row("get_ancillary_files", Capability.ANCILLARY_FILES),
    ),
    *_topic("events", _row("events", Capability.EVENTS)),
)
"""Every operation, in the order in which they are documented."""

OPERATION: dict[str, Operation] = {operation.name: operation for operation in OPERATIONS}
"""The same by name."""
