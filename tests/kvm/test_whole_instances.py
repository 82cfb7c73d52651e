"""Whole instances, as people run them: from a definition, ours or Ganeti's, to a QEMU that says what it has.

Each is started with everything deprecated in QEMU refused, on the installed QEMU and on a newer one where the
distribution has it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from qemu_img import qemu_img

import hvcore
from hvcore import Deadline, Disk, Instance, Nic
from hvcore_kvm.affinity import host_thread_ids
from hvcore_kvm.ganeti import to_instance
from hvcore_kvm.qmp import QmpClient

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(170)]

STRICT = "-compat deprecated-input=reject,deprecated-output=hide"
# Several test processes run side by side.
_BRIDGE = f"hvw{os.getpid()}"


@attrs.define
class Scene:
    """A host with what the definitions name: images, secrets, directories, and a port that is free."""

    host: Any
    directory: Path
    port: int

    def image(self, name: str, kind: str = "raw", size: int = 1 << 20) -> str:
        path = self.directory / f"{name}.{kind}"
        if not path.exists():
            if kind == "raw":
                with path.open("wb") as file:
                    file.truncate(size)
            else:
                subprocess.run(["qemu-img", "create", "-q", "-f", kind, str(path), str(size)], check=True)
        return str(path)

    def kernel(self) -> str:
        """A file with the header of a Linux kernel (the x86 boot protocol), which QEMU loads and nobody runs."""
        image = bytearray(65536)
        image[0x1F1] = 4  # sectors of set-up code
        image[0x1FE:0x200] = b"\x55\xaa"
        image[0x202:0x206] = b"HdrS"
        image[0x206:0x208] = (0x020C).to_bytes(2, "little")
        image[0x211] = 1  # loaded high
        image[0x22C:0x230] = (0x37FFFFFF).to_bytes(4, "little")
        path = self.directory / "kernel"
        path.write_bytes(image)
        return str(path)

    def text(self, name: str, content: str) -> str:
        path = self.directory / name
        path.write_text(content)
        path.chmod(0o600)
        return str(path)

    def folder(self, name: str) -> str:
        path = self.directory / name
        path.mkdir(exist_ok=True)
        return str(path)

    def luks(self, name: str, secret: str) -> str:
        path = self.directory / f"{name}.luks"
        plain = self.text(f"{name}.key", secret)
        key = ("--object", f"secret,id=s,file={plain}", "-o", "key-secret=s,iter-time=10")
        qemu_img("create", "-q", "-f", "luks", *key, str(path), "1M")
        return str(path)

    def qmp(self, command: str, **arguments: Any) -> Any:
        path = str(self.directory / "state/kvm/instances/web1/query")
        with QmpClient.connect(path, Deadline.after(20)) as client:
            return client.execute(command, arguments, deadline=Deadline.after(20))

    def devices(self) -> set[str]:
        """Types of all devices that have an id."""
        found = self.qmp("qom-list", path="/machine/peripheral")
        return {row["type"][6:-1] for row in found if row["type"].startswith("child<")}


@attrs.frozen(kw_only=True)
class Whole:
    """One instance of the table.

    Attributes:
        name: what it is.
        definition: makes it.
        devices: types of devices that QEMU must say it has.
        machine: what its machine type begins with.
        root: it needs root.
        huge_pages: it needs free huge pages.
        needs: programs and files it needs.
        check: looks at more.
    """

    name: str
    definition: Callable[[Scene], Instance]
    devices: tuple[str, ...] = ()
    machine: str = "pc-q35-"
    root: bool = False
    huge_pages: bool = False
    needs: tuple[str, ...] = ()
    check: Callable[[Scene], bool] = lambda scene: True


def _ours(**given: Any) -> Callable[[Scene], Instance]:
    return lambda scene: _instance(scene, **given)


def _instance(scene: Scene, **given: Any) -> Instance:
    values = {key: value(scene) if callable(value) else value for key, value in given.items()}
    params = {"accel": "tcg", **values.pop("params", {})}
    return Instance(name="web1", memory=values.pop("memory", "64MiB"), params=params, **values)


def _ganeti(
    hvparams: Any, *, be: Any = None, disks: Any = (), nics: Any = (), port: bool = False
) -> Callable[[Scene], Instance]:
    def make(scene: Scene) -> Instance:
        given = hvparams(scene) if callable(hvparams) else hvparams
        translation = to_instance(
            "web1",
            {"kvm_flag": "disabled", "kvm_path": "/usr/bin/qemu-system-x86_64", "vhost_net": False, **given},
            be or {"maxmem": 64, "minmem": 64, "vcpus": 1},
            list(nics),
            disks(scene) if callable(disks) else list(disks),
            network_port=scene.port if port else None,
        )
        assert translation.instance is not None, list(translation.findings)
        # The program is the one under test.
        kept = {key: value for key, value in translation.instance.params.items() if key != "qemu"}
        return attrs.evolve(translation.instance, params=kept)

    return make


def _plain(name: str = "disk") -> Callable[[Scene], list[dict[str, Any]]]:
    return lambda scene: [{"uuid": _UUID, "path": scene.image(name), "dev_type": "plain", "mode": "rw"}]


_UUID = "932df160-7a22-4067-a566-7e0ca8386133"
_NIC = {"mac": "aa:00:00:35:d0:bd", "uuid": "6f0e2c0e-6f7c-4b7e-8a51-2b4c7b0a1a10", "mode": "bridged", "link": _BRIDGE}
_OVMF = "/usr/share/qemu/firmware"


def _affinity(scene: Scene, vcpu: int) -> str:
    thread = scene.qmp("query-cpus-fast")[vcpu]["thread-id"]
    return str(sorted(os.sched_getaffinity(host_thread_ids(scene.host.pid())[thread])))


def _huge(scene: Scene) -> int:
    """Bytes of huge pages that the process has, as the kernel counts them."""
    lines = Path(f"/proc/{scene.host.pid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("HugetlbPages:"))


WHOLE = (
    Whole(name="nothing but the defaults", definition=_ours(), devices=("pvpanic-pci", "virtio-rng-pci")),
    Whole(
        name="Linux server with a kernel booted directly",
        definition=_ours(
            params=lambda s: {
                "kernel": s.kernel(),
                "initrd": s.image("initrd"),
                "cmdline": "console=ttyS0 a=b,c",
            },
            disks=lambda s: [Disk(path=s.image("root", "qcow2"), format="qcow2")],
            nics=(Nic(),),
        ),
        devices=("virtio-blk-pci", "virtio-net-pci"),
        check=lambda s: s.qmp("qom-get", path="/machine", property="append") == "console=ttyS0 a=b,c",
    ),
    Whole(
        name="Windows-like: q35, UEFI with Secure Boot, TPM, SATA disk and CD, SPICE, sound",
        definition=_ours(
            params=lambda s: {
                "firmware": "uefi-secure",
                "tpm": "crb",
                "sound": "hda",
                "rtc_base": "localtime",
                "rtc_driftfix": True,
                "cdroms": [{"path": s.image("install")}, {}],
                "vmgenid": True,
                "smbios": {"manufacturer": "Example, Inc."},
            },
            memory="128MiB",
            vcpus=2,
            consoles=("spice",),
            disks=lambda s: [Disk(path=s.image("system", "qcow2"), format="qcow2", params={"bus": "sata"})],
            nics=(Nic(params={"model": "e1000e"}),),
        ),
        devices=("ide-hd", "ide-cd", "tpm-crb", "ich9-intel-hda", "qxl-vga", "usb-tablet", "e1000e", "vmgenid"),
        needs=("swtpm", _OVMF),
        check=lambda s: s.qmp("query-tpm")[0]["model"] == "tpm-crb" and s.qmp("query-spice")["enabled"],
    ),
    Whole(
        name="database: huge pages, pinned, I/O threads, io_uring, throttled log disk",
        root=True,
        needs=("/sys/kernel/mm/hugepages/hugepages-2048kB",),
        huge_pages=True,
        definition=_ours(
            params={
                "memory_backend": "hugepages",
                "hugepage_size": "2MiB",
                "cpu_pin": "0:0",
                "emulator_pin": "0",
                "iothread_pin": "0",
                "iothreads": 2,
                "throttle_groups": {"logs": {"iops_total": 500, "iops_burst": 1000}},
            },
            vcpus=2,
            disks=lambda s: [
                Disk(path=s.image("data"), format="raw", params={"aio": "io_uring", "cache": "none", "iothread": 0}),
                Disk(path=s.image("log"), format="raw", params={"iothread": 1, "throttle_group": "logs"}),
            ],
        ),
        devices=("virtio-blk-pci",),
        check=lambda s: (
            _affinity(s, 1) == "[0]"
            and len(s.qmp("query-iothreads")) == 2
            and _huge(s) == s.qmp("query-memdev")[0]["size"]
        ),
    ),
    Whole(
        name="tiny: microvm without anything",
        machine="microvm",
        definition=_ours(
            memory="32MiB",
            params={"machine": "microvm", "balloon": False, "rng": False, "guest_agent": False, "panic_device": False},
        ),
        check=lambda s: s.devices() <= {"isa-serial"},
    ),
    Whole(
        name="microvm with disk, SCSI disk and NIC",
        machine="microvm",
        definition=_ours(
            params={"machine": "microvm"},
            disks=lambda s: [
                Disk(path=s.image("a"), format="raw"),
                Disk(path=s.image("b"), format="raw", params={"bus": "scsi"}),
            ],
            nics=(Nic(),),
        ),
        devices=("virtio-blk-device", "scsi-hd", "virtio-net-device"),
    ),
    Whole(
        name="aarch64 with UEFI, TPM, NIC",
        machine="virt-",
        definition=_ours(
            params={"arch": "aarch64", "tpm": "tis", "watchdog": "i6300esb"},
            memory="128MiB",
            disks=lambda s: [Disk(path=s.image("arm", "qcow2"), format="qcow2")],
            nics=(Nic(),),
        ),
        devices=("virtio-blk-pci", "tpm-tis-device", "virtio-net-pci"),
        needs=("qemu-system-aarch64", "swtpm", "/usr/share/AAVMF"),
    ),
    Whole(
        name="aarch64 with a kernel booted directly and a graphical console",
        machine="virt-",
        definition=_ours(
            params=lambda s: {"arch": "aarch64", "kernel": s.image("kernel"), "cmdline": "console=ttyAMA0"},
            consoles=("serial", "vnc"),
        ),
        devices=("virtio-gpu-pci", "usb-tablet"),
        needs=("qemu-system-aarch64",),
    ),
    Whole(
        name="encrypted disk",
        definition=_ours(
            disks=lambda s: [
                Disk(
                    path=s.luks("crypt", "sesame"),
                    format="raw",
                    params={"encryption": True, "secret_file": s.text("key", "sesame\n")},
                )
            ]
        ),
        check=lambda s: any(node["drv"] == "luks" for node in s.qmp("query-named-block-nodes")),
    ),
    Whole(
        name="file server: many SCSI disks on two controllers, NVMe cache",
        definition=_ours(
            params={"scsi_controller": "virtio-scsi"},
            disks=lambda s: [
                *(
                    Disk(path=s.image(f"d{i}"), format="raw", params={"bus": "scsi", "controller": i % 2})
                    for i in range(10)
                ),
                Disk(path=s.image("cache"), format="raw", params={"bus": "nvme"}),
            ],
        ),
        devices=("scsi-hd", "nvme", "virtio-scsi-pci"),
        check=lambda s: len([1 for row in s.qmp("query-block") if row["qdev"].startswith("disk-")]) == 11,
    ),
    Whole(
        name="NUMA with memory nodes, CPU topology and room to grow",
        definition=_ours(
            memory="128MiB",
            vcpus=4,
            params={
                "vcpus_max": 8,
                "topology": {"sockets": 2, "cores": 4, "threads": 1},
                "memory_max": "1GiB",
                "memory_slots": 4,
                "numa": [
                    {"cpus": "0-3", "memory": "64MiB", "host_nodes": [0], "policy": "bind"},
                    {"cpus": "4-7", "memory": "64MiB"},
                ],
            },
        ),
        check=lambda s: len(s.qmp("query-memdev")) == 2 and len(s.qmp("query-hotpluggable-cpus")) == 8,
    ),
    Whole(
        name="shared directory for containers",
        definition=_ours(params=lambda s: {"shares": [{"tag": "home", "path": s.folder("home")}]}),
        devices=("vhost-user-fs-pci",),
        root=True,
        needs=("virtiofsd",),
    ),
    Whole(
        name="desktop with VNC, every pointer, CD changer and floppy",
        machine="pc-i440fx-",
        definition=_ours(
            params=lambda s: {
                "machine": "pc",
                "display_device": "virtio",
                "keymap": "de",
                "usb": [{"type": "keyboard"}, {"type": "mouse"}],
                "cdroms": [{"path": s.image("cd1")}, {"path": s.image("cd2")}, {}],
                "floppy": s.image("floppy", size=1474560),
                "boot": ["floppy", "cdroms"],
                "sound": "ac97",
                "serial_ports": 2,
            },
            consoles=("serial", "vnc"),
        ),
        devices=("virtio-vga", "usb-kbd", "usb-mouse", "usb-tablet", "ide-cd", "floppy", "AC97", "isa-serial"),
    ),
    Whole(
        name="router with many NICs",
        definition=_ours(nics=tuple(Nic(params={"model": m}) for m in ("virtio-net", "e1000", "e1000e", "rtl8139"))),
        devices=("virtio-net-pci", "e1000", "e1000e", "rtl8139"),
    ),
    Whole(
        name="x86-64-v2 guest with a watchdog and an IOMMU",
        definition=_ours(
            params={
                "cpu_model": "x86-64-v2",
                "watchdog": "i6300esb",
                "watchdog_action": "poweroff",
                "iommu": "intel",
                "nested": False,
            }
        ),
        devices=("i6300esb", "intel-iommu"),
    ),
    Whole(
        name="confined to an empty root directory",
        definition=_ours(
            params={"chroot": True}, disks=lambda s: [Disk(path=s.image("c"), format="raw")], nics=(Nic(),)
        ),
        root=True,
        check=lambda s: os.readlink(f"/proc/{s.host.pid()}/root").endswith("/instances/web1/root"),
    ),
    Whole(name="Ganeti: defaults", machine="pc-i440fx-", definition=_ganeti({}, disks=_plain())),
    Whole(
        name="Ganeti: kernel, initrd and root device, on a bridge",
        machine="pc-i440fx-",
        definition=_ganeti(
            lambda s: {"kernel_path": s.kernel(), "initrd_path": s.image("initrd")}, disks=_plain(), nics=[_NIC]
        ),
        devices=("virtio-net-pci",),
        root=True,
        check=lambda s: s.qmp("qom-get", path="/machine", property="append") == "root=/dev/vda1 ro console=ttyS0,38400",
    ),
    Whole(
        name="Ganeti: installation from CD with VNC",
        machine="pc-i440fx-",
        definition=_ganeti(
            lambda s: {
                "boot_order": "cdrom",
                "cdrom_image_path": s.image("iso"),
                "cdrom_disk_type": "ide",
                "vnc_bind_address": "127.0.0.1",
                "vga": "std",
                "usb_mouse": "tablet",
            },
            disks=_plain(),
            port=True,
        ),
        devices=("ide-cd", "VGA", "usb-tablet"),
        check=lambda s: s.qmp("query-vnc")["service"] == str(s.port),
    ),
    Whole(
        name="Ganeti: SPICE with a password, sound and agent",
        machine="pc-i440fx-",
        definition=_ganeti(
            lambda s: {
                "spice_bind": "127.0.0.1",
                "spice_password_file": s.text("ticket", "open\n"),
                "spice_image_compression": "auto_glz",
                "soundhw": "ac97",
            },
            disks=_plain(),
            port=True,
        ),
        devices=("qxl-vga", "AC97"),
        check=lambda s: s.qmp("query-spice")["auth"] == "spice",
    ),
    Whole(
        name="Ganeti: IDE disk and emulated NIC for an old guest",
        machine="pc-i440fx-",
        definition=_ganeti(
            {"disk_type": "ide", "nic_type": "rtl8139", "acpi": False, "use_localtime": True},
            disks=_plain(),
            nics=[_NIC],
        ),
        devices=("ide-hd", "rtl8139"),
        root=True,
    ),
    Whole(
        name="Ganeti: SCSI disks on the old controller, writethrough",
        machine="pc-i440fx-",
        definition=_ganeti({"disk_type": "scsi-hd", "disk_cache": "writethrough"}, disks=_plain()),
        devices=("lsi53c895a", "scsi-hd"),
    ),
    Whole(
        name="Ganeti: pinned, with topology, features and native AIO",
        machine="pc-i440fx-",
        definition=_ganeti(
            {
                "cpu_mask": "0:0",
                "cpu_sockets": 1,
                "cpu_cores": 2,
                "cpu_threads": 1,
                "cpu_type": "qemu64,+ssse3",
                "disk_cache": "none",
                "disk_aio": "native",
            },
            be={"maxmem": 128, "minmem": 64, "vcpus": 2},
            disks=_plain(),
        ),
        check=lambda s: _affinity(s, 0) == "[0]",
    ),
    Whole(
        name="Ganeti: a named machine type, a first slot, a guest agent, exit on reboot",
        machine="pc-i440fx-7.2",
        definition=_ganeti(
            {
                "machine_version": "pc-i440fx-7.2",
                "kvm_pci_reservations": 16,
                "use_guest_agent": True,
                "reboot_behavior": "exit",
            },
            disks=_plain(),
        ),
        devices=("virtserialport",),
        check=lambda s: all(
            device["slot"] >= 16
            for bus in s.qmp("query-pci")
            for device in bus["devices"]
            if device["qdev_id"].startswith("disk-")
        ),
    ),
    Whole(
        name="Ganeti: multiqueue NIC on a bridge, own options",
        machine="pc-i440fx-",
        definition=_ganeti({"kvm_extra": "-device 'virtio-rng-pci,id=extra-rng'"}, disks=_plain(), nics=[_NIC]),
        devices=("virtio-net-pci", "virtio-rng-pci"),
        root=True,
        check=lambda s: s.host.driver.get_instance_info("web1").marks == ("extra-args",),
    ),
)


def _lacking(whole: Whole) -> str:
    """Why an instance of the table cannot run on this machine; decided before any test."""
    for need in whole.needs:
        there = (
            os.path.exists(need)
            if need.startswith("/")
            else shutil.which(need, path=f"{os.environ['PATH']}:/usr/lib/qemu")
        )
        if not there:
            return f"there is no {need}"
    return "only root can" if whole.root and os.geteuid() != 0 else ""


def _rows() -> list[Any]:
    return [
        pytest.param(
            whole, id=whole.name, marks=[pytest.mark.skipif(bool(_lacking(whole)), reason=_lacking(whole) or "-")]
        )
        for whole in WHOLE
    ]


@pytest.fixture
def bridge() -> Iterator[None]:
    """The bridge that NICs of the table are on, for whoever may make one."""
    if os.geteuid() != 0:
        yield
        return
    subprocess.run(["ip", "link", "add", _BRIDGE, "type", "bridge"], check=True)
    try:
        yield
        assert not list(Path(f"/sys/class/net/{_BRIDGE}/brif").iterdir())
    finally:
        subprocess.run(["ip", "link", "delete", _BRIDGE], check=True)


def test_there_are_enough_of_them() -> None:
    """The table has the combinations people run."""
    assert len({whole.name for whole in WHOLE}) >= 25


@pytest.mark.parametrize("program", ["installed", "newer"])
@pytest.mark.parametrize("whole", _rows())
def test_a_whole_instance_runs(
    whole: Whole,
    program: str,
    make_host: Callable[..., Any],
    bridge: None,
    free_port: Callable[[], int],
    request: pytest.FixtureRequest,
) -> None:
    """It is planned the same twice, started as planned, runs, and QEMU has what was asked for."""
    settings = {}
    if program == "newer":
        settings["qemu"] = request.getfixturevalue("newer_qemu")
    host = make_host(**settings)
    scene = Scene(host, host.directory, free_port())
    instance = whole.definition(scene)
    if whole.huge_pages:
        request.getfixturevalue("huge_pages")
    arch = instance.params.get("arch")
    if program == "newer" and arch is not None:
        pytest.skip("the newer QEMU is for x86_64")
    extra = f"{instance.params.get('extra_args', '')} {STRICT}".strip()
    strict = attrs.evolve(instance, params={**instance.params, "extra_args": extra})
    assert list(host.driver.check_parameter_syntax(strict)) == []
    plan = host.driver.plan_start(strict)
    assert host.driver.plan_start(strict) == plan
    host.driver.start_instance(strict, timeout=60)
    argv = Path(f"/proc/{host.pid()}/cmdline").read_bytes().split(b"\0")[:-1]
    planned = [word.encode() for word in plan.argv]
    assert argv[-len(planned) + 1 :] == planned[1:]
    assert scene.qmp("query-status")["status"] == "running"
    info = host.driver.get_instance_info("web1")
    assert info.state is hvcore.InstanceState.RUNNING
    assert info.machine is not None
    assert info.machine.startswith(whole.machine)
    assert set(whole.devices) <= scene.devices()
    assert whole.check(scene)
    host.driver.stop_instance("web1", force=True)
    assert host.driver.list_instances().instances == ()
