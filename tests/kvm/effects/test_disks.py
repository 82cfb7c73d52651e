"""Parameters of disks, of what several of them share, and the defaults for them take effect."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from kvm_effect import Effect, File, Probe, Question, disk, of, proves, rows, type_of
from qemu_img import qemu_img

import hvcore

pytestmark = pytest.mark.qemu

_LIMITS = {
    "iops_total": 1000,
    "iops_burst": 2000,
    "bps_total": 5_000_000,
    "bps_burst": 6_000_000,
    "burst_seconds": 9,
}
_SPLIT_LIMITS = {"iops_read": 11, "iops_write": 12, "bps_read": 13_000, "bps_write": 14_000}
_QEMU_LIMITS = {
    "iops_total": "iops-total",
    "iops_burst": "iops-total-max",
    "bps_total": "bps-total",
    "bps_burst": "bps-total-max",
    "burst_seconds": "iops-total-max-length",
    "iops_read": "iops-read",
    "iops_write": "iops-write",
    "bps_read": "bps-read",
    "bps_write": "bps-write",
}


def _disk(shows: dict[str, tuple[Question, Any]], *, storage: dict[str, Any] | None = None, **given: Any) -> Effect:
    """The effect of parameters of one disk."""
    more = storage or {}
    needs = tuple(given.pop("needs", ()))
    base = {"disks": [disk(0, **given.pop("base", {}))], "params": more}
    named = {f"disks[].params.{name}": fact for name, fact in shows.items()}
    return Effect(given={"disks": [disk(0, **given)], "params": more}, base=base, shows=named, needs=needs)


def _limit(group: Callable[[Probe], str], name: str) -> Question:
    return lambda probe: probe.get(f"/objects/{group(probe)}", "limits")[_QEMU_LIMITS[name]]


def _own_group(probe: Probe) -> str:
    return next(name for name in probe.children("/objects") if name.startswith("throttle-"))


def _cache(name: str) -> Question:
    return lambda probe: probe.drive("disk0")["inserted"]["cache"][name]


def _place(probe: Probe) -> tuple[str, str]:
    """The type of the disk, and the bus it sits on."""
    return str(probe.get("disk0", "type")), probe.bus("disk0")


def _group_of_disk(probe: Probe) -> bool:
    return '"throttle-group": "group-gold"' in probe.drive("disk0")["inserted"]["file"]


def _inserted(name: str) -> Question:
    return lambda probe: probe.drive("disk0")["inserted"][name]


def _native(probe: Probe) -> bool:
    """Whether QEMU has a ring of the kernel's native AIO, once it has read something."""
    probe.content("disk0")
    return "/[aio]" in probe.proc("maps")


def _ring(probe: Probe) -> bool:
    """Whether QEMU has a ring of io_uring, once it has read something."""
    probe.content("disk0")
    return probe.descriptors("[io_uring]") > 0


def _controller_type(probe: Probe) -> str:
    """The type of the device whose bus the disk sits on."""
    device = str(probe.get("disk0", "parent_bus")).rpartition("/")[0].removesuffix("/virtio-backend")
    return str(probe.get(device, "type"))


def _still_there(probe: Probe) -> int:
    """Blocks of the image once the guest has freed all of it."""
    path = probe.directory.parents[3] / "full.raw"
    device = probe.path("disk0").rpartition("/")[2]
    assert probe.monitor(f'qemu-io -d {device}/virtio-backend "discard 0 64k"') == ""
    return os.stat(path).st_blocks


def _full(**params: Any) -> dict[str, Any]:
    return {**disk(0, **params), "path": File("full.raw", b"x" * 65536)}


_DIRECT_SYNC = {"direct": True, "writeback": False, "no-flush": False}
_PASSPHRASE = b"open sesame"


@functools.cache
def _encrypted_image(kind: str) -> bytes:
    """An encrypted image whose plain text is a pattern; made once, because it takes a while."""
    with tempfile.TemporaryDirectory() as directory:
        secret, path = f"{directory}/secret", f"{directory}/image"
        Path(secret).write_bytes(_PASSPHRASE)
        key = ("--object", f"secret,id=key,file={secret}")
        prefix = "" if kind == "luks" else "encrypt."
        options = f"{prefix}key-secret=key,{prefix}iter-time=10" + (",encrypt.format=luks" if prefix else "")
        qemu_img("create", "-q", "-f", kind, *key, "-o", options, path, "64k")
        image = f"driver={kind},{prefix}key-secret=key,file.filename={path}"
        subprocess.run(["qemu-io", *key, "--image-opts", "-c", "write -P 0x5a 0 64k", image], check=True)
        return Path(path).read_bytes()


def _luks(path: Path) -> None:
    path.write_bytes(_encrypted_image("luks"))


def _luks_in_qcow2(path: Path) -> None:
    path.write_bytes(_encrypted_image("qcow2"))


def _encrypted(**params: Any) -> dict[str, Any]:
    return {**disk(0, **params), "path": File("luks.raw", make=_luks)}


_SECRET = File("passphrase", _PASSPHRASE + b"\n")

DISKS = [
    _disk({"bus": (type_of("disk0"), "scsi-hd")}, bus="scsi"),
    _disk({"bus": (type_of("disk0"), "nvme")}, bus="nvme"),
    _disk({"bus": (_place, ("ide-hd", "ide.0"))}, bus="ide"),
    _disk({"bus": (_place, ("ide-hd", "sata0.0"))}, bus="sata"),
    _disk({"bus": (_place, ("usb-storage", "usb0.0"))}, bus="usb"),
    _disk(
        {"controller": (lambda probe: probe.bus("disk0"), "scsi2.0")}, bus="scsi", controller=2, base={"bus": "scsi"}
    ),
    _disk(
        {"cache": (_cache("direct"), True), "aio": (_native, True)},
        cache="none",
        aio="native",
    ),
    _disk({"cache": (_cache("writeback"), False)}, cache="writethrough"),
    _disk({"cache": (_inserted("cache"), _DIRECT_SYNC)}, cache="directsync"),
    _disk({"cache": (_cache("no-flush"), True)}, cache="unsafe"),
    _disk({"aio": (_ring, True)}, aio="io_uring", needs=("io_uring",)),
    _disk({"write_cache": (_cache("writeback"), False)}, write_cache=False),
    _disk({"detect_zeroes": (_inserted("detect_zeroes"), "unmap")}, detect_zeroes="unmap"),
    _disk({"detect_zeroes": (_inserted("detect_zeroes"), "on")}, detect_zeroes="on"),
    _disk(
        {
            "serial": (of("disk0", "serial"), "ABC-123"),
            "logical_block_size": (of("disk0", "logical_block_size"), 2048),
            "physical_block_size": (of("disk0", "physical_block_size"), 4096),
            "queues": (of("disk0", "num-queues"), 3),
            "queue_size": (of("disk0", "queue-size"), 128),
            "packed": (of("disk0", "packed"), True),
            "iothread": (of("disk0", "iothread"), "/objects/iothread1"),
            "on_read_error": (of("disk0", "rerror"), "stop"),
            "on_write_error": (of("disk0", "werror"), "report"),
            "shared": (of("disk0", "share-rw"), True),
        },
        storage={"iothreads": 2},
        serial="ABC-123",
        logical_block_size=2048,
        physical_block_size=4096,
        queues=3,
        queue_size=128,
        packed=True,
        iothread=1,
        on_read_error="stop",
        on_write_error="report",
        shared=True,
    ),
    _disk(
        {
            "wwn": (lambda probe: hex(probe.get("disk0", "wwn")), "0x5000c50015ea71ad"),
            "rotation_rate": (of("disk0", "rotation_rate"), 7200),
        },
        bus="scsi",
        wwn="0x5000c50015ea71ad",
        rotation_rate=7200,
        base={"bus": "scsi"},
    ),
    _disk(
        {
            "wwn": (lambda probe: hex(probe.get("disk0", "wwn")), "0x5000c50015ea71ae"),
            "rotation_rate": (of("disk0", "rotation_rate"), 1),
        },
        bus="ide",
        wwn="0x5000c50015ea71ae",
        rotation_rate=1,
        base={"bus": "ide"},
    ),
    _disk({"queues": (of("disk0", "max_ioqpairs"), 5)}, bus="nvme", queues=5, base={"bus": "nvme"}),
    _disk(
        {
            "throttle": (_inserted("drv"), "throttle"),
            **{f"throttle.{name}": (_limit(_own_group, name), value) for name, value in _LIMITS.items()},
        },
        throttle=_LIMITS,
    ),
    _disk(
        {f"throttle.{name}": (_limit(_own_group, name), value) for name, value in _SPLIT_LIMITS.items()},
        throttle=_SPLIT_LIMITS,
        base={"throttle": {"iops_total": 5}},
    ),
    _disk(
        {"throttle_group": (_group_of_disk, True)},
        storage={"throttle_groups": {"gold": {"iops_total": 5}, "iron": {"iops_total": 1}}},
        throttle_group="gold",
        base={"throttle_group": "iron"},
    ),
    Effect(
        given={"disks": [_full(discard="ignore")]},
        base={"disks": [_full()]},
        shows={"disks[].params.discard": (_still_there, 128)},
    ),
    Effect(
        given={"disks": [_encrypted(encryption=True, secret_file=_SECRET)]},
        base={"disks": [_encrypted(any_header=True)]},
        shows={
            "disks[].params.encryption": (_inserted("drv"), "luks"),
            "disks[].params.secret_file": (lambda probe: set(probe.content("disk0")), {0x5A}),
        },
    ),
    _disk(
        {
            "iothread_mapping": (
                lambda probe: [row["iothread"] for row in probe.get("disk0", "iothread-vq-mapping")],
                ["iothread1", "iothread0"],
            )
        },
        storage={"iothreads": 2},
        iothread_mapping=[1, 0],
        needs=("qemu-9",),
    ),
]

SHARED = [
    *(
        Effect(
            given={"disks": [disk(0, bus="scsi")], "params": {"scsi_controller": kind}},
            base={"disks": [disk(0, bus="scsi")]},
            shows={"params.scsi_controller": (_controller_type, device)},
        )
        for kind, device in (
            ("lsi", "lsi53c895a"),
            ("megasas", "megasas"),
            ("am53c974", "am53c974"),
            ("pvscsi", "pvscsi"),
        )
    ),
    Effect(
        given={"disks": [disk(0, bus="scsi")], "params": {"iothreads": 3, "scsi_iothread": 2}},
        base={"disks": [disk(0, bus="scsi")], "params": {"iothreads": 1}},
        shows={
            "params.iothreads": (lambda probe: len(probe.qmp("query-iothreads")), 3),
            "params.scsi_iothread": (of("scsi0", "iothread"), "/objects/iothread2"),
        },
    ),
    Effect(
        given={"params": {"throttle_groups": {"gold": _LIMITS, "iron": _SPLIT_LIMITS}}},
        base={"params": {"throttle_groups": {"gold": _SPLIT_LIMITS}}},
        shows={
            "params.throttle_groups": (type_of("/objects/group-iron"), "throttle-group"),
            **{
                f"params.throttle_groups.NAME.{name}": (_limit(lambda probe: "group-gold", name), value)
                for name, value in _LIMITS.items()
            },
            **{
                f"params.throttle_groups.NAME.{name}": (_limit(lambda probe: "group-iron", name), value)
                for name, value in _SPLIT_LIMITS.items()
            },
        },
    ),
]


def _through_defaults(effect: Effect) -> Effect:
    """The same, with what the disk says about itself said for all disks of the instance."""
    (only,) = effect.given["disks"]
    params = {**effect.given.get("params", {}), "disk": only["params"]}
    shows = {name.replace("disks[].params.", "params.disk."): fact for name, fact in effect.shows.items()}
    return attrs.evolve(effect, given={"disks": [{**only, "params": {}}], "params": params}, shows=shows)


DEFAULTS = [_through_defaults(effect) for effect in DISKS]
EFFECTS = [*DISKS, *SHARED, *DEFAULTS]


@pytest.mark.parametrize("effect", rows(EFFECTS))
def test_it_takes_effect(prove: Callable[[Effect], None], effect: Effect) -> None:
    """QEMU or the kernel says that the value holds, and that another one holds without it."""
    prove(effect)


def test_a_disk_overrides_the_defaults(begin: Any) -> None:
    """What a disk says about itself goes before what is said for all."""
    given = {"disks": [disk(0, serial="OWN"), disk(1)], "params": {"disk": {"serial": "ALL", "queues": 2}}}
    with begin(given) as probe:
        assert [probe.get(name, "serial") for name in ("disk0", "disk1")] == ["OWN", "ALL"]
        assert [probe.get(name, "num-queues") for name in ("disk0", "disk1")] == [2, 2]


def test_an_encrypted_qcow2_image(begin: Any) -> None:
    """Inside qcow2, the passphrase opens what is encrypted, and its text is nowhere in QEMU's arguments."""
    image = {**disk(0), "format": "qcow2", "path": File("luks.qcow2", make=_luks_in_qcow2)}
    given = {"disks": [{**image, "params": {"encryption": True, "secret_file": _SECRET}}]}
    with begin(given) as probe:
        assert probe.drive("disk0")["inserted"]["image"]["encrypted"] is True
        assert set(probe.content("disk0")) == {0x5A}
        assert _PASSPHRASE.decode() not in probe.proc("cmdline")


@proves("disks[].params.any_header", "params.disk.any_header")
@pytest.mark.parametrize("where", ["disk", "defaults"])
def test_any_header(host: Any, resolve: Callable[..., Any], where: str) -> None:
    """A raw disk that begins like another format is refused, until it is said that its guest wrote that."""
    image = {**disk(0), "path": File("odd.raw", b"QFI\xfb" + bytes(65532))}
    with pytest.raises(hvcore.InvalidParameters, match="begins like a qcow2 image"):
        host.driver.start_instance(resolve({"disks": [image]}))
    given = {"any_header": True}
    own, params = (given, {}) if where == "disk" else ({}, {"disk": given})
    host.driver.start_instance(resolve({"disks": [{**image, "params": own}], "params": params}), paused=True)


@proves("disks[].params.shared")
def test_two_instances_share_a_disk(begin: Any) -> None:
    """With shared on both, a second QEMU opens the same image for writing; without, it is refused."""
    with begin({"disks": [disk(0, shared=True)]}, "first"), begin({"disks": [disk(0, shared=True)]}, "second") as probe:
        assert probe.get("disk0", "share-rw") is True
    with begin({"disks": [disk(0)]}, "first"), pytest.raises(hvcore.InvalidParameters, match="in use by another QEMU"):
        with begin({"disks": [disk(0)]}, "second"):
            pass


@pytest.mark.qemu_versions(7, 8)
@proves("disks[].params.iothread_mapping", "params.disk.iothread_mapping")
def test_a_mapping_needs_a_new_qemu(host: Any, resolve: Callable[..., Any]) -> None:
    """An older QEMU is told to be too old, before it is started."""
    given = {"disks": [disk(0, iothread_mapping=[1, 0])], "params": {"iothreads": 2}}
    findings = host.driver.validate_parameters(resolve(given))
    assert [(finding.code, finding.path) for finding in findings] == [
        ("qemu-too-old", "disks[0].params.iothread_mapping")
    ]
