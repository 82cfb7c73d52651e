"""Two hosts as two network namespaces: Linux goes over with its disk, its memory and its TCP connection."""

from __future__ import annotations

import base64
import ctypes
import os
import pickle
import select
import shutil
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

from hvcore import (
    AutoConverge,
    Deadline,
    InstanceState,
    MigrationPhase,
    MigrationPolicy,
    MultiFd,
    PostCopy,
    Seconds,
    Size,
)
from hvcore.guests import LINUX_COMMAND_LINE, LinuxGuest

pytestmark = [
    pytest.mark.linux,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are made by root"),
]

PATIENCE = 120.0
_CLONE_NEWNET = 0x40000000

_APPLICATION = """
import base64, json, pickle, sys
import hvcore
driver = hvcore.load_driver("kvm", json.loads(sys.argv[1]))
for line in sys.stdin:
    name, args, kwargs = pickle.loads(base64.b64decode(line))
    try:
        answer = ("done", getattr(driver, name)(*args, **kwargs))
    except hvcore.HypervisorError as error:
        answer = (type(error).__name__, str(error))
    print(base64.b64encode(pickle.dumps(answer)).decode(), flush=True)
"""


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
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


class Application:
    """A host application on one of the hosts."""

    def __init__(self, namespace: str, directory: Path, cache: Path) -> None:
        import json

        self.directory = directory
        settings = {
            "state_directory": str(directory / "state"),
            "data_directory": str(directory / "data"),
            "cache_directory": str(cache),
        }
        # What is in this directory each host has for itself: ip gives a namespace of mounts, too.
        local = directory.parent / "local"
        for path in (local, directory / "local"):
            path.mkdir(exist_ok=True)
        mount = [
            "sh",
            "-c",
            'mount --bind "$1" "$2" && shift 2 && exec "$@"',
            "sh",
            str(directory / "local"),
            str(local),
        ]
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *mount, sys.executable, "-c", _APPLICATION, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            kind, answer = self._ask(name, args, kwargs)
            assert kind == "done", f"{name}: {kind}: {answer}"
            return answer

        return call

    def refused(self, name: str, *args: Any) -> str:
        """Why an operation is refused."""
        kind, answer = self._ask(name, args, {})
        assert kind != "done", f"{name}: {answer}"
        return f"{kind}: {answer}"

    def _ask(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(base64.b64encode(pickle.dumps((name, args, kwargs))).decode() + "\n")
        self._process.stdin.flush()
        kind, answer = pickle.loads(base64.b64decode(self._process.stdout.readline()))
        return kind, answer

    def end(self) -> None:
        for row in self.list_instances().instances:
            self.stop_instance(row.name, force=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait(PATIENCE) == 0
        self._process.stdout.close()
        assert [path for path in (self.directory / "state").rglob("*") if path.is_file()] == []


@attrs.define
class Lab:
    """Two hosts and a peer, each a namespace, on one wire."""

    hosts: tuple[str, str]
    peer: str
    net: str

    def address(self, number: int) -> str:
        return f"{self.net}.{number}"


@pytest.fixture
def lab() -> Iterator[Lab]:
    names = [f"hvt{uuid.uuid4().hex[:8]}" for _ in range(3)]
    first, second, peer = names
    made = Lab((first, second), peer, f"198.19.{uuid.uuid4().int % 250 + 1}")
    try:
        for name in names:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "link", "add", "br0", "type", "bridge")
            _run("ip", "-n", name, "link", "set", "br0", "up")
        for number, name in enumerate((first, second), 1):
            _run(
                *("ip", "-n", name, "link", "add", "up0", "type", "veth"),
                *("peer", "name", f"down{number}", "netns", peer),
            )
            _run("ip", "-n", name, "link", "set", "up0", "master", "br0", "up")
            _run("ip", "-n", peer, "link", "set", f"down{number}", "master", "br0", "up")
            _run("ip", "-n", name, "address", "add", f"{made.address(number)}/24", "dev", "br0")
        _run("ip", "-n", peer, "address", "add", f"{made.address(9)}/24", "dev", "br0")
        yield made
    finally:
        left = set(_run("ip", "netns", "list").split())
        for name in names:
            if name in left:
                _run("ip", "netns", "del", name)
    assert not set(names) & set(_run("ip", "netns", "list").split())


class Counting:
    """The peer's end of a TCP connection over which a guest counts."""

    def __init__(self, listener: socket.socket) -> None:
        listener.settimeout(PATIENCE)
        self._socket = listener.accept()[0]
        listener.close()
        self._socket.settimeout(PATIENCE)
        self._rest = b""
        self.last = 0

    def upto(self, number: int) -> None:
        """Read until the guest has counted so far; every number comes, each once and in order."""
        while self.last < number:
            data = self._socket.recv(65536)
            assert data, f"the connection ended after {self.last}"
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                assert int(line) == self.last + 1, f"after {self.last} came {line!r}"
                self.last += 1

    def waiting(self) -> bool:
        return bool(select.select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def applications(lab: Lab, tmp_path: Path, shared_cache: Path) -> Iterator[tuple[Application, Application]]:
    made = []
    for namespace, name in zip(lab.hosts, ("here", "there"), strict=True):
        (tmp_path / name).mkdir()
        made.append(Application(namespace, tmp_path / name, shared_cache))
    yield made[0], made[1]
    for application in made:
        application.end()


def _linux_guest(linux: LinuxGuest, *words: str) -> dict[str, Any]:
    params = {
        "machine": "q35",
        "accel": "tcg",
        "cpu_model": "qemu64",
        "kernel": str(linux.kernel),
        "initrd": str(linux.initrd),
        "cmdline": " ".join((LINUX_COMMAND_LINE, *words)),
    }
    return {"name": "web1", "memory": "160MiB", "params": params}


def _attach(application: Application, serial: Callable[[str], Any]) -> Any:
    return serial(application.get_instance_console("web1").socket_path)


PRE_COPY = MigrationPolicy(tls=False, max_bandwidth=Size(1 << 30))
# What the guest writes again and again takes a quarter of a second to send: it must not have gone over before.
POST_COPY = MigrationPolicy(
    tls=False, max_bandwidth=Size(16 << 20), postcopy=PostCopy(after_passes=1), downtime_limit=Seconds(0.001)
)


POLICIES = {
    "pre-copy": PRE_COPY,
    "post-copy": POST_COPY,
    "not live": attrs.evolve(PRE_COPY, live=False),
    "multifd": attrs.evolve(PRE_COPY, multifd=MultiFd(channels=2)),
    "compressed": attrs.evolve(PRE_COPY, multifd=MultiFd(channels=2, compression="zstd")),
    "auto-converge": attrs.evolve(PRE_COPY, auto_converge=AutoConverge(initial=30)),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_linux_goes_over_with_all_it_has(
    policy: MigrationPolicy,
    lab: Lab,
    applications: tuple[Application, Application],
    linux: LinuxGuest,
    linux_shell: type[Any],
    serial: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    """Memory and disk have the sums they had, the TCP connection lives, and it has never run on both hosts."""
    here, there = applications
    disk = tmp_path / "disk.raw"
    disk.write_bytes(os.urandom(1 << 20))
    definition = {
        **_linux_guest(linux, f"hv.ip={lab.address(3)}/24"),
        "disks": [{"path": str(disk), "format": "raw"}],
        "nics": [{"mode": "bridged", "link": "br0"}],
        # The page faults of the kernel are handled over userfaultfd, which a confined QEMU has not.
        "security_model": None if policy.postcopy is None else "none",
    }
    here.start_instance(definition, paused=True)
    console = _attach(here, serial)
    here.resume_instance("web1")
    shell = linux_shell(console)
    listener = _inside(lab.peer, lambda: socket.create_server((lab.address(9), 0)))
    port = listener.getsockname()[1]
    shell.run(
        "dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null; md5sum /tmp/data | cut -c1-32 > /tmp/sum; "
        "dd if=/tmp/data of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null; md5sum /dev/vda | cut -c1-32 > /tmp/vda; "
        "cp /tmp/data /tmp/copy; (while :; do cat /tmp/data >/tmp/copy; usleep 1000; done) & "
        "{ (n=0; while :; do n=$((n+1)); echo $n; usleep 10000; done) | "
        f"nc {lab.address(9)} {port} >/dev/null 2>&1 & }}"
    )
    counting = Counting(listener)
    counting.upto(20)
    info = here.migration_info("web1")
    target = there.accept_instance(info, lab.address(2), policy)
    here.migrate_instance("web1", target, policy)
    if policy.postcopy is not None:
        _until(here, (MigrationPhase.POSTCOPY,), counting)
        assert there.finalize_migration_dst(info, True).after is InstanceState.RUNNING
    status = _until(here, (MigrationPhase.COMPLETED,), counting)
    assert there.finalize_migration_dst(info, True).after is InstanceState.RUNNING
    assert status.downtime is not None
    here.finalize_migration_source("web1", True)
    there.finalize_migration_dst(info, True)
    console.close()
    counting.upto(counting.last + 100)
    console = _attach(there, serial)
    console.send(b"\n")
    again = object.__new__(linux_shell)
    again.console = console
    console._socket.settimeout(PATIENCE)
    answer = again.run(
        "echo 3 > /proc/sys/vm/drop_caches; "
        "[ $(md5sum /tmp/data | cut -c1-32) = $(cat /tmp/sum) ] && echo memory is whole; "
        "[ $(md5sum /dev/vda | cut -c1-32) = $(cat /tmp/vda) ] && echo disk is whole"
    )
    assert "memory is whole" in answer
    assert "disk is whole" in answer
    assert here.list_instances().instances == ()
    assert there.get_instance_info("web1").state is InstanceState.RUNNING
    counting.upto(counting.last + 20)
    console.close()
    counting.close()


def _until(here: Application, phases: tuple[MigrationPhase, ...], counting: Counting) -> Any:
    """Drive it on, and read what the guest counts meanwhile: nobody else empties its connection."""
    deadline = Deadline.after(PATIENCE)
    while True:
        status = here.continue_migration("web1", wait=0.2)
        if status.phase in phases:
            return status
        assert not status.phase.is_final, f"it is {status.phase}: {status.error}"
        assert not deadline.expired, f"it stays {status.phase}"
        if counting.waiting():
            counting.upto(counting.last + 1)


def _firmware_guest(firmware: Path, disk: Path) -> dict[str, Any]:
    disk.write_bytes(bytes(1 << 20))
    params = {"machine": "pc", "accel": "tcg", "cpu_model": "qemu64", "firmware_image": str(firmware)}
    return {"name": "web1", "memory": "64MiB", "params": params, "disks": [{"path": str(disk), "format": "raw"}]}


def test_the_network_is_cut_while_it_is_sent(
    lab: Lab, applications: tuple[Application, Application], firmware: Path, tmp_path: Path
) -> None:
    """It runs on where it is, can be taken back, and moves once the network is there again."""
    here, there = applications
    here.start_instance(_firmware_guest(firmware, tmp_path / "disk.raw"))
    policy = MigrationPolicy(
        tls=False, max_bandwidth=Size(1 << 20), switchover="paused", converge_within=Seconds(PATIENCE)
    )
    info = here.migration_info("web1")
    here.migrate_instance("web1", there.accept_instance(info, lab.address(2), policy), policy)
    while here.continue_migration("web1", switch_over=False, wait=0.1).phase is MigrationPhase.SETUP:
        continue
    _run("ip", "-n", lab.peer, "link", "set", "down1", "down")
    status = here.cancel_migration("web1")
    assert status.phase is MigrationPhase.CANCELLED
    assert here.get_instance_info("web1").state is InstanceState.RUNNING
    assert here.finalize_migration_source("web1", False).after in (InstanceState.RUNNING, None)
    assert there.finalize_migration_dst(info, False).after is None
    assert there.list_instances().instances == ()
    _run("ip", "-n", lab.peer, "link", "set", "down1", "up")
    policy = MigrationPolicy(tls=False, max_bandwidth=Size(1 << 30))
    here.migrate_instance("web1", there.accept_instance(info, lab.address(2), policy), policy)
    while not (status := here.continue_migration("web1", wait=1.0)).phase.is_final:
        continue
    assert status.phase is MigrationPhase.COMPLETED, status.error
    there.finalize_migration_dst(info, True)
    here.finalize_migration_source("web1", True)
    assert there.get_instance_info("web1").state is InstanceState.RUNNING


@pytest.mark.skipif(shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin") is None, reason="nftables is not installed")
def test_all_of_it_arrives_and_the_source_does_not_hear_of_it(
    lab: Lab, applications: tuple[Application, Application], firmware: Path, tmp_path: Path
) -> None:
    """The source takes it back, and a caller that believes in a success cannot make it run a second time."""
    here, there = applications
    here.start_instance(_firmware_guest(firmware, tmp_path / "disk.raw"))
    policy = MigrationPolicy(tls=False, max_bandwidth=Size(1 << 30), switchover="paused")
    info = here.migration_info("web1")
    here.migrate_instance("web1", there.accept_instance(info, lab.address(2), policy), policy)
    while here.continue_migration("web1", switch_over=False, wait=1.0).phase is not MigrationPhase.PRE_SWITCHOVER:
        continue
    # What acknowledges is let through, or the network would stop carrying what the source sends.
    rule = "table ip cut { chain out { type filter hook output priority 0; ip length > 52 drop; } ; }"
    _run("ip", "netns", "exec", lab.hosts[1], "nft", "add", rule)
    here.continue_migration("web1", wait=0.0)
    deadline = Deadline.after(PATIENCE)
    while there.get_instance_info("web1").state is not InstanceState.PAUSED:
        assert not deadline.expired, "it does not arrive"
    assert here.get_migration_status("web1").phase is not MigrationPhase.COMPLETED
    assert here.cancel_migration("web1").phase is MigrationPhase.CANCELLED
    assert here.get_instance_info("web1").state is InstanceState.RUNNING
    refused = there.refused("finalize_migration_dst", info, True)
    assert "lock" in refused, refused
    assert there.get_instance_info("web1").state is InstanceState.PAUSED
    assert here.get_instance_info("web1").state is InstanceState.RUNNING
    there.finalize_migration_dst(info, False)
    assert there.list_instances().instances == ()


def test_a_host_leads_to_a_guest_once_it_runs_there(
    lab: Lab, applications: tuple[Application, Application], firmware: Path, tmp_path: Path
) -> None:
    """A route to it stands on the host it runs on, and on no other."""
    here, there = applications
    definition = _firmware_guest(firmware, tmp_path / "disk.raw")
    address = "203.0.113.7"
    here.start_instance({**definition, "nics": [{"mode": "routed", "ip": address}]})

    def routes() -> list[bool]:
        return [address in _run("ip", "-n", name, "route", "show") for name in lab.hosts]

    assert routes() == [True, False]
    policy = MigrationPolicy(tls=False, max_bandwidth=Size(1 << 30))
    info = here.migration_info("web1")
    here.migrate_instance("web1", there.accept_instance(info, lab.address(2), policy), policy)
    while not (status := here.continue_migration("web1", wait=1.0)).phase.is_final:
        continue
    assert status.phase is MigrationPhase.COMPLETED, status.error
    assert routes() == [True, False]
    there.finalize_migration_dst(info, True)
    assert routes() == [True, True]
    here.finalize_migration_source("web1", True)
    assert routes() == [False, True]
    there.stop_instance("web1", force=True)
    assert routes() == [False, False]


@pytest.mark.parametrize(("mode", "phases"), [("ext", ("pre", "post")), ("routed", ("-",))])
def test_a_script_leads_to_a_guest_once_it_runs_there(
    lab: Lab,
    applications: tuple[Application, Application],
    firmware: Path,
    tmp_path: Path,
    mode: str,
    phases: tuple[str, ...],
) -> None:
    """It is told of the phases; and that it fails on the way keeps nothing from moving."""
    here, there = applications
    calls, script = tmp_path / "calls", tmp_path / "script"
    told = '"$(ip netns identify) $ACTION ${MIGRATION_PHASE--}"'
    script.write_text(f'#!/bin/sh\necho {told} >>{calls}\n[ -z "$MIGRATION_PHASE" ]\n')
    script.chmod(0o700)
    nic = {"mode": "script", "ip": "203.0.113.7", "params": {"script": str(script), "script_mode": mode}}
    here.start_instance({**_firmware_guest(firmware, tmp_path / "disk.raw"), "nics": [nic]})
    expected = [f"{lab.hosts[0]} up -"]
    policy = MigrationPolicy(tls=False, max_bandwidth=Size(1 << 30))
    info = here.migration_info("web1")
    here.migrate_instance("web1", there.accept_instance(info, lab.address(2), policy), policy)
    while not (status := here.continue_migration("web1", wait=1.0)).phase.is_final:
        continue
    assert status.phase is MigrationPhase.COMPLETED, status.error
    expected += [f"{lab.hosts[1]} up {phase}" for phase in phases[:-1]]
    assert calls.read_text().splitlines() == expected
    there.finalize_migration_dst(info, True)
    expected.append(f"{lab.hosts[1]} up {phases[-1]}")
    assert calls.read_text().splitlines() == expected
    here.finalize_migration_source("web1", True)
    assert there.get_instance_info("web1").state is InstanceState.RUNNING
    there.stop_instance("web1", force=True)
    expected += [f"{host} down -" for host in lab.hosts]
    assert calls.read_text().splitlines() == expected


def test_linux_goes_over_with_disks_that_only_one_host_has(
    lab: Lab,
    applications: tuple[Application, Application],
    linux: LinuxGuest,
    linux_shell: type[Any],
    serial: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    """It writes all the time, and finds on the other host what it has written, up to the last block."""
    here, there = applications
    disks = [tmp_path / "local" / name for name in ("a.raw", "b.qcow2")]
    for disk in disks:
        _run("qemu-img", "create", "-q", "-f", disk.suffix[1:], str(tmp_path / "here/local" / disk.name), "4M")
    definition = {**_linux_guest(linux), "disks": [{"path": str(disk), "format": disk.suffix[1:]} for disk in disks]}
    here.start_instance(definition, paused=True)
    console = _attach(here, serial)
    here.resume_instance("web1")
    shell = linux_shell(console)
    shell.run(
        "for d in vda vdb; do dd if=/dev/urandom of=/tmp/$d bs=64k count=64 2>/dev/null; "
        "dd if=/tmp/$d of=/dev/$d bs=64k conv=fsync 2>/dev/null; done; "
        "{ (n=0; while [ ! -e /tmp/enough ]; do n=$((n+1)); for d in vda vdb; do "
        "dd if=/dev/urandom of=/tmp/block bs=64k count=1 2>/dev/null; for to in /tmp/$d /dev/$d; do "
        "dd if=/tmp/block of=$to bs=64k seek=$((n*7%64)) conv=notrunc,fsync 2>/dev/null; done; done; "
        "echo $n > /tmp/count; done; echo done > /tmp/ended) & }"
    )
    shell.wait("[ $(cat /tmp/count) -gt 3 ]")
    policy = MigrationPolicy(tls=False, max_bandwidth=Size(64 << 20), copy_disks=("all",))
    info = here.migration_info("web1")
    target = there.accept_instance(info, lab.address(2), policy)
    assert here.migrate_instance("web1", target, policy).phase is MigrationPhase.DISKS
    while (status := here.continue_migration("web1", wait=1.0)).phase is not MigrationPhase.COMPLETED:
        assert not status.phase.is_final, status
    assert there.finalize_migration_dst(info, True).after is InstanceState.RUNNING
    here.finalize_migration_source("web1", True)
    console.close()
    console = _attach(there, serial)
    console.send(b"\n")
    again = object.__new__(linux_shell)
    again.console = console
    console._socket.settimeout(PATIENCE)
    before = int(again.run("cat /tmp/count").split()[-1])
    again.wait(f"[ $(cat /tmp/count) -gt {before} ]")
    again.run("touch /tmp/enough")
    again.wait("[ -e /tmp/ended ]")
    answer = again.run(
        "sync; echo 3 > /proc/sys/vm/drop_caches; for d in vda vdb; do cmp /tmp/$d /dev/$d && echo $d is whole; done"
    )
    assert "vda is whole" in answer
    assert "vdb is whole" in answer
    console.close()
    there.stop_instance("web1", force=True)
    _run("qemu-img", "check", "-q", str(tmp_path / "there/local/b.qcow2"))


@pytest.mark.parametrize("finish", ["cancel", "finalize"])
def test_the_network_breaks_while_disks_are_copied(
    lab: Lab, applications: tuple[Application, Application], firmware: Path, tmp_path: Path, finish: str
) -> None:
    """Nobody waits for what never comes: the guest runs on, and both sides are as before."""
    here, there = applications
    disk = tmp_path / "local/a.raw"
    (tmp_path / "here/local/a.raw").write_bytes(b"x" * (64 << 20))
    params = {"machine": "pc", "accel": "tcg", "cpu_model": "qemu64", "firmware_image": str(firmware)}
    disks = [{"path": str(disk), "format": "raw"}]
    here.start_instance({"name": "web1", "memory": "64MiB", "params": params, "disks": disks})
    policy = MigrationPolicy(tls=False, max_bandwidth=Size(1 << 20), copy_disks=("all",))
    info = here.migration_info("web1")
    here.migrate_instance("web1", there.accept_instance(info, lab.address(2), policy), policy)
    while not here.continue_migration("web1", wait=0.1).transferred:
        pass
    _run("ip", "-n", lab.hosts[0], "link", "set", "up0", "down")
    # What is on its way when it breaks never comes back.
    status = here.continue_migration("web1", wait=2.0)
    assert status.phase is MigrationPhase.DISKS
    assert here.get_instance_info("web1").state is InstanceState.RUNNING
    if finish == "cancel":
        assert here.cancel_migration("web1").phase is MigrationPhase.CANCELLED
    assert here.finalize_migration_source("web1", False).changed is (finish == "finalize")
    assert here.get_instance_info("web1").state is InstanceState.RUNNING
    assert here.pause_instance("web1").changed
    assert there.finalize_migration_dst(info, False).changed
    assert os.listdir(tmp_path / "there/local") == []
