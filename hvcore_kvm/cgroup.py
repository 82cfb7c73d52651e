"""Control groups: what one instance may take of the host. Version 2, or version 1 for a controller that is only there.

The kernel's documents are Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping

import attrs

from hvcore import Deadline, HostError
from hvcore_kvm import process

PARENT = "hvcore"
"""Group of the host in which those of instances are."""

_PERIOD = 100_000
_PATIENCE = 5.0


@attrs.frozen(kw_only=True)
class IoLimit:
    """What may be read from and written to one block device.

    Attributes:
        device: numbers of the device, ``MAJOR:MINOR``.
        limits: ``rbps``, ``wbps`` in bytes a second, ``riops``, ``wiops`` in operations a second.
    """

    device: str
    limits: Mapping[str, int]


@attrs.frozen(kw_only=True)
class Limits:
    """Limits of one instance; ``None`` where there is none.

    Attributes:
        cpu_shares: weight against others, 1024 for an ordinary group (the scale of version 1).
        cpu_quota: processors it may keep busy; 1.5 is one and a half.
        memory: bytes, of QEMU and guest together.
        pids: threads.
        io: limits by block device.
    """

    cpu_shares: int | None = None
    cpu_quota: float | None = None
    memory: int | None = None
    pids: int | None = None
    io: tuple[IoLimit, ...] = ()

    @property
    def controllers(self) -> tuple[str, ...]:
        """The controllers these limits need, as version 2 calls them."""
        needed = {
            "cpu": self.cpu_shares is not None or self.cpu_quota is not None,
            "memory": self.memory is not None,
            "pids": self.pids is not None,
            "io": bool(self.io),
        }
        return tuple(name for name, wanted in needed.items() if wanted)


@attrs.frozen(kw_only=True)
class Hierarchy:
    """Where the controllers of this host are.

    Attributes:
        version_1: directory of the hierarchy by name of the controller.
        version_2: directory of the unified hierarchy, if there is one.
        unified: controllers that it has.
    """

    version_1: Mapping[str, str]
    version_2: str | None
    unified: frozenset[str]

    def has(self, controller: str) -> bool:
        """Whether the host has it, as version 2 calls it."""
        return controller in self.unified or _V1_NAMES.get(controller, controller) in self.version_1

    def top(self, controller: str) -> str:
        """Directory of the hierarchy a controller is in."""
        if controller in self.unified and self.version_2 is not None:
            return self.version_2
        return self.version_1[_V1_NAMES.get(controller, controller)]


_V1_NAMES = {"io": "blkio"}


def find_hierarchy(mounts: str = "/proc/self/mountinfo") -> Hierarchy:
    """Look at the host's control groups; reads only.

    Args:
        mounts: list of mounts, see proc_pid_mountinfo(5).
    """
    version_1: dict[str, str] = {}
    version_2 = None
    with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            kind, _, options = after.split(maxsplit=2)
            place = before.split()[4].encode().decode("unicode_escape")
            if kind == "cgroup2":
                version_2 = place
            elif kind == "cgroup":
                version_1 |= dict.fromkeys(options.strip().split(","), place)
    unified: frozenset[str] = frozenset()
    if version_2 is not None:
        with contextlib.suppress(OSError):
            unified = frozenset(_read(f"{version_2}/cgroup.controllers").split())
    return Hierarchy(version_1=version_1, version_2=version_2, unified=unified)


class Cgroup:
    """The groups of one instance, one in each hierarchy that is needed.

    Args:
        hierarchy: the host's.
        name: name of the instance.
        directory: its directory; two drivers may have instances of the same name.
        limits: its limits.
    """

    def __init__(self, hierarchy: Hierarchy, name: str, directory: str, limits: Limits) -> None:
        self._hierarchy = hierarchy
        self._limits = limits
        self._name = _group_name(name, directory)

    @property
    def paths(self) -> tuple[str, ...]:
        """Directories of the groups."""
        return tuple(dict.fromkeys(self._path(name) for name in self._limits.controllers))

    def make(self) -> None:
        """Make the groups and set the limits.

        Raises:
            HostError: the kernel refused one.
        """
        for path in self.paths:
            self._make(path)
        for controller, file, value in self._settings():
            path = f"{self._path(controller)}/{file}"
            try:
                _write(path, value)
            except OSError as error:
                hint = "see dmesg; the value may be more than the host allows"
                raise HostError(
                    f"cannot set the limit {file} to {value}: {error.strerror}", code="cgroup-refused", hint=hint
                ) from error

    def attach(self, pid: int) -> None:
        """Put a process with all its threads in.

        Raises:
            HostError: the kernel refused.
        """
        for path in self.paths:
            try:
                _write(f"{path}/cgroup.procs", str(pid))
            except OSError as error:
                raise HostError(
                    f"cannot put process {pid} into {path}: {error.strerror}", code="cgroup-refused"
                ) from error

    def _path(self, controller: str) -> str:
        return f"{self._hierarchy.top(controller)}/{self._name}"

    def _make(self, path: str) -> None:
        parent = os.path.dirname(path)
        top = os.path.dirname(parent)
        try:
            for directory in (parent, path):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(directory, 0o755)
            if top == self._hierarchy.version_2:
                wanted = " ".join(f"+{name}" for name in self._limits.controllers if self._hierarchy.top(name) == top)
                for directory in (top, parent):
                    _write(f"{directory}/cgroup.subtree_control", wanted)
        except OSError as error:
            hint = "this process may be in a group that others do not let it divide"
            raise HostError(
                f"cannot make the control group {path}: {error.strerror}", code="cgroup-refused", hint=hint
            ) from error

    def _settings(self) -> Iterator[tuple[str, str, str]]:
        limits = self._limits
        unified = {name: self._hierarchy.top(name) == self._hierarchy.version_2 for name in limits.controllers}
        if limits.cpu_shares is not None:
            # Version 2 has weights from 1 to 10000; container runtimes convert this way.
            weight = 1 + (limits.cpu_shares - 2) * 9999 // 262142
            yield (
                ("cpu", "cpu.weight", str(weight)) if unified["cpu"] else ("cpu", "cpu.shares", str(limits.cpu_shares))
            )
        if limits.cpu_quota is not None:
            quota = round(limits.cpu_quota * _PERIOD)
            if unified["cpu"]:
                yield "cpu", "cpu.max", f"{quota} {_PERIOD}"
            else:
                yield "cpu", "cpu.cfs_period_us", str(_PERIOD)
                yield "cpu", "cpu.cfs_quota_us", str(quota)
        if limits.memory is not None:
            yield "memory", "memory.max" if unified["memory"] else "memory.limit_in_bytes", str(limits.memory)
        if limits.pids is not None:
            yield "pids", "pids.max", str(limits.pids)
        for io in limits.io:
            if unified["io"]:
                yield "io", "io.max", f"{io.device} " + " ".join(f"{k}={v}" for k, v in sorted(io.limits.items()))
                continue
            for key, value in sorted(io.limits.items()):
                how = {"r": "read", "w": "write"}[key[0]]
                yield "io", f"blkio.throttle.{how}_{key[1:]}_device", f"{io.device} {value}"


def groups_of(name: str, directory: str) -> tuple[str, ...]:
    """Directories of the groups that an instance has on this host, whatever its limits were.

    Args:
        name: name of the instance.
        directory: its directory.
    """
    hierarchy = find_hierarchy()
    tops = dict.fromkeys((*hierarchy.version_1.values(), hierarchy.version_2))
    paths = (f"{top}/{_group_name(name, directory)}" for top in tops if top is not None)
    return tuple(path for path in paths if os.path.isdir(path))


def remove_groups(name: str, directory: str) -> None:
    """End whatever is still in the groups of an instance, and remove them; none is no error.

    Raises:
        HostError: one cannot be removed.
    """
    for path in groups_of(name, directory):
        for pid in _members(path):
            with contextlib.suppress(ProcessLookupError), process.held(process.identify(pid)) as pidfd:
                if pidfd is not None:
                    process.end(pidfd, Deadline.after(_PATIENCE))
        try:
            os.rmdir(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HostError(f"cannot remove the control group {path}: {error.strerror}") from error


def _group_name(name: str, directory: str) -> str:
    return f"{PARENT}/{name}-{hashlib.blake2b(directory.encode(), digest_size=4).hexdigest()}"


def _members(path: str) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in _read(f"{path}/cgroup.procs").split() if word != "0"]
    return []


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)
