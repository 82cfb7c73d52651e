"""Devices, media, memory and consoles of modelled processes: what a driver does to them, and what others do."""

from __future__ import annotations

import contextlib
import os
import struct

import attrs

from hvcore import Disk, HypervisorRefused, Instance, Nic
from hvcore_fake import yielding
from hvcore_fake.images import image_identity, read_disk
from hvcore_fake.parameters import GuestParameters, guest_parameters, secret_of
from hvcore_fake.record import Attached, Backend, Client, Process
from hvcore_fake.sealed import HEADER, key_of
from hvcore_fake.tracking import Tracking

DISK_SIZE = 2**30
"""Bytes of a disk whose image nobody can look at."""

NEWEST_QCOW2 = 3
"""Version of qcow2 images; what is newer is refused in the words of the modelled hypervisor."""

_HEADER = struct.Struct(">4sI16xQ")


class Plugging(Tracking):
    """Processes whose devices change while their guests run."""

    # What tests make happen

    def guest_lets_go(self, name: str) -> None:
        """The guest lets go of every device that it has been asked for."""
        with self.store.locked():
            process = self._living(name)
            self._leave(process, *(device.ident for device in process.attached if device.asked is not None))

    def attach_client(self, name: str, program: str, kind: str = "serial") -> None:
        """A program connects to a console, and waits if somebody is attached."""
        with self.store.locked():
            process = self._living(name)
            self._write(attrs.evolve(process, clients=(*process.clients, Client(kind=kind, program=program))))

    def detach_client(self, name: str, program: str, kind: str = "serial") -> None:
        """A program lets go of a console."""
        with self.store.locked(), contextlib.suppress(ValueError):
            process = self._living(name)
            clients = list(process.clients)
            clients.remove(Client(kind=kind, program=program))
            self._write(attrs.evolve(process, clients=tuple(clients)))

    # What the driver does. Without a process, nothing happens: so it is after a lie.

    def open_backend(self, name: str, backend: Backend) -> None:
        """Open what is behind a device, in place of what was open for it."""
        process = self.process(name)
        if process is not None:
            others = tuple(other for other in process.backends if other.ident != backend.ident)
            self._write(attrs.evolve(process, backends=(*others, backend)))

    def close_backend(self, name: str, ident: str) -> None:
        """Close what is behind a device."""
        process = self.process(name)
        if process is not None:
            kept = tuple(backend for backend in process.backends if backend.ident != ident)
            self._write(attrs.evolve(process, backends=kept))

    def plug(self, name: str, device: Attached) -> None:
        """Give the guest a device."""
        process = self.process(name)
        if process is not None:
            others = yielding.without(process, device.ident)
            # What was written to it elsewhere is not known.
            known = tuple(each for each in process.checkpoints if each.ident != device.ident)
            self._write(attrs.evolve(others, attached=(*others.attached, device), checkpoints=known))

    def pull(self, name: str, ident: str) -> None:
        """Take a device away without asking, as when its addition is undone."""
        process = self.process(name)
        if process is not None:
            self._write(yielding.without(process, ident))

    def ask_for(self, name: str, ident: str) -> None:
        """Ask the guest to let go of a device."""
        process = self.process(name)
        if process is None or process.device(ident) is None:
            return
        asked = yielding.ask(process, ident, self.clock())
        device = asked.device(ident)
        if device is not None and device.refused:
            self.events.append(name, "DEVICE_UNPLUG_GUEST_ERROR", device=ident)
        self._write(asked)

    def resize(self, name: str, ident: str, size: int) -> None:
        """Let the guest see another size of a disk; the image itself is not touched."""
        process = self.process(name)
        if process is not None:
            grown = tuple(attrs.evolve(d, size=size) if d.ident == ident else d for d in process.attached)
            self._write(attrs.evolve(process, attached=grown))

    def inflate(self, name: str, memory: int | None) -> None:
        """Tell the balloon how much memory to leave to the guest."""
        process = self.process(name)
        if process is not None:
            target = process.memory_max if memory is None else memory
            self._write(yielding.aim(process, target, self.clock()))

    def behave(self, name: str, behaviour: GuestParameters) -> None:
        """Let the guest behave in another way from now on."""
        process = self.process(name)
        if process is not None:
            changed = attrs.evolve(yielding.settled(process, self.clock()), behaviour=behaviour)
            self._write(attrs.evolve(changed, media=_media(behaviour)))

    def disconnect(self, name: str, kind: str) -> None:
        """Make the client that is attached to a console go; the next in line is attached then."""
        process = self.process(name)
        first = None if process is None else next((client for client in process.clients if client.kind == kind), None)
        if process is not None and first is not None:
            clients = list(process.clients)
            clients.remove(first)
            self._write(attrs.evolve(process, clients=tuple(clients)))

    # What happens by itself

    def _leave(self, process: Process, *idents: str) -> None:
        self._write(yielding.without(process, *idents))
        for ident in idents:
            self.events.append(process.name, "DEVICE_DELETED", device=ident)

    def _let_go(self, process: Process, now: float) -> None:
        due = (d.ident for d in process.attached if d.leaves is not None and d.leaves <= now)
        self._leave(process, *due)


def devices_of(instance: Instance) -> tuple[Disk | Nic, ...]:
    """The disks of a definition, then its NICs."""
    return (*instance.disks, *instance.nics)


def attached_of(instance: Instance) -> tuple[Attached, ...]:
    """The disks and NICs of a definition, as a guest that is started with it has them."""
    return tuple(map(as_attached, devices_of(instance)))


def backends_of(instance: Instance) -> tuple[Backend, ...]:
    """What is behind the disks and NICs of a definition."""
    return tuple(map(as_backend, devices_of(instance)))


def media_of(instance: Instance) -> tuple[str, ...]:
    """What is in the removable drives of a definition."""
    return _media(guest_parameters(instance))


def as_attached(device: Disk | Nic) -> Attached:
    """A disk or NIC whose uuid is known, as a guest has it."""
    if isinstance(device, Nic):
        return Attached(ident=device.uuid or "", kind="nic")
    return Attached(ident=device.uuid or "", kind="disk", size=_size(device))


def as_backend(device: Disk | Nic) -> Backend:
    """What is behind a disk or NIC whose uuid is known.

    Raises:
        HypervisorRefused: the modelled hypervisor cannot read the image.
    """
    if isinstance(device, Nic):
        return Backend(ident=device.uuid or "", source=f"{device.mode}:{device.link or ''}")
    version = _header(device)[0] if device.format == "qcow2" else 0
    if version > NEWEST_QCOW2:
        raise HypervisorRefused("open", "GenericError", f"Unsupported qcow2 version {version} of {device.path}")
    identity = "" if device.path is None else image_identity(device.path)
    source = device.path or device.uri or ""
    key = _key(device)
    return Backend(ident=device.uuid or "", source=source, format=device.format, identity=identity, key=key)


def _key(disk: Disk) -> str:
    """What opens the image of an encrypted disk; empty for one that is not."""
    secret_file = secret_of(disk)
    if secret_file is None or disk.path is None:
        return ""
    try:
        key = key_of(secret_file)
        read_disk(disk.path, disk.format, key)
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise HypervisorRefused("open", "GenericError", f"{disk.path}: {words}") from error
    return key


def _media(behaviour: GuestParameters) -> tuple[str, ...]:
    return tuple(drive.path or "" for drive in behaviour.cdroms)


def _size(disk: Disk) -> int:
    if disk.path is None:
        return DISK_SIZE
    if disk.format == "qcow2":
        return _header(disk)[1] or DISK_SIZE
    try:
        header = 0 if secret_of(disk) is None else HEADER
        return max(0, os.stat(disk.path).st_size - header) or DISK_SIZE
    except OSError:
        return DISK_SIZE


def _header(disk: Disk) -> tuple[int, int]:
    """Version and size that a qcow2 image says it has; 0 for what it does not say."""
    try:
        with open(disk.path or "", "rb") as file:
            _, version, size = _HEADER.unpack(file.read(_HEADER.size))
    except (OSError, struct.error):
        return 0, 0
    return version, min(size, 2**63 - 1)
