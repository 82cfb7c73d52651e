"""hvcore: drive virtual machines on a host without libvirt and without a daemon.

Everything a host application or a plugin author needs is importable from here; names are loaded when first used, so
that ``import hvcore`` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_EXPORTS: dict[str, str] = {
    # host applications
    "load_driver": "hvcore.registry",
    "load_plugin": "hvcore.registry",
    "available_drivers": "hvcore.registry",
    "available": "hvcore.registry",
    "Driver": "hvcore.driver",
    "Instance": "hvcore.model.instance",
    "Disk": "hvcore.model.instance",
    "Nic": "hvcore.model.instance",
    "read_definition": "hvcore.definition",
    "with_identities": "hvcore.model.instance",
    "device_clashes": "hvcore.model.instance_devices",
    "find_device": "hvcore.model.instance_devices",
    "with_device": "hvcore.model.instance_devices",
    "with_other_device": "hvcore.model.instance_devices",
    "without_device": "hvcore.model.instance_devices",
    "make_qcow2": "hvcore.qcow2_image",
    "read_qcow2": "hvcore.qcow2_content",
    # results
    "InstanceState": "hvcore.model.state",
    "TwoValueState": "hvcore.model.state",
    "StateReason": "hvcore.model.state",
    "Cause": "hvcore.model.state",
    "InstanceInfo": "hvcore.model.state",
    "DeviceInfo": "hvcore.model.state",
    "PeripheralInfo": "hvcore.model.state",
    "InstanceInfos": "hvcore.model.state",
    "InstanceListing": "hvcore.model.state",
    "InstanceName": "hvcore.model.state",
    "InstanceStats": "hvcore.model.state",
    "BlockStats": "hvcore.model.state",
    "NicStats": "hvcore.model.state",
    "GuestMemory": "hvcore.model.state",
    "Transition": "hvcore.model.state",
    "Plan": "hvcore.model.plan",
    "PlannedOption": "hvcore.model.plan",
    "PlannedFd": "hvcore.model.plan",
    "PlannedChange": "hvcore.model.plan",
    "Console": "hvcore.model.console",
    "ConsoleHolder": "hvcore.model.console",
    "PasswordResult": "hvcore.model.console",
    "Screenshot": "hvcore.model.console",
    "Event": "hvcore.model.events",
    "EventBatch": "hvcore.model.events",
    "Device": "hvcore.model.devices",
    "Medium": "hvcore.model.devices",
    "Processors": "hvcore.model.devices",
    "LiveParameters": "hvcore.model.devices",
    "HotplugSupport": "hvcore.model.devices",
    "HotplugResult": "hvcore.model.devices",
    "ResizeResult": "hvcore.model.devices",
    "BalloonResult": "hvcore.model.devices",
    "Backup": "hvcore.model.backup",
    "DiskBackup": "hvcore.model.backup",
    "Checkpoint": "hvcore.model.backup",
    "Checkpoints": "hvcore.model.backup",
    "DiskCheckpoint": "hvcore.model.backup",
    "MigrationInfo": "hvcore.model.migration",
    "MigrationPhase": "hvcore.model.migration",
    "AutoConverge": "hvcore.model.migration_policy",
    "ALL_DISKS": "hvcore.model.migration_policy",
    "MigrationPolicy": "hvcore.model.migration_policy",
    "MigrationTls": "hvcore.model.migration_policy",
    "MultiFd": "hvcore.model.migration_policy",
    "PostCopy": "hvcore.model.migration_policy",
    "read_migration_policy": "hvcore.migration_policy",
    "migrate": "hvcore.migration",
    "MigrationDestination": "hvcore.migration",
    "MigrationResult": "hvcore.model.migration",
    "MigrationStatus": "hvcore.model.migration",
    "MigrationTarget": "hvcore.model.migration",
    "MigrationCompatibility": "hvcore.model.migration",
    "SavedInstance": "hvcore.model.migration",
    "Progress": "hvcore.model.progress",
    "Snapshot": "hvcore.model.snapshots",
    "SnapshotDisk": "hvcore.model.snapshots",
    "SnapshotListing": "hvcore.model.snapshots",
    "Recovery": "hvcore.model.recovery",
    "InterruptedInstances": "hvcore.model.recovery",
    "RecoveredInstance": "hvcore.model.recovery",
    "NodeInfo": "hvcore.model.host",
    "NumaNode": "hvcore.model.host",
    "AncillaryFile": "hvcore.model.host",
    "AncillaryFiles": "hvcore.model.host",
    "PowercycleMethod": "hvcore.model.host",
    "PowercycleResult": "hvcore.model.host",
    # findings and errors
    "Finding": "hvcore.findings",
    "FindingSet": "hvcore.findings",
    "Severity": "hvcore.findings",
    "HypervisorError": "hvcore.errors",
    "Refused": "hvcore.errors",
    "InvalidParameters": "hvcore.errors",
    "InstanceNotFound": "hvcore.errors",
    "AlreadyRunning": "hvcore.errors",
    "NotRunning": "hvcore.errors",
    "WrongState": "hvcore.errors",
    "InstanceBusy": "hvcore.errors",
    "UnsupportedOperation": "hvcore.errors",
    "PolicyDenied": "hvcore.errors",
    "HostError": "hvcore.errors",
    "LoadError": "hvcore.errors",
    "HypervisorRefused": "hvcore.errors",
    "OperationFailed": "hvcore.errors",
    "SpawnFailed": "hvcore.errors",
    "DeadlineExceeded": "hvcore.errors",
    "OutcomeUnknown": "hvcore.errors",
    "RecordError": "hvcore.errors",
    "DriverFault": "hvcore.errors",
    # extensions
    "AuditLog": "hvcore.extensions.audit",
    "Metrics": "hvcore.extensions.metrics",
    "OperationMetrics": "hvcore.extensions.metrics",
    "InstanceCollector": "hvcore.exporter",
    "Policy": "hvcore.extensions.policy",
    "Deny": "hvcore.extensions.policy",
    "Allow": "hvcore.extensions.policy",
    "MaxRunning": "hvcore.extensions.policy",
    "Tracing": "hvcore.extensions.tracing",
    "Span": "hvcore.extensions.tracing",
    "current_span": "hvcore.extensions.tracing",
    # plugin authors
    "hookimpl": "hvcore.hookspecs.markers",
    "hookspec": "hvcore.hookspecs.markers",
    "HOOK_API": "hvcore.hookspecs.markers",
    "OPERATIONS": "hvcore.hookspecs.table",
    "Operation": "hvcore.hookspecs.table",
    "OperationCall": "hvcore.operation",
    "DriverView": "hvcore.operation",
    "Capability": "hvcore.capabilities",
    "Claim": "hvcore.capabilities",
    "ClaimLevel": "hvcore.capabilities",
    "DriverDescription": "hvcore.capabilities",
    "DriverContext": "hvcore.registry",
    "DriverPlugin": "hvcore.registry",
    "Family": "hvcore.registry",
    "PluginEntry": "hvcore.registry",
    "Deadline": "hvcore.deadline",
    "Directories": "hvcore.directories",
    "private_directory": "hvcore.directories",
    "Step": "hvcore.journal",
    "Journal": "hvcore.journal",
    "unfinished": "hvcore.journal",
    "read_record": "hvcore.records",
    "write_record": "hvcore.records",
    "as_plain": "hvcore.records",
    "instance_lock": "hvcore.locks",
    "ConformanceProfile": "hvcore.conformance.profile",
    "ConsoleClient": "hvcore.conformance.profile",
    "LiveParameter": "hvcore.conformance.profile",
    "EarlyMigration": "hvcore.conformance.profile",
    "EncryptedDisk": "hvcore.conformance.profile",
    "FailingTarget": "hvcore.conformance.profile",
    "PasswordConsole": "hvcore.conformance.profile",
    "Size": "hvcore.model.units",
    "Seconds": "hvcore.model.units",
    "parse_size": "hvcore.model.units",
    "parse_seconds": "hvcore.model.units",
    "format_size": "hvcore.model.units",
    "format_seconds": "hvcore.model.units",
    "param": "hvcore.params.declare",
    "ParameterSection": "hvcore.params.declare",
    "ParameterTable": "hvcore.params.declare",
    "Rule": "hvcore.params.declare",
    "definition_changes": "hvcore.params.difference",
    "structure": "hvcore.params.structure",
    "structure_sections": "hvcore.params.structure",
    "checks": "hvcore.params",
    "parameter_rows": "hvcore.params.explain",
    "json_schema": "hvcore.params.json_schema",
    "read_node_info": "hvcore.linux",
    "powercycle": "hvcore.linux",
    "boot_id": "hvcore.linux",
    "process_start_time": "hvcore.linux",
    "console_holder": "hvcore.console_clients",
    "device_holder": "hvcore.console_clients",
}

__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from hvcore.capabilities import Capability as Capability
    from hvcore.capabilities import Claim as Claim
    from hvcore.capabilities import ClaimLevel as ClaimLevel
    from hvcore.capabilities import DriverDescription as DriverDescription
    from hvcore.conformance.profile import ConformanceProfile as ConformanceProfile
    from hvcore.conformance.profile import ConsoleClient as ConsoleClient
    from hvcore.conformance.profile import EarlyMigration as EarlyMigration
    from hvcore.conformance.profile import EncryptedDisk as EncryptedDisk
    from hvcore.conformance.profile import FailingTarget as FailingTarget
    from hvcore.conformance.profile import LiveParameter as LiveParameter
    from hvcore.conformance.profile import PasswordConsole as PasswordConsole
    from hvcore.console_clients import console_holder as console_holder
    from hvcore.console_clients import device_holder as device_holder
    from hvcore.deadline import Deadline as Deadline
    from hvcore.definition import read_definition as read_definition
    from hvcore.directories import Directories as Directories
    from hvcore.directories import private_directory as private_directory
    from hvcore.driver import Driver as Driver
    from hvcore.errors import AlreadyRunning as AlreadyRunning
    from hvcore.errors import DeadlineExceeded as DeadlineExceeded
    from hvcore.errors import DriverFault as DriverFault
    from hvcore.errors import HostError as HostError
    from hvcore.errors import HypervisorError as HypervisorError
    from hvcore.errors import HypervisorRefused as HypervisorRefused
    from hvcore.errors import InstanceBusy as InstanceBusy
    from hvcore.errors import InstanceNotFound as InstanceNotFound
    from hvcore.errors import InvalidParameters as InvalidParameters
    from hvcore.errors import LoadError as LoadError
    from hvcore.errors import NotRunning as NotRunning
    from hvcore.errors import OperationFailed as OperationFailed
    from hvcore.errors import OutcomeUnknown as OutcomeUnknown
    from hvcore.errors import PolicyDenied as PolicyDenied
    from hvcore.errors import RecordError as RecordError
    from hvcore.errors import Refused as Refused
    from hvcore.errors import SpawnFailed as SpawnFailed
    from hvcore.errors import UnsupportedOperation as UnsupportedOperation
    from hvcore.errors import WrongState as WrongState
    from hvcore.exporter import InstanceCollector as InstanceCollector
    from hvcore.extensions.audit import AuditLog as AuditLog
    from hvcore.extensions.metrics import Metrics as Metrics
    from hvcore.extensions.metrics import OperationMetrics as OperationMetrics
    from hvcore.extensions.policy import Allow as Allow
    from hvcore.extensions.policy import Deny as Deny
    from hvcore.extensions.policy import MaxRunning as MaxRunning
    from hvcore.extensions.policy import Policy as Policy
    from hvcore.extensions.tracing import Span as Span
    from hvcore.extensions.tracing import Tracing as Tracing
    from hvcore.extensions.tracing import current_span as current_span
    from hvcore.findings import Finding as Finding
    from hvcore.findings import FindingSet as FindingSet
    from hvcore.findings import Severity as Severity
    from hvcore.hookspecs.markers import HOOK_API as HOOK_API
    from hvcore.hookspecs.markers import hookimpl as hookimpl
    from hvcore.hookspecs.markers import hookspec as hookspec
    from hvcore.hookspecs.table import OPERATIONS as OPERATIONS
    from hvcore.hookspecs.table import Operation as Operation
    from hvcore.journal import Journal as Journal
    from hvcore.journal import Step as Step
    from hvcore.journal import unfinished as unfinished
    from hvcore.linux import boot_id as boot_id
    from hvcore.linux import powercycle as powercycle
    from hvcore.linux import process_start_time as process_start_time
    from hvcore.linux import read_node_info as read_node_info
    from hvcore.locks import instance_lock as instance_lock
    from hvcore.migration import MigrationDestination as MigrationDestination
    from hvcore.migration import migrate as migrate
    from hvcore.migration_policy import read_migration_policy as read_migration_policy
    from hvcore.model.backup import Backup as Backup
    from hvcore.model.backup import Checkpoint as Checkpoint
    from hvcore.model.backup import Checkpoints as Checkpoints
    from hvcore.model.backup import DiskBackup as DiskBackup
    from hvcore.model.backup import DiskCheckpoint as DiskCheckpoint
    from hvcore.model.console import Console as Console
    from hvcore.model.console import ConsoleHolder as ConsoleHolder
    from hvcore.model.console import PasswordResult as PasswordResult
    from hvcore.model.console import Screenshot as Screenshot
    from hvcore.model.devices import BalloonResult as BalloonResult
    from hvcore.model.devices import Device as Device
    from hvcore.model.devices import HotplugResult as HotplugResult
    from hvcore.model.devices import HotplugSupport as HotplugSupport
    from hvcore.model.devices import LiveParameters as LiveParameters
    from hvcore.model.devices import Medium as Medium
    from hvcore.model.devices import Processors as Processors
    from hvcore.model.devices import ResizeResult as ResizeResult
    from hvcore.model.events import Event as Event
    from hvcore.model.events import EventBatch as EventBatch
    from hvcore.model.host import AncillaryFile as AncillaryFile
    from hvcore.model.host import AncillaryFiles as AncillaryFiles
    from hvcore.model.host import NodeInfo as NodeInfo
    from hvcore.model.host import NumaNode as NumaNode
    from hvcore.model.host import PowercycleMethod as PowercycleMethod
    from hvcore.model.host import PowercycleResult as PowercycleResult
    from hvcore.model.instance import Disk as Disk
    from hvcore.model.instance import Instance as Instance
    from hvcore.model.instance import Nic as Nic
    from hvcore.model.instance import with_identities as with_identities
    from hvcore.model.instance_devices import device_clashes as device_clashes
    from hvcore.model.instance_devices import find_device as find_device
    from hvcore.model.instance_devices import with_device as with_device
    from hvcore.model.instance_devices import with_other_device as with_other_device
    from hvcore.model.instance_devices import without_device as without_device
    from hvcore.model.migration import MigrationCompatibility as MigrationCompatibility
    from hvcore.model.migration import MigrationInfo as MigrationInfo
    from hvcore.model.migration import MigrationPhase as MigrationPhase
    from hvcore.model.migration import MigrationResult as MigrationResult
    from hvcore.model.migration import MigrationStatus as MigrationStatus
    from hvcore.model.migration import MigrationTarget as MigrationTarget
    from hvcore.model.migration import SavedInstance as SavedInstance
    from hvcore.model.migration_policy import ALL_DISKS as ALL_DISKS
    from hvcore.model.migration_policy import AutoConverge as AutoConverge
    from hvcore.model.migration_policy import MigrationPolicy as MigrationPolicy
    from hvcore.model.migration_policy import MigrationTls as MigrationTls
    from hvcore.model.migration_policy import MultiFd as MultiFd
    from hvcore.model.migration_policy import PostCopy as PostCopy
    from hvcore.model.plan import Plan as Plan
    from hvcore.model.plan import PlannedChange as PlannedChange
    from hvcore.model.plan import PlannedFd as PlannedFd
    from hvcore.model.plan import PlannedOption as PlannedOption
    from hvcore.model.progress import Progress as Progress
    from hvcore.model.recovery import InterruptedInstances as InterruptedInstances
    from hvcore.model.recovery import RecoveredInstance as RecoveredInstance
    from hvcore.model.recovery import Recovery as Recovery
    from hvcore.model.snapshots import Snapshot as Snapshot
    from hvcore.model.snapshots import SnapshotDisk as SnapshotDisk
    from hvcore.model.snapshots import SnapshotListing as SnapshotListing
    from hvcore.model.state import BlockStats as BlockStats
    from hvcore.model.state import Cause as Cause
    from hvcore.model.state import DeviceInfo as DeviceInfo
    from hvcore.model.state import GuestMemory as GuestMemory
    from hvcore.model.state import InstanceInfo as InstanceInfo
    from hvcore.model.state import InstanceInfos as InstanceInfos
    from hvcore.model.state import InstanceListing as InstanceListing
    from hvcore.model.state import InstanceName as InstanceName
    from hvcore.model.state import InstanceState as InstanceState
    from hvcore.model.state import InstanceStats as InstanceStats
    from hvcore.model.state import NicStats as NicStats
    from hvcore.model.state import PeripheralInfo as PeripheralInfo
    from hvcore.model.state import StateReason as StateReason
    from hvcore.model.state import Transition as Transition
    from hvcore.model.state import TwoValueState as TwoValueState
    from hvcore.model.units import Seconds as Seconds
    from hvcore.model.units import Size as Size
    from hvcore.model.units import format_seconds as format_seconds
    from hvcore.model.units import format_size as format_size
    from hvcore.model.units import parse_seconds as parse_seconds
    from hvcore.model.units import parse_size as parse_size
    from hvcore.operation import DriverView as DriverView
    from hvcore.operation import OperationCall as OperationCall
    from hvcore.params import checks as checks
    from hvcore.params.declare import ParameterSection as ParameterSection
    from hvcore.params.declare import ParameterTable as ParameterTable
    from hvcore.params.declare import Rule as Rule
    from hvcore.params.declare import param as param
    from hvcore.params.difference import definition_changes as definition_changes
    from hvcore.params.explain import parameter_rows as parameter_rows
    from hvcore.params.json_schema import json_schema as json_schema
    from hvcore.params.structure import structure as structure
    from hvcore.params.structure import structure_sections as structure_sections
    from hvcore.qcow2_content import read_qcow2 as read_qcow2
    from hvcore.qcow2_image import make_qcow2 as make_qcow2
    from hvcore.records import as_plain as as_plain
    from hvcore.records import read_record as read_record
    from hvcore.records import write_record as write_record
    from hvcore.registry import DriverContext as DriverContext
    from hvcore.registry import DriverPlugin as DriverPlugin
    from hvcore.registry import Family as Family
    from hvcore.registry import PluginEntry as PluginEntry
    from hvcore.registry import available as available
    from hvcore.registry import available_drivers as available_drivers
    from hvcore.registry import load_driver as load_driver
    from hvcore.registry import load_plugin as load_plugin


def __getattr__(name: str) -> object:
    try:
        module = importlib.import_module(_EXPORTS[name])
    except KeyError:
        raise AttributeError(f"module 'hvcore' has no attribute {name!r}") from None
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
