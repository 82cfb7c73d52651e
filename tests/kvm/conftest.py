"""A host for real QEMU: private directories, a tracked driver, and the proof that nothing is left."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest

import hvcore
from hvcore.conformance import ConformanceFailure, Subject, load_profile
from hvcore.conformance.contract import requirements
from hvcore.conformance.subject import loader_of
from hvcore.conformance.verdict import VERDICT_SCHEMA
from hvcore.guests import (
    FIRMWARE_READY_MARKER,
    LINUX_COMMAND_LINE,
    LINUX_PROMPT,
    LINUX_READY_MARKER,
    LinuxGuest,
    build_linux_guest,
    write_firmware,
)
from hvcore_kvm import process

sys.path.insert(0, str(Path(__file__).parent))

from qemu_img import qemu_img

PATIENCE = 30.0
"""Seconds after which something that should happen is taken not to happen."""

LINUX_PATIENCE = 120.0
"""The same for a Linux guest, whose processor may be emulated."""


class Serial:
    """The other end of an instance's serial console."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        directory = os.open(os.path.dirname(path), os.O_PATH)
        try:
            self._socket.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        finally:
            os.close(directory)
        self._socket.settimeout(PATIENCE)
        self.seen = b""

    def expect(self, wanted: bytes) -> bytes:
        """Read until something has come; returns everything up to it and forgets that."""
        while wanted not in self.seen:
            try:
                data = self._socket.recv(4096)
            except TimeoutError:
                pytest.fail(f"{wanted!r} did not come; what came: {self.seen[-2000:]!r}")
            if not data:
                raise AssertionError(f"the console closed before {wanted!r}; it said {self.seen!r}")
            self.seen += data
        before, _, self.seen = self.seen.partition(wanted)
        return before

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def close(self) -> None:
        self._socket.close()


@attrs.define
class Host:
    """One host under test."""

    directory: Path
    firmware: Path
    settings: dict[str, Any]
    driver: hvcore.Driver
    consoles: list[Serial] = attrs.field(factory=list)

    def instance(self, name: str = "web1", *, accel: str = "tcg", **changes: Any) -> hvcore.Instance:
        """A firmware guest that answers within milliseconds."""
        params = {"machine": "pc", "accel": accel, "firmware_image": str(self.firmware), **changes.pop("params", {})}
        if accel == "kvm":
            # A software KVM does not know the MSR that CPU model host asks for.
            params.setdefault("cpu_features", {"arch-capabilities": False})
        return hvcore.Instance(name=name, memory=changes.pop("memory", "64MiB"), params=params, **changes)

    def start(self, instance: hvcore.Instance) -> Serial:
        """Start it paused, attach, let it run, and wait until the guest is ready."""
        self.driver.start_instance(instance, paused=True)
        console = self.attach(instance.name)
        self.driver.resume_instance(instance.name)
        console.expect(FIRMWARE_READY_MARKER)
        return console

    def attach(self, name: str) -> Serial:
        path = self.driver.get_instance_console(name).socket_path
        assert path is not None
        console = Serial(path)
        self.consoles.append(console)
        return console

    def pid(self, name: str = "web1") -> int:
        found = next(row.pid for row in self.driver.list_instances().instances if row.name == name)
        assert found is not None
        return found

    def open_files(self, name: str = "web1") -> list[str]:
        """What the descriptors of an instance's QEMU lead to, but for those it closes while they are looked at."""
        found = []
        for descriptor in Path(f"/proc/{self.pid(name)}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(str(descriptor.readlink()))
        return found

    def wait_end(self, name: str = "web1") -> None:
        """Wait until the process of an instance has ended."""
        rows = {row.name: row for row in self.driver.list_instances().instances}
        if name not in rows or rows[name].pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(rows[name].pid)
            try:
                assert select.select([fd], [], [], PATIENCE)[0], f"{name} does not end"
            finally:
                os.close(fd)

    def raw_disk(self, name: str = "disk.raw", size: int = 1 << 20) -> hvcore.Disk:
        path = self.directory / name
        with path.open("wb") as file:
            file.truncate(size)
        return hvcore.Disk(path=str(path), format="raw")

    def qcow2_disk(self, name: str = "disk.qcow2", *options: str) -> hvcore.Disk:
        path = self.directory / name
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), "8M"], check=True)
        return hvcore.Disk(path=str(path), format="qcow2")

    def luks_image(self, name: str, secret: str, size: int = 1 << 20) -> Path:
        """An encrypted image that holds so many bytes."""
        path = self.directory / name
        key = ("--object", f"secret,id=s,data={secret},format=raw", "-o", "key-secret=s,iter-time=10")
        qemu_img("create", "-q", "-f", "luks", *key, str(path), str(size))
        return path

    def files(self) -> set[str]:
        """Everything in the state and data directories but the directories that are always there."""
        roots = [self.directory / "state", self.directory / "data"]
        found = {str(path.relative_to(self.directory)) for root in roots for path in root.rglob("*")}
        return found - {f"{root}/kvm{rest}" for root in ("state", "data") for rest in ("", "/instances", "/locks")}


def _children() -> set[int]:
    """Processes whose parent is this one."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    found.add(int(entry))
    return found


@pytest.fixture(scope="session")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_firmware(tmp_path_factory.mktemp("firmware") / "guest.rom")


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def newer_qemu(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A newer QEMU than the installed one, from the distribution's backports; fetched once and kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hvcore"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "newer-qemu.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [str(Path(__file__).parents[2] / "tools/newer-qemu"), str(cache / "newer-qemu")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    if done.returncode:
        pytest.skip(f"a newer QEMU cannot be fetched: {done.stderr.strip()}")
    return done.stdout.strip()


HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Huge pages for two small guests; as many as before at the end. One test at a time: they belong to the host."""
    with open(Path(tempfile.gettempdir()) / "hvcore-tests-huge-pages.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = int(HUGE_PAGES.read_text())
        HUGE_PAGES.write_text(str(before + 64))
        try:
            if int(HUGE_PAGES.read_text()) < before + 64:
                pytest.skip("the host has no memory in one piece for huge pages")
            yield
        finally:
            HUGE_PAGES.write_text(str(before))


@pytest.fixture
def make_host(tmp_path: Path, firmware: Path, shared_cache: Path) -> Iterator[Callable[..., Host]]:
    """Makes hosts; stops everything they started and proves that nothing is left."""
    hosts: list[Host] = []
    descriptors = len(os.listdir("/proc/self/fd"))
    children = _children()

    def make(*, extensions: tuple[object, ...] = (), directory: Path = tmp_path, **settings: Any) -> Host:
        given = {
            "state_directory": str(directory / "state"),
            "data_directory": str(directory / "data"),
            "cache_directory": str(shared_cache),
            **settings,
        }
        host = Host(directory, firmware, given, hvcore.load_driver("kvm", given, extensions=extensions))
        hosts.append(host)
        return host

    yield make
    for host in hosts:
        for console in host.consoles:
            console.close()
        state = host.directory / "state"
        if not state.is_dir() and not host.settings["state_directory"].startswith(str(state)):
            host.driver.close()
            continue  # a test of an unusable state directory: nothing can have been started
        for row in host.driver.list_instances().instances:
            if row.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(row.pid, signal.SIGCONT)
            host.driver.stop_instance(row.name, force=True)
        assert host.driver.list_instances().instances == ()
        host.driver.close()
        assert {path for path in host.files() if path.startswith("state")} == set()
    assert _children() <= children
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.fixture
def host(make_host: Callable[..., Host]) -> Host:
    return make_host()


_KILLED = """
import json, os, signal, sys
import hvcore
from hvcore_kvm.qmp import client
settings, words, cut = json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
driver = hvcore.load_driver("kvm", settings)
seen = 0

def count():
    global seen
    seen += 1
    if seen == cut:
        os.kill(os.getpid(), signal.SIGKILL)

EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.posix_spawn", "subprocess.Popen",
          "socket.bind", "socket.connect", "signal.pidfd_send_signal")

def watch(event, args):
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in EVENTS:
        count()

send = client.QmpClient._send
def sending(self, data, *args):
    # How often it looks at a job differs from run to run.
    looks = b"query-jobs" in data
    looks or count()
    send(self, data, *args)
    looks or count()
client.QmpClient._send = sending
write = hvcore.Journal._write
def writing(self, entry):
    write(self, entry)
    count()
hvcore.Journal._write = writing
BEFORE
sys.addaudithook(watch)
OPERATION
print(seen)
"""


@pytest.fixture
def cut_short(host: Any) -> Callable[..., int | None]:
    """Carries out an operation in a host application of its own that is killed at the n-th thing it does.

    That is a file opened for writing, renamed, linked or removed, a directory made or removed, a process started, a
    signal sent, a line of a journal, and a message to QEMU, before and after it. The operation is a piece of a program
    that has the ``driver`` and the ``words`` it is given; what comes ``before`` it does not count. Returns how many
    things there were, if it was not killed.
    """

    def run(operation: str, *words: Any, cut: int, before: str = "") -> int | None:
        program = _KILLED.replace("BEFORE", before).replace("OPERATION", operation)
        command = [sys.executable, "-c", program, json.dumps(host.settings), json.dumps(words), str(cut)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode == -signal.SIGKILL:
            return None
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    return run


class Shell:
    """The root shell of a Linux guest, on its serial console."""

    def __init__(self, console: Any) -> None:
        console._socket.settimeout(LINUX_PATIENCE)
        self.console = console
        console.expect(LINUX_READY_MARKER)
        console.expect(LINUX_PROMPT)

    def run(self, command: str) -> str:
        """What a command prints; the terminal's echo of the command itself has the sums not yet done."""
        self.console.send(f"echo BEGIN$((6*7)); {command}; echo END$((6*7))\n".encode())
        self.console.expect(b"BEGIN42")
        return self.console.expect(b"END42").decode(errors="replace").replace("\r\n", "\n").strip("\n")

    def wait(self, condition: str) -> None:
        """Return when a condition holds in the guest; it looks every tenth of a second, and gives up after a minute."""
        loop = f"n=0; until {condition} || [ $n -gt 600 ]; do n=$((n+1)); usleep 100000; done; {condition} && echo yes"
        assert "yes" in self.run(loop), f"the guest does not see: {condition}"


@pytest.fixture(scope="session")
def linux() -> LinuxGuest:
    """The Linux guest, built once and kept between sessions."""
    cache = os.environ.get("HVCORE_TEST_CACHE") or str(Path.home() / ".cache" / "hvcore" / "guests")
    return build_linux_guest(Path(cache) / "linux")


@pytest.fixture
def serial() -> type[Serial]:
    """The other end of a serial console, by the path of its socket."""
    return Serial


@pytest.fixture
def linux_shell() -> type[Shell]:
    """The shell of a Linux guest that has been started, by its console."""
    return Shell


@pytest.fixture
def boot(host: Any, linux: LinuxGuest) -> Callable[..., Shell]:
    """Boots Linux and gives its shell."""

    def start(machine: str, **changes: Any) -> Shell:
        params = {
            "machine": machine,
            "accel": "tcg",
            "kernel": str(linux.kernel),
            "initrd": str(linux.initrd),
            "cmdline": LINUX_COMMAND_LINE,
            **changes.pop("params", {}),
        }
        memory = changes.pop("memory", "192MiB")
        definition = hvcore.Instance(name="web1", memory=memory, params=params, **changes)
        host.driver.start_instance(definition, paused=True)
        console = host.attach("web1")
        host.driver.resume_instance("web1")
        return Shell(console)

    return start


@pytest.fixture
def identity_is_dead() -> Callable[[int], bool]:
    def dead(pid: int) -> bool:
        try:
            return not process.is_alive(process.identify(pid))
        except ProcessLookupError:
            return True

    return dead


@attrs.frozen
class Conformance:
    """Tests family plugins: their checks in this process, or by the command; in directories of its own."""

    directory: Path
    cache: Path

    def passes(self, kind: str, name: str, /, **options: str) -> None:
        """The plugin keeps every sentence that binds it; skips where the host lacks something for it."""
        suite = load_profile("kvm").families[kind]
        profile = suite.profile(name, {"cuts": "3", **options})
        subject = Subject(loader_of(hvcore.load_driver, "kvm"), profile, str(self.directory), str(self.cache))
        failures = []
        try:
            assert profile.probe is not None
            lacking = profile.probe(subject.driver)
            for check in suite.checks if not lacking else ():
                try:
                    check.run(subject)
                except ConformanceFailure as failure:
                    failures.append(f"{check.name}: {failure}")
        finally:
            subject.close()
        if lacking:
            pytest.skip(f"{name} is not tested: {lacking}")
        assert failures == []
        wanted = {requirement.id for requirement in requirements() if requirement.binds(suite.record)}
        assert {check.requirement for check in suite.checks} == wanted

    def run(self, kind: str, name: str, *options: str) -> tuple[dict[str, Any], str]:
        """The verdict of ``hv conformance kvm``, and what was said."""
        report = self.directory / "report"
        given = [word for option in options for word in ("--option", option)]
        command = [sys.executable, "-m", "hvcore.cli", "conformance", "kvm", f"--{kind}", name, *given]
        temporary = self.directory / "temporary"
        temporary.mkdir(mode=0o711)
        done = subprocess.run(
            [*command, "--report", str(report)],
            capture_output=True,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary)},
            timeout=280,
            check=False,
        )
        assert (report / "verdict.json").exists(), done.stdout + done.stderr
        verdict: dict[str, Any] = json.loads((report / "verdict.json").read_text())
        jsonschema.validate(verdict, VERDICT_SCHEMA)
        assert done.returncode == (0 if verdict["verdict"] == "conformant" else 1)
        assert list(temporary.iterdir()) == []
        return verdict, done.stdout


@pytest.fixture
def conformance(shared_cache: Path) -> Iterator[Conformance]:
    # Not below tmp_path: other users have to get to the guest's firmware.
    with tempfile.TemporaryDirectory(prefix="hvt-") as directory:
        os.chmod(directory, 0o711)
        yield Conformance(Path(directory), shared_cache)
