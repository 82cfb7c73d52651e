"""Moving an instance to another host.

Order: `hv_migration_info` (source), `hv_accept_instance` (destination), `hv_migrate_instance` (source),
`hv_get_migration_status` as often as wanted, then the two finalisers in either order, as often as wanted. Where nobody
but the host application can do what becomes due meanwhile, it calls `hv_continue_migration` as well, on the source.
`hvcore.migrate` does all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from hvcore.deadline import Deadline
    from hvcore.model.migration import (
        MigrationCompatibility,
        MigrationInfo,
        MigrationStatus,
        MigrationTarget,
    )
    from hvcore.model.migration_policy import MigrationPolicy
    from hvcore.model.state import Transition


@hookspec(firstresult=True)
def hv_versions_safe_for_migration(source: str, destination: str) -> MigrationCompatibility:
    """Say whether an instance can move between two versions of the hypervisor.

    Args:
        source: version on the source host.
        destination: version on the destination host.

    Returns:
        Whether, and what to watch.

    Errors: none.

    Capability: ``migration``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_migration_info(name: str, deadline: Deadline) -> MigrationInfo:
    """Collect what the destination needs to know about a running instance.

    Args:
        name: name of the instance.
        deadline: by when to be done.

    Returns:
        Decisions as plain data, with the version of their format.

    Errors: `NotRunning`; `RecordError`.

    Capability: ``migration``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_accept_instance(
    info: MigrationInfo, address: str, policy: MigrationPolicy, deadline: Deadline
) -> MigrationTarget:
    """Prepare the destination: a paused process that listens for the instance.

    Images are made for the disks that the policy has copied, and taken again if the guest never runs here. No image
    that is there is written to, unless it is empty or the policy overwrites; the source's own never.

    Args:
        info: from the source; checked against its schema, it is hostile until then.
        address: IP address to listen on.
        policy: how the migration should go; it has no errors.
        deadline: by when to be done; on failure nothing is left.

    Returns:
        Where it listens.

    Errors: `AlreadyRunning`; `InvalidParameters` with every difference between the hosts; everything a start can
    raise.

    Capability: ``migration``; ``migration-disks`` for ``copy_disks`` in the policy. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_migrate_instance(
    name: str, target: MigrationTarget, policy: MigrationPolicy, deadline: Deadline
) -> MigrationStatus:
    """Begin to send a running instance; returns as soon as it has begun.

    Disks that the policy has copied are sent first, in phase ``disks``.

    Args:
        name: name of the instance.
        target: where the destination listens.
        policy: how it should go, the same as on the destination; it has no errors.
        deadline: by when it must have begun.

    Returns:
        The first status.

    Errors: `NotRunning`; `WrongState` when one is under way; `InvalidParameters` with what the hypervisor lacks for the
    policy; `HostError` when the destination does not take disks; `HypervisorRefused`; `OutcomeUnknown`.

    Capability: ``migration``; ``migration-disks`` for ``copy_disks`` in the policy. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_get_migration_status(name: str, deadline: Deadline) -> MigrationStatus:
    """Say how a migration goes. Changes nothing.

    Args:
        name: name of the instance.
        deadline: by when to be done.

    Returns:
        Phase and progress; a phase this version does not know counts as in progress.

    Errors: `NotRunning`; `DeadlineExceeded` when it does not answer.

    Capability: ``migration``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_continue_migration(name: str, switch_over: bool, wait: float, deadline: Deadline) -> MigrationStatus:
    """Do on the source what has become due: what the policy asks for now, and letting the guest go over.

    Once all disks that are copied are the same on both sides, that is to begin to send the guest itself.

    For drivers of hypervisors that do not do this by themselves. Called again and again until the phase is final; when
    it is not, the guest is not lost: it runs on, or waits before it goes over.

    Args:
        name: name of the instance.
        switch_over: let a guest that waits to go over go; without it, it waits on in phase ``pre-switchover``.
        wait: seconds to wait for a change of phase, if nothing is due.
        deadline: by when to be done.

    Returns:
        The status after it.

    Errors: `NotRunning`; `HypervisorRefused`; `OutcomeUnknown`.

    Capability: ``migration-steps``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_cancel_migration(name: str, deadline: Deadline) -> MigrationStatus:
    """Cancel a migration; the source runs on. After the point of no return nothing happens.

    Args:
        name: name of the instance.
        deadline: by when to be done.

    Returns:
        The status after it.

    Errors: `NotRunning`; `OutcomeUnknown`.

    Capability: ``migration``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_finalize_migration_source(name: str, success: bool, deadline: Deadline) -> Transition:
    """Finish on the source, looking at what really happened. May be called again.

    Args:
        name: name of the instance.
        success: what the caller believes.
        deadline: by when to be done.

    Returns:
        What changed: gone after a success, running again after a failure.

    Errors: `WrongState` when belief and reality contradict; `OutcomeUnknown`.

    Capability: ``migration``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_finalize_migration_dst(info: MigrationInfo, success: bool, deadline: Deadline) -> Transition:
    """Finish on the destination, looking at what really happened. May be called again.

    Args:
        info: what `hv_accept_instance` was given.
        success: what the caller believes.
        deadline: by when to be done.

    Returns:
        What changed: running as it did on the source after a success, gone after a failure.

    Errors: `WrongState` when belief and reality contradict; `OutcomeUnknown`.

    Capability: ``migration``. Since: 0.1.
    """
