"""CPU affinity: the grammar of masks, and applying them to the threads of a QEMU process."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hvcore import HostError

ALL = "all"
CPU_LIMIT = 8192
"""Highest CPU number a mask may name, plus one; the largest that Linux can be built for (``CONFIG_NR_CPUS``)."""

_NUMBER = re.compile(r"[0-9]{1,4}")

Cpus = tuple[int, ...] | None
"""Host CPUs, ascending; ``None`` for all of them."""


def parse_mask(mask: str) -> tuple[Cpus, ...]:
    """Read a mask such as ``0-2,5`` (the whole instance) or ``1:3:all`` (one element for each virtual CPU).

    Args:
        mask: elements joined by ``:``; an element is ``all``, or numbers and ranges ``LOW-HIGH`` joined by ``,``.

    Returns:
        One entry for each element.

    Raises:
        ValueError: it is not a mask; says which part.
    """
    if len(mask) > 65536:
        raise ValueError(f"has {len(mask)} characters; 65536 are allowed")
    return tuple(_element(part, mask) for part in mask.split(":"))


def _element(text: str, mask: str) -> Cpus:
    if text == ALL:
        return None
    if not text:
        raise ValueError(f"{mask[:40]!r} has an empty element")
    cpus: set[int] = set()
    for part in text.split(","):
        low, hyphen, high = part.partition("-")
        ends = (low, high) if hyphen else (low, low)
        if any(not _NUMBER.fullmatch(end) or int(end) >= CPU_LIMIT for end in ends):
            raise ValueError(f"{part[:40]!r} is not a CPU number below {CPU_LIMIT} or a range LOW-HIGH")
        if int(ends[0]) > int(ends[1]):
            raise ValueError(f"{part!r} counts down")
        cpus.update(range(int(ends[0]), int(ends[1]) + 1))
    return tuple(sorted(cpus))


def format_cpus(cpus: Cpus) -> str:
    """CPUs in the words of a mask."""
    if cpus is None:
        return ALL
    parts: list[str] = []
    first = last = cpus[0]
    for cpu in (*cpus[1:], -1):
        if cpu == last + 1:
            last = cpu
            continue
        parts.append(str(first) if first == last else f"{first}-{last}")
        first = last = cpu
    return ",".join(parts)


def usable_cpus() -> frozenset[int]:
    """Host CPUs that are online."""
    try:
        with open("/sys/devices/system/cpu/online", encoding="ascii") as file:
            online = parse_mask(file.read().strip())[0]
    except (OSError, ValueError):
        online = None
    return frozenset(online if online is not None else os.sched_getaffinity(0))


def pin(threads: Sequence[int], cpus: Cpus) -> None:
    """Let threads run on some CPUs only; ``None`` lets them run on all. A thread that has ended is no error.

    Raises:
        HostError: the kernel refused.
    """
    wanted = usable_cpus() if cpus is None else frozenset(cpus)
    for thread in threads:
        try:
            os.sched_setaffinity(thread, wanted)
        except ProcessLookupError:
            continue
        except OSError as error:
            raise HostError(
                f"cannot pin thread {thread} to CPUs {format_cpus(tuple(sorted(wanted)))}: {error.strerror}",
                code="pinning-refused",
                hint="the CPUs must be online and allowed to this process (cpuset)",
            ) from error


def threads_of(pid: int) -> tuple[int, ...]:
    """The threads of a process, the first one first."""
    with contextlib.suppress(OSError):
        return tuple(sorted(int(entry) for entry in os.listdir(f"/proc/{pid}/task")))
    return ()


def host_thread_ids(pid: int) -> dict[int, int]:
    """The threads of a process: id on this host by the id it knows itself, which differs in a namespace of its own."""
    found = {}
    for thread in threads_of(pid):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/status", encoding="ascii") as file:
            ids = next((line.split() for line in file if line.startswith("NSpid:")), ["", str(thread)])
            found[int(ids[-1])] = thread
    return found


def pin_running(
    pid: int, ask: Callable[[str], Any], *, cpu: str | None, emulator: str | None, iothread: str | None
) -> None:
    """Pin the threads of a QEMU that answers, as its masks say; see `pin_instance`.

    Args:
        pid: the process.
        ask: gives a command without arguments to its monitor and returns the answer.
        cpu: mask of the whole process or of each virtual CPU.
        emulator: mask of QEMU's own threads.
        iothread: mask of all I/O threads or of each.

    Raises:
        HostError: the kernel refused.
    """
    here = host_thread_ids(pid)
    vcpus = {row["cpu-index"]: here[row["thread-id"]] for row in ask("query-cpus-fast")}
    rows = ask("query-iothreads") if iothread or emulator else ()
    iothreads = {int(row["id"].removeprefix("iothread")): here[row["thread-id"]] for row in rows}
    pin_instance(pid, vcpus, iothreads, cpu=cpu, emulator=emulator, iothread=iothread)


def pin_instance(
    pid: int,
    vcpus: Mapping[int, int],
    iothreads: Mapping[int, int],
    *,
    cpu: str | None,
    emulator: str | None,
    iothread: str | None,
) -> None:
    """Pin the threads of one QEMU process as its masks say.

    Args:
        pid: the process.
        vcpus: thread id by number of virtual CPU.
        iothreads: thread id by number of I/O thread.
        cpu: mask; with one element it holds for the whole process, with several one for each virtual CPU.
        emulator: mask of one element for all threads that are neither a virtual CPU nor an I/O thread.
        iothread: mask; one element for all I/O threads or one for each.

    Raises:
        HostError: the kernel refused.
    """
    elements = parse_mask(cpu) if cpu is not None else ()
    if len(elements) == 1:
        # Every thread: those of virtual CPUs exist already, and do not follow the process's first thread.
        pin(threads_of(pid), elements[0])
    elif elements:
        for index, thread in sorted(vcpus.items()):
            pin([thread], elements[index] if index < len(elements) else None)
    if emulator is not None:
        others = set(threads_of(pid)) - set(vcpus.values()) - set(iothreads.values())
        pin(sorted(others), parse_mask(emulator)[0])
    if iothread is not None:
        own = parse_mask(iothread)
        for index, thread in sorted(iothreads.items()):
            pin([thread], own[0] if len(own) == 1 else own[index])
