"""Whether this host can run instances well, and whether a running instance is what its record says."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from hvcore import Deadline, Directories, Finding, HostError, Instance, InvalidParameters, Severity, private_directory
from hvcore_kvm.capabilities import capabilities_of
from hvcore_kvm.directory import QUERY, InstanceDirectory
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.kvm_device import KvmLevel, probe_kvm
from hvcore_kvm.observation import Observed, observe
from hvcore_kvm.placement import family_of
from hvcore_kvm.qmp import Question, ask_many
from hvcore_kvm.settings import KvmSettings


def verify_host(settings: KvmSettings, directories: Directories, deadline: Deadline) -> Iterable[Finding]:
    """Find everything on this host that keeps the driver from working, or that it works worse without."""
    for path in (directories.state, directories.data):
        try:
            private_directory(path)
        except HostError as error:
            yield Finding(code=error.code, path=path, message=error.message, hint=error.hint)
    try:
        capabilities = capabilities_of(settings.qemu, directories.cache, deadline)
    except InvalidParameters as error:
        yield from error.findings
        return
    if not any(family_of(machine.name) for machine in capabilities.machines):
        message = f"{capabilities.path} has neither pc nor q35 machines"
        yield Finding(code="no-machine", path="qemu", message=message, hint="install qemu-system-x86")
    verdict = probe_kvm()
    if verdict.level is not KvmLevel.FULL:
        yield Finding(
            code="no-kvm" if verdict.level is KvmLevel.NONE else "limited-kvm",
            path="/dev/kvm",
            message=f"guests are emulated (TCG), which is slow: {verdict.reason}",
            hint=verdict.hint,
            severity=Severity.WARNING,
        )
    if not os.path.exists("/dev/net/tun"):
        yield Finding(
            code="no-tun",
            path="/dev/net/tun",
            message="NIC modes that need a tap cannot be used",
            hint="modprobe tun",
            severity=Severity.ADVICE,
        )


def verify_running(directory: InstanceDirectory, deadline: Deadline) -> Iterable[Finding]:
    """Find where the record of an instance and its process have drifted apart."""
    seen = observe(directory)
    if seen.damage:
        yield Finding(code="record-damaged", path=directory.path, message=seen.damage, hint="stop it by name")
    if not seen.alive:
        yield Finding(
            code="not-alive",
            path=directory.path,
            message="its process has ended and its leftovers are still there",
            hint="stop it to clean up, or start it again",
        )
        return
    if seen.record is None:
        message = "its process lives and there is no record of it"
        yield Finding(code="record-missing", path=directory.path, message=message, hint="stop it by name")
        return
    commands = ("query-name", "query-uuid", "query-cpus-fast", "query-block")
    answer = ask_many([Question(key="", path=directory.join(QUERY))], commands, deadline)[""]
    if answer.error is not None:
        message = f"QEMU does not answer: {answer.error}"
        yield Finding(code="not-answering", path=directory.path, message=message)
        return
    yield from _differences(seen, answer.results)


def _differences(seen: Observed, results: Mapping[str, Any]) -> Iterable[Finding]:
    if seen.record is None:
        return
    instance = seen.record.instance
    compared = (
        ("name", instance.name, results["query-name"].get("name")),
        ("uuid", instance.uuid, results["query-uuid"].get("UUID")),
        ("vcpus", instance.vcpus, len(results["query-cpus-fast"])),
        ("disks", len(instance.disks), _attached(results["query-block"], instance)),
    )
    for what, recorded, found in compared:
        if recorded != found:
            message = f"the record says {recorded}, QEMU says {found}"
            yield Finding(code="drift", path=what, message=message, hint="restart the instance")


def _attached(backends: Any, instance: Instance) -> int:
    """How many disks of an instance its guest has, by the devices to which QEMU has attached something."""
    places = {part for backend in backends for part in str(backend.get("qdev") or "").split("/")}
    return sum(device_id("disk", disk.uuid or "") in places for disk in instance.disks)
