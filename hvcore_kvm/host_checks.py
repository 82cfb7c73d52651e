"""Everything on this host that stands against running a definition, found at once; reads, and changes nothing."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import attrs

from hvcore import Directories, Finding, Instance
from hvcore_kvm import process
from hvcore_kvm.accelerator import Choice
from hvcore_kvm.capabilities import QemuCapabilities
from hvcore_kvm.cgroup import find_hierarchy
from hvcore_kvm.confidential import check_confidential
from hvcore_kvm.definition import Definition, DiskDefinition, NicDefinition
from hvcore_kvm.device_checks import check_devices, check_disks, check_file
from hvcore_kvm.directory import InstanceDirectory, instance_names
from hvcore_kvm.hardware.devices import cid_of, guest_cid, usb_file
from hvcore_kvm.hardware.storage import floppy_file
from hvcore_kvm.images import Image, ImageFile, check_image
from hvcore_kvm.placement import family_of
from hvcore_kvm.runtime import PROCESS, RECORD, SCHEMA, ProcessRecord, RuntimeRecord
from hvcore_kvm.support import supported_values


def check_host(
    definition: Definition,
    capabilities: QemuCapabilities,
    choice: Choice,
    directories: Directories,
    *,
    arriving: bool = False,
    images_to_be: Mapping[str, Image | None] = MappingProxyType({}),
) -> tuple[dict[str, Image], list[Finding]]:
    """Look at the host for a definition.

    Args:
        definition: the definition.
        capabilities: what the QEMU program can do.
        choice: accelerator.
        directories: those of the driver.
        arriving: its guest comes from another host, where QEMU has the images of shared storage open.
        images_to_be: images of disks that are made later, by uuid; ``None`` for one that was found to be wrong already.

    Returns:
        What the images are, by uuid of the disk or by the parameter that names them, and all findings.
    """
    findings = [
        *_machine(definition, capabilities, choice),
        *_mapping(definition, capabilities),
        *_store(definition, capabilities),
        *check_confidential(definition.confidential, capabilities, choice),
        *_files(definition),
        *check_devices(definition, choice),
    ]
    images: dict[str, Image] = {}
    for disk in definition.disks:
        if disk.disk.path is None:
            continue
        uuid = disk.disk.uuid or ""
        if uuid in images_to_be:
            image = images_to_be[uuid]
        else:
            generic = disk.parameters.bus == "scsi-generic"
            image, problems = check_image(disk.file, character_device=generic)
            findings += problems
            for layer in disk.layers:
                findings += check_image(layer)[1]
        if image is not None:
            images[uuid] = image
    for file in _media(definition):
        image, problems = check_image(file)
        findings += problems
        if image is not None:
            images[file.where] = image
    findings += _same_images(definition, images)
    findings = [
        f
        for f in findings
        if f.code != "disk-in-use" or not (arriving or f.path in _used_by_itself(definition, directories))
    ]
    findings += _used_by_others(definition, images, directories, findings)
    findings += _same_vsock(definition, directories)
    for nic in definition.nics:
        found = nic.mode.backend.check_host(nic.nic, nic.mode_parameters)
        findings += [finding.below(nic.origin) for finding in found]
    if definition.security_model is not None:
        findings += definition.security_model.backend.check_host(definition.instance, definition.security_parameters)
    findings += _resources(definition)
    for console, parameters in definition.consoles:
        findings += console.backend.check_host(definition.instance, parameters)
    return images, findings


def check_device(
    definition: Definition,
    device: DiskDefinition | NicDefinition,
    capabilities: QemuCapabilities,
    directories: Directories,
) -> tuple[dict[str, Image], list[Finding]]:
    """Look at the host for one device of an instance that runs.

    Returns:
        What its image is, by uuid, and all findings.
    """
    if isinstance(device, NicDefinition):
        found = device.mode.backend.check_host(device.nic, device.mode_parameters)
        return {}, [finding.below(device.origin) for finding in found]
    alone = attrs.evolve(definition, disks=(device,), nics=())
    findings = [*_mapping(alone, capabilities), *check_disks(alone)]
    images: dict[str, Image] = {}
    if device.disk.path is not None:
        image, problems = check_image(device.file, character_device=device.parameters.bus == "scsi-generic")
        findings += problems
        for layer in device.layers:
            findings += check_image(layer)[1]
        if image is not None:
            images[device.disk.uuid or ""] = image
    findings += _used_by_others(alone, images, directories, findings)
    return images, findings


def _resources(definition: Definition) -> Iterator[Finding]:
    """Limits need controllers, and somebody who may make control groups."""
    given = definition.resources
    wanted = {
        "cpu_shares": "cpu",
        "cpu_quota": "cpu",
        "memory_limit": "memory",
        "pids_limit": "pids",
        "io_limit": "io",
    }
    asked = {name: controller for name, controller in wanted.items() if getattr(given, name) is not None}
    if not asked:
        return
    hierarchy = find_hierarchy()
    for name, controller in asked.items():
        if not hierarchy.has(controller):
            message = f"this host has no control group controller {controller}"
            yield Finding(code="no-cgroup-controller", path=f"params.{name}", message=message)
        elif not os.access(hierarchy.top(controller), os.W_OK):
            message = f"this user may not make control groups in {hierarchy.top(controller)}"
            yield Finding(code="needs-root", path=f"params.{name}", message=message)


def _machine(definition: Definition, capabilities: QemuCapabilities, choice: Choice) -> Iterable[Finding]:
    machine = capabilities.machine(definition.wanted_machine)
    qemu = f"QEMU {capabilities.version_text}"
    if machine is None or family_of(machine.name) is None:
        known = [m.alias or m.name for m in capabilities.machines if family_of(m.name) and m.alias]
        what = "is not supported by this driver" if machine else f"is unknown to {qemu}"
        yield Finding(
            code="unknown-machine",
            path="params.machine",
            message=f"machine type {definition.wanted_machine} {what}",
            hint=f"it has {', '.join(known)} and their versioned names",
        )
    elif max(definition.instance.vcpus, definition.cpu.vcpus_max or 0) > machine.cpu_max:
        yield Finding(
            code="too-many-vcpus",
            path="params.vcpus_max" if definition.instance.vcpus <= machine.cpu_max else "vcpus",
            message=f"machine type {machine.name} takes {machine.cpu_max} at most",
        )
    model = definition.cpu.cpu_model
    needed = model is not None or definition.cpu.cpu_features
    values = supported_values(capabilities) if needed else {}
    if model is not None and model not in values["params.cpu_model"]:
        message = f"CPU model {model} is unknown to {qemu}"
        yield _unknown("unknown-cpu-model", "params.cpu_model", message, model, values["params.cpu_model"])
    # QEMU takes either spelling.
    features = {feature.replace("_", "-") for feature in values.get("params.cpu_features", ())}
    for name in definition.cpu.cpu_features:
        if name.replace("_", "-") not in features:
            message = f"CPU feature {name} is unknown to {qemu}"
            yield _unknown("unknown-cpu-feature", "params.cpu_features", message, name, values["params.cpu_features"])
    if model == "host" and choice.accelerator != "kvm":
        yield Finding(
            code="contradiction",
            path="params.cpu_model",
            message=f"host needs KVM, and the accelerator is {choice.accelerator.value} ({choice.reason})",
            hint='use cpu_model = "max"',
        )
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if definition.instance.memory > total:
        yield Finding(
            code="not-enough-memory",
            path="memory",
            message=f"{definition.instance.memory} bytes are more than this host has ({total})",
        )


def _mapping(definition: Definition, capabilities: QemuCapabilities) -> Iterator[Finding]:
    for disk in definition.disks:
        if disk.parameters.iothread_mapping and capabilities.version < _MAPPING_SINCE:
            message = f"needs QEMU 9.0, and this is {capabilities.version_text}"
            where = f"{disk.origin}.params.iothread_mapping"
            yield Finding(code="qemu-too-old", path=where, message=message, hint="use iothread")


def _store(definition: Definition, capabilities: QemuCapabilities) -> Iterator[Finding]:
    if definition.boot.uefi_vars_json and "uefi-vars-x64" not in capabilities.devices:
        message = f"QEMU {capabilities.version_text} has no device uefi-vars-x64"
        hint = "QEMU 10.0 and newer have it; without uefi_vars_json, variables are kept in flash"
        yield Finding(code="unknown-device", path="params.uefi_vars_json", message=message, hint=hint)


_MAPPING_SINCE = (9, 0, 0)


def _unknown(code: str, path: str, message: str, wrong: str, known: Sequence[str]) -> Finding:
    near = difflib.get_close_matches(wrong, known, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return Finding(code=code, path=path, message=message, hint=f"{hint}it has {', '.join(known)}")


def _files(definition: Definition) -> Iterable[Finding]:
    for name in ("kernel", "initrd", "dtb", "firmware_image"):
        path = getattr(definition.boot, name)
        if path is not None:
            yield from check_file(path, f"params.{name}")


def _media(definition: Definition) -> Iterator[ImageFile]:
    """Images that belong to no disk."""
    for index, drive in enumerate(definition.storage.cdroms):
        if drive.path is not None:
            where = f"params.cdroms[{index}].path"
            yield ImageFile(path=drive.path, format="raw", read_only=True, any_header=True, where=where)
    if definition.storage.floppy is not None:
        yield floppy_file(definition.storage.floppy)
    for index, device in enumerate(definition.devices.usb):
        if device.path is not None:
            yield usb_file(device.path, index)


def _same_images(definition: Definition, images: Mapping[str, Image]) -> Iterable[Finding]:
    """One image twice, unless it is only read both times."""
    files = [(disk.disk.uuid or "", disk.file, disk.origin) for disk in definition.disks]
    files += [(file.where, file, file.where) for file in _media(definition)]
    seen: dict[tuple[int, int], tuple[ImageFile, str]] = {}
    for key, file, origin in files:
        image = images.get(key)
        if image is None:
            continue
        first, first_origin = seen.setdefault((image.device, image.inode), (file, origin))
        if first is not file and not (first.read_only and file.read_only):
            message = f"{file.path} is the same image as that of {first_origin}"
            yield Finding(code="repeated-value", path=file.where, message=message)


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
    for name, instance in _others(definition, directories):
        for theirs in instance.disks:
            mine = ours.get(image_key(theirs.path))
            if mine is None or (theirs.read_only and mine.disk.read_only):
                continue
            if not (mine.parameters.shared and theirs.params.get("shared")):
                message = f"{mine.disk.path} is in use by instance {name}"
                found.append(Finding(code="disk-in-use", path=f"{mine.origin}.path", message=message))
    return found


def _others(definition: Definition, directories: Directories) -> Iterator[tuple[str, Instance]]:
    """The other instances that run, with their definitions."""
    for name in instance_names(directories):
        if name == definition.name:
            continue
        with InstanceDirectory(directories, name) as other:
            record = other.read(RECORD, RuntimeRecord, schema=SCHEMA)
            running = other.read(PROCESS, ProcessRecord, schema=SCHEMA)
        if record is not None and running is not None and process.is_alive(running.identity):
            yield name, record.instance


def _same_vsock(definition: Definition, directories: Directories) -> Iterator[Finding]:
    if not definition.devices.vsock:
        return
    for name, instance in _others(definition, directories):
        if instance.params.get("vsock") and cid_of(instance) == guest_cid(definition):
            message = f"{guest_cid(definition)} is that of instance {name}"
            yield Finding(code="repeated-value", path="params.vsock_cid", message=message, hint="give another one")


def _used_by_itself(definition: Definition, directories: Directories) -> set[str]:
    """Paths of findings about images that this very instance has open, because it runs."""
    with InstanceDirectory(directories, definition.name) as own:
        record = own.read(RECORD, RuntimeRecord, schema=SCHEMA)
        running = own.read(PROCESS, ProcessRecord, schema=SCHEMA)
    if record is None or running is None or not process.is_alive(running.identity):
        return set()
    opened = {image_key(disk.path) for disk in record.instance.disks}
    return {f"{disk.origin}.path" for disk in definition.disks if image_key(disk.disk.path) in opened}


def image_key(path: str | None) -> tuple[int, int]:
    """What tells one image from another, whatever its path: device and inode, or the block device itself."""
    if path is None:
        return (-1, -1)
    try:
        found = os.stat(path)
    except OSError:
        return (-1, -1)
    return (found.st_rdev, 0) if stat.S_ISBLK(found.st_mode) else (found.st_dev, found.st_ino)
