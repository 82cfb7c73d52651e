"""The guest's memory: its size, what backs it, NUMA nodes, balloon and virtio-mem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hvcore_kvm.command_line import Option, json_option, keyed
from hvcore_kvm.hardware.builder import Builder

if TYPE_CHECKING:
    from hvcore_kvm.definition import Definition
    from hvcore_kvm.parameters.memory import NumaNode

_MIB = 2**20


def shared(definition: Definition) -> bool:
    """Whether other processes share the guest's memory."""
    wanted = definition.memory.memory_share
    modes = any(getattr(nic.mode.backend, "shared_memory", False) for nic in definition.nics)
    return bool(definition.devices.shares) or modes if wanted is None else wanted


def has_backend(definition: Definition) -> bool:
    """Whether memory is backed by objects of its own, instead of QEMU's plain default."""
    memory = definition.memory
    return bool(
        memory.memory_backend
        or memory.memory_path is not None
        or memory.numa
        or memory.memory_prealloc
        or shared(definition)
    )


def add_memory(builder: Builder) -> None:
    """Add the guest's memory."""
    definition = builder.definition
    memory = definition.memory
    size = definition.instance.memory
    values: dict[str, Any] = {"size": f"{size // _MIB}M"}
    if memory.memory_max is not None:
        values |= {"slots": memory.memory_slots or None, "maxmem": f"{memory.memory_max // _MIB}M"}
    builder.add(keyed("m", None, values, origin="memory"))
    if memory.memory_lock:
        builder.add(keyed("overcommit", None, {"mem-lock": True}, origin="params.memory_lock"))
    if has_backend(definition):
        if memory.numa:
            for index, node in enumerate(memory.numa):
                builder.add(_backend(definition, f"mem{index}", node.memory, f"params.numa[{index}]", node))
        else:
            builder.add(_backend(definition, "mem0", size, "params.memory_backend", None))
    _add_numa(builder)
    if memory.virtio_mem is not None:
        builder.add(_backend(definition, "vmem0", memory.virtio_mem, "params.virtio_mem", None))
        properties = {"memdev": "vmem0", "requested-size": memory.memory_plugged, "node": 0 if memory.numa else None}
        builder.device("virtio-mem-pci", "virtio-mem0", properties, origin="params.virtio_mem")
    if memory.balloon:
        extra: dict[str, Any] = {
            "free-page-reporting": memory.balloon_free_page_reporting,
            "deflate-on-oom": memory.balloon_deflate_on_oom,
        }
        builder.virtio("balloon", "balloon0", extra, uuid="driver/balloon", origin="params.balloon")


def _backend(definition: Definition, ident: str, size: int, origin: str, node: NumaNode | None) -> Option:
    memory = definition.memory
    kind = memory.memory_backend or ("file" if memory.memory_path else "memfd" if shared(definition) else "anon")
    values: dict[str, Any] = {"qom-type": "", "id": ident, "size": size}
    if memory.memory_path is not None:
        values |= {"qom-type": "memory-backend-file", "mem-path": memory.memory_path}
    elif kind == "hugepages":
        values |= {"qom-type": "memory-backend-memfd", "hugetlb": True}
        if memory.hugepage_size is not None:
            values["hugetlbsize"] = memory.hugepage_size
    else:
        values["qom-type"] = "memory-backend-memfd" if kind == "memfd" else "memory-backend-ram"
    prealloc = memory.memory_prealloc
    values |= {
        "share": shared(definition),
        "prealloc": (kind in ("hugepages", "file")) if prealloc is None else prealloc,
        "merge": memory.memory_merge,
        "dump": memory.memory_dump,
    }
    if node is not None and node.host_nodes:
        values |= {"host-nodes": list(node.host_nodes), "policy": node.policy}
    return json_option("object", values, origin=origin)


def _add_numa(builder: Builder) -> None:
    nodes = builder.definition.memory.numa
    for index, node in enumerate(nodes):
        origin = f"params.numa[{index}]"
        # The key is repeated for each range.
        values = {"nodeid": index, "cpus": node.cpus.split(","), "memdev": f"mem{index}"}
        builder.add(keyed("numa", "node", values, origin=origin))
    for index, node in enumerate(nodes):
        for other, distance in enumerate(node.distances):
            if other != index:
                values = {"src": index, "dst": other, "val": distance}
                builder.add(keyed("numa", "dist", values, origin=f"params.numa[{index}].distances"))
