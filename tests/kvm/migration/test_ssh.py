"""``hv migrate --to ssh://``: two network namespaces, and the distribution's sshd between them."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from hvcore import InstanceState

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are made by root"),
    pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh is not installed"),
]

PATIENCE = 60.0
SLOW = 'tls = false\nmax_bandwidth = "8MiB"\ndowntime_limit = "1ms"\nconverge_within = "100000s"\n'
_CLONE_NEWNET = 0x40000000

# What sshd compares with, root's shell, and the directory it wants are the test's own: nothing of this machine changes.
_SERVER = """
set -e
root=$1 sshd=$2
mkdir -p "$root/run"
mount --rbind /run "$root/run"
mount -t tmpfs -o mode=755 run /run
mkdir /run/sshd
for name in hvcore netns; do
    if [ -e "$root/run/$name" ]; then mkdir "/run/$name"; mount --rbind "$root/run/$name" "/run/$name"; fi
done
mount --bind "$root/passwd" /etc/passwd
mount --bind "$root/shadow" /etc/shadow
exec "$sshd" -i -e -f "$root/sshd_config"
"""


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    return done.stdout


def _inside(namespace: str, action: Callable[[], Any]) -> Any:
    """Do something in a network namespace, in a thread that is used for nothing else."""
    outcome: list[Any] = []

    def work() -> None:
        fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            assert ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET) == 0
        finally:
            os.close(fd)
        outcome.append(action())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return outcome[0]


def _ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], PATIENCE)[0])


class Server:
    """sshd for each connection to a port that the kernel has chosen, in a network namespace."""

    def __init__(self, namespace: str, address: str, root: Path, sshd: str) -> None:
        self.root = root
        self.connections: list[subprocess.Popen[bytes]] = []
        self._words = ["ip", "netns", "exec", namespace, "sh", "-c", _SERVER, "sh", str(root), sshd]
        self._listener = _inside(namespace, lambda: socket.create_server((address, 0)))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return  # shut down
            with connection, (self.root / "log").open("ab") as log:
                self.connections.append(subprocess.Popen(self._words, stdin=connection, stdout=connection, stderr=log))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        late = []
        for process in self.connections:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                late.append(process.pid)
                process.kill()
                process.wait()
        assert late == [], (self.root / "log").read_text()


@attrs.define
class Way:
    """How an instance gets from the first host to the second.

    Attributes:
        namespaces: the network of each host.
        address: of the second one.
        server: its sshd.
        directory: with what ssh is told, in files.
    """

    namespaces: tuple[str, str]
    address: str
    server: Server
    directory: Path

    def command(self, *arguments: str) -> list[str]:
        """``hv migrate web1``, on the first host."""
        config, identity = str(self.directory / "ssh_config"), str(self.directory / "user")
        return [
            *("ip", "netns", "exec", self.namespaces[0], sys.executable, "-m", "hvcore.cli", "migrate", "web1"),
            *("--to", f"ssh://root@{self.address}:{self.server.port}"),
            *("--ssh-config", config, "--identity", identity),
            *("--remote-hv", str(self.directory / "hv there"), *arguments),
        ]

    def environment(self) -> dict[str, str]:
        """Where ``hv`` keeps the state of the first host, and a home without a key or a known host."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HV_", "SSH_"))}
        path = f"{self.directory / 'bin'}:{kept['PATH']}"
        return {**kept, **_directories(self.directory / "here"), "HOME": str(self.directory / "home"), "PATH": path}

    def process_of(self, name: str) -> int:
        """A pidfd of what has written its number down under a name, and still runs."""
        return os.pidfd_open(int((self.directory / name).read_text()))


def _directories(host: Path) -> dict[str, str]:
    return {f"HV_{kind.upper()}_DIRECTORY": str(host / kind) for kind in ("state", "data", "cache")}


def _script(path: Path, *lines: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)


@pytest.fixture(scope="session")
def sshd() -> str:
    """The OpenSSH server of this machine or its distribution; fetched once and kept, not installed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hvcore"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "ssh-server.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [str(Path(__file__).parents[3] / "tools/ssh-server"), str(cache / "ssh-server")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    if done.returncode:
        pytest.skip(f"there is no sshd: {done.stderr.strip()}")
    return done.stdout.strip()


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str, str]]:
    """Two network namespaces on one wire, and the address of the second."""
    here, there = (f"hvt{uuid.uuid4().hex[:8]}" for _ in range(2))
    net = f"198.19.{uuid.uuid4().int % 250 + 1}"
    try:
        for name in (here, there):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", here, "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", there)
        for number, name in enumerate((here, there), 1):
            _run("ip", "-n", name, "address", "add", f"{net}.{number}/24", "dev", "up0")
            _run("ip", "-n", name, "link", "set", "up0", "up")
        yield here, there, f"{net}.2"
    finally:
        left = set(_run("ip", "netns", "list").split())
        for name in {here, there} & left:
            _run("ip", "netns", "del", name)
    assert not {here, there} & set(_run("ip", "netns", "list").split())


@pytest.fixture
def way(pair: Any, namespaces: tuple[str, str, str], sshd: str, tmp_path: Path) -> Iterator[Way]:
    """A guest on the first host, and sshd on the second."""
    here, there, address = namespaces
    root = tmp_path / "sshd"
    (tmp_path / "home").mkdir()
    root.mkdir()
    for key in ("host", "other", "user"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", str(tmp_path / key))
    # Others than root, and the user that sshd itself wants, keep their numbers.
    others = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith(("root:", "sshd:"))]
    users = [f"root:x:0:0::{tmp_path / 'home'}:/bin/sh", "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin", *others]
    (root / "passwd").write_text("\n".join((*users, "")))
    (root / "shadow").write_text("root:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\n")
    (root / "sshd_config").write_text(
        f"HostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\nStrictModes no\nPidFile none\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitUserRC no\nUsePAM no\nUseDNS no\n"
    )
    server = Server(there, address, root, sshd)
    for known in ("host", "other"):
        key = (tmp_path / f"{known}.pub").read_text()
        (tmp_path / f"known_{known}").write_text(f"[{address}]:{server.port} {key}")
    (tmp_path / "ssh_config").write_text(
        f"UserKnownHostsFile {tmp_path}/known_host\nGlobalKnownHostsFile none\nStrictHostKeyChecking yes\n"
        "IdentitiesOnly yes\nIdentityAgent none\nBatchMode yes\n"
    )
    own = [f"{name}={value}" for name, value in _directories(tmp_path / "there").items()]
    hv = shlex.join(("env", *own, sys.executable, "-m", "hvcore.cli"))
    _script(tmp_path / "hv there", f"echo $$ >{tmp_path}/peer", f'exec {hv} "$@"')
    _script(tmp_path / "bin" / "ssh", f"echo $$ >{tmp_path}/ssh", f'exec {shutil.which("ssh")} "$@"')
    try:
        _inside(here, pair.start)
        yield Way((here, there), address, server, tmp_path)
    finally:
        server.close()
    assert list((tmp_path / "home").iterdir()) == []


def _migrate(way: Way, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = way.command(*arguments)
    given = {"env": way.environment(), "stdin": subprocess.DEVNULL, "timeout": 120}
    return subprocess.run(command, capture_output=True, text=True, check=False, **given)  # type: ignore[call-overload,no-any-return]


def test_it_moves_to_where_ssh_leads(pair: Any, way: Way) -> None:
    """The address for its memory is that of the host at the other end of the connection; its guest runs on there."""
    done = _migrate(way, "--no-tls")
    assert done.returncode == 0, f"{done.stderr}\n{(way.server.root / 'log').read_text()}"
    assert f"web1: moved to {way.address}; took " in done.stdout
    pair.keep("destination")
    assert pair.running() == ["destination"]
    assert pair.source.driver.list_instances().instances == ()
    assert len(way.server.connections) == 1


def test_another_host_key_moves_nothing(pair: Any, way: Way) -> None:
    """Whoever answers in the place of that host does not even hear of the instance."""
    before = pair.source.pid()
    known = f"UserKnownHostsFile={way.directory / 'known_other'}"
    done = _migrate(way, "--no-tls", "--ssh-option", known)
    assert done.returncode == 1, done.stdout
    assert "Host key verification failed." in done.stderr
    assert f"ssh to {way.address} failed" in done.stderr
    assert "--ssh-config" in done.stderr
    assert not (way.directory / "peer").exists()
    assert (pair.source.pid(), pair.running()) == (before, ["source"])
    assert pair.destination.driver.list_instances().instances == ()


def test_the_connection_is_cut_while_it_is_sent(pair: Any, way: Way) -> None:
    """The guest runs on where it was, the other host lets go of it, and the same once more moves it."""
    before = pair.source.pid()
    (console,) = pair.source.consoles
    console.send(b"d")
    console.expect(b"ok")
    (way.directory / "slow.toml").write_text(SLOW)
    command = way.command("--policy", str(way.directory / "slow.toml"))
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=way.environment()
            )
        )
        stack.callback(process.kill)
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if line.startswith("web1: active"):
                break
        else:
            pytest.fail(said)
        ssh, peer = way.process_of("ssh"), way.process_of("peer")
        for fd in (ssh, peer):
            stack.callback(os.close, fd)
        pair.keep("destination")
        signal.pidfd_send_signal(ssh, signal.SIGKILL)
        said += process.stderr.read()
        assert process.wait(PATIENCE) == 1, said
        assert "the destination can no longer be asked, so it was cancelled" in said
        assert pair.running() == ["source"]
        assert _ended(peer)
    assert pair.source.pid() == before
    # What the other end of the connection had no time for, for it only waits so long.
    pair.destination.wait_end()
    pair.destination.driver.recover()
    assert pair.destination.driver.list_instances().instances == ()
    pair.forget("destination")
    done = _migrate(way, "--no-tls", "--offline")
    assert done.returncode == 0, done.stderr
    pair.keep("destination")
    assert pair.running() == ["destination"]
    assert pair.destination.driver.get_instance_info("web1").state is InstanceState.RUNNING
