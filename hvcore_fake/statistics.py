"""Counters of modelled instances. They grow with the time for which the virtual CPUs run."""

from __future__ import annotations

from hvcore import BlockStats, InstanceStats, NotRunning
from hvcore_fake import yielding
from hvcore_fake.queries import known
from hvcore_fake.world import World

BLOCK = 4096
"""Bytes of each disk that a guest reads in a second, in one request."""


def statistics(world: World, name: str) -> InstanceStats:
    """Counters of one instance; see the hook of the same name."""
    account = known(world, name)
    process = account.process
    if process is None:
        raise NotRunning("it is not running", instance=name, hint="start it first")
    now = world.clock()
    ran = yielding.time_run(process, now)
    vcpus = process.vcpus + sum(device.kind == "vcpu" for device in process.attached)
    memory = yielding.memory_now(process, now)
    return InstanceStats(
        name=name,
        vcpu_times=(ran,) * vcpus,
        memory_balloon=memory if process.answering else 0,
        memory_resident=memory,
        disks=tuple(_disk(device.ident, int(ran)) for device in process.attached if device.kind == "disk"),
        cpu_time=ran * vcpus,
        incomplete="" if process.answering else "its process does not answer",
    )


def _disk(ident: str, reads: int) -> BlockStats:
    return BlockStats(
        device=ident,
        read_bytes=BLOCK * reads,
        written_bytes=0,
        reads=reads,
        writes=0,
        flushes=0,
        read_time=0.0,
        write_time=0.0,
        errors=0,
    )
