"""Watching what the calling thread does to the host, by Python's own audit events.

An audit hook cannot be taken away again: there is one for the whole process, and it is idle while nobody watches.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

CHANGES = frozenset(
    {
        "os.chmod",
        "os.chown",
        "os.link",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.setxattr",
        "os.symlink",
        "os.truncate",
        "os.utime",
        "shutil.rmtree",
        "tempfile.mkdtemp",
        "tempfile.mkstemp",
    }
)
"""Events that change a file."""

PROCESSES = frozenset(
    {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"}
)
"""Events that start a process."""

SOCKETS = frozenset({"socket.__new__", "socket.bind", "socket.connect", "socket.sendto"})
"""Events of sockets."""

LOOKS = frozenset({"os.listdir", "os.scandir"})
"""Events that only look; opening a file for reading is named ``open-read`` here."""

_local = threading.local()
_installed = threading.Lock()
_hooked = False


@contextlib.contextmanager
def watching(wanted: frozenset[str], each: Callable[[str], None]) -> Iterator[None]:
    """Call a function at each event of this thread, in the block.

    Args:
        wanted: names of events; ``open-write`` and ``open-read`` stand for the opening of a file.
        each: takes the event in words, before what it announces is done.
    """
    _install()
    before = getattr(_local, "watch", None)
    _local.watch = (wanted, each)
    try:
        yield
    finally:
        _local.watch = before


def actions(wanted: frozenset[str], call: Callable[[], object]) -> list[str]:
    """What a call does to the host: the wanted events, in words."""
    found: list[str] = []
    with watching(wanted, found.append):
        call()
    return found


def _install() -> None:
    global _hooked
    with _installed:
        if not _hooked:
            sys.addaudithook(_hook)
            _hooked = True


def _hook(event: str, args: tuple[Any, ...]) -> None:
    watch = getattr(_local, "watch", None)
    if watch is None:
        return
    wanted, each = watch
    name = event
    if event == "open":
        name = "open-write" if _opens_for_writing(args) else "open-read"
        if _is_of_the_interpreter(args):
            return
    if name in wanted:
        # What the watcher itself does is not to be watched.
        _local.watch = None
        try:
            each(f"{name} {_first(args)}".rstrip())
        finally:
            _local.watch = watch


def _opens_for_writing(args: tuple[Any, ...]) -> bool:
    _, mode, flags = args
    if isinstance(mode, str) and any(letter in mode for letter in "wax+"):
        return True
    return isinstance(flags, int) and bool(flags & _WRITES)


def _is_of_the_interpreter(args: tuple[Any, ...]) -> bool:
    """Importing a module for the first time reads its file, and is nothing a driver does."""
    path = args[0]
    return isinstance(path, str) and path.endswith((".py", ".pyc", ".so"))


def _first(args: tuple[Any, ...]) -> str:
    return next((str(arg)[:400] for arg in args if isinstance(arg, str | bytes | os.PathLike)), "")
