"""The conformance profile of driver kvm: real QEMU processes that run the firmware guest, looked at from outside.

Option ``accel``: ``tcg``, which is the default and runs everywhere, or ``kvm``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from hvcore import ConformanceProfile, Deadline, Driver, EarlyMigration, Instance, LiveParameter, PasswordConsole, Size
from hvcore_kvm.conformance import devices
from hvcore_kvm.conformance.console_client import SerialClient
from hvcore_kvm.conformance.encrypted_disk import encrypted_disk
from hvcore_kvm.conformance.nbd_client import intruder
from hvcore_kvm.conformance.nbd_server import failing_server
from hvcore_kvm.directory import EVENTS
from hvcore_kvm.runtime import PROCESS

_PATIENCE = 30.0
_LOOK_AGAIN = 0.01
_OPTIONS = {"accel": ("tcg", "kvm")}


def profile(options: Mapping[str, str]) -> ConformanceProfile:
    """The profile.

    Raises:
        ValueError: an option is not known.
    """
    for key, value in options.items():
        if value not in _OPTIONS.get(key, ()):
            raise ValueError(f"{key}={value} is no option; there is accel=tcg and accel=kvm")
    from hvcore_kvm.conformance.checks import CHECKS  # not before the first profile is asked for
    from hvcore_kvm.conformance.member import suites

    return attrs.evolve(_of_driver(options.get("accel", "tcg")), families=suites(_checked, CHECKS))


def _checked(accel: str) -> ConformanceProfile:
    if accel not in _OPTIONS["accel"]:
        raise ValueError(f"accel={accel} is no option; there is accel=tcg and accel=kvm")
    return _of_driver(accel)


def _of_driver(accel: str) -> ConformanceProfile:
    return ConformanceProfile(
        driver="kvm",
        missing="" if shutil.which("qemu-system-x86_64") else "qemu-system-x86_64 is not installed",
        definition=lambda name, directory: _definition(name, directory, accel),
        unstartable=lambda name, directory: _unstartable(name, directory, accel),
        lives=lambda driver, name: bool(_processes(driver, name)),
        resources=lambda driver: frozenset(f"process {pid}" for pid in _processes(driver)),
        wait_ready=_wait_ready,
        guest_powers_off=lambda driver, name: _tell_to_end(driver, name, b"q"),
        guest_panics=lambda driver, name: _tell_to_end(driver, name, b"p"),
        kill=_kill,
        hang=_hang,
        answer_again=lambda driver, name: _signal(driver, name, signal.SIGCONT),
        deafen=_deafen,
        damage_records=_damage_records,
        times_asked=_times_asked,
        argv=_argv,
        # The firmware has no hotplug and no balloon of its own.
        unwilling=lambda name, directory: _definition(name, directory, accel),
        lets_go=_lets_go,
        holds=lambda driver, name, path: devices.holds(_processes(driver, name), path),
        unreadable=devices.unreadable,
        live=LiveParameter(
            name="balloon_stats_interval",
            value=7,
            read=lambda driver, name: devices.polling_interval(_directory(driver, name)),
        ),
        attach=lambda driver, name: SerialClient(_directory(driver, name)),
        password=lambda name, directory: _password(name, directory, accel),
        identity=lambda driver, name: devices.shown_identity(_directory(driver, name)),
        impostor=_impostor,
        host_restarts=_host_restarts,
        guest_writes=lambda driver, name, uuid, offset, count, value: devices.write_disk(
            _directory(driver, name), uuid, offset, count, value
        ),
        failing_target=lambda _driver, _directory, size: failing_server(size),
        migration={"tls": False},
        intruder=intruder,
        encrypted=encrypted_disk if _may_encrypt() else None,
        postcopy=EarlyMigration(
            definition=lambda name, directory: attrs.evolve(_definition(name, directory, accel), security_model="none"),
            policy={"tls": False, "max_bandwidth": "16MiB", "postcopy": {"after_passes": 1}},
            make_busy=_make_busy,
        ),
        absent={
            "restarts": "a driver that failed this would restart the host",
            **({} if _may_fetch() else {"postcopy": "this host lets nobody but root fetch memory (userfaultfd)"}),
        },
    )


def _definition(name: str, directory: str, accel: str) -> Instance:
    from hvcore.guests import write_firmware  # a host that runs no tests needs no guest

    path = os.path.join(directory, "firmware.rom")
    if not os.path.exists(path):
        write_firmware(path)
    return _instance(name, path, accel)


def _unstartable(name: str, directory: str, accel: str) -> Instance:
    path = os.path.join(directory, "damaged.rom")
    with open(path, "wb") as file:
        file.write(b"x" * 1000)
    return _instance(name, path, accel)


def _password(name: str, directory: str, accel: str) -> PasswordConsole:
    path, secret = os.path.join(directory, "password"), "Hvc0nf!0"
    with open(path, "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(f"{secret}\n")
    plain = _definition(name, directory, accel)
    vnc = {"bind_address": "127.0.0.1", "port": _free_port(), "password_file": path}
    instance = attrs.evolve(plain, consoles=("serial", "vnc"), params={**plain.params, "vnc": vnc})
    return PasswordConsole(instance=instance, kind="vnc", secret=secret)


def _free_port() -> int:
    """A port that nobody has, of those that the kernel does not hand out by itself in the next moment."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        first = int(file.read().split()[0])
    ports = range(max(first - 4096, 5900), first) or range(61000, 65536)
    while True:
        port = secrets.choice(ports)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _instance(name: str, firmware: str, accel: str) -> Instance:
    params: dict[str, Any] = {"machine": "pc", "accel": accel, "firmware_image": firmware}
    if accel == "kvm":
        # A software KVM does not know the MSR that CPU model host asks for.
        params["cpu_features"] = {"arch-capabilities": False}
    return Instance(name=name, memory=Size(32 << 20), params=params)


def _directory(driver: Driver, name: str = "") -> str:
    return os.path.join(driver.directories.state, "instances", name)


def _processes(driver: Driver, name: str = "") -> tuple[int, ...]:
    """Processes that hold something of an instance, or of any, other than this one; a zombie holds nothing."""
    place = os.path.join(os.path.realpath(_directory(driver, name)), "")
    return tuple(pid for entry in os.listdir("/proc") if entry.isdigit() and _holds(pid := int(entry), place))


def _holds(pid: int, place: str) -> bool:
    if pid == os.getpid():
        return False
    # Processes end, and descriptors are closed, while they are looked at.
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{fd}").startswith(place):
                    return True
    return False


@contextlib.contextmanager
def _pidfd(driver: Driver, name: str) -> Iterator[int]:
    pids = _processes(driver, name)
    if len(pids) != 1:
        raise RuntimeError(f"{name} has {len(pids)} processes, not one")
    fd = os.pidfd_open(pids[0])
    try:
        yield fd
    finally:
        os.close(fd)


def _signal(driver: Driver, name: str, number: int) -> None:
    with _pidfd(driver, name) as fd:
        signal.pidfd_send_signal(fd, number)


def _hang(driver: Driver, name: str) -> None:
    (pid,) = _processes(driver, name)
    _signal(driver, name, signal.SIGSTOP)
    # It stops when it comes to its turn, which may take a moment on a host that is busy.
    deadline = Deadline.after(_PATIENCE)
    while not _is_stopped(pid):
        if deadline.expired:
            raise RuntimeError(f"the process of {name} does not stop")
        select.select([], [], [], _LOOK_AGAIN)


def _is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] == b"T"


def _kill(driver: Driver, name: str) -> None:
    with _pidfd(driver, name) as fd:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        _wait_end(fd, name)


def _wait_end(pidfd: int, name: str) -> None:
    if not select.select([pidfd], [], [], _PATIENCE)[0]:
        raise RuntimeError(f"the process of {name} does not end")


@contextlib.contextmanager
def _console(driver: Driver, name: str) -> Iterator[socket.socket]:
    folder = os.open(_directory(driver, name), os.O_PATH)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.connect(f"/proc/self/fd/{folder}/serial")
        yield client
    finally:
        client.close()
        os.close(folder)


def _tell(client: socket.socket, command: bytes, answer: bytes) -> None:
    """Send a command until the guest answers: one that is still booting hears nothing."""
    deadline = Deadline.after(_PATIENCE)
    said = b""
    while answer not in said:
        if deadline.expired:
            raise RuntimeError(f"the guest does not answer; it said {said!r}")
        client.sendall(command)
        if select.select([client], [], [], 0.05)[0]:
            said += client.recv(4096)


def _wait_ready(driver: Driver, name: str) -> None:
    with _console(driver, name) as client:
        _tell(client, b"e", b"ok")


def _deafen(driver: Driver, name: str) -> None:
    with _console(driver, name) as client:
        # It obeys in order. An "ok" alone may be a late answer to one of the questions of `_wait_ready`.
        _tell(client, b"nc", b"count=")


def _make_busy(driver: Driver, name: str) -> None:
    with _console(driver, name) as client:
        # It obeys in order.
        _tell(client, b"dc", b"count=")


def _may_fetch() -> bool:
    """This user may handle the page faults of the kernel, as post-copy needs it."""
    try:
        with open("/proc/sys/vm/unprivileged_userfaultfd", encoding="ascii") as file:
            return os.geteuid() == 0 or file.read().strip() != "0"
    except OSError:
        return True  # Linux before 5.2, which asks nobody


def _may_encrypt() -> bool:
    """There is what makes encrypted disks here, and what makes certificates to move them with."""
    return shutil.which("qemu-img") is not None and importlib.util.find_spec("cryptography") is not None


def _tell_to_end(driver: Driver, name: str, command: bytes) -> None:
    with _pidfd(driver, name) as fd, _console(driver, name) as client:
        client.sendall(command)
        _wait_end(fd, name)


def _lets_go(driver: Driver, name: str) -> None:
    """A reset completes what the guest was asked for, and QEMU writes that it has."""
    with _console(driver, name) as client:
        client.sendall(b"r")
        deadline = Deadline.after(_PATIENCE)
        while not _count(driver, name, "DEVICE_DELETED"):
            if deadline.expired:
                raise RuntimeError(f"the guest of {name} does not let go of anything")
            select.select([], [], [], _LOOK_AGAIN)


@contextlib.contextmanager
def _impostor(driver: Driver, name: str) -> Iterator[Callable[[], bool]]:
    """In the records, the process id is that of another process now; its start time is not."""
    _kill(driver, name)
    idle = [sys.executable, "-Ic", "import sys; sys.stdin.read()"]
    with subprocess.Popen(idle, stdin=subprocess.PIPE) as other:
        try:
            path = os.path.join(_directory(driver, name), PROCESS)
            with open(path, encoding="utf-8") as file:
                record = json.load(file)
            record["identity"]["pid"] = other.pid
            with open(path, "w", encoding="utf-8") as file:
                json.dump(record, file)
            yield lambda: other.poll() is None
        finally:
            other.kill()


def _host_restarts(driver: Driver, name: str) -> None:
    """The process is gone, and so is everything below the state directory, which does not outlive a boot."""
    _kill(driver, name)
    shutil.rmtree(driver.directories.state)


def _damage_records(driver: Driver, name: str) -> None:
    directory = _directory(driver, name)
    for entry in os.listdir(directory):
        if entry.endswith(".json"):
            with open(os.path.join(directory, entry), "wb") as file:
                file.write(b"\0 no record")


def _times_asked(driver: Driver, name: str) -> int:
    """How many power-down events QEMU has written: one for each request, before it answers."""
    return _count(driver, name, "POWERDOWN")


def _count(driver: Driver, name: str, event: str) -> int:
    with open(os.path.join(_directory(driver, name), EVENTS), encoding="utf-8") as file:
        return sum(_event(line) == event for line in file)


def _event(line: str) -> str:
    try:
        return str(json.loads(line).get("event"))
    except (ValueError, AttributeError):
        return ""


def _argv(driver: Driver, name: str) -> tuple[str, ...]:
    (pid,) = _processes(driver, name)
    with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="surrogateescape") as file:
        return tuple(file.read().rstrip("\0").split("\0"))
