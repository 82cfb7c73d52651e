"""Reading what Ganeti stores: every name known, every value of its type, what is missing filled in."""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from hvcore import Finding, Nic, checks, structure
from hvcore_kvm.ganeti import grammar
from hvcore_kvm.ganeti.coercion import coerce, shown
from hvcore_kvm.ganeti.table import BACKEND, HYPERVISOR, Known, backend_defaults, hypervisor_defaults
from hvcore_kvm.ganeti.vocabulary import NIC_MODE, TEMPLATES, USERSPACE_TEMPLATES

Values = dict[str, Any]

# Part of every stored object, and no concern of a driver.
_BOOKKEEPING = ("serial_no", "ctime", "mtime", "pci", "hvinfo", "forthcoming")
_NIC_NAMES = ("mac", "ip", "name", "uuid", "network", "netinfo", "nicparams", "mode", "link", "vlan", "bridge")
_DISK_NAMES = (
    *("uuid", "name", "size", "mode", "dev_type", "path", "link", "uri", "access", "provider", "params", "spindles"),
    *("vg", "metavg", "adopt", "iv_name", "logical_id", "physical_id", "children", "nodes", "dynamic_params"),
)


@attrs.frozen(kw_only=True)
class GanetiParameters:
    """An instance in Ganeti's words, every value given.

    Attributes:
        hvparams: the hypervisor parameters, all of them.
        beparams: the backend parameters, all of them but the old name ``memory``.
        nics: the NICs: mac, ip, name, uuid, network, netinfo, mode, link, vlan.
        disks: the disks: uuid, name, size, mode, dev_type, path, uri, access, provider.
        network_port: TCP port of the graphical console.
        findings: what of an instance cannot be said in these words.
    """

    hvparams: Mapping[str, Any]
    beparams: Mapping[str, Any]
    nics: tuple[Mapping[str, Any], ...] = ()
    disks: tuple[Mapping[str, Any], ...] = ()
    network_port: int | None = None
    findings: Sequence[Finding] = ()

    def flat(self) -> dict[str, Any]:
        """Every value by its path, such as ``hvparams.acpi`` or ``disks[0].mode``."""
        groups: dict[str, Mapping[str, Any]] = {"hvparams": self.hvparams, "beparams": self.beparams}
        groups |= {f"nics[{index}]": nic for index, nic in enumerate(self.nics)}
        groups |= {f"disks[{index}]": disk for index, disk in enumerate(self.disks)}
        return {f"{path}.{name}": value for path, group in groups.items() for name, value in group.items()}


def read_hypervisor(given: Any, *, filled: bool) -> tuple[Values, list[Finding]]:
    """The hypervisor parameters with defaults for what is missing, and everything wrong with single values."""
    return _read("hvparams", HYPERVISOR, hypervisor_defaults(), given, filled=filled)


def read_backend(given: Any, *, filled: bool) -> tuple[Values, list[Finding]]:
    """The backend parameters, as `read_hypervisor` does; the old ``memory`` has become ``maxmem`` and ``minmem``."""
    values, findings = _read("beparams", BACKEND, backend_defaults(), given, filled=filled)
    memory = values.pop("memory", None)
    if memory is not None:
        values |= {"maxmem": memory, "minmem": memory}
    elif isinstance(given, Mapping) and "maxmem" in given and "minmem" not in given:
        # Ganeti's default would be above the maximum.
        values["minmem"] = min(values["minmem"], values["maxmem"])
    return values, findings


def _read(
    group: str, table: Mapping[str, Known], defaults: Values, given: Any, *, filled: bool
) -> tuple[Values, list[Finding]]:
    if not isinstance(given, Mapping):
        message = f"expected a table, got {shown(given)}"
        return defaults, [Finding(code="wrong-type", path=group, message=message)]
    findings = list(_unknown(given, tuple(table), group))
    values = dict(defaults)
    for name, known in table.items():
        path = f"{group}.{name}"
        if name in given:
            value, problem = _value(known, given[name], path)
            if problem is None:
                values[name] = value
            else:
                findings.append(problem)
        elif filled and name in defaults:
            message = "is missing from a set that was to be complete"
            findings.append(Finding(code="missing-parameter", path=path, message=message))
    return values, findings


def _value(known: Known, given: Any, path: str) -> tuple[Any, Finding | None]:
    """The value of one parameter. An optional one that is null or empty text is one that was not given."""
    if known.kind != "bool" and (given is None or (isinstance(given, str) and not given)):
        if known.required:
            return None, Finding(code="missing-parameter", path=path, message="is required, and is not given")
        if known.name == "serial_speed":
            # Whether that is wrong depends on the serial console.
            return None, None
        if known.kind == "maybe-text":
            return given, None
        return "" if known.kind == "text" and known.name not in _WITH_DEFAULT else known.default, None
    try:
        value = coerce(known.kind, given)
    except ValueError as error:
        return None, Finding(code="wrong-type", path=path, message=str(error))
    if value == "" and known.kind == "text":
        return _value(known, None, path) if given is False else (value, None)
    if known.choices and value not in known.choices:
        words = ", ".join(str(choice) for choice in known.choices)
        hint = nearest(value, known.choices)
        return None, Finding(code="not-a-choice", path=path, message=f"{shown(value)} is none of {words}", hint=hint)
    problem = known.check(value) if known.check is not None else None
    return (value, None) if not problem else (None, Finding(code="invalid-value", path=path, message=problem))


_WITH_DEFAULT = ("disk_aio", "disk_discard")
"""Optional choices without an empty value of their own."""


def nearest(wrong: Any, known: Iterable[Any]) -> str | None:
    """The name that was perhaps meant, for a hint."""
    if not isinstance(wrong, str) or len(wrong) > 60:
        return None
    words = sorted(word for word in known if isinstance(word, str))
    close = difflib.get_close_matches(wrong.lower().replace("-", "_"), words, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else None


def _unknown(given: Mapping[Any, Any], known: Sequence[str], group: str) -> Iterator[Finding]:
    for key in given:
        if key in known:
            continue
        word = key if isinstance(key, str) and key.isidentifier() and len(key) <= 60 else shown(key)
        hint = nearest(key, known)
        yield Finding(code="unknown-parameter", path=f"{group}.{word}", message="there is no such name", hint=hint)


def read_nics(given: Sequence[Any]) -> tuple[tuple[Values, ...], list[Finding]]:
    """The NICs in one form, and everything wrong with each and with their names."""
    return _devices("nics", given, _nic)


def read_disks(given: Sequence[Any]) -> tuple[tuple[Values, ...], list[Finding]]:
    """The disks in one form, and everything wrong with each and with their names."""
    return _devices("disks", given, _disk)


def _devices(group: str, given: Any, read: Any) -> tuple[tuple[Values, ...], list[Finding]]:
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        message = f"expected a list, got {shown(given)}"
        return (), [Finding(code="wrong-type", path=group, message=message)]
    findings: list[Finding] = []
    devices = []
    for index, item in enumerate(given):
        path = f"{group}[{index}]"
        if not isinstance(item, Mapping):
            findings.append(Finding(code="wrong-type", path=path, message=f"expected a table, got {shown(item)}"))
            continue
        devices.append(read(item, path, findings))
    findings += _names(group, devices)
    return tuple(devices), findings


def _names(group: str, devices: Sequence[Values]) -> Iterator[Finding]:
    uuids = {device["uuid"]: index for index, device in enumerate(devices) if device["uuid"]}
    seen: dict[str, int] = {}
    for index, device in enumerate(devices):
        name = device["name"]
        if name is None:
            continue
        path = f"{group}[{index}].name"
        if grammar.is_numeric(name):
            message = f"{name[:40]!r} would be taken for the place of a device"
            yield Finding(code="invalid-value", path=path, message=message)
        if uuids.get(name, index) != index:
            yield Finding(code="repeated-value", path=path, message=f"is the uuid of {group}[{uuids[name]}]")
        if seen.setdefault(name, index) != index:
            yield Finding(code="repeated-value", path=path, message=f"is the same as that of {group}[{seen[name]}]")


def _optional_text(item: Mapping[str, Any], name: str, path: str, findings: list[Finding]) -> str | None:
    try:
        return coerce("maybe-text", item.get(name)) or None
    except ValueError as error:
        findings.append(Finding(code="wrong-type", path=f"{path}.{name}", message=str(error)))
        return None


def _nic(item: Mapping[str, Any], path: str, findings: list[Finding]) -> Values:
    findings += _unknown(item, (*_NIC_NAMES, *_BOOKKEEPING), path)
    inherited = item.get("nicparams")
    if inherited is not None and not isinstance(inherited, Mapping):
        message = f"expected a table, got {shown(inherited)}"
        findings.append(Finding(code="wrong-type", path=f"{path}.nicparams", message=message))
        inherited = None
    findings += _unknown(inherited or {}, ("mode", "link", "vlan"), f"{path}.nicparams")
    item = {**item, **(inherited or {})}
    nic: Values = {name: _optional_text(item, name, path, findings) for name in ("name", "uuid", "ip", "network")}
    if nic["name"] == "none":
        nic["name"] = None
    if nic["network"] == "none":
        nic["network"] = None
    nic["netinfo"] = item.get("netinfo")
    nic |= _connection(item, path, findings)
    nic["mac"] = _mac(item, path, findings)
    findings += _address(nic, path)
    return nic


def _connection(item: Mapping[str, Any], path: str, findings: list[Finding]) -> Values:
    mode = _optional_text(item, "mode", path, findings) or "auto"
    if mode not in (*NIC_MODE, "auto"):
        message = f"{shown(mode)} is none of {', '.join(NIC_MODE)}"
        hint = nearest(mode, NIC_MODE)
        findings.append(Finding(code="not-a-choice", path=f"{path}.mode", message=message, hint=hint))
    if mode == "auto" or mode not in NIC_MODE:
        mode = "bridged"
    link = _optional_text(item, "link", path, findings) or _optional_text(item, "bridge", path, findings) or ""
    if not link and mode in ("bridged", "openvswitch"):
        what = "bridge" if mode == "bridged" else "switch"
        findings.append(
            Finding(
                code="missing-parameter",
                path=f"{path}.link",
                message=f"mode {mode} needs a {what}",
                hint="give the filled parameters of the NIC: the cluster's default link is not known here",
            )
        )
    text = _optional_text(item, "vlan", path, findings) or ""
    if text:
        try:
            text = grammar.vlan(text)
        except ValueError as error:
            findings.append(Finding(code="invalid-value", path=f"{path}.vlan", message=str(error)))
            text = ""
    return {"mode": mode, "link": link, "vlan": text}


def _mac(item: Mapping[str, Any], path: str, findings: list[Finding]) -> str | None:
    mac = _optional_text(item, "mac", path, findings)
    if mac is None or mac in ("auto", "generate"):
        return None
    _, problems = structure(Nic, {"mac": mac}, path)
    findings += problems
    return mac.lower()


def _address(nic: Values, path: str) -> Iterator[Finding]:
    ip = nic["ip"]
    if ip == "none":
        ip = nic["ip"] = None
    if ip in ("auto", "pool"):
        message = f"{ip} is a wish: the address it led to is needed"
        yield Finding(code="invalid-value", path=f"{path}.ip", message=message)
    elif ip is not None:
        try:
            ipaddress.ip_address(ip)
        except ValueError:
            message = f"{ip[:60]!r} is not an IP address"
            yield Finding(code="invalid-value", path=f"{path}.ip", message=message)
    elif nic["mode"] == "routed" and nic["network"] is None:
        yield Finding(code="missing-parameter", path=f"{path}.ip", message="mode routed needs the guest's address")


def _disk(item: Mapping[str, Any], path: str, findings: list[Finding]) -> Values:
    kind = _optional_text(item, "dev_type", path, findings) or "plain"
    if kind not in TEMPLATES:
        message = f"{shown(kind)} is none of {', '.join(TEMPLATES)}"
        hint = nearest(kind, TEMPLATES)
        findings.append(Finding(code="not-a-choice", path=f"{path}.dev_type", message=message, hint=hint))
    if kind != "ext":
        # Whatever else a disk of an external provider has is the provider's.
        findings += _unknown(item, (*_DISK_NAMES, *_BOOKKEEPING), path)
    disk: Values = {name: _optional_text(item, name, path, findings) for name in ("uuid", "name", "provider")}
    if disk["name"] == "none":
        disk["name"] = None
    disk["dev_type"] = kind
    disk["size"] = _disk_size(item, path, findings)
    disk["mode"] = _optional_text(item, "mode", path, findings) or "rw"
    if disk["mode"] not in ("rw", "ro"):
        message = f"{shown(disk['mode'])} is none of rw, ro"
        findings.append(Finding(code="not-a-choice", path=f"{path}.mode", message=message))
    disk |= _source(item, kind, path, findings)
    template = item.get("params")
    if kind == "ext" and disk["provider"] is None and isinstance(template, Mapping):
        disk["provider"] = _optional_text(template, "provider", f"{path}.params", findings)
    if kind == "ext" and disk["provider"] is None:
        message = "is needed with template ext"
        findings.append(Finding(code="missing-parameter", path=f"{path}.provider", message=message))
    if kind != "ext" and disk["provider"] is not None:
        message = "is only for template ext"
        findings.append(Finding(code="contradiction", path=f"{path}.provider", message=message))
    return disk


def _disk_size(item: Mapping[str, Any], path: str, findings: list[Finding]) -> int | None:
    if item.get("size") is None:
        return None
    try:
        return int(coerce("size", item["size"]))
    except ValueError as error:
        findings.append(Finding(code="wrong-type", path=f"{path}.size", message=str(error)))
        return None


def _source(item: Mapping[str, Any], kind: str, path: str, findings: list[Finding]) -> Values:
    """Where QEMU finds the disk: the uri where it is to reach it by itself and knows how, else the local path."""
    template = item.get("params")
    template = template if isinstance(template, Mapping) else {}
    access = _optional_text({"access": template.get("access"), **item}, "access", path, findings) or "kernelspace"
    if access not in ("kernelspace", "userspace"):
        message = f"{shown(access)} is none of kernelspace, userspace"
        findings.append(Finding(code="not-a-choice", path=f"{path}.access", message=message))
    elif access == "userspace" and kind not in USERSPACE_TEMPLATES:
        message = f"userspace is for {', '.join(USERSPACE_TEMPLATES)}, and dev_type is {kind}"
        findings.append(Finding(code="contradiction", path=f"{path}.access", message=message))
    local = _optional_text(item, "path", path, findings) or _optional_text(item, "link", path, findings)
    uri = _optional_text(item, "uri", path, findings)
    if uri is not None and kind == "ext":
        uri = uri.removeprefix("kvm:")
    problem = checks.absolute_path(local) if local is not None else None
    if problem:
        findings.append(Finding(code="invalid-value", path=f"{path}.path", message=problem))
    if local is None and not (access == "userspace" and uri):
        message = "is needed: the local device or file of the disk"
        findings.append(Finding(code="missing-parameter", path=f"{path}.path", message=message))
    return {"path": local, "uri": uri, "access": access}
