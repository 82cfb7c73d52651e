"""Translation between Ganeti's words and an instance: every name has its place, and the way back is exact."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hvcore
from hvcore import AutoConverge, Disk, Instance, MigrationPolicy, Nic, Seconds, Severity, Size
from hvcore_kvm.ganeti import (
    PARITY,
    GanetiParameters,
    Translation,
    Unplaced,
    coerce,
    from_instance,
    parity_markdown,
    parity_rows,
    to_instance,
)
from hvcore_kvm.ganeti.inexpressible import NEUTRAL
from hvcore_kvm.ganeti.table import BACKEND, HOST_APPLICATION, HYPERVISOR, hypervisor_defaults
from hvcore_kvm.parameters.confidential import ConfidentialParameters
from hvcore_kvm.parameters.cpu import CpuParameters
from hvcore_kvm.parameters.devices import DeviceParameters
from hvcore_kvm.parameters.disk import DiskParameters, StorageParameters
from hvcore_kvm.parameters.machine import BootParameters, MachineParameters
from hvcore_kvm.parameters.memory import MemoryParameters
from hvcore_kvm.parameters.nic import NicParameters

PAGE = Path(__file__).resolve().parents[2] / "docs/coming-from-ganeti.md"
_NAMES = """
    acpi boot_order cdrom_image_path cdrom2_image_path cdrom_disk_type cpu_cores cpu_mask cpu_sockets cpu_threads
    cpu_type disk_aio disk_cache disk_discard disk_type floppy_image_path initrd_path kernel_args kernel_path keymap
    kvm_extra kvm_flag kvm_path kvm_pci_reservations machine_version mem_path migration_bandwidth migration_caps
    migration_downtime migration_mode migration_port nic_type reboot_behavior root_path scsi_controller_type
    security_domain security_model serial_console serial_speed soundhw spice_bind spice_image_compression
    spice_ip_version spice_jpeg_wan_compression spice_password_file spice_playback_compression spice_streaming_video
    spice_tls_ciphers spice_use_tls spice_use_vdagent spice_zlib_glz_wan_compression usb_devices usb_mouse use_chroot
    use_guest_agent use_localtime user_shutdown vga vhost_net virtio_net_queues vnc_bind_address vnc_password_file
    vnc_tls vnc_x509_path vnc_x509_verify vnet_hdr
    """
NAMES = set(_NAMES.split())
NIC = {"mac": "aa:00:00:00:00:01", "uuid": "11111111-2222-4333-8444-555555555555", "link": "br0"}
DISK = {"uuid": "66666666-2222-4333-8444-555555555555", "path": "/dev/vg/one", "size": 1024}


def translate(hv: dict[str, Any] | None = None, be: dict[str, Any] | None = None, **more: Any) -> Translation:
    given = {"nics": [NIC], "disks": [DISK], "network_port": 11000, **more}
    return to_instance("web1.example.com", {"kvm_path": "/usr/bin/kvm", **(hv or {})}, be or {}, **given)


def translated(hv: dict[str, Any] | None = None, be: dict[str, Any] | None = None, **more: Any) -> Instance:
    done = translate(hv, be, **more)
    assert done.instance is not None, [str(finding) for finding in done.findings]
    return done.instance


def back(done: Translation, unplaced: dict[str, Unplaced] | None = None) -> GanetiParameters:
    assert done.instance is not None, [str(finding) for finding in done.findings]
    return from_instance(
        done.instance,
        migration=done.migration,
        migration_port=done.migration_port,
        migration_capabilities=done.migration_capabilities,
        unplaced=unplaced,
    )


# Every name has its place.


def test_every_hypervisor_parameter_is_known() -> None:
    """All of them, and no other."""
    assert set(HYPERVISOR) == NAMES
    assert len(NAMES) == 65


def test_every_name_is_in_the_parity_table() -> None:
    """Hypervisor and backend parameters, NICs and disks, each with a place and an explanation."""
    rows = parity_rows()
    assert len({name for name, _, _ in rows}) == len(rows)
    names = {name for name, _, _ in rows}
    assert {f"hvparams.{name}" for name in NAMES} <= names
    assert {f"beparams.{name}" for name in BACKEND} <= names
    assert {f"nics[].{name}" for name in ("mac", "ip", "name", "uuid", "network", "mode", "link", "vlan")} <= names
    assert {f"disks[].{name}" for name in ("mode", "name", "uuid", "dev_type", "path", "uri", "access")} <= names
    assert all(place and how.endswith(".") for _, place, how in rows)


def _places() -> Iterator[tuple[str, type, str]]:
    sections = {
        "params": (
            *(MachineParameters, BootParameters, CpuParameters),
            *(MemoryParameters, StorageParameters, DeviceParameters, ConfidentialParameters),
        ),
        "disks[].params": (DiskParameters,),
        "nics[].params": (NicParameters,),
    }
    for prefix, classes in sections.items():
        for fields in classes:
            for field in attrs.fields(fields):
                yield f"{prefix}.{field.name}", fields, field.name


def test_every_place_in_the_parity_table_exists() -> None:
    """A place is a field of the model, a declared parameter, or a parameter of a shipped plugin."""
    declared = {place for place, _, _ in _places()}
    model = {field.name for field in attrs.fields(Instance)}
    model |= {f"disks[].{field.name}" for field in attrs.fields(Disk)}
    model |= {f"nics[].{field.name}" for field in attrs.fields(Nic)}
    others = {f"MigrationPolicy.{field.name}" for field in attrs.fields(MigrationPolicy)}
    others |= {f"Translation.{field.name}" for field in attrs.fields(Translation)}
    for name, (place, _) in PARITY.items():
        if place == HOST_APPLICATION or place.startswith(("params.vnc.", "params.spice.", "params.user.")):
            continue
        if place == "nics[].params.vlan":
            continue
        base = place.removeprefix("params.").partition(".")[0].removesuffix("[]")
        assert place in declared | model | others or f"params.{base}" in declared, name


def test_no_parameter_of_ours_is_forgotten_on_the_way_back() -> None:
    """Each either has a name in Ganeti, or is known to have none."""
    read = {f"{place.split('.topology')[0].split('[].bus')[0]}" for place, _ in PARITY.values()}
    read |= {f"params.{name}" for name in ("cpu_features", "cpu_enforce", "memory_backend", "memory_prealloc")}
    read |= {"params.topology", "params.cdroms"}
    neutral = {f"{place}" for place, fields, name in _places() if name in NEUTRAL[fields]}
    declared = {place for place, _, _ in _places()}
    assert declared - read - neutral == set()
    assert read & neutral == set()
    for fields, names in NEUTRAL.items():
        assert set(names) <= {field.name for field in attrs.fields(fields)}


_CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    # What has to hold for the parameter to have an effect, and a value that is not the default.
    "acpi": ({}, False),
    "boot_order": ({}, "network"),
    "cdrom_image_path": ({}, "/srv/one.iso"),
    "cdrom2_image_path": ({"cdrom_image_path": "/srv/one.iso"}, "https://h/two.iso"),
    "cdrom_disk_type": ({"cdrom_image_path": "/srv/one.iso"}, "ide"),
    "cpu_cores": ({}, 2),
    "cpu_mask": ({}, "0-3"),
    "cpu_sockets": ({}, 2),
    "cpu_threads": ({}, 2),
    "cpu_type": ({}, "Haswell-noTSX,pcid=on"),
    "disk_aio": ({}, "io_uring"),
    "disk_cache": ({}, "writethrough"),
    "disk_discard": ({}, "unmap"),
    "disk_type": ({}, "scsi-hd"),
    "floppy_image_path": ({}, "/srv/floppy.img"),
    "initrd_path": ({"kernel_path": "/boot/vmlinuz"}, "/boot/initrd"),
    "kernel_args": ({"kernel_path": "/boot/vmlinuz"}, "rw quiet"),
    "kernel_path": ({}, "/boot/vmlinuz"),
    "keymap": ({}, "de"),
    "kvm_extra": ({}, "-global isa-fdc.fallback=144"),
    "kvm_flag": ({}, "enabled"),
    "kvm_path": ({}, "/opt/qemu/bin/qemu-system-x86_64"),
    "kvm_pci_reservations": ({}, 8),
    "machine_version": ({}, "pc-i440fx-7.2"),
    "mem_path": ({}, "/dev/hugepages"),
    "migration_bandwidth": ({}, 1000),
    "migration_caps": ({}, "xbzrle:postcopy-ram"),
    "migration_downtime": ({}, 300),
    "migration_mode": ({}, "non-live"),
    "migration_port": ({}, 65535),
    "nic_type": ({}, "e1000"),
    "reboot_behavior": ({}, "exit"),
    "root_path": ({"kernel_path": "/boot/vmlinuz"}, "/dev/sda1"),
    "scsi_controller_type": ({}, "megasas"),
    "security_domain": ({"security_model": "user", "security_domain": "daemon"}, "qemu"),
    "security_model": ({}, "pool"),
    "serial_console": ({}, False),
    "serial_speed": ({"kernel_path": "/boot/vmlinuz"}, 9600),
    "soundhw": ({}, "hda"),
    "spice_bind": ({}, "127.0.0.1"),
    "spice_image_compression": ({"spice_bind": "::1"}, "lz"),
    "spice_ip_version": ({"spice_bind": "eth0"}, 6),
    "spice_jpeg_wan_compression": ({"spice_bind": "::1"}, "never"),
    "spice_password_file": ({"spice_bind": "::1"}, "/srv/password"),
    "spice_playback_compression": ({"spice_bind": "::1"}, False),
    "spice_streaming_video": ({"spice_bind": "::1"}, "all"),
    "spice_tls_ciphers": ({"spice_bind": "::1", "spice_use_tls": True}, "HIGH"),
    "spice_use_tls": ({"spice_bind": "::1"}, True),
    "spice_use_vdagent": ({"spice_bind": "::1"}, False),
    "spice_zlib_glz_wan_compression": ({"spice_bind": "::1"}, "auto"),
    "usb_devices": ({}, "tablet,keyboard"),
    "usb_mouse": ({}, "tablet"),
    "use_chroot": ({}, True),
    "use_guest_agent": ({}, True),
    "use_localtime": ({}, True),
    "vga": ({}, "cirrus"),
    "vhost_net": ({}, False),
    "virtio_net_queues": ({}, 2),
    "vnc_bind_address": ({}, "eth0"),
    "vnc_password_file": ({"vnc_bind_address": "0.0.0.0"}, "/srv/password"),
    "vnc_tls": ({"vnc_bind_address": "0.0.0.0"}, True),
    "vnc_x509_path": ({"vnc_bind_address": "0.0.0.0", "vnc_tls": True}, "/srv/x509"),
    "vnc_x509_verify": ({"vnc_bind_address": "::", "vnc_tls": True, "vnc_x509_path": "/srv/x509"}, True),
    "vnet_hdr": ({}, False),
}


@pytest.mark.parametrize("name", sorted(NAMES - {"user_shutdown"}))
def test_every_parameter_changes_something_and_comes_back(name: str) -> None:
    """A value that has an effect is in the instance or its migration, and is read back from there alone."""
    needs, value = _CHANGES[name]
    be = {"vcpus": 2}
    before, after = translate(needs, be), translate({**needs, name: value}, be)
    one, two = ((d.instance, d.migration, d.migration_port, d.migration_capabilities) for d in (before, after))
    assert one != two
    assert back(after).hvparams[name] == value
    assert f"hvparams.{name}" not in after.unplaced


def test_only_user_shutdown_changes_nothing() -> None:
    """Why an instance ended is always known here."""
    assert translated({"user_shutdown": True}) == translated()
    assert set(_CHANGES) == NAMES - {"user_shutdown"}


def test_defaults_become_a_guest_with_the_same_hardware() -> None:
    """What Ganeti's guests have and ours would not, and the other way round, is said explicitly."""
    instance = translated()
    assert instance.params["machine"] == "pc"
    assert instance.params["cpu_model"] == "qemu64"
    assert instance.params["display_device"] == "std"
    assert instance.params["usb_controller"] == "uhci"
    assert instance.params["hpet"] is True
    for name in ("rng", "panic_device", "guest_agent", "cpu_enforce", "balloon_free_page_reporting"):
        assert instance.params[name] is False, name
    assert instance.memory == 128 * 2**20
    assert (instance.consoles, instance.security_model) == (("serial",), "none")
    assert instance.disks[0].format == "raw"
    assert instance.disks[0].params == {
        "bus": "virtio-blk",
        "cache": "writeback",
        "aio": "threads",
        "discard": "ignore",
    }
    assert instance.nics[0].params == {"model": "virtio-net", "vhost": True, "vnet_hdr": True, "queues": 1}
    assert hvcore.read_definition(instance)[1] == []


def test_the_kernel_command_line_is_put_together_as_in_ganeti() -> None:
    """Root, arguments and console, joined by blanks; without a kernel there is none."""
    kernel = {"kernel_path": "/boot/vmlinuz"}
    assert translated(kernel).params["cmdline"] == "root=/dev/vda1 ro console=ttyS0,38400"
    assert translated({**kernel, "serial_console": False}).params["cmdline"] == "root=/dev/vda1 ro"
    assert translated({**kernel, "root_path": ""}).params["cmdline"] == "ro console=ttyS0,38400"
    assert "cmdline" not in translated().params
    assert "boot" not in translated(kernel).params


@pytest.mark.parametrize(
    ("text", "model", "features", "enforce"),
    [
        ("host,+vmx,-pcid", "host", {"vmx": True, "pcid": False}, False),
        ("Haswell,pcid=off,enforce", "Haswell", {"pcid": False}, True),
        ("kvm64, vmx", "kvm64", {"vmx": True}, False),
    ],
)
def test_the_cpu_type_is_a_model_and_features(text: str, model: str, features: dict[str, bool], enforce: bool) -> None:
    """In each of the forms that QEMU takes."""
    params = translated({"cpu_type": text}).params
    assert (params["cpu_model"], params["cpu_features"], params["cpu_enforce"]) == (model, features, enforce)


def test_a_cpu_property_that_is_no_switch_is_said_to_be_lost() -> None:
    """It is left out, and nothing else with it."""
    done = translate({"cpu_type": "host,phys-bits=40,+vmx"})
    assert done.instance is not None
    assert done.instance.params["cpu_features"] == {"vmx": True}
    assert [f.path for f in done.findings if f.code == "lossy"] == ["hvparams.cpu_type"]


@pytest.mark.parametrize("template", ["sharedfile", "gluster", "ext", "blockdev"])
def test_disks_of_several_hosts_are_never_cached(template: str) -> None:
    """Whatever is configured; others follow the configuration."""
    disks = [{"path": "/srv/a", "dev_type": template, "provider": "p" if template == "ext" else None}, DISK]
    instance = translated({"disk_cache": "writethrough"}, disks=disks)
    assert [disk.params["cache"] for disk in instance.disks] == ["none", "writethrough"]
    assert translated({"disk_aio": "native"}, disks=disks[:1]).disks[0].params["aio"] == "native"


@pytest.mark.parametrize(
    ("disk", "place"),
    [
        ({"dev_type": "rbd", "access": "userspace", "uri": "rbd:p/i", "path": "/dev/rbd0"}, ("uri", "rbd:p/i")),
        ({"dev_type": "rbd", "access": "userspace", "uri": "", "path": "/dev/rbd0"}, ("path", "/dev/rbd0")),
        ({"dev_type": "rbd", "access": "kernelspace", "uri": "rbd:p/i", "path": "/dev/rbd0"}, ("path", "/dev/rbd0")),
        ({"dev_type": "rbd", "params": {"access": "userspace"}, "uri": "rbd:p/i"}, ("uri", "rbd:p/i")),
        (
            {"dev_type": "ext", "access": "userspace", "uri": "kvm:nbd://h/e", "provider": "p"},
            ("uri", "nbd://h/e"),
        ),
        ({"link": "/run/disks/0"}, ("path", "/run/disks/0")),
    ],
)
def test_where_qemu_finds_a_disk(disk: dict[str, Any], place: tuple[str, str]) -> None:
    """The uri with access userspace and a uri, else the local device or file."""
    made = translated(disks=[disk]).disks[0]
    assert {"path": made.path, "uri": made.uri} == {"path": None, "uri": None, place[0]: place[1]}


def test_a_read_only_disk_is_one() -> None:
    """Ganeti starts no such instance."""
    assert translated(disks=[{**DISK, "mode": "ro"}]).disks[0].read_only is True
    assert translated().disks[0].read_only is False


def test_scsi_cd_makes_drives_behind_those_of_the_images() -> None:
    """The guest sees the same devices; the way back makes disks of them again."""
    done = translate({"disk_type": "scsi-cd", "cdrom_image_path": "/srv/a.iso"})
    assert done.instance is not None
    assert done.instance.disks == ()
    drives = [{"path": "/srv/a.iso", "bus": "scsi"}, {"path": "/dev/vg/one", "bus": "scsi"}]
    assert done.instance.params["cdroms"] == drives
    assert back(done, dict(done.unplaced)).flat() == done.filled.flat()


@pytest.mark.parametrize(
    ("hv", "bus"),
    [
        ({}, "virtio-blk"),
        ({"disk_type": "ide"}, "ide"),
        ({"disk_type": "scsi-hd"}, "scsi"),
        ({"disk_type": "scsi-generic"}, "scsi"),
        ({"disk_type": "ide", "cdrom_disk_type": "scsi-cd"}, "scsi"),
        ({"disk_type": "ide", "machine_version": "pc-q35-7.2"}, "sata"),
    ],
)
def test_the_bus_of_cdrom_drives(hv: dict[str, Any], bus: str) -> None:
    """That of their own type, else of the disks, where every SCSI type has the SCSI drive."""
    cdroms = translated({**hv, "cdrom_image_path": "https://h/a.iso"}).params["cdroms"]
    assert cdroms == [{"url": "https://h/a.iso", "bus": bus}]


@pytest.mark.parametrize(
    ("nic", "mode", "link", "vlan"),
    [
        ({"mode": "bridged", "link": "br0", "vlan": "12"}, "bridged", "br0", ".12"),
        ({"nicparams": {"mode": "openvswitch", "link": "s0", "vlan": ":1:2"}}, "openvswitch", "s0", ":1:2"),
        ({"mode": "routed", "link": "", "ip": "192.0.2.9"}, "routed", None, None),
        ({"mode": "ext", "link": "x"}, "script", "x", None),
        ({"mode": "auto", "bridge": "br1"}, "bridged", "br1", None),
    ],
)
def test_how_a_nic_is_connected(nic: dict[str, Any], mode: str, link: str | None, vlan: str | None) -> None:
    """Mode, link and VLANs, in the NIC itself or below nicparams."""
    made = translated(nics=[nic]).nics[0]
    assert (made.mode, made.link, made.params.get("vlan")) == (mode, link, vlan)


def test_nics_and_disks_that_are_plugged_in_later_are_like_the_others() -> None:
    """An instance without any has the defaults for them."""
    params = translated({"disk_type": "scsi-hd", "nic_type": "e1000"}, nics=[], disks=[]).params
    assert params["disk"]["bus"] == "scsi"
    assert params["nic"] == {"model": "e1000"}


def test_memory_is_in_bytes_and_minmem_only_where_it_says_something() -> None:
    """The old name stands for both."""
    instance = translated(be={"maxmem": "1g", "minmem": 512})
    assert (instance.memory, instance.params["memory_min"]) == (2**30, 2**29)
    old = translated(be={"memory": 256, "maxmem": 1024})
    assert old.memory == 2**28
    assert "memory_min" not in old.params


def test_the_migration_policy() -> None:
    """MiB a second and milliseconds become bytes a second and seconds."""
    done = translate({"migration_bandwidth": 100, "migration_downtime": 250, "migration_caps": "auto-converge:xbzrle"})
    assert done.migration == MigrationPolicy(
        max_bandwidth=Size(100 * 2**20),
        downtime_limit=Seconds(0.25),
        on_no_convergence="throttle",
        auto_converge=AutoConverge(),
    )
    assert done.migration_capabilities == ("auto-converge", "xbzrle")
    assert translate({"migration_bandwidth": 0}).migration.max_bandwidth is None


@pytest.mark.parametrize(
    ("hv", "vnc", "pointer"),
    [
        ({"vnc_bind_address": "eth0"}, {"bind_address": "eth0", "port": 11000}, "tablet"),
        ({"vnc_bind_address": "/srv/vnc"}, {}, "tablet"),
        ({"vnc_bind_address": "::1", "vnc_tls": True}, {"bind_address": "::1", "port": 11000, "tls": "anon"}, "tablet"),
        ({}, None, "none"),
    ],
)
def test_vnc(hv: dict[str, Any], vnc: dict[str, Any] | None, pointer: str) -> None:
    """On an address, an interface, or a socket."""
    instance = translated(hv)
    assert instance.params.get("vnc") == vnc
    assert ("vnc" in instance.consoles) == (vnc is not None)
    assert instance.params["pointer"] == pointer


@pytest.mark.parametrize(
    ("hv", "place", "value"),
    [
        ({"scsi_controller_type": "lsi"}, "scsi_controller", "lsi"),
        ({"scsi_controller_type": "dc390"}, "scsi_controller", "am53c974"),
        ({"scsi_controller_type": "virtio-scsi-pci"}, "scsi_controller", "virtio-scsi"),
        ({"soundhw": "hda"}, "sound", "ich6"),
        ({"kvm_flag": "enabled"}, "accel", "kvm"),
        ({"kvm_flag": "disabled"}, "accel", "tcg"),
        ({"kvm_flag": ""}, "accel", "auto"),
        ({"reboot_behavior": "exit"}, "on_reboot", "shutdown"),
        ({"boot_order": "network"}, "boot", ("nics",)),
        ({"cpu_mask": "0:1"}, "cpu_pin", "0:1"),
        ({"cpu_threads": 2}, "topology", {"threads": 2}),
        ({"kvm_pci_reservations": 0}, "pci_reservations", 1),
        ({"mem_path": "/dev/hugepages"}, "memory_prealloc", True),
        ({"usb_devices": "tablet, ccid"}, "usb", [{"type": "tablet"}, {"type": "ccid"}]),
        ({"security_model": "user", "security_domain": "qemu"}, "user", {"name": "qemu"}),
    ],
)
def test_words_that_are_others_here(hv: dict[str, Any], place: str, value: Any) -> None:
    """Each has its one counterpart."""
    assert translated(hv, {"vcpus": 2}).params[place] == value


@pytest.mark.parametrize(("version", "word"), [(0, "any"), (4, "ipv4"), (6, "ipv6")])
def test_the_version_of_ip_for_spice(version: int, word: str) -> None:
    """And no certificate without TLS."""
    spice = translated({"spice_bind": "eth0", "spice_ip_version": version}, spice_x509_path="/srv/x509").params["spice"]
    assert spice["ip_version"] == word
    assert "x509_path" not in spice


def test_spice_takes_the_certificate_it_is_told_of() -> None:
    """Ganeti's is the cluster's; without a path that is said."""
    hv = {"spice_bind": "eth0", "spice_use_tls": True}
    assert translated(hv, spice_x509_path="/srv/x509").params["spice"]["x509_path"] == "/srv/x509"
    assert [f.path for f in translate(hv).findings if f.code == "lossy"] == ["hvparams.spice_use_tls"]
    assert translated(hv).params["display_device"] == "qxl"


# Types.


@pytest.mark.parametrize(
    ("kind", "value", "result"),
    [
        ("bool", "TRUE", True),
        ("bool", "", False),
        ("bool", 0, False),
        ("int", " 8\n", 8),
        ("int", "-1", -1),
        ("text", False, ""),
        ("maybe-text", None, None),
        ("size", 510, 512),
        ("size", "0.3m", 4),
        ("size", "1 G", 1024),
        ("size", "2tib", 2 * 1024**2),
    ],
)
def test_values_of_their_type(kind: Any, value: Any, result: Any) -> None:
    """Text, numbers and truth values in the forms that Ganeti stores and reads."""
    read = coerce(kind, value)
    assert (read, type(read)) == (result, type(result))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(("bool", value) for value in ("yes", "0", "1", None, 2, 1.0, [])),
        *(("int", value) for value in ("", None, True, 8.0, "8.5", "0x8", "1_000", "٣")),
        *(("size", value) for value in ("", None, "512k", "1p", -4, True, "1e3", float("nan"))),
        *(("text", value) for value in (None, 5, True)),
        *(("maybe-text", value) for value in (5, True)),
    ],
)
def test_values_of_another_type(kind: Any, value: Any) -> None:
    """Nothing is guessed: no fraction is cut, True is not 1, null is not false."""
    with pytest.raises(ValueError, match="expected"):
        coerce(kind, value)


# There and back.

_TEXTS = {
    # Several spellings of what each parameter can hold.
    "boot_order": ["disk", "network"],
    "cpu_type": ["", "qemu64", "host", "Haswell,+pcid", "Haswell,pcid=on", "kvm64,enforce"],
    "cpu_mask": ["", "all", "0-3", "1,3"],
    "disk_aio": ["threads", "io_uring"],
    "disk_cache": ["default", "none", "writeback", "writethrough"],
    "disk_discard": ["ignore", "unmap"],
    "disk_type": ["paravirtual", "ide", "scsi-hd", "scsi-cd", "scsi-block"],
    "cdrom_disk_type": ["", "ide", "paravirtual", "scsi-cd"],
    "cdrom_image_path": ["", "/srv/a.iso", "http://h/a.iso"],
    "cdrom2_image_path": ["", "/srv/b.iso", "https://h/b.iso"],
    "floppy_image_path": ["", "/srv/f.img"],
    "initrd_path": ["", "/boot/initrd"],
    "kernel_args": ["", "ro", "quiet console=ttyS0,9600", "rw root=/dev/sdb", " ro "],
    "kernel_path": ["", "/boot/vmlinuz"],
    "root_path": ["/dev/vda1", "LABEL=root"],
    "keymap": ["", "de"],
    "kvm_extra": ["", "-D /srv/log"],
    "kvm_flag": ["", "enabled"],
    "machine_version": ["", "pc", "pc-i440fx-7.2"],
    "mem_path": ["", "/dev/hugepages"],
    "migration_caps": ["", "xbzrle", "postcopy-ram:events", "auto-converge::xbzrle"],
    "migration_mode": ["live", "non-live"],
    "nic_type": ["paravirtual", "e1000", "pcnet"],
    "reboot_behavior": ["reboot", "exit"],
    "scsi_controller_type": ["virtio-scsi-pci", "megasas", "lsi"],
    "soundhw": ["", "hda", "ac97"],
    "usb_devices": ["", "tablet", "tablet mouse", "keyboard,ccid"],
    "usb_mouse": ["", "mouse", "tablet"],
    "vga": ["", "std", "qxl", "none"],
    "vnc_x509_path": ["", "/srv/x509"],
    "spice_tls_ciphers": ["", "HIGH"],
}
_BOOLS = (
    *("acpi", "serial_console", "use_chroot", "use_guest_agent", "use_localtime", "user_shutdown", "vhost_net"),
    *("vnet_hdr", "spice_playback_compression", "spice_use_vdagent"),
)
_NUMBERS = {
    "kvm_pci_reservations": [0, 3, 12, 20],
    "migration_bandwidth": [0, 32, 1000],
    "migration_downtime": [1, 30, 333],
    "migration_port": [1, 8102, 65535],
    "serial_speed": [9600, 38400],
}


@st.composite
def sources(draw: st.DrawFn) -> dict[str, Any]:
    """Instances that Ganeti can run, and some that only its checks let pass."""
    hv: dict[str, Any] = {name: draw(st.sampled_from(values)) for name, values in _TEXTS.items()}
    hv |= {name: draw(st.booleans()) for name in _BOOLS}
    hv |= {name: draw(st.sampled_from(values)) for name, values in _NUMBERS.items()}
    hv["kvm_path"] = "/usr/bin/kvm"
    if hv["nic_type"] == "paravirtual" and hv["vhost_net"]:
        hv["virtio_net_queues"] = draw(st.sampled_from([1, 4]))
    graphics = draw(st.sampled_from(["", "vnc", "spice"]))
    if graphics == "vnc":
        hv["vnc_bind_address"] = draw(st.sampled_from(["0.0.0.0", "::1", "eth0", "/srv/vnc"]))
        hv["vnc_tls"] = bool(hv["vnc_x509_path"])
        if hv["vnc_bind_address"] == "/srv/vnc":
            hv |= {"vnc_tls": False, "vnc_x509_path": ""}
        hv["vnc_x509_verify"] = bool(hv["vnc_x509_path"]) and draw(st.booleans())
    elif graphics == "spice":
        hv["spice_bind"] = draw(st.sampled_from(["127.0.0.1", "eth0"]))
        hv["spice_ip_version"] = draw(st.sampled_from([0, 4]))
        hv["spice_use_tls"] = draw(st.booleans())
        hv["spice_image_compression"] = draw(st.sampled_from(["", "lz"]))
    model = draw(st.sampled_from(["none", "user", "pool"]))
    hv |= {"security_model": model, "security_domain": "qemu" if model == "user" else ""}
    vcpus = draw(st.sampled_from([1, 4]))
    if vcpus == 4:
        hv["cpu_mask"] = draw(st.sampled_from([hv["cpu_mask"], "0:1:2:3", "all:1:all:3"]))
        hv |= draw(st.sampled_from([{}, {"cpu_cores": 2}, {"cpu_sockets": 1, "cpu_cores": 2, "cpu_threads": 2}]))
    low, high = sorted(draw(st.lists(st.integers(1, 512), min_size=2, max_size=2)))
    be = {"maxmem": high * 4, "minmem": low * 4, "vcpus": vcpus, "auto_balance": draw(st.booleans())}
    disks = [draw(_disk(index)) for index in range(draw(st.integers(0, 2)))]
    nics = [draw(_nic(index)) for index in range(draw(st.integers(0, 2)))]
    return {"hv": hv, "be": be, "disks": disks, "nics": nics}


@st.composite
def _disk(draw: st.DrawFn, index: int) -> dict[str, Any]:
    kind = draw(st.sampled_from(["plain", "file", "sharedfile", "rbd", "ext"]))
    disk = {
        "uuid": f"66666666-2222-4333-8444-55555555555{index}",
        "name": draw(st.sampled_from([None, f"data{index}", f"a b{index}"])),
        "size": 1024,
        "mode": draw(st.sampled_from(["rw", "ro"])),
        "dev_type": kind,
        "path": f"/dev/vg/disk{index}",
    }
    if kind == "rbd":
        disk |= {"uri": f"rbd:pool/image{index}", "access": draw(st.sampled_from(["userspace", "kernelspace"]))}
    return {**disk, "provider": "p"} if kind == "ext" else disk


@st.composite
def _nic(draw: st.DrawFn, index: int) -> dict[str, Any]:
    mode = draw(st.sampled_from(["bridged", "routed", "openvswitch", "ext"]))
    return {
        "uuid": f"11111111-2222-4333-8444-55555555555{index}",
        "mac": f"AA:00:00:00:00:0{index}",
        "name": draw(st.sampled_from([None, f"lan{index}"])),
        "network": draw(st.sampled_from([None, "22222222-2222-4333-8444-555555555555"])),
        "ip": f"192.0.2.{index}" if mode == "routed" else None,
        "nicparams": {"mode": mode, "link": "net0", "vlan": draw(st.sampled_from(["", "7", ":1:2", ".3:4"]))},
    }


def _without_effect(given: GanetiParameters) -> set[str]:
    """Names whose value says nothing, or the same in other words."""
    hv = given.hvparams
    names = {"user_shutdown"}
    spice = bool(hv["spice_bind"])
    usual_mouse = "tablet" if hv["vnc_bind_address"] else "none"
    for name, idle in (
        ("boot_order", hv["kernel_path"]),
        ("initrd_path", not hv["kernel_path"]),
        ("root_path", not hv["kernel_path"]),
        ("kernel_args", not hv["kernel_path"]),
        ("serial_speed", not (hv["kernel_path"] and hv["serial_console"])),
        ("cpu_type", hv["cpu_type"] in ("qemu64", "Haswell,+pcid")),
        ("cpu_mask", hv["cpu_mask"] == ""),
        ("disk_cache", hv["disk_cache"] == "writeback" or any(d["dev_type"] in _SHARED for d in given.disks)),
        ("machine_version", hv["machine_version"] == "pc"),
        ("vga", hv["vga"] == ("qxl" if spice else "std")),
        ("usb_mouse", hv["usb_mouse"] == usual_mouse),
        ("usb_devices", " " in hv["usb_devices"]),
        ("vnc_bind_address", hv["vnc_bind_address"].startswith("/")),
        ("vnc_x509_path", not hv["vnc_bind_address"]),
        ("spice_tls_ciphers", not hv["spice_use_tls"]),
        ("spice_playback_compression", not spice),
        ("spice_use_vdagent", not spice),
        ("migration_caps", "::" in hv["migration_caps"]),
        ("kvm_pci_reservations", hv["kvm_pci_reservations"] == 0),
        ("vhost_net", hv["nic_type"] != "paravirtual"),
        ("vnet_hdr", hv["nic_type"] != "paravirtual"),
        # A second drive alone is the first; a drive of the type it would have anyhow; no drive at all.
        ("cdrom_image_path", hv["cdrom2_image_path"] and not hv["cdrom_image_path"]),
        ("cdrom2_image_path", hv["cdrom2_image_path"] and not hv["cdrom_image_path"]),
        ("cdrom_disk_type", True),
    ):
        if idle:
            names.add(name)
    if hv["disk_type"] == "scsi-cd":
        names |= {"disk_type", "disk_cache", "disk_aio", "disk_discard"}
    allowed = {f"hvparams.{name}" for name in names} | {"beparams.auto_balance"}
    for index, nic in enumerate(given.nics):
        allowed |= {f"nics[{index}].network"}
        allowed |= {f"nics[{index}].vlan"} if nic["mode"] in ("routed", "ext") else set()
    for index, disk in enumerate(given.disks):
        allowed |= {f"disks[{index}].{name}" for name in ("size", "dev_type", "provider")}
        allowed |= {f"disks[{index}].name"} if " " in (disk["name"] or "") else set()
        allowed |= {f"disks[{index}].uri", f"disks[{index}].path"} if disk["uri"] else set()
        allowed |= {f"disks[{index}].{name}" for name in disk} if hv["disk_type"] == "scsi-cd" else set()
    return allowed


_SHARED = ("sharedfile", "gluster", "ext", "blockdev")


@settings(max_examples=400)
@given(sources())
def test_there_and_back(source: dict[str, Any]) -> None:
    """Exactly the source comes back; what the instance alone does not say is what has no effect."""
    done = to_instance("web1", source["hv"], source["be"], source["nics"], source["disks"], network_port=11000)
    if source["hv"]["disk_type"] == "scsi-cd" and any(d.get("access") == "userspace" for d in source["disks"]):
        assert done.instance is None  # no CD-ROM drive takes rbd
        return
    assert done.instance is not None, [str(finding) for finding in done.findings]
    assert hvcore.read_definition(done.instance)[1] == []
    assert set(done.unplaced) <= _without_effect(done.filled)
    restored = back(done, dict(done.unplaced))
    assert restored.flat() == done.filled.flat()
    assert [str(f) for f in restored.findings if f.severity is not Severity.ADVICE] == []


@settings(max_examples=250)
@given(sources())
def test_what_comes_back_means_the_same(source: dict[str, Any]) -> None:
    """Without what has no place, another translation of what comes back is the same instance."""
    done = to_instance("web1", source["hv"], source["be"], source["nics"], source["disks"], network_port=11000)
    shared = any(disk["dev_type"] in _SHARED for disk in source["disks"])
    if done.instance is None or source["hv"]["disk_type"] == "scsi-cd" or shared:
        return  # these need to be told what template a disk is of
    again = back(done)
    disks = [{**disk, "provider": "p"} if disk["dev_type"] == "ext" else disk for disk in again.disks]
    once_more = to_instance(
        "web1", again.hvparams, again.beparams, again.nics, disks, network_port=again.network_port or 11000, filled=True
    )
    assert once_more.instance == done.instance, [str(finding) for finding in once_more.findings]
    assert once_more.migration == done.migration


def test_what_has_been_changed_since_is_not_overwritten() -> None:
    """A kept value is restored only where the instance still says what it said."""
    done = translate({"vga": "std", "disk_cache": "writeback"})
    assert done.instance is not None
    changed = attrs.evolve(done.instance, params={**done.instance.params, "display_device": "cirrus"})
    restored = from_instance(changed, unplaced=done.unplaced)
    assert restored.hvparams["vga"] == "cirrus"
    assert restored.hvparams["disk_cache"] == "writeback"


def test_an_instance_of_ours_says_what_ganeti_cannot() -> None:
    """Each thing that is lost is named with its own path, and the rest is translated."""
    instance = Instance(
        name="web1",
        memory="130MiB",
        params={"machine": "q35", "tpm": "crb", "cdroms": [{}, {"path": "/a.iso"}], "boot": ["nics", "disks"]},
        disks=[Disk(path="/srv/a.qcow2", format="qcow2", params={"bus": "nvme", "cache": "unsafe", "serial": "x"})],
        nics=[Nic(mode="user", params={"model": "e1000e", "mtu": 9000})],
        consoles=["serial", "vnc", "spice"],
        security_model="confined",
    )
    done = from_instance(instance)
    lost = {finding.path for finding in done.findings if finding.code == "lossy"}
    assert lost >= {
        *("params.machine", "params.tpm", "params.cdroms[0]", "params.boot", "params.rng", "params.panic_device"),
        *("disks[0].format", "disks[0].params.bus", "disks[0].params.cache", "disks[0].params.serial"),
        *("nics[0].mode", "nics[0].params.model", "nics[0].params.mtu", "memory", "consoles", "security_model"),
    }
    assert all(f.severity is Severity.WARNING for f in done.findings if f.code == "lossy")
    assert done.hvparams["boot_order"] == "network"
    assert done.beparams["maxmem"] == 132
    assert set(done.hvparams) == NAMES


def test_a_kernel_command_line_of_another_form_is_kept_whole() -> None:
    """And it is said what Ganeti would add to it."""
    params = {"machine": "pc", "kernel": "/boot/vmlinuz", "cmdline": "quiet console=ttyS1"}
    done = from_instance(Instance(name="web1", params=params))
    assert (done.hvparams["root_path"], done.hvparams["kernel_args"]) == (None, "quiet console=ttyS1")
    assert [f.path for f in done.findings].count("params.cmdline") == 2


_JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.none(), max_size=2)
)


@settings(max_examples=250)
@given(
    st.dictionaries(st.one_of(st.sampled_from(sorted(NAMES)), st.text(max_size=5)), _JUNK, max_size=6),
    st.dictionaries(st.sampled_from(sorted(BACKEND)), _JUNK, max_size=3),
    st.lists(st.dictionaries(st.sampled_from(["mac", "mode", "link", "vlan", "ip", "name"]), _JUNK), max_size=2),
    st.lists(
        st.dictionaries(st.sampled_from(["path", "uri", "mode", "size", "dev_type", "access"]), _JUNK), max_size=2
    ),
)
def test_rubbish_is_found_and_never_raises(hv: Any, be: Any, nics: Any, disks: Any) -> None:
    """Whatever stands there, the answer is a translation with findings."""
    done = to_instance("web1", hv, be, nics, disks)
    assert (done.instance is None) == (not done.findings.ok)


@settings(max_examples=250)
@given(
    st.dictionaries(
        st.sampled_from(
            ["vnc", "spice", "user", "machine", "cdroms", "boot", "disk", "nic", "usb", "topology", "cmdline"]
        ),
        st.one_of(
            _JUNK, st.dictionaries(st.sampled_from(["port", "tls", "bind_address", "ip_version", "bus", "name"]), _JUNK)
        ),
    )
)
def test_a_wrong_instance_is_found_and_never_raises(params: dict[str, Any]) -> None:
    """The way back gives all names, whatever the instance says."""
    instance = Instance(name="web1", params=params, consoles=["vnc", "spice"], security_model="user")
    done = from_instance(instance)
    assert set(done.hvparams) == NAMES


def test_the_defaults_are_what_a_filled_set_is_made_of() -> None:
    """A complete set is accepted as one, and a missing name is then an error."""
    complete = {**hypervisor_defaults(), "kvm_path": "/usr/bin/kvm"}
    be = {"maxmem": 128, "minmem": 128, "vcpus": 1, "auto_balance": True, "always_failover": False, "spindle_use": 1}
    assert to_instance("web1", complete, be, filled=True).findings.ok
    del complete["vga"]
    done = to_instance("web1", complete, be, filled=True)
    assert [(f.path, f.code) for f in done.findings.errors] == [("hvparams.vga", "missing-parameter")]
    assert to_instance("web1", complete, be).findings.ok


def test_the_code_in_the_documentation_runs() -> None:
    """The marked blocks of the page are one program, whose own assertion is that the way back is exact."""
    blocks = re.findall(r"<!-- run -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    scope: dict[str, Any] = {}
    exec("\n".join(blocks), scope)
    assert scope["instance"].params["vnc"] == {"bind_address": "127.0.0.1", "port": 11000}
    assert scope["translation"].findings.ok


def test_the_table_in_the_documentation_is_current() -> None:
    """Between its markers, word for word."""
    begin, end = "<!-- begin parity -->\n", "<!-- end parity -->\n"
    text = PAGE.read_text()
    assert text.count(begin) == text.count(end) == 1
    assert text.partition(begin)[2].partition(end)[0].strip() == parity_markdown().strip()
