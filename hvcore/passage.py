"""The one way every operation passes through: claim, lock, deadline, extensions, and the context stamped on errors."""

from __future__ import annotations

import contextlib
import os
from typing import Any, cast

import pluggy

from hvcore.capabilities import Capability, DriverDescription
from hvcore.deadline import Deadline
from hvcore.definition import DefinitionLike, read_definition
from hvcore.device_argument import check_device_uuid, read_device
from hvcore.directories import Directories
from hvcore.errors import HypervisorError, InvalidParameters, Refused, UnsupportedOperation
from hvcore.extension_fault import extension_fault, result_fault
from hvcore.findings import Finding, FindingSet
from hvcore.hookspecs.table import OPERATION
from hvcore.locks import instance_lock
from hvcore.migration_policy import read_migration_policy
from hvcore.model.devices import Action
from hvcore.model.instance import Instance, with_identities
from hvcore.model.migration_policy import MigrationPolicy
from hvcore.model.names import check_instance_name
from hvcore.operation import DISPATCHER, Dispatcher, DriverView, OperationCall, result_type
from hvcore.params.checks import absolute_path
from hvcore.params.declare import ParameterTable


class Passage:
    """What the methods of `hvcore.Driver` have in common."""

    def __init__(
        self,
        name: str,
        manager: pluggy.PluginManager,
        plugin: object,
        directories: Directories,
        host_id: str,
    ) -> None:
        self._name = name
        self._manager: pluggy.PluginManager | None = manager
        self._plugin = plugin
        self._directories = directories
        self._host_id = host_id
        self._description: DriverDescription = manager.hook.hv_describe_driver()
        self._table: ParameterTable | None = None
        self._view = DriverView(cast("Dispatcher", manager.get_plugin(DISPATCHER)))

    def _named(
        self,
        operation: str,
        instance: Instance | str,
        timeout: float | None,
        *,
        sizes: tuple[str, ...] = (),
        paths: tuple[str, ...] = (),
        changing: Action | None = None,
        **arguments: Any,
    ) -> Any:
        """Call an operation on one instance.

        ``sizes`` are the arguments that are numbers of bytes, ``paths`` paths; ``changing`` is what it does with its
        ``device``.
        """
        name = None
        try:
            name = checked_name(instance)
            for path in sizes:
                _check_size(path, arguments[path], name)
            for path in paths:
                check_path(path, arguments[path], name)
            if changing is not None and (capability := OPERATION[operation].capability) is not None:
                # Whoever cannot change devices at all does not ask for a better description of one.
                self._require(capability, operation, name)
            if changing == "remove":
                check_device_uuid(arguments["device"])
            elif changing is not None:
                arguments["device"] = read_device(arguments["device"], named=changing == "modify")
        except InvalidParameters as error:
            raise self._stamp(error, operation, name) from None
        return self._call(operation, name, timeout=timeout, name=name, deadline=..., **arguments)

    def _call(
        self,
        operation_name: str,
        instance_name: str | None = None,
        /,
        *,
        timeout: float | None = None,
        **arguments: Any,
    ) -> Any:
        operation = OPERATION[operation_name]
        try:
            manager = self._manager
            if manager is None:
                raise Refused("the driver has been closed", code="driver-closed")
            if operation.capability is not None:
                self._require(operation.capability, operation_name, instance_name)
            deadline = Deadline.after(operation.default_timeout if timeout is None else timeout)
            if "deadline" in arguments:
                arguments["deadline"] = deadline
            with self._lock(operation_name, instance_name, deadline) if operation.mutating else _NOTHING:
                call = OperationCall(
                    name=operation_name,
                    driver=self._name,
                    instance=instance_name,
                    arguments=arguments,
                    deadline=deadline,
                    begun=deadline.clock(),
                    view=self._view,
                )
                result = manager.hook.hv_operation(call=call)
            # The dispatcher has checked what the driver returned: only an extension can have changed it.
            if not isinstance(result, expected := result_type(operation_name)):
                raise result_fault(result, expected, operation_name, manager)
        except HypervisorError as error:
            raise self._stamp(error, operation_name, instance_name) from error.__cause__
        except Exception as error:
            fault = extension_fault(error, operation_name, self._manager)
            raise self._stamp(fault, operation_name, instance_name) from error
        return result

    def _lock(
        self, operation: str, instance: str | None, deadline: Deadline
    ) -> contextlib.AbstractContextManager[None]:
        if instance is None:
            return _NOTHING
        return instance_lock(self._lock_directory, instance, operation, deadline)

    @property
    def _lock_directory(self) -> str:
        return os.path.join(self._directories.state, "locks")

    def _require(self, capability: Capability, operation: str, instance: str | None) -> None:
        claim = self._description.claim(capability)
        if not claim.offered:
            raise self._stamp(
                UnsupportedOperation(
                    f"driver {self._name} does not offer {capability.value} ({claim.level.value}): {claim.reason}",
                    hint=f"'hv doctor --driver {self._name}' shows what it offers",
                ),
                operation,
                instance,
            )

    def _stamp(self, error: HypervisorError, operation: str, instance: str | None) -> HypervisorError:
        error.driver = error.driver or self._name
        error.operation = error.operation or operation
        error.instance = error.instance or instance
        return error

    def _known(self, definition: Instance) -> Instance:
        return with_identities(definition, self._host_id)

    def _examined(self, instance: DefinitionLike) -> tuple[Instance, FindingSet]:
        """The definition with its identities filled in, and everything wrong with its syntax."""
        read, findings = read_definition(instance)
        definition = self._known(read)
        found: FindingSet = self._call("check_parameter_syntax", definition.name, instance=definition)
        # What the model has reported is not reported again by a driver that saw an empty value in its place.
        reported = {finding.path for finding in findings}
        fresh = (f for f in found if not any(_covers(path, f.path) for path in reported))
        return definition, FindingSet(sorted((*findings, *fresh), key=lambda finding: finding.path))

    def _agreed(self, policy: MigrationPolicy, operation: str, instance: str) -> MigrationPolicy:
        """A migration policy without contradictions, for a driver that migrates at all."""
        self._require(Capability.MIGRATION, operation, instance)
        agreed, findings = read_migration_policy(policy)
        if findings:
            error = InvalidParameters("the migration policy has errors", FindingSet(findings).below("policy"))
            raise self._stamp(error, operation, instance)
        if agreed.copy_disks:
            # A driver that knows nothing of it would move the guest away from its disks.
            self._require(Capability.MIGRATION_DISKS, operation, instance)
        return agreed

    def _checked(self, instance: DefinitionLike) -> Instance:
        definition, findings = self._examined(instance)
        if not findings.ok:
            raise self._stamp(
                InvalidParameters("the definition has errors", findings.errors),
                "check_parameter_syntax",
                definition.name or None,
            )
        return definition


_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


def _covers(reported: str, path: str) -> bool:
    return path == reported or path.startswith((f"{reported}.", f"{reported}["))


def checked_name(instance: Instance | str) -> str:
    """The name of an instance.

    Raises:
        InvalidParameters: it is none.
    """
    name = instance.name if isinstance(instance, Instance) else instance
    problem = check_instance_name(name) if type(name) is str else "is not text"
    if problem:
        raise invalid_argument("name", problem, None)
    return name


def _check_size(path: str, value: object, instance: str) -> None:
    if type(value) is not int:
        raise invalid_argument(path, f"is not a whole number of bytes but {type(value).__name__}", instance)
    if not 0 < value < 2**63:
        raise invalid_argument(path, "is not a number of bytes that a disk or memory can have", instance)


def check_path(path: str, value: object, instance: str | None) -> None:
    """Refuse an argument that is no absolute path.

    Raises:
        InvalidParameters: it is none.
    """
    problem = absolute_path(value) if type(value) is str else f"is not text but {type(value).__name__}"
    if problem:
        raise invalid_argument(path, problem, instance)


def invalid_argument(path: str, message: str, instance: str | None) -> InvalidParameters:
    """The error for an argument of a method, before anything was touched."""
    return InvalidParameters(
        "an argument is not valid",
        FindingSet([Finding(code="invalid-value", path=path, message=message)]),
        instance=instance,
    )
