"""Records about a host: processors, memory, pressure, cgroups; they hold facts and never read them."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs


class PressureResource(enum.StrEnum):
    """A resource for which the kernel accounts stalls."""

    CPU = "cpu"
    MEMORY = "memory"
    IO = "io"
    IRQ = "irq"


class CgroupMode(enum.StrEnum):
    """How cgroup hierarchies are mounted on a host."""

    NONE = "none"
    V1 = "v1"
    V2 = "v2"
    HYBRID = "hybrid"
    """Some controllers are on version 1, with a version 2 hierarchy mounted beside them."""


class PowercycleMethod(enum.StrEnum):
    """What was asked to restart the host."""

    SYSRQ = "sysrq"
    REBOOT_COMMAND = "reboot-command"


@attrs.frozen(kw_only=True)
class HugePagePool:
    """The kernel's pool of huge pages of one size.

    Attributes:
        size: size of one page in bytes.
        total: pages in the pool.
        free: pages not handed out; reserved ones count as free until they are touched.
        reserved: free pages promised to a mapping; ``None`` for the pool of one NUMA node, where the
            kernel does not say.
    """

    size: int
    total: int
    free: int
    reserved: int | None = None


@attrs.frozen(kw_only=True)
class NumaNode:
    """One NUMA node that is online.

    Attributes:
        id: the kernel's number of the node; numbers may have gaps.
        cpus: online processors of the node, ascending; empty for a node of memory only.
        memory_total: memory of the node in bytes.
        memory_free: unused memory of the node in bytes; page cache counts as used.
        distances: pairs of a node's id and the relative cost of its memory as seen from here; 10 is local.
        huge_pages: the node's pools, smallest page size first.
    """

    id: int
    cpus: tuple[int, ...]
    memory_total: int
    memory_free: int
    distances: tuple[tuple[int, int], ...]
    huge_pages: tuple[HugePagePool, ...]


@attrs.frozen(kw_only=True)
class Pressure:
    """Share of time in which tasks were stalled for want of one resource.

    All values are percent of elapsed time, 0 to 100; ``None`` where the kernel does not account it (for
    example "full" of the processor before Linux 5.13, "some" of interrupts).

    Attributes:
        resource: what was lacking.
        some_avg10: at least one task was stalled, over the last 10 seconds.
        some_avg60: at least one task was stalled, over the last 60 seconds.
        full_avg10: all tasks that were not idle were stalled, over the last 10 seconds.
        full_avg60: all tasks that were not idle were stalled, over the last 60 seconds.
    """

    resource: PressureResource
    some_avg10: float | None
    some_avg60: float | None
    full_avg10: float | None
    full_avg60: float | None


@attrs.frozen(kw_only=True)
class CgroupFacts:
    """The cgroup hierarchies that this process can see.

    Attributes:
        mode: how the hierarchies are mounted.
        controllers: pairs of a controller's name and the cgroup version (1 or 2) it is on, by name; only
            controllers whose hierarchy is mounted.
        memory_limit: tightest memory limit of this process's cgroup and the cgroups above it, in bytes;
            ``None`` when there is none.
    """

    mode: CgroupMode
    controllers: tuple[tuple[str, int], ...]
    memory_limit: int | None


@attrs.frozen(kw_only=True)
class NodeInfo:
    """What a host has, and how much of it is left.

    Attributes:
        hostname: network node name.
        kernel: release of the running kernel.
        architecture: machine name as in ``uname -m``.
        boot_id: the kernel's id of this boot; a different one means the host was restarted.
        memory_total: memory the kernel manages, in bytes.
        memory_free: memory that can be given to an instance without swapping, in bytes (``MemAvailable``).
        memory_used: the rest, in bytes.
        cpus_online: processors (hardware threads) that run tasks.
        cpus_total: processors present, offline ones included.
        sockets: processor packages with an online processor.
        cores: physical cores with an online processor, over all sockets.
        threads_per_core: online threads of the core that has the most of them.
        numa_nodes: NUMA nodes by id; a host without NUMA has one node 0.
        huge_pages: pools over all nodes, smallest page size first.
        pressure: one entry for each resource the kernel accounts; empty where it has no accounting.
        cgroups: the cgroup hierarchies.
        hypervisor: pairs of a program and its version, filled in by a driver, such as ``("qemu", "7.2.22")``.
        supported: values of parameters that this host's hypervisor has, by path of the parameter, filled in by a
            driver; only parameters whose values differ between hosts, for example ``params.machine``.
    """

    hostname: str
    kernel: str
    architecture: str
    boot_id: str
    memory_total: int
    memory_free: int
    memory_used: int
    cpus_online: int
    cpus_total: int
    sockets: int
    cores: int
    threads_per_core: int
    numa_nodes: tuple[NumaNode, ...]
    huge_pages: tuple[HugePagePool, ...]
    pressure: tuple[Pressure, ...]
    cgroups: CgroupFacts
    hypervisor: tuple[tuple[str, str], ...] = ()
    supported: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class AncillaryFile:
    """A file outside the driver that a host needs for it, and that is kept the same on all hosts.

    Attributes:
        path: absolute path.
        required: the driver does not work without it.
        purpose: what the driver does with it, in a few words.
    """

    path: str
    required: bool
    purpose: str


@attrs.frozen(kw_only=True)
class PowercycleResult:
    """A restart of the host is under way.

    Attributes:
        method: what was asked to do it.
    """

    method: PowercycleMethod


@attrs.frozen(kw_only=True)
class AncillaryFiles:
    """All files that must be the same on every host."""

    files: tuple[AncillaryFile, ...] = ()
