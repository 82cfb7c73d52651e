"""Counters of a running instance: from its threads, from one round of questions to QEMU, and from the host's kernel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hvcore import (
    BlockStats,
    Deadline,
    DeadlineExceeded,
    Disk,
    GuestMemory,
    InstanceStats,
    NicStats,
    NotRunning,
)
from hvcore_kvm import process
from hvcore_kvm.affinity import host_thread_ids
from hvcore_kvm.definition import Definition
from hvcore_kvm.directory import QUERY, InstanceDirectory
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.interface import SYSFS
from hvcore_kvm.observation import Observed
from hvcore_kvm.qmp import Question, ask_many
from hvcore_kvm.release import connection_of

_COMMANDS = ("query-cpus-fast", "query-balloon", "query-blockstats", "qom-get")
_ARGUMENTS = {"qom-get": {"path": "/machine/peripheral/balloon0", "property": "guest-stats"}}
_UNTOLD = 2**64 - 1
"""How QEMU writes a figure that the guest has not told (``virtio-balloon.c``)."""
_NANOSECONDS = 10**9
_TICKS = os.sysconf("SC_CLK_TCK")
_GUEST_MEMORY = {
    "total": "stat-total-memory",
    "free": "stat-free-memory",
    "available": "stat-available-memory",
    "caches": "stat-disk-caches",
    "swapped_in": "stat-swap-in",
    "swapped_out": "stat-swap-out",
    "major_faults": "stat-major-faults",
    "minor_faults": "stat-minor-faults",
}


def instance_stats(
    directory: InstanceDirectory, seen: Observed, definition: Definition | None, deadline: Deadline
) -> InstanceStats:
    """Counters of an instance that is alive. Takes no lock, and changes nothing.

    Args:
        directory: the instance's directory.
        seen: what its files say.
        definition: what it runs with, ``None`` if that is not known.
        deadline: by when QEMU has to have answered.

    Raises:
        NotRunning: it has ended meanwhile.
        DeadlineExceeded: QEMU does not answer.
    """
    assert seen.process is not None  # noqa: S101 - it is alive
    identity = seen.process.identity
    answer = ask_many([Question(key="", path=directory.join(QUERY))], _COMMANDS, deadline, _ARGUMENTS)[""]
    threads, cpu_time, resident = host_thread_ids(identity.pid), _cpu_time(identity.pid), _resident(identity.pid)
    times = [_cpu_time(identity.pid, threads.get(thread)) for thread in _vcpu_threads(answer.results)]
    # What was read of a pid is of this process only if that lives now.
    if not process.is_alive(identity):
        raise NotRunning("it has ended", instance=directory.name)
    if answer.error is not None:
        raise DeadlineExceeded(
            f"QEMU does not answer: {answer.error}", hint="'hv info' says what it is doing", instance=directory.name
        )
    incomplete = [] if definition is not None else ["there is no record of its devices"]
    if None in times:
        incomplete.append("not every virtual CPU has a thread")
    known = definition.instance.memory if definition is not None else 0
    balloon = answer.results["query-balloon"]
    return InstanceStats(
        name=directory.name,
        vcpu_times=tuple(time or 0.0 for time in times),
        # Without a balloon the guest has what it was started with.
        memory_balloon=_number(balloon, "actual") or known,
        memory_resident=resident,
        disks=tuple(_disks(definition.instance.disks if definition else (), answer.results["query-blockstats"])),
        nics=tuple(_nics(definition)) if definition is not None else (),
        cpu_time=cpu_time,
        guest_memory=_guest_memory(answer.results["qom-get"]),
        incomplete="; ".join(incomplete),
    )


def _number(values: object, key: str) -> int:
    """A figure of an answer. A QEMU that its guest has taken over may answer anything."""
    value = values.get(key) if isinstance(values, Mapping) else None
    return value if type(value) is int and value >= 0 else 0


def _rows(answer: object) -> list[Mapping[str, Any]]:
    return [row for row in answer if isinstance(row, Mapping)] if isinstance(answer, list) else []


def _vcpu_threads(results: Mapping[str, Any]) -> list[int]:
    rows = sorted(_rows(results.get("query-cpus-fast")), key=lambda row: _number(row, "cpu-index"))
    return [_number(row, "thread-id") for row in rows]


def _cpu_time(pid: int, thread: int | None = -1) -> float | None:
    """Seconds of CPU time of a process, or of one thread of it (proc(5): utime and stime)."""
    if thread is None:
        return None
    path = f"/proc/{pid}/stat" if thread < 0 else f"/proc/{pid}/task/{thread}/stat"
    with contextlib.suppress(OSError, ValueError, IndexError), open(path, "rb") as file:
        # The name of a thread may hold anything.
        fields = file.read().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    return None


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _guest_memory(answer: object) -> GuestMemory | None:
    updated = _number(answer, "last-update")
    told = answer.get("stats") if isinstance(answer, Mapping) else None
    if not updated or not isinstance(told, Mapping):
        return None
    figures = {name: _number(told, key) for name, key in _GUEST_MEMORY.items() if told.get(key) not in (None, _UNTOLD)}
    return GuestMemory(updated=float(updated), **figures)


def _disks(disks: Iterable[Disk], answer: object) -> Iterator[BlockStats]:
    found = {row.get("node-name"): row.get("stats") for row in _rows(answer)}
    # An external snapshot gives a device another node.
    found |= {part: row.get("stats") for row in _rows(answer) for part in str(row.get("qdev") or "").split("/") if part}
    for disk in disks:
        stats = found.get(device_id("disk", disk.uuid or ""))
        if stats is None:
            continue  # it is being added or removed
        failed = ("failed_rd", "failed_wr", "failed_flush", "failed_unmap", "invalid_rd", "invalid_wr")
        yield BlockStats(
            device=disk.uuid or "",
            read_bytes=_number(stats, "rd_bytes"),
            written_bytes=_number(stats, "wr_bytes"),
            reads=_number(stats, "rd_operations"),
            writes=_number(stats, "wr_operations"),
            flushes=_number(stats, "flush_operations"),
            read_time=_number(stats, "rd_total_time_ns") / _NANOSECONDS,
            write_time=_number(stats, "wr_total_time_ns") / _NANOSECONDS,
            flush_time=_number(stats, "flush_total_time_ns") / _NANOSECONDS,
            discarded_bytes=_number(stats, "unmap_bytes"),
            errors=sum(_number(stats, f"{kind}_operations") for kind in failed),
        )


def _nics(definition: Definition) -> Iterator[NicStats]:
    for nic in definition.nics:
        name = connection_of(definition, nic).interface
        counters = _counters(name) if name else None
        if counters is not None:
            yield NicStats(device=nic.nic.uuid or "", interface=name, **counters)


def _counters(interface: str) -> dict[str, int] | None:
    """Counters of an interface of the host, seen from the guest; ``None`` when it is not there.

    A tap is the host's end of a cable: what it sends the guest receives. A macvtap is the guest's own end.
    """
    ours = {"received": "tx", "sent": "rx"} if _is_tap(interface) else {"received": "rx", "sent": "tx"}
    found = {}
    for way, short in ours.items():
        for what, name in (("bytes", "bytes"), ("packets", "packets"), ("drops", "dropped")):
            try:
                with open(f"{SYSFS}/{interface}/statistics/{short}_{name}", encoding="ascii") as file:
                    found[f"{way}_{what}"] = int(file.read())
            except (OSError, ValueError):
                return None
    return found


def _is_tap(interface: str) -> bool:
    return os.path.exists(f"{SYSFS}/{interface}/tun_flags")
