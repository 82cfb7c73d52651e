"""What is legal and unwise in a definition."""

from __future__ import annotations

import os
from collections.abc import Iterator

from hvcore import Finding, Severity
from hvcore_kvm.capabilities import QemuCapabilities
from hvcore_kvm.definition import Definition
from hvcore_kvm.parameters.confidential import AMD, FROZEN

_WEAK_MODELS = ("qemu32", "qemu64", "kvm32", "kvm64", "x86-64-v1")
_FAST_BUSES = ("virtio-blk", "scsi", "nvme", "scsi-block", "scsi-generic")


def assess(definition: Definition, capabilities: QemuCapabilities) -> Iterator[Finding]:
    """Everything worth saying of a definition that has no errors.

    Args:
        definition: the definition.
        capabilities: what the QEMU program can do.
    """
    yield from _machine(definition, capabilities)
    yield from _devices(definition)
    yield from _shared_memory(definition, capabilities)
    yield from _consoles(definition)


def _machine(definition: Definition, capabilities: QemuCapabilities) -> Iterator[Finding]:
    if definition.machine.accel == "tcg":
        yield _advice("slow", "params.accel", "guests are emulated, which is slow")
    machine = capabilities.machine(definition.wanted_machine)
    if machine is not None and machine.deprecated:
        yield _warning("deprecated", "params.machine", f"machine type {machine.name} is deprecated by QEMU")
    model = definition.cpu.cpu_model
    if model in capabilities.deprecated_cpu_models:
        yield _warning("deprecated", "params.cpu_model", f"CPU model {model} is deprecated by QEMU")
    if model in _WEAK_MODELS:
        message = f"{model} is slow, and hides what protects against faults of processors"
        yield _warning("weak-cpu-model", "params.cpu_model", message)
    if model == "host":
        message = "a live migration needs a host with the same processor"
        yield _advice("not-portable", "params.cpu_model", message)
    kind = definition.confidential.confidential
    if kind != "none":
        message = f"a guest of {kind} cannot be moved to another host while it runs"
        yield _advice("not-portable", "params.confidential", message)
    if kind in FROZEN:
        yield _advice("no-reset", "params.confidential", "QEMU ends when the guest restarts itself: it cannot be reset")
    if kind in AMD and definition.boot.kernel is not None and not definition.confidential.confidential_kernel_hashes:
        message = "the kernel is not measured: the host could give the guest another one"
        yield _warning("not-measured", "params.confidential_kernel_hashes", message)
    if definition.machine.extra_args:
        message = "QEMU gets options that the driver knows nothing of; hotplug and migration may fail on them"
        yield _warning("extra-args", "params.extra_args", message)
    if definition.security_model is not None and definition.security_model.name == "none" and os.geteuid() == 0:
        message = "QEMU runs as root: a guest that breaks out of it has the host"
        yield _warning("runs-as-root", "security_model", message)


def _devices(definition: Definition) -> Iterator[Finding]:
    for disk in definition.disks:
        given, below = disk.parameters, f"{disk.origin}.params"
        if given.cache == "unsafe":
            yield _warning("unsafe", f"{below}.cache", "writes are lost when the host crashes")
        if given.bus not in _FAST_BUSES:
            yield _advice("slow", f"{below}.bus", f"a disk on bus {given.bus} is emulated, which is slow")
    for nic in definition.nics:
        given_nic, below = nic.parameters, f"{nic.origin}.params"
        if given_nic.model != "virtio-net":
            yield _advice("slow", f"{below}.model", f"{given_nic.model} is emulated, which is slow")
        if given_nic.vhost is False and getattr(nic.mode.backend, "tap", False):
            yield _advice("slow", f"{below}.vhost", "packets go through QEMU, which is slow")
        if given_nic.queues > definition.instance.vcpus:
            message = f"there are {definition.instance.vcpus} virtual CPUs, and more queues are of no use"
            yield _advice("no-use", f"{below}.queues", message)
    devices = definition.devices
    spice = any(console.name == "spice" for console, _ in definition.consoles)
    if devices.sound != "none" and devices.sound_backend in (None, "none") and not spice:
        yield _advice("no-use", "params.sound", "nobody hears it: there is no backend and no SPICE")


def _shared_memory(definition: Definition, capabilities: QemuCapabilities) -> Iterator[Finding]:
    if definition.machine.accel != "tcg" or capabilities.version >= (8, 0, 0):
        return
    for nic in definition.nics:
        if getattr(nic.mode.backend, "shared_memory", False):
            message = f"QEMU {capabilities.version_text} crashes when the driver of an emulated guest begins to use it"
            yield _warning("crashes", f"{nic.origin}.mode", message)


def _consoles(definition: Definition) -> Iterator[Finding]:
    for console, parameters in definition.consoles:
        assess_console = getattr(console.backend, "assess", None)
        if assess_console is not None:
            yield from assess_console(definition.instance, parameters)


def _advice(code: str, path: str, message: str) -> Finding:
    return Finding(code=code, path=path, message=message, severity=Severity.ADVICE)


def _warning(code: str, path: str, message: str) -> Finding:
    return Finding(code=code, path=path, message=message, severity=Severity.WARNING)
