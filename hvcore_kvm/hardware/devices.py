"""The devices beside CPU, memory, disks and NICs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from hvcore import Instance, private_directory
from hvcore_kvm.command_line import json_option, keyed
from hvcore_kvm.companions import Companion, find_program
from hvcore_kvm.families import FdRequest
from hvcore_kvm.hardware.builder import RNG_PLACE, Builder
from hvcore_kvm.hardware.reservations import PROGRAM
from hvcore_kvm.images import ImageFile, open_image
from hvcore_kvm.parameters.devices import DISPLAY_DEVICES, SOUND_DEVICES

if TYPE_CHECKING:
    from hvcore_kvm.definition import Definition
    from hvcore_kvm.parameters.devices import PciDevice, Share, UsbDevice

AGENT = "agent"
"""Socket of the guest agent's channel in the instance's directory."""

TPM_STATE = "tpm"
"""Directory of the TPM's state, in the instance's directory for what is kept."""

SOUND = "sound.wav"
"""File in the instance's directory that sound goes to with backend wav, as long as the instance runs."""

USB_PREFIX = "usb-device-"
"""What the ids of USB devices in QEMU begin with, those of the pointer, of disks and of NICs excepted."""

VHOST_VSOCK = "/dev/vhost-vsock"
_FIRST_CHASSIS = 128
RNG, RNG_SOURCE = "rng0", "rng-source0"
"""Ids in QEMU of the source of randomness and of what feeds it."""

_RNG_FILES = {"urandom": "/dev/urandom", "hwrng": "/dev/hwrng"}


def display_device(definition: Definition, family: str) -> str | None:
    """The graphics card: the one asked for, else the one that suits the console; ``None`` for none."""
    wanted = definition.devices.display_device
    if wanted is None and definition.graphical is not None:
        wanted = "virtio-gpu" if family == "virt" else definition.graphical.display_device
    return None if wanted in (None, "none") else wanted


def pointer(definition: Definition) -> str | None:
    """The pointing device; ``None`` for none."""
    wanted = definition.devices.pointer
    if wanted is None and definition.graphical is not None:
        wanted = "tablet"
    return None if wanted in (None, "none") else wanted


def guest_cid(definition: Definition) -> int:
    """The guest's address on vsock: the one asked for, else one that follows from the uuid."""
    return cid_of(definition.instance)


def cid_of(instance: Instance) -> int:
    """The same of an instance whose parameters have been checked."""
    given = instance.params.get("vsock_cid")
    return int(given) if given is not None else 3 + zlib.crc32((instance.uuid or "").lower().encode()) % (2**32 - 4)


def add_devices(builder: Builder) -> None:
    """Add them."""
    definition = builder.definition
    devices, machine = definition.devices, definition.machine
    if machine.panic_device:
        origin = "params.panic_device"
        if builder.family == "microvm":
            builder.add(json_option("device", {"driver": "pvpanic", "id": "panic0"}, origin=origin))
        else:
            builder.device("pvpanic-pci", "panic0", uuid="driver/panic", origin=origin)
    if devices.rng:
        _add_rng(builder)
    if devices.guest_agent:
        _add_guest_agent(builder)
    _add_watchdog(builder)
    if devices.vsock:
        request = FdRequest(
            name="vsock", purpose=VHOST_VSOCK, open=lambda: os.open(VHOST_VSOCK, os.O_RDWR | os.O_CLOEXEC)
        )
        values = {"guest-cid": guest_cid(definition), "vhostfd": str(builder.fd(request))}
        builder.device("vhost-vsock-pci", "vsock0", values, origin="params.vsock")
    if devices.tpm != "none":
        _add_tpm(builder)
    card = display_device(definition, builder.family)
    if card == "ramfb":
        # Not on a bus: a place in memory that the firmware configures.
        builder.add(json_option("device", {"driver": "ramfb", "id": "display0"}, origin="params.display_device"))
    elif card is not None:
        builder.device(DISPLAY_DEVICES[card], "display0", origin="params.display_device")
    if devices.keymap is not None:
        builder.add(keyed("k", devices.keymap, origin="params.keymap"))
    _add_usb(builder)
    if devices.sound != "none":
        _add_sound(builder)
    for index in range(1, devices.serial_ports + 1):
        name, origin = f"serial{index}", "params.serial_ports"
        chardev = {"id": name, "fd": builder.listen(name), "server": True, "wait": False}
        values = {"index": index, "chardev": name}
        builder.add(
            keyed("chardev", "socket", chardev, origin=origin),
            json_option("device", {"driver": "isa-serial", "id": f"com{index + 1}", **values}, origin=origin),
        )
    for index, share in enumerate(devices.shares):
        _add_share(builder, index, share)
    partners = {nic.parameters.failover for nic in definition.nics}
    for index, device in enumerate(devices.pci_passthrough):
        if device.address not in partners:
            origin = f"params.pci_passthrough[{index}]"
            for path in vfio_paths(device.address):
                builder.reads(path)
            driver, values = passthrough(device)
            builder.device(driver, f"host{index}", values, uuid=f"driver/{device.address}", origin=origin)


def passthrough(device: PciDevice) -> tuple[str, dict[str, Any]]:
    """QEMU's device for a PCI device of the host, and its properties."""
    return "vfio-pci", {"host": device.address, "rombar": int(device.rom)}


def add_failover_partner(builder: Builder, address: str, nic: str) -> None:
    """Add the PCI device of the host that a guest uses instead of a NIC.

    It comes after the NIC, which QEMU has keep it from a guest that does not know the pair, and sits on a port of its
    own: it is unplugged for a migration.

    Args:
        builder: what to add it to.
        address: where it is on the host.
        nic: id of the NIC.
    """
    index, device = next(
        (index, device)
        for index, device in enumerate(builder.definition.devices.pci_passthrough)
        if device.address == address
    )
    ident, origin = f"host{index}", f"params.pci_passthrough[{index}]"
    port = f"{ident}-port"
    number = _FIRST_CHASSIS + index
    builder.device("pcie-root-port", port, {"chassis": number, "slot": number}, uuid=f"port/{address}", origin=origin)
    for path in vfio_paths(address):
        builder.reads(path)
    driver, values = passthrough(device)
    values = {"driver": driver, "id": ident, "bus": port, **values, "failover_pair_id": nic}
    builder.add(json_option("device", values, origin=origin))


def vfio_paths(address: str) -> tuple[str, ...]:
    """What QEMU opens of the host to pass a PCI device through."""
    full = address if address.count(":") == 2 else f"0000:{address}"
    group = os.path.basename(os.path.realpath(f"/sys/bus/pci/devices/{full}/iommu_group"))
    return ("/dev/vfio/vfio", f"/dev/vfio/{group}", "/sys/bus/pci", "/sys/devices", "/sys/kernel/iommu_groups")


def _add_rng(builder: Builder) -> None:
    devices = builder.definition.devices
    source: dict[str, Any] = {"qom-type": "rng-builtin", "id": RNG_SOURCE}
    if devices.rng_source in _RNG_FILES:
        builder.reads(_RNG_FILES[devices.rng_source])
        source |= {"qom-type": "rng-random", "filename": _RNG_FILES[devices.rng_source]}
    builder.add(json_option("object", source, origin="params.rng_source"))
    values: dict[str, Any] = {"rng": RNG_SOURCE}
    if devices.rng_rate is not None:
        values |= {"max-bytes": devices.rng_rate, "period": 1000}
    builder.virtio("rng", RNG, values, uuid=RNG_PLACE, origin="params.rng")


def _add_guest_agent(builder: Builder) -> None:
    origin = "params.guest_agent"
    bus = builder.virtio_serial(origin)
    chardev = {"id": AGENT, "fd": builder.listen(AGENT), "server": True, "wait": False}
    port = {
        "driver": "virtserialport",
        "id": "agent0",
        "bus": bus,
        "chardev": AGENT,
        "name": "org.qemu.guest_agent.0",
    }
    builder.add(keyed("chardev", "socket", chardev, origin=origin), json_option("device", port, origin=origin))


def _add_watchdog(builder: Builder) -> None:
    kind, origin = builder.definition.devices.watchdog, "params.watchdog"
    if kind == "i6300esb":
        builder.device("i6300esb", "watchdog0", origin=origin)
    elif kind == "ib700":
        builder.add(json_option("device", {"driver": "ib700", "id": "watchdog0"}, origin=origin))
    elif kind == "itco":
        # Part of the chipset, which by default ignores that it has run out.
        setting = {"driver": "ICH9-LPC", "property": "noreboot", "value": "off"}
        builder.add(keyed("global", None, setting, origin=origin))


def _add_tpm(builder: Builder) -> None:
    origin = "params.tpm"
    state = os.path.join(builder.directory.data_path, TPM_STATE)
    companion = Companion(
        name="swtpm",
        argv=(
            builder.decisions.programs.get("swtpm", "swtpm"),
            "socket",
            "--tpm2",
            "--tpmstate",
            f"dir={state},mode=0600",
            "--ctrl",
            "type=unixio,clientfd=3",
            "--terminate",
        ),
        prepare=lambda: _make(state),
        writes=(state,),
    )
    number = _companion(builder, companion)
    driver = "tpm-tis-device" if builder.family == "virt" else f"tpm-{builder.definition.devices.tpm}"
    builder.add(
        keyed("chardev", "socket", {"id": "tpm0", "fd": number}, origin=origin),
        keyed("tpmdev", "emulator", {"id": "tpm0", "chardev": "tpm0"}, origin=origin),
        json_option("device", {"driver": driver, "id": "tpm-device0", "tpmdev": "tpm0"}, origin=origin),
    )


def _make(directory: str) -> None:
    with contextlib.suppress(OSError):
        # It may belong to the user that the last swtpm ran as. Nobody else can put another in its place.
        os.chown(directory, os.geteuid(), os.getegid(), follow_symlinks=False)
    private_directory(directory)


def _add_share(builder: Builder, index: int, share: Share) -> None:
    origin, ident = f"params.shares[{index}]", f"share{index}"
    program = builder.decisions.programs.get("virtiofsd", "virtiofsd")
    if is_old_virtiofsd(program):
        options = [
            "-o",
            f"source={share.path}",
            "-o",
            f"cache={share.cache}",
            "-o",
            "xattr" if share.xattr else "no_xattr",
        ]
        argv = (program, "--fd=3", *options)
    else:
        cache = {"none": "never"}.get(share.cache, share.cache)
        argv = (program, "--fd=3", "--shared-dir", share.path, "--cache", cache, *(["--xattr"] if share.xattr else []))
    number = _companion(builder, Companion(name=f"virtiofsd {share.tag}", argv=argv, listens=True))
    builder.add(keyed("chardev", "socket", {"id": ident, "fd": number}, origin=origin))
    values = {"chardev": ident, "tag": share.tag, "queue-size": share.queue_size}
    builder.device("vhost-user-fs-pci", ident, values, uuid=f"share/{share.tag}", origin=origin)


def is_old_virtiofsd(program: str) -> bool:
    """Whether it is the one that came with QEMU before 8.0, which has other options than today's."""
    return "/qemu/" in program


def find_programs(definition: Definition) -> dict[str, str]:
    """Paths of the companions' programs that a definition needs and that are installed."""
    wanted = []
    if definition.devices.tpm != "none":
        wanted.append("swtpm")
    if definition.devices.shares:
        wanted.append("virtiofsd")
    if any(disk.parameters.reservations for disk in definition.disks):
        wanted.append(PROGRAM)
    return {name: path for name in wanted if (path := find_program(name)) is not None}


def _companion(builder: Builder, companion: Companion) -> int:
    """Add a companion, and return the number of the descriptor by which QEMU reaches it."""
    builder.companions.append(companion)
    purpose = f"connection to {companion.name}"
    return builder.fd(FdRequest(name=companion.name, purpose=purpose, open=companion.take))


def _add_usb(builder: Builder) -> None:
    devices = builder.definition.devices
    if devices.usb_controller not in (None, "none"):
        builder.usb_bus("params.usb_controller")
    kind = pointer(builder.definition)
    if kind is not None:
        bus = builder.usb_bus("params.pointer")
        values = {"driver": f"usb-{kind}", "id": "pointer0", "bus": bus}
        builder.add(json_option("device", values, origin="params.pointer"))
    for index, device in enumerate(devices.usb):
        _add_usb_device(builder, index, device)


def usb_file(path: str, index: int) -> ImageFile:
    """The image of a storage stick."""
    return ImageFile(path=path, format="raw", read_only=True, any_header=True, where=f"params.usb[{index}].path")


def usb_ids(devices: Sequence[UsbDevice]) -> tuple[str, ...]:
    """The ids in QEMU of USB devices: by what each is, so that one keeps its id when those before it go."""
    found: list[str] = []
    for device in devices:
        given = attrs.asdict(device, filter=lambda _, value: value is not None)
        text = json.dumps(given, sort_keys=True).encode()
        ident = f"{USB_PREFIX}{hashlib.blake2b(text, digest_size=6).hexdigest()}"
        same = sum(known.startswith(ident) for known in found)
        found.append(f"{ident}-{same}" if same else ident)
    return tuple(found)


def _add_usb_device(builder: Builder, index: int, device: UsbDevice) -> None:
    origin, ident = f"params.usb[{index}]", usb_ids(builder.definition.devices.usb)[index]
    bus = builder.usb_bus(origin)
    driver = {"keyboard": "kbd"}.get(device.type, device.type)
    values: dict[str, Any] = {"driver": f"usb-{driver}", "id": ident, "bus": bus}
    if device.type == "host":
        for path in ("/dev/bus/usb", "/sys/bus/usb", "/sys/devices"):
            builder.reads(path)
        values |= {
            "vendorid": device.vendor_id,
            "productid": device.product_id,
            "hostbus": device.host_bus,
            "hostaddr": device.host_address,
            "hostport": device.host_port,
        }
    elif device.type == "redir":
        name = f"usb{index}"
        chardev = {"id": name, "fd": builder.listen(name), "server": True, "wait": False}
        builder.add(keyed("chardev", "socket", chardev, origin=origin))
        values["chardev"] = name
    elif device.type == "storage" and device.path is not None:
        file = usb_file(device.path, index)
        request = FdRequest(name=ident, purpose=f"{file.path}, read-only", open=lambda: open_image(file))
        source = {"driver": "file", "filename": builder.fdset(request, origin), "read-only": True}
        node = {"driver": "raw", "node-name": ident, "read-only": True, "file": source}
        builder.add(json_option("blockdev", node, origin=origin))
        values["drive"] = ident
    values = {key: value for key, value in values.items() if value is not None}
    builder.add(json_option("device", values, origin=origin))


def _add_sound(builder: Builder) -> None:
    definition = builder.definition
    kind, origin = definition.devices.sound, "params.sound"
    spice = any(console.name == "spice" for console, _ in definition.consoles)
    backend = definition.devices.sound_backend or ("spice" if spice else "none")
    audio: dict[str, Any] = {"driver": backend, "id": "audio0"}
    if backend == "wav":
        # QEMU's own choice would be a file in its working directory, which is the host's root.
        # By descriptor, because it may not be able to make one in the instance's.
        directory = builder.directory
        request = FdRequest(name=SOUND, purpose="file that sound goes to", open=lambda: directory.writable(SOUND))
        audio["path"] = f"/proc/self/fd/{builder.fd(request)}"
    elif backend == "alsa":
        builder.reads("/dev/snd")
    builder.add(json_option("audiodev", audio, origin="params.sound_backend"))
    driver = SOUND_DEVICES[kind]
    if kind in ("hda", "ich6"):
        builder.device(driver, "sound0", origin=origin)
        codec = {"driver": "hda-duplex", "id": "codec0", "bus": "sound0.0", "cad": 0, "audiodev": "audio0"}
        builder.add(json_option("device", codec, origin=origin))
    elif kind == "usb":
        values = {"driver": driver, "id": "sound0", "bus": builder.usb_bus(origin), "audiodev": "audio0"}
        builder.add(json_option("device", values, origin=origin))
    elif kind == "sb16":
        builder.add(json_option("device", {"driver": driver, "id": "sound0", "audiodev": "audio0"}, origin=origin))
    else:
        builder.device(driver, "sound0", {"audiodev": "audio0"}, origin=origin)
