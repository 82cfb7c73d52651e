"""Namespaces of a QEMU process, and a file system of its own in place of the host's.

Both are made by the thread that starts the process, for itself, and inherited: nothing has to be executed in between,
nothing of it can be seen from outside, and with the process the kernel takes it down.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from hvcore import HostError

NAMESPACES = {"mount": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "pid": 0x20000000}
"""Kinds of namespaces a process can get, by name, and the flags of unshare(2) for them."""

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _SLAVE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 19
_MNT_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "i686": 217, "ppc64le": 203, "s390x": 217}
"""Numbers of the system call, which the C library does not offer; on the other architectures it is 41."""

_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin")
_SETTINGS = (
    "/etc/alternatives",
    "/etc/ceph",
    "/etc/gnutls",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/qemu",
    "/etc/resolv.conf",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/sys/devices/system",
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_COPY_LIMIT = 1 << 30


@attrs.frozen(kw_only=True)
class PrivateRoot:
    """The file system of one QEMU process: programs and libraries of the host, what is named here, and nothing else.

    Everything but ``writable`` is read-only. What the definition names and QEMU opens by its path, such as a kernel,
    the driver adds.

    Attributes:
        owner: user id QEMU runs as. Devices belong to it, and copies of files that only others may read.
        paths: files, directories and devices of the host, seen at the same place.
        writable: directories of the host, seen at the same place, that may be written to as far as their owners let it.
    """

    owner: int
    paths: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()


def program_tree(path: str) -> str | None:
    """The directory that has to be seen for a program beside those of the system; ``None`` for one of these.

    For one in a directory ``bin`` that is what ``bin`` is in, where its libraries and data are too.
    """
    if any(path.startswith(f"{top}/") for top in _SYSTEM):
        return None
    directory = os.path.dirname(path)
    above = os.path.dirname(directory)
    return above if os.path.basename(directory) == "bin" and above != "/" else directory


def enter(namespaces: Iterable[str], root: PrivateRoot | None, place: str) -> None:
    """Give the calling thread namespaces and a root of its own; what it starts afterwards has them too.

    Args:
        namespaces: kinds, see `NAMESPACES`.
        root: the file system; ``None`` for the host's. Needs the kind ``mount``.
        place: an empty directory to put it together on; on the host it stays empty.

    Raises:
        HostError: the kernel refused; the thread is of no use any more.
    """
    flags = 0
    for kind in namespaces:
        flags |= NAMESPACES[kind]
    if flags:
        _call("unshare", "make namespaces", flags)
    if root is None:
        return
    # What is mounted here does not reach the host, while what the host unmounts is not kept in use from here.
    _mount("none", "/", None, _REC | _SLAVE)
    _mount("tmpfs", place, "tmpfs", _NOSUID | _NOEXEC, "mode=755")
    before = os.umask(0o022)  # the thread's own: it has left the others' with the mounts
    tree = _Tree(place, root.owner)
    tree.show_processes()
    # What is in a directory that is shown comes after it.
    for path in (*_SYSTEM, *sorted((*_SETTINGS, *_DEVICES, *root.paths), key=len)):
        tree.show(path)
    for path in root.writable:
        tree.serve(path)
    os.umask(before)
    try:
        os.chdir(place)
        number = _PIVOT_ROOT.get(os.uname().machine, 41)
        # The old root comes to lie on top of the new one, and is taken off: pivot_root(2), "pivot_root(".", ".")".
        _call("syscall", "change the root", number, b".", b".")
        _call("umount2", "take off the old root", b".", _MNT_DETACH)
        _mount("none", "/", None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NOEXEC)
        os.chdir("/")
    except OSError as error:
        raise HostError(f"cannot change the root: {error.strerror}", code="confinement-refused") from error


class _Tree:
    """The new root while it is put together."""

    def __init__(self, top: str, owner: int) -> None:
        self._top = top
        self._owner = owner

    def show(self, path: str) -> None:
        """Let a path of the host be seen at the same place; one that is not there is left out."""
        path = os.path.normpath(path)
        target = f"{self._top}{path}"
        try:
            found = os.stat(path)
            if os.path.lexists(target) or any(path.startswith(f"{top}/") for top in _SYSTEM):
                return
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            if os.path.dirname(path) == "/" and os.path.islink(path):
                # Such as /lib on most of today's systems: what it leads to is shown too.
                os.symlink(os.readlink(path), target)
            elif stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
                self._make_node(target, found)
            elif stat.S_ISDIR(found.st_mode):
                self._show_directory(path, target)
            elif stat.S_ISREG(found.st_mode) and not found.st_mode & stat.S_IROTH:
                self._copy(path, target)
            else:
                os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
                self._bind(path, target, 0)
        except FileNotFoundError:
            return
        except OSError as error:
            raise HostError(f"cannot show {path} to QEMU: {error.strerror}", code="confinement-refused") from error

    def serve(self, path: str) -> None:
        """Let a directory of the host be seen at the same place, and be written to."""
        path = os.path.normpath(path)
        target = f"{self._top}{path}"
        try:
            os.makedirs(target, mode=0o755, exist_ok=True)
        except OSError as error:
            raise HostError(f"cannot show {path}: {error.strerror}", code="confinement-refused") from error
        _mount(os.path.realpath(path), target, None, _BIND)
        _mount("none", target, None, _REMOUNT | _BIND | _NOSUID | _NODEV | _NOEXEC)

    def show_processes(self) -> None:
        """Let QEMU see its own process and no other."""
        target = f"{self._top}/proc"
        os.mkdir(target, 0o755)
        flags = _NOSUID | _NODEV | _NOEXEC
        try:
            _mount("proc", target, "proc", flags, "hidepid=invisible,subset=pid")
        except HostError:
            # Linux before 5.8, which knows the older word only.
            _mount("proc", target, "proc", flags, "hidepid=2")

    def _make_node(self, target: str, found: os.stat_result) -> None:
        # A node of its own, so that the permissions of the host's are neither needed nor changed.
        os.mknod(target, stat.S_IFMT(found.st_mode) | 0o600, found.st_rdev)
        os.chown(target, self._owner, self._owner)

    def _show_directory(self, path: str, target: str) -> None:
        entries = [] if path in _SYSTEM or path.startswith("/dev/") else _entries(path)
        if any(not mode & stat.S_IROTH for _, mode in entries):
            os.mkdir(target, 0o755)
            for name, mode in entries:
                if stat.S_ISREG(mode):
                    self._copy(f"{path}/{name}", f"{target}/{name}")
            return
        os.mkdir(target, 0o755)
        self._bind(path, target, _REC)

    def _bind(self, path: str, target: str, recursive: int) -> None:
        _mount(os.path.realpath(path), target, None, _BIND | recursive)
        nodev = 0 if path.startswith("/dev/") else _NODEV
        _mount("none", target, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | nodev)

    def _copy(self, path: str, target: str) -> None:
        """A file that others may not read, such as a private key: QEMU gets it in memory, for itself alone."""
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(source)
            if not stat.S_ISREG(found.st_mode) or found.st_size > _COPY_LIMIT:
                raise HostError(f"{path} is no file of less than 1 GiB", code="confinement-refused")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            copy = os.open(target, flags, 0o400)
            try:
                while os.sendfile(copy, source, None, 1 << 20):
                    pass
                os.fchown(copy, self._owner, self._owner)
            finally:
                os.close(copy)
        finally:
            os.close(source)


def _entries(path: str) -> list[tuple[str, int]]:
    found = []
    for entry in os.scandir(path):
        with contextlib.suppress(OSError):
            found.append((entry.name, entry.stat().st_mode))
    return found


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    _call("mount", f"mount {target}", *words, ctypes.c_ulong(flags), None if data is None else data.encode())


def _call(function: str, what: str, *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    called: Callable[..., int] = getattr(libc, function)
    if called(*arguments) != 0:
        error = ctypes.get_errno()
        raise HostError(
            f"cannot {what}: {os.strerror(error)}",
            code="confinement-refused",
            hint='containers may not allow it, and a changed root does not; use security_model = "pool"',
        )
