"""Facts of a Linux host from procfs and sysfs, and its restart; knows of no driver and no instance."""

from __future__ import annotations

import errno
import functools
import os
import re
import subprocess
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

import attrs

from hvcore.errors import HostError
from hvcore.model.host import (
    CgroupFacts,
    CgroupMode,
    HugePagePool,
    NodeInfo,
    NumaNode,
    PowercycleMethod,
    PowercycleResult,
    Pressure,
    PressureResource,
)

ROOT = Path("/")

# Above any NR_CPUS a kernel can be built with (8192), low enough that "0-4294967295" costs nothing.
CPU_ID_LIMIT = 65536

# A limit that nobody set reads as the largest multiple of the page size below 2**63.
_NO_LIMIT_V1 = 1 << 62

# What reading says of a thing that is not there: of a processor or node that went offline after it was
# listed (ENODEV, ENXIO), of pressure accounting switched off at boot (EOPNOTSUPP).
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.ENODEV, errno.ENXIO, errno.EOPNOTSUPP})

_CPU_REGION = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9})/([0-9]{1,9}))?)?")
_PRESSURE_LINE = re.compile(r"(some|full) avg10=([0-9]+\.[0-9]+) avg60=([0-9]+\.[0-9]+)(?: |$)")
_OCTAL_ESCAPE = re.compile(r"\\([0-7]{3})")
_REBOOT = ("reboot", "-n", "-f")
_REBOOT_TIMEOUT = 60.0

Runner = Callable[[Sequence[str]], None]
"""Runs an argument list to its end; raises ``OSError`` or ``subprocess.SubprocessError`` when it fails."""


def read_node_info(root: Path = ROOT) -> NodeInfo:
    """Read what this host has and how much of it is left.

    The figures are read one after the other, so they may be of slightly different moments; processors and
    nodes that go offline meanwhile are left out.

    Args:
        root: directory that holds ``proc`` and ``sys``.

    Raises:
        HostError: a file is missing that every Linux has, or a file cannot be read or understood.
    """
    system = os.uname()
    meminfo = root / "proc/meminfo"
    memory = _amounts(meminfo, _require(meminfo), "MemTotal", "MemFree", "MemAvailable")
    online = online_cpus(root)
    present = _read_cpu_list(root / "sys/devices/system/cpu/present")
    sockets, cores, threads_per_core = _topology(root, online)
    huge_pages = _huge_pages(root / "sys/kernel/mm/hugepages")
    numa_nodes = _numa_nodes(root, online)
    if not numa_nodes:
        numa_nodes = (
            NumaNode(
                id=0,
                cpus=online,
                memory_total=memory["MemTotal"],
                memory_free=memory["MemFree"],
                distances=((0, 10),),
                huge_pages=tuple(attrs.evolve(pool, reserved=None) for pool in huge_pages),
            ),
        )
    return NodeInfo(
        hostname=system.nodename,
        kernel=system.release,
        architecture=system.machine,
        boot_id=boot_id(root),
        memory_total=memory["MemTotal"],
        memory_free=memory["MemAvailable"],
        memory_used=max(0, memory["MemTotal"] - memory["MemAvailable"]),
        cpus_online=len(online),
        cpus_total=len({*online, *(present or ())}),
        sockets=sockets,
        cores=cores,
        threads_per_core=threads_per_core,
        numa_nodes=numa_nodes,
        huge_pages=huge_pages,
        pressure=_pressure(root / "proc/pressure"),
        cgroups=_cgroups(root),
    )


def online_cpus(root: Path = ROOT) -> tuple[int, ...]:
    """Numbers of the processors that run tasks now, ascending.

    Raises:
        HostError: the kernel's list cannot be read or understood.
    """
    path = root / "sys/devices/system/cpu/online"
    online = _read_cpu_list(path)
    if online is None:  # no sysfs in this mount namespace
        path = root / "proc/stat"
        online = tuple(sorted(int(number) for number in re.findall(r"(?m)^cpu([0-9]+) ", _require(path))))
    if not online:
        raise _malformed(path, "at least one processor", "none")
    return online


@functools.cache
def boot_id(root: Path = ROOT) -> str:
    """The kernel's random id of this boot, as it spells it; read once, no process outlives a boot.

    Raises:
        HostError: it cannot be read, or is no UUID.
    """
    path = root / "proc/sys/kernel/random/boot_id"
    text = _require(path).strip()
    try:
        uuid.UUID(text)
    except ValueError:
        raise _malformed(path, "a UUID", text) from None
    return text


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Processor numbers of a list in the kernel's notation, ascending and each once.

    The notation is that of ``/sys/devices/system/cpu/online``: numbers and ranges joined by commas, such as
    ``0-3,7``. ``0-15:2/4`` means the first 2 of every 4. The empty string is the empty list, one line end
    at the close is ignored. ``N`` and ``all`` are refused: they need a host to mean anything.

    Raises:
        ValueError: the text is no such list, or names a processor of :data:`CPU_ID_LIMIT` or above.
    """
    body = text.removesuffix("\n")
    if not body:
        return ()
    cpus: set[int] = set()
    for region in body.split(","):
        cpus.update(_cpu_region(region, text))
    return tuple(sorted(cpus))


def process_start_time(pid: int, *, root: Path = ROOT) -> int:
    """When a process was started, in clock ticks since boot.

    Together with the pid and the boot id this identifies a process. A zombie still has a start time.

    Raises:
        ProcessLookupError: there is no such process.
        HostError: the kernel's record of it cannot be read or understood.
    """
    path = os.path.join(root, f"proc/{pid}/stat")
    try:
        # Once per instance in every listing: without the detour over Path.
        with open(path, "rb", buffering=0) as file:
            content = file.read(4096).decode(errors="replace")
    except OSError as error:
        if error.errno in _ABSENT:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), path) from None
        raise _unreadable(Path(path), error) from error
    # Field 2 is the name in parentheses; the name may itself hold spaces, parentheses and line ends.
    _, closed, rest = content.rpartition(")")
    started = (rest.split() + [""] * 20)[19]
    if not closed or not _is_number(started):
        raise _malformed(Path(path), "a start time in field 22", content)
    return int(started)


def powercycle(root: Path = ROOT, *, run: Runner | None = None) -> PowercycleResult:
    """Restart the host at once: nothing is stopped, no file system is synced or unmounted.

    The kernel is asked first; ``reboot -n -f`` is run when that cannot be done. Where the kernel takes the
    request, this function does not return.

    Args:
        root: directory that holds ``proc``.
        run: runs the command; by default a child process, which only the real root may start.

    Raises:
        HostError: neither way could be taken; the host runs on.
    """
    trigger = root / "proc/sysrq-trigger"
    try:
        # Without O_CREAT: an absent trigger must fail here, not leave a file behind.
        descriptor = os.open(trigger, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"b")
        finally:
            os.close(descriptor)
    except OSError as refusal:
        return _reboot_command(root, run, refusal)
    return PowercycleResult(method=PowercycleMethod.SYSRQ)


def _reboot_command(root: Path, run: Runner | None, refusal: OSError) -> PowercycleResult:
    if run is None:
        if root != ROOT:
            raise HostError(
                f"powercycle: {refusal}, and a root of {root} does not reach this host's reboot command",
                hint="give run= together with root=",
                code="powercycle-failed",
            ) from refusal
        run = _run_command
    try:
        run(_REBOOT)
    except (OSError, subprocess.SubprocessError) as failure:
        raise HostError(
            f"powercycle: {refusal}; then {' '.join(_REBOOT)}: {failure}",
            hint="both need root with CAP_SYS_BOOT, outside of a container",
            code="powercycle-failed",
        ) from failure
    return PowercycleResult(method=PowercycleMethod.REBOOT_COMMAND)


def _run_command(argv: Sequence[str]) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, timeout=_REBOOT_TIMEOUT)


def _cpu_region(region: str, text: str) -> Iterable[int]:
    match = _CPU_REGION.fullmatch(region)
    if match is None:
        raise ValueError(f"CPU list {text!r}: {region!r} is neither a number nor a range such as 0-3 or 0-15:2/4")
    first = int(match[1])
    last = int(match[2] or first)
    if last < first:
        raise ValueError(f"CPU list {text!r}: range {region!r} runs backwards")
    if last >= CPU_ID_LIMIT:
        raise ValueError(f"CPU list {text!r}: {last} is not below {CPU_ID_LIMIT}")
    if match[3] is None:
        return range(first, last + 1)
    used, group = int(match[3]), int(match[4])
    if group == 0 or used > group:
        raise ValueError(f"CPU list {text!r}: {region!r} takes {used} of every {group}")
    return (cpu for cpu in range(first, last + 1) if (cpu - first) % group < used)


def _topology(root: Path, online: tuple[int, ...]) -> tuple[int, int, int]:
    """Sockets, cores and the most online threads of a core."""
    running = frozenset(online)
    packages: set[int] = set()
    cores: set[frozenset[int]] = set()
    for cpu in online:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        package = _read(topology / "physical_package_id")
        if package is not None:
            # A machine that does not know its packages says -1 for every processor.
            packages.add(_number(topology / "physical_package_id", package.removeprefix("-")))
        # thread_siblings_list is what kernels before 5.4 call it
        siblings = _read_cpu_list(topology / "core_cpus_list") or _read_cpu_list(topology / "thread_siblings_list")
        cores.add(running.intersection(siblings or ()) | {cpu})
    return max(1, len(packages)), len(cores), max(len(core) for core in cores)


def _numa_nodes(root: Path, online: tuple[int, ...]) -> tuple[NumaNode, ...]:
    base = root / "sys/devices/system/node"
    ids = _read_cpu_list(base / "online") or ()
    nodes = (_numa_node(base / f"node{number}", number, ids, online) for number in ids)
    return tuple(node for node in nodes if node is not None)


def _numa_node(path: Path, number: int, ids: tuple[int, ...], online: tuple[int, ...]) -> NumaNode | None:
    cpus, distances, meminfo = (
        _read_cpu_list(path / "cpulist"),
        _read(path / "distance"),
        _read(path / "meminfo"),
    )
    if cpus is None or distances is None or meminfo is None:
        return None
    costs = [_number(path / "distance", word) for word in distances.split()]
    if len(costs) != len(ids):
        raise _malformed(path / "distance", f"{len(ids)} numbers, one for each node online", distances)
    total, free = f"Node {number} MemTotal", f"Node {number} MemFree"
    memory = _amounts(path / "meminfo", meminfo, total, free)
    return NumaNode(
        id=number,
        cpus=tuple(cpu for cpu in cpus if cpu in online),
        memory_total=memory[total],
        memory_free=memory[free],
        distances=tuple(zip(ids, costs, strict=True)),
        huge_pages=_huge_pages(path / "hugepages"),
    )


def _huge_pages(directory: Path) -> tuple[HugePagePool, ...]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:  # a kernel without huge pages, or a node gone
        return ()
    except OSError as failure:
        raise _unreadable(directory, failure) from failure
    pools = []
    for name in names:
        match = re.fullmatch(r"hugepages-([0-9]+)kB", name)
        if match is None:
            continue
        pool = directory / name
        total, free = (_read_number(pool / f"{kind}_hugepages") for kind in ("nr", "free"))
        if total is None or free is None:
            continue
        reserved = _read_number(pool / "resv_hugepages")
        pools.append(HugePagePool(size=int(match[1]) * 1024, total=total, free=free, reserved=reserved))
    return tuple(sorted(pools, key=lambda pool: pool.size))


def _pressure(directory: Path) -> tuple[Pressure, ...]:
    found = []
    for resource in PressureResource:
        path = directory / resource.value
        content = _read(path)
        if content is None:
            continue
        averages: dict[str, float] = {}
        for line in content.splitlines():
            match = _PRESSURE_LINE.match(line)
            if match is None:
                raise _malformed(path, 'lines such as "some avg10=0.00 avg60=0.00 …"', line)
            averages[f"{match[1]}_avg10"] = float(match[2])
            averages[f"{match[1]}_avg60"] = float(match[3])
        names = ("some_avg10", "some_avg60", "full_avg10", "full_avg60")
        found.append(Pressure(resource=resource, **{name: averages.get(name) for name in names}))
    return tuple(found)


@attrs.frozen
class _CgroupMount:
    """A mounted cgroup hierarchy: the directory it is at, the cgroup that directory is, its options."""

    directory: Path
    top: str
    version: int
    options: frozenset[str]

    def level(self, cgroup: str) -> PurePosixPath | None:
        """Where that cgroup is below this mount; nothing when it lies outside."""
        path = PurePosixPath(cgroup)
        if ".." in path.parts or not path.is_relative_to(self.top):
            return None
        return "/" / path.relative_to(self.top)


def _cgroups(root: Path) -> CgroupFacts:
    membership = _read(root / "proc/self/cgroup")
    if membership is None:
        return CgroupFacts(mode=CgroupMode.NONE, controllers=(), memory_limit=None)
    mounts = _cgroup_mounts(root)
    versions: dict[str, int] = {}
    limits: list[int] = []
    for line in membership.splitlines():
        number, *rest = line.split(":", 2)
        if len(rest) != 2 or not _is_number(number):
            raise _malformed(root / "proc/self/cgroup", '"number:controllers:path"', line)
        names, cgroup = rest
        if number == "0":
            mount = _pick([mount for mount in mounts if mount.version == 2], cgroup)
            controllers = (_read(mount.directory / "cgroup.controllers") or "").split() if mount else []
            limit_file = "memory.max"
        else:
            controllers = [name for name in names.split(",") if not name.startswith("name=")]
            mount = _pick([mount for mount in mounts if mount.options.issuperset(controllers)], cgroup)
            limit_file = "memory.limit_in_bytes"
        if mount is None or not controllers:
            continue
        versions |= dict.fromkeys(controllers, mount.version)
        if "memory" in controllers:
            limits += _memory_limits(mount, cgroup, limit_file)
    return CgroupFacts(
        mode=_cgroup_mode(versions, mounts),
        controllers=tuple(sorted(versions.items())),
        memory_limit=min(limits, default=None),
    )


def _cgroup_mode(versions: dict[str, int], mounts: list[_CgroupMount]) -> CgroupMode:
    v1 = 1 in versions.values()
    v2 = any(mount.version == 2 for mount in mounts)
    if v1 and v2:
        return CgroupMode.HYBRID
    if v1:
        return CgroupMode.V1
    return CgroupMode.V2 if v2 else CgroupMode.NONE


def _cgroup_mounts(root: Path) -> list[_CgroupMount]:
    path = root / "proc/self/mountinfo"
    mounts = []
    for line in _require(path).splitlines():
        mount, separator, system = line.partition(" - ")
        fields, (kind, *rest) = mount.split(" "), system.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 2:
            raise _malformed(path, 'mounts as "… root directory … - type source options"', line)
        if kind not in ("cgroup", "cgroup2"):
            continue
        top, directory = (_OCTAL_ESCAPE.sub(lambda code: chr(int(code[1], 8)), field) for field in fields[3:5])
        mounts.append(
            _CgroupMount(
                directory=root / directory.lstrip("/"),
                top=top,
                version=2 if kind == "cgroup2" else 1,
                options=frozenset(rest[-1].split(",")),
            )
        )
    return mounts


def _pick(candidates: list[_CgroupMount], cgroup: str) -> _CgroupMount | None:
    """The mount that shows the cgroup; a container may mount one that does not, and it is all there is."""
    inside = [mount for mount in candidates if mount.level(cgroup) is not None]
    return next(iter(inside or candidates), None)


def _memory_limits(mount: _CgroupMount, cgroup: str, name: str) -> list[int]:
    own = mount.level(cgroup) or PurePosixPath("/")
    limits = []
    for level in (own, *own.parents):
        path = mount.directory / str(level).lstrip("/") / name
        content = _read(path)
        if content is None or content.strip() == "max":
            continue
        limit = _number(path, content)
        if limit < _NO_LIMIT_V1:
            limits.append(limit)
    return limits


def _amounts(path: Path, content: str, *names: str) -> dict[str, int]:
    """Those entries of a meminfo file in bytes, all of which must be there."""
    values = {}
    for name in names:
        match = re.search(rf"(?m)^{re.escape(name)}:\s*(.*)$", content)
        if match is None:
            raise _malformed(path, f"an entry {name}", "none")
        amount, _, unit = match[1].rstrip().partition(" ")
        if unit != "kB" or not _is_number(amount):
            raise _malformed(path, f"{name} in kB", match[0])
        values[name] = int(amount) * 1024
    return values


def _read_cpu_list(path: Path) -> tuple[int, ...] | None:
    content = _read(path)
    if content is None:
        return None
    try:
        return parse_cpu_list(content)
    except ValueError as failure:
        raise _malformed(path, "a list such as 0-3,7", content) from failure


def _read_number(path: Path) -> int | None:
    content = _read(path)
    return None if content is None else _number(path, content)


def _read(path: Path) -> str | None:
    """Content of a file; nothing when what it tells of is not there."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError as failure:
        if failure.errno in _ABSENT:
            return None
        raise _unreadable(path, failure) from failure


def _require(path: Path) -> str:
    content = _read(path)
    if content is None:
        raise HostError(f"{path}: not there", hint="are /proc and /sys mounted?", code="host-file-unreadable")
    return content


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _number(path: Path, text: str) -> int:
    if not _is_number(text.strip()):
        raise _malformed(path, "a number", text)
    return int(text)


def _malformed(path: Path, expected: str, found: str) -> HostError:
    return HostError(f"{path}: expected {expected}, found {found.strip()[:80]!r}", code="host-file-malformed")


def _unreadable(path: Path, failure: OSError) -> HostError:
    return HostError(f"{path}: {failure.strerror}", hint="run with the rights to read it", code="host-file-unreadable")
