"""Looking at instances. No query takes a lock, changes anything, or waits for another instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from hvcore.deadline import Deadline
    from hvcore.findings import FindingSet
    from hvcore.model.recovery import InterruptedInstances
    from hvcore.model.state import InstanceInfo, InstanceInfos, InstanceListing, InstanceStats


@hookspec(firstresult=True)
def hv_list_instances(deadline: Deadline) -> InstanceListing:
    """List the instances that hold something on this host: the alive ones, and the dead ones not yet stopped.

    Asks no instance anything, so that a hung one delays nothing.

    Args:
        deadline: by when to be done.

    Returns:
        Names, sorted, and whether each is alive.

    Errors: `HostError`.

    Capability: none (every driver). Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_get_instance_info(name: str, deadline: Deadline) -> InstanceInfo:
    """Say what an instance is doing and why.

    Also for one that has ended: the reason stays until it is started again or cleaned up.

    Args:
        name: name of the instance.
        deadline: by when to be done; an instance that does not answer is reported as ``unknown``, not waited for.

    Returns:
        State, reason and sizes.

    Errors: `InstanceNotFound`.

    Capability: none (every driver). Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_get_all_instances_info(deadline: Deadline) -> InstanceInfos:
    """The same for every instance that `hv_list_instances` lists, asked side by side.

    Args:
        deadline: by when to be done; those that have not answered by then are ``unknown``.

    Returns:
        Information, sorted by name.

    Errors: `HostError`.

    Capability: none (every driver). Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_get_instance_stats(name: str, deadline: Deadline) -> InstanceStats:
    """Counters of one instance.

    Those of NICs are seen from the guest: what the host's end of a tap sends, the guest receives.

    Args:
        name: name of the instance.
        deadline: by when to be done; one that does not answer is refused with `DeadlineExceeded`.

    Returns:
        CPU seconds, bytes of memory, counters of disks and NICs.

    Errors: `InstanceNotFound`; `NotRunning`; `DeadlineExceeded`.

    Capability: ``stats``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_verify_instance(name: str, deadline: Deadline) -> FindingSet:
    """Find where the record of an instance and reality have drifted apart.

    Args:
        name: name of the instance.
        deadline: by when to be done.

    Returns:
        Findings; none when they agree.

    Errors: `InstanceNotFound`.

    Capability: ``verify-instance``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_list_interrupted(deadline: Deadline) -> InterruptedInstances:
    """Name the instances with which something was left half done although `hv_list_instances` leaves them out.

    A stopped instance can have its snapshots changed, and whoever does that can be killed. The facade adds these names
    to the listed ones when the host lets it recover without a name. Instances that are listed need not be named: they
    are looked at in any case.

    Asks no instance anything and takes no lock: one that something is being done with now may be named as well. Looks
    at what is kept about each instance once, and never into its disks.

    Args:
        deadline: by when to be done.

    Returns:
        Names, sorted; none when nothing was left half done.

    Errors: `HostError`.

    Capability: ``list-interrupted``. Since: 0.1.
    """
