"""What the host lacks for the memory, processors and devices of a definition; reads only."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterable, Iterator

from hvcore import Finding, read_node_info
from hvcore_kvm.accelerator import Accelerator, Choice
from hvcore_kvm.affinity import format_cpus, parse_mask, usable_cpus
from hvcore_kvm.companions import find_program
from hvcore_kvm.definition import Definition
from hvcore_kvm.hardware.devices import VHOST_VSOCK, is_old_virtiofsd
from hvcore_kvm.hardware.reservations import PROGRAM
from hvcore_kvm.secrets import check_secret

_VFIO = "/dev/vfio"
_PCI = "/sys/bus/pci/devices"
_HUGE_PAGES = "/sys/kernel/mm/hugepages"


def check_devices(definition: Definition, choice: Choice) -> Iterator[Finding]:
    """Find what stands against the devices of a definition on this host."""
    yield from check_pinning(definition)
    yield from _memory(definition)
    yield from _companions(definition)
    yield from check_disks(definition)
    yield from _passthrough(definition)
    machine, devices, cpu = definition.machine, definition.devices, definition.cpu
    if machine.chroot and os.geteuid() != 0:
        yield Finding(code="needs-root", path="params.chroot", message="only root may change the root of a process")
    if cpu.hyperv and choice.accelerator is not Accelerator.KVM:
        message = f"needs KVM, and the accelerator is {choice.accelerator.value} ({choice.reason})"
        yield Finding(code="contradiction", path="params.hyperv", message=message)
    if devices.rng_source == "hwrng" and not os.access("/dev/hwrng", os.R_OK):
        message = "there is no /dev/hwrng that this user can read"
        yield Finding(code="no-device", path="params.rng_source", message=message, hint='use "builtin" or "urandom"')
    if devices.vsock and not os.access(VHOST_VSOCK, os.R_OK | os.W_OK):
        message = f"there is no {VHOST_VSOCK} that this user can open"
        yield Finding(code="no-device", path="params.vsock", message=message, hint="modprobe vhost_vsock")
    for index, device in enumerate(devices.usb):
        if device.type == "host" and not os.path.isdir("/dev/bus/usb"):
            message = "this host has no USB"
            yield Finding(code="no-device", path=f"params.usb[{index}]", message=message)


def check_pinning(definition: Definition) -> Iterator[Finding]:
    """Find masks that name CPUs this host does not have."""
    online = usable_cpus()
    for name in ("cpu_pin", "emulator_pin", "iothread_pin"):
        mask = getattr(definition.cpu, name)
        if mask is None:
            continue
        absent = {cpu for element in parse_mask(mask) for cpu in element or ()} - online
        if absent:
            lacking, there = (format_cpus(tuple(sorted(cpus))) for cpus in (absent, online))
            message = f"this host has no CPU {lacking}; it has {there}"
            yield Finding(code="no-such-cpu", path=f"params.{name}", message=message)


def _memory(definition: Definition) -> Iterator[Finding]:
    memory, size = definition.memory, definition.instance.memory
    if memory.memory_path is not None:
        yield from _memory_path(memory.memory_path, size)
    elif memory.memory_backend == "hugepages":
        yield from _huge_pages(memory.hugepage_size, size)
    # SEV keeps all of a guest's memory in its place.
    encrypted = definition.confidential.confidential in ("sev", "sev-es")
    if (memory.memory_lock or encrypted) and os.geteuid() != 0:
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        if limit != resource.RLIM_INFINITY and limit < size:
            message = f"this user may lock {limit} bytes, and memory is {size}"
            where = "params.memory_lock" if memory.memory_lock else "params.confidential"
            yield Finding(code="memlock-limit", path=where, message=message, hint="raise it: ulimit -l")
    nodes = {node.id for node in read_node_info().numa_nodes} if any(n.host_nodes for n in memory.numa) else set()
    for index, node in enumerate(memory.numa):
        absent = [str(wanted) for wanted in node.host_nodes if wanted not in nodes]
        if absent:
            message = f"this host has no NUMA node {', '.join(absent)}; it has {', '.join(map(str, sorted(nodes)))}"
            yield Finding(code="no-such-node", path=f"params.numa[{index}].host_nodes", message=message)


def _memory_path(path: str, size: int) -> Iterator[Finding]:
    where = "params.memory_path"
    # QEMU would make a file of the guest's size where nothing is.
    if not os.path.isdir(path):
        yield Finding(code="not-a-directory", path=where, message=f"there is no directory {path}")
        return
    if not os.access(path, os.W_OK):
        yield Finding(code="file-unusable", path=where, message=f"this user cannot write to {path}")
        return
    found = os.statvfs(path)
    free = found.f_bavail * found.f_bsize
    if size % found.f_bsize:
        message = f"memory is {size} bytes, and the page size of {path} is {found.f_bsize}: it must be a multiple"
        yield Finding(code="page-size", path=where, message=message)
    elif free < size:
        message = f"{path} has {free} bytes free, and memory is {size}"
        yield Finding(code="not-enough-memory", path=where, message=message)


def _huge_pages(wanted: int | None, size: int) -> Iterator[Finding]:
    where = "params.hugepage_size" if wanted is not None else "params.memory_backend"
    pools = _pools()
    page = wanted if wanted is not None else _default_huge_page()
    if page is None or page not in pools:
        sizes = ", ".join(f"{known >> 10} KiB" for known in sorted(pools)) or "none"
        message = f"this host has no huge pages of {(page or 0) >> 10} KiB" if page else "this host has no huge pages"
        yield Finding(code="no-huge-pages", path=where, message=message, hint=f"it has: {sizes}")
    elif size % page:
        message = f"memory is {size} bytes, which is not a multiple of {page}, the size of a huge page"
        yield Finding(code="page-size", path=where, message=message)
    elif pools[page] * page < size:
        need = size // page
        message = f"{pools[page]} huge pages of {page >> 10} KiB are free, and {need} are needed"
        hint = f"echo {need} > {_HUGE_PAGES}/hugepages-{page >> 10}kB/nr_hugepages"
        yield Finding(code="no-huge-pages", path=where, message=message, hint=hint)


def _pools() -> dict[int, int]:
    """Free huge pages by size of a page in bytes."""
    pools = {}
    try:
        names = os.listdir(_HUGE_PAGES)
    except OSError:
        return {}
    for name in names:
        with open(f"{_HUGE_PAGES}/{name}/free_hugepages", encoding="ascii") as file:
            pools[int(name.removeprefix("hugepages-").removesuffix("kB")) << 10] = int(file.read())
    return pools


def _default_huge_page() -> int | None:
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("Hugepagesize:"):
                return int(line.split()[1]) << 10
    return None


def check_disks(definition: Definition) -> Iterator[Finding]:
    """Find what stands against what disks need besides their images."""
    yield from _reservations(definition)
    yield from _secrets(definition)


def _reservations(definition: Definition) -> Iterator[Finding]:
    for disk in definition.disks:
        if not disk.parameters.reservations:
            continue
        where = f"{disk.origin}.params.reservations"
        if find_program(PROGRAM) is None:
            message = f"the program {PROGRAM} is not installed"
            yield Finding(code="no-program", path=where, message=message, hint="apt-get install qemu-system-common")
        if os.geteuid() != 0:
            yield Finding(code="needs-root", path=where, message=f"{PROGRAM} has to be started by root")


def _companions(definition: Definition) -> Iterator[Finding]:
    if definition.devices.tpm != "none" and find_program("swtpm") is None:
        message = "the program swtpm is not installed"
        yield Finding(code="no-program", path="params.tpm", message=message, hint="apt-get install swtpm")
    if not definition.devices.shares:
        return
    program = find_program("virtiofsd")
    if program is None:
        message = "the program virtiofsd is not installed"
        hint = "apt-get install virtiofsd; QEMU before 8.0 brings its own"
        yield Finding(code="no-program", path="params.shares", message=message, hint=hint)
    for index, share in enumerate(definition.devices.shares):
        where = f"params.shares[{index}].path"
        if not os.path.isdir(share.path):
            yield Finding(code="not-a-directory", path=where, message=f"there is no directory {share.path}")
        if program is not None and is_old_virtiofsd(program):
            if "," in share.path:
                yield Finding(code="invalid-value", path=where, message="virtiofsd of QEMU 7.2 takes no comma in it")
            if os.geteuid() != 0:
                yield Finding(code="needs-root", path=where, message="virtiofsd of QEMU 7.2 has to be started by root")


def _passthrough(definition: Definition) -> Iterator[Finding]:
    for index, device in enumerate(definition.devices.pci_passthrough):
        where = f"params.pci_passthrough[{index}].address"
        path = f"{_PCI}/{device.address}"
        if not os.path.isdir(path):
            yield Finding(code="no-device", path=where, message=f"this host has no PCI device {device.address}")
            continue
        group = _link(f"{path}/iommu_group")
        if group is None:
            message = f"{device.address} is in no IOMMU group: the host's IOMMU is off or missing"
            yield Finding(
                code="no-iommu", path=where, message=message, hint="boot the host with intel_iommu=on or the like"
            )
            continue
        driver = _link(f"{path}/driver")
        if driver != "vfio-pci":
            message = f"{device.address} belongs to the driver {driver or '(none)'}, and must belong to vfio-pci"
            hint = f"driverctl set-override {device.address} vfio-pci"
            yield Finding(code="not-vfio", path=where, message=message, hint=hint)
        yield from _group(definition, device.address, group, where)
        node = f"{_VFIO}/{group}"
        if not os.access(node, os.R_OK | os.W_OK):
            yield Finding(code="no-device", path=where, message=f"this user cannot open {node}")


def _group(definition: Definition, address: str, group: str, where: str) -> Iterator[Finding]:
    """Devices of one IOMMU group can reach each other's memory, so they go to one guest."""
    ours = {device.address for device in definition.devices.pci_passthrough}
    for other in sorted(os.listdir(f"{_PCI}/{address}/iommu_group/devices")):
        if other in ours or _link(f"{_PCI}/{other}/driver") in (None, "vfio-pci", "pcieport"):
            continue
        message = f"{other} is in the same IOMMU group {group} and belongs to the host"
        yield Finding(code="iommu-group", path=where, message=message, hint=f"give {other} to vfio-pci too")


def _link(path: str) -> str | None:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return None


def _secrets(definition: Definition) -> Iterator[Finding]:
    for disk in definition.disks:
        if disk.parameters.secret_file is not None:
            yield from check_secret(disk.parameters.secret_file, f"{disk.origin}.params.secret_file")


def check_file(path: str, where: str) -> Iterable[Finding]:
    """A regular file that this user can read."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        return [Finding(code="file-unusable", path=where, message=f"cannot look at {path}: {error.strerror}")]
    if not regular:
        return [Finding(code="file-unusable", path=where, message=f"{path} is not a file")]
    if not os.access(path, os.R_OK):
        return [Finding(code="file-unusable", path=where, message=f"{path} cannot be read by this user")]
    return ()
