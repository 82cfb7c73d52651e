"""What every part of the hardware is built with: options, descriptors, secrets, places, shared controllers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from hvcore import Finding
from hvcore_kvm import process
from hvcore_kvm.command_line import Option, PlaceRequest, device, json_option, keyed
from hvcore_kvm.companions import Companion
from hvcore_kvm.families import FdRequest
from hvcore_kvm.placement import (
    ROOT_PORT,
    Board,
    Place,
    family_of,
    place_devices,
    placement,
    root_ports,
    sata_controllers,
)
from hvcore_kvm.runtime import Placement
from hvcore_kvm.secrets import check_secret, open_secret

if TYPE_CHECKING:
    from hvcore_kvm.directory import InstanceDirectory
    from hvcore_kvm.launch_plan import Decisions

VIRTIO_SERIAL = "virtio-serial0"
USB = "usb0"
RNG_PLACE = "driver/rng"
"""Identity under which the place of the source of randomness is kept."""


def device_id(kind: str, uuid: str) -> str:
    """The id of a device in QEMU: short enough for a block node (31 characters), distinct for distinct uuids."""
    return f"{kind}-{uuid[:8].lower()}-{digest_of(uuid.lower())}"


def digest_of(name: str) -> str:
    """Twelve characters that are distinct for distinct names."""
    return hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=6).hexdigest()


class Builder:
    """Collects everything a start needs. Use it once.

    Args:
        decisions: what was decided.
        directory: the instance's directory; it need not exist.
        occupied: places of devices that are there and are not built.
    """

    def __init__(self, decisions: Decisions, directory: InstanceDirectory, occupied: Iterable[str] = ()) -> None:
        self.decisions = decisions
        self._occupied = occupied
        self.definition = decisions.definition
        self.capabilities = decisions.capabilities
        self.directory = directory
        self.family = family_of(decisions.machine) or "q35"
        self.options: list[Option] = []
        self.fds: list[FdRequest] = []
        self.companions: list[Companion] = []
        self.findings: list[Finding] = []
        self.paths: list[str] = []
        self.ports, self._pluggable = self._plan_ports()
        self.logs: dict[str, int] = {}
        self._fdsets = 0
        self._once: set[str] = set()

    def add(self, *options: Option) -> None:
        """Add options."""
        self.options += options

    def device(
        self,
        driver: str,
        ident: str,
        properties: Mapping[str, Any] | None = None,
        *,
        uuid: str | None = None,
        space: str = "pci",
        function: int | None = None,
        origin: str,
    ) -> None:
        """Add a device that gets a place on a bus.

        Args:
            driver: QEMU's name of the type.
            ident: its id.
            properties: its properties; ``None`` values are left out.
            uuid: identity under which its place is kept; ``driver/ID`` when not given.
            space: the places it can take.
            function: which function of a PCI device with several.
            origin: what in the definition it comes from.
        """
        given = {key: value for key, value in (properties or {}).items() if value is not None}
        if space in ("pci", "virtio") and uuid in self._pluggable:
            space = "port"
        request = PlaceRequest(uuid=uuid or f"driver/{ident}", space=space, function=function)
        self.add(device(driver, ident, given, place=request, origin=origin))

    def virtio(
        self,
        kind: str,
        ident: str,
        properties: Mapping[str, Any] | None = None,
        *,
        uuid: str | None = None,
        origin: str,
    ) -> None:
        """Add a virtio device on the bus this machine has for them."""
        driver = f"virtio-{kind}-{'device' if self.family == 'microvm' else 'pci'}"
        self.device(driver, ident, properties, uuid=uuid, space="virtio", origin=origin)

    def first_time(self, what: str) -> bool:
        """Whether this is the first question for something that is added once."""
        new = what not in self._once
        self._once.add(what)
        return new

    def virtio_serial(self, origin: str = "driver") -> str:
        """Name of the bus of the one virtio-serial controller."""
        if self.first_time(VIRTIO_SERIAL):
            self.virtio("serial", VIRTIO_SERIAL, origin=origin)
        return f"{VIRTIO_SERIAL}.0"

    def usb_bus(self, origin: str = "driver") -> str:
        """Name of the bus of the one USB controller."""
        if self.first_time(USB):
            kind = self.definition.devices.usb_controller or "xhci"
            driver = {"xhci": "qemu-xhci", "ehci": "usb-ehci", "uhci": "piix3-usb-uhci"}[kind]
            self.device(
                driver, USB, origin="params.usb_controller" if self.definition.devices.usb_controller else origin
            )
        return f"{USB}.0"

    def fd(self, request: FdRequest) -> int:
        """The number a descriptor will have in the QEMU process."""
        self.fds.append(request)
        return process.FIRST_FD + len(self.fds) - 1

    def fdset(self, request: FdRequest, origin: str) -> str:
        """A path by which QEMU opens a descriptor it is given."""
        self._fdsets += 1
        values = {"fd": self.fd(request), "set": self._fdsets, "opaque": request.name}
        self.add(keyed("add-fd", None, values, origin=origin))
        return f"/dev/fdset/{self._fdsets}"

    def reads(self, path: str) -> None:
        """Say that QEMU opens something of the host by its path."""
        if path not in self.paths:
            self.paths.append(path)

    def listen(self, name: str) -> int:
        """A listening UNIX socket in the instance's directory."""
        directory = self.directory
        request = FdRequest(name=name, purpose="listening UNIX socket", open=lambda: directory.listen(name))
        return self.fd(request)

    def log(self, name: str, limit: int, origin: str = "consoles") -> str:
        """A file in the instance's directory that QEMU appends to and that is held to a size; returns its path."""
        directory = self.directory
        self.logs[name] = limit
        request = FdRequest(name=name, purpose="file QEMU appends to", open=lambda: directory.append_only(name))
        return self.fdset(request, origin)

    def secret(self, ident: str, path: str, origin: str) -> None:
        """Add a secret object: QEMU reads it from a descriptor, so that it is in no argument list."""
        self.findings += check_secret(path, origin)
        request = FdRequest(name=ident, purpose=f"secret from {path}", open=lambda: open_secret(path))
        # QEMU opens it again by this path, which works for a file in memory whoever QEMU runs as.
        values = {"qom-type": "secret", "id": ident, "file": f"/proc/self/fd/{self.fd(request)}"}
        self.add(json_option("object", values, origin=origin))

    def placed(self) -> tuple[tuple[Option, ...], Placement]:
        """All options, every device on its place, and the record of the places."""
        requests = [option.place for option in self.options if option.place is not None]
        machine, kept = self.decisions.machine, self.decisions.kept
        board = self._board(requests)
        places, findings = place_devices(board, machine, requests, kept, self._occupied)
        self.findings += findings
        options = []
        for option in self.options:
            place = places.get(option.place.uuid) if option.place is not None else None
            if place is not None and option.place is not None:
                head = {key: option.value[key] for key in ("driver", "id")}
                properties = {**place.properties, **_function(place, option.place)}
                option = attrs.evolve(option, value={**head, **properties, **option.value}, place=None)
            options.append(option)
        return tuple(options), placement(machine, places, kept)

    def _board(self, requests: Iterable[PlaceRequest]) -> Board:
        sata = sum(request.space == "sata" for request in requests)
        return Board(
            family=self.family,
            reservations=self.definition.machine.pci_reservations,
            sata_controllers=sata_controllers(self.family, sata),
            scsi=self.definition.storage.scsi_controller,
            ports=self.ports,
        )

    def _plan_ports(self) -> tuple[int, frozenset[str]]:
        """How many root ports there are, and which devices sit behind one."""
        definition = self.definition
        if self.family not in ("q35", "virt") or not definition.machine.hotplug_ports:
            return 0, frozenset()
        devices = [disk.disk.uuid for disk in definition.disks if disk.parameters.bus in ("virtio-blk", "nvme")]
        devices += [nic.nic.uuid for nic in definition.nics if nic.parameters.model != "usb-net"]
        if definition.devices.rng and self._has_pluggable_rng():
            devices.append(RNG_PLACE)
        uuids = [uuid for uuid in devices if uuid is not None]
        ports = self.decisions.ports
        if ports is None:
            ports = root_ports(self.decisions.kept, uuids, definition.machine.hotplug_ports)
        return ports, frozenset(uuids)

    def _has_pluggable_rng(self) -> bool:
        """Whether the source of randomness is plugged while the guest runs, or has been; else it is on the root bus."""
        kept = self.decisions.kept
        before = kept.addresses.get(RNG_PLACE, "") if kept is not None else ""
        return RNG_PLACE in self.decisions.plugged or before.startswith(ROOT_PORT)

    def join(self, name: str) -> str:
        """Path of something in the instance's directory."""
        return os.path.join(self.directory.path, name)


def _function(place: Place, request: PlaceRequest) -> dict[str, Any]:
    """The properties that make a device one function of several in its slot."""
    if request.function is None:
        return {}
    more = {"multifunction": True} if request.function == 0 else {}
    return {"addr": f"{place.index:#x}.{request.function}", **more}
