"""Parameters of the guest's memory take effect."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kvm_effect import Effect, Folder, Probe, Question, of, proves, rows, type_of

from hvcore_kvm.qmp import QmpRefused

pytestmark = pytest.mark.qemu

_MIB = 1 << 20
_SIZE = 64 * _MIB


def _memdev(name: str, ident: str = "mem0") -> Question:
    """What QEMU says of a memory backend."""
    return lambda probe: next(row for row in probe.qmp("query-memdev") if row["id"] == ident)[name]


def _kernel_flag(flag: str) -> Question:
    """Whether the kernel has a flag for the guest's memory (``VmFlags`` of ``/proc/PID/smaps``)."""
    return lambda probe: flag in probe.mapping("", _SIZE)["VmFlags"].split()


def _plugged(probe: Probe) -> int:
    """How many modules of memory can be plugged in."""
    for index in range(8):
        probe.qmp("object-add", qom_type="memory-backend-ram", id=f"more{index}", size=128 * _MIB)
        try:
            probe.qmp("device_add", driver="pc-dimm", id=f"dimm{index}", memdev=f"more{index}")
        except QmpRefused:
            return index
    return 8


def _room(probe: Probe) -> int:
    """The most memory QEMU would have, in MiB."""
    return int(probe.get("/machine", "memory")["max-size"]) // _MIB


def _virtio_mem(probe: Probe) -> int:
    device = next(row["data"] for row in probe.qmp("query-memory-devices") if row["type"] == "virtio-mem")
    # It takes and gives while the guest is there; how much is asked of it later.
    probe.qmp("qom-set", path="/machine/peripheral/virtio-mem0", property="requested-size", value=32 * _MIB)
    return int(device["max-size"]) // _MIB


def _node(index: int, **more: Any) -> dict[str, Any]:
    return {"cpus": str(index), "memory": f"{16 + 32 * index}MiB", **more}


_ROOM = {"memory_max": "1GiB", "virtio_mem": "256MiB"}

EFFECTS = [
    Effect(
        given={"params": {"memory_backend": "memfd", "memory_share": True, "memory_prealloc": True}},
        shows={
            "params.memory_backend": (lambda probe: bool(probe.mapping("/memfd:memory-backend-memfd")["head"]), True),
            # The fourth letter: shared, not private.
            "params.memory_share": (lambda probe: probe.mapping("", _SIZE)["head"].split()[1][3], "s"),
            "params.memory_prealloc": (lambda probe: probe.mapping("", _SIZE)["Rss"], f"{_SIZE >> 10} kB"),
        },
    ),
    Effect(
        given={"params": {"memory_backend": "anon"}},
        shows={"params.memory_backend": (type_of("/objects/mem0"), "memory-backend-ram")},
    ),
    Effect(
        given={"params": {"memory_backend": "file", "memory_path": Folder("backing"), "memory_prealloc": False}},
        base={"params": {"memory_backend": "file", "memory_path": Folder("backing")}},
        shows={"params.memory_prealloc": (_memdev("prealloc"), False)},
    ),
    Effect(
        given={"params": {"memory_path": Folder("backing")}},
        base={"params": {"memory_backend": "memfd"}},
        shows={
            "params.memory_path": (lambda probe: "/backing/" in probe.mapping("/backing/")["head"], True),
            "params.memory_backend": (type_of("/objects/mem0"), "memory-backend-file"),
        },
    ),
    Effect(
        given={"params": {"memory_lock": True, "memory_dump": True}},
        shows={
            "params.memory_lock": (lambda probe: int(probe.status("VmLck").split()[0]) >= _SIZE >> 10, True),
            "params.memory_dump": (_kernel_flag("dd"), False),
        },
        needs=("root",),
    ),
    Effect(
        given={"params": {"memory_backend": "memfd", "memory_dump": True}},
        base={"params": {"memory_backend": "memfd"}},
        shows={"params.memory_dump": (_kernel_flag("dd"), False)},
    ),
    Effect(
        given={"params": {"memory_merge": True}},
        shows={"params.memory_merge": (of("/machine", "mem-merge"), True)},
    ),
    Effect(
        given={"params": {"memory_backend": "anon", "memory_merge": True}},
        base={"params": {"memory_backend": "anon"}},
        shows={"params.memory_merge": (_memdev("merge"), True)},
    ),
    Effect(
        given={"memory": "128MiB", "params": {"memory_max": "1GiB", "memory_slots": 3}},
        base={"memory": "128MiB", "params": {"memory_max": "2GiB", "memory_slots": 2}},
        shows={"params.memory_slots": (_plugged, 3), "params.memory_max": (_room, 1024)},
    ),
    Effect(
        given={"memory": "128MiB", "params": {"memory_max": "1GiB", "virtio_mem": "256MiB"}},
        base={"memory": "128MiB", "params": {"memory_max": "1GiB", "virtio_mem": "128MiB"}},
        shows={"params.virtio_mem": (_virtio_mem, 256)},
    ),
    Effect(
        given={"memory": "128MiB", "params": {**_ROOM, "memory_plugged": "64MiB"}},
        base={"memory": "128MiB", "params": _ROOM},
        shows={"params.memory_plugged": (of("/machine/peripheral/virtio-mem0", "requested-size"), 64 * _MIB)},
    ),
    Effect(
        given={"vcpus": 2, "params": {"numa": [_node(1), _node(0)]}},
        base={"vcpus": 2, "params": {"numa": [_node(0), _node(1)]}},
        shows={
            "params.numa": (lambda probe: "node 1 size: 16 MB" in probe.monitor("info numa"), True),
            "params.numa[].cpus": (
                lambda probe: [row["props"]["node-id"] for row in probe.qmp("query-cpus-fast")],
                [1, 0],
            ),
            "params.numa[].memory": (_memdev("size"), 48 * _MIB),
        },
    ),
    Effect(
        given={"vcpus": 2, "params": {"numa": [_node(0, host_nodes=[0], policy="bind"), _node(1)]}},
        base={"vcpus": 2, "params": {"numa": [_node(0), _node(1)]}},
        shows={
            "params.numa[].host_nodes": (_memdev("host-nodes"), [0]),
            "params.numa[].policy": (lambda probe: " bind:0" in probe.proc("numa_maps"), True),
        },
        needs=("numa",),
    ),
    Effect(
        given={"params": {"balloon": False}},
        shows={"params.balloon": (lambda probe: "balloon0" in probe.children("/machine/peripheral"), False)},
    ),
    Effect(
        given={"params": {"balloon_free_page_reporting": False, "balloon_deflate_on_oom": False}},
        shows={
            "params.balloon_free_page_reporting": (of("balloon0", "free-page-reporting"), False),
            "params.balloon_deflate_on_oom": (of("balloon0", "deflate-on-oom"), False),
        },
    ),
    Effect(
        given={"params": {"balloon_stats_interval": "7s"}},
        shows={"params.balloon_stats_interval": (of("balloon0", "guest-stats-polling-interval"), 7)},
    ),
]


@pytest.mark.parametrize("effect", rows(EFFECTS))
def test_it_takes_effect(prove: Callable[[Effect], None], effect: Effect) -> None:
    """QEMU or the kernel says that the value holds, and that another one holds without it."""
    prove(effect)


_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


HUGE = Effect(
    given={"params": {"memory_backend": "hugepages", "hugepage_size": "2MiB"}},
    base={"params": {"memory_backend": "memfd"}},
    shows={
        "params.memory_backend": (lambda probe: int(probe.status("HugetlbPages").split()[0]), _SIZE >> 10),
        "params.hugepage_size": (of("/objects/mem0", "hugetlbsize"), 2 * _MIB),
    },
)


@pytest.mark.skipif(not _POOL.exists() or not os.access(_POOL, os.W_OK), reason="needs root and huge pages of 2 MiB")
@proves("params.memory_backend", "params.hugepage_size")
def test_huge_pages(prove: Callable[[Effect], None], huge_pages: None) -> None:
    """The guest's memory is in huge pages of the wanted size, as the kernel counts them."""
    prove(HUGE)
