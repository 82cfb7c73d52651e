"""Parameters that Ganeti has no word for, and the values its guests have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hvcore_kvm.parameters.confidential import ConfidentialParameters
from hvcore_kvm.parameters.cpu import CpuParameters
from hvcore_kvm.parameters.devices import DeviceParameters
from hvcore_kvm.parameters.disk import DiskParameters, StorageParameters
from hvcore_kvm.parameters.machine import BootParameters, MachineParameters
from hvcore_kvm.parameters.memory import MemoryParameters
from hvcore_kvm.parameters.nic import NicParameters
from hvcore_kvm.parameters.resources import ResourceParameters

ANYTHING = object()
"""Any value: the guest of Ganeti does not notice, or another parameter decides whether it does."""

NEUTRAL: Mapping[type, Mapping[str, tuple[Any, ...]]] = {
    MachineParameters: {
        "arch": (None, "x86_64"),
        "hpet": (True,),
        "iommu": ("none",),
        "hotplug_ports": (ANYTHING,),
        "on_panic": (ANYTHING,),
        "panic_device": (False,),
        "vmgenid": (False,),
        "rtc_driftfix": (False,),
        "smbios": ({},),
        "smbios_oem": ((),),
        "fw_cfg": ({},),
        "sandbox": (ANYTHING,),
    },
    BootParameters: {
        "firmware": (None, "bios"),
        "firmware_image": (None,),
        "firmware_code": (None,),
        "firmware_vars_template": (None,),
        "uefi_vars_json": (False,),
        "dtb": (None,),
        "boot_menu": (False,),
        "boot_splash": (ANYTHING,),
        "boot_strict": (False,),
    },
    CpuParameters: {
        "hyperv": ((),),
        "nested": (None,),
        "vcpus_max": (None,),
        "emulator_pin": (None,),
        "iothread_pin": (None,),
    },
    MemoryParameters: {
        "memory_share": (None, False),
        "hugepage_size": (None,),
        "memory_lock": (False,),
        "memory_merge": (ANYTHING,),
        "memory_dump": (ANYTHING,),
        "memory_max": (None,),
        "memory_slots": (0,),
        "virtio_mem": (None,),
        "memory_plugged": (0,),
        "numa": ((),),
        "balloon": (True,),
        "balloon_target": (None,),
        "balloon_free_page_reporting": (False,),
        "balloon_deflate_on_oom": (False,),
        "balloon_stats_interval": (0.0,),
    },
    ResourceParameters: {
        "cpu_shares": (None,),
        "cpu_quota": (None,),
        "memory_limit": (None,),
        "pids_limit": (None,),
        "io_limit": (None,),
    },
    ConfidentialParameters: {
        "confidential": ("none",),
        "confidential_policy": (None,),
        "confidential_kernel_hashes": (False,),
    },
    StorageParameters: {
        "scsi_iothread": (None,),
        "iothreads": (0,),
        "throttle_groups": ({},),
    },
    DeviceParameters: {
        "rng": (False,),
        "rng_source": (ANYTHING,),
        "rng_rate": (ANYTHING,),
        "watchdog": ("none",),
        "watchdog_action": (ANYTHING,),
        "vsock": (False,),
        "vsock_cid": (ANYTHING,),
        "tpm": ("none",),
        "usb_controller": (None, "uhci"),
        "sound_backend": (None,),
        "serial_ports": (0,),
        "virtio_ports": ((),),
        "shares": ((),),
        "pci_passthrough": ((),),
    },
    DiskParameters: {
        "controller": (0,),
        "write_cache": (None,),
        "detect_zeroes": ("off",),
        "serial": (None,),
        "wwn": (None,),
        "logical_block_size": (None,),
        "physical_block_size": (None,),
        "rotation_rate": (None,),
        "queues": (None,),
        "queue_size": (None,),
        "packed": (False,),
        "iothread": (None,),
        "iothread_mapping": ((),),
        "throttle": (None,),
        "throttle_group": (None,),
        "on_read_error": ("report",),
        "on_write_error": ("enospc",),
        "encryption": (False,),
        "secret_file": (ANYTHING,),
        "reservations": (False,),
        "shared": (False,),
        "any_header": (ANYTHING,),
    },
    NicParameters: {
        "rx_queue_size": (None,),
        "packed": (False,),
        "rss": (False,),
        "mtu": (None,),
        "offloads": ({},),
        "link_up": (True,),
        "acpi_index": (None,),
        "failover": (None,),
    },
}
"""What Ganeti has no word for, by section, and the values that its guests have; any other is lost."""
