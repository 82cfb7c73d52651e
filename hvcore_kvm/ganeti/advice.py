"""What is legal in Ganeti's words and unwise."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from hvcore import Finding, FindingSet, Severity
from hvcore_kvm.ganeti.reading import read_hypervisor

_SLOW_CPUS = ("", "qemu32", "qemu64", "kvm32", "kvm64")
_UNFIT_MACHINES = ("none", "microvm", "isapc", "x-remote")
_DEFAULT_BANDWIDTH = 32
_LOW_BANDWIDTH = 100
_QEMU_DOWNTIME = 300


def assess(hvparams: Mapping[str, Any]) -> FindingSet:
    """Advice on hypervisor parameters.

    Args:
        hvparams: all of them or only those that differ from Ganeti's defaults. Values that are wrong are passed over;
            `to_instance` finds them.
    """
    hv, _ = read_hypervisor(hvparams, filled=False)
    return FindingSet(
        Finding(code=code, path=f"hvparams.{name}", message=message, hint=hint, severity=Severity.ADVICE)
        for name, code, message, hint in _advice(hv)
    )


def _advice(hv: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str | None]]:
    cpu = hv["cpu_type"]
    if cpu in _SLOW_CPUS:
        message = "is a model of little speed that lacks mitigations of CPU vulnerabilities"
        yield "cpu_type", "slow-cpu", message, "name the oldest CPU of your hosts"
    elif cpu == "host":
        yield "cpu_type", "host-cpu", "needs hosts with the same CPU for a live migration", None
    if not hv["vhost_net"]:
        yield "vhost_net", "slow-network", "packets go through the QEMU process", "set it to true"
    for name in ("disk_type", "nic_type"):
        if hv[name] != "paravirtual":
            yield name, "emulated-device", f"{hv[name]} is slower than paravirtual", None
    yield from _consoles(hv)
    yield from _machine(hv["machine_version"])
    yield from _migration(hv)
    if hv["soundhw"] and not hv["spice_bind"]:
        yield "soundhw", "no-sound", "nobody can hear the card: without SPICE its sound goes nowhere", None


def _consoles(hv: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str | None]]:
    for bind, tls in (("vnc_bind_address", "vnc_tls"), ("spice_bind", "spice_use_tls")):
        address = hv[bind]
        # A socket has no TLS, and needs none.
        if address and not address.startswith("/") and not hv[tls] and not _is_loopback(address):
            yield tls, "clear-text", f"{bind} is not loopback, and the console is not encrypted", None


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _machine(machine: str) -> Iterator[tuple[str, str, str, str | None]]:
    hint = "name a version, such as pc-i440fx-7.2"
    if not machine:
        yield "machine_version", "machine-not-fixed", "is whatever QEMU takes by default", hint
    elif machine == "pc":
        yield "machine_version", "machine-not-fixed", "means another machine with another version of QEMU", hint
    elif machine.startswith("q35"):
        yield "machine_version", "machine-unfit", "Ganeti starts no instance on q35", None
    elif machine in _UNFIT_MACHINES:
        yield "machine_version", "machine-unfit", f"{machine} is not made for instances of Ganeti", None


def _migration(hv: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str | None]]:
    bandwidth, downtime = hv["migration_bandwidth"], hv["migration_downtime"]
    if bandwidth == _DEFAULT_BANDWIDTH:
        message = "32 MiB a second is Ganeti's default, and little for today's networks"
        yield "migration_bandwidth", "default-bandwidth", message, None
    elif bandwidth == 0:
        message = "without a limit a migration may take all of the network"
        yield "migration_bandwidth", "no-bandwidth-limit", message, None
    elif bandwidth < _LOW_BANDWIDTH:
        message = f"{bandwidth} MiB a second is little for today's networks"
        yield "migration_bandwidth", "low-bandwidth", message, None
    if downtime < _QEMU_DOWNTIME:
        message = f"{downtime} ms are below QEMU's own {_QEMU_DOWNTIME} ms; migrations of busy guests may not end"
        yield "migration_downtime", "short-downtime", message, None
