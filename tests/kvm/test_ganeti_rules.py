"""What is wrong or unwise in Ganeti's words: found all at once, with every name it is about."""

from __future__ import annotations

from typing import Any

import pytest

from hvcore import Severity
from hvcore_kvm.ganeti import Translation, assess, to_instance
from hvcore_kvm.ganeti.table import backend_defaults, hypervisor_defaults

VNC = {"vnc_bind_address": "0.0.0.0"}
SPICE = {"spice_bind": "127.0.0.1"}
KERNEL = {"kernel_path": "/boot/vmlinuz"}
ONE_DISK = {"disks": [{"path": "/dev/vg/one"}]}


def _nics(count: int) -> dict[str, Any]:
    return {"nics": [{"link": "br0"} for _ in range(count)]}


def _disks(count: int, **values: Any) -> dict[str, Any]:
    return {"disks": [{"path": f"/dev/vg/disk{index}", **values} for index in range(count)]}


def translate(hv: dict[str, Any], be: dict[str, Any] | None = None, **more: Any) -> Translation:
    return to_instance("web1", {"kvm_path": "/usr/bin/kvm", **hv}, be or {}, **{"network_port": 11000, **more})


def errors(done: Translation) -> set[str]:
    assert (done.instance is None) == (not done.findings.ok)
    return {finding.path for finding in done.findings.errors}


def hv(*names: str) -> set[str]:
    return {f"hvparams.{name}" for name in names}


_SINGLE: list[tuple[str, Any, bool]] = [
    *(
        ("kvm_path", value, False)
        for value in ("", None, "kvm", "/srv//a", "/srv/a/", "/srv/../a", "//srv/a", "~/a", 5)
    ),
    *(("kernel_path", value, False) for value in ("./a", "/a\n", 5)),
    *(("floppy_image_path", value, True) for value in ("", None, "/srv/a", "/", False)),
    *(("cdrom_image_path", value, True) for value in ("/srv/a", "http://h/a.iso", "https://h/a.iso")),
    *(("cdrom_image_path", v, False) for v in ("HTTP://h/a", "ftp://h/a", "ftps://h/a", "file:///a", "http:/h/a", "a")),
    *(("boot_order", value, False) for value in ("", None, "net", "Disk", "cdrom disk")),
    *(("cdrom_disk_type", value, True) for value in ("", None, "ide", "scsi-cd", "scsi", "pflash")),
    *(("disk_type", value, False) for value in ("", "IDE", "virtio", "sata")),
    *(("disk_type", value, True) for value in ("scsi-block", "scsi", "sd", "mtd", "pflash")),
    *(("disk_cache", value, False) for value in ("", "writethru", "directsync")),
    *(("disk_aio", value, True) for value in ("", None, "io_uring")),
    *(("disk_discard", value, False) for value in ("on", "default")),
    *(("nic_type", value, False) for value in ("", "virtio-net-pci", "E1000")),
    *(("nic_type", value, True) for value in ("ne2k_isa", "i82559er")),
    *(("scsi_controller_type", value, False) for value in ("", "lsi53c895a")),
    *(("usb_mouse", value, False) for value in ("Tablet", "keyboard")),
    *(("kvm_flag", value, False) for value in ("yes", "Enabled")),
    *(("reboot_behavior", value, False) for value in (None, "poweroff")),
    *(("security_model", value, False) for value in ("", "selinux")),
    *(("migration_mode", value, False) for value in ("non_live", None)),
    *(("migration_port", value, True) for value in (1, 80, 65535, "8102")),
    *(("migration_port", value, False) for value in (0, 65536, "", -1, 8102.0, True)),
    *(("migration_bandwidth", value, False) for value in (-1, None, "fast")),
    *(("migration_downtime", value, True) for value in (0, 100)),
    *(("cpu_cores", value, False) for value in (-1, "two")),
    *(("cpu_mask", value, True) for value in ("all", "", None, "0", "3,1,2", "0-7", "4-4")),
    *(
        ("cpu_mask", v, False)
        for v in ("0:", ":0", "a", "1-", "3-1", "1--2", ",1", "all,1", "1 - 2", "+1", "1_0", "٣", "*")
    ),
    *(("kvm_pci_reservations", value, True) for value in (0, 8, 31, None)),
    *(("kvm_pci_reservations", value, False) for value in (-1, 32, 33)),
    *(("virtio_net_queues", value, True) for value in (1, 32, None)),
    *(("virtio_net_queues", value, False) for value in (0, 33)),
    *(("spice_ip_version", value, False) for value in (5, -1)),
    *(("serial_speed", value, True) for value in (75, 14400, 115200, "9600")),
    *(("serial_speed", value, False) for value in (1, 0, None, 921600)),
    *(("acpi", value, True) for value in (True, "False", 0, "")),
    *(("acpi", value, False) for value in (None, "yes", "1")),
    *(("kvm_extra", value, True) for value in ("", "-global 'a.b=c d'")),
    *(("kvm_extra", value, False) for value in ('"unbalanced', "-cpu host", "image.raw", "-device")),
    *(("vga", value, True) for value in ("cirrus", "none", "tcx")),
    *(("vga", value, False) for value in ("cirus", "3dfx")),
    *(("soundhw", value, True) for value in ("hda", "adlib")),
    *(("soundhw", value, False) for value in ("had",)),
    *(("usb_devices", value, True) for value in ("tablet", "mouse, keyboard", "wacom-tablet")),
    *(("usb_devices", value, False) for value in ("tablett", "host:1.2", "disk:/a")),
    *(("keymap", value, False) for value in ("d e", "de,x=y")),
    *(("cpu_type", value, True) for value in ("host", "nonsense", "kvm64,+sse4.2")),
    *(("cpu_type", value, False) for value in (",+vmx", "ho st")),
    *(("machine_version", value, False) for value in ("pc,accel=kvm", "a|b")),
    *(("spice_bind", value, False) for value in ("/srv/spice", "a b")),
    *(("migration_caps", value, True) for value in ("", "nonsense", "xbzrle:events")),
]


@pytest.mark.parametrize(("name", "value", "right"), _SINGLE, ids=[f"{n}={v!r}" for n, v, _ in _SINGLE])
def test_single_values(name: str, value: Any, right: bool) -> None:
    """A wrong one is found under its name, and nothing else is found with it."""
    be = {"vcpus": value.count(":") + 1} if name == "cpu_mask" and isinstance(value, str) else {}
    assert errors(translate({name: value}, be)) == (set() if right else hv(name))


_RULES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], set[str]]] = {
    # Hypervisor parameters, backend parameters, further arguments; the paths of the errors.
    "boot from a drive that holds nothing": (
        {"boot_order": "cdrom", "cdrom2_image_path": "/a.iso"},
        {},
        {},
        hv("boot_order", "cdrom_image_path"),
    ),
    "with a kernel the boot order does not count": ({"boot_order": "cdrom", **KERNEL}, {}, {}, set()),
    "boot from a floppy that is not there": ({"boot_order": "floppy"}, {}, {}, hv("boot_order", "floppy_image_path")),
    "boot from a floppy": ({"boot_order": "floppy", "floppy_image_path": "/a"}, {}, {}, set()),
    "a kernel without a root device": ({**KERNEL, "root_path": ""}, {}, {}, set()),
    "a user without a name": ({"security_model": "user"}, {}, {}, hv("security_model", "security_domain")),
    "a name without the model": ({"security_domain": "qemu"}, {}, {}, hv("security_model", "security_domain")),
    "a name with the pool": (
        {"security_model": "pool", "security_domain": "qemu"},
        {},
        {},
        hv("security_model", "security_domain"),
    ),
    "a speed without a console": ({"serial_console": False, "serial_speed": 1}, {}, {}, set()),
    "peers checked without certificates": (
        {**VNC, "vnc_tls": True, "vnc_x509_verify": True},
        {},
        {},
        hv("vnc_x509_verify", "vnc_x509_path"),
    ),
    "VNC options without VNC are left out": (
        {"vnc_tls": True, "vnc_x509_path": "/a", "vnc_password_file": "/b"},
        {},
        {},
        set(),
    ),
    "certificates without TLS": ({**VNC, "vnc_x509_path": "/a"}, {}, {}, hv("vnc_x509_path", "vnc_tls")),
    "TLS on a socket": (
        {"vnc_bind_address": "/srv/vnc", "vnc_tls": True},
        {},
        {},
        hv("vnc_tls", "vnc_bind_address"),
    ),
    "a password on a socket": (
        {"vnc_bind_address": "/srv/vnc", "vnc_password_file": "/a"},
        {},
        {},
        hv("vnc_password_file", "vnc_bind_address"),
    ),
    "a port below the first display": (VNC, {}, {"network_port": 5899}, {"network_port"}),
    "the port of the first display": (VNC, {}, {"network_port": 5900}, set()),
    "a low port does not matter to a socket": ({"vnc_bind_address": "/srv/vnc"}, {}, {"network_port": 80}, set()),
    "no port": (VNC, {}, {"network_port": None}, set()),
    "SPICE options without SPICE": (
        {"spice_ip_version": 4, "spice_use_tls": True, "spice_image_compression": "lz"},
        {},
        {},
        hv("spice_bind", "spice_ip_version", "spice_use_tls", "spice_image_compression"),
    ),
    "SPICE options that always have a value": (
        {"spice_playback_compression": False, "spice_tls_ciphers": "", "spice_use_vdagent": False},
        {},
        {},
        set(),
    ),
    "an address of another family": (
        {"spice_bind": "::1", "spice_ip_version": 4},
        {},
        {},
        hv("spice_bind", "spice_ip_version"),
    ),
    "an address of the family": ({"spice_bind": "::1", "spice_ip_version": 6}, {}, {}, set()),
    "an interface has every family": ({"spice_bind": "eth0", "spice_ip_version": 6}, {}, {}, set()),
    "VNC and SPICE": ({**VNC, **SPICE}, {}, {}, hv("vnc_bind_address", "spice_bind")),
    "native AIO through the page cache": ({"disk_aio": "native"}, {}, ONE_DISK, hv("disk_aio", "disk_cache")),
    "native AIO without it": ({"disk_aio": "native", "disk_cache": "none"}, {}, ONE_DISK, set()),
    "native AIO on disks that are never cached": (
        {"disk_aio": "native"},
        {},
        _disks(2, dev_type="sharedfile"),
        set(),
    ),
    "disks of a type that is none": ({"disk_type": "sd"}, {}, ONE_DISK, hv("disk_type")),
    "NICs of a type that does not start": ({"nic_type": "ne2k_isa"}, {}, _nics(1), hv("nic_type")),
    "a drive of a type that makes none": (
        {"cdrom_image_path": "/a.iso", "cdrom_disk_type": "scsi-hd"},
        {},
        {},
        hv("cdrom_disk_type"),
    ),
    "a drive beside SCSI disks": ({"cdrom_image_path": "/a.iso", "disk_type": "scsi-hd"}, {}, ONE_DISK, set()),
    "a drive beside disks that are none": (
        {"cdrom_image_path": "/a.iso", "disk_type": "mtd"},
        {},
        {},
        hv("cdrom_disk_type", "disk_type"),
    ),
    "queues without vhost": (
        {"virtio_net_queues": 4, "vhost_net": False},
        {},
        {},
        hv("virtio_net_queues", "vhost_net"),
    ),
    "queues of an emulated NIC": (
        {"virtio_net_queues": 4, "nic_type": "e1000"},
        {},
        {},
        hv("virtio_net_queues", "nic_type"),
    ),
    "queues without offloads": ({"virtio_net_queues": 4, "vnet_hdr": False}, {}, _nics(1), set()),
    "a mask for two of one": ({"cpu_mask": "0:1"}, {}, {}, hv("cpu_mask") | {"beparams.vcpus"}),
    "a mask for two of two": ({"cpu_mask": "0:all"}, {"vcpus": 2}, {}, set()),
    "a mask for all": ({"cpu_mask": "0-1"}, {"vcpus": 8}, {}, set()),
    "three cores of four": ({"cpu_cores": 3}, {"vcpus": 4}, {}, hv("cpu_cores") | {"beparams.vcpus"}),
    "eight sockets of four": ({"cpu_sockets": 8}, {"vcpus": 4}, {}, hv("cpu_sockets") | {"beparams.vcpus"}),
    "two cores of four": ({"cpu_cores": 2}, {"vcpus": 4}, {}, set()),
    "a whole topology that is too small": (
        {"cpu_sockets": 1, "cpu_cores": 2, "cpu_threads": 1},
        {"vcpus": 4},
        {},
        hv("cpu_sockets", "cpu_cores", "cpu_threads") | {"beparams.vcpus"},
    ),
    "the host's CPU without KVM": (
        {"cpu_type": "host,+vmx", "kvm_flag": "disabled"},
        {},
        {},
        hv("cpu_type", "kvm_flag"),
    ),
    "the host's CPU, perhaps with KVM": ({"cpu_type": "host"}, {}, {}, set()),
    "less memory than the least": ({}, {"maxmem": 128, "minmem": 256}, {}, {"beparams.maxmem", "beparams.minmem"}),
    "the default of minmem follows": ({}, {"maxmem": 64}, {}, set()),
    "no memory": ({}, {"memory": 0}, {}, {"beparams.maxmem"}),
    "no CPUs": ({}, {"vcpus": 0}, {}, {"beparams.vcpus"}),
    "nine disks on eight targets": (
        {"disk_type": "scsi-hd"},
        {},
        _disks(9),
        hv("scsi_controller_type", "disk_type"),
    ),
    "nine disks on sixteen targets": (
        {"disk_type": "scsi-hd", "scsi_controller_type": "virtio-scsi-pci"},
        {},
        _disks(9),
        set(),
    ),
    "eight disks and a drive on eight targets": (
        {"disk_type": "scsi-hd", "cdrom_image_path": "/a.iso"},
        {},
        _disks(8),
        hv("scsi_controller_type", "disk_type"),
    ),
    "five IDE devices": ({"disk_type": "ide", "cdrom_image_path": "/a.iso"}, {}, _disks(4), hv("disk_type")),
    "four IDE devices": ({"disk_type": "ide", "cdrom_image_path": "/a.iso"}, {}, _disks(3), set()),
    "more devices than slots": (
        {"kvm_pci_reservations": 30},
        {},
        {**_disks(2), **_nics(1)},
        hv("kvm_pci_reservations"),
    ),
    "as many devices as slots": ({"kvm_pci_reservations": 30}, {}, {**_disks(1), **_nics(1)}, set()),
}


@pytest.mark.parametrize("rule", _RULES)
def test_several_values_together(rule: str) -> None:
    """Every name a rule is about is among the paths, and no other."""
    hypervisor, backend, more, paths = _RULES[rule]
    done = translate(hypervisor, backend, **more)
    assert errors(done) == paths, [str(finding) for finding in done.findings.errors]
    assert all(finding.message for finding in done.findings)


_WARNED = {
    "vnc_password_file": {"vnc_password_file": "/a"},
    "vnc_x509_verify": {"vnc_x509_verify": True, "vnc_x509_path": "/a"},
    "root_path": {**KERNEL, "root_path": None},
    "virtio_net_queues": {"virtio_net_queues": 2, "vnet_hdr": False},
    "disk_type": {"disk_type": "pflash"},
    "nic_type": {"nic_type": "ne2k_isa"},
    "vga": {"vga": "cg3"},
    "soundhw": {"soundhw": "gus"},
    "usb_devices": {"usb_devices": "tablet,braille"},
}


@pytest.mark.parametrize("name", _WARNED)
def test_what_stops_nothing_is_a_warning(name: str) -> None:
    """It is said, under its name, and there is an instance."""
    done = translate(_WARNED[name])
    if name == "vnc_x509_verify":
        assert done.instance is not None
    assert done.findings.ok
    assert f"hvparams.{name}" in {f.path for f in done.findings if f.severity is Severity.WARNING}
    assert not [f for f in translate({}).findings if f.severity is Severity.WARNING]


def test_more_queues_than_virtual_cpus_are_advised_against() -> None:
    """Not more, and it is no error."""
    name = "hvparams.virtio_net_queues"
    few, enough = (translate({"virtio_net_queues": 4}, {"vcpus": count}, **_nics(1)) for count in (2, 4))
    assert [f.severity for f in few.findings if f.path == name] == [Severity.ADVICE]
    assert [f for f in enough.findings if f.path == name] == []


@pytest.mark.parametrize(
    ("nic", "wrong"),
    [
        ({"mode": "macvtap", "link": "e"}, "mode"),
        ({"mode": "pool", "link": "e"}, "mode"),
        ({"mode": "bridged"}, "link"),
        ({"mode": "openvswitch", "link": ""}, "link"),
        ({"mode": "routed"}, "ip"),
        *(
            ({"link": "b", "vlan": text}, "vlan")
            for text in ("1:2", "..1", "1.2", "4095", "0", "+1", ".1:", ":1:1", "a", "1 ")
        ),
        *(
            ({"link": "b", "mac": text}, "mac")
            for text in ("bad", "01:00:5e:00:00:01", "00:00:00:00:00:00", "aa:bb:cc:dd:ee:gg")
        ),
        *(({"link": "b", "ip": text}, "ip") for text in ("pool", "auto", "1.2.3", "h")),
        ({"link": "b", "name": "12"}, "name"),
        ({"link": "b", "name": 5}, "name"),
        ({"link": "b", "uuid": "x"}, "uuid"),
        ({"link": "b", "lnk": "b"}, "lnk"),
    ],
)
def test_what_is_wrong_with_a_nic(nic: dict[str, Any], wrong: str) -> None:
    """Under the name of the field, of the right NIC."""
    good = {"link": "br0", "mac": "aa:00:00:00:00:01"}
    assert errors(translate({}, nics=[good, nic])) == {f"nics[1].{wrong}"}
    assert errors(translate({}, nics=[good])) == set()


@pytest.mark.parametrize(
    "nic",
    [
        {"mode": "routed", "ip": "2001:db8::1"},
        {"mode": "routed", "network": "net1"},
        {"mode": "ext"},
        {"link": "b", "mac": "generate", "name": "none", "ip": "none"},
        {"link": "b", "vlan": ".4094:1", "name": "None"},
        {"link": "b", "name": "a b"},
    ],
)
def test_nics_that_are_right(nic: dict[str, Any]) -> None:
    """With everything Ganeti itself would store."""
    assert errors(translate({}, nics=[nic])) == set()


@pytest.mark.parametrize(
    ("disk", "wrong"),
    [
        ({}, "path"),
        ({"path": "a"}, "path"),
        ({"path": "/a", "mode": "rx"}, "mode"),
        ({"path": "/a", "dev_type": "diskless"}, "dev_type"),
        ({"path": "/a", "dev_type": "drbd", "access": "userspace"}, "access"),
        ({"path": "/a", "dev_type": "rbd", "access": "user"}, "access"),
        ({"dev_type": "rbd", "access": "kernelspace", "uri": "rbd:p/i"}, "path"),
        ({"path": "/a", "dev_type": "ext"}, "provider"),
        ({"path": "/a", "provider": "p"}, "provider"),
        ({"path": "/a", "size": "big"}, "size"),
        ({"path": "/a", "size": -1}, "size"),
        ({"path": "/a", "name": "-1"}, "name"),
        ({"path": "/a", "uuid": "nil"}, "uuid"),
        ({"path": "/dev/vg/one"}, "path"),
        ({"path": "/a", "acess": "kernelspace"}, "acess"),
    ],
)
def test_what_is_wrong_with_a_disk(disk: dict[str, Any], wrong: str) -> None:
    """Under the name of the field, of the right disk."""
    assert errors(translate({}, disks=[{"path": "/dev/vg/one"}, disk])) == {f"disks[1].{wrong}"}
    assert errors(translate({}, **ONE_DISK)) == set()


def test_names_of_devices_are_not_mixed_up() -> None:
    """Neither with each other nor with another's uuid; upper and lower case differ."""
    uuid = "66666666-2222-4333-8444-555555555555"
    first = {"path": "/a", "uuid": uuid, "name": "data"}
    assert "disks[1].name" in errors(translate({}, disks=[first, {"path": "/b", "name": "data"}]))
    assert "disks[1].name" in errors(translate({}, disks=[first, {"path": "/b", "name": uuid}]))
    assert errors(translate({}, disks=[first, {"path": "/b", "name": "Data"}])) == set()


def test_unknown_names_are_refused_with_the_nearest() -> None:
    """In every group."""
    done = translate({"vnc_bind_adress": "::1", "pae": True}, {"max_mem": 1}, nics=[{"link": "b", "vlam": ""}])
    found = {finding.path: finding for finding in done.findings.errors}
    assert set(found) == {"hvparams.vnc_bind_adress", "hvparams.pae", "beparams.max_mem", "nics[0].vlam"}
    assert found["hvparams.vnc_bind_adress"].hint == "did you mean vnc_bind_address?"
    assert found["beparams.max_mem"].hint == "did you mean maxmem or minmem?"
    assert {finding.code for finding in found.values()} == {"unknown-parameter"}


@pytest.mark.parametrize("name", sorted(hypervisor_defaults()))
def test_a_filled_set_holds_every_parameter(name: str) -> None:
    """One that is missing is named; without that promise, Ganeti's default stands for it."""
    complete = {**hypervisor_defaults(), "kvm_path": "/usr/bin/kvm"}
    del complete[name]
    done = to_instance("web1", complete, backend_defaults(), filled=True)
    assert [finding.path for finding in done.findings.errors] == [f"hvparams.{name}"]
    assert to_instance("web1", complete, {}).findings.ok


def test_everything_is_found_at_once() -> None:
    """Wrong names, types and values, contradictions, what has no place; what follows from one is left out."""
    done = to_instance(
        "web 1",
        {
            "acpi": "yes",
            "boot_order": "net",
            "vga": "cirus",
            "keymap": "d e",
            "disk_aio": "native",
            "security_model": "user",
            "kvm_path": "kvm",
        },
        {"vcpus": 1.5, "minmem": "1g"},
        [{"mode": "tap"}],
        [{"mode": "rx"}],
        network_port=0,
    )
    assert errors(done) == {
        *hv(
            "acpi",
            "boot_order",
            "vga",
            "keymap",
            "disk_aio",
            "disk_cache",
            "security_model",
            "security_domain",
            "kvm_path",
        ),
        *("name", "beparams.vcpus", "beparams.minmem", "beparams.maxmem", "network_port"),
        *("nics[0].mode", "nics[0].link", "disks[0].mode", "disks[0].path"),
    }
    assert errors(to_instance("web 1", {}, {}, uuid="x", tags=["a b"])) == {"name", "uuid", "tags[0]"}


@pytest.mark.parametrize("group", ["hvparams", "beparams", "nics", "disks"])
@pytest.mark.parametrize("value", [None, 5, "text"])
def test_a_group_of_another_type(group: str, value: Any) -> None:
    """It is found, and the others are looked at all the same."""
    groups = {"hvparams": {"acpi": "yes"}, "beparams": {"vcpus": 0}, "nics": [{}], "disks": [{}], group: value}
    found = errors(to_instance("web1", *groups.values()))
    assert group in found
    assert {path.partition(".")[0].partition("[")[0] for path in found} == set(groups)


# Advice.

_SOUND = {
    "cpu_type": "Haswell-noTSX",
    "machine_version": "pc-i440fx-7.2",
    "migration_bandwidth": 1000,
    "migration_downtime": 300,
}


@pytest.mark.parametrize(
    ("values", "about"),
    [
        ({}, set()),
        *(({"cpu_type": model}, {"cpu_type"}) for model in ("", "qemu32", "qemu64", "kvm32", "kvm64", "host")),
        ({"vhost_net": False}, {"vhost_net"}),
        ({"migration_bandwidth": 32}, {"migration_bandwidth"}),
        ({"migration_bandwidth": 0}, {"migration_bandwidth"}),
        ({"migration_bandwidth": 99}, {"migration_bandwidth"}),
        ({"migration_bandwidth": 100}, set()),
        ({"migration_downtime": 30}, {"migration_downtime"}),
        ({"disk_type": "ide", "nic_type": "e1000"}, {"disk_type", "nic_type"}),
        *(({"vnc_bind_address": where}, {"vnc_tls"}) for where in ("0.0.0.0", "::", "eth0")),
        *(({"vnc_bind_address": where}, set()) for where in ("127.0.0.1", "127.0.0.2", "::1", "/srv/vnc")),
        ({"vnc_bind_address": "0.0.0.0", "vnc_tls": True}, set()),
        ({"spice_bind": "192.0.2.1"}, {"spice_use_tls"}),
        ({"spice_bind": "::1"}, set()),
        ({"spice_bind": "192.0.2.1", "spice_use_tls": True}, set()),
        *(({"machine_version": kind}, {"machine_version"}) for kind in ("", "pc", "q35", "none", "microvm", "isapc")),
        ({"machine_version": "pc-q35-7.2"}, set()),
        ({"soundhw": "hda"}, {"soundhw"}),
        ({"soundhw": "hda", "spice_bind": "::1"}, set()),
    ],
)
def test_advice(values: dict[str, Any], about: set[str]) -> None:
    """What is unwise is named, and nothing else; none of it is an error."""
    findings = assess({**_SOUND, **values})
    assert {finding.path for finding in findings} == hv(*about)
    assert {finding.severity for finding in findings} <= {Severity.ADVICE}


def test_advice_on_ganetis_own_defaults() -> None:
    """They have aged."""
    assert {finding.path for finding in assess({})} == hv(
        "cpu_type", "machine_version", "migration_bandwidth", "migration_downtime"
    )
    assert assess({"cpu_type": 5, "nonsense": 1}).ok
