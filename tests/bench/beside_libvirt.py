"""Attaching and detaching a disk and a NIC, beside libvirt doing the same to the same guest on the same QEMU."""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import hvcore
from hvcore.guests import LINUX_COMMAND_LINE, LINUX_READY_MARKER, build_linux_guest
from tests.bench.host import Host
from tests.bench.libvirt_domain import LibvirtDomain
from tests.bench.rows import Row, side_by_side

_MEMORY = 192
_PATIENCE = 300.0
_SETTLED = 1.0
"""Seconds in which a guest has taken in a device: one that is asked for it sooner answers later."""


def measure(host: Host, *, quick: bool) -> Iterator[Row]:
    """Rows of attaching and detaching."""
    count = 1 if quick else 10
    cache = os.environ.get("HVCORE_TEST_CACHE") or str(Path.home() / ".cache" / "hvcore" / "guests")
    linux = build_linux_guest(Path(cache) / "linux")
    params = {"machine": "pc", "accel": "tcg", "kernel": str(linux.kernel), "initrd": str(linux.initrd)}
    params["cmdline"] = LINUX_COMMAND_LINE
    memory = hvcore.parse_size(f"{_MEMORY}MiB")
    instance = hvcore.Instance(name="bench", memory=memory, params=params, security_model="none")
    program = host.driver.plan_start(instance).program
    try:
        with LibvirtDomain(_domain(program), {"kernel": str(linux.kernel), "initrd": str(linux.initrd)}) as domain:
            _start(host, instance)
            _wait_ready(lambda: Path(f"{domain.directory}/serial").read_bytes())
            for name, ours, theirs in (
                ("disk", _disk(host), _libvirt_disk(domain.directory)),
                ("NIC", hvcore.Nic(uuid=str(uuid.uuid4())), _LIBVIRT_NIC),
            ):

                def plug() -> tuple[float, float]:
                    begun = time.perf_counter()
                    host.driver.hot_add_device("bench", ours)  # noqa: B023 - called in this turn of the loop only
                    added = time.perf_counter() - begun
                    time.sleep(_SETTLED)
                    begun = time.perf_counter()
                    host.driver.hot_del_device("bench", ours.uuid or "", timeout=_PATIENCE)  # noqa: B023
                    return added, time.perf_counter() - begun

                def attach() -> tuple[float, float]:
                    added = domain.attach(theirs)  # noqa: B023
                    time.sleep(_SETTLED)
                    return added, domain.detach(theirs)  # noqa: B023

                for what, pair in zip(("attach", "detach"), side_by_side(plug, attach, count), strict=True):
                    yield Row(
                        name=f"{what} a {name}, Linux guest",
                        unit="ms",
                        **pair.scaled(1e3),
                        against="libvirt, embedded driver",
                        samples=count,
                    )
    finally:
        host.driver.stop_instance("bench", force=True)


def _start(host: Host, instance: hvcore.Instance) -> None:
    host.driver.start_instance(instance, paused=True)
    path = host.driver.get_instance_console("bench").socket_path
    assert path is not None
    with socket.socket(socket.AF_UNIX) as console:
        console.settimeout(_PATIENCE)
        console.connect(path)
        host.driver.resume_instance("bench")
        seen = b""
        while LINUX_READY_MARKER not in seen:
            data = console.recv(4096)
            assert data, "the guest ended"
            seen += data


def _wait_ready(seen: Callable[[], bytes]) -> None:
    end = time.monotonic() + _PATIENCE
    while LINUX_READY_MARKER not in seen():
        assert time.monotonic() < end, "the guest of libvirt does not become ready"
        time.sleep(0.1)


def _disk(host: Host) -> hvcore.Disk:
    path = Path(host.directory) / "ours.raw"
    path.touch()
    os.truncate(path, 1 << 20)
    return hvcore.Disk(uuid=str(uuid.uuid4()), path=str(path), format="raw")


def _libvirt_disk(directory: str) -> str:
    path = f"{directory}/theirs.raw"
    with open(path, "wb") as file:
        file.truncate(1 << 20)
    shutil.chown(path, "nobody")
    return (
        "<disk type='file' device='disk'><driver name='qemu' type='raw' discard='unmap'/>"
        f"<source file='{path}'/><target dev='vda' bus='virtio'/></disk>"
    )


_LIBVIRT_NIC = "<interface type='user'><mac address='52:54:00:00:00:99'/><model type='virtio'/></interface>"


def _domain(program: str) -> str:
    return f"""\
<domain type='qemu'><name>bench</name><memory unit='MiB'>{_MEMORY}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type><kernel>{{directory}}/kernel</kernel>
<initrd>{{directory}}/initrd</initrd><cmdline>{LINUX_COMMAND_LINE}</cmdline></os>
<features><acpi/></features><cpu mode='maximum'/>
<devices><emulator>{program}</emulator><controller type='usb' model='none'/>
<serial type='file'><source path='{{directory}}/serial'/></serial><memballoon model='virtio'/></devices></domain>
"""
