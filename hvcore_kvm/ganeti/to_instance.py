"""From Ganeti's words to an instance."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs

from hvcore import (
    AutoConverge,
    Disk,
    Finding,
    FindingSet,
    Instance,
    MigrationPolicy,
    MultiFd,
    Nic,
    PostCopy,
    Seconds,
    Size,
    read_definition,
)
from hvcore_kvm.ganeti import grammar
from hvcore_kvm.ganeti.coercion import shown
from hvcore_kvm.ganeti.from_instance import from_instance
from hvcore_kvm.ganeti.instance_parameters import InstanceParameters, disk_params, nic_params, place
from hvcore_kvm.ganeti.own_parameters import check_parameters
from hvcore_kvm.ganeti.parity import PARITY
from hvcore_kvm.ganeti.reading import (
    GanetiParameters,
    Values,
    read_backend,
    read_disks,
    read_hypervisor,
    read_nics,
)
from hvcore_kvm.ganeti.rules import Source, check
from hvcore_kvm.ganeti.table import HYPERVISOR
from hvcore_kvm.ganeti.translation import Translation, Unplaced, lossy, note
from hvcore_kvm.ganeti.vocabulary import (
    CACHE,
    DISK_BUS,
    NIC_MODE,
    SHARED_TEMPLATES,
)

_MIB = 2**20
_COMMUNICATION = "ganeti:communication:"


def to_instance(
    name: str,
    hvparams: Mapping[str, Any],
    beparams: Mapping[str, Any],
    nics: Sequence[Mapping[str, Any]] = (),
    disks: Sequence[Mapping[str, Any]] = (),
    *,
    uuid: str | None = None,
    network_port: int | None = None,
    tags: Iterable[str] = (),
    filled: bool = False,
    spice_x509_path: str | None = None,
) -> Translation:
    """Translate an instance; every problem is a finding, none is raised.

    Args:
        name: name of the instance.
        hvparams: hypervisor parameters, as stored or as text.
        beparams: backend parameters.
        nics: NICs: mac, ip, name, uuid, network, and mode, link and vlan, these also below ``nicparams``.
        disks: disks: uuid, name, mode, dev_type, path (or link), uri, and access, this also below ``params``.
        uuid: uuid of the instance.
        network_port: TCP port of the graphical console.
        tags: tags of the instance.
        filled: the parameters are complete, so that a missing one is an error; otherwise Ganeti's own default stands
            for it.
        spice_x509_path: directory of the certificate that SPICE is to use with TLS; in Ganeti it is the cluster's.
    """
    hv, findings = read_hypervisor(hvparams, filled=filled)
    be, more = read_backend(beparams, filled=filled)
    nic_values, nic_findings = read_nics(nics)
    disk_values, disk_findings = read_disks(disks)
    findings += [*more, *nic_findings, *disk_findings]
    bad = frozenset(f.path.partition(".")[2] for f in findings if f.path.startswith(("hvparams.", "beparams.")))
    if network_port is not None and (type(network_port) is not int or not 1 <= network_port <= 65535):
        message = f"expected a TCP port, got {shown(network_port)}"
        findings.append(Finding(code="wrong-type", path="network_port", message=message))
        network_port = None
    source = Source(hv=hv, be=be, nics=nic_values, disks=disk_values, network_port=network_port, bad=bad)
    findings += check(source)
    given = GanetiParameters(hvparams=hv, beparams=be, nics=nic_values, disks=disk_values, network_port=network_port)
    capabilities = tuple(filter(None, hv["migration_caps"].split(":")))
    migration = _migration(hv, capabilities)
    # Also when there are errors: what else is wrong is only found on the way. A wrong value is found once.
    wrong = {finding.path for finding in FindingSet(findings).errors}
    parameters = InstanceParameters(source, spice_x509_path)
    instance, problems = _instance(name, uuid, tags, source, parameters)
    findings += (finding for finding in (*parameters.findings, *problems) if finding.path not in wrong)
    findings += _device_notes(source)
    found = FindingSet(findings)
    unplaced: Mapping[str, Unplaced] = {}
    if found.ok:
        unplaced = _unplaced(instance, given, migration, capabilities)
    return Translation(
        instance=instance if found.ok else None,
        findings=found,
        migration=migration,
        migration_port=hv["migration_port"],
        migration_capabilities=capabilities,
        filled=given,
        unplaced=MappingProxyType(unplaced),
    )


def _unplaced(
    instance: Instance, given: GanetiParameters, migration: MigrationPolicy, capabilities: Sequence[str]
) -> dict[str, Unplaced]:
    """What the way back does not make of the instance by itself."""

    def difference(known: Mapping[str, Unplaced]) -> dict[str, Unplaced]:
        back = from_instance(
            instance,
            migration=migration,
            migration_port=given.hvparams["migration_port"],
            migration_capabilities=capabilities,
            unplaced=known,
        )
        return {**known, **_difference(given, back)}

    # What a disk's template is, or that it became a CD-ROM drive, decides how others of its values are read.
    decisive = (
        {path: value for path, value in difference({}).items() if path.endswith(".dev_type")}
        if any(disk["dev_type"] in SHARED_TEMPLATES for disk in given.disks)
        else {}
    )
    if given.hvparams["disk_type"] == "scsi-cd":
        usual = HYPERVISOR["disk_type"].default
        decisive["hvparams.disk_type"] = Unplaced(given="scsi-cd", returned=usual)
        of_disks = {path: value for path, value in given.flat().items() if path.startswith("disks[")}
        decisive |= {path: Unplaced(given=value, returned=None) for path, value in of_disks.items()}
    return difference(decisive)


def _difference(given: GanetiParameters, back: GanetiParameters) -> dict[str, Unplaced]:
    returned = back.flat()
    return {
        path: Unplaced(given=value, returned=returned.get(path))
        for path, value in given.flat().items()
        if path not in returned or returned[path] != value
    }


def _migration(hv: Values, capabilities: Sequence[str]) -> MigrationPolicy:
    bandwidth = hv["migration_bandwidth"]
    live = hv["migration_mode"] == "live"
    postcopy = live and "postcopy-ram" in capabilities
    return MigrationPolicy(
        live=live,
        max_bandwidth=Size(bandwidth * _MIB) if bandwidth else None,
        downtime_limit=Seconds(hv["migration_downtime"] / 1000),
        on_no_convergence=(
            "postcopy"
            if "postcopy-ram" in capabilities
            else "throttle"
            if "auto-converge" in capabilities
            else "raise-downtime"
        ),
        # Ganeti lets the guest go over as soon as its memory has been gone through twice.
        postcopy=PostCopy(after_passes=2, preempt="postcopy-preempt" in capabilities) if postcopy else None,
        auto_converge=AutoConverge() if live and "auto-converge" in capabilities else None,
        multifd=MultiFd() if "multifd" in capabilities and not postcopy else None,
        switchover="paused" if "pause-before-switchover" in capabilities else "immediate",
    )


def _instance(
    name: str, uuid: str | None, tags: Iterable[str], source: Source, parameters: InstanceParameters
) -> tuple[Instance, list[Finding]]:
    consoles = (
        *(("serial",) if source.hv["serial_console"] else ()),
        *(("vnc",) if source.vnc else ()),
        *(("spice",) if source.spice else ()),
    )
    instance = Instance(
        name=name,
        uuid=uuid,
        memory=Size(source.be["maxmem"] * _MIB),
        vcpus=source.be["vcpus"],
        security_model=source.hv["security_model"],
        consoles=consoles,
        tags=tags if isinstance(tags, str) else tuple(tags),  # type: ignore[arg-type]
        params=parameters.of_instance(),
        disks=_disks(source),
        nics=_nics(source),
    )
    checked, problems = read_definition(instance)
    problems += check_parameters(instance)
    renamed = (_in_ganetis_words(problem, source) for problem in problems)
    return (checked if not problems else instance), [problem for problem in renamed if problem is not None]


def _in_ganetis_words(finding: Finding, source: Source) -> Finding | None:
    """The same finding with the path of the value it comes from."""
    name = _ganetis_name(finding.path, source)
    if name is None:
        return finding
    if name.startswith("hvparams.") and source.hv[name.partition(".")[2]] == "/":
        # Right as a path; only a host can tell that it is no file.
        return None
    return attrs.evolve(finding, path=name)


def _ganetis_name(path: str, source: Source) -> str | None:
    """The name of the value that stands at a place; ``None`` for what has the same path in both."""
    drive = re.match(r"params\.cdroms\[([0-9]+)\](\.bus)?", path)
    if drive is not None:
        index, images = int(drive[1]), source.image_names
        if index >= len(images):
            return f"disks[{index - len(images)}]"
        return "hvparams.cdrom_disk_type" if drive[2] else f"hvparams.{images[index]}"
    place = re.sub(r"\[[0-9]+\]", "[]", path)
    for name, (where, _) in PARITY.items():
        if name.startswith(("hvparams.", "beparams.")) and (
            place == where or place.startswith((f"{where}.", f"{where}["))
        ):
            return name
    return None


def _nics(source: Source) -> tuple[Nic, ...]:
    return tuple(_nic(source, nic) for nic in source.nics)


def _nic(source: Source, nic: Mapping[str, Any]) -> Nic:
    params = nic_params(source)
    if nic["vlan"] and nic["mode"] in ("bridged", "openvswitch"):
        params["vlan"] = nic["vlan"]
    name = nic["name"]
    return Nic(
        mode=NIC_MODE[nic["mode"]],
        link=nic["link"] or None,
        mac=nic["mac"],
        ip=nic["ip"],
        uuid=nic["uuid"],
        name=name if name and not grammar.label_problem(name) else None,
        params=params,
    )


def _disks(source: Source) -> tuple[Disk, ...]:
    if source.hv["disk_type"] == "scsi-cd":
        return ()
    disks = []
    for disk in source.disks:
        params = disk_params(source)
        if disk["dev_type"] in SHARED_TEMPLATES:
            # Two hosts must not keep the same image in their page caches.
            params["cache"] = "none"
        name = disk["name"]
        disks.append(
            Disk(
                **place(disk),
                format="raw",
                read_only=disk["mode"] == "ro",
                uuid=disk["uuid"],
                name=name if name and not grammar.label_problem(name) else None,
                params=params,
            )
        )
    return tuple(disks)


def _device_notes(source: Source) -> Iterator[Finding]:
    for index, nic in enumerate(source.nics):
        path = f"nics[{index}]"
        if nic["vlan"] and nic["mode"] not in ("bridged", "openvswitch"):
            message = f"mode {NIC_MODE[nic['mode']]} has no VLANs here"
            yield lossy(f"{path}.vlan", message)
        if nic["network"] or nic["netinfo"]:
            message = "NIC scripts are not told of the network: only of the mode, link and address it led to"
            yield note(f"{path}.network", message)
        if nic["mac"] is None:
            yield note(f"{path}.mac", "is derived from the uuid", "pass the address the guest has")
        if nic["name"] and nic["name"].startswith(_COMMUNICATION):
            yield note(f"{path}.name", "the name of its interface on the host is not gnt.com.N here")
        if nic["name"] and (problem := grammar.label_problem(nic["name"])):
            yield lossy(f"{path}.name", problem)
    for index, disk in enumerate(source.disks):
        path = f"disks[{index}]"
        if disk["name"] and (problem := grammar.label_problem(disk["name"])):
            yield lossy(f"{path}.name", problem)
        forced = disk["dev_type"] in SHARED_TEMPLATES and CACHE[source.hv["disk_cache"]] != "none"
        if forced and source.hv["disk_type"] in DISK_BUS:
            message = f"cache is none, as several hosts reach a disk of template {disk['dev_type']}"
            yield note(f"{path}.dev_type", message)
        if disk["mode"] == "ro":
            yield note(f"{path}.mode", "Ganeti starts no instance with a read-only disk; this driver does")
