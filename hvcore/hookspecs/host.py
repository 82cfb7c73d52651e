"""The host itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from hvcore.deadline import Deadline
    from hvcore.findings import FindingSet
    from hvcore.model.host import AncillaryFiles, NodeInfo, PowercycleResult


@hookspec(firstresult=True)
def hv_get_node_info(deadline: Deadline) -> NodeInfo:
    """Facts about this host: memory, CPUs, NUMA nodes, huge pages, pressure, the hypervisor's version.

    Args:
        deadline: by when to be done.

    Returns:
        The facts, sizes in bytes.

    Errors: `HostError` when a file of the kernel cannot be read or understood.

    Capability: none (every driver). Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_verify(deadline: Deadline) -> FindingSet:
    """Find everything on this host that keeps the driver from working, or that it works worse without.

    Args:
        deadline: by when to be done.

    Returns:
        Findings with severities and hints; none when all is well.

    Errors: none; problems are findings.

    Capability: none (every driver). Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_powercycle_node(deadline: Deadline) -> PowercycleResult:
    """Restart this host at once, without stopping anything first.

    Args:
        deadline: by when to have asked for it.

    Returns:
        How it was asked for; on success usually nothing returns.

    Errors: `HostError`; `PolicyDenied` unless the driver's settings allow it.

    Capability: ``powercycle``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_get_ancillary_files() -> AncillaryFiles:
    """List files outside the driver's own directories that must be the same on all hosts.

    Returns:
        The files, and which of them may be absent.

    Errors: none.

    Capability: ``ancillary-files``. Since: 0.1.
    """
