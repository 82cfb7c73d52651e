"""Who is connected to a UNIX socket and who waits, as the kernel says; who a process is that holds one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hvcore import console_holder, device_holder
from hvcore import unix_clients as clients_of_unix
from hvcore.inotify import FileWatch
from hvcore.unix_clients import unix_clients


@pytest.fixture
def server(tmp_path: Path) -> Iterator[socket.socket]:
    # Bound by another name of its directory, as servers with long paths are.
    directory = os.open(tmp_path, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{directory}/line")
        listener.listen(8)
        yield listener
    os.close(directory)


def _connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return client


def test_connected_is_told_from_waiting(server: socket.socket, tmp_path: Path) -> None:
    """By inode, in the order in which they came."""
    path = tmp_path / "line"
    with _connect(path) as first, server.accept()[0], _connect(path) as second, _connect(path) as third:
        clients = unix_clients(str(path))
        assert clients is not None
        inodes = [os.fstat(client.fileno()).st_ino for client in (first, second, third)]
        assert clients.connected == (inodes[0],)
        assert clients.waiting == (inodes[1], inodes[2])
    assert unix_clients(str(path)) is not None


def test_one_that_is_accepted_meanwhile_does_not_wait(
    server: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of its sockets one by one: of the listening one before, and of the new one after."""
    path = tmp_path / "line"
    with _connect(path) as first, _connect(path) as second:
        before = clients_of_unix._dump()
        with server.accept()[0]:
            told = {entry.file: entry for entry in before if entry.pending}
            after = [told.get(entry.file, entry) if entry.pending else entry for entry in clients_of_unix._dump()]
        monkeypatch.setattr(clients_of_unix, "_dump", lambda: after)
        clients = unix_clients(str(path))
        assert clients is not None
        assert clients.connected == (os.fstat(first.fileno()).st_ino,)
        assert clients.waiting == (os.fstat(second.fileno()).st_ino,)


def test_nobody_listens(server: socket.socket, tmp_path: Path) -> None:
    """A socket that has closed, a plain file and nothing at all have no clients to speak of."""
    server.close()
    (tmp_path / "plain").write_text("")
    for name in ("line", "plain", "missing"):
        assert unix_clients(str(tmp_path / name)) is None
        assert console_holder(str(tmp_path / name)) is None


def test_the_holder_is_a_process_with_a_name(server: socket.socket, tmp_path: Path) -> None:
    """Somebody else's program is found by the socket it holds: pid, name, user and since when."""
    program = f"import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect({str(tmp_path / 'line')!r})"
    with (
        subprocess.Popen([sys.executable, "-c", f"{program}; sys.stdin.read()"], stdin=subprocess.PIPE) as other,
        server.accept()[0],
    ):
        holder = console_holder(str(tmp_path / "line"))
        assert holder is not None
        assert holder.pid == other.pid
        assert holder.program.startswith("python")
        assert holder.user != ""
        assert holder.since == pytest.approx(psutil.Process(other.pid).create_time(), abs=0.1)
        assert other.stdin is not None
        other.stdin.close()


def test_the_holder_of_a_terminal(tmp_path: Path) -> None:
    """Whoever has the device open; nobody when it is closed."""
    master, slave = os.openpty()
    try:
        name = os.ttyname(slave)
        holder = device_holder(name)
        assert holder is not None
        assert holder.pid == os.getpid()
        os.close(slave)
        slave = -1
        assert device_holder(name) is None
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)


def test_a_watch_wakes_at_a_change(tmp_path: Path) -> None:
    """What is written before it is cleared does not wake it again, what is written after does."""
    import select

    path = tmp_path / "log"
    path.write_text("a")
    with FileWatch(str(path)) as watch:
        assert select.select([watch], [], [], 0)[0] == []
        path.write_text("ab")
        assert select.select([watch], [], [], 30)[0] == [watch]
        watch.clear()
        assert select.select([watch], [], [], 0)[0] == []
    with pytest.raises(OSError, match="missing"):
        FileWatch(str(tmp_path / "missing"))
