"""The vocabulary of the effect tables: what to start, what to ask the running QEMU, and what must come out."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from hvcore import Deadline
from hvcore_kvm.qmp import QmpClient, QmpRefused

PATIENCE = 30.0
"""Seconds after which something that should happen is taken not to happen."""


@attrs.frozen
class File:
    """A file on the host, made before the start; in a definition it stands for its path."""

    name: str
    content: bytes = b""
    size: int = 1 << 20
    mode: int = 0o600
    make: Callable[[Path], None] | None = None


@attrs.frozen
class Folder:
    """A directory on the host, made before the start; in a definition it stands for its path."""

    name: str


Question = Callable[["Probe"], Any]


@attrs.frozen(kw_only=True)
class Effect:
    """What starting an instance in a certain way must bring about.

    Attributes:
        given: the definition, as an instance file holds it; the machine is pc and TCG unless it says otherwise.
        shows: by parameter, as ``hv params`` names it: a question and the only right answer.
        base: the definition without the parameters; every question must find another answer there.
        needs: what this machine must have, besides QEMU.
    """

    given: Mapping[str, Any]
    shows: Mapping[str, tuple[Question, Any]]
    base: Mapping[str, Any] = attrs.field(factory=dict)
    needs: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """A name for the test."""
        names = [name.replace("disks[].params.", "disk.").replace("nics[].params.", "nic.") for name in self.shows]
        return ",".join(name.removeprefix("params.").replace("[]", "") for name in names)


def proves(*parameters: str) -> Callable[[Any], Any]:
    """Say of a test which parameters it proves; for those that do not fit into a table."""

    def mark(test: Any) -> Any:
        test.proves = (*getattr(test, "proves", ()), *parameters)
        return test

    return mark


def _makes_bridges() -> bool:
    name = f"hvp{os.getpid()}"
    program = shutil.which("ip", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None or not os.path.exists("/dev/net/tun"):
        return False
    made = subprocess.run([program, "link", "add", "name", name, "type", "bridge"], capture_output=True, check=False)
    return made.returncode == 0 and subprocess.run([program, "link", "delete", name], check=False).returncode == 0


def _no_module(name: str) -> str | None:
    """Why a part of QEMU that Debian packs as a module cannot be used."""
    return None if any(Path("/usr/lib").glob(f"*/qemu/{name}.so")) else f"QEMU's module {name} is not installed"


_MISSING = {
    "root": None if os.geteuid() == 0 else "not run by root",
    **{
        name: None if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/libexec:/usr/lib/qemu") else why
        for name, why in {
            "swtpm": "swtpm is not installed",
            "virtiofsd": "virtiofsd is not installed",
            "qemu-system-aarch64": "qemu-system-aarch64 is not installed",
        }.items()
    },
    "numa": None if os.path.isdir("/sys/devices/system/node/node0") else "the host's kernel knows no NUMA",
    "bridge": None if os.geteuid() == 0 and _makes_bridges() else "this user cannot make a bridge",
    "hwrng": None if os.access("/dev/hwrng", os.R_OK) else "the host has no /dev/hwrng",
    "ovmf": None if os.path.isdir("/usr/share/OVMF") else "ovmf is not installed",
    "block-curl": _no_module("block-curl"),
    "alsa": _no_module("audio-alsa"),
    "virtio-gpu": _no_module("hw-display-virtio-vga"),
    "qxl": _no_module("hw-display-qxl"),
    "io_uring": None if Path("/proc/sys/kernel/io_uring_disabled").exists() else "the kernel may not know io_uring",
}
"""By need: why it is not met here."""
if _MISSING["io_uring"] is not None and os.uname().release >= "5.1":
    _MISSING["io_uring"] = None


_MARKS = {
    "kvm": pytest.mark.kvm,
    "qemu-9": pytest.mark.qemu_versions(9, 999),
    "qemu-10": pytest.mark.qemu_versions(10, 999),
}


def needs(*names: str) -> list[pytest.MarkDecorator]:
    """The marks of a test with needs: what is missing is known before it begins."""
    marks = [_MARKS[name] for name in names if name in _MARKS]
    missing = [str(_MISSING[name]) for name in names if name not in _MARKS and _MISSING[name] is not None]
    return [*marks, *([pytest.mark.skip(reason="; ".join(missing))] if missing else [])]


def rows(effects: Iterable[Effect]) -> list[Any]:
    """The parameters of a parametrised test."""
    return [pytest.param(effect, id=effect.title, marks=needs(*effect.needs)) for effect in effects]


def disk(index: int = 0, **params: Any) -> dict[str, Any]:
    """A raw disk of a definition; its id in QEMU begins with ``disk-dN``."""
    uuid = f"d{index:07x}-0000-4000-8000-000000000000"
    return {"path": File(f"disk{index}.raw"), "format": "raw", "uuid": uuid, "params": params}


def nic(index: int = 0, **params: Any) -> dict[str, Any]:
    """A NIC of a definition; its id in QEMU begins with ``nic-eN``."""
    return {"mode": "user", "uuid": f"e{index:07x}-0000-4000-8000-000000000000", "params": params}


_SHORT = re.compile(r"(disk|nic)([0-9])\Z")


class Probe:
    """Asks one running QEMU, over its monitor for questions and through the kernel.

    Args:
        client: a connection to the monitor.
        pid: the process.
        directory: the instance's directory.
    """

    def __init__(self, client: QmpClient, pid: int, directory: Path) -> None:
        self.client = client
        self.pid = pid
        self.directory = directory

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Carry out a command; underscores in the names of arguments stand for hyphens."""
        given = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self.client.execute(command, given, deadline=Deadline.after(PATIENCE))

    def event(self, name: str) -> dict[str, Any]:
        """Wait for an event and return its data."""
        found = self.client.wait_event(lambda message: message["event"] == name, Deadline.after(PATIENCE))
        return found.get("data", {})

    def path(self, device: str) -> str:
        """The QOM path of a device: ``disk0`` and ``nic0`` by their uuid, others by their id."""
        if device.startswith("/"):
            return device
        short = _SHORT.match(device)
        if short:
            begin = f"{short[1]}-{'d' if short[1] == 'disk' else 'e'}{int(short[2]):07x}-"
            device = next(name for name in self.children("/machine/peripheral") if name.startswith(begin))
        return f"/machine/peripheral/{device}"

    def get(self, device: str, name: str) -> Any:
        """A property of a device."""
        return self.qmp("qom-get", path=self.path(device), property=name)

    def bus(self, device: str) -> str:
        """The name of the bus a device sits on, its controller's path left out."""
        return str(self.get(device, "parent_bus")).rpartition("/")[2]

    def children(self, path: str) -> dict[str, str]:
        """The children of an object: type by name."""
        found = self.qmp("qom-list", path=path)
        return {row["name"]: row["type"][6:-1] for row in found if row["type"].startswith("child<")}

    def unattached(self, kind: str) -> str:
        """The QOM path of the device of a type that the machine itself has, on its own or as a part of another."""
        found = self.children("/machine/unattached")
        for name, of_type in found.items():
            if of_type == kind:
                return f"/machine/unattached/{name}"
        for name in found:
            if name.startswith("device["):
                for part, of_type in self.children(f"/machine/unattached/{name}").items():
                    if of_type == kind:
                        return f"/machine/unattached/{name}/{part}"
        return "/no-such-device"

    def monitor(self, line: str) -> str:
        """Carry out a command of the human monitor, where QMP has none."""
        return str(self.qmp("human-monitor-command", command_line=line))

    def memory(self, address: int, size: int) -> bytes:
        """What is in the guest's physical memory."""
        path = self.directory / "memory-for-test"
        self.qmp("pmemsave", val=address, size=size, filename=str(path))
        try:
            return path.read_bytes()
        finally:
            path.unlink()

    def node(self, name: str) -> dict[str, Any]:
        """A block node; ``disk0`` by its uuid."""
        if _SHORT.match(name):
            name = self.path(name).rpartition("/")[2]
        return next(row for row in self.qmp("query-named-block-nodes") if row["node-name"] == name)

    def drive(self, device: str) -> dict[str, Any]:
        """What QEMU says of the drive of a device."""
        ident = self.path(device).rpartition("/")[2]
        return next(
            row
            for row in self.qmp("query-block")
            if row.get("qdev", "").split("/")[-2:-1] == [ident] or row.get("qdev") == ident
        )

    def content(self, name: str) -> bytes:
        """All of a block node's content, as the guest would read it: QEMU copies it into a file."""
        found = self.node(name)
        path = self.directory / "content-for-test"
        path.write_bytes(bytes(found["image"]["virtual-size"]))
        self.qmp("blockdev-add", driver="file", node_name="content", filename=str(path))
        self.qmp("blockdev-backup", job_id="content", device=found["node-name"], target="content", sync="full")
        try:
            failed = self.event("BLOCK_JOB_COMPLETED").get("error")
            assert failed is None, failed
            self.qmp("blockdev-del", node_name="content")
            return path.read_bytes()
        finally:
            path.unlink()

    def proc(self, name: str) -> str:
        """A file of the process in ``/proc``."""
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def status(self, name: str) -> str:
        """A line of the process's status."""
        return next(line.split(":", 1)[1].strip() for line in self.proc("status").splitlines() if line.startswith(name))

    def descriptors(self, text: str) -> int:
        """How many open files of the process have a text in their name."""
        found = 0
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it was closed while we looked
                found += text in str(entry.readlink())
        return found

    def mapping(self, text: str, size: int | None = None) -> dict[str, str]:
        """What the kernel says of the first piece of the process's memory with a text in its name, or of a size."""
        for block in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", self.proc("smaps")):
            head, _, rest = block.partition("\n")
            if text not in head or (size is not None and f"Size:{size >> 10:>19} kB" not in rest):
                continue
            pairs = (line.partition(":") for line in rest.splitlines())
            return {"head": head, **{key: value.strip() for key, _, value in pairs}}
        return {"head": "", "VmFlags": ""}

    def threads(self) -> list[int]:
        """The threads of the process."""
        return [int(entry.name) for entry in Path(f"/proc/{self.pid}/task").iterdir()]

    def affinity(self, thread: int) -> str:
        """The host CPUs that a thread may run on, as the kernel writes them."""
        lines = Path(f"/proc/{self.pid}/task/{thread}/status").read_text().splitlines()
        return next(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list"))


def of(device: str, name: str) -> Question:
    """The question for a property of a device."""
    return lambda probe: probe.get(device, name)


def type_of(device: str) -> Question:
    """The question for the type of a device."""
    return lambda probe: probe.get(device, "type")


def answer(question: Question, probe: Probe) -> Any:
    """What comes out; what QEMU refuses to say is an answer as well, to questions where something is not there."""
    try:
        return question(probe)
    except QmpRefused as error:
        return error
    except (KeyError, StopIteration) as error:
        return error
