"""The guest's processor, feature by feature: it must be the same on both hosts, whatever their models are called."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import attrs

from hvcore import Deadline, DeadlineExceeded, Finding, HypervisorRefused, OperationFailed
from hvcore_kvm import process
from hvcore_kvm.accelerator import Accelerator
from hvcore_kvm.cpu_model import cpu_value
from hvcore_kvm.hotplug.processors import PREFIX as VCPU
from hvcore_kvm.launch_plan import Decisions
from hvcore_kvm.migration.monitor import Monitor
from hvcore_kvm.qmp import QmpClient, QmpError, QmpRefused

_LIMITED = ("/usr/bin/timeout", "--kill-after=1", "30")
"""Ends a program that is being asked, should the host application be killed meanwhile."""
_NOT_PROPERTIES = ("enforce",)

_KERNEL = "/sys/module"
_MODULES = ("kvm", "kvm_intel", "kvm_amd")
_MICROCODE = "/sys/devices/system/cpu/cpu0/microcode/version"


@attrs.frozen(kw_only=True)
class Processor:
    """What a guest can see of its processor.

    Attributes:
        vendor: its maker, as the guest reads it; empty if QEMU does not say.
        features: the features it has, in QEMU's names.
    """

    vendor: str = ""
    features: tuple[str, ...] = ()


def expand(client: QmpClient, decisions: Decisions, deadline: Deadline) -> Processor | None:
    """Ask a QEMU what its processor is; ``None`` if it cannot say, as on other architectures than x86.

    Raises:
        QmpError: it does not answer.
    """
    if decisions.capabilities.arch != "x86_64":
        return None
    name, given = cpu_value(decisions)
    wanted = {key: value for key, value in given.items() if key not in _NOT_PROPERTIES}
    try:
        answer = client.execute(
            "query-cpu-model-expansion", {"type": "static", "model": {"name": name, "props": wanted}}, deadline=deadline
        )
        values: Mapping[str, Any] = answer["model"]["props"]
        return Processor(
            vendor=str(values.get("vendor", "")),
            features=tuple(sorted(key for key, value in values.items() if value is True)),
        )
    except QmpRefused:
        return None
    except (KeyError, TypeError, AttributeError):
        return None


def probe_processor(decisions: Decisions, deadline: Deadline) -> Processor | None:
    """Ask a QEMU of the same program, machine type and accelerator that runs nothing.

    What it answers follows from its program and from what KVM offers; it is asked once in the life of this process, and
    again when one of those has changed.

    Raises:
        DeadlineExceeded: it did not answer in time.
    """
    name, given = cpu_value(decisions)
    accelerator = decisions.choice.accelerator
    facts = (
        _identity(decisions.capabilities.path),
        _host_facts() if accelerator is Accelerator.KVM else (),
        accelerator.value,
        decisions.machine,
        name,
        json.dumps(given, sort_keys=True),
    )
    known = _KNOWN.get(facts)
    if known is not None:
        return known
    found = _probe(decisions, deadline)
    if found is not None:
        if len(_KNOWN) >= _KEPT:
            _KNOWN.clear()
        _KNOWN[facts] = found
    return found


_KNOWN: dict[tuple[Hashable, ...], Processor] = {}
_KEPT = 64


def _identity(path: str) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _host_facts() -> tuple[tuple[str, str], ...]:
    """What decides which features KVM gives, besides the kernel that runs: its modules, their parameters, microcode."""
    paths = [_MICROCODE]
    for module in _MODULES:
        paths.append(f"{_KERNEL}/{module}/srcversion")
        with contextlib.suppress(OSError):
            paths += (entry.path for entry in os.scandir(f"{_KERNEL}/{module}/parameters"))
    found = []
    for path in sorted(paths):
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            found.append((path, file.read(4096)))
    return tuple(found)


def _probe(decisions: Decisions, deadline: Deadline) -> Processor | None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs, tempfile.TemporaryFile() as output:
        argv = [
            decisions.capabilities.path,
            *("-machine", f"{decisions.machine},accel={decisions.choice.accelerator.value}"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-S", "-m", "32"),
            *("-chardev", f"socket,id=probe,fd={process.FIRST_FD}", "-mon", "chardev=probe,mode=control"),
        ]
        pidfd = os.pidfd_open(process.spawn(argv, [theirs.fileno()], output.fileno(), _LIMITED))
        try:
            theirs.close()
            client = QmpClient(ours)
            client.negotiate(deadline)
            return expand(client, decisions, deadline)
        except QmpError as error:
            output.seek(0)
            words = output.read(4096).decode(errors="replace").strip()
            raise DeadlineExceeded(
                f"QEMU was not asked what processor it has: {words or error}", hint="give it a longer timeout"
            ) from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                # By SIGTERM, which timeout(1) passes on: killed, it would leave QEMU behind.
                process.end(pidfd, Deadline.after(5))
            os.close(pidfd)


def compare(source: Processor | None, here: Processor | None) -> Iterator[Finding]:
    """Find what the guest would miss here."""
    if source is None or here is None:
        return
    if source.vendor and here.vendor and source.vendor != here.vendor:
        message = f"the guest's processor says {source.vendor[:40]!r}, and this host would say {here.vendor!r}"
        yield Finding(code="cpu-differs", path="record.vendor", message=message, hint=_HINT)
    missing = [name for name in source.features if name not in here.features]
    if missing:
        shown = ", ".join(name[:40] for name in missing[:12]) + (", ..." if len(missing) > 12 else "")
        message = f"the guest's processor has features that this host cannot give it: {shown}"
        yield Finding(code="cpu-differs", path="record.features", message=message, hint=_HINT)


def plugged_processors(monitor: Monitor) -> tuple[tuple[int, Mapping[str, Any]], ...]:
    """Number and place of each virtual CPU that a QEMU was not started with."""
    found = []
    for slot in _slots(monitor):
        ident = str(slot.get("qom-path", "")).rpartition("/")[2]
        number = ident.removeprefix(VCPU)
        if ident.startswith(VCPU) and number.isdecimal():
            found.append((int(number), dict(slot["props"])))
    return tuple(sorted(found, key=lambda row: row[0]))


def plug_processors(monitor: Monitor, wanted: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
    """Add virtual CPUs as the other side has them.

    Raises:
        OperationFailed: there is no such place here.
        HypervisorRefused: QEMU's own words.
    """
    for number, props in wanted:
        free = [slot for slot in _slots(monitor) if "qom-path" not in slot and slot.get("props") == dict(props)]
        if not free:
            raise OperationFailed(f"QEMU has no place for virtual CPU {number}", hint="its topology may differ here")
        monitor.execute("device_add", {"driver": free[0]["type"], "id": f"{VCPU}{number}", **free[0]["props"]})


def _slots(monitor: Monitor) -> list[Mapping[str, Any]]:
    try:
        return list(monitor.execute("query-hotpluggable-cpus"))
    except HypervisorRefused:
        return []  # a machine without


_HINT = "start it with a cpu_model that both hosts have, such as x86-64-v2"
