"""User ids that belong to instances: which instance has which, written down for the whole host.

One directory, a file for each id, changed under a lock; what an earlier boot wrote does not count.
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
    private_directory,
    read_record,
    write_record,
)

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


def check_uids(value: str) -> str | None:
    """A check for a parameter: what is wrong with the ids of a pool."""
    try:
        parse_uids(value)
    except ValueError as error:
        return str(error)
    return None


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


@attrs.frozen(kw_only=True)
class UidPool:
    """The ids to choose from, and where it stands who has which.

    Attributes:
        uids: numbers and ranges, as `parse_uids` reads them.
        directory: directory of the leases; one for all drivers of the host.
    """

    uids: str
    directory: str

    def choose(self, instance: Instance) -> int | None:
        """The id an instance has or would get now, ``None`` if none is free; reads only."""
        leases = _read_leases(self.directory)
        pool = parse_uids(self.uids) if self.uids else ()
        for uid, lease in sorted(leases.items()):
            if _is_of(lease, instance) and any(uid in part for part in pool):
                return uid
        return _first_free(instance, pool, leases)

    def check_host(self, instance: Instance, where: str) -> Iterator[Finding]:
        """An id is free, and the directory is ours; reads only.

        Args:
            instance: who wants one.
            where: path of the section that holds ``uids`` and ``directory``.
        """
        if not _is_safe(self.directory):
            message = f"{self.directory} is not a directory that belongs to this user"
            hint = "remove it, or give another directory"
            yield Finding(code="directory-not-safe", path=f"{where}.directory", message=message, hint=hint)
        elif self.choose(instance) is None:
            message = f"all user ids of {self.uids} are leased, or processes run under them"
            hint = f"who has which stands in {self.directory}"
            yield Finding(code="pool-exhausted", path=f"{where}.uids", message=message, hint=hint)

    def lease(self, instance: Instance, uid: int | None) -> Step:
        """The step that takes an id which was chosen, and gives back whatever the instance has when it is undone.

        Another start may have been faster; then the step fails with a retryable error, and the next plan chooses
        another id.
        """
        return Step(
            name="lease a user id" if uid is None else f"lease user id {uid}",
            do=functools.partial(_take, instance, self.directory, uid),
            undo=functools.partial(_give_back, instance, self.directory),
        )


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


def _take(instance: Instance, path: str, uid: int | None) -> None:
    """Write down that an instance has an id.

    Raises:
        HostError: it is not free any more; planning again finds another one.
    """
    with _locked(path) as directory_fd:
        leases = _read_leases(path)
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


def _give_back(instance: Instance, path: str) -> None:
    """Forget whatever an instance has; nothing is not an error."""
    if not os.path.lexists(path) or not _is_safe(path):
        # Nothing was written there.
        return
    with _locked(path) as directory_fd:
        for uid, lease in _read_leases(path).items():
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
