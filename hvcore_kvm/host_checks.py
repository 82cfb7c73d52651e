"""Everything on this host that stands against running a definition, found at once; reads, and changes nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping

from hvcore import Directories, Finding
from hvcore_kvm import process
from hvcore_kvm.accelerator import Choice
from hvcore_kvm.capabilities import QemuCapabilities
from hvcore_kvm.definition import Definition
from hvcore_kvm.directory import InstanceDirectory, instance_names
from hvcore_kvm.images import Image, check_image
from hvcore_kvm.placement import family_of
from hvcore_kvm.runtime import PROCESS, RECORD, SCHEMA, ProcessRecord, RuntimeRecord

_DEVICES = {"virtio-net": "virtio-net-pci", "virtio-blk": "virtio-blk-pci"}


def check_host(
    definition: Definition, capabilities: QemuCapabilities, choice: Choice, directories: Directories
) -> tuple[dict[str, Image], list[Finding]]:
    """Look at the host for a definition.

    Returns:
        What the images of the disks are, by uuid of the disk, and all findings.
    """
    findings = [*_machine(definition, capabilities, choice), *_files(definition)]
    images: dict[str, Image] = {}
    for disk in definition.disks:
        image, problems = check_image(disk)
        findings += problems
        if image is not None:
            images[disk.disk.uuid or ""] = image
    findings += _same_images(definition, images)
    findings = [
        f for f in findings if f.code != "disk-in-use" or f.path not in _used_by_itself(definition, directories)
    ]
    findings += _used_by_others(definition, images, directories, findings)
    for nic in definition.nics:
        found = nic.mode.backend.check_host(nic.nic, nic.mode_parameters)
        findings += [finding.below(nic.origin) for finding in found]
    if definition.security_model is not None:
        findings += definition.security_model.backend.check_host(definition.instance, definition.security_parameters)
    for console, parameters in definition.consoles:
        findings += console.backend.check_host(definition.instance, parameters)
    return images, findings


def _machine(definition: Definition, capabilities: QemuCapabilities, choice: Choice) -> Iterable[Finding]:
    machine = capabilities.machine(definition.machine.machine)
    qemu = f"QEMU {capabilities.version_text}"
    if machine is None or family_of(machine.name) is None:
        known = [m.alias or m.name for m in capabilities.machines if family_of(m.name) and m.alias]
        what = "is not supported by this driver" if machine else f"is unknown to {qemu}"
        yield Finding(
            code="unknown-machine",
            path="params.machine",
            message=f"machine type {definition.machine.machine} {what}",
            hint=f"it has {', '.join(known)} and their versioned names",
        )
    elif definition.instance.vcpus > machine.cpu_max:
        yield Finding(
            code="too-many-vcpus",
            path="vcpus",
            message=f"machine type {machine.name} takes {machine.cpu_max} at most",
        )
    model = definition.cpu.cpu_model
    if model is not None and model not in capabilities.cpu_models:
        yield Finding(
            code="unknown-cpu-model", path="params.cpu_model", message=f"CPU model {model} is unknown to {qemu}"
        )
    if model == "host" and choice.accelerator != "kvm":
        yield Finding(
            code="contradiction",
            path="params.cpu_model",
            message=f"host needs KVM, and the accelerator is {choice.accelerator.value} ({choice.reason})",
            hint='use cpu_model = "max"',
        )
    for nic in definition.nics:
        device = _DEVICES.get(nic.parameters.model, nic.parameters.model)
        if device not in capabilities.devices:
            where = f"{nic.origin}.params.model"
            yield Finding(code="unknown-device", path=where, message=f"{qemu} has no device {device}")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if definition.instance.memory > total:
        yield Finding(
            code="not-enough-memory",
            path="memory",
            message=f"{definition.instance.memory} bytes are more than this host has ({total})",
        )


def _files(definition: Definition) -> Iterable[Finding]:
    for name in ("kernel", "initrd", "firmware_image"):
        path = getattr(definition.boot, name)
        if path is None:
            continue
        try:
            regular = stat.S_ISREG(os.stat(path).st_mode)
        except OSError as error:
            yield _file(name, f"cannot look at {path}: {error.strerror}")
            continue
        if not regular:
            yield _file(name, f"{path} is not a file")
        elif not os.access(path, os.R_OK):
            yield _file(name, f"{path} cannot be read by this user")


def _file(name: str, message: str) -> Finding:
    return Finding(code="file-unusable", path=f"params.{name}", message=message)


def _same_images(definition: Definition, images: Mapping[str, Image]) -> Iterable[Finding]:
    seen: dict[tuple[int, int], str] = {}
    for disk in definition.disks:
        image = images.get(disk.disk.uuid or "")
        if image is None:
            continue
        first = seen.setdefault((image.device, image.inode), disk.origin)
        if first != disk.origin:
            message = f"{disk.disk.path} is the same image as that of {first}"
            yield Finding(code="repeated-value", path=f"{disk.origin}.path", message=message)


def _used_by_others(
    definition: Definition, images: Mapping[str, Image], directories: Directories, known: Iterable[Finding]
) -> list[Finding]:
    """Images that another instance of ours has, also where QEMU's own locks do not tell."""
    found = []
    reported = {finding.path for finding in known if finding.code == "disk-in-use"}
    ours = {}
    for disk in definition.disks:
        image = images.get(disk.disk.uuid or "")
        if image is not None and f"{disk.origin}.path" not in reported:
            ours[image.device, image.inode] = disk
    if not ours:
        return []
    for name in instance_names(directories):
        if name == definition.name:
            continue
        with InstanceDirectory(directories, name) as other:
            record = other.read(RECORD, RuntimeRecord, schema=SCHEMA)
            running = other.read(PROCESS, ProcessRecord, schema=SCHEMA)
        if record is None or running is None or not process.is_alive(running.identity):
            continue
        for theirs in record.instance.disks:
            mine = ours.get(_image_key(theirs.path))
            if mine is not None and not (theirs.read_only and mine.disk.read_only):
                message = f"{mine.disk.path} is in use by instance {name}"
                found.append(Finding(code="disk-in-use", path=f"{mine.origin}.path", message=message))
    return found


def _used_by_itself(definition: Definition, directories: Directories) -> set[str]:
    """Paths of findings about images that this very instance has open, because it runs."""
    with InstanceDirectory(directories, definition.name) as own:
        record = own.read(RECORD, RuntimeRecord, schema=SCHEMA)
        running = own.read(PROCESS, ProcessRecord, schema=SCHEMA)
    if record is None or running is None or not process.is_alive(running.identity):
        return set()
    opened = {_image_key(disk.path) for disk in record.instance.disks}
    return {f"{disk.origin}.path" for disk in definition.disks if _image_key(disk.disk.path) in opened}


def _image_key(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (-1, -1)
    return (found.st_rdev, 0) if stat.S_ISBLK(found.st_mode) else (found.st_dev, found.st_ino)
