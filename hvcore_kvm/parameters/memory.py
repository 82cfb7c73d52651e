"""Parameters of the guest's memory."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from hvcore import Finding, Seconds, Size, checks, param
from hvcore_kvm.affinity import parse_mask
from hvcore_kvm.parameters.syntax import single_cpu_mask

_MIB = 2**20


@attrs.frozen(kw_only=True)
class NumaNode:
    """One NUMA node of the guest."""

    cpus: str = param(checks=(single_cpu_mask,), summary="Virtual CPUs of the node, as 0-3 or 0,2.")
    memory: Size = param(
        unit="bytes", checks=(checks.at_least(_MIB),), summary="Memory of the node; all nodes add up to the guest's."
    )
    host_nodes: tuple[int, ...] = param(
        default=(), item_checks=(checks.between(0, 1023),), summary="Host nodes its memory is taken from."
    )
    policy: str = param(
        default="default",
        choices=("default", "preferred", "bind", "interleave"),
        summary="How host_nodes is meant: the kernel's own way, these first, only these, or in turn.",
    )
    distances: tuple[int, ...] = param(
        default=(),
        item_checks=(checks.between(10, 255),),
        summary="Distance to each node, itself included (10); the kernel's 10 and 20 when not given.",
    )


@attrs.frozen(kw_only=True)
class MemoryParameters:
    """The guest's memory, and what backs it on the host."""

    memory_min: Size | None = param(
        default=None,
        unit="bytes",
        checks=(checks.at_least(_MIB),),
        changes="live",
        aliases=("minmem",),
        summary="Least memory to start with: where the host has less free than memory says, the balloon takes the "
        "difference, down to this.",
    )
    memory_backend: str | None = param(
        default=None,
        choices=("anon", "memfd", "file", "hugepages"),
        summary="What backs the guest's memory: anonymous memory, memfd (can be shared), a file below memory_path, or "
        "huge pages.",
    )
    memory_path: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        aliases=("mem_path",),
        summary="Directory of a file system that backs the memory, for example a hugetlbfs mount.",
    )
    memory_share: bool | None = param(
        default=None, summary="Memory can be shared with another process; on where a device needs it (virtiofs)."
    )
    hugepage_size: Size | None = param(
        default=None, unit="bytes", summary="Size of a huge page; the host's default when not given."
    )
    memory_prealloc: bool | None = param(
        default=None, summary="Allocate all memory before the guest starts; on with huge pages and memory_path."
    )
    memory_lock: bool = param(default=False, summary="Lock the guest's memory in RAM; needs the right to (memlock).")
    memory_merge: bool = param(
        default=False,
        summary="Let the kernel merge equal pages of guests (KSM): saves memory, and leaks through timing.",
    )
    memory_dump: bool = param(default=False, summary="Include the guest's memory in core dumps of QEMU.")
    memory_max: Size | None = param(
        default=None, unit="bytes", summary="Most memory the guest can have without a restart, with what is plugged in."
    )
    memory_slots: int = param(
        default=0,
        checks=(checks.between(0, 256),),
        summary="Slots for memory modules that are plugged in later (pc, q35).",
    )
    virtio_mem: Size | None = param(
        default=None,
        unit="bytes",
        summary="Size of a virtio-mem device, which gives and takes memory while the guest runs; needs memory_max.",
    )
    memory_plugged: Size = param(
        default=Size(0),
        unit="bytes",
        changes="live",
        summary="How much of virtio_mem the guest has; it takes it by itself, and gives it back if it can.",
    )
    numa: tuple[NumaNode, ...] = param(default=(), summary="NUMA nodes of the guest.")
    balloon: bool = param(default=True, summary="Offer the virtio balloon.")
    balloon_target: Size | None = param(
        default=None,
        unit="bytes",
        checks=(checks.at_least(_MIB),),
        changes="live",
        summary="Memory that the balloon leaves to the guest: no more than memory, which it has when not given.",
    )
    balloon_free_page_reporting: bool = param(
        default=True, summary="The guest tells which pages are free, and the host takes them back."
    )
    balloon_deflate_on_oom: bool = param(
        default=True, summary="The balloon gives memory back when the guest runs out of it."
    )
    balloon_stats_interval: Seconds = param(
        default=Seconds(0.0),
        unit="seconds",
        changes="live",
        summary="How often the guest reports its memory statistics, in whole seconds; 0 for never.",
    )


def memory_rules(memory: MemoryParameters) -> Iterator[Finding]:
    """What is wrong with several of them together."""
    backend = memory.memory_backend
    if backend == "file" and memory.memory_path is None:
        message = "file needs memory_path, the directory of the file"
        yield Finding(code="incomplete", path="memory_backend", message=message)
    if memory.memory_path is not None and backend in ("anon", "memfd"):
        message = f"goes with memory_backend file or hugepages, and it is {backend}"
        yield Finding(code="contradiction", path="memory_path", message=message)
    if memory.hugepage_size is not None and (backend != "hugepages" or memory.memory_path is not None):
        message = "only goes with memory_backend hugepages, without memory_path: a mount has its own page size"
        yield Finding(code="contradiction", path="hugepage_size", message=message)
    if memory.memory_share and backend == "anon":
        message = "anonymous memory cannot be shared with another process"
        yield Finding(code="contradiction", path="memory_share", message=message, hint='use memory_backend = "memfd"')
    for name in (
        "memory_max",
        "virtio_mem",
        "memory_plugged",
        "memory_min",
        "balloon_target",
        "hugepage_size",
    ):
        value = getattr(memory, name)
        if value is not None and value % _MIB and name != "hugepage_size":
            yield Finding(code="invalid-value", path=name, message=f"{value} bytes is not a whole number of MiB")
    if memory.hugepage_size is not None and memory.hugepage_size & (memory.hugepage_size - 1):
        yield Finding(code="invalid-value", path="hugepage_size", message="is not a power of two")
    if (memory.memory_slots or memory.virtio_mem is not None) and memory.memory_max is None:
        where = "memory_slots" if memory.memory_slots else "virtio_mem"
        yield Finding(code="incomplete", path=where, message="needs memory_max, the room to grow into")
    if memory.memory_max is not None and not memory.memory_slots and memory.virtio_mem is None:
        message = "needs memory_slots or virtio_mem, by which memory is added"
        yield Finding(code="incomplete", path="memory_max", message=message)
    if memory.memory_plugged > (memory.virtio_mem or 0):
        message = (
            "is more than virtio_mem" if memory.virtio_mem is not None else "needs virtio_mem, the device it is in"
        )
        yield Finding(code="contradiction", path="memory_plugged", message=message)
    if not memory.balloon:
        for name in ("memory_min", "balloon_target", "balloon_stats_interval"):
            if getattr(memory, name):
                message = "needs the balloon, which is switched off"
                yield Finding(code="contradiction", path=name, message=message)
    if memory.balloon_stats_interval % 1:
        yield Finding(code="invalid-value", path="balloon_stats_interval", message="is not a whole number of seconds")
    yield from _numa_rules(memory)


def _numa_rules(memory: MemoryParameters) -> Iterator[Finding]:
    seen: set[int] = set()
    for index, node in enumerate(memory.numa):
        cpus = parse_mask(node.cpus)[0]
        if cpus is None:
            yield Finding(code="invalid-value", path=f"numa[{index}].cpus", message="all is not a list of virtual CPUs")
        elif seen & set(cpus):
            yield Finding(code="repeated-value", path=f"numa[{index}].cpus", message="names a virtual CPU twice")
        seen |= set(cpus or ())
        if node.memory % _MIB:
            where = f"numa[{index}].memory"
            yield Finding(code="invalid-value", path=where, message=f"{node.memory} is not a whole number of MiB")
        if (node.policy == "default") == bool(node.host_nodes):
            where = f"numa[{index}].policy"
            message = "default goes without host_nodes, the others with them"
            yield Finding(code="contradiction", path=where, message=message)
        if node.distances and (len(node.distances) != len(memory.numa) or node.distances[index] != 10):
            where = f"numa[{index}].distances"
            yield Finding(code="invalid-value", path=where, message="needs one entry for each node, 10 for itself")
