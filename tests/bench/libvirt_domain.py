"""The same guest under libvirt, driven by its C library with its QEMU driver embedded: no daemon, all in one directory.

See "Embedded driver" in libvirt's documentation of its QEMU driver. It is in a process of its own, of the user nobody:
for root, libvirt wants a user that only its daemon's package makes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

_LIBRARY = "libvirt.so.0"
_DRIVER = "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so"
_PACKAGES = "libvirt-daemon-driver-qemu"
_SETTINGS = 'security_driver = "none"\nnamespaces = []\ncgroup_controllers = []\nstdio_handler = "file"\n'
_NOBODY = 65534
_LIVE = 1
_EMPTY = b"\n"


class LibvirtError(Exception):
    """libvirt's own words."""


def lacking() -> str:
    """What is not there to measure libvirt; empty when everything is."""
    if not os.path.exists(_DRIVER):
        return f"libvirt is not installed: apt-get install --no-install-recommends {_PACKAGES}"
    return "" if os.geteuid() == 0 else "only root can give libvirt a user of its own"


class LibvirtDomain:
    """One guest. A context manager: the guest is destroyed, and nothing of it is left.

    Args:
        xml: its domain, as libvirt describes it; ``{directory}`` in it is a directory of its own.
        files: what is copied there, by name.
    """

    def __init__(self, xml: str, files: dict[str, str]) -> None:
        self._xml = xml
        self._files = files

    def __enter__(self) -> Self:
        # Short: paths of UNIX sockets end at 107 bytes.
        self.directory = tempfile.mkdtemp(prefix="hvl-", dir="/tmp")
        os.mkdir(f"{self.directory}/etc")
        with open(f"{self.directory}/etc/qemu.conf", "w", encoding="ascii") as file:
            file.write(_SETTINGS)
        for name, path in self._files.items():
            shutil.copyfile(path, f"{self.directory}/{name}")
        for entry in (".", "etc", "etc/qemu.conf", *self._files):
            os.chown(f"{self.directory}/{entry}", _NOBODY, _NOBODY)
        ours, theirs = socket.socketpair()
        library = _load()
        self._pid = os.fork()
        if not self._pid:
            ours.close()
            _serve(library, theirs, self.directory, self._xml.replace("{directory}", self.directory))
        theirs.close()
        self._socket = ours.makefile("rwb", buffering=0)
        ours.close()
        try:
            self._answer()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()
        os.waitpid(self._pid, 0)
        shutil.rmtree(self.directory)

    def attach(self, device: str) -> float:
        """Attach a device, described in XML; returns the seconds it took."""
        return self._ask("attach", device)

    def detach(self, device: str) -> float:
        """Detach a device, for which libvirt waits five seconds at most; returns the seconds it took."""
        return self._ask("detach", device)

    def _ask(self, what: str, device: str) -> float:
        self._socket.write(f"{what} {device}\n".encode())
        return float(self._answer())

    def _answer(self) -> str:
        word, _, rest = self._socket.readline().decode().strip().partition(" ")
        if word != "done":
            raise LibvirtError(rest or "its process ended")
        return rest


def _serve(library: Any, requests: socket.socket, directory: str, xml: str) -> None:
    """Be the process that has the guest, until nobody asks any more; does not return."""
    stream = requests.makefile("rwb", buffering=0)
    try:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
        os.environ |= {"HOME": directory, "XDG_RUNTIME_DIR": directory, "XDG_CACHE_HOME": directory}
        os.environ["XDG_CONFIG_HOME"] = directory
        with _domain(library, directory, xml) as change:
            stream.write(b"done\n")
            for line in iter(stream.readline, b""):
                what, _, device = line.decode().strip().partition(" ")
                begun = time.perf_counter()
                change(what, device)
                stream.write(f"done {time.perf_counter() - begun}\n".encode())
    except LibvirtError as error:
        stream.write(f"failed {error}\n".encode())
    except BaseException:
        traceback.print_exc()
    finally:
        # Not as Python ends: what this process was forked from is not its own to close.
        os._exit(0)


@contextlib.contextmanager
def _domain(library: Any, directory: str, xml: str) -> Iterator[Callable[[str, str], None]]:
    def check(ok: bool, what: str) -> None:
        if not ok:
            raise LibvirtError(f"{what}: {library.virGetLastErrorMessage().decode()}")

    def run_events() -> None:
        while True:
            library.virEventRunDefaultImpl()

    def change(what: str, device: str) -> None:
        name = {"attach": "virDomainAttachDeviceFlags", "detach": "virDomainDetachDeviceFlags"}[what]
        check(getattr(library, name)(domain, device.encode(), _LIVE) == 0, name)

    check(library.virEventRegisterDefaultImpl() == 0, "virEventRegisterDefaultImpl")
    threading.Thread(target=run_events, daemon=True).start()
    connection = library.virConnectOpen(f"qemu:///embed?root={directory}".encode())
    check(bool(connection), "virConnectOpen")
    domain = library.virDomainCreateXML(connection, xml.encode(), 0)
    check(bool(domain), "virDomainCreateXML")
    try:
        yield change
    finally:
        check(library.virDomainDestroy(domain) == 0, "virDomainDestroy")


def _load() -> Any:
    library = ctypes.CDLL(_LIBRARY)
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint
    library.virGetLastErrorMessage.restype = text
    library.virConnectOpen.argtypes, library.virConnectOpen.restype = [text], pointer
    library.virDomainCreateXML.argtypes, library.virDomainCreateXML.restype = [pointer, text, number], pointer
    library.virDomainDestroy.argtypes = [pointer]
    for name in ("virDomainAttachDeviceFlags", "virDomainDetachDeviceFlags"):
        getattr(library, name).argtypes = [pointer, text, number]
    return library
