"""Processes: identity, life, death, and what they inherit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from hvcore import Deadline, HostError
from hvcore_kvm import process


@pytest.fixture
def output(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "output", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def _spawn(output: int, *words: str, fds: tuple[int, ...] = ()) -> int:
    return process.spawn(words, fds, output)


def _end(pid: int) -> process.End | None:
    fd = os.pidfd_open(pid)
    try:
        process.end(fd, Deadline.after(30))
        return process.end_of(fd, Deadline.after(30))
    finally:
        os.close(fd)


def test_a_zombie_is_dead(output: int) -> None:
    """A process that has ended and has not been reaped is not alive, though /proc still shows it."""
    pid = _spawn(output, "/bin/sleep", "600")
    identity = process.identify(pid)
    assert process.is_alive(identity)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{pid}").exists()
    assert not process.is_alive(identity)


def test_another_process_with_the_same_pid_is_somebody_else(output: int) -> None:
    """Start time and boot id belong to the identity: a recycled pid is not our process."""
    pid = _spawn(output, "/bin/sleep", "600")
    identity = process.identify(pid)
    try:
        assert not process.is_alive(attrs.evolve(identity, start_time=identity.start_time - 1))
        assert not process.is_alive(attrs.evolve(identity, boot_id="another boot"))
        assert process.is_alive(identity)
    finally:
        _end(pid)
    assert not process.is_alive(identity)


def test_how_it_ended_is_known_once(output: int) -> None:
    """Exit status and signal are told apart."""
    pid = _spawn(output, "/bin/sh", "-c", "exit 7")
    fd = os.pidfd_open(pid)
    try:
        assert process.end_of(fd, Deadline.after(30)) == process.End(status=7)
        assert process.end_of(fd, Deadline.after(30)) == process.End(status=None)
    finally:
        os.close(fd)
    pid = _spawn(output, "/bin/sh", "-c", "kill -SEGV $$")
    fd = os.pidfd_open(pid)
    try:
        assert process.end_of(fd, Deadline.after(30)) == process.End(status=-signal.SIGSEGV)
    finally:
        os.close(fd)


@pytest.mark.parametrize("how", ["deaf", "stopped"])
def test_end_ends_what_does_not_listen(output: int, tmp_path: Path, how: str) -> None:
    """A process that ignores SIGTERM, or is stopped and cannot hear it, is killed."""
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    pid = _spawn(output, "/bin/sh", "-c", f"trap '' TERM; echo > {ready}; while :; do sleep 1; done")
    ready.read_text()
    if how == "stopped":
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
    fd = os.pidfd_open(pid)
    try:
        assert process.end(fd, Deadline.after(30))
    finally:
        os.close(fd)


def test_a_process_gets_exactly_its_descriptors(output: int, tmp_path: Path) -> None:
    """Descriptors arrive renumbered from 3 in the order given, whatever numbers they have here; no other does."""
    fds = []
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
        fds.append(os.open(tmp_path / name, os.O_RDONLY))
    # The order in which the numbers would overwrite each other.
    fds.reverse()
    stray = os.open(tmp_path / "a", os.O_RDONLY)
    os.set_inheritable(stray, True)
    script = "import os; print(''.join(os.read(n, 9).decode() for n in (3, 4, 5)), sorted(os.listdir('/proc/self/fd')))"
    try:
        pid = _spawn(output, sys.executable, "-S", "-c", script, fds=tuple(fds))
    finally:
        for fd in (*fds, stray):
            os.close(fd)
    assert _wait(pid) == 0
    said = os.pread(output, 1000, 0).decode()
    assert said.startswith("cba ")
    # 6 is the listing's own.
    assert said.strip().endswith("['0', '1', '2', '3', '4', '5', '6']")


@pytest.mark.parametrize("unshared", [True, False])
def test_a_process_has_a_clean_environment(
    output: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unshared: bool
) -> None:
    """Nothing of our environment, directory, signal masks or session reaches it, and nothing of its reaches us."""
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.chdir(tmp_path)
    if not unshared:
        # As in a container that does not allow it.
        monkeypatch.setattr(process, "_unshare_fs", lambda: False)
    script = (
        "import os, signal; print(sorted(os.environ), os.getcwd(), os.getsid(0) == os.getpid(),"
        " signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    )
    umask = os.umask(0)
    os.umask(umask)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        pid = _spawn(output, sys.executable, "-I", "-S", "-c", script)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    assert _wait(pid) == 0
    assert os.pread(output, 1000, 0).decode().strip() == "['LC_ALL', 'PATH'] / True set()"
    assert Path.cwd() == tmp_path
    assert os.umask(umask) == umask


def test_a_program_that_cannot_be_executed(output: int, tmp_path: Path) -> None:
    """What the kernel refuses to execute is a typed error, and no process."""
    (tmp_path / "program").write_text("no program")
    (tmp_path / "program").chmod(0o755)
    with pytest.raises(HostError, match="Exec format error"):
        _spawn(output, str(tmp_path / "program"))


def test_holders_are_found_by_inode(output: int, tmp_path: Path) -> None:
    """Whoever appends to a file is found, however the file is called now."""
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    pid = _spawn(output, "/bin/sleep", "600", fds=(fd,))
    os.close(fd)
    try:
        path.rename(tmp_path / "renamed")
        # Renumbering happens in the new process before it executes; the launcher is seen as well as the program.
        assert process.holders(str(tmp_path / "renamed")) == (pid,)
        assert process.holders(str(tmp_path / "nothing")) == ()
    finally:
        _end(pid)


def _wait(pid: int) -> int | None:
    fd = os.pidfd_open(pid)
    try:
        end = process.end_of(fd, Deadline.after(30))
        assert end is not None
        return end.status
    finally:
        os.close(fd)


def test_a_reader_is_no_holder(tmp_path: Path) -> None:
    """Somebody who looks at a log of ours must not be ended for it."""
    path = tmp_path / "log"
    path.write_text("")
    with path.open() as reader:
        child = subprocess.Popen(["sleep", "60"], stdin=reader)
        try:
            assert process.holders(str(path)) == ()
        finally:
            child.kill()
            child.wait()
