"""Nothing that people coming from Ganeti can set, or that users of today expect, is without a place."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from hvcore import MigrationPolicy
from hvcore.params.declare import declaration
from hvcore_kvm.ganeti import PARITY
from hvcore_kvm.ganeti.table import HOST_APPLICATION


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_GANETI = _words("""
    acpi boot_order cdrom_image_path cdrom2_image_path cdrom_disk_type cpu_cores cpu_mask cpu_sockets cpu_threads
    cpu_type disk_aio disk_cache disk_discard disk_type floppy_image_path initrd_path kernel_args kernel_path keymap
    kvm_extra kvm_flag kvm_path kvm_pci_reservations machine_version mem_path migration_bandwidth migration_caps
    migration_downtime migration_mode migration_port nic_type reboot_behavior root_path scsi_controller_type
    security_domain security_model serial_console serial_speed soundhw spice_bind spice_image_compression
    spice_ip_version spice_jpeg_wan_compression spice_password_file spice_playback_compression spice_streaming_video
    spice_tls_ciphers spice_use_tls spice_use_vdagent spice_zlib_glz_wan_compression usb_devices usb_mouse use_chroot
    use_guest_agent use_localtime user_shutdown vga vhost_net virtio_net_queues vnc_bind_address vnc_password_file
    vnc_tls vnc_x509_path vnc_x509_verify vnet_hdr
""")
_BACKEND = _words("maxmem minmem memory vcpus auto_balance always_failover spindle_use")
_NIC = _words("mode link vlan mac ip network name uuid bridge")
_DISK = _words("size mode name access provider spindles vg metavg adopt dev_type uuid")

# What else users of QEMU set today, and where it is here.
_TODAY = {
    "machine type": "params.machine",
    "architecture": "params.arch",
    "accelerator": "params.accel",
    "firmware": "params.firmware",
    "template of UEFI variables": "params.firmware_vars_template",
    "UEFI variables in JSON": "params.uefi_vars_json",
    "confidential computing": "params.confidential",
    "boot order": "params.boot",
    "boot menu": "params.boot_menu",
    "time of the boot prompt": "params.boot_splash",
    "strict boot": "params.boot_strict",
    "kernel": "params.kernel",
    "initrd": "params.initrd",
    "kernel command line": "params.cmdline",
    "device tree": "params.dtb",
    "CPU model": "params.cpu_model",
    "CPU features": "params.cpu_features",
    "enforced features": "params.cpu_enforce",
    "most CPUs": "params.vcpus_max",
    "topology": "params.topology.dies",
    "pinning": "params.cpu_pin",
    "pinning of the emulator": "params.emulator_pin",
    "pinning of I/O threads": "params.iothread_pin",
    "Hyper-V": "params.hyperv",
    "nested": "params.nested",
    "memory backend": "params.memory_backend",
    "shared memory": "params.memory_share",
    "huge pages": "params.hugepage_size",
    "allocation": "params.memory_prealloc",
    "locking": "params.memory_lock",
    "dumps": "params.memory_dump",
    "KSM": "params.memory_merge",
    "NUMA": "params.numa[].host_nodes",
    "memory to grow into": "params.memory_max",
    "memory slots": "params.memory_slots",
    "virtio-mem": "params.virtio_mem",
    "balloon": "params.balloon_free_page_reporting",
    "balloon statistics": "params.balloon_stats_interval",
    "disk bus": "disks[].params.bus",
    "cache": "disks[].params.cache",
    "aio": "disks[].params.aio",
    "discard": "disks[].params.discard",
    "zeroes": "disks[].params.detect_zeroes",
    "read-only": "disks[].read_only",
    "serial": "disks[].params.serial",
    "wwn": "disks[].params.wwn",
    "block sizes": "disks[].params.physical_block_size",
    "disk queues": "disks[].params.queues",
    "queue size": "disks[].params.queue_size",
    "I/O thread": "disks[].params.iothread",
    "I/O threads of queues": "disks[].params.iothread_mapping",
    "packed queues": "disks[].params.packed",
    "throttling": "disks[].params.throttle.iops_total",
    "throttling together": "params.throttle_groups.NAME.bps_total",
    "rotation rate": "disks[].params.rotation_rate",
    "errors": "disks[].params.on_write_error",
    "persistent reservations": "disks[].params.reservations",
    "encryption": "disks[].params.secret_file",
    "storage servers": "disks[].uri",
    "CD-ROM drives": "params.cdroms[].url",
    "TPM": "params.tpm",
    "randomness": "params.rng_rate",
    "watchdog": "params.watchdog_action",
    "vsock": "params.vsock_cid",
    "guest agent": "params.guest_agent",
    "shares": "params.shares[].tag",
    "VFIO": "params.pci_passthrough[].address",
    "USB": "params.usb[].type",
    "graphics": "params.display_device",
    "VNC": "params.vnc.websocket",
    "sound": "params.sound",
    "panic": "params.panic_device",
    "IOMMU": "params.iommu",
    "SMBIOS": "params.smbios",
    "firmware configuration": "params.fw_cfg",
    "serial ports": "params.serial_ports",
    "NIC model": "nics[].params.model",
    "vhost": "nics[].params.vhost",
    "NIC queues": "nics[].params.rx_queue_size",
    "MTU": "nics[].params.mtu",
    "RSS": "nics[].params.rss",
    "offloads": "nics[].params.offloads",
    "failover pair": "nics[].params.failover",
    "link state": "nics[].params.link_up",
    "sandbox": "params.sandbox",
    "root directory": "params.chroot",
    "user": "params.user.name",
    "user ids": "params.confined.uids",
    "weight of processors": "params.cpu_shares",
    "quota of processors": "params.cpu_quota",
    "memory limit": "params.memory_limit",
    "thread limit": "params.pids_limit",
    "disk limit": "params.io_limit.write_bps",
}

# And of a migration, in the policy it is asked for with.
_MIGRATION = {
    "port range": "first_port last_port",
    "TLS": "tls",
    "several connections": "multifd",
    "post-copy": "postcopy",
    "slowing the guest down": "auto_converge dirty_limit",
    "bandwidth": "max_bandwidth",
    "downtime": "downtime_limit downtime_maximum",
    "deadline": "deadline converge_within",
    "what if it does not converge": "on_no_convergence",
    "switch-over": "switchover",
    "zero copy": "zero_copy",
}


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What ``hv params kvm --json`` says, by path."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "hvcore.cli", "params", "kvm", "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
    return {row["path"]: row for row in found["parameters"]}


def test_every_name_of_ganeti_has_a_place(rows: dict[str, Any]) -> None:
    """All 65 hypervisor parameters, and those of backend, NICs and disks, are in the table, and their places exist."""
    assert len(_GANETI) == 65
    names = [
        *(f"hvparams.{name}" for name in _GANETI),
        *(f"beparams.{name}" for name in _BACKEND),
        *(f"nics[].{name}" for name in _NIC),
        *(f"disks[].{name}" for name in _DISK),
    ]
    assert [name for name in names if name not in PARITY] == []
    outside = ("MigrationPolicy", "Translation.migration", HOST_APPLICATION)
    places = {name: PARITY[name][0] for name in names}
    wrong = {
        name: place
        for name, place in places.items()
        if not place.startswith(outside) and any(part.strip() not in rows for part in place.split(","))
    }
    assert wrong == {}


def test_every_hypervisor_parameter_is_found_by_its_old_name(rows: dict[str, Any]) -> None:
    """``hv params`` knows each by its name in Ganeti, except what is no business of a definition."""
    known = {alias for row in rows.values() for alias in row["aliases"]}
    elsewhere = {name for name in _GANETI if not PARITY[f"hvparams.{name}"][0].startswith(("params", "disks", "nics"))}
    assert set(_GANETI) - known - elsewhere - {"security_model", "serial_console"} == set()


@pytest.mark.parametrize("what", sorted(_TODAY))
def test_what_users_of_today_set_has_a_place(rows: dict[str, Any], what: str) -> None:
    """And a sentence that says what it does."""
    assert rows[_TODAY[what]]["summary"].endswith(".")


@pytest.mark.parametrize("what", sorted(_MIGRATION))
def test_what_users_of_today_set_of_a_migration_has_a_place(what: str) -> None:
    """A field of the policy, with a sentence that says what it does."""
    for name in _MIGRATION[what].split():
        assert declaration(attrs.fields_dict(MigrationPolicy)[name]).summary.endswith(".")


@pytest.mark.qemu
def test_what_this_host_supports_is_listed(rows: dict[str, Any]) -> None:
    """Values that differ between QEMU programs are listed as this one has them."""
    assert "pc-q35-7.2" in rows["params.machine"]["supported"]
    assert "qemu64" in rows["params.cpu_model"]["supported"]
    assert "qxl" in rows["params.display_device"]["supported"]
    assert rows["params.acpi"]["supported"] is None
