"""A QEMU process under a security model: what it may do, and that everything works under it."""

from __future__ import annotations

import os

import attrs

from hvcore import InstanceState, Nic, with_identities
from hvcore.conformance import ConformanceFailure, Subject, check, expect, expect_equal
from hvcore_kvm.conformance.member import families_of
from hvcore_kvm.definition import read

_SETS = ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")
_NAMESPACES = {"mount": "mnt", "uts": "uts", "ipc": "ipc", "pid": "pid"}


def _status(pid: int | str) -> dict[str, list[str]]:
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return {key: value.split() for key, _, value in (line.partition(":") for line in file)}


def _pid(subject: Subject, name: str) -> int:
    pid = subject.info(name).pid
    expect(pid is not None, "the driver does not say which process it is")
    return int(pid or 0)


@check("FA-14")
def qemu_may_do_no_more_than_we(subject: Subject) -> None:
    """Capabilities, users and groups of the process are among those of the host application."""
    pid = _pid(subject, subject.start())
    expect("qemu" in os.readlink(f"/proc/{pid}/exe"), "the process of the instance is not QEMU")
    found, own = _status(pid), _status("self")
    for name in _SETS:
        more = int(found[name][0], 16) & ~int(own[name][0], 16)
        expect(not more, f"{name} of QEMU has what the host application has not: {more:#x}")
    root = "0" in own["Uid"]
    if not root:
        expect_equal(found["Uid"], own["Uid"], "the users of QEMU")
        expect(set(found["Gid"]) <= {*own["Gid"], *own["Groups"]}, f"QEMU has groups of its own: {found['Gid']}")
    foreign = set(found["Groups"]) - {*own["Gid"], *own["Groups"], *found["Gid"]}
    expect(root or not foreign, f"QEMU has further groups: {sorted(foreign)}")
    if found["Uid"] != own["Uid"]:
        expect("0" not in found["Groups"] + found["Gid"], "QEMU has another user, and root's group still")
        expect_equal([found[name] for name in ("CapPrm", "CapEff")], [["0" * 16]] * 2, "capabilities of another user")
    expect(int(found["NoNewPrivs"][0]) >= int(own["NoNewPrivs"][0]), "QEMU can get privileges that we cannot")


@check("FA-14")
def what_is_planned_of_its_own_is_so(subject: Subject) -> None:
    """Every kind of namespace that is planned is one of its own, and so is the root."""
    definition = with_identities(subject.definition(), "conformance")
    parsed, _ = read(definition, families_of(subject.driver))
    if parsed.security_model is None:
        raise ConformanceFailure("the definition has no security model")
    planned = parsed.security_model.backend.plan(parsed.instance, parsed.security_parameters)
    subject.driver.start_instance(definition)
    pid = _pid(subject, definition.name)
    for kind in planned.namespaces:
        inside, outside = (os.readlink(f"/proc/{who}/ns/{_NAMESPACES[kind]}") for who in (pid, "self"))
        expect(inside != outside, f"QEMU has no {kind} namespace of its own, which is planned")
    if planned.root is not None:
        expect(not os.path.samefile(f"/proc/{pid}/root", "/"), "QEMU has no root of its own, which is planned")


@check("FA-15")
def everything_works_under_it(subject: Subject) -> None:
    """Disks, a NIC, consoles, a screenshot, hotplug, a graceful stop."""
    base = subject.definition()
    definition = attrs.evolve(base, disks=(subject.raw_disk(),), nics=(Nic(),), consoles=("serial", "vnc"))
    for disk in definition.disks:
        os.chmod(disk.path or "", 0o600)
    subject.driver.start_instance(definition)
    name = definition.name
    subject.wait_ready(name)
    for kind in definition.consoles:
        console = subject.driver.get_instance_console(name, kind)
        expect(console.socket_path is not None or console.port is not None, f"console {kind} has no endpoint")
    picture = subject.driver.screenshot(name)
    expect(len(picture.data) > 0, "the screenshot is empty")
    subject.driver.pause_instance(name)
    subject.driver.resume_instance(name)
    for device in (subject.raw_disk("plugged.raw"), Nic(name="plugged")):
        result = subject.driver.hot_add_device(name, device)
        expect(result.done, f"a device could not be added: {result.detail}")
    found = subject.driver.verify_instance(name)
    expect(found.ok, f"what is recorded is not what runs: {'; '.join(map(str, found))}")
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state")
    subject.driver.stop_instance(name)
    expect_equal(subject.state(name), InstanceState.STOPPED, "the state after a graceful stop")
