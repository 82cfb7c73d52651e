"""Growing disks and ballooning memory of a running instance, each operation a transaction on the modelled world."""

from __future__ import annotations

from hvcore import (
    BalloonResult,
    Finding,
    ResizeResult,
    UnsupportedOperation,
    WrongState,
    format_size,
)
from hvcore_fake import yielding
from hvcore_fake.hotplug import refuse, running
from hvcore_fake.transaction import Call, transaction
from hvcore_fake.world import process_key

SECTOR = 512
"""What the size of a disk is a multiple of, in bytes."""

_MIB = 2**20


def resize(call: Call, name: str, ident: str, size: int) -> ResizeResult:
    """Grow a disk; see the hook of the same name.

    The image is not touched: a disk has its new size as long as it is attached.
    """
    world, ident = call.world, ident.lower()
    with world.store.locked(call.deadline):
        record, process = running(call, name)
        disk = next((disk for disk in record.instance.disks if disk.uuid == ident), None)
        attached = process.device(ident)
        findings = []
        if size % SECTOR:
            message = f"{size} bytes is not a multiple of {SECTOR}"
            findings.append(Finding(code="invalid-value", path="size", message=message))
        if disk is None or attached is None:
            has = ", ".join(str(each.uuid) for each in record.instance.disks) or "none"
            message = f"it has no disk {ident[:60]}"
            findings.append(Finding(code="no-such-device", path="device", message=message, hint=f"it has {has}"))
        before = 0 if attached is None else attached.size
        if disk is not None and disk.read_only:
            findings.append(Finding(code="read-only", path="device", message="the disk is read-only"))
        if size < before:
            message = f"{format_size(size)} is less than the {format_size(before)} it has; a disk can only grow"
            findings.append(Finding(code="shrinking", path="size", message=message))
        refuse(findings, "the disk cannot have that size")
        if any(change.ident == ident for change in record.changes):
            raise WrongState("the disk is being removed", instance=name)
        if size != before:
            with transaction(call, name, {"device": ident, "size": size}) as effects:
                call.in_time()
                undo = lambda: world.resize(name, ident, before)  # noqa: E731
                effects.effect("resize", lambda: world.resize(name, ident, size), undo=undo)
                call.in_time()
    return ResizeResult(device=ident, before=before, after=size)


def balloon(call: Call, name: str, memory: int) -> BalloonResult:
    """Ask for memory, or give some; see the hook of the same name."""
    world = call.world
    with world.store.locked(call.deadline):
        _, process = running(call, name)
        least = process.behaviour.memory_min or _MIB
        findings = []
        if memory % _MIB:
            message = f"{memory} bytes is not a whole number of MiB"
            findings.append(Finding(code="invalid-value", path="memory", message=message))
        if not least <= memory <= process.memory_max:
            limits = f"{format_size(least)} and {format_size(process.memory_max)}"
            message = f"{format_size(memory)} is not between {limits}"
            findings.append(Finding(code="out-of-range", path="memory", message=message))
        refuse(findings, "the guest cannot have that much memory")
        if not process.behaviour.balloon:
            hint = "set params.balloon = true and start it again"
            raise UnsupportedOperation("it has no balloon", hint=hint, instance=name)
        with transaction(call, name, {"memory": memory}) as effects:
            undo = lambda: world.inflate(name, process.memory_target)  # noqa: E731
            effects.effect("balloon", lambda: world.inflate(name, memory), undo=undo)
            effects.effect("wait", lambda: world.wait_for_memory(name, call.deadline.timeout()))
        now = world.store.read(process_key(name), type(process)) or process
        reached = yielding.memory_now(now, world.clock())
    return BalloonResult(requested=memory, reached=reached)
