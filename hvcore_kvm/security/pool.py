"""Security model ``pool``: each QEMU runs under a user id of its own, without any capability.

The ids come from a pool. Which instance has which is written down in one directory of the host, a file for each id,
changed under a lock; what an earlier boot wrote does not count.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping

import attrs

from hvcore import (
    Finding,
    HostError,
    Instance,
    RecordError,
    Step,
    boot_id,
    checks,
    param,
    private_directory,
    read_record,
    write_record,
)
from hvcore_kvm import SecurityModel, SecurityPlan, hookimpl, unprivileged

_WHERE = "params.pool.uids"
_SCHEMA = 1
_RANGE = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?")
# Below are the users of the system; nobody is everybody's; the largest means "leave it as it is" to the kernel.
_FIRST_ID, _NOBODY, _LAST_ID = 1000, 65534, 2**32 - 2


def parse_uids(text: str) -> tuple[range, ...]:
    """Read ``20000-20999,30000``: numbers and ranges, both ends included, none twice.

    Raises:
        ValueError: it is not that; the text says why.
    """
    ranges: list[range] = []
    for item in text.split(","):
        found = _RANGE.fullmatch(item)
        if found is None:
            raise ValueError(f"{item[:40]!r} is neither a number nor a range such as 20000-20999")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError(f"{item}: the first is above the last")
        if first < _FIRST_ID or last > _LAST_ID:
            raise ValueError(f"{item}: user ids of a pool go from {_FIRST_ID} to {_LAST_ID}")
        if first <= _NOBODY <= last:
            raise ValueError(f"{item}: {_NOBODY} is the user nobody")
        if any(first < known.stop and known.start <= last for known in ranges):
            raise ValueError(f"{item}: some of it is named before")
        ranges.append(range(first, last + 1))
    return tuple(ranges)


def _is_pool(value: str) -> str | None:
    try:
        parse_uids(value)
    except ValueError as error:
        return str(error)
    return None


@attrs.frozen(kw_only=True)
class PoolParameters:
    """Parameters of security model ``pool``."""

    uids: str | None = param(
        default=None,
        checks=(_is_pool,),
        summary="User ids that belong to instances and to nobody else on this host, such as 20000-20999,30000. Each is "
        "a group id too. They need not be in the user database.",
    )
    directory: str = param(
        default="/run/hvcore/uids",
        checks=(checks.absolute_path,),
        summary="Directory in which is written down who has which; one for all drivers on the host.",
    )


@attrs.frozen(kw_only=True)
class Lease:
    """An id an instance has.

    Attributes:
        instance: uuid of the instance.
        name: its name, for people.
        boot_id: boot of the host in which it got it.
    """

    instance: str
    name: str
    boot_id: str


class PoolConfinement:
    """Plans a change to a user id of the instance's own."""

    def check(self, instance: Instance, parameters: PoolParameters) -> Iterator[Finding]:
        """The pool has to be given, and only root may change QEMU's root directory."""
        given = instance.params.get("pool")
        if not isinstance(given, Mapping) or given.get("uids") is None:
            message = "security model pool needs the user ids to choose from"
            yield Finding(code="missing-parameter", path=_WHERE, message=message, hint='for example "20000-20999"')
        yield from unprivileged.check_unprivileged(instance, "pool")

    def check_host(self, instance: Instance, parameters: PoolParameters) -> Iterator[Finding]:
        """An id is free and can use KVM, and we may become another user."""
        yield from unprivileged.check_host_unprivileged()
        if not _is_safe(parameters.directory):
            message = f"{parameters.directory} is not a directory that belongs to this user"
            hint = "remove it, or give another directory"
            yield Finding(code="directory-not-safe", path="params.pool.directory", message=message, hint=hint)
        elif _choose(instance, parameters) is None:
            message = f"all user ids of {parameters.uids} are leased, or processes run under them"
            hint = f"who has which stands in {parameters.directory}"
            yield Finding(code="pool-exhausted", path=_WHERE, message=message, hint=hint)
        if instance.params.get("accel") == "kvm" and not unprivileged.may_use_kvm():
            yield unprivileged.kvm_finding("user ids of the pool", _WHERE)

    def plan(self, instance: Instance, parameters: PoolParameters) -> SecurityPlan:
        """The lease, and the program that becomes that user and then executes QEMU.

        Which id it will be is said now and taken by the step: another start may have been faster, and then the step
        fails and the next plan says another one.
        """
        uid = _choose(instance, parameters)
        lease = Step(
            name="lease a user id" if uid is None else f"lease user id {uid}",
            do=functools.partial(_take, instance, parameters, uid),
            undo=functools.partial(_give_back, instance, parameters),
        )
        # Without an id the step fails; should it not, setpriv refuses: never would QEMU run as root.
        who = "-" if uid is None else str(uid)
        launcher = unprivileged.unprivileged_launcher(instance, who, who)
        return SecurityPlan(launcher=launcher, steps=(lease,))


def _choose(instance: Instance, parameters: PoolParameters) -> int | None:
    """The id an instance has or would get now; reads only."""
    leases = _read_leases(parameters.directory)
    pool = parse_uids(parameters.uids) if parameters.uids else ()
    for uid, lease in sorted(leases.items()):
        if _is_of(lease, instance) and any(uid in part for part in pool):
            return uid
    return _first_free(instance, pool, leases)


def _first_free(instance: Instance, pool: tuple[range, ...], leases: Mapping[int, Lease | None]) -> int | None:
    size = sum(len(part) for part in pool)
    if not size:
        return None
    taken = {*leases, *_uids_of_processes()}
    # Where the search begins follows from the instance, so that two that start at once hardly ever meet.
    digest = hashlib.blake2b((instance.uuid or instance.name).lower().encode(), digest_size=8).digest()
    start = int.from_bytes(digest, "big") % size
    for index in range(size):
        uid = _nth(pool, (start + index) % size)
        if uid not in taken:
            return uid
    return None


def _nth(pool: tuple[range, ...], index: int) -> int:
    for part in pool:
        if index < len(part):
            return part[index]
        index -= len(part)
    raise IndexError(index)


def _take(instance: Instance, parameters: PoolParameters, uid: int | None) -> None:
    """Write down that an instance has an id.

    Raises:
        HostError: it is not free any more; planning again finds another one.
    """
    with _locked(parameters.directory) as directory_fd:
        leases = _read_leases(parameters.directory)
        if uid is not None and _is_of(leases.get(uid), instance):
            return
        if uid is None or uid in leases or uid in _uids_of_processes():
            holder = leases.get(uid) if uid is not None else None
            by = f" by instance {holder.name}" if holder is not None else ""
            message = "no user id of the pool is free" if uid is None else f"user id {uid} has just been taken{by}"
            error = HostError(message, code="uid-taken", hint="start it again: it gets another one")
            error.retryable = True
            raise error
        lease = Lease(instance=instance.uuid or "", name=instance.name, boot_id=boot_id())
        write_record(directory_fd, str(uid), lease, schema=_SCHEMA)


def _give_back(instance: Instance, parameters: PoolParameters) -> None:
    """Forget whatever an instance has; nothing is not an error."""
    if not os.path.lexists(parameters.directory) or not _is_safe(parameters.directory):
        # Nothing was written there.
        return
    with _locked(parameters.directory) as directory_fd:
        for uid, lease in _read_leases(parameters.directory).items():
            if _is_of(lease, instance):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(str(uid), dir_fd=directory_fd)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[int]:
    """Hold the lock of the leases; yields a descriptor of their directory. The kernel releases it with the holder."""
    private_directory(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _is_safe(path: str) -> bool:
    """A directory of ours, or nothing yet."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _read_leases(path: str) -> dict[int, Lease | None]:
    """Who has which id in this boot; ``None`` for a file that cannot be read, whose id is nobody's to give."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    leases: dict[int, Lease | None] = {}
    try:
        for name in os.listdir(fd):
            if not (name.isascii() and name.isdecimal()):
                continue
            try:
                lease = read_record(fd, name, Lease, schema=_SCHEMA)
            except RecordError:
                leases[int(name)] = None
                continue
            if lease is not None and lease.boot_id == boot_id():
                leases[int(name)] = lease
    finally:
        os.close(fd)
    return leases


def _is_of(lease: Lease | None, instance: Instance) -> bool:
    return lease is not None and lease.instance == (instance.uuid or "")


def _uids_of_processes() -> set[int]:
    """All user ids under which something lives: real, effective, saved, and those of its file accesses.

    By hand: psutil takes three times as long, and every start asks several times.
    """
    found: set[int] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/status", "rb") as file:
                status = file.read()
        except OSError:
            continue  # gone meanwhile
        if b"\nState:\tZ" not in status:
            uids = status.partition(b"\nUid:")[2].partition(b"\n")[0]
            found.update(map(int, uids.split()))
    return found


@hookimpl
def kvm_security_models() -> Iterator[SecurityModel]:
    """The model."""
    yield SecurityModel(
        name="pool",
        summary="Each QEMU runs under a user id of its own from a pool, without capabilities.",
        backend=PoolConfinement(),
        parameters=PoolParameters,
    )
