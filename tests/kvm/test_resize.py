"""Disks grow while the guest runs: the guest sees it, the file holds it, and what cannot be is refused."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import Deadline, Disk
from hvcore_kvm.qmp import QmpClient

pytestmark = pytest.mark.qemu

MIB = 1 << 20
ROOT = os.geteuid() == 0
MODELS = ["none", "confined"] if ROOT else ["none"]
LIMITS = {"throttle": {"iops_total": 5000}}


def _uuid(number: int) -> str:
    return f"dd000000-0000-4000-8000-{number:012x}"


def _virtual_size(path: str) -> int:
    """What qemu-img says of an image that is in use."""
    done = subprocess.run(["qemu-img", "info", "-U", "--output=json", path], capture_output=True, check=True)
    return int(json.loads(done.stdout)["virtual-size"])


def _codes(raised: Any) -> set[tuple[str, str]]:
    return {(finding.code, finding.path) for finding in raised.value.findings}


@pytest.mark.linux
@pytest.mark.parametrize("model", MODELS)
def test_a_guest_sees_its_disks_grow(host: Any, boot: Any, model: str) -> None:
    """Raw and qcow2, with limits and without, of a QEMU that may open nothing; and it can write what is new."""
    disks = [
        host.raw_disk("plain.raw", 4 * MIB),
        attrs.evolve(host.raw_disk("limited.raw", 4 * MIB), params=LIMITS),
        host.qcow2_disk("plain.qcow2"),
        attrs.evolve(host.qcow2_disk("limited.qcow2"), params={**LIMITS, "iothread": 0}),
        attrs.evolve(host.raw_disk("scsi.raw", 4 * MIB), params={"bus": "scsi"}),
    ]
    disks = [attrs.evolve(disk, uuid=_uuid(index)) for index, disk in enumerate(disks, 1)]
    shell = boot("pc", disks=disks, security_model=model, params={"iothreads": 1})
    for name, disk, size in zip(("vda", "vdb", "vdc", "vdd"), disks, (16, 17, 18, 19), strict=False):
        before = 8 * MIB if disk.format == "qcow2" else 4 * MIB
        grown = host.driver.resize_disk("web1", disk.uuid, size * MIB)
        assert grown == hvcore.ResizeResult(device=disk.uuid, before=before, after=size * MIB)
        shell.wait(f"[ $(cat /sys/block/{name}/size) = {size * MIB // 512} ]")
        assert _virtual_size(disk.path) == size * MIB
        # The last sector is there.
        last = f"echo last >/tmp/t; dd if=/tmp/t of=/dev/{name} bs=512 seek={size * MIB // 512 - 1} conv=fsync,notrunc"
        assert shell.run(f"{last} 2>/dev/null && echo written") == "written"
    assert os.stat(disks[0].path).st_size == 16 * MIB
    host.driver.resize_disk("web1", disks[4].uuid.upper(), 16 * MIB)
    shell.run("echo 1 >/sys/block/sda/device/rescan")
    shell.wait(f"[ $(cat /sys/block/sda/size) = {16 * MIB // 512} ]")
    # What it has already is told to the guest again, and is no error.
    again = host.driver.resize_disk("web1", disks[0].uuid, 16 * MIB)
    assert (again.before, again.after) == (16 * MIB, 16 * MIB)


def test_what_is_wrong_is_said_at_once(host: Any) -> None:
    """Unknown disks, NICs, sizes that cannot be; nothing of it changes anything."""
    disks = [
        attrs.evolve(host.raw_disk("a.raw", 4 * MIB), uuid=_uuid(1)),
        attrs.evolve(host.raw_disk("b.raw", 4 * MIB), uuid=_uuid(2), read_only=True),
    ]
    host.driver.start_instance(host.instance(disks=disks, nics=[hvcore.Nic(uuid=_uuid(3))]))

    def refused(uuid: str, size: Any) -> set[tuple[str, str]]:
        with pytest.raises(hvcore.InvalidParameters) as raised:
            host.driver.resize_disk("web1", uuid, size)
        return _codes(raised)

    assert refused(_uuid(9), 5 * MIB + 1) == {("no-such-device", "device"), ("invalid-value", "size")}
    assert refused(_uuid(3), 5 * MIB) == {("no-disk", "device")}
    assert refused("../x\n", 5 * MIB) == {("no-such-device", "device")}
    assert refused(_uuid(1), 3 * MIB) == {("shrinking", "size")}
    assert refused(_uuid(2), 3 * MIB - 1) == {("read-only", "device"), ("shrinking", "size"), ("invalid-value", "size")}
    assert refused(_uuid(1), 1 << 60) == {("no-space", "size")}
    for size in (True, "5MiB", 5.0, 0, -512, 1 << 63, None):
        assert refused(_uuid(1), size) == {("invalid-value", "size")}
    assert [os.stat(disk.path).st_size for disk in disks] == [4 * MIB, 4 * MIB]
    host.driver.stop_instance("web1", force=True)
    with pytest.raises(hvcore.NotRunning):
        host.driver.resize_disk("web1", _uuid(1), 5 * MIB)


@pytest.mark.linux
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("order", [("second", "first"), ("first", "second")])
def test_disks_with_overlays_grow(host: Any, boot: Any, model: str, order: tuple[str, str]) -> None:
    """The guest sees it and writes to the new end; the images below grow when the overlays are committed."""
    disks = [
        host.raw_disk("plain.raw", 4 * MIB),
        attrs.evolve(host.raw_disk("limited.raw", 4 * MIB), params=LIMITS),
        attrs.evolve(host.qcow2_disk("limited.qcow2"), params={**LIMITS, "iothread": 0}),
    ]
    disks = [attrs.evolve(disk, uuid=_uuid(index)) for index, disk in enumerate(disks, 1)]
    names = ("vda", "vdb", "vdc")
    shell = boot("q35", disks=disks, security_model=model, params={"iothreads": 1})
    shell.wait("[ -b /dev/vdc ]")
    before = [4, 4, 8]
    for size, snapshot in ((16, "first"), (32, "second")):
        host.driver.create_snapshot("web1", snapshot, external=True)
        for index, (name, disk) in enumerate(zip(names, disks, strict=True)):
            grown = host.driver.resize_disk("web1", disk.uuid, size * MIB)
            assert (grown.before, grown.after) == (before[index] * MIB, size * MIB)
            assert _virtual_size(disk.path) == (8 if disk.format == "qcow2" else 4) * MIB
            shell.wait(f"[ $(cat /sys/block/{name}/size) = {size * MIB // 512} ]")
            last = f"head -c 65536 /dev/urandom | dd of=/dev/{name} bs=65536 seek={size * 16 - 1} conv=fsync,notrunc"
            shell.run(f"{last} 2>/dev/null")
        before = [size] * 3
    drop = "echo 3 >/proc/sys/vm/drop_caches"
    sums = [shell.run(f"{drop}; sha256sum </dev/{name}").split()[0] for name in names]
    for snapshot in order:
        host.driver.delete_snapshot("web1", snapshot)
        assert [shell.run(f"{drop}; sha256sum </dev/{name}").split()[0] for name in names] == sums
    host.driver.stop_instance("web1", force=True)
    for disk, wanted in zip(disks, sums, strict=True):
        assert _virtual_size(disk.path) == 32 * MIB
        raw = host.directory / "content.raw"
        subprocess.run(["qemu-img", "convert", "-f", disk.format, "-O", "raw", disk.path, str(raw)], check=True)
        found = subprocess.run(["sha256sum", str(raw)], capture_output=True, text=True, check=True).stdout
        assert found.split()[0] == wanted


@pytest.mark.parametrize("newer", [False, True])
def test_a_disk_that_has_grown_upon_an_image_that_has_not(host: Any, request: Any, newer: bool) -> None:
    """It starts again as large, can be committed without a guest, and a revert makes it what it was."""
    program = {"qemu": request.getfixturevalue("newer_qemu")} if newer else {}
    disks = [
        attrs.evolve(host.raw_disk("a.raw", 4 * MIB), uuid=_uuid(1)),
        attrs.evolve(host.qcow2_disk("b.qcow2"), uuid=_uuid(2), params=LIMITS),
    ]
    definition = host.instance(disks=disks, params=program)
    host.driver.start_instance(definition)
    host.driver.create_snapshot("web1", "first", external=True)
    for _ in range(2):
        for disk, size in zip(disks, (4, 8), strict=True):
            assert host.driver.resize_disk("web1", disk.uuid, 16 * MIB).before == size * MIB
        host.driver.stop_instance("web1", force=True)
        host.driver.start_instance(definition)
        for disk in disks:
            assert host.driver.resize_disk("web1", disk.uuid, 16 * MIB).before == 16 * MIB
        host.driver.stop_instance("web1", force=True)
        host.driver.revert_snapshot("web1", "first")
        host.driver.start_instance(definition)
    for disk in disks:
        host.driver.resize_disk("web1", disk.uuid, 12 * MIB)
    host.driver.stop_instance("web1", force=True)
    host.driver.delete_snapshot("web1", "first")
    assert [_virtual_size(disk.path) for disk in disks] == [12 * MIB] * 2
    host.driver.start_instance(definition)


def test_with_a_newer_qemu(host: Any, newer_qemu: str) -> None:
    """The filter and the image below it grow together there, too."""
    disk = attrs.evolve(host.raw_disk("a.raw", 4 * MIB), uuid=_uuid(1), params=LIMITS)
    host.driver.start_instance(host.instance(disks=[disk], params={"qemu": newer_qemu}))
    host.driver.resize_disk("web1", disk.uuid, 6 * MIB)
    with QmpClient.connect(str(host.directory / "state/kvm/instances/web1/query"), Deadline.after(20)) as client:
        rows = client.execute("query-named-block-nodes", {"flat": True}, deadline=Deadline.after(20))
    assert {row["drv"]: row["image"]["virtual-size"] for row in rows} == dict.fromkeys(
        ("throttle", "raw", "file"), 6 * MIB
    )


def test_an_encrypted_disk(host: Any) -> None:
    """What the guest has grows; the header is on top of it."""
    secret = host.directory / "secret"
    secret.write_text("open sesame\n")
    path = host.luks_image("disk.luks", "open sesame", 4 * MIB)
    params = {"encryption": True, "secret_file": str(secret)}
    disk = Disk(uuid=_uuid(1), path=str(path), format="raw", params=params)
    host.driver.start_instance(host.instance(disks=[disk]))
    before = os.stat(path).st_size
    grown = host.driver.resize_disk("web1", disk.uuid, 6 * MIB)
    assert (grown.before, grown.after) == (4 * MIB, 6 * MIB)
    assert os.stat(path).st_size == before + 2 * MIB


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A block device of the host, and the file behind it."""
    image = tmp_path / "device.raw"
    with image.open("wb") as file:
        file.truncate(4 * MIB)
    made = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"loop devices cannot be made: {made.stderr.strip()}")
    name = made.stdout.strip()
    yield name, image
    subprocess.run(["losetup", "--detach", name], check=True)


@pytest.fixture
def host_on_device(block_device: Any, make_host: Any) -> Any:
    """A host that is taken down before the device."""
    return make_host()


@pytest.mark.parametrize("model", MODELS)
def test_a_block_device_has_to_grow_first(host_on_device: Any, block_device: tuple[str, Path], model: str) -> None:
    """The disk is the whole of it: neither more, nor less."""
    host, (path, image) = host_on_device, block_device
    disk = Disk(uuid=_uuid(1), path=path, format="raw")
    host.driver.start_instance(host.instance(disks=[disk], security_model=model))
    with pytest.raises(hvcore.InvalidParameters, match="grow /dev/loop[0-9]+ first") as raised:
        host.driver.resize_disk("web1", disk.uuid, 8 * MIB)
    assert _codes(raised) == {("device-size", "size")}
    with image.open("r+b") as file:
        file.truncate(8 * MIB)
    subprocess.run(["losetup", "--set-capacity", path], check=True)
    with pytest.raises(hvcore.InvalidParameters, match=f"give the size it has: {8 * MIB} bytes"):
        host.driver.resize_disk("web1", disk.uuid, 6 * MIB)
    assert host.driver.resize_disk("web1", disk.uuid, 8 * MIB).after == 8 * MIB


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An NBD server with an image of 4 MiB, on a UNIX socket."""
    image, path = tmp_path / "served.raw", tmp_path / "nbd"
    with image.open("wb") as file:
        file.truncate(4 * MIB)
    words = ["qemu-nbd", "--fork", "-f", "raw", "-k", str(path), "--pid-file", str(tmp_path / "nbd.pid"), str(image)]
    subprocess.run(words, check=True)
    path.chmod(0o666)  # for a QEMU of another user
    pid = os.pidfd_open(int((tmp_path / "nbd.pid").read_text()))
    yield str(path)
    # It ends with its last client; without one it has to be told.
    if not select.select([pid], [], [], 0)[0]:
        signal.pidfd_send_signal(pid, signal.SIGTERM)
    assert select.select([pid], [], [], 30)[0], "the server does not end"
    os.close(pid)


@pytest.fixture
def host_on_server(server: str, make_host: Any) -> Any:
    return make_host()


def test_what_qemu_refuses_is_said_in_its_words(host_on_server: Any, server: str) -> None:
    """A server's image grows at the server."""
    host = host_on_server
    disk = Disk(uuid=_uuid(1), uri=f"nbd+unix:///?socket={server}", format="raw")
    host.driver.start_instance(host.instance(disks=[disk]))
    with pytest.raises(hvcore.HypervisorRefused, match="Cannot grow NBD nodes") as raised:
        host.driver.resize_disk("web1", disk.uuid, 8 * MIB)
    assert raised.value.request == "block_resize"
    assert raised.value.hint == "grow it at its server first"


def test_a_qemu_that_does_not_answer(host: Any) -> None:
    """Nothing was asked of one that does not greet; the error says so, by the deadline."""
    disk = attrs.evolve(host.raw_disk("a.raw", 4 * MIB), uuid=_uuid(1))
    host.driver.start_instance(host.instance(disks=[disk]))
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(host.directory / "state/kvm/instances/web1", os.O_PATH)
    try:
        # A monitor serves one client at a time.
        held.connect(f"/proc/self/fd/{directory}/control")
        assert held.recv(1)
        with pytest.raises(hvcore.DeadlineExceeded):
            host.driver.resize_disk("web1", disk.uuid, 8 * MIB, timeout=1.0)
    finally:
        os.close(directory)
        held.close()
    assert os.stat(disk.path).st_size == 4 * MIB
    assert host.driver.resize_disk("web1", disk.uuid, 8 * MIB).before == 4 * MIB
