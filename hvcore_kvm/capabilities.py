"""What a QEMU program can do: asked over QMP once per program and kept in a cache, never read from help text."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from hvcore import (
    Deadline,
    DeadlineExceeded,
    Finding,
    FindingSet,
    HostError,
    InvalidParameters,
    RecordError,
    private_directory,
    read_record,
    write_record,
)
from hvcore_kvm import process
from hvcore_kvm.qmp import QmpClient, QmpError, QmpRefused

MINIMUM_VERSION = (7, 2, 0)
"""Oldest QEMU the driver works with."""

_SCHEMA = 3
_PROBE_TIMEOUT = 20.0
_LIMITED = ("/usr/bin/timeout", "--kill-after=1", f"{_PROBE_TIMEOUT + 10:g}")
"""Ends a program that is being asked, should the host application be killed meanwhile: it would stay for ever."""
_SEARCHED = "/usr/local/bin:/usr/bin:/bin:/usr/libexec"


@attrs.frozen(kw_only=True)
class MachineType:
    """One machine type: its versioned name, its alias, and what QEMU says of it."""

    name: str
    alias: str = ""
    is_default: bool = False
    deprecated: bool = False
    cpu_max: int = 1


@attrs.frozen(kw_only=True)
class QemuCapabilities:
    """What one QEMU program can do.

    Attributes:
        path: the program.
        version: major, minor and micro version.
        package: the distribution's own version.
        machines: machine types, by name.
        arch: architecture of its guests, in QEMU's words: ``x86_64`` or ``aarch64``.
        cpu_models: names of CPU models.
        deprecated_cpu_models: those of them that QEMU advises against.
        cpu_features: names of CPU features that can be switched.
        devices: names of device types.
        objects: names of object types, such as ``memory-backend-memfd``.
        accelerators: what can run a guest's code: ``kvm``, ``tcg``.
        block_drivers: block drivers that can be used, those of modules that are installed included.
        character_devices: kinds of character devices.
        displays: kinds of displays.
        network_backends: kinds of network backends.
        audio_drivers: where sound can go, modules that are installed included; empty if the program does not say.
        migration_capabilities: names of migration capabilities.
        options: names of values each option takes, for options that QEMU lists.
        kvm_built_in: it was built with KVM.
    """

    path: str
    version: tuple[int, int, int]
    package: str
    machines: tuple[MachineType, ...]
    arch: str
    cpu_models: tuple[str, ...]
    deprecated_cpu_models: tuple[str, ...]
    cpu_features: tuple[str, ...]
    devices: tuple[str, ...]
    objects: tuple[str, ...]
    accelerators: tuple[str, ...]
    block_drivers: tuple[str, ...]
    character_devices: tuple[str, ...]
    displays: tuple[str, ...]
    network_backends: tuple[str, ...]
    audio_drivers: tuple[str, ...]
    migration_capabilities: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    kvm_built_in: bool

    @property
    def version_text(self) -> str:
        """The version as QEMU writes it."""
        return ".".join(map(str, self.version))

    def machine(self, name: str) -> MachineType | None:
        """The machine type of a name or alias."""
        return next((m for m in self.machines if name in (m.name, m.alias)), None)


@attrs.frozen(kw_only=True)
class _Cached:
    identity: str
    capabilities: QemuCapabilities


def find_qemu(program: str) -> str:
    """The absolute path of a QEMU program.

    Raises:
        InvalidParameters: it is not there or cannot be executed; says what to install.
    """
    if os.path.isabs(program):
        found: str | None = program
    else:
        found = None if "/" in program else shutil.which(program, path=_SEARCHED)
    if found is None or not os.path.isfile(found):
        raise _unusable(
            "qemu-missing", f"there is no QEMU program {program}", "install it: apt-get install qemu-system-x86"
        )
    if not os.access(found, os.X_OK):
        raise _unusable("qemu-not-executable", f"{found} cannot be executed by this user", "look at its mode and owner")
    return found


def capabilities_of(program: str, cache_directory: str, deadline: Deadline) -> QemuCapabilities:
    """What a QEMU program can do, from the cache if it has not changed since it was asked.

    Args:
        program: path or name of the program.
        cache_directory: where answers are kept; an unusable one only costs time.
        deadline: by when the program must have answered.

    Raises:
        InvalidParameters: it is missing, cannot be executed, does not answer, or is too old.
        DeadlineExceeded: there was no time to ask it.
    """
    path = find_qemu(program)
    identity = _identity(path)
    known = _KNOWN.get(path)
    if known is None or known.identity != identity:
        known = _KNOWN[path] = _cached_or_probed(path, identity, cache_directory, deadline)
    return known.capabilities


_KNOWN: dict[str, _Cached] = {}
"""Answers of this process's lifetime, by path: facts about files, valid for as long as those are unchanged."""


def _cached_or_probed(path: str, identity: str, cache_directory: str, deadline: Deadline) -> _Cached:
    with contextlib.ExitStack() as stack:
        cache = _open_cache(cache_directory, stack)
        name = f"qemu-{hashlib.sha256(path.encode()).hexdigest()[:16]}.json"
        cached = _read_cache(cache, name)
        if cached is not None and cached.identity == identity:
            return cached
        found = _Cached(identity=identity, capabilities=_probe(path, deadline))
        if cache is not None:
            with contextlib.suppress(RecordError):
                write_record(cache, name, found, schema=_SCHEMA, shared=True)
        return found


def _identity(path: str) -> str:
    found = os.stat(path)
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}{_modules(path)}"


def _modules(path: str) -> str:
    """When modules were last installed or removed: packages of their own bring them, and leave the program as it is."""
    prefix = os.path.dirname(os.path.dirname(path))
    changed = ""
    for directory in (f"lib/{os.uname().machine}-linux-gnu/qemu", "lib/qemu", "lib64/qemu"):
        with contextlib.suppress(OSError):
            changed += f":{os.stat(f'{prefix}/{directory}').st_mtime_ns}"
    return changed


def _open_cache(directory: str, stack: contextlib.ExitStack) -> int | None:
    try:
        fd = os.open(private_directory(directory), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (HostError, OSError):
        return None
    stack.callback(os.close, fd)
    return fd


def _read_cache(cache: int | None, name: str) -> _Cached | None:
    if cache is None:
        return None
    try:
        return read_record(cache, name, _Cached, schema=_SCHEMA)
    except Exception:
        return None


def _probe(path: str, deadline: Deadline) -> QemuCapabilities:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    patience, deadline = deadline, deadline.sooner(_PROBE_TIMEOUT)
    with ours, theirs, tempfile.TemporaryFile() as output:
        argv = [
            path,
            *("-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S"),
            *("-chardev", f"socket,id=probe,fd={process.FIRST_FD}", "-mon", "chardev=probe,mode=control"),
        ]
        pid = process.spawn(argv, [theirs.fileno()], output.fileno(), _LIMITED)
        pidfd = os.pidfd_open(pid)
        try:
            theirs.close()
            client = QmpClient(ours)
            try:
                client.negotiate(deadline)
                if client.version < MINIMUM_VERSION:
                    raise _too_old(path, client.version)
                return _ask(path, client, deadline)
            except QmpError as error:
                process.end(pidfd, Deadline.after(5))
                if patience.expired:
                    message = f"{path} was not asked in time what it can do"
                    hint = "give it a longer timeout, or look at the load of the host"
                    raise DeadlineExceeded(message, hint=hint) from error
                output.seek(0)
                words = output.read(4096).decode(errors="replace").strip()
                raise _unusable(
                    "qemu-not-answering",
                    f"{path} did not answer as a QEMU should: {words or error}",
                    "try it by hand: " + " ".join([path, "-machine none -display none -monitor stdio"]),
                ) from error
        finally:
            process.end(pidfd, Deadline.after(5))
            os.close(pidfd)


def _ask(path: str, client: QmpClient, deadline: Deadline) -> QemuCapabilities:
    def ask(command: str, **arguments: Any) -> Any:
        return client.execute(command, arguments, deadline=deadline)

    machines = ask("query-machines")
    models = ask("query-cpu-definitions")
    kvm = ask("query-kvm")
    arch = str(ask("query-target")["arch"])
    enums = [set(entry["values"]) for entry in ask("query-qmp-schema") if entry["meta-type"] == "enum"]
    return QemuCapabilities(
        path=path,
        version=client.version,
        package=client.package,
        machines=tuple(
            MachineType(
                name=m["name"],
                alias=m.get("alias", ""),
                is_default=m.get("is-default", False),
                deprecated=m.get("deprecated", False),
                cpu_max=m["cpu-max"],
            )
            for m in sorted(machines, key=lambda m: str(m["name"]))
        ),
        arch=arch,
        cpu_models=tuple(sorted(model["name"] for model in models)),
        deprecated_cpu_models=tuple(sorted(model["name"] for model in models if model.get("deprecated"))),
        cpu_features=_cpu_features(client, arch, deadline),
        devices=_types(client, "device", deadline),
        objects=_types(client, "user-creatable", deadline),
        accelerators=tuple(
            sorted(name.removesuffix("-accel") for name in _types(client, "accel", deadline) if name.endswith("-accel"))
        ),
        block_drivers=_block_drivers(client, _enum(enums, "qcow2", "raw", "file"), deadline),
        character_devices=_enum(enums, "pty", "socket", "null"),
        displays=_displays(client, enums, deadline),
        network_backends=_enum(enums, "user", "socket", "hubport"),
        audio_drivers=_audio_drivers(path),
        migration_capabilities=_enum(enums, "xbzrle", "auto-converge"),
        options={
            option["option"]: tuple(sorted(value["name"] for value in option["parameters"]))
            for option in ask("query-command-line-options")
        },
        kvm_built_in=bool(kvm["present"]),
    )


def _audio_drivers(path: str) -> tuple[str, ...]:
    """Where sound can go. No command of the monitor says which modules are there; this list loads them."""
    with tempfile.TemporaryFile() as output:
        pidfd = os.pidfd_open(
            process.spawn([path, "-machine", "none", "-audiodev", "help"], [], output.fileno(), _LIMITED)
        )
        try:
            process.wait_dead(pidfd, Deadline.after(_AUDIO_TIMEOUT))
        finally:
            process.end(pidfd, Deadline.after(5))
            os.close(pidfd)
        output.seek(0)
        lines = output.read(65536).decode(errors="replace").splitlines()
    listed = lines[lines.index(_AUDIO_DRIVERS) + 1 :] if _AUDIO_DRIVERS in lines else []
    return tuple(sorted(line for line in listed if re.fullmatch(r"[a-z]+", line)))


_AUDIO_TIMEOUT = 5.0
_AUDIO_DRIVERS = "Available audio drivers:"


def _displays(client: QmpClient, enums: Iterable[set[str]], deadline: Deadline) -> tuple[str, ...]:
    known = _enum(enums, "none", "default", "egl-headless") or _enum(enums, "none", "default")
    # A module in a package of its own, and listed all the same.
    if "dbus" in known and not _types(client, "dbus-display", deadline):
        return tuple(name for name in known if name != "dbus")
    return known


def _types(client: QmpClient, implements: str, deadline: Deadline) -> tuple[str, ...]:
    found = client.execute("qom-list-types", {"implements": implements, "abstract": False}, deadline=deadline)
    return tuple(sorted(kind["name"] for kind in found))


def _enum(enums: Iterable[set[str]], *members: str) -> tuple[str, ...]:
    """The enumeration with these members: QEMU's schema hides the names of types."""
    return tuple(sorted(next((enum for enum in enums if enum.issuperset(members)), ())))


def _cpu_features(client: QmpClient, arch: str, deadline: Deadline) -> tuple[str, ...]:
    kind = f"max-{_CPU_TYPES.get(arch, arch)}-cpu"
    try:
        properties = client.execute("device-list-properties", {"typename": kind}, deadline=deadline)
    except QmpRefused:
        return ()
    return tuple(sorted(p["name"] for p in properties if p["type"] == "bool"))


def _block_drivers(client: QmpClient, known: Iterable[str], deadline: Deadline) -> tuple[str, ...]:
    """The block drivers that are there. Some are modules in packages of their own, and are listed all the same."""
    found = []
    for name in known:
        if name in _MODULES:
            try:
                client.execute(
                    "blockdev-add", {"driver": name, "node-name": "probe", **_MODULES[name]}, deadline=deadline
                )
            except QmpRefused as error:
                if "Unknown driver" in error.text:
                    continue
        found.append(name)
    return tuple(found)


_CPU_TYPES = {"aarch64": "arm", "x86_64": "x86_64"}

# Each names something that cannot be, so that the driver refuses it without a connection; a missing module is told by
# the words of the refusal.
_CURL = {"url": "nothing://"}
_MODULES: Mapping[str, Mapping[str, Any]] = {
    "rbd": {"pool": "probe", "image": "probe", "conf": "/nonexistent/ceph.conf"},
    "http": _CURL,
    "https": _CURL,
    "ftp": _CURL,
    "ftps": _CURL,
    "gluster": {"volume": "v", "path": "p", "server": [{"type": "unix", "path": "/nonexistent/socket"}]},
    "iscsi": {"transport": "tcp", "portal": "", "target": "", "lun": 0},
    "nfs": {"server": {"type": "inet", "host": ""}, "path": ""},
    "ssh": {"server": {"host": "", "port": "0"}, "path": ""},
}


def _too_old(path: str, version: Iterable[int]) -> InvalidParameters:
    found, wanted = (".".join(map(str, v)) for v in (version, MINIMUM_VERSION))
    return _unusable("qemu-too-old", f"{path} is QEMU {found}; {wanted} or newer is needed", "install a newer QEMU")


def _unusable(code: str, message: str, hint: str) -> InvalidParameters:
    finding = Finding(code=code, path="params.qemu", message=message, hint=hint)
    return InvalidParameters("QEMU cannot be used", FindingSet([finding]))


def qemu_words(output: str) -> str:
    """What QEMU said, from what it printed: its last lines, warnings left out where there is anything else."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = [re.sub(r"^\S*qemu-system-\S+: ", "", line) for line in lines]
    grave = [line for line in said if not line.startswith("warning: ")]
    # The refusal does not say which; the warnings before it do.
    features = [line.removeprefix("warning: ") for line in said if "requested feature: " in line]
    if any("requested features" in line for line in grave):
        return "; ".join([*grave[-3:], *features[:_FEATURES]])
    return "; ".join((grave or said)[-3:])


_FEATURES = 8


def as_json(capabilities: QemuCapabilities) -> dict[str, Any]:
    """The capabilities as plain data."""
    plain: dict[str, Any] = json.loads(json.dumps(attrs.asdict(capabilities)))
    return plain
