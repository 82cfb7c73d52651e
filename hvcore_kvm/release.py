"""Taking down what a start put up outside the instance's directory, once its process is gone."""

from __future__ import annotations

from collections.abc import Callable

from hvcore import HypervisorError, OperationFailed, Step
from hvcore_kvm.cgroup import remove_groups
from hvcore_kvm.companions import end_companions
from hvcore_kvm.definition import Definition, NicDefinition, read
from hvcore_kvm.families import Families, InterfaceEvent, NicContext, NicPlan
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.observation import Observed
from hvcore_kvm.runtime import RuntimeRecord


def release(seen: Observed, directory: str, families: Families, announce: Callable[[InterfaceEvent], None]) -> None:
    """Do the down steps of every NIC of an instance that is not alive, and undo the steps of its security model.

    Images that were made for a guest that was to come from another host, and never ran here, go too.

    Args:
        seen: the instance.
        directory: its directory.
        families: the family plugins.
        announce: told of network interfaces that have gone down.

    Raises:
        OperationFailed: some failed; all were tried, and they may be tried again.
    """
    end_companions(seen.companions, spoken_to=not seen.unfinished)
    problems = []
    moving = seen.migration
    if moving is not None and moving.role == "destination" and moving.files and not moving.over:
        from hvcore_kvm.migration.disk_files import remove_files

        try:
            remove_files(moving.files)
        except OSError as error:
            problems.append(f"{error.filename}: {error.strerror}")
    try:
        remove_groups(seen.name, directory)
    except HypervisorError as error:
        problems.append(str(error))
    if seen.record is not None:
        problems += _take_down(seen.record, families, announce)
    if problems:
        raise OperationFailed(
            "what it had on the host could not be taken down completely: " + "; ".join(problems),
            instance=seen.name,
            hint="mend it and stop the instance again",
        )


def _take_down(record: RuntimeRecord, families: Families, announce: Callable[[InterfaceEvent], None]) -> list[str]:
    """What the families have put up; returns what could not be taken down."""
    problems = []
    definition, _ = read(record.instance, families)
    for nic in definition.nics:
        try:
            plan = connection_of(definition, nic)
        except HypervisorError as error:
            problems.append(f"{nic.origin}: {error}")
            continue
        for step in plan.down:
            try:
                step.do()
            except (HypervisorError, OSError) as error:
                problems.append(f"{nic.origin}: {step.name}: {error}")
        if plan.interface:
            announce(
                InterfaceEvent(instance=record.instance.name, nic=nic.nic, interface=plan.interface, change="down")
            )
    if definition.security_model is not None:
        steps: tuple[Step, ...] = ()
        try:
            steps = definition.security_model.backend.plan(definition.instance, definition.security_parameters).steps
        except HypervisorError as error:
            problems.append(f"security_model: {error}")
        for step in reversed(steps):
            try:
                if step.undo is not None:
                    step.undo()
            except (HypervisorError, OSError) as error:
                problems.append(f"security_model: undoing {step.name}: {error}")
    return problems


def lead_to(families: Families, record: RuntimeRecord) -> None:
    """Lead to a guest that has arrived from another host what reaches it by this one; may be done again.

    Raises:
        HypervisorError: the host refused.
    """
    definition, _ = read(record.instance, families)
    for nic in definition.nics:
        for step in connection_of(definition, nic, arriving=True).lead:
            step.do()


def connection_of(definition: Definition, nic: NicDefinition, *, arriving: bool = False) -> NicPlan:
    """How a NIC of a running instance is connected; what of it can be taken down follows from its definition alone.

    Args:
        definition: of the instance.
        nic: the NIC.
        arriving: the instance comes from another host.
    """
    context = NicContext(
        instance=definition.instance,
        nic=nic.nic,
        parameters=nic.mode_parameters,
        device=nic.parameters,
        netdev_id=device_id("net", nic.nic.uuid or ""),
        fd=lambda _: -1,
        arriving=arriving,
    )
    return nic.mode.backend.plan(context)
