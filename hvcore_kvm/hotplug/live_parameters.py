"""Changing parameters of an instance as a whole while its guest runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from hvcore import (
    Deadline,
    Finding,
    FindingSet,
    HotplugResult,
    Instance,
    InvalidParameters,
    Journal,
    LiveParameters,
    OutcomeUnknown,
    Step,
    format_size,
)
from hvcore_kvm.affinity import pin_running
from hvcore_kvm.definition import Definition, is_same, read
from hvcore_kvm.device_checks import check_pinning
from hvcore_kvm.families import Families
from hvcore_kvm.hardware.storage import throttle_limits
from hvcore_kvm.hotplug.ledger import Ledger
from hvcore_kvm.hotplug.modification import all_limits
from hvcore_kvm.hotplug.monitor import Monitor
from hvcore_kvm.hotplug.usb import change_usb
from hvcore_kvm.launch_plan import LaunchPlan
from hvcore_kvm.parameters.cpu import CpuParameters

_PINS = frozenset(("cpu_pin", "emulator_pin", "iothread_pin"))
_ACTIONS = {"on_reboot": "reboot", "on_panic": "panic", "watchdog_action": "watchdog"}
_ONLY_WORDS = frozenset(("memory_min",))
_LIVE = _PINS | _ACTIONS.keys() | _ONLY_WORDS | {"balloon_stats_interval", "memory_plugged", "throttle_groups", "usb"}
_VIRTIO_MEM = "/machine/peripheral/virtio-mem0"
_LOOK = 0.25
"""QEMU reports at most one change of the memory a second; in between it is asked."""


def change_parameters(
    ledger: Ledger,
    monitor: Monitor,
    wanted: LiveParameters,
    families: Families,
    *,
    pid: int,
    replan: Callable[[Instance], LaunchPlan],
    guest: Deadline,
) -> HotplugResult:
    """Give parameters new values; on failure all are as before.

    Args:
        ledger: the instance's records.
        monitor: its monitor.
        wanted: the new values.
        families: the family plugins.
        pid: its process.
        replan: plans a changed definition.
        guest: how long to wait for the guest, where it has to follow.

    Raises:
        InvalidParameters: a value is wrong, or one that differs needs another start; nothing was changed.
        HypervisorRefused: QEMU's own words.
        HostError: the kernel does not pin the threads so.
    """
    given: Any = wanted.values
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        finding = Finding(code="wrong-type", path="params", message="expected a table of values by name")
        raise InvalidParameters("the parameters cannot be changed", FindingSet([finding]))
    before = ledger.instance
    values = {**before.params, **wanted.values}
    after = attrs.evolve(before, params={key: value for key, value in values.items() if value is not None})
    old, _ = read(before, families)
    new, findings = read(after, families)
    changed = [name for name in wanted.values if not is_same(before.params.get(name), after.params.get(name))]
    findings = findings or list(_findings(changed, old, new))
    if findings:
        raise InvalidParameters("the parameters cannot be changed", FindingSet(findings))
    with Journal(None, f"changing {', '.join(changed) or 'nothing'}") as journal:
        for step in _steps(monitor, set(changed), old, new, pid):
            journal.run(step)
        if "usb" in changed:
            # Last: what is taken away cannot be brought back as it was.
            change_usb(journal, monitor, replan(after))
        ledger.write(after)
    if "memory_plugged" in changed:
        return _wait_for_memory(monitor, new.memory.memory_plugged, guest)
    return HotplugResult(device="params", done=True, detail=f"changed: {', '.join(changed) or 'nothing'}")


def _findings(changed: list[str], old: Definition, new: Definition) -> Iterator[Finding]:
    hint = "start it again with it"
    for name in changed:
        if name not in _LIVE:
            message = "does not change while the guest runs"
            yield Finding(code="not-possible", path=f"params.{name}", message=message, hint=hint)
    if old.storage.throttle_groups.keys() != new.storage.throttle_groups.keys():
        message = "groups neither come nor go while the guest runs; their limits change"
        yield Finding(code="not-possible", path="params.throttle_groups", message=message, hint=hint)
    yield from check_pinning(new)


def _steps(monitor: Monitor, changed: set[str], old: Definition, new: Definition, pid: int) -> Iterator[Step]:
    if changed & _PINS:
        do, undo = (functools.partial(_pin, monitor, pid, definition.cpu) for definition in (new, old))
        yield Step(name="pinning", do=do, undo=undo)
    actions = sorted(changed & _ACTIONS.keys())
    if actions:
        yield _command(monitor, "set-action", *({_ACTIONS[n]: _action(d, n) for n in actions} for d in (new, old)))
    if "balloon_stats_interval" in changed:
        where = ("/machine/peripheral/balloon0", "guest-stats-polling-interval")
        yield _property(monitor, *where, *(int(d.memory.balloon_stats_interval) for d in (new, old)))
    if "throttle_groups" in changed:
        for name, limits in sorted(new.storage.throttle_groups.items()):
            pair = [all_limits(throttle_limits(one)) for one in (limits, old.storage.throttle_groups[name])]
            yield _property(monitor, f"/objects/group-{name}", "limits", *pair)
    if "memory_plugged" in changed:
        yield _property(monitor, _VIRTIO_MEM, "requested-size", *(d.memory.memory_plugged for d in (new, old)))


def _action(definition: Definition, name: str) -> Any:
    return getattr(definition.devices if name == "watchdog_action" else definition.machine, name)


def _command(monitor: Monitor, command: str, new: Mapping[str, Any], old: Mapping[str, Any]) -> Step:
    undo: Callable[[], None] = functools.partial(monitor.take_back, command, old)
    return Step(name=command, do=functools.partial(monitor.execute, command, new), undo=undo)


def _property(monitor: Monitor, path: str, name: str, new: Any, old: Any) -> Step:
    values = [{"path": path, "property": name, "value": value} for value in (new, old)]
    return attrs.evolve(_command(monitor, "qom-set", *values), name=f"{name} of {path}")


def _pin(monitor: Monitor, pid: int, cpu: CpuParameters) -> None:
    whole = cpu.cpu_pin or "all"
    # Threads that the new masks do not name run anywhere again; one mask for the whole process names them all.
    rest = "all" if ":" in whole else None
    masks = {"cpu": whole, "emulator": cpu.emulator_pin or rest, "iothread": cpu.iothread_pin or rest}
    pin_running(pid, monitor.execute, **masks)


def _wait_for_memory(monitor: Monitor, wanted: int, guest: Deadline) -> HotplugResult:
    """Wait until the guest has taken or given back memory, which it does block by block."""
    while (has := _plugged(monitor)) != wanted and not guest.expired:
        monitor.wait_event(lambda event: event["event"] == "MEMORY_DEVICE_SIZE_CHANGE", guest.sooner(_LOOK))
    if has == wanted:
        return HotplugResult(device="params", done=True, detail=f"the guest has {format_size(has)} of it")
    detail = f"the guest has {format_size(has)} of it, was asked for {format_size(wanted)}, and may still follow"
    return HotplugResult(device="params", done=False, detail=detail)


def _plugged(monitor: Monitor) -> int:
    size = monitor.execute("qom-get", {"path": _VIRTIO_MEM, "property": "size"})
    if type(size) is not int:
        raise OutcomeUnknown("QEMU does not say how much memory the guest has taken")
    return size
