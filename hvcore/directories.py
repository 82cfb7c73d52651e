"""Where state lives on a host: volatile state that dies with its boot, data that outlives it, and caches.

Directories are made 0700 and used only if they belong to us: whoever could write there could redirect a start.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping

import attrs

from hvcore.errors import HostError


@attrs.frozen(kw_only=True)
class Directories:
    """Three roots, all absolute.

    Attributes:
        state: volatile: processes, sockets, locks, records of running instances.
        data: what outlives a boot: device addresses, firmware variables, why an instance ended.
        cache: what can be made again.
    """

    state: str
    data: str
    cache: str

    def below(self, name: str) -> Directories:
        """The same roots, one level down."""
        return Directories(
            state=os.path.join(self.state, name),
            data=os.path.join(self.data, name),
            cache=os.path.join(self.cache, name),
        )


def default_directories(environment: Mapping[str, str] = os.environ, uid: int | None = None) -> Directories:
    """System directories for root, the XDG base directories for everybody else.

    Source: XDG Base Directory Specification. Where ``XDG_RUNTIME_DIR`` is not set and ``/run/user/UID`` is not
    there, volatile state goes below the state directory; records carry the boot id, so that is safe.

    Args:
        environment: of this process.
        uid: user id; the effective one when not given.
    """
    uid = os.geteuid() if uid is None else uid
    if uid == 0:
        return Directories(state="/run/hvcore", data="/var/lib/hvcore", cache="/var/cache/hvcore")
    home = environment.get("HOME") or os.path.expanduser("~")

    def base(variable: str, *fallback: str) -> str:
        given = environment.get(variable, "")
        return given if os.path.isabs(given) else os.path.join(home, *fallback)

    data = os.path.join(base("XDG_STATE_HOME", ".local", "state"), "hvcore")
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if not os.path.isabs(runtime):
        runtime = f"/run/user/{uid}"
        if not os.path.isdir(runtime):
            runtime = ""
    return Directories(
        state=os.path.join(runtime, "hvcore") if runtime else os.path.join(data, "run"),
        data=data,
        cache=os.path.join(base("XDG_CACHE_HOME", ".cache"), "hvcore"),
    )


def private_directory(path: str) -> str:
    """Make a directory, missing parents included, that only its owner can enter, and return its path.

    Raises:
        HostError: it cannot be made, is no directory, is a symbolic link, or belongs to somebody else.
    """
    try:
        _make(path)
        found = os.lstat(path)
    except OSError as error:
        raise HostError(
            f"cannot make the directory {path}: {error.strerror}",
            hint="give a directory you may write to, for example with --state-directory",
            code="directory-not-writable",
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise HostError(f"{path} is not a directory", code="directory-not-safe")
    if found.st_uid != os.geteuid():
        raise HostError(
            f"{path} belongs to user {found.st_uid}, not to user {os.geteuid()}",
            hint="remove it, or give another directory",
            code="directory-not-safe",
        )
    if found.st_mode & 0o022:
        os.chmod(path, 0o700)
    if not os.access(path, os.W_OK | os.X_OK):
        raise HostError(
            f"{path} is not writable",
            hint="mount it writable, or give another directory",
            code="directory-not-writable",
        )
    return path


def _make(path: str) -> None:
    """Make a directory and its missing parents, all 0700; os.makedirs would give the mode to the last one only."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        _make(os.path.dirname(path))
        # Somebody else may have been faster.
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
